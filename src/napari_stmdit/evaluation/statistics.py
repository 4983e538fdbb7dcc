"""Intervals by resampling spots: of means, of correlations, and of their differences between cases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

DRAWS = 1000
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A value with its bootstrap interval, from ``n`` spots; nan where it cannot be told."""

    value: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, value: float, draws: ArrayLike, n: int, level: float = LEVEL) -> Interval:
        """Return the percentile interval of bootstrap draws (Efron & Tibshirani 1993, chapter 13)."""
        finite = np.asarray(draws, dtype=float)
        finite = finite[np.isfinite(finite)]
        if not len(finite):
            return cls(float(value), float("nan"), float("nan"), n)
        low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
        return cls(float(value), float(low), float(high), n)

    @classmethod
    def about(cls, value: float, draws: ArrayLike, n: int, level: float = LEVEL) -> Interval:
        """Return the spread of the draws about their own mean, put around the value.

        For distances between distributions: a sample drawn with replacement repeats itself, which alone raises the distance.
        """
        spread = np.asarray(draws, dtype=float)
        return cls.of(value, value + spread - spread.mean(), n, level)

    @property
    def facts(self) -> dict[str, Any]:
        """JSON types alone; null for what cannot be told."""
        values = {"value": self.value, "low": self.low, "high": self.high}
        return {name: round(v, 5) if np.isfinite(v) else None for name, v in values.items()} | {"n": self.n}


def mean_interval(
    values: NDArray[np.float64], rng: np.random.Generator, draws: int = 2000
) -> tuple[float, float, float]:
    """Return mean, and its 95 % bootstrap interval over spots, of values (n,)."""
    found = values[rng.integers(len(values), size=(draws, len(values)))].mean(axis=1)
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(values.mean()), float(low), float(high)


def spot_weights(groups: NDArray[np.int64], draws: int = DRAWS, seed: int = 0) -> NDArray[np.float64]:
    """Return how often each spot is drawn in each bootstrap sample, (draws, n); each section keeps its number of spots.

    Parameters
    ----------
    groups
        (n,) number of the section of each spot.
    draws
        Bootstrap samples.
    seed
        Source of chance. All measures of an evaluation take the same samples, so that their differences are paired.
    """
    rng = np.random.default_rng(seed)
    weights = np.zeros((draws, len(groups)))
    for group in np.unique(groups):
        rows = np.flatnonzero(groups == group)
        weights[:, rows] = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=draws)
    return weights


def weighted_correlations(
    a: NDArray[np.float64], b: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Pearson correlation of each column of two (n, k) arrays under each row of weights (m, n): (m, k).

    A column in which one side is constant tells nothing: its correlation counts as 0.
    """
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)  # keeps the sums below small
    share = weights / weights.sum(axis=1, keepdims=True)
    mean_a, mean_b = share @ a, share @ b
    var_a, var_b = share @ a**2 - mean_a**2, share @ b**2 - mean_b**2
    covariance = share @ (a * b) - mean_a * mean_b
    known = (var_a > 1e-12 * (1 + mean_a**2)) & (var_b > 1e-12 * (1 + mean_b**2))
    with np.errstate(invalid="ignore", divide="ignore"):
        r = covariance / np.sqrt(var_a * var_b)
    return np.where(known, np.clip(r, -1, 1), 0.0)


def correlation_draws(
    a: NDArray[np.float64], b: NDArray[np.float64], weights: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the correlations (k,) of the columns of two (n, k) arrays, and those of every bootstrap sample, (draws, k)."""
    whole = weighted_correlations(a, b, np.ones((1, len(a))))[0]
    return whole, weighted_correlations(a, b, weights)


def mean_draws(values: NDArray[np.float64], weights: NDArray[np.float64]) -> Interval:
    """Return the mean of values (n,), with its interval from bootstrap weights (draws, n); nan counts as missing."""
    known = np.isfinite(values)
    if not known.any():
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    used = weights[:, known]
    totals = used.sum(axis=1)
    draws = (used @ values[known])[totals > 0] / totals[totals > 0]
    return Interval.of(float(values[known].mean()), draws, int(known.sum()))


# Correlations with intervals, and the control that breaks the pairing.


@dataclass(frozen=True)
class Correlation:
    """Pearson correlation with its bootstrap interval.

    Attributes
    ----------
    r
        The correlation; nan where one side is constant.
    low, high
        Bounds of the interval.
    n
        Number of pairs.
    """

    r: float
    low: float
    high: float
    n: int


def correlate(a: ArrayLike, b: ArrayLike) -> float:
    """Pearson correlation of two (n,) arrays; nan where one is constant or n < 2."""
    x, y = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(f"two arrays of the same length were expected, got shapes {x.shape} and {y.shape}")
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    return float(np.corrcoef(x, y)[0, 1])


def bootstrap_correlation(
    a: ArrayLike, b: ArrayLike, *, draws: int = 2000, level: float = 0.95, seed: int = 0
) -> Correlation:
    """Correlate, with a percentile bootstrap over pairs (Efron & Tibshirani 1993, An Introduction to the Bootstrap, chapter 13).

    Parameters
    ----------
    a, b
        (n,) values, paired.
    draws
        Bootstrap samples; those in which one side is constant are left out.
    level
        Coverage of the interval.
    seed
        Source of chance.
    """
    x, y = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    r = correlate(x, y)
    rng = np.random.default_rng(seed)
    rows = (rng.integers(len(x), size=len(x)) for _ in range(draws))
    values = [value for row in rows if np.isfinite(value := correlate(x[row], y[row]))]
    if not values:
        return Correlation(r, float("nan"), float("nan"), len(x))
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Correlation(r, float(low), float(high), len(x))


def shuffle_within(count: int, seed: int) -> NDArray[np.int64]:
    """Return a random permutation of ``count`` rows in which no row keeps its place: pairs are broken, the values stay the same.

    Rows are put on one random cycle and moved on by one.
    """
    if count < 2:
        raise ValueError(f"at least 2 rows are needed to break their pairing, got {count}")
    order = np.random.default_rng(seed).permutation(count)
    other = np.empty(count, dtype=np.int64)
    other[order] = np.roll(order, 1)
    return other


def permutation_interval(
    a: ArrayLike, b: ArrayLike, *, draws: int = 2000, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Return the interval in which the correlation of unrelated values of the same kind falls, from random pairings."""
    x, y = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    rng = np.random.default_rng(seed)
    values = [correlate(x, rng.permutation(y)) for _ in range(draws)]
    low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
