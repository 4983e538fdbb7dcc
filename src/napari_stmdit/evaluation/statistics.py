"""Bootstrap intervals over spots: of means, of correlations, and of any statistic of drawn rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

DRAWS = 1000
LEVEL = 0.95

Array = NDArray[np.float64]
Rows = NDArray[np.int64]


class IntervalFacts(TypedDict):
    """JSON of an `Interval`."""

    value: float | None
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class Interval:
    """Value with its bootstrap interval from ``n`` spots; nan where it is not known."""

    value: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, value: float, draws: ArrayLike, n: int) -> Interval:
        """Return the percentile interval of bootstrap draws (Efron & Tibshirani 1993, chapter 13); one spot has none."""
        finite = np.asarray(draws, dtype=float)
        finite = finite[np.isfinite(finite)]
        if not len(finite) or n < 2:
            return cls(float(value), float("nan"), float("nan"), n)
        low, high = np.quantile(finite, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return cls(float(value), float(low), float(high), n)

    @classmethod
    def about(cls, value: float, draws: ArrayLike, n: int) -> Interval:
        """Return the spread of the draws about their own mean, centred on the value.

        For distances between distributions: sampling with replacement repeats spots, which alone raises the distance.
        """
        spread = np.asarray(draws, dtype=float)
        return cls.of(value, value + spread - spread.mean(), n)

    @property
    def facts(self) -> IntervalFacts:
        """The interval in JSON types; null for what is not known."""
        value, low, high = (round(v, 5) if np.isfinite(v) else None for v in (self.value, self.low, self.high))
        return {"value": value, "low": low, "high": high, "n": self.n}


def resampled(statistic: Callable[[Rows], float], n: int, draws: int, seed: int) -> Interval:
    """Return a statistic of n rows, with its bootstrap interval over the rows."""
    rng = np.random.default_rng(seed)
    return Interval.of(statistic(np.arange(n)), [statistic(rng.integers(0, n, n)) for _ in range(draws)], n)


def spot_weights(groups: NDArray[np.int64], draws: int = DRAWS, seed: int = 0) -> Array:
    """Return the counts of each spot in each bootstrap sample, (draws, n), stratified by section, ``groups`` (n,).

    All metrics of an evaluation share the samples, so that their differences are paired.
    """
    rng = np.random.default_rng(seed)
    weights = np.zeros((draws, len(groups)))
    for group in np.unique(groups):
        rows = np.flatnonzero(groups == group)
        weights[:, rows] = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=draws)
    return weights


def correlation_draws(a: Array, b: Array, weights: Array) -> tuple[Array, Array]:
    """Return the correlations (k,) of the columns of two (n, k) arrays, and those of every bootstrap sample, (draws, k)."""
    return _weighted_correlations(a, b, np.ones((1, len(a))))[0], _weighted_correlations(a, b, weights)


def _weighted_correlations(a: Array, b: Array, weights: Array) -> Array:
    """Return Pearson correlations of the columns of two (n, k) arrays under each row of weights (m, n): (m, k).

    A column that is constant on one side counts as 0.
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


def mean_draws(values: Array, weights: Array) -> Interval:
    """Return the mean of values (n,), with its interval from bootstrap weights (draws, n); nan counts as missing."""
    known = np.isfinite(values)
    if not known.any():
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    used = weights[:, known]
    totals = used.sum(axis=1)
    draws = (used @ values[known])[totals > 0] / totals[totals > 0]
    return Interval.of(float(values[known].mean()), draws, int(known.sum()))
