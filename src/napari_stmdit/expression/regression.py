"""Ridge regression over the spots of sections, folds for its cross-validation, and units and samples of their values."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

FOLDS = 5
PENALTIES = np.logspace(-3, 3, 13)
"""Candidate ridge penalties per spot, for standardised expression."""


def evenly_spaced(count: int, most: int) -> NDArray[np.int64]:
    """Return at most ``most`` of ``count`` rows, evenly spaced."""
    return np.unique(np.linspace(0, count - 1, min(most, count)).round().astype(np.int64))


def spread_of(values: NDArray[np.floating], share: float = 1e-6) -> NDArray[np.floating]:
    """Return the standard deviation (d,) of values (n, d) as a unit; infinite below a share of the largest."""
    spread = values.std(axis=0)
    unit: NDArray[np.floating] = np.where(spread > share * max(float(spread.max()), 1e-30), spread, np.inf)
    return unit


def blocks_of(yx: NDArray[np.float64], count: int = FOLDS) -> NDArray[np.int64]:
    """Return the block, (n,), of each position: stripes of equally many spots across the longer axis of the tissue.

    Neighbouring patches share tissue and stain, so folds of scattered spots would leak.
    """
    axis = int(np.ptp(yx[:, 1]) > np.ptp(yx[:, 0]))
    rank = np.argsort(np.argsort(yx[:, axis], kind="stable"), kind="stable")
    return np.asarray(rank * count // len(yx), dtype=np.int64)


def compact_folds(yx: NDArray[np.float64], most: int = 16, count: int = FOLDS) -> NDArray[np.int64]:
    """Return the fold, (n,), of each position: blocks of at most ``most`` neighbouring spots, dealt to the folds in turn.

    Each fold has tissue from all over the section. Stripes (`blocks_of`) are a harder test.
    """
    blocks = [np.arange(len(yx))]
    while max(len(block) for block in blocks) > most:
        halves = []
        for block in blocks:
            axis = int(np.ptp(yx[block, 1]) > np.ptp(yx[block, 0]))
            halves += np.array_split(block[np.argsort(yx[block, axis], kind="stable")], 2)
        blocks = halves
    folds = np.zeros(len(yx), dtype=np.int64)
    for number, block in enumerate(blocks):
        folds[block] = number % count
    return folds


def centred(values: NDArray[np.float64], groups: NDArray[np.int64]) -> NDArray[np.float64]:
    """Subtract the mean of each section from values (n, ...)."""
    out = np.array(values, dtype=np.float64)
    for group in np.unique(groups):
        out[groups == group] -= out[groups == group].mean(axis=0)
    return out


def ridge_weights(
    x: NDArray[np.float64], y: NDArray[np.float64], penalties: Sequence[float] | NDArray[np.float64]
) -> list[NDArray[np.float64]]:
    """Return the ridge weights (d, g) of centred x (n, d) and y (n, g) for every penalty, all from one decomposition.

    Hastie, Tibshirani & Friedman 2009, The Elements of Statistical Learning, section 3.4.1.
    """
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    projected = u.T @ y
    return [vt.T @ ((s / (s**2 + penalty))[:, None] * projected) for penalty in penalties]
