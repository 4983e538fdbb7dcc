"""Correlations and means with bootstrap intervals over pairs, and the control that breaks the pairing."""

from __future__ import annotations

import numpy as np

from napari_stmdit.evaluation.statistics import LEVEL, Interval

DRAWS = 2000
BOUNDS = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]


def correlate(a, b) -> float:
    """Pearson correlation of two (n,) arrays; nan where one is constant or n < 2."""
    x, y = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(f"two arrays of the same length were expected, got shapes {x.shape} and {y.shape}")
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    return float(np.corrcoef(x, y)[0, 1])


def bootstrap_correlation(a, b) -> Interval:
    """Correlate, with a percentile bootstrap over pairs; samples in which one side is constant are left out."""
    x, y = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    rng = np.random.default_rng(0)
    rows = (rng.integers(len(x), size=len(x)) for _ in range(DRAWS))
    return Interval.of(correlate(x, y), [correlate(x[row], y[row]) for row in rows], len(x))


def rounded(interval: Interval, digits: int = 3) -> list[float]:
    """Return value, low and high."""
    return [round(v, digits) for v in (interval.value, interval.low, interval.high)]


def mean_interval(values: np.ndarray, rng: np.random.Generator) -> Interval:
    """Return the mean of values (n,) with its interval over spots."""
    return Interval.of(
        values.mean(), values[rng.integers(len(values), size=(DRAWS, len(values)))].mean(axis=1), len(values)
    )


def permutation_interval(a, b) -> tuple[float, float]:
    """Return the interval in which the correlation of unrelated values of the same kind falls, from random pairings."""
    rng = np.random.default_rng(0)
    low, high = np.nanquantile([correlate(a, rng.permutation(b)) for _ in range(DRAWS)], BOUNDS)
    return float(low), float(high)
