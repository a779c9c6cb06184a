"""Exact match and F1 against hand counts, McNemar and its power against statsmodels-free definitions."""

from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zfu_lib.reasoning import short_answers as score


@pytest.mark.parametrize(
    ("answer", "gold", "em", "released", "f1"),
    [
        ("The Alcorp", ["Alcorp"], 1, 0, 1),
        ("alcorp", ["Alcorp"], 1, 1, 1),
        ("Al corp", ["Alcorp"], 0, 1, 0),
        ("F.C. Porto", ["FC Porto"], 1, 0, 1),
        ("the cat sat", ["cat sat down"], 0, 0, 0.8),
        ("b", ["a", "b"], 1, 1, 1),
        ("cat cat", ["cat"], 0, 0, 2 / 3),
        ("No answer", ["unanswerable"], 1, 0, 1),
        ("", ["a"], 0, 0, 0),
        (None, ["a"], 0, 0, 0),
        (None, ["unanswerable"], 0, 0, 0),
        ("ﬁve", ["five"], 1, 0, 1),  # a ligature
    ],
)
def test_scores(answer, gold, em, released, f1):
    assert score.exact_match(answer, gold) == em
    assert score.exact_match_released(answer, gold) == released
    assert score.f1(answer, gold) == pytest.approx(f1)


words = st.lists(st.sampled_from(["ada", "bob", "1951", "the", "x."]), min_size=1, max_size=5).map(" ".join)


@settings(deadline=None)
@given(words, words)
def test_f1_is_symmetric_and_one_where_exact(a, b):
    assert score.f1(a, [b]) == pytest.approx(score.f1(b, [a]))
    assert 0 <= score.f1(a, [b]) <= 1
    assert score.exact_match(a, [b]) <= score.f1(a, [b])


@pytest.mark.parametrize("rule", [score.exact_match, score.f1, score.same_month, score.exact_match_released])
def test_gold_answers_are_needed(rule):
    with pytest.raises(ValueError, match="gold answers"):
        rule("a", [])
    with pytest.raises(ValueError, match="gold answers"):
        rule("a", "a")


def test_dates_and_numbers():
    assert score.same_month("in October 1096", ["Oct, 1096"]) == 1
    assert score.same_month("1096", ["Oct, 1096"]) == 0
    assert score.same_month("never", ["Oct, 1096"]) == 0
    assert score.number_error("8 years", "10") == pytest.approx(0.2)
    assert score.number_error("0", "0") == 0
    assert score.number_error(None, "10") == 1
    with pytest.raises(ValueError, match="no number"):
        score.number_error("1", "none")


@settings(deadline=None)
@given(st.integers(0, 12), st.integers(0, 12))
def test_mcnemar_is_the_exact_sign_test(won, lost):
    a = [1] * won + [0] * lost + [1, 0]
    b = [0] * won + [1] * lost + [1, 0]
    n, k = won + lost, min(won, lost)
    wanted = 1.0 if n == 0 else min(1.0, 2 * sum(comb(n, i) for i in range(k + 1)) / 2**n)
    assert score.mcnemar(a, b) == pytest.approx(wanted)
    assert score.mcnemar(a, b) == pytest.approx(score.mcnemar(b, a))


def test_mcnemar_refuses_other_scores():
    with pytest.raises(ValueError, match="0 and 1"):
        score.mcnemar([0.5], [1])
    with pytest.raises(ValueError, match="0 and 1"):
        score.mcnemar([1, 0], [1])


def test_so_many_questions_do_find_the_difference():
    n = score.questions_needed(0.05, 0.2)
    rng, found = np.random.default_rng(0), 0
    for _ in range(400):
        kinds = rng.choice(3, n, p=(0.125, 0.075, 0.8))  # a alone right, b alone right, the same
        found += score.mcnemar(kinds == 0, kinds == 1) < 0.05
    assert found / 400 == pytest.approx(0.8, abs=0.06)  # three standard errors


@pytest.mark.parametrize(("effect", "differ"), [(0.0, 0.1), (0.2, 0.1), (0.1, 1.1)])
def test_power_out_of_range_is_refused(effect, differ):
    with pytest.raises(ValueError, match="discordant"):
        score.questions_needed(effect, differ)
