"""What a moved profile lacks of the spots that it is the mean of, as a checkpoint reads them.

The mean of the logarithms of many spots is no spot: most genes of a spot have no count, so means add up to another total than spots do,
and an encoder, which makes profiles of one total, reads something else than the mean of what it reads of the spots. What is missing is
found by encoding these spots, and added in proportion with how far a spot was moved: moved fully, it is read as they are on average.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from ..expression.changes import PER, Profile, active_edits, spot_weights, totals_of
from ..expression.edits import apply_edits, edited_depths, whole_profile_edit
from ..expression.genes import match_genes
from ..intent import Request, TowardsEdit
from ..types import Section, SpotTable

if TYPE_CHECKING:
    from .models import PatchModel

MOST_SPOTS = 256
"""Spots of a group, evenly spaced over it, that are encoded to find their mean."""
DRAWN = 128
"""Spots that are drawn for a profile that says how its genes spread."""
BATCH = 16


def arrivals(
    rows: NDArray[np.int64], section: Section, request: Request, model: PatchModel, profiles: Mapping[str, Profile]
) -> NDArray[np.float32] | None:
    """Return what is added to the encoded expression of some spots.

    Parameters
    ----------
    rows
        (n,) rows of the section's table.
    section, request, model
        What is synthesized from, its edits, and the checkpoint.
    profiles
        The checkpoint's and the request's.

    Returns
    -------
    NDArray[np.float32] | None
        (n, d); None where no whole profile moves, nothing is known of its spots, or expression is encoded as tokens of genes, which have
        no mean.
    """
    ids = section.spots.ids[rows].tolist()
    found: NDArray[np.float32] | None = None
    for edit in active_edits(request.edits):
        if not isinstance(edit, TowardsEdit) or not whole_profile_edit(edit):
            continue
        weights = spot_weights(edit, ids)[:, None]
        if found is not None:
            found = found * (1 - weights)
        if not weights.any():
            continue
        lacking = _lacking(int(rows[weights[:, 0].argmax()]), edit, section, model, profiles)
        if lacking is not None:
            found = weights * lacking + (0 if found is None else found)
    return None if found is None else found.astype(np.float32)


def _lacking(
    row: int, edit: TowardsEdit, section: Section, model: PatchModel, profiles: Mapping[str, Profile]
) -> NDArray[np.float32] | None:
    """Return the mean encoding (d,) of the spots of a target less the encoding of a spot that was moved there in counts."""
    spots = section.spots
    if edit.target_profile is None:
        group = spots.rows(edit.target_spots)
        group = group[np.unique(np.linspace(0, len(group) - 1, min(MOST_SPOTS, len(group))).round().astype(np.int64))]
        counts, depth = spots.counts[group].astype(np.float32), spots.relative_depth[group]
        names = spots.ids[group].tolist()
    else:
        profile = profiles[edit.target_profile]
        if profile.spread is None or profile.depth is None:
            return None
        counts = drawn_spots(profile, spots)
        depth, names = np.full(counts.shape[0], profile.depth, np.float32), [str(spots.ids[row])] * counts.shape[0]
    sums = []
    for start in range(0, len(names), BATCH):
        part = slice(start, start + BATCH)
        encoded = model.encode_expression(counts[part], spots.genes, tuple(names[part]), depth[part])
        if encoded.ndim != 2:
            return None
        sums.append(encoded.sum(axis=0, dtype=np.float64))
    alone = edit.model_copy(update={"spots": None, "strength": 1.0})
    at = np.array([row])
    moved = apply_edits(at, spots, (alone,), {}, profiles)
    arrived = model.encode_expression(
        moved, spots.genes, (str(spots.ids[row]),), edited_depths(at, spots, (alone,), {}, profiles)
    )[0]
    return np.asarray(np.sum(sums, axis=0) / len(names) - arrived, dtype=np.float32)


def drawn_spots(profile: Profile, spots: SpotTable) -> csr_matrix:
    """Draw spots (n, g) that have the mean and the spread that a profile states, gene by gene, and the total that its depth says.

    A gene is at one level in some of them and at none in the others, the same at every call; levels above the mean in all of them are
    normal around it.
    """
    assert profile.spread is not None and profile.depth is not None
    match = match_genes(profile.genes, spots.genes)
    there = match.columns >= 0
    mean, spread = (part[there].astype(np.float64) for part in (profile.mean, profile.spread))
    level = mean + spread**2 / np.maximum(mean, 1e-9)
    share = np.where(mean > 0, mean / np.maximum(level, 1e-9), 0)
    rng = np.random.default_rng(0)
    ranks = np.stack([rng.permutation(DRAWN) for _ in range(len(mean))], axis=1)
    levels = np.where((ranks + 0.5) / DRAWN < share, level, 0)
    totals = totals_of(spots.counts.astype(np.float32))
    usual = float(np.median(totals[totals > 1])) if (totals > 1).any() else 1.0
    columns = np.broadcast_to(match.columns[there], levels.shape)
    counts = np.expm1(levels) * (usual * np.exp(profile.depth) / PER)
    index = np.broadcast_to(np.arange(DRAWN)[:, None], levels.shape)
    shape = (DRAWN, len(spots.genes))
    return csr_matrix((counts.ravel(), (index.ravel(), columns.ravel())), shape=shape).astype(np.float32)
