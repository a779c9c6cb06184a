"""Reading the files of Chinese-SkillSpan as its authors release them, if you have them (none is part of this book).

A record says the same thing several times: as offsets of tokens (``skill_spans``, ``goldstyle_spans``, ``char_spans``),
as tags (``list_of_selection_bio4`` with types, ``list_of_selection``, ``tags_skill``, ``tags_skill_clean``), and as
markers in the text (``sentence_with_tags``, ``sentence_with_tags_4d``); the references that people made are lines of
doccano. In the silver splits the fields contradict each other: in the sentences that were inspected, tags and markers
end one token later than the offsets. So nothing is believed before the fields were compared.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, NamedTuple

from zfu_lib.skills.formats import from_doccano, read_text
from zfu_lib.skills.markers import Markers, decode
from zfu_lib.skills.spans import UNTYPED, Sentence, Span, SpanError, from_tags, untyped

OFFSETS = ("char_spans", "goldstyle_spans", "doccano", "skill_spans")
TAGS = ("list_of_selection_bio4", "tags_skill", "tags_skill_clean", "list_of_selection")
MARKED = ("sentence_with_tags_4d", "sentence_with_tags")
Labels = Literal["agree", "offsets", "tags", "none"]

NAMES = {
    "l": "L", "language": "L", "language_skills&knowledge": "L", "k": "K", "knowledge": "K", "s": "S", "skill": "S",
    "skills": "S", "t": "T", "transversal": "T", "transversal skills": "T", "tranversial skills": "T",
}  # fmt: skip
"""What the files call the four labels (lower case, without a leading ``silver_``); their spelling."""


def label(name: str) -> str:
    """L, S, K or T for a name of the released files.

    Raises:
        SpanError: any other name. (The authors' converter makes an S of it.)
    """
    found = NAMES.get(str(name).strip().lower().removeprefix("silver_"))
    if found is None:
        raise SpanError(f"{name!r} is no label of the released files ({', '.join(NAMES)})")
    return found


class Views(NamedTuple):
    """A record taken apart: its text without spans, what each field says of it (untyped fields have the type "Skill";
    nothing at all if nobody labelled it), and why a field could not be read."""

    sentence: Sentence
    said: dict[str, tuple[Span, ...]]
    broken: dict[str, str]


def views(record: Mapping[str, Any]) -> Views:
    """What each field of a record says.

    Raises:
        SpanError: no text, or tokens that are not the text.
    """
    name = str(record.get("id") or record.get("example_id") or "")
    text = record.get("sentence", record.get("text"))
    if not isinstance(text, str) or not text.strip():
        raise SpanError(f"record {name!r} has no text ('sentence' or 'text')")
    keys = {"posting": "global_id", "order": "sentence_order", "source": "source_domain", "title": "title"}
    meta = {mine: record[theirs] for mine, theirs in keys.items() if record.get(theirs) is not None}
    if "posting" in meta:  # text in the splits, a number in the corrected gold
        meta["posting"] = str(meta["posting"])
    bare = Sentence(tuple(record.get("tokens") or text), (), text, name, meta)
    found = Views(bare, {}, {})
    for field in (*OFFSETS, *TAGS, *MARKED):
        value = record.get("label", record.get("entities")) if field == "doccano" else record.get(field)
        if value is None or field in (*TAGS, *MARKED) and not value:
            continue
        try:
            spans = [s if s.type == UNTYPED else s._replace(type=label(s.type)) for s in _spans(bare, field, value)]
            found.said[field] = bare.with_spans(spans).spans
        except (SpanError, KeyError, TypeError) as error:
            found.broken[field] = str(error)
    # A sentence without a competence has a tag for every token, or a line of doccano; where nobody looked, lists are
    # empty and the marked text is the text.
    if not any(found.said.values()) and not {*TAGS, "doccano"} & set(found.said):
        found.said.clear()
    return found


def _spans(bare: Sentence, field: str, value: Any) -> Sequence[Span]:
    if field in MARKED:
        return decode(bare, value, Markers(typed=field.endswith("4d")))
    if field in TAGS:
        if len(value) != len(bare.tokens):
            raise SpanError(f"{len(value)} tags for {len(bare.tokens)} tokens")
        return from_tags(value)
    if field == "doccano":  # code points of the text
        key = "label" if all(isinstance(row, list) for row in value) else "entities"
        read = from_doccano({"text": bare.text, key: value}, unit="character")
        return [bare.token_span(*read.characters(span), span.type) for span in read.spans]
    rows = [[row[k] for k in ("start", "end", "type")] if isinstance(row, dict) else row for row in value]
    return [Span(*row) for row in rows]


def compare(record: Mapping[str, Any]) -> Counter[str]:
    """How each span of the tags stands to the offsets: ``same``, ``end +1`` (one token too long), ``other``."""
    said = views(record).said
    offsets, tags = (next((untyped(said[f]) for f in fields if f in said), ()) for fields in (OFFSETS, TAGS))
    return Counter(
        "same" if span in offsets else "end +1" if span._replace(end=span.end - 1) in offsets else "other"
        for span in tags
    )


def from_released(record: Mapping[str, Any], *, labels: Labels = "agree") -> Sentence:
    """One record as a sentence with typed spans, its tokens as they are in the file.

    Args:
        labels: ``agree`` refuses a record whose fields differ; ``offsets`` takes the edges from the offsets, and each
            type from the typed field at its first token; ``tags`` takes the tags as they are; ``none`` reads the text
            only.

    Raises:
        SpanError: fields that differ or cannot be read (the message says which), a record without such labels, or as
            :func:`views`.
    """
    bare, said, broken = views(record)
    name = f"record {bare.id!r}"
    if labels == "none":
        return bare
    typed = [field for field, spans in said.items() if all(s.type != UNTYPED for s in spans)]
    if labels == "agree":
        for field, why in broken.items():
            raise SpanError(f"{name}, {field}: {why}")
        for a, b in combinations(said, 2):
            both = (said[a], said[b]) if a in typed and b in typed else (untyped(said[a]), untyped(said[b]))
            if odd := sorted(set(both[0]) ^ set(both[1])):
                raise SpanError(f"{name}: {a} and {b} differ at {tuple(odd[0])} ({bare.words(odd[0])!r})")
    wanted = {"agree": (*TAGS, *OFFSETS, *MARKED), "offsets": OFFSETS, "tags": TAGS}[labels]
    field = next((f for f in wanted if f in typed), next((f for f in wanted if f in said), None))
    if field is None:
        raise SpanError(f"{name} has no labels of that kind; labels='none' reads its text")
    kinds = {at: s.type for f in reversed(typed) for s in said[f] for at in range(s.start, s.end)}
    if lost := [s for s in said[field] if field not in typed and s.start not in kinds]:
        raise SpanError(f"{name}: no field gives a type for {bare.words(lost[0])!r}")
    return bare.with_spans(s if field in typed else s._replace(type=kinds[s.start]) for s in said[field])


def read_released(file: Path, *, labels: Labels = "agree") -> list[Sentence]:
    """Every record of a JSON array or of JSON lines.

    Raises:
        SpanError: no JSON, ids that repeat (the older gold file has 2,676 rows of 2,601 ids), or as
            :func:`from_released`.
    """
    return [from_released(record, labels=labels) for record in records(read_text(file), Path(file).name)]


def records(text: str, name: str = "records") -> Sequence[Mapping[str, Any]]:
    """The objects of a JSON array or of JSON lines; their ids are unique."""
    try:
        lines = [line for line in text.split("\n") if line.strip()]
        rows = json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in lines]
    except json.JSONDecodeError as error:
        raise SpanError(f"{name} is neither a JSON array nor JSON lines: {error}") from None
    if wrong := [row for row in rows if not isinstance(row, dict)]:
        raise SpanError(f"{name}: {str(wrong[0])[:40]!r} is no record")
    counts = Counter(row["id"] for row in rows if "id" in row)
    if twice := [i for i, n in counts.items() if n > 1]:
        raise SpanError(f"{name}: {len(twice)} ids repeat, such as {twice[0]!r}; decide which record counts")
    return rows
