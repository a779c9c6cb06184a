from pathlib import Path

import pytest

from zfu_lib.report import claims

GOOD = """
claims:
  - {id: p.S1, statement: s, source: t, kind: trend, metric: m,
     test: {quick: {measures: w, conditions: [{measurement: gap, min: 0}]}}}
bands: {quick: {gap: [0, 1]}}
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "_toc.yml").touch()
    monkeypatch.setenv("ZFU_ROOT", str(tmp_path))
    place = tmp_path / "book" / "claims" / "p.yml"
    place.parent.mkdir(parents=True)
    return place


def test_reads_a_good_file(file: Path) -> None:
    file.write_text(GOOD)
    found = claims.load("p")
    assert found.claims[0].test["quick"].conditions[0].min == 0
    assert found.bands["quick"]["gap"] == (0, 1)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("metric: m", "metric: m, verdict: reproduced"), "verdict"),
        (("kind: trend", "kind: guess"), "kind"),
        (("p.S1", "other.S1"), "does not start with 'p'"),
        (("p.S1", "p.first"), "id"),
        (("min: 0", "minimum: 0"), "minimum"),
        ((", min: 0", ""), "needs min or max"),
        (("min: 0", "min: 2, max: 1"), "min 2.0 > max 1.0"),
        (("measures: w, ", ""), "what it measures"),
        (("measures: w,", "measures: w, cannot_run: too large,"), "either conditions or cannot_run"),
        (("quick: {measures", "fast: {measures"), "fast"),
        (("claims:", "claims: ["), "p.yml"),
        (("bands: {quick: {gap: [0, 1]}}", "bands: {quick: {gap: [0]}}"), "gap"),
    ],
)
def test_refuses(file: Path, change: tuple[str, str], says: str) -> None:
    assert change[0] in GOOD
    file.write_text(GOOD.replace(*change))
    with pytest.raises(claims.ClaimsError) as caught:
        claims.load("p")
    assert says in str(caught.value)
    assert "book/claims/p.yml" in str(caught.value)


def test_refuses_the_same_id_twice(file: Path) -> None:
    entry = GOOD[GOOD.index("  - {") : GOOD.index("bands")]
    file.write_text(GOOD.replace(entry, entry * 2))
    with pytest.raises(claims.ClaimsError, match="used twice"):
        claims.load("p")


def test_says_which_file_is_missing(file: Path) -> None:
    with pytest.raises(claims.ClaimsError, match="no claims file book/claims/p.yml"):
        claims.load("p")
