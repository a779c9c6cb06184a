"""Metrics against scikit-learn and against their definitions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as peer

from zfu_lib.prediction import ctr_metrics as m

ROWS = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 8), st.integers(0, 3)), min_size=2, max_size=60)


def columns(rows):
    y, x, u = (np.array(column) for column in zip(*rows))
    return y, x / 8, u


@settings(max_examples=100, deadline=None)
@given(ROWS, st.integers(0, 100))
def test_auc_is_scikit_learns_with_ties_and_weights(rows, seed):
    y, x, _ = columns(rows)
    if len(set(y)) < 2:
        with pytest.raises(m.UndefinedMetric, match="all"):
            m.auc(y, x)
        return
    weights = np.random.default_rng(seed).integers(1, 5, len(y))
    assert m.auc(y, x) == pytest.approx(peer.roc_auc_score(y, x), abs=1e-12)
    assert m.auc(y, x, weights) == pytest.approx(peer.roc_auc_score(y, x, sample_weight=weights), abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(ROWS)
def test_gauc_is_the_weighted_mean_over_users(rows):
    y, x, u = columns(rows)
    both = [k for k in set(u) if len(set(y[u == k])) == 2]
    if not both:
        with pytest.raises(m.UndefinedMetric, match="none of"):
            m.gauc(y, x, u)
        return
    aucs, sizes = [peer.roc_auc_score(y[u == k], x[u == k]) for k in both], [(u == k).sum() for k in both]
    assert m.gauc(y, x, u) == pytest.approx(np.average(aucs, weights=sizes), abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(ROWS)
def test_logloss_is_scikit_learns_also_at_zero_and_one(rows):
    y, x, _ = columns(rows)
    assert m.logloss(y, x) == pytest.approx(peer.log_loss(y, x, labels=[0, 1]), rel=1e-9)


def test_expected_auc_is_what_drawn_labels_average_to():
    rng = np.random.default_rng(0)
    p = rng.beta(1, 3, 3000)
    other = p + rng.normal(0, 0.2, 3000)
    for scores in (None, other):
        drawn = [m.auc(rng.random(3000) < p, p if scores is None else scores) for _ in range(40)]
        # Standard error of the mean of 40 draws of about 0.009 each.
        assert m.expected_auc(p, scores) == pytest.approx(np.mean(drawn), abs=4 * 0.009 / 40**0.5)
    assert m.expected_auc(p) > m.expected_auc(p, other)
    assert m.expected_auc(np.array([0.0, 1.0, 0.0])) == 1
    assert m.expected_auc(np.full(50, 0.3)) == pytest.approx(0.5)
    with pytest.raises(m.UndefinedMetric):
        m.expected_auc(np.ones(3))


def test_evaluate_says_which_scenario_has_no_auc():
    y = np.array([1, 0, 1, 1, 0])
    found = m.evaluate(y, np.array([0.9, 0.1, 0.5, 0.6, 0.2]), np.array([0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 0]), 3)
    assert found.auc == 1
    assert found.scenarios[0].auc == 1
    assert found.scenarios[1].auc is None
    assert "all 2 rows are clicks" in found.scenarios[1].undefined[0]
    assert found.scenarios[2] is None
    assert found.mean_auc == 1
    with pytest.raises(m.UndefinedMetric, match="no scenario"):
        _ = m.evaluate(y[2:4], np.array([0.5, 0.6]), np.array([1, 1]), np.array([1, 1]), 2).mean_auc


@pytest.mark.parametrize(
    ("y", "x", "why"),
    [([0, 1], [0.1, np.nan], "row 1"), ([0, 2], [0.1, 0.2], "0 or 1"), ([0, 1], [0.1], "equal"), ([], [], "equal")],
)  # fmt: skip
def test_bad_input_is_refused(y, x, why):
    for metric in (m.auc, m.logloss):
        with pytest.raises(ValueError, match=why):
            metric(np.array(y), np.array(x))


def test_logits_are_not_probabilities():
    with pytest.raises(ValueError, match="sigmoid"):
        m.logloss(np.array([0, 1]), np.array([-2.0, 3.0]))


def test_bootstrap_pairs_the_models_and_resamples_users():
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(100), 20)
    p = rng.beta(1, 2, 2000)
    y = (rng.random(2000) < p).astype(int)
    assert not m.bootstrap_difference(y, p, p, users, resamples=20).any()
    worse = np.clip(p + rng.normal(0, 0.3, 2000), 0, 1)
    found = m.bootstrap_difference(y, p, worse, users, resamples=200)
    gap = m.auc(y, p) - m.auc(y, worse)
    assert np.quantile(found, 0.025) < gap < np.quantile(found, 0.975)
    assert np.quantile(found, 0.025) > 0
    unpaired = np.std([m.auc(*resampled(y, p, rng)) - m.auc(*resampled(y, worse, rng)) for _ in range(200)])
    assert found.std() < unpaired
    # One user: every draw is the same rows.
    assert np.ptp(m.bootstrap_difference(y, p, worse, np.zeros(2000), resamples=5)) < 1e-12


def resampled(y, x, rng):
    rows = rng.integers(0, len(y), len(y))
    return y[rows], x[rows]
