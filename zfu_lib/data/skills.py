"""Corpora of skill spans as rows: ``id``, ``tokens``, ``tags`` (BIO), ``posting``, ``source``.

SkillSpan has two layers, skills and knowledge. ``layer`` says which is read: ``skill``, ``knowledge``, or ``merged``,
where a knowledge span is kept unless it overlaps a skill span (as in the one-column copies of the corpus).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from datasets import Dataset

from zfu_lib.data import catalogue
from zfu_lib.data.catalogue import DataError
from zfu_lib.data.tables import table

CORPORA = ("skillspan", "sayfullina", "green")
ELSEWHERE = ("kompetencer", "fijo", "gnehm")
SPLITS = ("train", "dev", "test")
Layer = Literal["skill", "knowledge", "merged"]


def spans(name: str, split: str, *, layer: Layer = "skill") -> Dataset:
    """One split of a corpus.

    Args:
        name: one of :data:`CORPORA`.
        split: ``train``, ``dev`` or ``test``.
        layer: only SkillSpan has another than ``skill``.

    Raises:
        DataError: a corpus that cannot be had here (the message says where it is), or no such corpus, split or layer.
    """
    if name in ELSEWHERE:
        catalogue.get(name)
    if name not in CORPORA or split not in SPLITS:
        raise DataError(f"no split {split!r} of {name!r}; there are {', '.join(SPLITS)} of {', '.join(CORPORA)}")
    if layer != "skill" and name != "skillspan":
        raise DataError(f"{name} has one layer of spans; leave layer = 'skill'")
    rows = []
    for i, row in enumerate(table(name, f"{split}.json")):
        tags = row["tags_skill"]
        if layer == "knowledge":
            tags = row["tags_knowledge"]
        elif layer == "merged":
            tags = _merged(tags, row["tags_knowledge"])
        # SkillSpan numbers postings within a source; the others have one sentence a row and no postings.
        source = row.get("source", "")
        posting = f"{source}-{row['idx']}" if source else ""
        rows.append(_row(f"{name}-{split}-{i}", row["tokens"], tags, posting, source))
    return Dataset.from_list(rows)


def from_files(
    name: str, files: Mapping[str, Path], *, column: int = 1, broken: Literal["refuse", "outside"] = "refuse"
) -> dict[str, Dataset]:
    """A corpus from CoNLL files that you have: rows by split.

    Lines that begin with ``### `` name the posting of what follows; lines that begin with ``-DOCSTART-`` are skipped.

    Args:
        name: what ids begin with.
        files: split -> file with a token a line, tags in ``column`` (tab-separated), a blank line after a sentence.
        broken: what becomes of a line whose tag is no O, B or I, alone or with a type, or whose token is empty
            (Kompetencer's files have one of each): ``outside`` takes its first cell with text as a token with an O.

    Raises:
        DataError: a file that is missing, not UTF-8, without a sentence, or has a line without that column, or a
            broken one.
    """
    found = {}
    for split, file in files.items():
        try:
            text = Path(file).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{file}: {error}") from None
        rows, tokens, tags, posting = [], [], [], ""
        for number, line in enumerate([*text.split("\n"), ""], 1):
            if line.startswith(("### ", "-DOCSTART-")) or not line.strip():
                if tokens:
                    rows.append(_row(f"{name}-{split}-{len(rows)}", tokens, tags, posting, name))
                    tokens, tags = [], []
                posting = line[4:].strip() if line.startswith("### ") else posting
                continue
            cells = line.rstrip("\r").split("\t")
            if len(cells) <= column:
                raise DataError(f"{file}, line {number}: no column {column} in {line!r}")
            token, tag = cells[0], cells[column].strip() or "O"
            if not token.strip() or tag != "O" and tag.partition("-")[0] not in ("B", "I"):
                if broken == "refuse":
                    raise DataError(
                        f"{file}, line {number}: {line!r} is no token with a tag; broken='outside' makes it an O"
                    )
                token, tag = next(cell for cell in cells if cell.strip()), "O"
            tokens.append(token)
            tags.append(tag)
        if not rows:
            raise DataError(f"{file} holds no sentence")
        found[split] = Dataset.from_list(rows)
    return found


def _row(id: str, tokens: list[str], tags: list[str], posting: str, source: str) -> dict[str, object]:
    return {"id": id, "tokens": list(tokens), "tags": list(tags), "posting": posting, "source": source}


def _merged(skill: list[str], knowledge: list[str]) -> list[str]:
    """Skill tags, and the knowledge spans that touch none of them."""
    merged, i = list(skill), 0
    while i < len(knowledge):
        end = i + 1
        if knowledge[i][:1] == "B":
            while end < len(knowledge) and knowledge[end][:1] == "I":
                end += 1
            after_stray = end < len(skill) and skill[end][:1] == "I"
            if all(tag == "O" for tag in skill[i:end]) and not after_stray:
                merged[i:end] = knowledge[i:end]
        i = end
    return merged


def taxonomy() -> list[str]:
    """ESCO's skill labels, one each."""
    return table("esco", "skill_labels_en.txt")["label"]


def descriptions() -> list[tuple[str, str]]:
    """ESCO concepts that come with a description (digital, green, language, transversal, research, DigComp): (label,
    description), each label once."""
    found: dict[str, str] = {}
    for part in ("digital", "green", "language", "transversal", "research", "digComp"):
        for row in table("esco", f"{part}SkillsCollection_en.csv"):
            if row["preferredLabel"] and row["description"]:
                found.setdefault(row["preferredLabel"], row["description"])
    return list(found.items())
