"""BM25 by bm25s, whose compiled back end (numba) is used where it is installed and the collection is large."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Collection, Sequence

import bm25s
import numpy as np

from zfu_lib.retrieval.ranking import Found, check, without

COMPILE_FROM = 50_000
"""Documents from which compiling (half a minute, once per process) pays for itself over some thousand queries."""

_WORD = re.compile(r"[^\W_]+(?:[+#]+|[.'’-][^\W_]+)*|[+#]+")


def words(text: str) -> list[str]:
    """Lower-cased words; ``c++``, ``c#``, ``node.js`` stay whole, Chinese is cut into pairs of neighbours."""
    found: list[str] = []
    for word in _WORD.findall(text.lower()):
        if any("\u3400" <= letter <= "\u9fff" for letter in word):
            found += [word[i : i + 2] for i in range(max(1, len(word) - 1))]
        else:
            found.append(word)
    return found


class BM25:
    """An index of texts.

    score(q, d) = sum over words w of q of idf(w) * f(w, d) / (f(w, d) + k1 (1 - b + b |d| / mean |d|)), with
    idf(w) = ln(1 + (N - n(w) + 0.5) / (n(w) + 0.5)): the form of Lucene.

    Args:
        texts: the documents; one without words is never found.
        tokens: cuts a text into words.
        backend: ``numpy``, ``numba``, or ``auto``: numba if it is installed and the collection large.

    Raises:
        ValueError: no document, or none with a word; k1 or b out of range.
    """

    def __init__(
        self,
        texts: Sequence[str],
        *,
        k1: float = 1.5,
        b: float = 0.75,
        tokens: Callable[[str], list[str]] = words,
        backend: str = "auto",
    ) -> None:
        if k1 < 0 or not 0 <= b <= 1:
            raise ValueError(f"k1 = {k1} must be at least 0 and b = {b} between 0 and 1")
        self.tokens, self.size = tokens, len(texts)
        cut = [tokens(text) for text in texts]
        if not any(cut):
            raise ValueError(f"none of the {len(texts)} documents has a word")
        if backend == "auto":
            large = len(texts) >= COMPILE_FROM and importlib.util.find_spec("numba")
            backend = "numba" if large else "numpy"
        self._index = bm25s.BM25(k1=k1, b=b, method="lucene", backend=backend)
        self._index.index(cut, show_progress=False)

    def search(self, queries: Sequence[str], k: int, *, exclude: Sequence[Collection[int]] | None = None) -> Found:
        """The ``k`` best documents of each query; a document that shares no word with it is not found.

        Raises:
            ValueError: as :func:`zfu_lib.retrieval.ranking.check`.
        """
        check(k, len(queries), exclude)
        wanted = min(self.size, k + max(map(len, exclude), default=0) if exclude else k)
        cut = [self.tokens(query) for query in queries]
        if not queries:
            return Found(np.empty((0, k), np.int64), np.empty((0, k), np.float32))
        index, score = self._index.retrieve(cut, k=wanted, show_progress=False)
        index = np.where(score > 0, index, -1).astype(np.int64)
        score = np.where(score > 0, score, -np.inf).astype(np.float32)
        if exclude or wanted < k:
            return without(Found(index, score), exclude or [()] * len(queries), k)
        return Found(index, score)
