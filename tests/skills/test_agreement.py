"""Agreement: against scikit-learn, against brute force, in limiting cases."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from zfu_lib.skills import agreement
from zfu_lib.skills.spans import Sentence, Span, SpanError

labelled = st.lists(st.integers(0, 3), min_size=2, max_size=40)


@given(labelled, st.integers(0, 99))
def test_kappa_equals_scikit_learn(a, seed):
    b = np.random.default_rng(seed).permutation(a)
    table = agreement.confusion(np.array(a), b, 4)
    ours = float(agreement.cohen_kappa(table))
    if len(set(a)) > 1:
        assert ours == pytest.approx(cohen_kappa_score(a, b))
    else:
        assert ours == 1.0, "both always say the same"


def brute_alpha(coders):
    """Krippendorff's alpha by its definition: pairs within items against pairs of all values."""
    items = list(zip(*coders, strict=True))
    m = len(coders)
    observed = np.mean([np.mean([x != y for x, y in permutations(item, 2)]) for item in items])
    values = [v for item in items for v in item]
    expected = np.mean([x != y for x, y in permutations(values, 2)])
    assert m > 1
    return 1 - observed / expected if expected else 1.0


@settings(max_examples=50)
@given(st.integers(2, 4), st.integers(1, 12), st.integers(0, 999))
def test_alpha_equals_its_definition(m, n, seed):
    coders = np.random.default_rng(seed).integers(0, 3, (m, n))
    assert float(agreement.krippendorff_alpha(agreement.coincidence(coders, 3))) == pytest.approx(brute_alpha(coders))


def test_fleiss_kappa_on_the_worked_example_of_its_paper():
    """Ten subjects, fourteen raters, five categories (Fleiss 1971's table as Wikipedia prints it): 0.210."""
    table = [
        [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1], [7, 7, 0, 0, 0],
        [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
    ]  # fmt: skip
    assert agreement.fleiss_kappa(np.array(table)) == pytest.approx(0.210, abs=5e-4)
    with pytest.raises(ValueError, match="same number"):
        agreement.fleiss_kappa(np.array([[1, 1], [2, 1]]))


def texts(*layers):
    found = [Sentence.of_characters("编制年度预算和报表", id=f"synth_{i}") for i in range(len(layers[0]))]
    return found, [[[Span(*x) for x in spans] for spans in layer] for layer in layers]


def test_one_is_one_and_order_does_not_matter():
    sentences, (a, b) = texts([[(0, 4, "S")], []], [[(0, 4, "S")], []])
    made = agreement.report(sentences, [a, b], resamples=50)
    assert made.strict == made.kappa == made.alpha == made.kappa_marked == (1.0, 1.0, 1.0)
    assert (made.fleiss, made.identical, made.empty) == (1.0, 1.0, 0.5)
    sentences, (a, b) = texts([[(0, 4, "S")], [(0, 2, "K")]], [[(0, 6, "S")], [(0, 2, "S")]])
    one, two = (agreement.report(sentences, x, resamples=20) for x in ([a, b], [b, a]))
    assert one.strict == two.strict
    assert one.alpha == two.alpha


def test_each_figure_sees_what_it_should():
    """One span with another edge, one with another type: exact 0, edges-only 1/2, relaxed 1/2."""
    sentences, (a, b) = texts([[(0, 4, "S")], [(0, 2, "K")]], [[(0, 5, "S")], [(0, 2, "S")]])
    made = agreement.report(sentences, [a, b], resamples=0)
    assert (made.strict.value, made.boundary.value, made.relaxed.value) == (0.0, 0.5, 0.5)
    assert agreement.split_of(a, b) == {"same": 0, "type": 2, "boundary": 2, "scope": 0}


def test_joint_silence_raises_kappa_and_not_f1():
    few, (a, b) = texts([[(0, 2, "S")]], [[(0, 3, "S")]])
    many, (c, d) = texts([[(0, 2, "S")], *[[]] * 9], [[(0, 3, "S")], *[[]] * 9])
    short, long = agreement.report(few, [a, b], resamples=0), agreement.report(many, [c, d], resamples=0)
    assert long.kappa.value > short.kappa.value
    assert long.strict.value == short.strict.value
    assert long.kappa_marked.value == short.kappa_marked.value


def test_intervals_cover_and_narrow():
    rng = np.random.default_rng(0)
    layers = [[[(0, 4, "S")] if rng.random() < 0.7 else [] for _ in range(300)] for _ in range(2)]
    sentences, coders = texts(*layers)
    wide = agreement.report(sentences[:50], [c[:50] for c in coders])
    narrow = agreement.report(sentences, coders)
    assert wide.strict.low <= wide.strict.value <= wide.strict.high
    assert narrow.strict.high - narrow.strict.low < wide.strict.high - wide.strict.low


def test_bad_input_is_refused():
    sentences, (a, b) = texts([[(0, 4, "S")], []], [[(0, 4, "S")], []])
    with pytest.raises(ValueError, match="two coders"):
        agreement.report(sentences, [a])
    with pytest.raises(ValueError, match="one sentence"):
        agreement.report([], [[], []])
    with pytest.raises(ValueError, match="1 sentences of 2"):
        agreement.report(sentences, [a, b[:1]])
    with pytest.raises(SpanError, match="not coded"):
        agreement.report(sentences, [a, [b[0], None]])
    with pytest.raises(SpanError, match="overlap"):
        agreement.report(sentences, [a, [[Span(0, 4, "S"), Span(2, 5, "K")], []]])
