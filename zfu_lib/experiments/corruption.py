"""A simulated annotator model with known error rates: it knows the right answer and spoils it.

What the verifier does to errors can be stated exactly only where they are known. Every figure made with it says
``simulated``.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

import numpy as np

from zfu_lib.experiments.span_models import Answerer
from zfu_lib.lm.protocol import GenRequest
from zfu_lib.skills.markers import MARKERS, Markers, encode
from zfu_lib.skills.spans import Sentence, Span

FORMAT_ERRORS = ("missing close", "doubled open", "nested", "rewrite", "case", "punctuation", "invented")
"""Errors that a verifier can see, each equally likely where one happens."""
CONTENT_ERRORS = ("dropped", "edge")
"""Errors that no verifier can see: the answer is legal and wrong."""


def spoil(sentence: Sentence, kind: str, rng: np.random.Generator, markers: Markers = MARKERS) -> str:
    """The right answer with one error; where the sentence has no span to spoil, a word is rewritten instead.

    Args:
        kind: one of :data:`FORMAT_ERRORS` or :data:`CONTENT_ERRORS`.

    Raises:
        ValueError: no such kind.
    """
    spans = list(sentence.spans)
    if kind not in FORMAT_ERRORS + CONTENT_ERRORS:
        raise ValueError(f"no error {kind!r}; there are {', '.join(FORMAT_ERRORS + CONTENT_ERRORS)}")
    if not spans and kind not in ("invented", "punctuation"):
        kind = "rewrite"
    text = encode(sentence, markers)
    tokens = list(sentence.tokens)
    i = int(rng.integers(len(spans))) if spans else 0
    match kind:
        case "missing close":
            return _nth(text, markers.close, i, "")
        case "doubled open":
            return _nth(text, markers.open, i, 2 * markers.open)
        case "nested":
            first = _nth(text, markers.open, i, markers.open + markers.open)
            return _nth(first, markers.close, i, markers.close + markers.close)
        case "rewrite" | "case":
            at = int(rng.integers(len(tokens)))
            old = tokens[at]
            tokens[at] = (old.swapcase() if old.swapcase() != old else f"{old}s") if kind == "case" else f"{old}ing"
            return encode(Sentence(tuple(tokens), tuple(spans)), markers)
        case "punctuation":
            return f"{text} !"
        case "invented":
            return f"{text} {markers.open}strong motivation{markers.close}"
        case "dropped":
            return encode(sentence.with_spans(s for j, s in enumerate(spans) if j != i), markers)
    start, end, label = spans[i]
    free_end = spans[i + 1].start if i + 1 < len(spans) else len(tokens)
    moved = Span(start, end + 1, label) if end < free_end else Span(start, end - 1, label)
    spans[i] = moved if moved.start < moved.end else spans[i]
    return encode(sentence.with_spans(spans), markers)


def _nth(text: str, mark: str, n: int, new: str) -> str:
    at = -1
    for _ in range(n + 1):
        at = text.index(mark, at + 1 if at < 0 else at + len(mark))
    return text[:at] + new + text[at + len(mark) :]


def corruptor(
    sentences: Sequence[Sentence],
    rate: float,
    seed: int,
    *,
    kinds: Sequence[str] = FORMAT_ERRORS,
    content: float = 0.0,
    heeds: float = 0.0,
    markers: Markers = MARKERS,
) -> Answerer:
    """A language model (simulated) that marks these sentences right but for known errors.

    Each answer has, with probability ``rate`` and independently of all others, one error of ``kinds``; failing that,
    with probability ``content``, one that no verifier sees. After feedback the rate is ``rate * (1 - heeds)``. Asked
    the same question with the same seed it gives the same answer, so a retry without feedback changes nothing.

    Raises:
        ValueError: a rate outside 0..1.
    """
    if not all(0 <= x <= 1 for x in (rate, content, heeds)):
        raise ValueError(f"rate = {rate}, content = {content}, heeds = {heeds} must lie in 0..1")
    by_text: Mapping[str, Sentence] = {sentence.text: sentence for sentence in sentences}

    def answer(request: GenRequest) -> str:
        turns = request.prompt
        asked = next(t for t in turns if t.role == "user" and "Sentence: " in t.content and _last(t.content) in by_text)
        sentence = by_text[_last(asked.content)]
        own = markers.avoiding(sentence.text)
        told = sum(turn.role == "assistant" for turn in turns)
        key = zlib.crc32(repr([(t.role, t.content) for t in turns]).encode())
        rng = np.random.default_rng((seed, key))
        if rng.random() < (rate * (1 - heeds) if told else rate):
            return spoil(sentence, kinds[int(rng.integers(len(kinds)))], rng, own)
        if content and rng.random() < content:
            return spoil(sentence, CONTENT_ERRORS[int(rng.integers(len(CONTENT_ERRORS)))], rng, own)
        return encode(sentence, own)

    return Answerer(f"simulated, {rate:.0%} errors", answer)


def _last(content: str) -> str:
    return content.rpartition("Sentence: ")[2]
