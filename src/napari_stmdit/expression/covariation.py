"""Covariation of genes in one section: a low-rank Gaussian of its smoothed log expression and relative depth.

It gives the mean change of all genes, and of depth, where some genes are changed: co-variation over the spots of this section, not cause.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.spatial import cKDTree

from ..types import SpotTable
from .normalise import sparse_cp10k_log1p, totals_of
from .regression import blocks_of, evenly_spaced

MIN_SPOTS, MIN_GENES = 50, 20
"""Minimum spots and genes of a section for an estimate of its covariation."""
RINGS = {1.0: 7, 2.0: 19}
"""Widths of the Gaussian that expression is smoothed by, in distances between neighbouring spots, with how many spots are averaged:
on a hexagonal grid a spot with one ring around it, and with two. Single spots are no choice: their noise hides what varies together."""
RANKS = (5, 10, 20, 40)
SHRINKAGES = (0.03, 0.1, 0.3)
"""Shrinkage candidates: shares of its own variance that a gene's noise is raised by."""
FACTOR_GENES = 1000
"""Number of most variable genes that the factors are computed from; every gene then gets its loadings."""
FIT_SPOTS = 2000
"""Maximum number of spots, evenly spaced over the table, in the estimate."""
GROUP, GROUPS = 10, 20
"""Cross-validation: genes in a group, which stands in for an edit, and number of groups."""
FOLDS = 4
COLUMNS = 512
"""Genes smoothed at once: smoothed expression is dense."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Settings:
    """Settings from cross-validation: smoothing width (`RINGS`), number of factors, shrinkage (`SHRINKAGES`)."""

    width: float
    rank: int
    shrinkage: float


@dataclass(frozen=True)
class Covariation:
    """Covariation of the g genes of a section over its n spots.

    Attributes
    ----------
    settings
        What cross-validation chose.
    explained
        Share of the variance of other genes' measured levels, in spots left out, that the mean of ten genes explains with these settings.
    levels
        (n, g) sparse log(1 + counts per 10,000) as measured.
    weights
        (n, n) sparse weights that smooth them; each row sums to one.
    loadings
        (g + 1, k) change of each smoothed gene, and at last of relative depth, with each of k independent factors of variance one.
    noise
        (g + 1,) variance that the factors do not explain, raised by the shrinkage.
    low, high
        (g + 1,) the range of each gene over the smoothed spots, and of relative depth over the spots as measured: it is not smoothed
        where it is changed.
    depth
        (n,) smoothed relative depth.
    variable
        (v,) columns of the genes that the factors are computed from.
    """

    settings: Settings
    explained: float
    levels: csr_matrix = field(repr=False)
    weights: csr_matrix = field(repr=False)
    loadings: Array = field(repr=False)
    noise: Array = field(repr=False)
    low: Array = field(repr=False)
    high: Array = field(repr=False)
    depth: Array = field(repr=False)
    variable: NDArray[np.int64] = field(repr=False)

    def smoothed(self, rows: NDArray[np.int64], columns: NDArray[np.int64] | None = None) -> Array:
        """Return smoothed levels (rows, columns) of some spots and genes, of all genes without ``columns``."""
        levels = self.levels if columns is None else self.levels[:, columns]
        return np.asarray((self.weights[rows] @ levels).toarray(), dtype=np.float64)

    def scores(self, rows: NDArray[np.int64]) -> Array:
        """Return the factors (rows, k) of some spots, but for a constant."""
        own = self.loadings[self.variable]
        return np.asarray(self.smoothed(rows, self.variable) @ own @ np.linalg.pinv(own.T @ own))

    def factors(self, change: Array, columns: NDArray[np.int64]) -> Array:
        """Return the change (n, k) of each factor that goes with a change (n, columns) of some genes."""
        # the conditional mean given the place along the direction of the whole change, not given each gene by itself:
        # one edit or two then make no difference, and twice the change has twice the effect
        along = change @ self.loadings[columns]
        variance = (along**2).sum(axis=1) + (change**2) @ self.noise[columns]
        share = (change**2).sum(axis=1) / np.maximum(variance, 1e-12)
        return np.asarray(along * share[:, None])


def covariation_of(spots: SpotTable) -> Covariation | None:
    """Return the covariation of a section, estimated once and kept with its table.

    None with fewer than `MIN_SPOTS` spots or `MIN_GENES` genes.
    """
    kept = vars(spots)
    if "covariation" not in kept:  # a table is frozen, so what is found in it stays true
        enough = len(spots) >= MIN_SPOTS and len(spots.genes) >= MIN_GENES
        kept["covariation"] = _fit(spots) if enough else None
    found: Covariation | None = kept["covariation"]
    return found


def _fit(spots: SpotTable) -> Covariation:
    counts = spots.counts.astype(np.float32)
    levels = sparse_cp10k_log1p(counts, totals_of(counts))
    rows = evenly_spaced(len(spots), FIT_SPOTS)
    smoothing = {width: _smoothing(spots.yx, width) for width in RINGS}
    columns = _most_variable(levels, smoothing[min(RINGS)][rows])
    measured = levels[rows][:, columns].toarray().astype(np.float64)
    tables = {
        width: (weights[rows] @ levels[:, columns]).toarray().astype(np.float64) for width, weights in smoothing.items()
    }
    settings, explained = _chosen(tables, measured, spots.yx[rows])
    weights = smoothing[settings.width]
    scores = _factors(tables[settings.width], settings.rank)[1]
    depth = np.asarray(weights @ spots.relative_depth.astype(np.float64))
    own = depth[rows]
    spread, low, high = (np.empty(len(spots.genes) + 1) for _ in range(3))
    loadings = np.empty((len(spots.genes) + 1, scores.shape[1]))
    loadings[-1] = (own - own.mean()) @ scores / len(rows)
    spread[-1], low[-1], high[-1] = own.var(), spots.relative_depth.min(), spots.relative_depth.max()
    by_gene, part = levels.tocsc(), weights[rows]
    for start in range(0, len(spots.genes), COLUMNS):
        some = slice(start, min(start + COLUMNS, len(spots.genes)))
        smooth = (part @ by_gene[:, some]).toarray().astype(np.float64)
        loadings[some] = (smooth - smooth.mean(axis=0)).T @ scores / len(rows)
        spread[some], low[some], high[some] = smooth.var(axis=0), smooth.min(axis=0), smooth.max(axis=0)
    noise = _noise(loadings, spread, settings.shrinkage)
    return Covariation(settings, explained, levels, weights, loadings, noise, low, high, depth, columns)


def _smoothing(yx: NDArray[np.float64], width: float) -> csr_matrix:
    """Return the (n, n) weights of the spots around each spot; each row sums to one."""
    count = len(yx)
    apart, near = cKDTree(yx).query(yx, k=min(RINGS[width], count))
    apart, near = apart.reshape(count, -1), near.reshape(count, -1)
    pitch = max(float(np.median(apart[:, 1])), 1e-9)
    weights = np.exp(-0.5 * (apart / (width * pitch)) ** 2)
    weights = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    starts = np.arange(0, near.size + 1, near.shape[1])
    return csr_matrix((weights.ravel(), near.ravel(), starts), shape=(count, count))


def _most_variable(levels: csr_matrix, smoothing: csr_matrix) -> NDArray[np.int64]:
    spread = np.empty(levels.shape[1])
    by_gene = levels.tocsc()
    for start in range(0, len(spread), COLUMNS):
        spread[start : start + COLUMNS] = (smoothing @ by_gene[:, start : start + COLUMNS]).toarray().var(axis=0)
    return np.sort(np.argsort(-spread, kind="stable")[:FACTOR_GENES])


def _factors(table: Array, rank: int) -> tuple[Array, Array]:
    """Return mean (g,) and scores (n, k) of unit variance on the leading principal components of a table (n, g)."""
    mean = table.mean(axis=0)
    centred = table - mean
    _, vectors = np.linalg.eigh(centred @ centred.T if len(table) <= table.shape[1] else centred.T @ centred)
    leading = vectors[:, ::-1][:, : min(rank, *table.shape)]
    scores = leading if len(table) <= table.shape[1] else centred @ leading
    spread = np.sqrt((scores**2).mean(axis=0))
    return mean, scores / np.maximum(spread, 1e-12)


def _noise(loadings: Array, spread: Array, shrinkage: float) -> Array:
    left = np.maximum(spread - (loadings**2).sum(axis=1), 0.0)
    return np.asarray(left + shrinkage * spread + 1e-9)


def _chosen(tables: dict[float, Array], measured: Array, yx: NDArray[np.float64]) -> tuple[Settings, float]:
    """Choose the settings with which means of gene groups best explain the other genes in spots left out; return the explained share, too.

    Explained are measured levels, in standard deviations, so that the score does not depend on the smoothing.
    """
    scale = 1 / np.maximum(measured.std(axis=0), 1e-9)
    fold = blocks_of(yx, FOLDS)
    groups = _groups(tables[min(tables)])
    residual_ss = {Settings(*each): 0.0 for each in product(RINGS, RANKS, SHRINKAGES)}
    total_ss = 0.0
    for width, number in product(tables, range(FOLDS)):
        out = fold == number
        table = tables[width]
        mean, scores = _factors(table[~out], max(RANKS))
        loadings = (table[~out] - mean).T @ scores / len(scores)
        spread = table[~out].var(axis=0)
        given, error = table[out] - mean, (measured[out] - measured[~out].mean(axis=0)) * scale
        total = (error**2).sum(axis=0)
        scaled = loadings * scale[:, None]
        given_error, gram = error @ scaled, scaled.T @ scaled
        if width == min(tables):
            total_ss += sum(float(total.sum() - total[group].sum()) for group in groups)
        for rank, shrinkage in product(RANKS, SHRINKAGES):
            own = loadings[:, :rank]
            noise = _noise(own, spread, shrinkage)
            for group in groups:
                along = own[group].mean(axis=0)
                each = along / (along @ along + noise[group].sum() / len(group) ** 2)  # factors by the group's mean
                by = given[:, group].mean(axis=1)
                size = (by @ by) * (each @ gram[:rank, :rank] @ each)
                left = total.sum() - 2 * by @ (given_error[:, :rank] @ each) + size
                own_share = by[:, None] * (scaled[group][:, :rank] @ each)
                left -= ((error[:, group] - own_share) ** 2).sum()  # a group does not count for itself
                residual_ss[Settings(width, rank, shrinkage)] += float(left)
    best = min(residual_ss, key=lambda settings: residual_ss[settings])
    return best, 1 - residual_ss[best] / max(total_ss, 1e-12)


def _groups(table: Array) -> list[NDArray[np.int64]]:
    """Return groups of genes that vary together over smoothed spots (n, g): some genes, each with its most correlated ones."""
    genes = table.shape[1]
    standard = (table - table.mean(axis=0)) / np.maximum(table.std(axis=0), 1e-9)
    seeds = evenly_spaced(genes, GROUPS)
    likeness = standard[:, seeds].T @ standard
    return list(np.argsort(-likeness, axis=1, kind="stable")[:, : min(GROUP, genes // 2)])
