"""Normalised expression: natural logarithm of one plus counts per 10,000."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

PER = 1e4
"""Counts that each spot is scaled to."""


def cp10k_log1p(counts: NDArray[Any], totals: NDArray[Any] | float) -> NDArray[Any]:
    """Return log(1 + counts per 10,000) of dense counts, totals being broadcast against them; precision is kept."""
    levels: NDArray[Any] = np.log1p(counts * (PER / totals))
    return levels


def sparse_cp10k_log1p(counts: csr_matrix, totals: NDArray[Any]) -> csr_matrix:
    """Return log(1 + counts per 10,000) of (n, g) sparse counts, with the totals (n,) of their rows."""
    levels = counts.multiply((PER / totals)[:, None]).tocsr()
    levels.data = np.log1p(levels.data)
    return levels


def counts_from(levels: NDArray[Any], totals: NDArray[Any] | float) -> NDArray[Any]:
    """Return the counts that log(1 + counts per 10,000) stands for: the inverse of `cp10k_log1p`."""
    counts: NDArray[Any] = np.expm1(levels) * (totals / PER)
    return counts


def totals_of(counts: csr_matrix) -> NDArray[np.float32]:
    """Return the total of each row, (n,), at least 1: an empty spot keeps its zeros."""
    return np.maximum(np.asarray(counts.sum(axis=1), dtype=np.float32).ravel(), 1.0)
