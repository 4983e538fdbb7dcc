"""Applying edits to a section's spots: the counts that come of it, and what is wrong with edits that cannot be applied.

What an edit does to the genes that it names is in `changes`; what follows it, in `following`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, vstack

from ..files import shorten
from ..types import Edit, Genes, SpotTable, SwapEdit, TowardsEdit
from .changes import active_edits, apply_changes, changes_of
from .depths import moved_totals
from .following import following
from .genes import match_genes
from .measured import PER, Measured, Profile, columns_of
from .programs import Programs

__all__ = ["PER", "Profile", "apply_edits", "edited_levels", "faults_of", "some_of"]

DENSE_ROWS = 512
"""Edits work on dense rows; so many at once, however many spots there are."""


def faults_of(
    edits: Sequence[Edit], spots: SpotTable, programs: Programs, profiles: Sequence[str]
) -> list[tuple[str, str]]:
    """Return every fault of the edits as (place, message); an empty list where all can be applied."""
    known = set(spots.ids.tolist())
    faults = []
    for number, edit in enumerate(edits):
        place = f"edits[{number}]"
        faults += _gene_faults(place, edit, spots.genes, programs)
        if edit.enabled and edit.spots is not None and not edit.spots:
            faults.append((f"{place}.spots", "names no spot; leave 'spots' out for every spot, or disable the edit"))
        groups: list[tuple[str, Sequence[str]]] = [("spots", tuple(edit.spots or ()))]
        if isinstance(edit, TowardsEdit):
            groups.append(("target_spots", edit.target_spots))
            if edit.target_profile is not None and edit.target_profile not in profiles:
                choice = ", ".join(profiles) or "none"
                faults.append(
                    (
                        f"{place}.target_profile",
                        f"{edit.target_profile!r} is unknown; request and checkpoint have: {choice}",
                    )
                )
        if isinstance(edit, SwapEdit):
            groups += [("group_a", edit.group_a), ("group_b", edit.group_b)]
        for name, ids in groups:
            strangers = [spot for spot in ids if spot not in known]
            if strangers:
                faults.append((f"{place}.{name}", f"not in this section: {some_of(strangers)}"))
    return faults


def _gene_faults(place: str, edit: Edit, genes: Genes, programs: Programs) -> list[tuple[str, str]]:
    faults = []
    unknown = [name for name in edit.programs if name not in programs]
    if unknown:
        faults.append(
            (f"{place}.programs", f"unknown: {some_of(unknown)}; known programs are {', '.join(sorted(programs))}")
        )
    missing = match_genes(edit.genes, genes).missing
    if missing:
        faults.append((f"{place}.genes", f"not in this section: {some_of(missing)}; gene names match exactly"))
    empty = [n for n in edit.programs if n in programs and not match_genes(tuple(programs[n]), genes).shared]
    if empty:
        faults.append((f"{place}.programs", f"none of its genes is in this section: {some_of(empty)}"))
    return faults


def apply_edits(
    rows: NDArray[np.int64],
    spots: SpotTable,
    edits: Sequence[Edit],
    programs: Programs,
    profiles: Mapping[str, Profile],
    sources: NDArray[np.int64] | None = None,
    seen: Sequence[str] | None = None,
) -> csr_matrix:
    """Return the counts of some spots after the edits; the section's own table is never touched.

    Parameters
    ----------
    rows
        (n,) rows of ``spots`` that are wanted; edits address spots by these rows' ids.
    spots
        The section's spots.
    edits
        Checked with `faults_of`; applied in order, disabled ones skipped. What follows them comes last.
    programs, profiles
        What programs and target profiles stand for.
    sources
        (n,) rows to take the counts from where that is not ``rows`` (the shuffled control).
    seen
        Genes that may follow an edit: those that a checkpoint sees, which keeps the table of a large section small. None: all.

    Returns
    -------
    csr_matrix
        (n, g) float32 counts.
    """
    own = rows if sources is None else sources
    counts = spots.counts[own].astype(np.float32)
    if not active_edits(edits):
        return counts
    measured = Measured.of(spots)
    changes = changes_of(measured, edits, programs, profiles)
    ids = spots.ids[rows].tolist()
    along = following(own, ids, spots, edits, programs)
    columns = np.arange(len(spots.genes)) if seen is None else columns_of(tuple(seen), spots.genes)
    followers = None if along is None else along.of(columns)
    factors = moved_totals(rows, spots, edits, profiles, sources)
    parts = []
    for start in range(0, len(rows), DENSE_ROWS):
        part = slice(start, start + DENSE_ROWS)
        dense = counts[part].toarray()
        apply_changes(dense, own[part], ids[part], changes)
        if followers is not None:
            followers.apply(dense, np.arange(len(rows))[part], measured.totals[own[part]], columns)
        moved = factors[part] != 1
        dense[moved] *= factors[part][moved, None]
        parts.append(csr_matrix(dense))
    return vstack(parts, format="csr") if parts else counts


def edited_levels(
    measured: Measured, edits: Sequence[Edit], programs: Programs, profiles: Mapping[str, Profile]
) -> NDArray[np.float32]:
    """Return log(1 + counts per 10,000) of all spots after the edits, (n, k) for the genes of ``measured``.

    What `apply_edits` does to the whole table, for those genes alone: quick enough to follow a brush. A total that moves with the whole
    profile says how deep a spot is, and no level of a gene.
    """
    dense = measured.counts.toarray()
    if active_edits(edits):
        rows, ids = np.arange(len(dense)), measured.ids.tolist()
        apply_changes(dense, rows, ids, changes_of(measured, edits, programs, profiles))
        if measured.spots is not None and (along := following(rows, ids, measured.spots, edits, programs)) is not None:
            along.of(measured.columns).apply(dense, rows, measured.totals, np.arange(dense.shape[1]))
    levels: NDArray[np.float32] = np.log1p(dense * (PER / measured.totals[:, None])).astype(np.float32)
    return levels


def some_of(names: Sequence[str], most: int = 8) -> str:
    """Return the first few of some names, for a message."""
    shown = ", ".join(shorten(name) for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
