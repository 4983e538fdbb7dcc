"""How deep spots are relative to their section, after edits: part of the expression that no gene's share holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..types import Edit, SpotTable, SwapEdit, TowardsEdit
from .changes import active_edits, spot_weights
from .following import following
from .measured import Profile
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
    measured = spots.relative_depth
    own = rows if sources is None else sources
    depth = measured[own].astype(np.float32)
    ids = spots.ids[rows].tolist()
    for edit in active_edits(edits):
        if edit.genes or edit.programs:
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
    along = following(own, ids, spots, edits, programs)
    return depth if along is None else depth + along.depth()


def mix_depths(weights: Any, depth: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the relative depth (m,) of places that mix spots, by (m, n) weights, dense or sparse, that sum to one: that of the mixed counts."""
    return np.asarray(np.log(np.maximum(weights @ np.exp(depth), 1e-6)), dtype=np.float32)


def _target(edit: TowardsEdit, spots: SpotTable, profiles: Mapping[str, Profile]) -> float | None:
    if edit.target_profile is not None:
        return profiles[edit.target_profile].depth
    return float(spots.relative_depth[spots.rows(edit.target_spots)].mean())
