"""Scores of predicted spans that nobody can fool.

Every score takes *all* sentences: a prediction of ``None`` is an answer that failed, and counts as empty. What it
would be without the failed ones is reported beside it (:func:`denominators`), never instead.

Agreement with other libraries on disjoint spans (tested): :func:`strict` equals seqeval's default mode (micro, macro,
weighted) and nervaluate's ``strict``; untyped it equals nervaluate's ``exact``; :func:`partial` equals nervaluate's
``partial``. Where they differ is by design:

- seqeval reads tags, so an illegal ``I`` opens a span there; :func:`~zfu_lib.skills.spans.from_tags` can also drop it.
- nervaluate stores inclusive ends and refuses untyped tags; here ends are exclusive and ``B``, ``I`` have a type.
- seqeval warns and returns 0 where a denominator is 0; so does this, without the warning. Two empty sides have F1 0.
- One prediction over two gold spans is one match and one miss (as in nervaluate); :func:`overlap` counts that way too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from zfu_lib.skills.spans import Sentence, Span
from zfu_lib.skills.verifier import CONNECTORS, FORMAT, Checked

Spans = Sequence[Span]
Predicted = Sequence[Spans | None]


class Counts(NamedTuple):
    """Per-sentence counts, int64 [n] each: ``hit`` (may be fractional), ``predicted``, ``gold``."""

    hit: np.ndarray
    predicted: np.ndarray
    gold: np.ndarray

    def score(self, weights: np.ndarray | None = None) -> Score:
        """Micro scores, each sentence counted ``weights`` times (once by default)."""
        sums = [float(x.sum() if weights is None else x @ weights) for x in self]
        return Score.of(*sums)

    def bootstrap(self, other: Counts | None = None, *, resamples: int = 1000, seed: int = 0) -> np.ndarray:
        """F1 on resampled sentences, less that of ``other`` on the same ones: [resamples]."""
        n = len(self.gold)
        draws = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), resamples).astype(float)
        return _f1(self, draws) - (_f1(other, draws) if other is not None else 0.0)


class Score(NamedTuple):
    """Precision, recall, F1 in 0..1, and the number of gold spans."""

    precision: float
    recall: float
    f1: float
    support: float

    @classmethod
    def of(cls, hit: float, predicted: float, gold: float) -> Score:
        """From sums; what has no denominator is 0."""
        p, r = hit / predicted if predicted else 0.0, hit / gold if gold else 0.0
        return cls(p, r, 2 * p * r / (p + r) if p + r else 0.0, gold)


def _f1(counts: Counts, draws: np.ndarray) -> np.ndarray:
    hit, predicted, gold = (draws @ x for x in counts)
    # 2 P R / (P + R) with P = hit/predicted, R = hit/gold.
    return np.divide(2 * hit, predicted + gold, out=np.zeros(len(hit)), where=predicted + gold > 0)


def _aligned(gold: Sequence[Spans], predicted: Predicted) -> None:
    if len(gold) != len(predicted):
        raise ValueError(f"{len(gold)} gold sentences and {len(predicted)} predictions: every sentence is scored")


def strict(gold: Sequence[Spans], predicted: Predicted, *, typed: bool = True) -> Counts:
    """STRICT: a predicted span is a hit if a gold span of its sentence has the same start, end (and type).

    Summed per sentence: spans of different sentences never meet.

    Raises:
        ValueError: different numbers of sentences.
    """
    _aligned(gold, predicted)
    n = len(gold)
    hit, said, true = np.zeros(n), np.zeros(n), np.zeros(n)
    width = 3 if typed else 2
    for i, (a, b) in enumerate(zip(gold, predicted, strict=True)):
        if not a and not b:
            continue
        want = {tuple(span[:width]) for span in a}
        got = {tuple(span[:width]) for span in b or ()}
        true[i], said[i] = len(want), len(got)
        if want and got:
            hit[i] = len(want & got)
    return Counts(hit, said, true)


def partial(gold: Sequence[Spans], predicted: Predicted) -> Counts:
    """SemEval-2013 9.1 *partial*, types ignored: equal edges 1, overlap with an unmatched gold span one half."""
    _aligned(gold, predicted)

    def hits(want: Spans, got: Spans) -> float:
        total, used = 0.0, set()
        for span in got:
            free = [i for i, g in enumerate(want) if i not in used and g[0] < span[1] and span[0] < g[1]]
            same = [i for i in free if want[i][:2] == span[:2]]
            if same or free:
                used.add((same or free)[0])
                total += 1.0 if same else 0.5
        return total

    return _counts(gold, predicted, hits)


def overlap(gold: Sequence[Spans], predicted: Predicted, *, iou: float = 0.5, typed: bool = True) -> Counts:
    """RELAX of this book: one-to-one matches of the same type with intersection over union at least ``iou``, the
    largest first, so that precision cannot exceed 1."""
    _aligned(gold, predicted)

    def hits(want: Spans, got: Spans) -> float:
        pairs = []
        for i, g in enumerate(want):
            for j, p in enumerate(got):
                both = min(g[1], p[1]) - max(g[0], p[0])
                if both > 0 and (not typed or g[2] == p[2]):
                    pairs.append((-both / (max(g[1], p[1]) - min(g[0], p[0])), i, j))
        left, right = set(), set()
        for negative, i, j in sorted(pairs):
            if -negative >= iou and i not in left and j not in right:
                left.add(i)
                right.add(j)
        return float(len(left))

    return _counts(gold, predicted, hits)


def touched(gold: Sequence[Spans], predicted: Predicted) -> Score:
    """RELAX of the baseline's public code: a gold span is found if any of its tokens is predicted.

    Its precision divides found *gold* spans by predicted spans and can exceed 1; shown only to compare.
    """
    _aligned(gold, predicted)

    def hits(want: Spans, got: Spans) -> float:
        return float(sum(any(g[0] < p[1] and p[0] < g[1] for p in got) for g in want))

    return _counts(gold, predicted, hits).score()


def _counts(gold: Sequence[Spans], predicted: Predicted, hits: Callable[[Spans, Spans], float]) -> Counts:
    rows = [(hits(a, b or ()) if a and b else 0.0, len(b or ()), len(a)) for a, b in zip(gold, predicted, strict=True)]
    return Counts(*np.array(rows, dtype=float).reshape(-1, 3).T)


def by_type(gold: Sequence[Spans], predicted: Predicted) -> dict[str, Score]:
    """STRICT for each type in alphabetical order, then ``micro``, ``macro`` (over types), ``weighted`` (by support)."""
    types = sorted({s[2] for side in (gold, predicted) for spans in side for s in spans or ()})
    found: dict[str, Score] = {}
    for kind in types:
        side = [[[s for s in spans or () if s[2] == kind] for spans in x] for x in (gold, predicted)]
        found[kind] = strict(*side).score()
    table = np.array([found[kind] for kind in types]).reshape(-1, 4)
    support = float(table[:, 3].sum())
    found["micro"] = strict(gold, predicted).score()
    if types:
        found["macro"] = Score(*table[:, :3].mean(axis=0).tolist(), support)
        weights = table[:, 3] / support if support else np.zeros(len(types))
        found["weighted"] = Score(*(weights @ table[:, :3]).tolist(), support)
    return found


# Which sentences count.


def denominators(gold: Sequence[Spans], predicted: Predicted) -> dict[str, Score]:
    """The same predictions under two conventions (section 4).

    ``all``: failures count as empty; this is the headline. ``valid only``: failed sentences are left out. The
    baseline's public code does the latter: a failed answer becomes an empty tag list, whose length differs from the
    gold one, and such sentences are removed before scoring.
    """
    _aligned(gold, predicted)
    kept = [(a, b) for a, b in zip(gold, predicted, strict=True) if b is not None]
    valid = strict([a for a, _ in kept], [b for _, b in kept])
    return {"all": strict(gold, predicted).score(), "valid only": valid.score()}


# Failures.


def invalid_rate(checks: Iterable[Checked], codes: Sequence[str] = FORMAT) -> np.ndarray:
    """1 where an answer fails one of ``codes`` (V1 to V4), else 0: [n]; its mean is the invalid-tag rate."""
    return np.array([any(code in codes for code in check.codes) for check in checks], dtype=float)


def error_counts(checks: Iterable[Checked]) -> Counter[str]:
    """Answers that fail each check, by code."""
    return Counter(code for check in checks for code in check.codes)


def hallucinated(sentences: Sequence[Sentence], said: Sequence[Sequence[str]]) -> tuple[int, int]:
    """How many predicted strings do not stand in their sentence as tokens, and of how many.

    Args:
        said: the marked (or listed) strings of each raw answer, before any repair.
    """
    from zfu_lib.skills.verifier import occurrences

    wrong = total = 0
    for sentence, strings in zip(sentences, said, strict=True):
        total += len(strings)
        wrong += sum(not occurrences(sentence, string) for string in strings)
    return wrong, total


class Drift(NamedTuple):
    """Predictions that overlap exactly one gold span with wrong edges: their ``share`` of all predictions, and the
    ``start`` and ``end`` offsets (predicted minus gold, tokens) of each."""

    share: float
    start: tuple[int, ...]
    end: tuple[int, ...]


def drift(gold: Sequence[Spans], predicted: Predicted) -> Drift:
    """Boundary drift."""
    _aligned(gold, predicted)
    offsets, total = [], 0
    for want, got in zip(gold, predicted, strict=True):
        for p in got or ():
            total += 1
            near = [g for g in want if g[0] < p[1] and p[0] < g[1]]
            if len(near) == 1 and near[0][:2] != p[:2]:
                offsets.append((p[0] - near[0][0], p[1] - near[0][1]))
    starts, ends = zip(*offsets, strict=True) if offsets else ((), ())
    return Drift(len(offsets) / total if total else 0.0, starts, ends)


def coordinated(sentence: Sentence) -> list[tuple[Span, Span]]:
    """Neighbouring gold spans with nothing but connectors between them."""
    found = []
    for a, b in zip(sentence.spans, sentence.spans[1:], strict=False):
        between = sentence.tokens[a.end : b.start]
        if between and all(token.lower() in CONNECTORS for token in between):
            found.append((a, b))
    return found


def coordination(sentences: Sequence[Sentence], predicted: Predicted) -> np.ndarray:
    """For each coordinated pair of gold spans, whether both were predicted exactly: [pairs] of 0 and 1."""
    _aligned([s.spans for s in sentences], predicted)
    return np.array(
        [
            float({a, b} <= set(got or ()))
            for sentence, got in zip(sentences, predicted, strict=True)
            for a, b in coordinated(sentence)
        ]
    )


def recall_of(
    sentences: Sequence[Sentence], predicted: Predicted, wanted: Callable[[Sentence, Span], bool]
) -> tuple[int, int]:
    """Exactly found gold spans among those that are ``wanted`` (such as unseen in training), and how many those are."""
    right = total = 0
    for sentence, got in zip(sentences, predicted, strict=True):
        said = set(got or ())
        for span in sentence.spans:
            if wanted(sentence, span):
                total += 1
                right += span in said
    return right, total
