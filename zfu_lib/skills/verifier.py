"""The deterministic verifier: is an answer a legal marking of this sentence, and if not, why? (sections 1.3 and 3.5)

The paper names the first three checks; the others are this book's reading of what they need.

- V1 pairing: markers alternate, equal counts, the first opens
- V2 non-overlap: no opening inside a span, no empty span
- V3 BIO legality: the tags of the spans, one per token, are legal
- V4 fidelity: without its markers the answer is the sentence, white space aside
- V5 edges: markers sit on token boundaries; a span is not only punctuation and connectors
- V6 type: the label after a closing marker is one of those asked for
- V7 grounding (answers as lists): each string occurs in the sentence as tokens, often enough

Whatever text comes in, :func:`verify` ends in legal spans or in errors, never in both and never in an exception.
White space is ignored throughout; positions count ink (:mod:`zfu_lib.skills.markers`).
"""

from __future__ import annotations

import bisect
import json
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from zfu_lib.skills.markers import MARKERS, Mark, Markers, Reading, Source, pairs, read
from zfu_lib.skills.spans import UNTYPED, Sentence, Span, stray_tags, to_tags

CODES = {
    "V1": "pairing",
    "V2": "non-overlap",
    "V3": "BIO legality",
    "V4": "fidelity",
    "V5": "edges",
    "V6": "type",
    "V7": "grounding",
}
FORMAT = ("V1", "V2", "V3", "V4")
"""What counts for the rate of invalid answers."""

CONNECTORS = frozenset({",", ";", "/", "&", "and", "or", "und", "oder", "et", "ou", "og", "eller"}) | set(
    "、，；和与及或"
)
"""Words that join two skills: English, German, French, Danish, Chinese; never at the edge of a span."""


class Problem(NamedTuple):
    """One failed check: ``at`` counts ink characters of the answer (without markers)."""

    code: str
    at: int
    detail: str


@dataclass(frozen=True)
class Checked:
    """What the verifier says of an answer: its spans if nothing is wrong, else what is.

    ``good`` are spans that pass on their own although the answer does not (feedback tells the model to keep them).
    ``repairs`` were made before the check.
    """

    spans: tuple[Span, ...]
    errors: tuple[Problem, ...] = ()
    good: tuple[Span, ...] = ()
    repairs: tuple[str, ...] = field(default=())

    @property
    def ok(self) -> bool:
        """Whether the answer is legal."""
        return not self.errors

    @property
    def codes(self) -> tuple[str, ...]:
        """Codes of the failed checks, each once, in order."""
        return tuple(sorted({error.code for error in self.errors}))


def verify(
    sentence: Sentence,
    answer: str | Reading,
    markers: Markers = MARKERS,
    *,
    types: Collection[str] = (UNTYPED,),
    strict_edges: bool = True,
) -> Checked:
    """Check an answer with inline markers against its sentence (V1 to V6).

    Args:
        types: labels that a typed answer may carry.
        strict_edges: whether a span of punctuation and connectors only is an error (V5).
    """
    reading = answer if isinstance(answer, Reading) else read(answer, markers, sentence)
    source = Source.of(sentence)
    errors = _pairing(reading)
    if reading.ink != source.ink:
        at = next((i for i, (a, b) in enumerate(zip(reading.ink, source.ink, strict=False)) if a != b), None)
        at = min(len(reading.ink), len(source.ink)) if at is None else at
        wrote, meant = reading.ink[at : at + 12], source.ink[at : at + 12]
        errors.append(Problem("V4", at, f"wrote {wrote!r} where the sentence has {meant!r}"))
    spans: list[Span] = []
    faithful = not errors
    for opened, closed in pairs(reading) if faithful else ():
        kind = (closed.type or "") if markers.typed else UNTYPED
        start, end = source.starts.get(opened.at), source.ends.get(closed.at)
        words = reading.ink[opened.at : closed.at]
        if start is None or end is None:
            errors.append(Problem("V5", opened.at, f"{words!r} begins or ends inside a word"))
        elif strict_edges and not _has_content(sentence.tokens[start:end]):
            errors.append(Problem("V5", opened.at, f"{words!r} is only punctuation or connectors"))
        elif markers.typed and kind not in types:
            said = f"[{kind}] is not one of" if kind else "has no label of"
            errors.append(Problem("V6", closed.at, f"{words!r} {said} {', '.join(sorted(types))}"))
        else:
            spans.append(Span(start, end, kind))
    if not errors:
        tags = to_tags(sentence.with_spans(spans))
        if len(tags) != len(sentence.tokens) or stray_tags(tags):
            errors.append(Problem("V3", 0, f"tags {tags} are not legal"))  # a check of this code, not of the answer
    if not errors:
        return Checked(tuple(spans))
    return Checked((), tuple(errors), good=salvage(sentence, reading, markers, types=types))


def _pairing(reading: Reading) -> list[Problem]:
    errors: list[Problem] = []
    inside: Mark | None = None
    for mark in reading.marks:
        near = reading.ink[mark.at : mark.at + 12]
        if mark.opens and inside:
            errors.append(Problem("V2", mark.at, f"a span opens inside another, before {near!r}"))
        elif not mark.opens and not inside:
            errors.append(Problem("V1", mark.at, f"a span closes that was never opened, before {near!r}"))
        elif not mark.opens and inside and inside.at == mark.at:
            errors.append(Problem("V2", mark.at, f"an empty span before {near!r}"))
        inside = mark if mark.opens else None
    if inside:
        errors.append(Problem("V1", inside.at, f"the span at {reading.ink[inside.at : inside.at + 12]!r} never closes"))
    opened = sum(mark.opens for mark in reading.marks)
    if 2 * opened != len(reading.marks) and all(error.code != "V1" for error in errors):
        errors.append(Problem("V1", 0, f"{opened} spans open and {len(reading.marks) - opened} close"))
    return errors


def is_punctuation(token: str) -> bool:
    """Whether a token has no letter, digit or symbol of its own (``+``, ``$`` are symbols)."""
    return all(unicodedata.category(letter)[0] in "PZ" for letter in token)


def _has_content(tokens: Iterable[str]) -> bool:
    return any(not is_punctuation(token) and token.lower() not in CONNECTORS for token in tokens)


# Answers as lists.


def verify_list(sentence: Sentence, answer: str | Sequence[str], *, types: Collection[str] = (UNTYPED,)) -> Checked:
    """Check an answer that lists skills (V5 to V7): JSON strings, or objects ``{"text", "occurrence", "type"}``.

    The n-th listing of a string means its n-th occurrence, unless ``occurrence`` (from 1) says which.
    """
    try:
        items = json.loads(answer) if isinstance(answer, str) else list(answer)
    except (json.JSONDecodeError, RecursionError) as error:
        return Checked((), (Problem("V1", 0, f"the answer is no JSON list: {str(error)[:80]}"),))
    if not isinstance(items, list):
        return Checked((), (Problem("V1", 0, "the answer is no JSON list"),))
    errors: list[Problem] = []
    spans: list[Span] = []
    counts: dict[str, int] = {}
    for number, item in enumerate(items):
        entry = item if isinstance(item, dict) else {"text": item}
        words, kind = entry.get("text"), entry.get("type", UNTYPED)
        if not isinstance(words, str) or not words.strip() or not isinstance(kind, str):
            errors.append(Problem("V1", number, f"item {number} names no skill"))
            continue
        counts[words] = counts.get(words, 0) + 1
        which = entry.get("occurrence", counts[words])
        found = occurrences(sentence, words)
        if type(which) is not int or not 1 <= which <= len(found):
            errors.append(Problem("V7", number, f"{words!r} occurs {len(found)} times in the sentence, not {which}"))
        elif kind not in types:
            errors.append(Problem("V6", number, f"{words!r}: {kind!r} is not one of {', '.join(sorted(types))}"))
        elif not _has_content(sentence.tokens[slice(*found[which - 1])]):
            errors.append(Problem("V5", number, f"{words!r} is only punctuation or connectors"))
        else:
            spans.append(Span(*found[which - 1], kind))
    kept = disjoint(spans)
    if len(kept) < len(spans):
        errors.append(Problem("V2", 0, "two of the listed skills overlap in the sentence"))
    return Checked((), tuple(errors), good=kept) if errors else Checked(kept)


def occurrences(sentence: Sentence, words: str) -> list[tuple[int, int]]:
    """Where ``words`` stand in a sentence as whole tokens: token ranges, left to right (they may overlap)."""
    source, wanted = Source.of(sentence), "".join(words.split())
    found, at = [], source.ink.find(wanted) if wanted else -1
    while at >= 0:
        if at in source.starts and at + len(wanted) in source.ends:
            found.append((source.starts[at], source.ends[at + len(wanted)]))
        at = source.ink.find(wanted, at + 1)
    return found


def disjoint(spans: Iterable[Span]) -> tuple[Span, ...]:
    """A set of spans without overlaps: left to right, the longest of those that begin together."""
    kept: list[Span] = []
    for span in sorted(set(spans), key=lambda s: (s.start, -s.end, s.type)):
        if not kept or span.start >= kept[-1].end:
            kept.append(span)
    return tuple(kept)


# Repair and salvage.

REPAIRS = {
    "r2": "punctuation at the end of a span moved outside",
    "r3": "a closing marker without an opening one dropped",
    "r4": "an unclosed span closed at the next connector or punctuation, else dropped",
    "r5": "a span inside another dropped",
    "r6": "a rewritten sentence: each marked string found in the source by its only occurrence, others discarded",
}
"""Local repairs (white space, r1, is ignored by every check). Each can be switched off."""


def repair(
    sentence: Sentence,
    answer: str | Reading,
    markers: Markers = MARKERS,
    *,
    types: Collection[str] = (UNTYPED,),
    allowed: Collection[str] = tuple(REPAIRS),
) -> Checked:
    """Verify, and where that fails try the local repairs and verify again; ``repairs`` says which were made."""
    reading = answer if isinstance(answer, Reading) else read(answer, markers, sentence)
    first = verify(sentence, reading, markers, types=types)
    if first.ok:
        return first
    made: list[str] = []
    for step in (_balanced, _trimmed):
        changed, used = step(reading, sentence, allowed)
        if used:
            reading = changed
            made += used
    second = verify(sentence, reading, markers, types=types)
    if second.ok:
        return replace(second, repairs=tuple(made))
    if "r6" in allowed and "V4" in second.codes and not _pairing(reading):
        spans = []
        for opened, closed in pairs(reading):
            kind = (closed.type or "") if markers.typed else UNTYPED
            places = occurrences(sentence, reading.ink[opened.at : closed.at])
            if len(places) == 1 and kind in types and _has_content(sentence.tokens[slice(*places[0])]):
                spans.append(Span(*places[0], kind))
        if spans:  # what marks nothing that can be found is no answer "there is no skill"
            return Checked(disjoint(spans), repairs=(*made, "r6"))
    return replace(first, repairs=())


def _balanced(reading: Reading, sentence: Sentence, allowed: Collection[str]) -> tuple[Reading, list[str]]:
    """Markers as matched brackets: strays dropped (r3), unclosed ones closed or dropped (r4), outermost kept (r5)."""
    stack: list[Mark] = []
    matched: list[tuple[Mark, Mark]] = []
    used: list[str] = []
    for mark in reading.marks:
        if mark.opens:
            stack.append(mark)
        elif stack:
            matched.append((stack.pop(), mark))
        elif "r3" in allowed:
            used.append("r3")
        else:
            return reading, []
    if stack and "r4" not in allowed:
        return reading, []
    taken = sorted(opened.at for opened, _ in matched)
    for opened in stack:
        used.append("r4")
        limit = taken[i] if (i := bisect.bisect_right(taken, opened.at)) < len(taken) else len(reading.ink)
        closed = _next_break(reading.ink, sentence, opened.at, limit)
        if closed is not None:
            matched.append((opened, Mark(False, closed)))
    outer: list[tuple[Mark, Mark]] = []
    for opened, closed in sorted(matched, key=lambda pair: (pair[0].at, -pair[1].at)):
        if opened.at == closed.at or outer and opened.at < outer[-1][1].at:
            if "r5" not in allowed:
                return reading, []
            used.append("r5")
        else:
            outer.append((opened, closed))
    marks = tuple(mark for pair in outer for mark in pair)
    return Reading(reading.ink, marks), sorted(set(used))


def _next_break(ink: str, sentence: Sentence, start: int, limit: int) -> int | None:
    """Ink position of the first connector or punctuation token after ``start`` and not after ``limit``."""
    source = Source.of(sentence)
    if ink[: start + 1] != source.ink[: start + 1]:
        return None
    for at, i in source.starts.items():
        token = sentence.tokens[i]
        if start < at <= limit and (is_punctuation(token) or token.lower() in CONNECTORS):
            return at
    return None


def _trimmed(reading: Reading, sentence: Sentence, allowed: Collection[str]) -> tuple[Reading, list[str]]:
    """Punctuation tokens at the end of spans moved outside (r2)."""
    source = Source.of(sentence)
    if "r2" not in allowed or reading.ink != source.ink or _pairing(reading):
        return reading, []
    marks, used = [], []
    for opened, closed in pairs(reading):
        end = source.ends.get(closed.at)
        if end is not None and opened.at in source.starts:
            first = source.starts[opened.at]
            last = end
            while last - 1 > first and is_punctuation(sentence.tokens[last - 1]):
                last -= 1
            if last != end:
                used = ["r2"]
                closed = closed._replace(at=next(at for at, e in source.ends.items() if e == last))
        marks += [opened, closed]
    return Reading(reading.ink, tuple(marks)), used


def salvage(
    sentence: Sentence, answer: str | Reading, markers: Markers = MARKERS, *, types: Collection[str] = (UNTYPED,)
) -> tuple[Span, ...]:
    """What can be kept of a failed answer: marked strings that stand in the sentence, disjoint, content in each.

    A string that occurs several times is taken at the first occurrence that is not used yet.
    """
    reading = answer if isinstance(answer, Reading) else read(answer, markers, sentence)
    found: list[Span] = []
    for words, label in marked_strings(reading):
        kind = (label or "") if markers.typed else UNTYPED
        for place in occurrences(sentence, words) if kind in types else ():
            if all(place[1] <= s.start or s.end <= place[0] for s in found):
                if _has_content(sentence.tokens[slice(*place)]):
                    found.append(Span(*place, kind))
                break
    return disjoint(found)


def marked_strings(reading: Reading) -> list[tuple[str, str | None]]:
    """The strings (as ink) between an opening marker and the next closing one, with its label, of any answer."""
    found = []
    opened: Mark | None = None
    for mark in reading.marks:
        if mark.opens:
            opened = mark
        elif opened and opened.at < mark.at:
            found.append((reading.ink[opened.at : mark.at], mark.type))
            opened = None
    return found


# Feedback.

MESSAGES = {
    "V1": "Every {open} needs one {close} after it",
    "V2": "A span must not contain another one and must not be empty",
    "V3": "The tags are not legal",
    "V4": "Copy the sentence unchanged; only insert the markers",
    "V5": "Put markers around whole words, not around punctuation or connectors alone",
    "V6": "Use only the allowed labels",
    "V7": "List only words that stand in the sentence, as they stand there",
}
"""One short sentence per code."""


def feedback(sentence: Sentence, checked: Checked, markers: Markers = MARKERS) -> str:
    """What the model is told after a failed answer: one sentence per failed check, where, and what to keep."""
    lines = []
    for code in checked.codes:
        error = next(e for e in checked.errors if e.code == code)
        lines.append(f"{MESSAGES[code].format(open=markers.open, close=markers.close)} ({error.detail}).")
    if checked.good:
        kept = "; ".join(sentence.words(span) for span in checked.good)
        lines.append(f"These spans are right, keep them: {kept}.")
    return " ".join(lines)
