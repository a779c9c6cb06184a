"""Sentences with spans: token units inside, code-point offsets outside, every end exclusive.

A :class:`Sentence` is a text cut into tokens: words of a job ad (joined by spaces) or Chinese characters (joined by
nothing). Its spans are disjoint ``(start, end, type)`` in tokens. The same spans are written as BIO tags
(:func:`to_tags`) or as markers in the text (:func:`encode`: ``we need @@team work##``), and read back.
"""

from __future__ import annotations

import functools
import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

UNTYPED = "Skill"
"""Type of a span whose source names none (tags ``B``, ``I``)."""


class SpanError(ValueError):
    """Text or spans that cannot be used; the message says what, where, and what to do."""


class Span(NamedTuple):
    """Tokens ``start`` to ``end`` (exclusive), counted from 0."""

    start: int
    end: int
    type: str = UNTYPED


@dataclass(frozen=True)
class Sentence:
    """A text, its tokens and its spans.

    Between two tokens there is white space or nothing. ``text`` defaults to the tokens joined by single spaces; for
    Chinese use :meth:`of_characters`. ``spans`` are sorted on entry. ``meta`` is carried through formats untouched
    (keys such as ``corpus``, ``split``, ``lang``).

    Raises:
        SpanError: no tokens, an empty token, a text that is not the tokens, half of a surrogate pair, a span that is
            empty, leaves the sentence or overlaps another.
    """

    tokens: tuple[str, ...]
    spans: tuple[Span, ...] = ()
    text: str = ""
    id: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        name = f"sentence {self.id!r}" if self.id else f"sentence {' '.join(self.tokens[:6])!r}"
        tokens = tuple(self.tokens)
        if not tokens or not all(tokens):
            at = tokens.index("") if tokens else 0
            raise SpanError(f"{name}: token {at} is empty; a sentence has at least one token and no empty ones")
        object.__setattr__(self, "tokens", tokens)
        object.__setattr__(self, "text", self.text or " ".join(tokens))
        if lone := re.search(r"[\ud800-\udfff]", self.text):
            raise SpanError(f"{name}: half a surrogate pair at {lone.start()}; decode the file as UTF-8")
        object.__setattr__(self, "spans", checked(self.spans, len(tokens), name))
        self.offsets  # noqa: B018 (raises where text and tokens disagree)

    @classmethod
    def of_characters(cls, text: str, **fields: Any) -> Sentence:
        """One token per code point, as Chinese corpora have it; line breaks are refused."""
        if "\n" in text or "\r" in text:
            raise SpanError(f"{fields.get('id', '')!r}: a sentence of characters has no line breaks; split it first")
        return cls(tuple(text), text=text, **fields)

    @functools.cached_property
    def offsets(self) -> tuple[tuple[int, int], ...]:
        """Code-point offsets (start, end) of every token in ``text``."""
        found, at = [], 0
        for i, token in enumerate(self.tokens):
            while not self.text.startswith(token, at):
                if at >= len(self.text) or not self.text[at].isspace():
                    raise SpanError(f"sentence {self.id!r}: token {i} {token!r} is not at {at} of {self.text!r}")
                at += 1
            found.append((at, at + len(token)))
            at += len(token)
        if self.text[at:].strip():
            raise SpanError(f"sentence {self.id!r}: {self.text[at:]!r} after the last token")
        return tuple(found)

    def characters(self, span: Span) -> tuple[int, int]:
        """Code-point offsets of a span."""
        return self.offsets[span.start][0], self.offsets[span.end - 1][1]

    def words(self, span: Span) -> str:
        """The text of a span."""
        start, end = self.characters(span)
        return self.text[start:end]

    def with_spans(self, spans: Iterable[Span]) -> Sentence:
        """The same text with other spans."""
        return replace(self, spans=tuple(spans))

    def token_span(self, start: int, end: int, type: str = UNTYPED) -> Span:
        """The span whose code points are ``start`` to ``end``.

        Raises:
            SpanError: an edge inside a token or outside the text; the message says which tokens it lies in.
        """
        starts = {a: i for i, (a, _) in enumerate(self.offsets)}
        ends = {b: i + 1 for i, (_, b) in enumerate(self.offsets)}
        if start not in starts or end not in ends or starts[start] >= ends[end]:
            near = [t for t, (a, b) in zip(self.tokens, self.offsets, strict=True) if a < end and start < b]
            raise SpanError(
                f"sentence {self.id!r}: characters {start}:{end} ({self.text[start:end]!r}) do not begin and end with "
                f"a token (tokens there: {near})"
            )
        return Span(starts[start], ends[end], type)


def checked(spans: Iterable[Span | Sequence], n: int, name: str = "sentence") -> tuple[Span, ...]:
    """``spans`` sorted, if they are disjoint and inside ``n`` tokens.

    Raises:
        SpanError: otherwise, and where edges are no whole numbers or a type is no word.
    """
    found = sorted(_span(span, name) for span in spans)
    for span in found:
        if not 0 <= span.start < span.end <= n:
            raise SpanError(f"{name}: {span} is empty or leaves its {n} tokens (ends are exclusive)")
    for a, b in zip(found, found[1:], strict=False):
        if b.start < a.end:
            raise SpanError(f"{name}: {a} and {b} overlap; spans here are flat, keep one of them")
    return tuple(found)


def _span(span: Span | Sequence, name: str) -> Span:
    try:
        start, end, kind = Span(*span)
        made = Span(operator.index(start), operator.index(end), kind)
    except TypeError:
        made = Span(0, 0, "")
    if not isinstance(made.type, str) or not made.type.strip():
        raise SpanError(f"{name}: {span!r} is no span (whole numbers for start and end, a word for the type)")
    return made


# BIO tags.


def to_tags(sentence: Sentence, *, typed: bool = True) -> list[str]:
    """``B-Skill``, ``I-Skill``, ``O`` per token; without types ``B``, ``I``, ``O``."""
    tags = ["O"] * len(sentence.tokens)
    for start, end, kind in sentence.spans:
        tail = f"-{kind}" if typed else ""
        tags[start:end] = [f"B{tail}", *[f"I{tail}"] * (end - start - 1)]
    return tags


def from_tags(tags: Sequence[str], *, stray: Literal["open", "drop"] = "open") -> list[Span]:
    """Spans of BIO tags (IOB1 and IOB2), or of tags that also mark ends and single tokens (BIOES, BMES, BILOU).

    Args:
        tags: ``O`` (or an empty cell), ``B``, ``I``, alone or with ``-TYPE``; ``M`` is read as ``I``, ``E`` and ``L``
            as the last ``I`` of a span, ``S`` and ``U`` as a ``B`` that is a whole span.
        stray: what an ``I`` does that follows no tag of its type: ``open`` begins a span there, as conlleval and
            seqeval do by default; ``drop`` ignores it and what continues it, as strict IOB2 does.

    Raises:
        SpanError: a tag that is none of these.
    """
    found: list[Span] = []
    start, kind = -1, ""
    for i, tag in enumerate(tags):
        if tag == "O" or not tag:
            if start >= 0:
                found.append(Span(start, i, kind))
                start = -1
            continue
        prefix, _, own = tag.partition("-")
        if prefix not in _BEGINS:
            raise SpanError(f"tag {i} is {tag!r}; expected O, B, I, B-TYPE or I-TYPE (or E, S, M, L, U)")
        own = own or UNTYPED
        if _BEGINS[prefix] or start < 0 or own != kind:
            if start >= 0:
                found.append(Span(start, i, kind))
                start = -1
            if _BEGINS[prefix] or stray == "open":
                start, kind = i, own
        if prefix in "ELSU" and start >= 0:
            found.append(Span(start, i + 1, kind))
            start = -1
    if start >= 0:
        found.append(Span(start, len(tags), kind))
    return found


_BEGINS = {"B": True, "S": True, "U": True, "I": False, "M": False, "E": False, "L": False}
"""Whether a tag begins a span; E, L, S and U also end one."""


def stray_tags(tags: Sequence[str]) -> list[int]:
    """Positions of the ``I`` tags that follow no tag of their type: illegal in IOB2."""
    before, found = "O", []
    for i, tag in enumerate(tags):
        prefix, _, own = tag.partition("-")
        if prefix == "I" and (before[:1] not in ("B", "I") or before.partition("-")[2] != own):
            found.append(i)
        before = tag or "O"
    return found


def untyped(spans: Iterable[Span]) -> tuple[Span, ...]:
    """The same spans, all of type :data:`UNTYPED`."""
    return tuple(Span(span.start, span.end) for span in spans)


def is_character(letter: str) -> bool:
    """Whether a code point is written without spaces around it (CJK, kana, CJK punctuation, full-width forms)."""
    return any(a <= ord(letter) <= b for a, b in _WITHOUT_SPACES)


_WITHOUT_SPACES = ((0x2E80, 0x30FF), (0x3400, 0x9FFF), (0xF900, 0xFAFF), (0xFF00, 0xFFEF), (0x20000, 0x323AF))


def tokenize(text: str, unit: Literal["space", "character", "mixed"] = "space") -> tuple[str, ...]:
    """Tokens of a text.

    Args:
        unit: ``space`` cuts at white space only; ``character`` makes every code point that is no white space a token;
            ``mixed`` keeps runs of ASCII letters and digits whole and makes every other code point a token.
    """
    if unit == "space":
        return tuple(text.split())
    if unit == "character":
        return tuple(letter for letter in text if not letter.isspace())
    return tuple(re.findall(r"[A-Za-z0-9]+|\S", text))
