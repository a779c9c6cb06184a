"""AUC, GAUC and log loss, overall and by scenario, and what a difference between two models is worth.

Equal to scikit-learn's where scikit-learn has them; vectorised over users and resamples, which it has not.
An AUC of rows with one label only does not exist: it is an error, or ``None`` with a reason, never a number.

Shape letters: N rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


class UndefinedMetric(ValueError):
    """A metric that does not exist for these rows; the message says why."""


def _checked(labels_N: np.ndarray, scores_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    y, x = np.asarray(labels_N, dtype=float), np.asarray(scores_N, dtype=float)
    if y.ndim != 1 or y.shape != x.shape or not len(y):
        raise ValueError(f"labels and scores must be two lists of equal length, got shapes {y.shape} and {x.shape}")
    if bad := np.flatnonzero(~np.isfinite(x)).tolist():
        raise ValueError(f"{len(bad)} scores are not finite, the first in row {bad[0]}")
    if not np.isin(y, (0.0, 1.0)).all():
        raise ValueError("labels must be 0 or 1")
    return y, x


def auc(labels_N: np.ndarray, scores_N: np.ndarray, weights_N: np.ndarray | None = None) -> float:
    """Probability that a clicked row scores above one that was not, ties counting one half.

    Args:
        weights_N: how often each row counts.

    Raises:
        UndefinedMetric: only one label occurs.
        ValueError: different lengths, scores that are not finite, labels other than 0 and 1.
    """
    y, x = _checked(labels_N, scores_N)
    _, level = np.unique(x, return_inverse=True)
    return _auc_of_levels(y, level, np.ones_like(y) if weights_N is None else np.asarray(weights_N, dtype=float))


def _auc_of_levels(y: np.ndarray, level: np.ndarray, weight: np.ndarray) -> float:
    """AUC from the rank of each score among the distinct scores."""
    positive, negative = np.bincount(level, y * weight), np.bincount(level, (1 - y) * weight)
    if not (positive.sum() and negative.sum()):
        only = "clicks" if positive.sum() else "rows without a click"
        raise UndefinedMetric(f"AUC is undefined: all {len(y)} rows are {only}")
    below = np.cumsum(negative) - negative
    return float((positive * (below + negative / 2)).sum() / (positive.sum() * negative.sum()))


def gauc(labels_N: np.ndarray, scores_N: np.ndarray, users_N: np.ndarray) -> float:
    """Mean AUC within users, weighted by their rows; users with one label only are left out.

    Raises:
        UndefinedMetric: no user has both labels.
        ValueError: as :func:`auc`.
    """
    y, x = _checked(labels_N, scores_N)
    _, user = np.unique(np.asarray(users_N), return_inverse=True)
    if user.shape != y.shape:
        raise ValueError(f"users have shape {user.shape}, labels {y.shape}")
    order = np.lexsort((x, user))
    y, x, user = y[order], x[order], user[order]
    level = np.cumsum(np.r_[False, (user[1:] != user[:-1]) | (x[1:] != x[:-1])])
    positive, negative = np.bincount(level, y), np.bincount(level, 1 - y)
    owner = user[np.r_[True, level[1:] != level[:-1]]]
    clicks, others = np.bincount(owner, positive), np.bincount(owner, negative)
    below = np.cumsum(negative) - negative
    below -= (np.cumsum(others) - others)[owner]
    wins = np.bincount(owner, positive * (below + negative / 2))
    both = (clicks > 0) & (others > 0)
    if not both.any():
        raise UndefinedMetric(f"GAUC is undefined: none of {len(both)} users has rows with and without a click")
    rows = (clicks + others)[both]
    return float((wins[both] / (clicks * others)[both] * rows).sum() / rows.sum())


def logloss(labels_N: np.ndarray, probabilities_N: np.ndarray) -> float:
    """Mean negative log-likelihood in nats; probabilities are kept 2^-52 away from 0 and 1.

    Raises:
        ValueError: as :func:`auc`, or a probability outside [0, 1].
    """
    y, p = _checked(labels_N, probabilities_N)
    if p.min() < 0 or p.max() > 1:
        raise ValueError(f"probabilities lie in [{p.min():g}, {p.max():g}]: scores must go through a sigmoid first")
    p = np.clip(p, np.finfo(float).eps, 1 - np.finfo(float).eps)
    return float(-(y * np.log(p) + (1 - y) * np.log(1 - p)).mean())


def expected_auc(probabilities_N: np.ndarray, scores_N: np.ndarray | None = None) -> float:
    """AUC that scores reach in expectation when labels are drawn with these probabilities: with the probabilities
    themselves as scores (None) the Bayes-optimal AUC, which no model can exceed on average.

    Expected wins over expected pairs; for N in the thousands the ratio of expectations is the expectation.

    Raises:
        UndefinedMetric: labels that are certain and all the same.
    """
    p = np.asarray(probabilities_N, dtype=float)
    x = p if scores_N is None else np.asarray(scores_N, dtype=float)
    _, level = np.unique(x, return_inverse=True)
    positive, negative = np.bincount(level, p), np.bincount(level, 1 - p)
    same = np.bincount(level, p * (1 - p)).sum()  # a row is no pair with itself
    pairs = positive.sum() * negative.sum() - same
    if pairs <= 0:
        raise UndefinedMetric("expected AUC is undefined: the labels are certain and all the same")
    below = np.cumsum(negative) - negative
    wins = (positive * (below + negative / 2)).sum() - same / 2
    return float(wins / pairs)


@dataclass(frozen=True)
class Scores:
    """Metrics of a set of rows: ``auc``, ``gauc`` (None where undefined), ``logloss``; ``scenarios`` has one of these
    for each scenario; ``undefined`` says why a metric is None."""

    rows: int
    auc: float | None
    gauc: float | None
    logloss: float
    undefined: tuple[str, ...] = ()
    scenarios: tuple[Scores | None, ...] = ()

    @property
    def mean_auc(self) -> float:
        """Mean AUC over the scenarios that have one.

        Raises:
            UndefinedMetric: none has.
        """
        found = [s.auc for s in self.scenarios if s is not None and s.auc is not None]
        if not found:
            raise UndefinedMetric("no scenario has rows with and without a click")
        return float(np.mean(found))


def evaluate(
    labels_N: np.ndarray,
    probabilities_N: np.ndarray,
    users_N: np.ndarray,
    scenarios_N: np.ndarray | None = None,
    count: int = 0,
) -> Scores:
    """Metrics overall and, with ``scenarios_N``, in each of ``count`` scenarios (None for one without rows).

    Raises:
        ValueError: as :func:`auc`.
    """
    labels_N, probabilities_N, users_N = map(np.asarray, (labels_N, probabilities_N, users_N))
    undefined = []

    def attempt(metric: Callable[..., float], *arguments: np.ndarray) -> float | None:
        try:
            return metric(*arguments)
        except UndefinedMetric as error:
            undefined.append(str(error))
            return None

    found = (attempt(auc, labels_N, probabilities_N), attempt(gauc, labels_N, probabilities_N, users_N))
    parts: list[Scores | None] = []
    if scenarios_N is not None:
        for s in range(count):
            rows = np.flatnonzero(np.asarray(scenarios_N) == s)
            part = (labels_N[rows], probabilities_N[rows], users_N[rows])
            parts.append(evaluate(*part) if len(rows) else None)
    loss = logloss(labels_N, probabilities_N)
    return Scores(len(labels_N), *found, loss, tuple(undefined), tuple(parts))


def bootstrap_difference(
    labels_N: np.ndarray,
    a_N: np.ndarray,
    b_N: np.ndarray,
    users_N: np.ndarray,
    *,
    resamples: int = 500,
    seed: int = 0,
) -> np.ndarray:
    """AUC of scores ``a`` minus AUC of scores ``b`` on the same rows, with *users* drawn with replacement: [resamples].

    Users, not rows: rows of one user are not independent. Both models are read on the same draw. A draw with one label
    only is left out.

    Raises:
        ValueError, UndefinedMetric: as :func:`auc`.
    """
    y, a = _checked(labels_N, a_N)
    _, b = _checked(labels_N, b_N)
    auc(y, a)
    names, user = np.unique(np.asarray(users_N), return_inverse=True)
    levels = [np.unique(x, return_inverse=True)[1] for x in (a, b)]
    rng, found = np.random.default_rng(seed), []
    for _ in range(resamples):
        weight = np.bincount(rng.integers(0, len(names), len(names)), minlength=len(names))[user]
        if 0 < (y * weight).sum() < weight.sum():
            found.append(_auc_of_levels(y, levels[0], weight) - _auc_of_levels(y, levels[1], weight))
    return np.array(found)
