"""Intervals. A stochastic number is shown with one, and a verdict is decided by one.

Seeds are few (3 to 10), so intervals over seeds are Student-t; differences between two arms are taken seed by seed
first (both arms saw the same data order), which removes what the seed does to both. Per-item scores are many, so
their interval is a percentile bootstrap over items.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

CONFIDENCE = 0.95


class Interval(NamedTuple):
    """``mean`` with its two-sided 95% interval ``[low, high]``; ``detectable`` is the smallest true difference from a
    threshold that this sample size and spread would find with 80% power (None where nothing is random)."""

    mean: float
    low: float
    high: float
    n: int
    method: str
    detectable: float | None = None


def exact(value: float) -> Interval:
    """A number with nothing random in it."""
    return Interval(float(value), float(value), float(value), 1, "exact")


def over_seeds(values: Sequence[float], method: str = "t over seeds") -> Interval:
    """Student-t interval of the mean of ``values``, one number per seed.

    Raises:
        ValueError: fewer than two values, or one that is not finite. A diverged run is a result to report as such
            (count it), not to average away.
    """
    from scipy import stats  # here: reading a record needs none of it, and it takes most of a second

    x = np.asarray(values, dtype=float)
    if x.ndim != 1 or len(x) < 2:
        raise ValueError(f"an interval over seeds needs at least 2 numbers, got shape {x.shape}")
    if not np.isfinite(x).all():
        raise ValueError(f"not finite: {x.tolist()}; count diverged runs instead of averaging them")
    n, df = len(x), len(x) - 1
    standard_error = x.std(ddof=1) / np.sqrt(n)
    half = stats.t.ppf(0.5 + CONFIDENCE / 2, df) * standard_error
    detectable = (stats.t.ppf(0.5 + CONFIDENCE / 2, df) + stats.t.ppf(0.8, df)) * standard_error
    return Interval(x.mean(), x.mean() - half, x.mean() + half, n, method, detectable)


def paired(a: Sequence[float], b: Sequence[float]) -> Interval:
    """Interval of the mean of ``a - b``, paired seed by seed.

    Raises:
        ValueError: different lengths (pairs must share a seed), or as :func:`over_seeds`.
    """
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if a.shape != b.shape:
        raise ValueError(f"paired samples need the same seeds: {a.shape} against {b.shape}")
    return over_seeds(a - b, "paired t over seeds")


def over_items(values: Sequence[float], *, resamples: int = 2000, seed: int = 0) -> Interval:
    """Percentile bootstrap interval of the mean of per-item scores.

    Raises:
        ValueError: no items, or a score that is not finite.
    """
    from scipy import stats

    x = np.asarray(values, dtype=float)
    if x.ndim != 1 or not len(x) or not np.isfinite(x).all():
        raise ValueError(f"a bootstrap needs a non-empty list of finite scores, got shape {x.shape}")
    draws = np.random.default_rng(seed).integers(0, len(x), (resamples, len(x)))
    means = x[draws].mean(axis=1)
    low, high = np.quantile(means, [0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2])
    detectable = (stats.norm.ppf(0.5 + CONFIDENCE / 2) + stats.norm.ppf(0.8)) * means.std()
    return Interval(x.mean(), low, high, len(x), "bootstrap over items", detectable)


def proportion(successes: int, n: int) -> Interval:
    """Exact (Clopper-Pearson) interval of a proportion; it stays wide where all of few items succeed.

    Raises:
        ValueError: no items, or more successes than items.
    """
    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"{successes} successes of {n} items")
    from scipy import stats

    low, high = stats.binomtest(int(successes), int(n)).proportion_ci(CONFIDENCE, method="exact")
    mean = successes / n
    # Against the hardest proportion, one half: an upper bound where the outcome is near 0 or 1.
    detectable = (stats.norm.ppf(0.5 + CONFIDENCE / 2) + stats.norm.ppf(0.8)) * np.sqrt(0.25 / n)
    return Interval(mean, float(low), float(high), int(n), "exact binomial over items", float(detectable))


def crossed(values: Sequence[float] | np.ndarray, *, resamples: int = 1000, seed: int = 0) -> Interval:
    """Percentile bootstrap of the mean over items and seeds: both are resampled, since both were drawn.

    Args:
        values: [items], or [seeds, items] where every seed judges the same items.

    Raises:
        ValueError: nothing, or a value that is not finite.
    """
    x = np.atleast_2d(np.asarray(values, dtype=float))
    if len(x) == 1:
        return over_items(x[0], resamples=resamples, seed=seed)
    if x.ndim != 2 or not x.size or not np.isfinite(x).all():
        raise ValueError(f"a bootstrap needs finite values [items] or [seeds, items], got shape {x.shape}")
    from scipy import stats

    rng, (seeds, items) = np.random.default_rng(seed), x.shape
    means = np.empty(resamples)
    for i in range(resamples):
        means[i] = x[rng.integers(0, seeds, seeds)].mean(axis=0)[rng.integers(0, items, items)].mean()
    low, high = np.quantile(means, [0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2])
    detectable = (stats.norm.ppf(0.5 + CONFIDENCE / 2) + stats.norm.ppf(0.8)) * means.std()
    return Interval(x.mean(), low, high, items, "bootstrap over items and seeds", detectable)
