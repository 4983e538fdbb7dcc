"""Measured expression of a section's spots, whole or narrowed to a few genes, with the totals of the whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from ..types import Genes, SpotTable
from .genes import match_genes

PER = 1e4


@dataclass(frozen=True)
class Profile:
    """A tissue profile over (g,) genes.

    Attributes
    ----------
    genes
        Their symbols.
    mean, spread
        Mean and, where known, standard deviation of log(1 + counts per 10,000), normalised over these genes alone, each (g,).
    depth
        Mean depth of its spots relative to their section, `SpotTable.relative_depth`; None where it is not known.
    """

    genes: tuple[str, ...]
    mean: NDArray[np.float32]
    spread: NDArray[np.float32] | None = None
    depth: float | None = None


@dataclass(frozen=True)
class Measured:
    """What edits are computed from: it is read, never changed.

    Attributes
    ----------
    ids
        (n,) spot ids.
    counts
        (n, k) sparse float32 counts of the genes at hand.
    genes
        Names of the k columns.
    totals
        (n,) total of each spot over all genes of the section, at least 1: an empty spot has nothing to scale by, and 1 keeps its
        zeros zero.
    shares
        Name of a profile -> (n,) total of each spot over that profile's genes, at least 1; filled for a narrowed table, which
        lacks most of those genes.
    spots
        The section's table, and in ``columns`` (k,) the genes at hand in it; None where these are not counts of a section.
    """

    ids: NDArray[np.str_]
    counts: csr_matrix
    genes: Genes
    totals: NDArray[np.float32]
    shares: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    spots: SpotTable | None = None
    columns: NDArray[np.int64] = field(default_factory=lambda: np.arange(0))

    @classmethod
    def of(cls, spots: SpotTable, totals: NDArray[np.float32] | None = None) -> Measured:
        """Return all genes of a section."""
        counts = spots.counts if spots.counts.dtype == np.float32 else spots.counts.astype(np.float32)
        totals = totals_of(counts) if totals is None else totals
        return cls(spots.ids, counts, spots.genes, totals, spots=spots, columns=np.arange(len(spots.genes)))

    def narrowed(self, names: Sequence[str], profiles: Mapping[str, Profile]) -> Measured:
        """Return the genes that are named alone; every edit does to them what it does in the whole table."""
        columns = columns_of(tuple(names), self.genes)
        genes = Genes(self.genes.symbols[columns], None if self.genes.ids is None else self.genes.ids[columns])
        shares = {name: self.share(profile) for name, profile in profiles.items()}
        counts, whole = (
            csr_matrix(self.counts[:, columns]),
            self.columns[columns] if len(self.columns) else self.columns,
        )
        return Measured(self.ids, counts, genes, self.totals, shares, self.spots, whole)

    def share(self, profile: Profile) -> NDArray[np.float32]:
        """Return each spot's total over a profile's genes, (n,)."""
        return totals_of(self.counts[:, columns_of(profile.genes, self.genes)])

    def rows(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """Return the row of each id; raises KeyError with the first unknown id."""
        place = {spot: row for row, spot in enumerate(self.ids.tolist())}
        return np.array([place[spot] for spot in ids], dtype=np.int64)

    def levels(self, columns: NDArray[np.int64], rows: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        """Return log(1 + counts per 10,000) of some genes, (n, columns), of all spots or of some."""
        counts, totals = self.counts, self.totals
        if rows is not None:
            counts, totals = counts[rows], totals[rows]
        share: NDArray[np.float32] = counts[:, columns].toarray() * (PER / totals[:, None])
        return np.log1p(share).astype(np.float32)

    def mean_levels(self, columns: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the mean (columns,) of `levels` over some spots."""
        # in single precision the mean of 60,000 spots would be off in the fifth digit
        return np.asarray(self.levels(columns, rows).mean(axis=0, dtype=np.float64), dtype=np.float32)


def totals_of(counts: csr_matrix) -> NDArray[np.float32]:
    """Return the total of each row, at least 1, (n,)."""
    return np.maximum(np.asarray(counts.sum(axis=1), dtype=np.float32).ravel(), 1.0)


def columns_of(names: tuple[str, ...], genes: Genes) -> NDArray[np.int64]:
    """Return the columns of those genes that are there, in the table's order; of a symbol with several, all of them."""
    match = match_genes(names, genes)
    twins = [column for columns in match.ambiguous.values() for column in columns]  # one gene to the user: all change
    return np.unique(np.concatenate([match.columns[match.columns >= 0], np.array(twins, dtype=np.int64)]))
