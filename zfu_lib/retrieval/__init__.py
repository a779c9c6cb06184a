"""Retrieval for every chapter that looks something up: BM25, exact dense search, fusion of rankings.

One thin layer: BM25 is bm25s, dense search is a matrix product. All searches return a :class:`Found`, take queries in
a batch, and can leave documents out query by query (a sentence must not find itself).
"""

from zfu_lib.retrieval.bm25 import BM25, words
from zfu_lib.retrieval.dense import Dense
from zfu_lib.retrieval.ranking import Found, fuse

__all__ = ["BM25", "Dense", "Found", "fuse", "words"]
