"""Releases: no leakage, every format back, checksums, in place in one step or not at all."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zfu_lib.skills import formats, release
from zfu_lib.skills.release import ReleaseError
from zfu_lib.skills.spans import Sentence, Span

ABOUT = {"description": "d", "licence": "CC0", "synthetic": True, "guideline": "g"}


def sentence(posting, order, text="负责数据清洗、沟通😀", source="tech"):
    spans = [Span(2, 6, "S"), Span(7, 9, "T")]
    return Sentence.of_characters(
        text, spans=spans, id=f"synth_{posting}-s{order}", meta={"posting": f"p{posting}", "source": source}
    )


def corpus(n=40):
    letters = "甲乙丙丁戊己庚辛壬癸"
    return [
        sentence(p, k, f"负责数据清洗、沟通{letters[p % 10]}{letters[p // 10]}{letters[k]}", "ab"[p % 2])
        for p in range(n)
        for k in range(3)
    ]


def test_postings_are_never_split_and_sources_are_alike():
    made = corpus()
    split = release.split_by_posting(made)
    assert set(split) == {s.meta["posting"] for s in made}
    for source in "ab":
        own = {s.meta["posting"] for s in made if s.meta["source"] == source}
        assert sorted(split[p] for p in own) == ["dev"] * 2 + ["test"] * 2 + ["train"] * 16
    assert split == release.split_by_posting(made[::-1])


def test_every_file_gives_the_sentences_back():
    built = release.build(corpus(), name="synth_x", **ABOUT)
    back = {"jsonl": [], "bio": [], "studio": []}
    for part in release.SPLITS:
        back["jsonl"] += formats.from_jsonl(built.files[f"synth_x.{part}.jsonl"])
        back["bio"] += formats.from_conll(built.files[f"synth_x.{part}.bio"], joiner="")
        tasks = json.loads(built.files[f"synth_x.{part}.label_studio.json"])
        back["studio"] += [formats.from_label_studio(task, unit="character") for task in tasks]
    wanted = sorted((s.text, s.spans) for s in corpus())
    assert all(sorted((s.text, s.spans) for s in found) == wanted for found in back.values())
    assert all(s.meta["synthetic"] is True for s in back["jsonl"])
    assert built.audit["ends_suspect"] == 0.0
    assert "SYNTHETIC" in built.files["README.md"]


def test_training_sentences_that_stand_in_test_are_left_out_and_counted():
    made = corpus()
    split = release.split_by_posting(made)
    held = next(s for s in made if split[s.meta["posting"]] == "test")
    target = next(s for s in made if split[s.meta["posting"]] == "train")
    # Case, width and punctuation aside it is the same text.
    copy = Sentence.of_characters(held.text + "。", spans=held.spans, id=target.id, meta=target.meta)
    changed = [copy if s.id == target.id else s for s in made]
    built = release.build(changed, name="synth_x", **ABOUT)
    assert json.loads(built.files["removed.json"]) == [target.id]
    assert built.audit["removed"] == 1
    assert built.audit["leaks"] == []
    assert target.id not in built.split
    assert "1 sentences of train" in built.files["README.md"]


@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from("甲乙丙丁戊己"), st.sampled_from("ab")), min_size=1))
def test_no_text_and_no_posting_is_in_two_splits(rows):
    made = [sentence(p, k, f"负责数据清洗、沟通{x}", source) for k, (p, x, source) in enumerate(rows)]
    split = release.build(made, name="synth_x", **ABOUT).split
    for what in (lambda s: release.normal(s.text), lambda s: s.meta["posting"]):
        seen = [{what(s) for s in made if split.get(s.id) == part} for part in release.SPLITS]
        assert not seen[0] & seen[1]
        assert not seen[0] & seen[2]
        assert not seen[1] & seen[2]
    assert {release.normal(s.text) for s in made} == {release.normal(s.text) for s in made if s.id in split}


def test_sources_with_few_postings_fill_every_split():
    made = [sentence(p, 0, f"负责数据清洗、沟通{chr(0x4E00 + p)}", source=f"{p % 10}") for p in range(30)]
    parts = list(release.split_by_posting(made).values())
    assert [parts.count(part) for part in release.SPLITS] == [24, 3, 3]


def test_the_audit_sees_ends_that_are_one_too_far():
    made = [s.with_spans(x._replace(end=min(x.end + 1, len(s.tokens))) for x in s.spans[:1]) for s in corpus()]
    assert release.audit(made)["ends_suspect"] == 1.0


def test_a_folder_is_whole_or_absent(tmp_path, monkeypatch):
    built = release.build(corpus(), name="synth_x", **ABOUT)
    place = release.write(built, tmp_path / "synth_x")
    assert release.check(place) == []
    assert {f.name for f in place.iterdir()} == set(built.files)
    again = release.write(release.build(corpus(), name="synth_x", **ABOUT), tmp_path / "again")
    assert (again / "SHA256SUMS").read_bytes() == (place / "SHA256SUMS").read_bytes()
    with pytest.raises(ReleaseError, match="never overwritten"):
        release.write(built, place)
    (place / "removed.json").unlink()
    (place / "synth_x.dev.bio").write_text("x")
    assert sorted(release.check(place)) == ["removed.json", "synth_x.dev.bio"]
    monkeypatch.setattr(release.os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        release.write(built, tmp_path / "third")
    assert sorted(f.name for f in tmp_path.iterdir()) == ["again", "synth_x"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda made: [], "no sentences"),
        (lambda made: [*made, made[0]], "unique"),
        (lambda made: [*made, Sentence.of_characters("数据", id="z")], "no posting"),
        (lambda made: [*made, sentence(1, 9).with_spans([Span(0, 2, "Q")])], "none of"),
        (lambda made: [*made, sentence(1, 9, "负责数据清洗、沟通␣")], "cannot be written"),
    ],
)
def test_what_cannot_be_released_is_named(change, words):
    with pytest.raises(ReleaseError, match=words):
        release.build(change(corpus(4)), name="synth_x", **ABOUT)
    with pytest.raises(ReleaseError, match="begins with synth_"):
        release.build(corpus(4), name="real", **ABOUT)
    with pytest.raises(ReleaseError, match="licence"):
        release.build(corpus(4), name="synth_x", **(ABOUT | {"licence": " "}))
