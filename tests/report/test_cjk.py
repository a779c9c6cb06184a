"""The Chinese font: every character that a reader can meet has a glyph, in figures and on the page."""

import warnings

import matplotlib
import pytest
from fontTools.ttLib import TTFont

from zfu_lib.data import zh_jobs
from zfu_lib.report import cjk, figures, paths


@pytest.fixture(scope="module")
def glyphs():
    return set(map(chr, TTFont(cjk.font()).getBestCmap()))


def test_no_glyph_is_missing_and_none_is_superfluous(glyphs):
    missing = sorted(cjk.needed() - glyphs)
    assert not missing, f"run python -m zfu_lib.report.cjk with the whole font; missing: {''.join(missing)}"
    assert cjk.font().stat().st_size < 150_000


def test_the_worlds_own_sentences_can_be_drawn(glyphs):
    """What the Chinese font has not, the figures' first font must have."""
    latin = set(map(chr, TTFont(matplotlib.get_data_path() + "/fonts/ttf/DejaVuSans.ttf").getBestCmap()))
    ads = zh_jobs.postings(100, 0, mix=zh_jobs.STRATIFIED["test"])
    letters = {letter for ad in ads for letter in ad.text}
    letters |= {letter for entry in zh_jobs.lexicon() for letter in entry.head}
    assert not {letter for letter in letters if cjk.is_cjk(letter)} - glyphs
    assert not letters - glyphs - latin
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of a glyph that no font has
        figures.svg(figures.switches({"甲": [True]}, xlabel="编制年度预算😀", ticks=["算"]), "light")


def test_a_missing_glyph_would_be_seen(glyphs, tmp_path, monkeypatch):
    (tmp_path / "_toc.yml").write_text("")
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "page.md").write_text("生僻字：龘", encoding="utf-8")
    monkeypatch.setenv("ZFU_ROOT", str(tmp_path))
    assert cjk.needed() - glyphs >= {"龘"}


def test_font_and_licence_are_named_as_they_must_be():
    names = TTFont(cjk.font())["name"]
    assert names.getDebugName(1) == cjk.FAMILY
    assert "Apache" in names.getDebugName(13)
    licence = (cjk.font().parent / "LICENSE.txt").read_text()
    assert "Droid Sans Fallback" in licence
    assert "Apache License" in licence
    style = (paths.root() / "book" / "_static" / "zfu.css").read_text()
    assert f'src: url("fonts/{cjk.font().name}")' in style
