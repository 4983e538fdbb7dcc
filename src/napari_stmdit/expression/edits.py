"""Edits applied to a section's spots: counts, levels and relative depth after them, their faults, and the genes that move most."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, vstack

from ..edits import Edit, Swap, Table, Towards
from ..storage.atomic import write_text
from ..text import shorten, some_of
from ..types import Genes, SpotTable
from .changes import (
    Measured,
    Profile,
    active_edits,
    apply_changes,
    changes_of,
    edited_genes,
    spot_weights,
)
from .edit_tables import read_edit_table, table_fault
from .following import following
from .genes import columns_of, match_genes, target_columns
from .normalise import PER, cp10k_log1p, totals_of
from .programs import Programs
from .regression import evenly_spaced

DENSE_ROWS = 512
"""Spots edited at once: edits work on dense rows."""
MAX_MOVER_SPOTS, MAX_MOVERS = 256, 20
"""Maximum number of painted spots, evenly spaced, in the means of `most_moved`."""


def apply_edits(
    rows: NDArray[np.int64],
    spots: SpotTable,
    edits: Sequence[Edit],
    programs: Programs,
    profiles: Mapping[str, Profile],
    sources: NDArray[np.int64] | None = None,
    checkpoint_genes: Sequence[str] | None = None,
) -> csr_matrix:
    """Return the counts of some spots after the edits; the section's own table is never touched.

    Parameters
    ----------
    rows
        (n,) rows of ``spots``; edits address spots by these rows' ids.
    spots
        The section's spots.
    edits
        Checked with `faults_of`; applied in order, disabled ones skipped. Following genes come last.
    programs, profiles
        Content of programs and target profiles.
    sources
        (n,) rows to take the counts from where that is not ``rows`` (the shuffled control).
    checkpoint_genes
        Genes that may follow an edit: those that the checkpoint reads, which keeps the table of a large section small. None: all.

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
    columns = (
        np.arange(len(spots.genes)) if checkpoint_genes is None else columns_of(tuple(checkpoint_genes), spots.genes)
    )
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

    Same levels as after `apply_edits`, for those genes alone: fast enough to follow a brush.
    """
    dense = measured.counts.toarray()
    if active_edits(edits):
        rows, ids = np.arange(len(dense)), measured.ids.tolist()
        apply_changes(dense, rows, ids, changes_of(measured, edits, programs, profiles))
        if measured.spots is not None and (along := following(rows, ids, measured.spots, edits, programs)) is not None:
            along.of(measured.columns).apply(dense, rows, measured.totals, np.arange(dense.shape[1]))
    return cp10k_log1p(dense, measured.totals[:, None]).astype(np.float32)


# ------------------------------------------------------------------------------------------------- depth


def edited_depths(
    rows: NDArray[np.int64],
    spots: SpotTable,
    edits: Sequence[Edit],
    programs: Programs,
    profiles: Mapping[str, Profile],
    sources: NDArray[np.int64] | None = None,
) -> NDArray[np.float32]:
    """Return the relative depth (n,) of some spots after the edits; parameters are those of `apply_edits`.

    Edits of the whole profile move it: towards that of the target spots or profile (if it states one), or by the difference of swapped
    groups. Edits of genes with ``follow`` move it as it varies with these genes. All other edits leave it as measured.
    """
    own = rows if sources is None else sources
    ids = spots.ids[rows].tolist()
    # not from the edited totals, which say nothing about tissue
    depth = _moved(spots.relative_depth[own].astype(np.float32), ids, spots, edits, profiles)
    along = following(own, ids, spots, edits, programs)
    return depth if along is None else depth + along.depth()


def moved_totals(
    rows: NDArray[np.int64],
    spots: SpotTable,
    edits: Sequence[Edit],
    profiles: Mapping[str, Profile],
    sources: NDArray[np.int64] | None = None,
) -> NDArray[np.float32]:
    """Return the factor (n,) by which edits of the whole profile change the total count of some spots.

    Parameters are those of `edited_depths`; all other edits leave totals alone.
    """
    own = rows if sources is None else sources
    towards = [edit for edit in active_edits(edits) if isinstance(edit, Towards) and whole_profile_edit(edit)]
    if not towards:
        return np.ones(len(rows), dtype=np.float32)
    totals = totals_of(spots.counts.astype(np.float32))
    counted = np.asarray(spots.counts.sum(axis=1)).ravel() > 0
    usual = float(np.median(totals[counted])) if counted.any() else 1.0
    # encoders read a profile by its depth, so it brings its total; log totals move in proportion to strength
    start = np.log(totals[own] / usual).astype(np.float32)
    moved = _moved(start, spots.ids[rows].tolist(), spots, towards, profiles)
    return np.asarray(np.exp(moved - start), dtype=np.float32)


def _moved(
    start: NDArray[np.float32],
    ids: Sequence[str],
    spots: SpotTable,
    edits: Sequence[Edit],
    profiles: Mapping[str, Profile],
) -> NDArray[np.float32]:
    depth, measured = start.copy(), spots.relative_depth
    for edit in active_edits(edits):
        if not whole_profile_edit(edit):
            continue
        weights = spot_weights(edit, ids)
        if isinstance(edit, Towards):
            target = _target_depth(edit, spots, profiles)
            if target is not None:
                depth += weights * (target - depth)
        elif isinstance(edit, Swap):
            means = {group: float(measured[spots.rows(group)].mean()) for group in (edit.group_a, edit.group_b)}
            for group, other in ((edit.group_a, edit.group_b), (edit.group_b, edit.group_a)):
                depth += np.isin(ids, group) * weights * np.float32(means[other] - means[group])
    return depth


def _target_depth(edit: Towards, spots: SpotTable, profiles: Mapping[str, Profile]) -> float | None:
    if edit.target_profile is not None:
        return profiles[edit.target_profile].depth
    return float(spots.relative_depth[spots.rows(edit.target_spots)].mean())


def whole_profile_edit(edit: Edit) -> bool:
    """Return whether an edit moves the whole profile, naming no gene."""
    return isinstance(edit, Towards | Swap) and not edit.genes and not edit.programs


def mix_depths(weights: Any, depth: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the relative depth (m,) of counts mixed from spots by (m, n) weights, dense or sparse, that sum to one."""
    return np.asarray(np.log(np.maximum(weights @ np.exp(depth), 1e-6)), dtype=np.float32)


# ------------------------------------------------------------------------------------------------- what cannot be applied


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
        if isinstance(edit, Towards):
            groups.append(("target_spots", edit.target_spots))
            if edit.target_profile is not None and edit.target_profile not in profiles:
                choice = ", ".join(profiles) or "none"
                faults.append(
                    (
                        f"{place}.target_profile",
                        f"{edit.target_profile!r} is unknown; request and checkpoint have: {choice}",
                    )
                )
        if isinstance(edit, Swap):
            groups += [("group_a", edit.group_a), ("group_b", edit.group_b)]
        if isinstance(edit, Table) and edit.enabled:
            if (fault := table_fault(edit, spots)) is not None:
                faults.append((f"{place}.table", fault))
            elif (names := edited_genes(edit, {**dict.fromkeys(edit.programs, {}), **programs})) and not len(
                target_columns(read_edit_table(edit).genes, spots.genes, names)[0]
            ):
                faults.append(
                    (
                        f"{place}.genes",
                        f"not in the table: {_names(names)}; name genes that it has, or none for all of them",
                    )
                )
        for name, ids in groups:
            strangers = [spot for spot in ids if spot not in known]
            if strangers:
                faults.append((f"{place}.{name}", f"not in this section: {_names(strangers)}"))
    return faults


def _gene_faults(place: str, edit: Edit, genes: Genes, programs: Programs) -> list[tuple[str, str]]:
    faults = []
    unknown = [name for name in edit.programs if name not in programs]
    if unknown:
        faults.append(
            (f"{place}.programs", f"unknown: {_names(unknown)}; known programs are {', '.join(sorted(programs))}")
        )
    missing = match_genes(edit.genes, genes).missing
    if missing:
        faults.append((f"{place}.genes", f"not in this section: {_names(missing)}; gene names match exactly"))
    weighted = {
        name: tuple(g for g, w in programs[name].items() if w > 0) for name in edit.programs if name in programs
    }
    empty = [name for name, own in weighted.items() if not match_genes(own, genes).shared]
    if empty:
        faults.append((f"{place}.programs", f"none of its genes is in this section: {_names(empty)}"))
    return faults


def _names(names: Sequence[str]) -> str:
    return some_of(map(shorten, names), 8)


# ------------------------------------------------------------------------------------------------- genes that move most


@dataclass(frozen=True)
class Mover:
    """A gene's mean log(1 + counts per 10,000) over painted spots, as measured and after the edits."""

    gene: str
    before: float
    after: float


def most_moved(
    spots: SpotTable, edits: Sequence[Edit], programs: Programs, profiles: Mapping[str, Profile]
) -> tuple[Mover, ...]:
    """Return the genes that edits move most, largest change first, including genes that follow."""
    ids = spots.ids.tolist()
    acting = [spot_weights(edit, ids) for edit in active_edits(edits)]
    touched = np.flatnonzero(np.max(acting, axis=0)) if acting else np.empty(0, dtype=np.int64)
    if touched.size == 0:
        return ()
    rows = touched[evenly_spaced(len(touched), MAX_MOVER_SPOTS)]
    own = spots.counts[rows].astype(np.float32)
    scale = PER / totals_of(own)
    moved = apply_edits(rows, spots, edits, programs, profiles)
    factors = moved_totals(rows, spots, edits, profiles)
    before, after = (
        np.log1p(counts.multiply(by[:, None]).toarray()).mean(axis=0, dtype=np.float64)
        for counts, by in ((own, scale), (moved, scale / factors))
    )
    order = np.argsort(-np.abs(after - before), kind="stable")[:MAX_MOVERS]
    return tuple(
        Mover(str(spots.genes.symbols[k]), float(before[k]), float(after[k])) for k in order if after[k] != before[k]
    )


def write_movers(movers: Sequence[Mover], path: str | Path) -> None:
    """Write movers as a CSV of gene, before, after and change."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("gene", "before_mean_log1p_cp10k", "after_mean_log1p_cp10k", "change"))
    table.writerows(
        (one.gene, f"{one.before:.4f}", f"{one.after:.4f}", f"{one.after - one.before:.4f}") for one in movers
    )
    write_text(Path(path), text.getvalue())
