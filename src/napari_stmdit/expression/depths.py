"""How deep spots are relative to their section, after edits: part of the expression that no gene's share holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..types import Edit, SpotTable, SwapEdit, TowardsEdit
from .changes import active_edits, spot_weights
from .following import following
from .measured import Profile, totals_of
from .programs import Programs


def edited_depths(
    rows: NDArray[np.int64],
    spots: SpotTable,
    edits: Sequence[Edit],
    programs: Programs,
    profiles: Mapping[str, Profile],
    sources: NDArray[np.int64] | None = None,
) -> NDArray[np.float32]:
    """Return the relative depth of some spots after the edits.

    It is the measured one (`SpotTable.relative_depth`): totals after an edit say nothing about tissue. Edits that move the whole
    profile, without naming genes, move depth with it: towards that of the target spots or of the target profile, where one states
    it, and by the difference between two groups that are swapped. It goes along with edits of genes that other genes follow.

    Parameters
    ----------
    rows, spots, edits, programs, profiles, sources
        As for `apply_edits`.

    Returns
    -------
    NDArray[np.float32]
        (n,) natural logarithms of the total relative to the section's median spot.
    """
    own = rows if sources is None else sources
    ids = spots.ids[rows].tolist()
    depth = _moved(spots.relative_depth[own].astype(np.float32), ids, spots, edits, profiles)
    along = following(own, ids, spots, edits, programs)
    return depth if along is None else depth + along.depth()


def whole_profile_edit(edit: Edit) -> bool:
    """Return whether an edit moves the whole profile, naming no gene."""
    return isinstance(edit, TowardsEdit | SwapEdit) and not edit.genes and not edit.programs


def moved_totals(
    rows: NDArray[np.int64],
    spots: SpotTable,
    edits: Sequence[Edit],
    profiles: Mapping[str, Profile],
    sources: NDArray[np.int64] | None = None,
) -> NDArray[np.float32]:
    """Return by which factor (n,) the total count of some spots moves with edits of the whole profile.

    Encoders read a profile by how deep it is, so one that arrives brings its total, as its depth relative to the section says it. In
    logarithms totals move in proportion with strength. Parameters are those of `edited_depths`; all other edits leave totals alone.
    """
    own = rows if sources is None else sources
    towards = [edit for edit in active_edits(edits) if isinstance(edit, TowardsEdit) and whole_profile_edit(edit)]
    if not towards:
        return np.ones(len(rows), dtype=np.float32)
    totals = totals_of(spots.counts.astype(np.float32))
    counted = np.asarray(spots.counts.sum(axis=1)).ravel() > 0
    usual = float(np.median(totals[counted])) if counted.any() else 1.0
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
    """Return depths (n,) after the edits of the whole profile."""
    depth, measured = start.copy(), spots.relative_depth
    for edit in active_edits(edits):
        if not whole_profile_edit(edit):
            continue
        weights = spot_weights(edit, ids)
        if isinstance(edit, TowardsEdit):
            target = _target(edit, spots, profiles)
            if target is not None:
                depth += weights * (target - depth)
        elif isinstance(edit, SwapEdit):
            means = {group: float(measured[spots.rows(group)].mean()) for group in (edit.group_a, edit.group_b)}
            for group, other in ((edit.group_a, edit.group_b), (edit.group_b, edit.group_a)):
                depth += np.isin(ids, group) * weights * np.float32(means[other] - means[group])
    return depth


def mix_depths(weights: Any, depth: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the relative depth (m,) of places that mix spots, by (m, n) weights, dense or sparse, that sum to one: that of the mixed counts."""
    return np.asarray(np.log(np.maximum(weights @ np.exp(depth), 1e-6)), dtype=np.float32)


def _target(edit: TowardsEdit, spots: SpotTable, profiles: Mapping[str, Profile]) -> float | None:
    if edit.target_profile is not None:
        return profiles[edit.target_profile].depth
    return float(spots.relative_depth[spots.rows(edit.target_spots)].mean())
