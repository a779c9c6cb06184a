"""Exact nearest neighbours by a matrix product, block by block.

Shape letters: N documents, Q queries, D numbers of a vector, k results.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import torch
from torch import Tensor

from zfu_lib.retrieval.ranking import Found, check, without

BLOCK = 8192
"""Documents whose scores are held at once: [queries, 8192] floats stay in a CPU's cache."""
QUERIES = 256


class Dense:
    """An index of vectors; the score is the inner product, or the cosine.

    Args:
        vectors_ND: float array or tensor; kept as float32 on its device.
        cosine: scale vectors (and later queries) to length one.

    Raises:
        ValueError: not two-dimensional, empty, or with numbers that are not finite.
    """

    def __init__(self, vectors_ND: np.ndarray | Tensor, *, cosine: bool = True) -> None:
        self.cosine = cosine
        self.vectors_ND = self._prepared(vectors_ND)

    def _prepared(self, vectors: np.ndarray | Tensor) -> Tensor:
        found = torch.as_tensor(vectors, dtype=torch.float32)
        if found.ndim != 2 or not found.numel() or not torch.isfinite(found).all():
            raise ValueError(f"vectors must be finite numbers [documents, width], got shape {list(found.shape)}")
        return torch.nn.functional.normalize(found, dim=1) if self.cosine else found

    @torch.inference_mode()
    def search(
        self, queries_QD: np.ndarray | Tensor, k: int, *, exclude: Sequence[Collection[int]] | None = None
    ) -> Found:
        """The ``k`` best documents of each query, exactly. Equal scores come in no particular order.

        Raises:
            ValueError: another width, or as :func:`zfu_lib.retrieval.ranking.check`.
        """
        check(k, len(queries_QD), exclude)
        if not len(queries_QD):
            return Found(np.empty((0, k), np.int64), np.empty((0, k), np.float32))
        queries = self._prepared(queries_QD).to(self.vectors_ND.device)
        n, width = self.vectors_ND.shape
        if queries.shape[1] != width:
            raise ValueError(f"queries have {queries.shape[1]} numbers, the documents {width}")
        wanted = min(n, k + max(map(len, exclude), default=0) if exclude else k)
        parts = [self._best(part, wanted) for part in queries.split(QUERIES)]
        score, index = (torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True))
        if exclude or wanted < k:
            return without(Found(index, score), exclude or [()] * len(queries), k)
        return Found(index, score)

    def _best(self, queries_QD: Tensor, k: int) -> tuple[Tensor, Tensor]:
        best, index = None, None
        for start in range(0, len(self.vectors_ND), BLOCK):
            block_BD = self.vectors_ND[start : start + BLOCK]
            top, where = (queries_QD @ block_BD.T).topk(min(k, len(block_BD)), dim=1)
            where += start
            if best is not None:
                top, where = torch.cat([best, top], 1), torch.cat([index, where], 1)
                top, order = top.topk(min(k, top.shape[1]), dim=1)
                where = where.gather(1, order)
            best, index = top, where
        return best, index
