"""Each search against its definition, the exclusion of documents, the fusion of rankings."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zfu_lib.retrieval import BM25, Dense, Found, fuse, words

TEXTS = ["we use c++ and node.js daily", "clear writing", "writing and more writing", "", "team work in c#"]


def bm25_by_hand(texts, query, k1=1.5, b=0.75):
    cut = [words(text) for text in texts]
    mean = sum(map(len, cut)) / len(cut)
    scores = []
    for document in cut:
        total = 0.0
        for word in words(query):
            n, f = sum(word in d for d in cut), document.count(word)
            idf = math.log(1 + (len(cut) - n + 0.5) / (n + 0.5))
            total += idf * f / (f + k1 * (1 - b + b * len(document) / mean)) if f else 0
        scores.append(total)
    return np.array(scores)


def test_bm25_is_its_formula():
    """The compiled back end, which takes half a minute to compile, is held against this one by the benchmark."""
    index = BM25(TEXTS)
    queries = ["writing", "c++ and c#", "unknown words only", "and and team"]
    found = index.search(queries, 5)
    for query, pairs in zip(queries, found.lists(), strict=True):
        expected = bm25_by_hand(TEXTS, query)
        assert {i for i, _ in pairs} == set(np.flatnonzero(expected > 0))
        assert [s for _, s in pairs] == pytest.approx(sorted(expected[expected > 0], reverse=True), rel=1e-5)


def test_words():
    assert words("C++, C# and Node.js: don't  x_y") == ["c++", "c#", "and", "node.js", "don't", "x", "y"]
    assert words("熟悉 数据清洗 Python3") == ["熟悉", "数据", "据清", "清洗", "python3"]
    assert words("字") == ["字"]


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_dense_equals_sorting(n, k, seed):
    rng = np.random.default_rng(seed)
    vectors, queries = rng.normal(size=(n, 6)), rng.normal(size=(3, 6))
    exclude = [set(rng.integers(0, n, rng.integers(0, 4)).tolist()) for _ in range(3)]
    found = Dense(vectors).search(queries, k, exclude=exclude)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (vectors, queries)]
    scores = unit[1] @ unit[0].T
    for q, banned in enumerate(exclude):
        order = [i for i in np.argsort(-scores[q]) if i not in banned][:k]
        assert [i for i, _ in found.lists()[q]] == order
        assert found.index[q, len(order) :].tolist() == [-1] * (k - len(order))
        assert [s for _, s in found.lists()[q]] == pytest.approx(scores[q][order], abs=1e-5)


def test_dense_over_several_blocks(monkeypatch):
    from zfu_lib.retrieval import dense

    rng = np.random.default_rng(0)
    vectors, queries = rng.normal(size=(1000, 8)), rng.normal(size=(7, 8))
    whole = Dense(vectors, cosine=False).search(queries, 20)
    monkeypatch.setattr(dense, "BLOCK", 64)
    monkeypatch.setattr(dense, "QUERIES", 3)
    pieces = Dense(vectors, cosine=False).search(queries, 20)
    assert np.array_equal(whole.index, pieces.index)
    assert whole.index[0].tolist() == np.argsort(-(queries[0] @ vectors.T))[:20].tolist()


def test_a_sentence_does_not_find_itself():
    index = BM25(TEXTS)
    assert index.search(["clear writing"], 1).index.tolist() == [[1]]
    assert index.search(["clear writing"], 1, exclude=[{1}]).index.tolist() == [[2]]
    assert index.search(["clear writing"], 9, exclude=[{1, 2}]).lists() == [[]]


def test_least_score():
    found = Dense(np.eye(3)).search(np.eye(3)[:1], 3)
    assert found.lists(0.5) == [[(0, 1.0)]]


def test_fusion_by_hand():
    a = Found(np.array([[3, 1, -1]]), np.array([[9.0, 5.0, -np.inf]]))
    b = Found(np.array([[1, 2, 3]]), np.array([[0.9, 0.8, 0.1]]))
    found = fuse([a, b], 4)
    assert found.index.tolist() == [[1, 3, 2, -1]]
    assert found.score[0, :3] == pytest.approx([1 / 62 + 1 / 61, 1 / 61 + 1 / 63, 1 / 62])
    assert fuse([a, b], 1, weights=[1, 0]).index.tolist() == [[3]]
    with pytest.raises(ValueError, match="cannot be fused"):
        fuse([a, b], 1, weights=[1])


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: BM25(["", "!"]), "has a word"),
        (lambda: BM25(["a"], b=2), "between 0 and 1"),
        (lambda: BM25(["a"]).search(["a"], 0), "at least one"),
        (lambda: BM25(["a"]).search(["a"], 1, exclude=[]), "1 queries and 0 sets"),
        (lambda: Dense(np.zeros(3)), "documents, width"),
        (lambda: Dense(np.full((1, 2), np.nan)), "finite"),
        (lambda: Dense(np.eye(2)).search(np.eye(3), 1), "queries have 3 numbers, the documents 2"),
    ],
)
def test_bad_input(call, says):
    with pytest.raises(ValueError, match=says):
        call()


def test_counts_of_a_word_matter_once_per_query_word():
    assert Counter(words("a a b")) == {"a": 2, "b": 1}
    twice, once = (BM25(TEXTS).search([q], 1).score[0, 0] for q in ("writing writing", "writing"))
    assert twice == pytest.approx(2 * once, rel=1e-5)
