"""Measured expression of a section's spots, whole or narrowed to a few genes, with the totals of the whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from ..intent import AddEdit, Edit, KnockOutEdit, ScaleEdit, SetQuantileEdit, SwapEdit, TowardsEdit
from ..types import Genes, SpotTable
from .genes import match_genes
from .programs import Programs

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


# Virtual expression changes: what each kind of edit does to counts.


_Target = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def edited_genes(edit: Edit, programs: Programs) -> tuple[str, ...]:
    """Return the gene symbols an edit names, directly or through programs; empty means the whole profile."""
    return tuple(gene_weights(edit, programs))


def gene_weights(edit: Edit, programs: Programs) -> dict[str, float]:
    """Return how much of an edit's change each gene takes that it names, directly or through programs."""
    weights = dict.fromkeys(edit.genes, 1.0)
    for program in edit.programs:
        for gene, weight in programs[program].items():
            weights[gene] = max(weight, weights.get(gene, 0.0))
    return weights


def active_edits(edits: Sequence[Edit]) -> list[Edit]:
    """Return the edits that change anything."""
    return [edit for edit in edits if edit.enabled and edit.strength > 0]


def spot_weights(edit: Edit, ids: Sequence[str]) -> NDArray[np.float32]:
    """Return (n,) how strongly an edit acts on each of some spots: its strength, times the weight it gives the spot."""
    if edit.spots is None:
        return np.full(len(ids), edit.strength, dtype=np.float32)
    return np.array([edit.strength * edit.spots.get(spot, 0.0) for spot in ids], dtype=np.float32)


@dataclass(frozen=True)
class Change:
    """What an edit does to any spot: made once, however many spots it is then done to.

    ``columns`` (c,) are changed towards ``target`` by the weight of the spot times ``amounts`` (c,), in logarithms relative to
    ``totals`` (n,), at ``members`` alone where they are given.
    """

    edit: Edit
    columns: NDArray[np.int64]
    target: _Target
    totals: NDArray[np.float32]
    amounts: NDArray[np.float32]
    members: frozenset[str] | None = None


def changes_of(
    measured: Measured, edits: Sequence[Edit], programs: Programs, profiles: Mapping[str, Profile]
) -> list[Change]:
    """Return the changes that edits make, in their order; a swap makes two, one for each group."""
    found = []
    for edit in active_edits(edits):
        if edit.spots is not None and not any(edit.spots.values()):
            continue  # nothing is painted yet
        named = gene_weights(edit, programs)
        aims: list[tuple[frozenset[str] | None, _Aim]]
        if isinstance(edit, SwapEdit):
            pairs = ((edit.group_a, edit.group_b), (edit.group_b, edit.group_a))
            aims = [(frozenset(group), _change_places(group, other, measured)) for group, other in pairs]
        else:
            aims = [(None, _target_of(edit, measured, profiles))]
        for members, aim in aims:
            columns, target, totals = aim(tuple(named))
            amounts = _column_weights(named, columns, measured.genes)
            found.append(Change(edit, columns, target, totals, amounts, members))
    return found


def apply_changes(
    dense: NDArray[np.float32], own: NDArray[np.int64], ids: list[str], changes: Sequence[Change]
) -> None:
    """Change ``dense``, (n, k) counts that were measured at the rows ``own`` and stand at the spots ``ids``."""
    for change in changes:
        weights = spot_weights(change.edit, ids)
        if change.members is not None:
            weights *= np.array([spot in change.members for spot in ids], dtype=np.float32)
        touched = np.flatnonzero(weights)
        if touched.size == 0:
            continue
        block = np.ix_(touched, change.columns)
        total = change.totals[own[touched], None]
        x = np.log1p(dense[block] * (PER / total))
        x += weights[touched, None] * change.amounts * (change.target(x) - x)
        dense[block] = np.expm1(np.maximum(x, 0)) * (total / PER)


def _column_weights(named: Mapping[str, float], columns: NDArray[np.int64], genes: Genes) -> NDArray[np.float32]:
    weights = np.ones(len(columns), dtype=np.float32)
    for gene, weight in named.items():
        if weight != 1.0:
            weights[np.isin(columns, columns_of((gene,), genes))] = weight
    return weights


# ------------------------------------------------------------------------------------------------- targets

_Aim = Callable[[tuple[str, ...]], tuple[NDArray[np.int64], _Target, NDArray[np.float32]]]
"""From the genes that an edit names to the columns it changes, their target, and the (n,) totals that x is relative to."""


def _target_of(edit: Edit, measured: Measured, profiles: Mapping[str, Profile]) -> _Aim:
    if isinstance(edit, TowardsEdit) and edit.target_profile is not None:
        name, profile = edit.target_profile, profiles[edit.target_profile]

        def towards_profile(names: tuple[str, ...]) -> tuple[NDArray[np.int64], _Target, NDArray[np.float32]]:
            columns, target = _profile_columns(profile, measured.genes, names)
            totals = measured.shares[name] if name in measured.shares else measured.share(profile)
            return columns, lambda x: np.broadcast_to(target, x.shape), totals

        return towards_profile

    def of_columns(names: tuple[str, ...]) -> tuple[NDArray[np.int64], _Target, NDArray[np.float32]]:
        columns = _all_or(names, measured.genes)
        return columns, _change(edit, measured, columns), measured.totals

    return of_columns


def _change_places(group: tuple[str, ...], other: tuple[str, ...], measured: Measured) -> _Aim:
    def aim(names: tuple[str, ...]) -> tuple[NDArray[np.int64], _Target, NDArray[np.float32]]:
        columns = _all_or(names, measured.genes)
        here, there = (measured.mean_levels(columns, measured.rows(ids)) for ids in (group, other))
        return columns, lambda x: np.maximum(x + (there - here), 0), measured.totals

    return aim


def _change(edit: Edit, measured: Measured, columns: NDArray[np.int64]) -> _Target:
    match edit:
        case ScaleEdit():
            return lambda x: np.log1p(np.expm1(x) * np.float32(edit.factor))
        case AddEdit():
            return lambda x: np.maximum(x + np.float32(edit.log_units), 0)
        case KnockOutEdit():
            return lambda x: np.zeros_like(x)
        case SetQuantileEdit():
            level = np.quantile(measured.levels(columns), edit.quantile, axis=0).astype(np.float32)
            return lambda x: np.broadcast_to(level, x.shape)
        case TowardsEdit():
            mean = measured.mean_levels(columns, measured.rows(edit.target_spots))
            return lambda x: np.broadcast_to(mean, x.shape)
        case _:
            raise AssertionError(edit)


def _all_or(names: tuple[str, ...], genes: Genes) -> NDArray[np.int64]:
    return columns_of(names, genes) if names else np.arange(len(genes))


def _profile_columns(
    profile: Profile, genes: Genes, only: tuple[str, ...]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    match = match_genes(profile.genes, genes)
    keep = match.columns >= 0
    if only:
        keep &= np.isin(np.array(profile.genes), np.array(only))
    kept = {gene for gene, k in zip(profile.genes, keep, strict=True) if k}
    # of a symbol with several columns the first takes the whole target, and the others go to zero: they are summed when encoded
    twins = [c for gene, columns in match.ambiguous.items() if gene in kept for c in columns[1:]]
    columns = np.concatenate([match.columns[keep], np.array(twins, dtype=np.int64)])
    return columns, np.concatenate([profile.mean[keep], np.zeros(len(twins))]).astype(np.float32)
