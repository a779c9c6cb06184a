"""What a search returns, and how rankings are fused."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np


class Found(NamedTuple):
    """The best documents of each query, best first: ``index`` int64 [Q, k] and ``score`` float32 [Q, k].

    Where fewer than k documents remain, ``index`` is -1 and ``score`` is -inf.
    """

    index: np.ndarray
    score: np.ndarray

    def lists(self, least: float = -np.inf) -> list[list[tuple[int, float]]]:
        """(document, score) pairs of each query, without those that score below ``least``."""
        return [
            [(int(i), float(s)) for i, s in zip(row, scores, strict=True) if i >= 0 and s >= least]
            for row, scores in zip(self.index, self.score, strict=True)
        ]


def without(found: Found, exclude: Sequence[Collection[int]], k: int) -> Found:
    """The first ``k`` of each row that are not among the query's excluded documents."""
    index = np.full((len(found.index), k), -1, np.int64)
    score = np.full((len(found.index), k), -np.inf, np.float32)
    for q, banned in enumerate(exclude):
        row, scores = found.index[q], found.score[q]
        if banned:
            kept = [j for j, i in enumerate(row.tolist()) if i not in banned][:k]
            row, scores = row[kept], scores[kept]
        n = min(k, len(row))
        index[q, :n], score[q, :n] = row[:n], scores[:n]
    return Found(index, score)


def check(k: int, queries: int, exclude: Sequence[Collection[int]] | None) -> None:
    """Raises ValueError: k below 1, or not one set of excluded documents per query."""
    if k < 1:
        raise ValueError(f"k = {k}: ask for at least one document")
    if exclude is not None and len(exclude) != queries:
        raise ValueError(f"{queries} queries and {len(exclude)} sets of excluded documents; give one for each query")


def fuse(rankings: Sequence[Found], k: int, *, weights: Sequence[float] | None = None, constant: float = 60.0) -> Found:
    """Reciprocal rank fusion: score(d) = sum over rankings of weight / (constant + rank of d), ranks from 1.

    Equal scores are ordered by document. A document that a ranking does not hold gets nothing from it.

    Raises:
        ValueError: no rankings, different numbers of queries, or weights that do not match.
    """
    weights = [1.0] * len(rankings) if weights is None else list(weights)
    sizes = {len(found.index) for found in rankings}
    if len(sizes) != 1 or len(weights) != len(rankings):
        raise ValueError(f"rankings of {sorted(sizes)} queries with {len(weights)} weights cannot be fused")
    check(k, 0, None)
    index = np.full((sizes.pop(), k), -1, np.int64)
    score = np.full(index.shape, -np.inf, np.float32)
    for q in range(len(index)):
        total: dict[int, float] = defaultdict(float)
        for found, weight in zip(rankings, weights, strict=True):
            for rank, document in enumerate(found.index[q].tolist(), 1):
                if document >= 0:
                    total[document] += weight / (constant + rank)
        best = sorted(total.items(), key=lambda pair: (-pair[1], pair[0]))[:k]
        if best:
            index[q, : len(best)], score[q, : len(best)] = zip(*best, strict=True)
    return Found(index, score)
