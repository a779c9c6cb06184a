"""Retrieval against peers, one thread: BM25 over a bare bm25s with numba, dense top-k over faiss ``IndexFlatIP``.

    python benchmarks/retrieval.py [--quick] [--check] [--json FILE]

100,000 documents of 60 words drawn by Zipf's law, queries of 8 words, top 10; 100,000 vectors of 384 numbers, queries
in batches of 200. numba and faiss are optional (``pip install numba faiss-cpu``): without one, its row is left out.
"""

from __future__ import annotations

import importlib.util
import os

os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"

import bm25s
import numpy as np
import torch
from _timing import Report, options, paired_seconds

from zfu_lib.retrieval import BM25, Dense


def zipf_texts(n: int, length: int, rng: np.random.Generator) -> list[str]:
    """Texts of ``length`` words w0, w1, …, the r-th most frequent in proportion to 1/r (30,000 words)."""
    weights = 1 / np.arange(1, 30_001)
    drawn = rng.choice(30_000, (n, length), p=weights / weights.sum())
    return [" ".join(f"w{i}" for i in row) for row in drawn.tolist()]


def main() -> int:
    given = options(__doc__).parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    documents = 5_000 if given.quick else 100_000
    report = Report(f"retrieval, {documents} documents")

    def target(x: float) -> float | None:
        return None if given.quick else x

    if importlib.util.find_spec("numba"):
        texts, queries = zipf_texts(documents, 60, rng), zipf_texts(1000, 8, rng)
        ours = BM25(texts, backend="numba")
        bare = bm25s.BM25(method="lucene", backend="numba")
        bare.index([text.split() for text in texts], show_progress=False)

        def peer():
            return bare.retrieve([query.split() for query in queries], k=10, show_progress=False)

        found, theirs = ours.search(queries, 10), peer()
        assert np.allclose(found.score, theirs.scores, rtol=1e-5), "the layer must not change a score"
        seconds = paired_seconds(lambda: ours.search(queries, 10), peer, given.pairs)
        report.add("BM25, 1000 queries", "zfu", "bm25s numba", *seconds, target=target(1.2), at_most=True)
    else:
        report.note("numba is not installed: BM25 not compared")

    vectors = rng.standard_normal((documents, 384), dtype=np.float32)
    queries = rng.standard_normal((200, 384), dtype=np.float32)
    dense = Dense(vectors, cosine=False)
    at_once = torch.from_numpy(vectors), torch.from_numpy(queries)
    if importlib.util.find_spec("faiss"):
        import faiss

        faiss.omp_set_num_threads(1)
        flat = faiss.IndexFlatIP(384)
        flat.add(vectors)
        same = dense.search(queries, 10).index == flat.search(queries, 10)[1]
        assert same.mean() > 0.999, "both are exact"
        seconds = paired_seconds(lambda: flat.search(queries, 10), lambda: dense.search(queries, 10), given.pairs)
        report.add("dense top-10, 200 queries", "faiss Flat", "zfu", *seconds, target=target(4.0))
    else:
        report.note("faiss is not installed: dense search not compared")
    seconds = paired_seconds(lambda: dense.search(queries, 10), lambda: at_once[1] @ at_once[0].T, given.pairs)
    report.add("dense top-10 over its product alone", "zfu", "matmul", *seconds, target=target(1.6), at_most=True)
    return report.finish(given)


if __name__ == "__main__":
    raise SystemExit(main())
