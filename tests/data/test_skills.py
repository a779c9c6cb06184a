"""Loaders of the span corpora on miniatures in their layout."""

import hashlib
import json

import pytest
import yaml

from zfu_lib.data import catalogue, skills
from zfu_lib.data.catalogue import DataError


def row(idx, source, skill, knowledge):
    tags = {"tags_skill": list(skill), "tags_knowledge": list(knowledge)}
    return {"idx": idx, "tokens": ["use", "SQL", "well"], **tags, "source": source}


ROWS = [row(1, "tech", "BIO", "OBO"), row(1, "tech", "OOO", "OBI"), row(2, "house", "OIO", "BOB")]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A catalogue with a miniature SkillSpan."""
    text = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    (tmp_path / "skillspan").mkdir()
    (tmp_path / "skillspan/test.json").write_bytes(text)
    file = {"path": "skillspan/test.json", "url": None, "bytes": len(text), "sha256": hashlib.sha256(text).hexdigest()}
    entry = {"name": "skillspan", "description": "d", "licence": "l", "citation": "c", "note": "n", "files": [file]}
    (tmp_path / "catalogue.yml").write_text(yaml.safe_dump({"datasets": [entry]}))
    monkeypatch.setattr(catalogue, "CATALOGUE", tmp_path / "catalogue.yml")
    monkeypatch.setenv("ZFU_DATA", str(tmp_path))


@pytest.mark.parametrize(
    ("layer", "tags"),
    [
        ("skill", ["BIO", "OOO", "OIO"]),
        ("knowledge", ["OBO", "OBI", "BOB"]),
        ("merged", ["BIO", "OBI", "OIB"]),
    ],
)
def test_layers(here, layer, tags):
    """Merged: a knowledge span is dropped where it overlaps a skill span, or where a stray I would continue it."""
    rows = skills.spans("skillspan", "test", layer=layer)
    assert ["".join(row) for row in rows["tags"]] == tags
    assert rows["posting"] == ["tech-1", "tech-1", "house-2"]
    assert rows["id"][0] == "skillspan-test-0"


def test_what_cannot_be_had_says_where_it_is():
    for name in skills.ELSEWHERE:
        with pytest.raises(DataError, match=f"{name}: .*from_files"):
            skills.spans(name, "train")
    with pytest.raises(DataError, match="no split 'x'"):
        skills.spans("green", "x")
    with pytest.raises(DataError, match="one layer"):
        skills.spans("green", "train", layer="merged")


def test_conll_files(tmp_path):
    place = tmp_path / "da.conll"
    place.write_text("### 7\nvi\tO\tO\nkan\tB\tO\nSQL\t\tB\n\nja\tO\tO\n", encoding="utf-8")
    found = skills.from_files("kompetencer", {"train": place})["train"]
    assert found["tags"] == [["O", "B", "O"], ["O"]]
    assert skills.from_files("kompetencer", {"train": place}, column=2)["train"]["tags"][0] == ["O", "O", "B"]
    with pytest.raises(DataError, match="line 2: no column 5"):
        skills.from_files("kompetencer", {"train": place}, column=5)
    assert found["posting"] == ["7", "7"]
    place.write_text("-DOCSTART-\tO\r\n\r\nSQL\tB-Skill\r\nja\tSkill\r\n\t\r\n\tnej\r\n", encoding="utf-8")
    with pytest.raises(DataError, match="line 4: .* is no token with a tag"):
        skills.from_files("kompetencer", {"train": place})
    found = skills.from_files("kompetencer", {"train": place}, broken="outside")["train"]
    assert (found["tokens"], found["tags"]) == ([["SQL", "ja"], ["nej"]], [["B-Skill", "O"], ["O"]])
    place.write_bytes("für".encode("latin-1"))
    with pytest.raises(DataError, match="utf-8"):
        skills.from_files("x", {"train": place})
    place.write_text("\n\n")
    with pytest.raises(DataError, match="no sentence"):
        skills.from_files("x", {"train": place})
