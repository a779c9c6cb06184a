"""The shape of spans: connector normalisation and span balancing.

The paper names both and defines neither in the text that could be read; these are this book's readings (section 3.3).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from zfu_lib.skills.spans import Sentence, Span
from zfu_lib.skills.verifier import CONNECTORS, is_punctuation

BINS = ((1, 1), (2, 3), (4, 6), (7, None))
"""Span lengths in tokens that count as alike."""


def trim(sentence: Sentence, span: Span) -> Span | None:
    """The span without connectors and punctuation at its edges; None if nothing is left."""
    start, end = span.start, span.end
    while start < end and _joins(sentence.tokens[start]):
        start += 1
    while start < end and _joins(sentence.tokens[end - 1]):
        end -= 1
    return span._replace(start=start, end=end) if start < end else None


def _joins(token: str) -> bool:
    return token.lower() in CONNECTORS or is_punctuation(token)


def conjuncts(sentence: Sentence, span: Span) -> list[Span]:
    """The parts of a span between its connectors, each trimmed."""
    found, start = [], span.start
    for i in range(span.start, span.end + 1):
        if i == span.end or sentence.tokens[i].lower() in CONNECTORS:
            part = trim(sentence, span._replace(start=start, end=i)) if start < i else None
            found += [part] if part else []
            start = i + 1
    return found


def normalise(sentence: Sentence, spans: Iterable[Span], alone: Iterable[str] = ()) -> tuple[Span, ...]:
    """Connector normalisation: one canonical form for coordinated skills.

    Connectors and punctuation are trimmed from the edges. A list is split where *every* part stands alone; what
    stands alone is known from ``alone`` (lower-cased skills seen as spans of their own, such as the training spans),
    and a part that is not known keeps the whole list together ("written and verbal communication" shares its head).

    Returns:
        Disjoint spans, sorted.
    """
    known = alone if isinstance(alone, set | frozenset) else frozenset(alone)
    found: list[Span] = []
    for span in spans:
        trimmed = trim(sentence, span)
        if trimmed is None:
            continue
        parts = conjuncts(sentence, trimmed)
        split = len(parts) > 1 and all(phrase(sentence, part) in known for part in parts)
        found += parts if split else [trimmed]
    return tuple(sorted(found))


def phrase(sentence: Sentence, span: Span) -> str:
    """The lower-cased tokens of a span, joined by spaces: its key in a lexicon."""
    return " ".join(sentence.tokens[span.start : span.end]).lower()


def lexicon(sentences: Iterable[Sentence]) -> frozenset[str]:
    """Every annotated skill as a :func:`phrase`."""
    return frozenset(phrase(sentence, span) for sentence in sentences for span in sentence.spans)


def length_bin(span: Span) -> int:
    """Which of :data:`BINS` a span's length falls into."""
    return next(i for i, (_, most) in enumerate(BINS) if most is None or span.end - span.start <= most)


def balanced(
    sentences: Sequence[Sentence], n: int, seed: int, *, positive: float = 0.5, target: Sequence[float] | None = None
) -> list[int]:
    """Span balancing: indices of ``n`` sentences, drawn with replacement.

    A share ``positive`` has spans; among those the lengths of a randomly chosen span follow ``target`` (uniform over
    the :data:`BINS` that occur, by default).

    Raises:
        ValueError: no sentences, or a target that names a bin which does not occur.
    """
    if not sentences:
        raise ValueError("there are no sentences to draw from")
    rng = np.random.default_rng(seed)
    empty = [i for i, sentence in enumerate(sentences) if not sentence.spans]
    by_bin: list[list[int]] = [[] for _ in BINS]
    for i, sentence in enumerate(sentences):
        for span in sentence.spans:
            by_bin[length_bin(span)].append(i)
    weights = np.array([1.0 if members else 0.0 for members in by_bin] if target is None else target, dtype=float)
    if any(w > 0 and not members for w, members in zip(weights, by_bin, strict=True)):
        raise ValueError(f"target {list(target or ())} asks for span lengths that do not occur")
    share = positive if empty and weights.sum() else float(weights.sum() > 0)
    chosen = []
    for draw in rng.random(n):
        members = by_bin[int(rng.choice(len(BINS), p=weights / weights.sum()))] if draw < share else empty
        chosen.append(members[int(rng.integers(len(members)))])
    return chosen
