"""Distances between the distributions of two sets of feature vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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


def polynomial_kernel(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, d), (m, d) -> (n, m): (a b / d + 1)^3, the kernel of the Kernel Inception Distance (Binkowski et al. 2018, arXiv 1801.01401)."""
    kernel: NDArray[np.float64] = (a @ b.T / a.shape[1] + 1) ** 3
    return kernel


def kernel_distance(a: NDArray[np.float64], b: NDArray[np.float64], paired: bool = False) -> float:
    """Squared maximum mean discrepancy of two sets (n, d) and (m, d) under the polynomial kernel, unbiased: it may fall below 0.

    Gretton et al. 2012, J. Mach. Learn. Res. 13:723-773, lemma 6.

    Parameters
    ----------
    a, b
        Features.
    paired
        Whether row i of both belongs to one spot. The two are then not independent, and the pairs of a spot with itself are left out
        (their equation 4); a set compared with itself is then at exactly 0.

    Raises
    ------
    ValueError
        The sets have different widths, fewer than two samples, or are paired and of different size.
    """
    _check_sets(a, b, paired)
    ones = np.ones((1, len(a))), np.ones((1, len(b)))
    return float(_kernel_distances(a, b, ones[0], ones[1], paired)[0])


def kernel_distance_draws(
    a: NDArray[np.float64], b: NDArray[np.float64], weights: NDArray[np.float64], paired: bool = True
) -> NDArray[np.float64]:
    """Return `kernel_distance` of every bootstrap sample of the spots, (draws,), both sets being drawn together.

    A spot is never compared with its own copy in a sample, so that repeats do not make a set look alike.
    """
    _check_sets(a, b, paired)
    return _kernel_distances(a, b, weights, weights, paired)


def _check_sets(a: NDArray[np.float64], b: NDArray[np.float64], paired: bool) -> None:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(f"two sets (n, d) of at least 2 samples and one width were expected, got {a.shape}, {b.shape}")
    if paired and len(a) != len(b):
        raise ValueError(f"paired sets have one row a spot, got {len(a)} and {len(b)} rows")


def _kernel_distances(
    a: NDArray[np.float64], b: NDArray[np.float64], u: NDArray[np.float64], v: NDArray[np.float64], paired: bool
) -> NDArray[np.float64]:
    """Mean kernel within both sets minus twice that across, under each row of weights u (draws, n) and v (draws, m)."""

    def mean(
        kernel: NDArray[np.float64], p: NDArray[np.float64], q: NDArray[np.float64], without_diagonal: bool
    ) -> Any:
        total, norm = ((p @ kernel) * q).sum(axis=1), p.sum(axis=1) * q.sum(axis=1)
        if without_diagonal:
            total, norm = total - (p * q) @ np.diag(kernel), norm - (p * q).sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            return total / norm

    within = mean(polynomial_kernel(a, a), u, u, True) + mean(polynomial_kernel(b, b), v, v, True)
    found: NDArray[np.float64] = within - 2 * mean(polynomial_kernel(a, b), u, v, paired)
    return found
