"""From a plan to what the network is conditioned on: expression rows after edits, and shared morphology."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..expression.edits import apply_edits
from ..expression.programs import bundled_programs
from ..tissue.crops import read_patches
from ..types import Plan, Section
from .plan import boxes_around

if TYPE_CHECKING:
    from .run import PatchModel

MEAN_OF = 64
"""Spots whose crops are averaged for the section's mean morphology; evenly spaced over the table."""


@dataclass(frozen=True)
class Conditions:
    """What all patches of a run are conditioned on.

    Attributes
    ----------
    expression
        (n, d) or (n, tokens, d), one row per patch of the plan; None for null.
    morphology
        (tokens, d) where all patches share it; None for null and where each patch has its own.
    """

    expression: NDArray[np.float32] | None
    morphology: NDArray[np.float32] | None


def condition_rows(plan: Plan, section: Section, model: PatchModel) -> Conditions:
    """Encode the expression of every patch of a plan, edits applied, and the morphology they share."""
    return Conditions(_expression(plan, section, model), _shared_morphology(plan, section, model))


def shuffled_rows(count: int, seed: int) -> NDArray[np.int64]:
    """Return for each of ``count`` rows another row, never itself: the within-section shuffled control."""
    order = np.random.default_rng(seed).permutation(count)
    other = np.empty(count, dtype=np.int64)
    other[order] = np.roll(order, 1)
    return other


def _expression(plan: Plan, section: Section, model: PatchModel) -> NDArray[np.float32] | None:
    request = plan.request
    if request.expression == "null":
        return None
    rows = np.array([patch.row for patch in plan.patches], dtype=np.int64)
    sources = None
    if request.expression == "shuffled":
        sources = shuffled_rows(len(section.spots), request.seed)[rows]
    counts = apply_edits(rows, section.spots, request.edits, bundled_programs(), model.profiles, sources)
    return model.encode_expression(counts, section.spots.genes)


def _shared_morphology(plan: Plan, section: Section, model: PatchModel) -> NDArray[np.float32] | None:
    source = plan.request.morphology
    if source in ("own", "null"):
        return None
    spots = section.spots
    if source == "mean":
        rows = np.unique(np.linspace(0, len(spots) - 1, min(MEAN_OF, len(spots))).round().astype(np.int64))
    else:
        rows = spots.rows([source])
    assert section.image is not None and section.calibration.mpp is not None  # plan() refuses such sections
    card = plan.card
    boxes = boxes_around(spots.yx[rows], card.patch_px, card.patch_mpp / section.calibration.mpp)
    crops = read_patches(section.image, [box.source for box in boxes], card.patch_px)
    shared: NDArray[np.float32] = model.encode_morphology(crops).mean(axis=0)
    return shared
