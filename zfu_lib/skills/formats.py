"""Annotated sentences in the formats of others: CoNLL, JSON lines, doccano, Label Studio, spaCy, markers.

Every reader checks that a span's stored words are the slice of the text that its offsets name, and refuses what it
would have to guess: an edge inside a token, an unknown tag, bytes that are not UTF-8.

CoNLL has a BIO tag per token, JSON lines have tokens and code points, doccano, Label Studio and spaCy code points. All
keep types; overlapping or nested spans of a source are refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from zfu_lib.skills.spans import Sentence, Span, SpanError, from_tags, is_character, to_tags, tokenize

Unit = Literal["space", "character", "mixed"]


def read_text(file: Path) -> str:
    """A text file as UTF-8, with or without byte-order mark; line ends become ``\\n``.

    Raises:
        SpanError: it is in another encoding; the message gives file, line and byte.
    """
    raw = Path(file).read_bytes()
    try:
        return raw.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise SpanError(
            f"{Path(file).name}, line {line}: byte {raw[error.start]:#04x} is not UTF-8; convert the file first"
        ) from None


# CoNLL.


def from_conll(
    text: str, *, column: int = 1, joiner: str = " ", stray: Literal["open", "drop"] = "open", name: str = "conll"
) -> list[Sentence]:
    """Sentences of a CoNLL file: a token a line, columns separated by tabs (or spaces), a blank line after a sentence.

    Lines that begin with ``###`` hold metadata of a posting and go to ``meta["posting"]``; an empty cell is ``O``.

    Args:
        column: which column holds the tags; 0 is the token. SkillSpan has skills in 1, knowledge in 2.
        joiner: what the text has between tokens: a space, or nothing for characters.
        stray: see :func:`~zfu_lib.skills.spans.from_tags`.

    Raises:
        SpanError: a line without that column or with a tag that is none; the message gives the line.
    """
    found: list[Sentence] = []
    tokens: list[str] = []
    tags: list[str] = []
    posting = ""

    def close(line: int) -> None:
        if tokens:
            meta = {"posting": posting} if posting else {}
            try:
                spans = tuple(from_tags(tags, stray=stray))
                found.append(Sentence(tuple(tokens), spans, joiner.join(tokens), f"{name}-{len(found)}", meta))
            except SpanError as error:
                raise SpanError(f"{name}, before line {line}: {error}") from None
            tokens.clear()
            tags.clear()

    lines = text.split("\n")
    for number, line in enumerate(lines, 1):
        if line.startswith("### "):
            close(number)
            posting = line[4:].strip()
        elif not line.strip():
            close(number)
        else:
            cells = line.split("\t") if "\t" in line else line.split(" ")
            if len(cells) <= column:
                raise SpanError(f"{name}, line {number}: {line!r} has no column {column}")
            tokens.append(cells[0].replace(SPACE, " "))
            tags.append(cells[column].strip())
    close(len(lines) + 1)
    return found


SPACE = "␣"
"""Stands for a token that is white space in a CoNLL file."""


def to_conll(sentences: Iterable[Sentence], *, typed: bool = True) -> str:
    """A token and its tag a line, separated by a tab, a blank line after each sentence.

    Raises:
        SpanError: a token that the format cannot hold (a tab, a line break, three hashes and a space at its beginning).
    """
    lines: list[str] = []
    for sentence in sentences:
        for token, tag in zip(sentence.tokens, to_tags(sentence, typed=typed), strict=True):
            if token.strip() and any(letter.isspace() for letter in token) or SPACE in token or token in "\t\n\r":
                raise SpanError(f"sentence {sentence.id!r}: token {token!r} cannot be a line of a CoNLL file")
            lines.append(f"{token if token.strip() else SPACE}\t{tag}")
        lines.append("")
    return "\n".join(lines) + "\n"


# JSON lines.


def to_record(sentence: Sentence) -> dict[str, Any]:
    """A sentence as one JSON object: tokens, text, spans in tokens and in code points with their words."""
    spans = []
    for span in sentence.spans:
        start, end = sentence.characters(span)
        plain = {"start": span.start, "end": span.end, "type": span.type, "text": sentence.words(span)}
        spans.append(plain | {"char_start": start, "char_end": end})
    return {
        "id": sentence.id,
        **sentence.meta,
        "tokens": list(sentence.tokens),
        "text": sentence.text,
        "spans": spans,
    }


def from_record(record: Mapping[str, Any]) -> Sentence:
    """The sentence of :func:`to_record`.

    Raises:
        SpanError: a field is missing, or a stored text is not the slice that its offsets name.
    """
    name = f"record {record.get('id', '?')!r}"
    if missing := {"tokens", "spans"} - set(record):
        raise SpanError(f"{name} has no {' and no '.join(sorted(missing))}")
    meta = {key: value for key, value in record.items() if key not in ("id", "tokens", "text", "spans")}
    spans = tuple(Span(s["start"], s["end"], s.get("type", "Skill")) for s in record["spans"])
    sentence = Sentence(tuple(record["tokens"]), spans, record.get("text", ""), str(record.get("id", "")), meta)
    for stored in record["spans"]:
        span = Span(stored["start"], stored["end"])
        if "text" in stored and stored["text"] != sentence.words(span):
            raise SpanError(
                f"{name}: {stored['text']!r} is stored for {sentence.words(span)!r} ({span.start}:{span.end})"
            )
        if "char_start" in stored and (stored["char_start"], stored["char_end"]) != sentence.characters(span):
            raise SpanError(f"{name}: characters {stored['char_start']}:{stored['char_end']} are not {span}")
    return sentence


def to_jsonl(sentences: Iterable[Sentence]) -> str:
    """One :func:`to_record` a line."""
    return "".join(json.dumps(to_record(sentence), ensure_ascii=False) + "\n" for sentence in sentences)


def from_jsonl(text: str) -> list[Sentence]:
    """The sentences of :func:`to_jsonl`.

    Raises:
        SpanError: a line that is no JSON object, or as :func:`from_record`; the message gives the line.
    """
    return [from_record(record) for record in _records(text)]


def _records(text: str) -> Iterator[dict[str, Any]]:
    # Split on \n alone: splitlines() also cuts at separators that are legal inside a JSON string.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise SpanError(f"line {number} is no JSON: {error}") from None
        if not isinstance(record, dict):
            raise SpanError(f"line {number} is no JSON object")
        yield record


# Tools that know a text and code-point offsets.


def of_text(
    text: str, labels: Iterable[Sequence], *, unit: Unit | None = None, name: str = "", meta: Mapping[str, Any] = {}
) -> Sentence:
    """A sentence from a text and ``(start, end, type)`` in code points.

    Args:
        unit: how to cut the text into tokens (:func:`~zfu_lib.skills.spans.tokenize`); None takes ``character`` for a
            text with Chinese, Japanese or full-width letters, else ``space``.

    Raises:
        SpanError: an empty text, an edge inside a token, overlapping labels.
    """
    unit = unit or ("character" if any(map(is_character, text)) else "space")
    plain = Sentence(tokenize(text, unit), (), text, name, dict(meta))
    return plain.with_spans(plain.token_span(*label) for label in labels)


def to_doccano(sentence: Sentence) -> dict[str, Any]:
    """doccano's JSON line for sequence labelling: ``label`` is a list of [start, end, type]."""
    label = [[*sentence.characters(span), span.type] for span in sentence.spans]
    return {"id": sentence.id, "text": sentence.text, "label": label, "meta": dict(sentence.meta)}


def from_doccano(record: Mapping[str, Any], *, unit: Unit | None = None) -> Sentence:
    """A line of doccano's export, with ``label`` (or ``labels``) or with ``entities``; see :func:`of_text`."""
    text = _field(record, "text", "doccano")
    if "entities" in record:
        labels = [(e["start_offset"], e["end_offset"], e["label"]) for e in record["entities"]]
    else:
        labels = record.get("label", record.get("labels", []))
    return of_text(text, labels, unit=unit, name=str(record.get("id", "")), meta=record.get("meta", {}))


def to_label_studio(sentence: Sentence, *, from_name: str = "label", to_name: str = "text") -> dict[str, Any]:
    """A task of Label Studio with its annotation; import it from JSON, whose offsets are exact."""
    result = []
    for i, span in enumerate(sentence.spans):
        start, end = sentence.characters(span)
        value = {"start": start, "end": end, "text": sentence.words(span), "labels": [span.type]}
        result.append({"id": f"{i}", "type": "labels", "from_name": from_name, "to_name": to_name, "value": value})
    data = {to_name: sentence.text, "id": sentence.id, "meta": dict(sentence.meta)}
    return {"data": data, "annotations": [{"result": result}]}


def from_label_studio(
    task: Mapping[str, Any], *, to_name: str = "text", annotation: int = 0, unit: Unit | None = None
) -> Sentence:
    """The sentence of one task of Label Studio's JSON export; see :func:`of_text`.

    Raises:
        SpanError: no text, no such annotation, or words that are not the slice of their offsets.
    """
    data = _field(task, "data", "Label Studio")
    text = _field(data, to_name, "Label Studio's data")
    made = task.get("annotations") or []
    if annotation >= max(1, len(made)):
        raise SpanError(f"task {data.get('id')!r} has {len(made)} annotations, not one numbered {annotation}")
    labels = []
    for item in made[annotation]["result"] if made else []:
        value = item.get("value", {})
        if "labels" not in value:
            continue
        start, end = value["start"], value["end"]
        if "text" in value and value["text"] != text[start:end]:
            raise SpanError(f"task {data.get('id')!r}: {value['text']!r} is stored for {text[start:end]!r}")
        labels += [(start, end, kind) for kind in value["labels"]]
    return of_text(text, labels, unit=unit, name=str(data.get("id", "")), meta=data.get("meta", {}))


def to_spacy(sentence: Sentence) -> dict[str, Any]:
    """What ``Doc.to_json()`` writes of tokens and entities; ``Doc(vocab).from_json()`` reads it."""
    tokens = [{"id": i, "start": a, "end": b} for i, (a, b) in enumerate(sentence.offsets)]
    ents = []
    for span in sentence.spans:
        start, end = sentence.characters(span)
        ents.append({"start": start, "end": end, "label": span.type})
    return {"text": sentence.text, "ents": ents, "tokens": tokens}


def from_spacy(doc: Mapping[str, Any], *, name: str = "") -> Sentence:
    """The sentence of ``Doc.to_json()``. White-space tokens of spaCy are left out.

    Raises:
        SpanError: an entity that does not begin and end with a token.
    """
    text = _field(doc, "text", "spaCy")
    cut = [text[t["start"] : t["end"]] for t in _field(doc, "tokens", "spaCy")]
    plain = Sentence(tuple(token for token in cut if token.strip()), (), text, name)
    return plain.with_spans(plain.token_span(e["start"], e["end"], e["label"]) for e in doc.get("ents", []))


def _field(record: Mapping[str, Any], key: str, what: str) -> Any:
    if not record.get(key):
        raise SpanError(f"{what}: there is no {key!r} (fields: {', '.join(record) or 'none'})")
    return record[key]
