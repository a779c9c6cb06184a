"""Agreement of annotators: F1 of spans, kappa and alpha of characters, each with an interval.

For coders a and b with spans A and B, summed over sentences: P = |A n B| / |B|, R = |A n B| / |A|,
F1 = 2 |A n B| / (|A| + |B|). Over characters, labels are the type of the span a character lies in, or O:
kappa = (p_o - p_e) / (1 - p_e); alpha = 1 - D_o / D_e for nominal labels and any number of coders. Most characters are
O for everybody, which flatters kappa, so :func:`report` also gives kappa without the characters that both leave
unmarked, and the share of sentences on which the sets are the same.

Shape letters: N sentences, C labels (O first), R resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

from zfu_lib.skills import metrics
from zfu_lib.skills.spans import Sentence, Span, SpanError, untyped

Layer = Sequence[Sequence[Span]]
OUTSIDE = "O"


class Estimate(NamedTuple):
    """A figure and its 95% percentile interval over resampled sentences."""

    value: float
    low: float
    high: float


class Report(NamedTuple):
    """Agreement of two or more coders; F1 and kappa are means over pairs.

    ``strict`` needs edges and type, ``boundary`` edges only, ``relaxed`` the type and an intersection over union of at
    least one half; ``kappa_marked`` leaves out characters that both leave unmarked; ``identical`` is the share of
    sentences on which all coders have the same set, ``empty`` of those the share with none.
    """

    strict: Estimate
    boundary: Estimate
    relaxed: Estimate
    kappa: Estimate
    kappa_marked: Estimate
    alpha: Estimate
    fleiss: float
    identical: float
    empty: float
    sentences: int
    coders: int


def labels(length: int, spans: Sequence[Span], types: Sequence[str]) -> np.ndarray:
    """The label of every token: 0 for O, else 1 + the place of its type in ``types``: int [length]."""
    row = np.zeros(length, dtype=np.int64)
    for start, end, kind in spans:
        row[start:end] = 1 + types.index(kind)
    return row


def confusion(a: np.ndarray, b: np.ndarray, n: int) -> np.ndarray:
    """How often coder a says i where coder b says j: int [n, n]."""
    return np.bincount(a * n + b, minlength=n * n).reshape(n, n)


def cohen_kappa(table: np.ndarray) -> float:
    """Kappa of a confusion table [..., C, C]; where both always say one and the same it is 1, as agreement is."""
    table = np.asarray(table, dtype=float)
    total = table.sum((-2, -1))
    observed = np.trace(table, axis1=-2, axis2=-1) / total
    expected = (table.sum(-1) * table.sum(-2)).sum(-1) / total**2
    return np.where(expected < 1, (observed - expected) / np.where(expected < 1, 1 - expected, 1), 1.0)


def fleiss_kappa(counts: np.ndarray) -> float:
    """Kappa of m coders: ``counts`` [items, C] says how many gave each label; every row sums to m.

    Raises:
        ValueError: rows with different sums, or fewer than two coders.
    """
    counts = np.asarray(counts, dtype=float)
    m = counts.sum(1)
    if not len(counts) or (m != m[0]).any() or m[0] < 2:
        raise ValueError("Fleiss' kappa needs the same number of coders, at least two, for every item")
    agreement = ((counts**2).sum(1) - m) / (m * (m - 1))
    expected = ((counts.sum(0) / counts.sum()) ** 2).sum()
    return float((agreement.mean() - expected) / (1 - expected)) if expected < 1 else 1.0


def krippendorff_alpha(coincidences: np.ndarray) -> float:
    """Alpha for nominal labels from a table of coincidences [..., C, C] (:func:`coincidence`)."""
    table = np.asarray(coincidences, dtype=float)
    n_c = table.sum(-1)
    n = n_c.sum(-1)
    observed = n - np.trace(table, axis1=-2, axis2=-1)
    expected = (n**2 - (n_c**2).sum(-1)) / np.maximum(n - 1, 1)
    return np.where(expected > 0, 1 - observed / np.where(expected > 0, expected, 1), 1.0)


def coincidence(coders: np.ndarray, n: int) -> np.ndarray:
    """Table of coincidences [n, n] of ``coders`` int [coders, items] without missing values: each ordered pair of
    coders counts 1 / (coders - 1)."""
    m = len(coders)
    table = sum(confusion(coders[i], coders[j], n) for i in range(m) for j in range(m) if i != j)
    return table / (m - 1)


def _checked(sentences: Sequence[Sentence], coders: Sequence[Layer]) -> list[str]:
    if len(coders) < 2:
        raise ValueError(f"agreement needs at least two coders, got {len(coders)}")
    if not sentences:
        raise ValueError("agreement needs at least one sentence")
    for k, layer in enumerate(coders):
        if len(layer) != len(sentences):
            raise ValueError(
                f"coder {k} has {len(layer)} sentences of {len(sentences)}: code every sentence, empty too"
            )
        for sentence, spans in zip(sentences, layer, strict=True):
            if spans is None:
                raise SpanError(f"coder {k} has not coded sentence {sentence.id!r}; an empty set is a decision")
            sentence.with_spans(spans)  # raises on overlap or an edge outside
    return sorted({span.type for layer in coders for spans in layer for span in spans})


def report(sentences: Sequence[Sentence], coders: Sequence[Layer], *, resamples: int = 1000, seed: int = 0) -> Report:
    """Every figure of agreement, with percentile bootstrap intervals over sentences.

    Args:
        sentences: what was coded.
        coders: for each coder the spans of every sentence; an empty sequence means that nothing is to be marked.

    Raises:
        ValueError: fewer than two coders, no sentences, or coders with different numbers of sentences.
        SpanError: a sentence that a coder left out, or spans that overlap.
    """
    types = _checked(sentences, coders)
    n, c = len(sentences), 1 + len(types)
    draws_RN = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), resamples).astype(float)
    weights = np.concatenate([np.ones((1, n)), draws_RN])  # row 0 is the sample itself
    rows = [
        [labels(len(s.tokens), spans, types) for s, spans in zip(sentences, layer, strict=True)] for layer in coders
    ]
    pairs = list(combinations(range(len(coders)), 2))

    def f1(score: Callable[[Layer, Layer], metrics.Counts]) -> Estimate:
        found = []
        for i, j in pairs:
            hit, said, true = (weights @ x for x in score(coders[i], coders[j]))
            found.append(np.divide(2 * hit, said + true, out=np.ones(len(hit)), where=said + true > 0))
        return _estimate(np.mean(found, axis=0))

    def bare(layer: Layer) -> list[tuple[Span, ...]]:
        return [untyped(spans) for spans in layer]

    tables_PNCC = np.array([[confusion(rows[i][s], rows[j][s], c) for s in range(n)] for i, j in pairs], dtype=float)
    # Marked by at least one of the two: without the cell O-O.
    marked = tables_PNCC.copy()
    marked[..., 0, 0] = 0
    summed, summed_marked = (np.einsum("rn,pnij->prij", weights, t) for t in (tables_PNCC, marked))
    some = summed_marked.sum((-2, -1)) > 0
    summed_marked[~some] = np.eye(c)  # nobody marked anything: agreement
    coincidences = np.array([coincidence(np.array([r[s] for r in rows]), c) for s in range(n)])
    everyone = np.concatenate([np.stack([r[s] for r in rows]) for s in range(n)], axis=1)
    counts = np.stack([(everyone == k).sum(0) for k in range(c)], axis=1)
    same = [len({tuple(sorted(layer[s])) for layer in coders}) == 1 for s in range(n)]
    none = [same[s] and not coders[0][s] for s in range(n)]
    return Report(
        strict=f1(metrics.strict),
        boundary=f1(lambda a, b: metrics.strict(bare(a), bare(b))),
        relaxed=f1(metrics.overlap),
        kappa=_estimate(cohen_kappa(summed).mean(0)),
        kappa_marked=_estimate(cohen_kappa(summed_marked).mean(0)),
        alpha=_estimate(krippendorff_alpha(np.einsum("rn,nij->rij", weights, coincidences))),
        fleiss=fleiss_kappa(counts),
        identical=float(np.mean(same)),
        empty=float(sum(none) / max(1, sum(same))),
        sentences=n,
        coders=len(coders),
    )


def _estimate(values: np.ndarray) -> Estimate:
    low, high = np.quantile(values[1:], [0.025, 0.975]) if len(values) > 1 else (values[0], values[0])
    return Estimate(float(values[0]), float(low), float(high))


def split_of(a: Layer, b: Layer) -> dict[str, int]:
    """Where two coders differ, in spans of either side: ``same`` (edges and type), ``type`` (edges only), ``boundary``
    (they overlap), ``scope`` (the other marked nothing there)."""
    counts = {"same": 0, "type": 0, "boundary": 0, "scope": 0}
    for left, right in zip(a, b, strict=True):
        for mine, theirs in ((left, right), (right, left)):
            for span in mine:
                if span in theirs:
                    counts["same"] += 1
                elif any(span[:2] == other[:2] for other in theirs):
                    counts["type"] += 1
                elif any(span.start < other.end and other.start < span.end for other in theirs):
                    counts["boundary"] += 1
                else:
                    counts["scope"] += 1
    return counts
