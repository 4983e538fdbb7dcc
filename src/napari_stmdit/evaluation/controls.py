"""Correlations with intervals, and the control that breaks the pairing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


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
