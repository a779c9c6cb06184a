"""Annotated sentences in the formats of others: CoNLL, JSON lines, doccano, Label Studio, spaCy, markers.

Every reader checks that a span's stored words are the slice of the text that its offsets name, and refuses what it
would have to guess: an edge inside a token, an unknown tag, bytes that are not UTF-8.

CoNLL has a tag per token (BIO is written; BIOES, BMES and BILOU are read too), JSON lines have tokens and code points,
doccano, Label Studio and spaCy code points. All keep types; overlapping or nested spans of a source are refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from zfu_lib.skills.spans import UNTYPED, Sentence, Span, SpanError, from_tags, is_character, to_tags, tokenize

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

    Lines that begin with ``###`` hold metadata of a posting and go to ``meta["posting"]``; lines that begin with
    ``-DOCSTART-`` begin a document and hold no token; an empty cell between tabs is ``O``.

    Args:
        column: which column holds the tags; 0 is the token, -1 the last one. SkillSpan has skills in 1, knowledge in 2.
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
        elif not line.strip() or line.startswith(DOCUMENT):
            close(number)
        else:
            cells = line.split("\t") if "\t" in line else re.split(" +", line.strip(" "))
            if not -len(cells) < column < len(cells):
                raise SpanError(f"{name}, line {number}: {line!r} has no column {column}")
            tokens.append(" " if cells[0] == SPACE else cells[0])
            tags.append(cells[column].strip())
    close(len(lines) + 1)
    return found


SPACE = "␣"
"""Stands for a token that is a space in a CoNLL file; other white space stands for itself."""
DOCUMENT = "-DOCSTART-"
"""Begins the line before a document in files of CoNLL 2003."""


def to_conll(sentences: Iterable[Sentence], *, typed: bool = True) -> str:
    """A token and its tag a line, separated by a tab, a blank line after each sentence.

    Raises:
        SpanError: a token or type that the format cannot hold (a tab or line break, white space beside other letters,
            the placeholder of a space, the mark of a document).
    """
    lines: list[str] = []
    for sentence in sentences:
        for token, tag in zip(sentence.tokens, to_tags(sentence, typed=typed), strict=True):
            spaced = len(token) > 1 and any(letter.isspace() for letter in token)
            broken = "\t" in token + tag or [token] != token.splitlines() or [tag] != tag.splitlines()
            if spaced or broken or token == SPACE or token.startswith(DOCUMENT):
                raise SpanError(f"sentence {sentence.id!r}: {token!r}, {tag!r} cannot be a line of a CoNLL file")
            lines.append(f"{SPACE if token == ' ' else token}\t{tag}")
        lines.append("")
    return "\n".join(lines) + "\n"


# JSON lines.


def to_record(sentence: Sentence) -> dict[str, Any]:
    """A sentence as one JSON object: tokens, text, spans in tokens and in code points with their words.

    Raises:
        SpanError: ``meta`` has a key that means something else here.
    """
    if taken := set(sentence.meta) & {"id", "tokens", "text", "spans"}:
        raise SpanError(f"sentence {sentence.id!r}: meta has {', '.join(sorted(taken))}; give it another name")
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
    for key in ("tokens", "spans"):
        if not isinstance(record.get(key), list | tuple):
            raise SpanError(f"{name}: {key!r} must be a list, there is {record.get(key)!r}")
    if wrong := [t for t in record["tokens"] if not isinstance(t, str)]:
        raise SpanError(f"{name}: {wrong[0]!r} is no token")
    if wrong := [s for s in record["spans"] if not isinstance(s, Mapping) or not {"start", "end"} <= set(s)]:
        raise SpanError(f"{name}: {wrong[0]!r} is no span with 'start' and 'end'")
    meta = {key: value for key, value in record.items() if key not in ("id", "tokens", "text", "spans")}
    spans = tuple(Span(s["start"], s["end"], s.get("type", UNTYPED)) for s in record["spans"])
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
    text: str, labels: Sequence[Sequence], *, unit: Unit | None = None, name: str = "", meta: Mapping[str, Any] = {}
) -> Sentence:
    """A sentence from a text and ``(start, end, type)`` in code points.

    Args:
        unit: how to cut the text into tokens (:func:`~zfu_lib.skills.spans.tokenize`); None takes ``character`` for a
            text with Chinese, Japanese or full-width letters, else ``space``.

    Raises:
        SpanError: an empty text, a label that is no such triple, an edge inside a token, overlapping labels.
    """
    for label in labels:
        ok = isinstance(label, list | tuple) and len(label) == 3 and all(type(at) is int for at in label[:2])
        if not ok:
            raise SpanError(f"{name or text[:20]!r}: {label!r} is no label (start, end, type)")
    unit = unit or ("character" if any(map(is_character, text)) else "space")
    plain = Sentence(tokenize(text, unit), (), text, name, dict(meta))
    return plain.with_spans(plain.token_span(*label) for label in labels)


def to_doccano(sentence: Sentence) -> dict[str, Any]:
    """doccano's JSON line for sequence labelling: ``label`` is a list of [start, end, type]."""
    label = [[*sentence.characters(span), span.type] for span in sentence.spans]
    return {"id": sentence.id, "text": sentence.text, "label": label, "meta": dict(sentence.meta)}


def from_doccano(record: Mapping[str, Any], *, unit: Unit | None = None) -> Sentence:
    """A line of doccano's export, with ``label`` (or ``labels``) or with ``entities``; see :func:`of_text`.

    Raises:
        SpanError: none of these fields, or more than one that is not empty; else as :func:`of_text`.
    """
    text = _field(record, "text", "doccano")
    kinds = [key for key in ("label", "labels", "entities") if isinstance(record.get(key), list)]
    filled = [key for key in kinds if record[key]]
    if not kinds or len(filled) > 1:
        said = f"labels in {' and '.join(filled)}" if filled else "neither 'label' nor 'entities'"
        raise SpanError(f"doccano: {text[:20]!r} has {said}; an unlabelled line has an empty list")
    labels = record[filled[0]] if filled else []
    if filled == ["entities"]:
        labels = [tuple(e.get(key) for key in ("start_offset", "end_offset", "label")) for e in labels]
    return of_text(text, labels, unit=unit, name=str(record.get("id", "")), meta=record.get("meta") or {})


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
    task: Mapping[str, Any],
    *,
    from_name: str = "label",
    to_name: str = "text",
    annotation: int = 0,
    unit: Unit | None = None,
) -> Sentence:
    """The sentence of one task of Label Studio's export (JSON or JSON_MIN); see :func:`of_text`.

    Choices, ratings and relations beside the labels, of the whole task or of a region, are left out.

    Args:
        from_name, to_name: names of the labels (in JSON_MIN) and of the text.

    Raises:
        SpanError: no text, no such annotation (a task that nobody annotated, or skipped, is no empty one), a region
            without a label, or words that are not the slice of their offsets.
    """
    if "data" not in task:  # JSON_MIN: the fields of data, and the regions under the name of the labels
        regions = task.get(from_name)
        made = [{"result": [{"id": n, "value": v} for n, v in enumerate(regions)]}] if regions is not None else []
        task = {"data": task, "annotations": made}
    data = task["data"]
    text = _field(data, to_name, "Label Studio's data")
    name = str(data.get("id") or task.get("id") or "")
    made = task.get("annotations") or []
    if annotation >= len(made) or made[annotation].get("was_cancelled"):
        raise SpanError(f"task {name!r} has {len(made)} annotations, not one numbered {annotation} that was submitted")
    values = [(item.get("id"), item.get("value") or {}) for item in made[annotation].get("result", ())]
    labelled = {region for region, value in values if value.get("labels")}
    labels = []
    for region, value in values:
        if "start" in value and region not in labelled:
            raise SpanError(f"task {name!r}: a region without a label ({value}); only labels of plain text are read")
        if not value.get("labels"):
            continue
        start, end = value.get("start"), value.get("end")
        labels += [(start, end, kind) for kind in value["labels"]]
        if "text" in value and isinstance(start, int) and value["text"] != text[start:end]:
            raise SpanError(f"task {name!r}: {value['text']!r} is stored for {text[start:end]!r}")
    return of_text(text, labels, unit=unit, name=name, meta=data.get("meta") or {})


def to_spacy(sentence: Sentence) -> dict[str, Any]:
    """What ``Doc.to_json()`` writes of tokens and entities; ``Doc(vocab).from_json()`` reads it."""
    tokens = [{"id": i, "start": a, "end": b} for i, (a, b) in enumerate(sentence.offsets)]
    ents = []
    for span in sentence.spans:
        start, end = sentence.characters(span)
        ents.append({"start": start, "end": end, "label": span.type})
    return {"text": sentence.text, "ents": ents, "tokens": tokens}


def from_spacy(doc: Mapping[str, Any], *, name: str = "", group: str = "") -> Sentence:
    """The sentence of ``Doc.to_json()``. White-space tokens of spaCy are left out.

    Args:
        group: read the spans of this group (``doc.spans``) instead of the entities.

    Raises:
        SpanError: a document without entities or that group (nobody annotated it), or one that does not begin and end
            with a token.
    """
    text = _field(doc, "text", "spaCy")
    marked = doc.get("spans", {}).get(group) if group else doc.get("ents")
    if marked is None:
        raise SpanError(f"spaCy: {text[:20]!r} has no {f'spans in group {group!r}' if group else 'entities set'}")
    cut = [text[t["start"] : t["end"]] for t in _field(doc, "tokens", "spaCy")]
    plain = Sentence(tuple(token for token in cut if token.strip()), (), text, name)
    return plain.with_spans(plain.token_span(e["start"], e["end"], e["label"]) for e in marked)


def _field(record: Mapping[str, Any], key: str, what: str) -> Any:
    if not record.get(key):
        raise SpanError(f"{what}: there is no {key!r} (fields: {', '.join(record) or 'none'})")
    if key == "text" and not isinstance(record[key], str):
        raise SpanError(f"{what}: 'text' is no text: {record[key]!r}")
    return record[key]
