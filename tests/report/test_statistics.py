import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from zfu_lib.report import statistics

finite = st.floats(-1e3, 1e3)


@given(st.lists(finite, min_size=2, max_size=12))
def test_t_interval_is_scipys(values: list[float]) -> None:
    found = statistics.over_seeds(values)
    if np.ptp(values) > 1e-6:
        expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-9, abs=1e-9)
    assert found.mean == pytest.approx(np.mean(values))


@given(st.lists(st.tuples(finite, finite), min_size=2, max_size=12))
def test_paired_interval_is_scipys(pairs: list[tuple[float, float]]) -> None:
    a, b = (list(side) for side in zip(*pairs, strict=True))
    found = statistics.paired(a, b)
    if np.ptp(np.subtract(a, b)) > 1e-6:
        expected = stats.ttest_rel(a, b).confidence_interval(0.95)
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-6, abs=1e-6)


def test_pairing_removes_what_the_seed_does_to_both() -> None:
    seeds = np.array([0.0, 10.0, 20.0])
    assert statistics.paired(seeds + [1.0, 1.1, 0.9], seeds).low > 0
    assert statistics.over_seeds(seeds + 1).low < 0


def test_detectable_effect_by_hand() -> None:
    # n = 4, standard deviation 2, so the standard error is 1; t quantiles with 3 degrees of freedom: 3.1824, 0.9785.
    values = np.array([-1, -1, 1, 1]) * 2 / np.std([-1, -1, 1, 1], ddof=1)
    assert statistics.over_seeds(values).detectable == pytest.approx(3.1824 + 0.9785, abs=1e-3)


def test_detectable_effect_is_found_four_times_of_five() -> None:
    # By simulation: a true effect of that size is outside the threshold in about 80% of samples (normal theory's
    # shortcut is a little optimistic for few seeds, hence the wide band).
    rng = np.random.default_rng(0)
    n, found = 10, 0
    effect = (stats.t.ppf(0.975, n - 1) + stats.t.ppf(0.8, n - 1)) / math.sqrt(n)
    for _ in range(2000):
        found += statistics.over_seeds(rng.normal(effect, 1, n)).low > 0
    assert 0.74 < found / 2000 < 0.86


def test_bootstrap_agrees_with_scipys() -> None:
    scores = np.random.default_rng(3).random(400) < 0.3
    found = statistics.over_items(scores)
    expected = stats.bootstrap((scores.astype(float),), np.mean, method="percentile", rng=np.random.default_rng(1))
    assert found.low == pytest.approx(expected.confidence_interval.low, abs=0.006)
    assert found.high == pytest.approx(expected.confidence_interval.high, abs=0.006)
    assert found == statistics.over_items(scores), "the same data give the same interval"


@pytest.mark.parametrize("values", [[1.0], [], [[1.0, 2.0]], [1.0, math.nan], [1.0, math.inf]])
def test_refuses_what_has_no_interval(values: list) -> None:
    with pytest.raises(ValueError):
        statistics.over_seeds(values)


def test_pairs_need_the_same_seeds() -> None:
    with pytest.raises(ValueError, match="same seeds"):
        statistics.paired([1.0, 2.0], [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="bootstrap"):
        statistics.over_items([])


def test_exact_has_no_width() -> None:
    assert statistics.exact(3)[:4] == (3.0, 3.0, 3.0, 1)


def test_proportion_is_clopper_pearson():
    # Rule of three: none of n failed leaves up to about 3.7/n (two-sided 95%) unseen.
    found = statistics.proportion(100, 100)
    assert found.mean == found.high == 1
    assert found.low == pytest.approx(0.025 ** (1 / 100))
    half = statistics.proportion(50, 100)
    assert (half.low, half.high) == pytest.approx((0.3983, 0.6017), abs=1e-4)


@pytest.mark.parametrize(("successes", "n"), [(3, 2), (-1, 5), (0, 0)])
def test_proportion_refuses_what_cannot_be(successes, n):
    with pytest.raises(ValueError, match="successes of"):
        statistics.proportion(successes, n)


def test_crossed_is_the_item_bootstrap_for_one_seed_and_wider_where_seeds_differ() -> None:
    items = np.random.default_rng(0).normal(0, 1, 300)
    assert statistics.crossed(items) == statistics.over_items(items, resamples=1000)
    same, other = statistics.crossed([items] * 3), statistics.crossed([items - 1, items, items + 1])
    assert (same.high - same.low) == pytest.approx(4 * items.std() / math.sqrt(300), rel=0.1)
    assert other.mean == pytest.approx(same.mean)
    assert other.high - other.low > 3 * (same.high - same.low)
    with pytest.raises(ValueError, match="finite"):
        statistics.crossed([[1.0, math.nan], [1.0, 2.0]])
