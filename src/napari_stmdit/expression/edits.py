"""Virtual expression changes: what each kind of edit does to counts.

All edits work on x = log(1 + 10,000 * count / total), total being the spot's own *unedited* total, and blend linearly in x:
x' = x + strength * weight * (target - x). Totals are not restored afterwards, because an edit that adds expression to one program
should not take it away from all others; encoders normalise as they see fit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from ..files import shorten
from ..types import AddEdit, Edit, Genes, KnockOutEdit, ScaleEdit, SetQuantileEdit, SpotTable, TowardsEdit
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
    """

    genes: tuple[str, ...]
    mean: NDArray[np.float32]
    spread: NDArray[np.float32] | None = None


def faults_of(
    edits: Sequence[Edit], spots: SpotTable, programs: Programs, profiles: Sequence[str]
) -> list[tuple[str, str]]:
    """Return every fault of the edits as (place, message); an empty list where all can be applied."""
    known = set(spots.ids.tolist())
    faults = []
    for number, edit in enumerate(edits):
        place = f"edits[{number}]"
        unknown = [name for name in edit.programs if name not in programs]
        if unknown:
            faults.append(
                (f"{place}.programs", f"unknown: {some_of(unknown)}; known programs are {', '.join(sorted(programs))}")
            )
        hollow = [p for p in edit.programs if p in programs and not match_genes(tuple(programs[p]), spots.genes).shared]
        if hollow:
            faults.append((f"{place}.programs", f"none of its genes is in this section: {some_of(hollow)}"))
        missing = match_genes(edit.genes, spots.genes).missing
        if missing:
            faults.append((f"{place}.genes", f"not in this section: {some_of(missing)}; gene names match exactly"))
        strangers = [spot for spot in edit.spots or () if spot not in known]
        if strangers:
            faults.append((f"{place}.spots", f"not in this section: {some_of(strangers)}"))
        if isinstance(edit, TowardsEdit):
            strangers = [spot for spot in edit.target_spots if spot not in known]
            if strangers:
                faults.append((f"{place}.target_spots", f"not in this section: {some_of(strangers)}"))
            if edit.target_profile is not None and edit.target_profile not in profiles:
                choice = ", ".join(profiles) or "none"
                faults.append(
                    (f"{place}.target_profile", f"{edit.target_profile!r} is unknown; the checkpoint has: {choice}")
                )
    return faults


def edited_genes(edit: Edit, programs: Programs) -> tuple[str, ...]:
    """Return the gene symbols an edit names, directly or through programs; empty means the whole profile."""
    names = dict.fromkeys(edit.genes)
    for program in edit.programs:
        names.update(dict.fromkeys(programs[program]))
    return tuple(names)


def apply_edits(
    rows: NDArray[np.int64],
    spots: SpotTable,
    edits: Sequence[Edit],
    programs: Programs,
    profiles: Mapping[str, Profile],
    sources: NDArray[np.int64] | None = None,
) -> csr_matrix:
    """Return the counts of some spots after the edits; the section's own table is never touched.

    Parameters
    ----------
    rows
        (n,) rows of ``spots`` that are wanted; edits address spots by these rows' ids.
    spots
        The section's spots.
    edits
        Checked with `faults_of`; applied in order, disabled ones skipped.
    programs, profiles
        What programs and target profiles stand for.
    sources
        (n,) rows to take the counts from where that is not ``rows`` (the shuffled control).

    Returns
    -------
    csr_matrix
        (n, g) float32 counts.
    """
    counts = spots.counts[rows if sources is None else sources].astype(np.float32)
    active = [edit for edit in edits if edit.enabled and edit.strength > 0]
    if not active:
        return counts
    totals = _totals(counts)
    ids = spots.ids[rows].tolist()
    dense = counts.toarray()
    for edit in active:
        amount = np.array([edit.strength * (1.0 if edit.spots is None else edit.spots.get(i, 0.0)) for i in ids])
        touched = np.flatnonzero(amount)
        if touched.size:
            _apply_one(edit, dense, touched, amount[touched].astype(np.float32), totals, spots, programs, profiles)
    return csr_matrix(dense)


def _apply_one(
    edit: Edit,
    dense: NDArray[np.float32],
    touched: NDArray[np.int64],
    amount: NDArray[np.float32],
    totals: NDArray[np.float32],
    spots: SpotTable,
    programs: Programs,
    profiles: Mapping[str, Profile],
) -> None:
    if isinstance(edit, TowardsEdit) and edit.target_profile is not None:
        columns, target = _profile_columns(profiles[edit.target_profile], spots.genes, edited_genes(edit, programs))
        everything = _columns(profiles[edit.target_profile].genes, spots.genes)
        own = dense[np.ix_(touched, everything)].sum(axis=1, keepdims=True)
        total = np.maximum(own, 1.0)
        change: Callable[[NDArray[np.float32]], NDArray[np.float32]] = lambda x: np.broadcast_to(target, x.shape)  # noqa: E731
    else:
        names = edited_genes(edit, programs)
        columns = _columns(names, spots.genes) if names else np.arange(len(spots.genes))
        total = totals[touched, None]
        change = _change(edit, spots, columns)
    block = np.ix_(touched, columns)
    x = np.log1p(dense[block] * (PER / total))
    x += amount[:, None] * (change(x) - x)
    dense[block] = np.expm1(np.maximum(x, 0)) * (total / PER)


def _change(
    edit: Edit, spots: SpotTable, columns: NDArray[np.int64]
) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    match edit:
        case ScaleEdit():
            return lambda x: np.log1p(np.expm1(x) * np.float32(edit.factor))
        case AddEdit():
            return lambda x: np.maximum(x + np.float32(edit.log_units), 0)
        case KnockOutEdit():
            return lambda x: np.zeros_like(x)
        case SetQuantileEdit():
            level = np.quantile(_normalised(spots.counts, columns), edit.quantile, axis=0).astype(np.float32)
            return lambda x: np.broadcast_to(level, x.shape)
        case TowardsEdit():
            chosen = spots.rows(edit.target_spots)
            mean = _normalised(spots.counts, columns, chosen).mean(axis=0)
            return lambda x: np.broadcast_to(mean, x.shape)


def _normalised(
    counts: csr_matrix, columns: NDArray[np.int64], rows: NDArray[np.int64] | None = None
) -> NDArray[np.float32]:
    part = counts if rows is None else counts[rows]
    share: NDArray[np.float32] = part[:, columns].toarray().astype(np.float32) * (PER / _totals(part)[:, None])
    return np.log1p(share)


def _totals(counts: csr_matrix) -> NDArray[np.float32]:
    # an empty spot has nothing to scale by; 1 keeps its zeros zero
    return np.maximum(np.asarray(counts.sum(axis=1), dtype=np.float32).ravel(), 1.0)


def _columns(names: tuple[str, ...], genes: Genes) -> NDArray[np.int64]:
    match = match_genes(names, genes)
    twins = [column for columns in match.ambiguous.values() for column in columns]  # one gene to the user: all change
    return np.unique(np.concatenate([match.columns[match.columns >= 0], np.array(twins, dtype=np.int64)]))


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


def some_of(names: Sequence[str], most: int = 8) -> str:
    """Return the first few of some names, for a message."""
    shown = ", ".join(shorten(name) for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
