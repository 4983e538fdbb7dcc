"""Distances between the distributions of two sets of feature vectors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

COMPONENTS = 32
RIDGE = 1e-4
"""Added to the diagonal of a covariance, so that few samples do not make it singular."""


@dataclass(frozen=True)
class Frame:
    """Standardised principal components of a reference set: ``mean`` (d,) and ``axes`` (d, k)."""

    mean: NDArray[np.float64]
    axes: NDArray[np.float64]

    @classmethod
    def of(cls, reference: NDArray[np.float64], components: int = COMPONENTS) -> Frame:
        """Fit to reference features (n, d): each feature divided by its spread, then the leading principal axes."""
        mean, spread = reference.mean(axis=0), reference.std(axis=0) + 1e-6
        _, _, axes = np.linalg.svd((reference - mean) / spread, full_matrices=False)
        return cls(mean, axes[:components].T / spread[:, None])

    def project(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n, d) features -> (n, k) coordinates."""
        return (features - self.mean) @ self.axes


def frechet_distance(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Squared Frechet distance between normal distributions fitted to two sets (n, k) and (m, k).

    |mean difference|^2 + trace(A + B - 2 (A B)^(1/2)); Dowson & Landau 1982, J. Multivar. Anal. 12:450-455, as used for images by
    Heusel et al. 2017, arXiv 1706.08500. It grows as samples get fewer: compare equal numbers only.

    Raises
    ------
    ValueError
        The sets have different widths, or fewer than two samples.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(f"two sets (n, k) of at least 2 samples and one width were expected, got {a.shape}, {b.shape}")
    ridge = RIDGE * np.eye(a.shape[1])
    first, second = np.atleast_2d(np.cov(a.T)) + ridge, np.atleast_2d(np.cov(b.T)) + ridge
    # the eigenvalues of A B are those of the symmetric A^(1/2) B A^(1/2): no complex square root is needed
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    overlap = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ second @ root), 0)).sum()
    shift = a.mean(axis=0) - b.mean(axis=0)
    return float(max(0.0, shift @ shift + np.trace(first) + np.trace(second) - 2 * overlap))
