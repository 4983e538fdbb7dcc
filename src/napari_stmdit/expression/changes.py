"""Operations of the edit kinds on measured counts: levels of some genes move towards a target, in logarithms."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from ..edits import Add, Edit, KnockOut, Scale, SetQuantile, Swap, Table, Towards
from ..types import Genes, SpotTable
from .edit_tables import EditTable, read_edit_table
from .genes import columns_of, match_genes, target_columns
from .normalise import counts_from, cp10k_log1p, totals_of
from .programs import Programs

Array = NDArray[np.float32]
Columns = NDArray[np.int64]
_Target = Callable[[Array, Sequence[str], Columns], Array]
"""Target of an operation: (levels (m, c), spot ids, measured rows (m,)) -> target levels (m, c)."""


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
    encoding
        Mean (d,) of what the checkpoint that stores it reads of its spots; None where it is not known.
    """

    genes: tuple[str, ...]
    mean: Array
    spread: Array | None = None
    depth: float | None = None
    encoding: Array | None = None


@dataclass(frozen=True)
class Measured:
    """Expression that edits are computed from, whole or narrowed to a few genes; it is read, never changed.

    Attributes
    ----------
    ids
        (n,) spot ids.
    counts
        (n, k) sparse float32 counts of the genes at hand.
    genes
        Names of the k columns.
    totals
        (n,) total of each spot over all genes of the section, see `totals_of`.
    shares
        Name of a profile -> (n,) total of each spot over that profile's genes, at least 1; filled for a narrowed table, which
        lacks most of those genes.
    spots
        The section's table, and in ``columns`` (k,) the genes at hand in it; None where these are not counts of a section.
    """

    ids: NDArray[np.str_]
    counts: csr_matrix
    genes: Genes
    totals: Array
    shares: Mapping[str, Array] = field(default_factory=dict)
    spots: SpotTable | None = None
    columns: Columns = field(default_factory=lambda: np.arange(0))

    @classmethod
    def of(cls, spots: SpotTable, totals: Array | None = None) -> Measured:
        """Return all genes of a section."""
        counts = spots.counts if spots.counts.dtype == np.float32 else spots.counts.astype(np.float32)
        totals = totals_of(counts) if totals is None else totals
        return cls(spots.ids, counts, spots.genes, totals, spots=spots, columns=np.arange(len(spots.genes)))

    def narrowed(self, names: Sequence[str], profiles: Mapping[str, Profile]) -> Measured:
        """Return a table of the named genes alone; edits change them as they would in the whole table."""
        columns = columns_of(tuple(names), self.genes)
        shares = {name: self.share(profile) for name, profile in profiles.items()}
        whole = self.columns[columns] if len(self.columns) else self.columns
        counts, genes = csr_matrix(self.counts[:, columns]), genes_at(columns, self.genes)
        return Measured(self.ids, counts, genes, self.totals, shares, self.spots, whole)

    def share(self, profile: Profile) -> Array:
        """Return each spot's total over a profile's genes, (n,); for those that are not measured here, what the profile has of them is added."""
        levels = np.expm1(profile.mean.astype(np.float64))
        there = levels[match_genes(profile.genes, self.genes).columns >= 0].sum()
        more = levels.sum() / there if there > 0 else 1.0
        own = totals_of(self.counts[:, columns_of(profile.genes, self.genes)])
        return own if more == 1 else np.asarray(own * more, dtype=np.float32)

    def rows(self, ids: Sequence[str]) -> Columns:
        """Return the row of each id; raises KeyError with the first unknown id."""
        place = {spot: row for row, spot in enumerate(self.ids.tolist())}
        return np.array([place[spot] for spot in ids], dtype=np.int64)

    def levels(self, columns: Columns, rows: Columns | None = None) -> Array:
        """Return log(1 + counts per 10,000) of some genes, (n, columns), of all spots or of some."""
        counts, totals = self.counts, self.totals
        if rows is not None:
            counts, totals = counts[rows], totals[rows]
        return cp10k_log1p(counts[:, columns].toarray(), totals[:, None]).astype(np.float32)

    def mean_levels(self, columns: Columns, rows: Columns) -> Array:
        """Return the mean (columns,) of `levels` over some spots."""
        # in single precision the mean of 60,000 spots would be off in the fifth digit
        return np.asarray(self.levels(columns, rows).mean(axis=0, dtype=np.float64), dtype=np.float32)


def genes_at(columns: Columns, genes: Genes) -> Genes:
    """Return the names of some columns."""
    return Genes(genes.symbols[columns], None if genes.ids is None else genes.ids[columns])


# ------------------------------------------------------------------------------------------------- what an edit names


def edited_genes(edit: Edit, programs: Programs) -> tuple[str, ...]:
    """Return the gene symbols an edit names, directly or through programs; empty means the whole profile."""
    return tuple(gene_weights(edit, programs))


def gene_weights(edit: Edit, programs: Programs) -> dict[str, float]:
    """Return the weight (0 to 1) of each gene that an edit names, directly or through programs."""
    weights = dict.fromkeys(edit.genes, 1.0)
    for program in edit.programs:
        for gene, weight in programs[program].items():
            weights[gene] = max(weight, weights.get(gene, 0.0))
    return weights


def unread_genes(names: Sequence[str], wanted: Sequence[str], genes: Genes) -> tuple[str, ...]:
    """Return which named genes of a section are not among those that a checkpoint wants, whatever each calls them."""
    match, literal = match_genes(tuple(names), genes), set(wanted)
    read = set(columns_of(tuple(wanted), genes).tolist())

    def is_read(name: str, column: int) -> bool:
        columns = match.ambiguous.get(name, (column,))
        return name in literal if column < 0 else not read.isdisjoint(columns)

    return tuple(name for name, column in zip(names, match.columns.tolist(), strict=True) if not is_read(name, column))


def active_edits(edits: Sequence[Edit]) -> list[Edit]:
    """Return the edits that change anything."""
    return [edit for edit in edits if edit.enabled and edit.strength > 0]


def spot_weights(edit: Edit, ids: Sequence[str]) -> Array:
    """Return the weight (n,) of an edit at each spot: its strength times the spot's weight."""
    if edit.spots is None:
        return np.full(len(ids), edit.strength, dtype=np.float32)
    return np.array([edit.strength * edit.spots.get(spot, 0.0) for spot in ids], dtype=np.float32)


# ------------------------------------------------------------------------------------------------- changes


@dataclass(frozen=True)
class Change:
    """Change of an edit, computed once for all spots.

    ``columns`` (c,) are changed towards ``target`` by the weight of the spot times ``amounts`` (c,), in logarithms relative to
    ``totals`` (n,), at ``members`` alone where they are given.
    """

    edit: Edit
    columns: Columns
    target: _Target
    totals: Array
    amounts: Array
    members: frozenset[str] | None = None


def changes_of(
    measured: Measured, edits: Sequence[Edit], programs: Programs, profiles: Mapping[str, Profile]
) -> list[Change]:
    """Return the changes of edits, in their order; a swap has two, one for each group."""
    found = []
    for edit in active_edits(edits):
        if edit.spots is not None and not any(edit.spots.values()):
            continue  # nothing is painted yet
        weights = gene_weights(edit, programs)
        names, totals = tuple(weights), measured.totals
        targets: list[tuple[frozenset[str] | None, _Target]]
        if isinstance(edit, Towards) and edit.target_profile is not None:
            name, profile = edit.target_profile, profiles[edit.target_profile]
            columns, mean = _profile_columns(profile, measured.genes, names)
            totals = measured.shares[name] if name in measured.shares else measured.share(profile)
            targets = [(None, _towards(mean))]
        elif isinstance(edit, Table):
            table = read_edit_table(edit)
            columns, own = target_columns(table.genes, measured.genes, names)
            targets = [(frozenset(table.ids), _to_table(table, own, measured))]
        else:
            columns = columns_of(names, measured.genes) if names else np.arange(len(measured.genes))
            if isinstance(edit, Swap):
                a, b = (measured.mean_levels(columns, measured.rows(ids)) for ids in (edit.group_a, edit.group_b))
                targets = [(frozenset(edit.group_a), _shifted(b - a)), (frozenset(edit.group_b), _shifted(a - b))]
            else:
                targets = [(None, _target(edit, measured, columns))]
        amounts = _column_weights(weights, columns, measured.genes)
        found += [Change(edit, columns, target, totals, amounts, members) for members, target in targets]
    return found


def apply_changes(dense: Array, own: Columns, ids: list[str], changes: Sequence[Change]) -> None:
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
        x = cp10k_log1p(dense[block], total)
        x += weights[touched, None] * change.amounts * (change.target(x, [ids[k] for k in touched], own[touched]) - x)
        dense[block] = counts_from(np.maximum(x, 0), total)


def _column_weights(named: Mapping[str, float], columns: Columns, genes: Genes) -> Array:
    weights = np.ones(len(columns), dtype=np.float32)
    for gene, weight in named.items():
        if weight != 1.0:
            weights[np.isin(columns, columns_of((gene,), genes))] = weight
    return weights


def _towards(level: Array) -> _Target:
    return lambda x, *_: np.broadcast_to(level, x.shape)


def _shifted(by: Array) -> _Target:
    return lambda x, *_: np.maximum(x + by, 0)


def _to_table(table: EditTable, own: Columns, measured: Measured) -> _Target:
    counts, genes = (
        (measured.counts, measured.genes) if measured.spots is None else (measured.spots.counts, measured.spots.genes)
    )
    share = totals_of(counts[:, columns_of(table.genes, genes)]) / measured.totals
    there = np.flatnonzero(match_genes(table.genes, genes).columns >= 0)
    return lambda x, ids, rows: table.target(x, ids, own, there, share[rows])


def _target(edit: Edit, measured: Measured, columns: Columns) -> _Target:
    match edit:
        case Scale():
            return lambda x, *_: np.log1p(np.expm1(x) * np.float32(edit.factor))
        case Add():
            return _shifted(np.asarray(edit.log_units, dtype=np.float32))
        case KnockOut():
            return lambda x, *_: np.zeros_like(x)
        case SetQuantile():
            return _towards(np.quantile(measured.levels(columns), edit.quantile, axis=0).astype(np.float32))
        case Towards():
            return _towards(measured.mean_levels(columns, measured.rows(edit.target_spots)))
        case _:
            raise AssertionError(edit)


def _profile_columns(profile: Profile, genes: Genes, only: tuple[str, ...]) -> tuple[Columns, Array]:
    columns, own = target_columns(profile.genes, genes, only)
    return columns, np.where(own >= 0, profile.mean[own], 0).astype(np.float32)
