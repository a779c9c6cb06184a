"""Connector normalisation and span balancing."""

import importlib.util
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given

from zfu_lib.skills import shape
from zfu_lib.skills.spans import Sentence, Span, untyped

spec = importlib.util.spec_from_file_location("drawn", Path(__file__).with_name("conftest.py"))
drawn = importlib.util.module_from_spec(spec)
spec.loader.exec_module(drawn)


def words(text, *spans):
    return Sentence(tuple(text.split()), tuple(spans))


@given(drawn.sentences())
def test_normal_form_is_disjoint_idempotent_and_inside(sentence):
    alone = shape.lexicon([sentence])
    once = shape.normalise(sentence, sentence.spans, alone)
    again = sentence.with_spans(once)
    assert shape.normalise(again, once, alone) == once
    covered = {i for span in sentence.spans for i in range(span.start, span.end)}
    assert {i for span in once for i in range(span.start, span.end)} <= covered


def test_edges_and_lists():
    x = words("use SQL , Python and clear writing daily", (1, 7))
    assert shape.normalise(x, x.spans) == (Span(1, 7),), "nothing known: the list stays whole"
    assert shape.normalise(x, x.spans, {"sql", "python"}) == (Span(1, 7),), "one part is unknown"
    known = {"sql", "python", "clear writing"}
    assert shape.normalise(x, x.spans, known) == (Span(1, 2), Span(3, 4), Span(5, 7))
    y = words("and SQL , , ; or", (0, 3), (4, 6))
    assert shape.normalise(y, y.spans) == (Span(1, 2),)
    z = Sentence.of_characters("沟通、协作", spans=((0, 5),))
    assert untyped(shape.normalise(z, z.spans, {"沟 通", "协 作"})) == (Span(0, 2), Span(3, 5))


def test_balanced_draws_half_empty_and_lengths_evenly():
    sentences = [words("a b c")] * 80 + [words("a b c", (0, 1))] * 15 + [words("a b c", (0, 3))] * 5
    drawn_ = shape.balanced(sentences, 4000, seed=1)
    assert drawn_ == shape.balanced(sentences, 4000, seed=1)
    lengths = Counter(sum(s.end - s.start for s in sentences[i].spans) for i in drawn_)
    # Binomial: half of 4000 has a deviation of 32, a quarter one of 27.
    assert abs(lengths[0] - 2000) < 160
    assert abs(lengths[1] - 1000) < 140
    assert abs(lengths[3] - 1000) < 140
    assert all(sentences[i].spans for i in shape.balanced(sentences, 50, 0, positive=1.0))
    assert len(shape.balanced(sentences[:80], 10, 0)) == 10, "no spans at all: empty ones"
    with pytest.raises(ValueError, match="do not occur"):
        shape.balanced(sentences, 5, 0, target=(1, 1, 1, 0))
    with pytest.raises(ValueError, match="no sentences"):
        shape.balanced([], 5, 0)
