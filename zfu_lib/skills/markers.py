"""Spans as markers in the text: ``we need @@team work## and more``, written and read back (section 3.1).

Reading ignores white space: positions count the characters that are not white space ("ink"), so that an answer may
add or lose spaces around a marker.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import NamedTuple

from zfu_lib.skills.spans import UNTYPED, Sentence, Span, SpanError


class Markers(NamedTuple):
    """How spans are marked in a text: ``@@span##``, or ``@@span##[type]`` if ``typed``.

    ``spaced`` writes a space on both sides of a marker, for models that read whole words; readers ignore white space.
    """

    open: str = "@@"
    close: str = "##"
    typed: bool = False
    spaced: bool = False

    def avoiding(self, *texts: str) -> Markers:
        """These markers, or others whose characters occur in none of the texts.

        Raises:
            SpanError: every pair has a character that occurs.
        """
        for pair in ((self.open, self.close), ("⟦", "⟧"), ("⟪", "⟫"), ("⸢", "⸣")):
            if not any(letter in text for text in texts for letter in {*pair[0], *pair[1]}):
                return self._replace(open=pair[0], close=pair[1])
        raise SpanError(f"no pair of markers is free in {texts[0][:60]!r}; pass Markers of your own")


MARKERS = Markers()


def encode(sentence: Sentence, markers: Markers = MARKERS) -> str:
    """enc(x, S): the text with ``open`` before and ``close`` after each span, no other change (section 3.1).

    Raises:
        SpanError: a span that begins or ends with a white-space token, or a text in which the markers could be read
            otherwise (``@@C###``: is it C or C#?); :meth:`Markers.avoiding` chooses others.
    """
    pieces, at = [], 0
    for span in sentence.spans:
        if not sentence.tokens[span.start].strip() or not sentence.tokens[span.end - 1].strip():
            raise SpanError(f"sentence {sentence.id!r}: {span} begins or ends with white space")
        start, end = sentence.characters(span)
        close = markers.close + (f"[{span.type}]" if markers.typed else "")
        pieces += [sentence.text[at:start], markers.open, sentence.text[start:end], close]
        at = end
    pieces.append(sentence.text[at:])
    # Not split(): it would take an ideographic space of the text for one of ours.
    stripped = [piece.strip(" ") for piece in pieces]
    marked = " ".join(piece for piece in stripped if piece) if markers.spaced else "".join(pieces)
    ambiguous = any(letter in sentence.text for letter in {*markers.open, *markers.close})
    if ambiguous and _edges(sentence, marked, markers) != [(span.start, span.end) for span in sentence.spans]:
        raise SpanError(
            f"sentence {sentence.id!r}: its text has characters of the markers {markers.open} {markers.close}, and "
            f"{marked!r} can be read in another way; use Markers.avoiding(text)"
        )
    return marked


class Mark(NamedTuple):
    """A marker of an answer at ink position ``at``; ``type`` is the label after a closing one, if there is one."""

    opens: bool
    at: int
    type: str | None = None


@dataclass(frozen=True)
class Reading:
    """An answer taken apart: its ``ink`` without markers, and its markers in order."""

    ink: str
    marks: tuple[Mark, ...]


@dataclass(frozen=True)
class Source:
    """A sentence as ink: its characters, and at which of them tokens begin and end."""

    ink: str
    starts: dict[int, int]
    ends: dict[int, int]

    @classmethod
    def of(cls, sentence: Sentence) -> Source:
        """The ink of a sentence (kept for the last few thousand)."""
        return _source_of(sentence.tokens)


@functools.lru_cache(maxsize=4096)
def _source_of(tokens: tuple[str, ...]) -> Source:
    inks, at = [], 0
    starts: dict[int, int] = {}
    ends: dict[int, int] = {}
    for i, token in enumerate(tokens):
        ink = "".join(token.split())
        if ink:
            starts[at], ends[at + len(ink)] = i, i + 1
            at += len(ink)
            inks.append(ink)
    return Source("".join(inks), starts, ends)


def read(answer: str, markers: Markers = MARKERS, sentence: Sentence | None = None) -> Reading:
    """Take an answer apart.

    Args:
        sentence: what it should be a marking of. Where a run of marker characters can be read in two ways
            (``@@C###``), the reading in which the marker sits on a token boundary of the sentence wins.
    """
    source = Source.of(sentence) if sentence is not None else Source("", {}, {})
    ink: list[str] = []
    marks: list[Mark] = []
    i = 0
    label = re.compile(r"\s*\[([^\[\]\s]{1,40})\]") if markers.typed else None
    while i < len(answer):
        if answer[i].isspace():
            i += 1
            continue
        for opens, mark in ((True, markers.open), (False, markers.close)):
            if answer.startswith(mark, i):
                kept = _kept(answer, i, mark, len(ink), source, opens)
                ink += answer[i : i + kept]
                i += kept + len(mark)
                kind = None
                if not opens and label and (found := label.match(answer, i)):
                    kind, i = found[1], found.end()
                marks.append(Mark(opens, len(ink), kind))
                break
        else:
            ink.append(answer[i])
            i += 1
    return Reading("".join(ink), tuple(marks))


def _kept(answer: str, i: int, mark: str, at: int, source: Source, opens: bool) -> int:
    """How many characters at ``i`` belong to the text before the marker that begins in this run."""
    letter = mark[0]
    run = i
    while run < len(answer) and answer[run] == letter:
        run += 1
    spare = run - i - len(mark)
    if spare <= 0 or len(set(mark)) > 1:
        return 0
    edges = source.starts if opens else source.ends
    for kept in range(spare + 1):
        follows = source.ink[at : at + spare] == letter * spare
        if follows and at + kept in edges and (kept == spare or opens):
            return kept
    return 0


def pairs(reading: Reading) -> list[tuple[Mark, Mark]]:
    """Opening and closing markers of a reading whose markers alternate."""
    return list(zip(reading.marks[::2], reading.marks[1::2], strict=False))


def decode(sentence: Sentence, answer: str, markers: Markers = MARKERS) -> tuple[Span, ...]:
    """par(y): the spans of a well-formed answer; ``decode(x, encode(x)) == x.spans``.

    Raises:
        SpanError: the answer is no legal marking of the sentence (:mod:`zfu_lib.skills.verifier` says why).
    """
    reading, source = read(answer, markers, sentence), Source.of(sentence)
    marks = reading.marks
    if reading.ink != source.ink or len(marks) % 2 or any(mark.opens == bool(i % 2) for i, mark in enumerate(marks)):
        raise SpanError(f"sentence {sentence.id!r}: {answer!r} is no marking of it; zfu_lib.skills.verifier says why")
    found = []
    for opened, closed in pairs(reading):
        start, end = source.starts.get(opened.at), source.ends.get(closed.at)
        if start is None or end is None or start >= end:
            raise SpanError(f"sentence {sentence.id!r}: a marker of {answer!r} is not at the edge of a token")
        found.append(Span(start, end, (closed.type or UNTYPED) if markers.typed else UNTYPED))
    return tuple(found)


def _edges(sentence: Sentence, answer: str, markers: Markers) -> list[tuple[int, int]] | None:
    try:
        return [(span.start, span.end) for span in decode(sentence, answer, markers)]
    except SpanError:
        return None
