"""What a plan will cost, said before it runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..intent import SwapEdit
from ..model.guidance import branches
from ..types import Plan
from .canvas import BYTES_PER_PIXEL
from .conditions import spot_rows
from .continuous import changed_windows, reached_windows


@dataclass(frozen=True)
class Estimate:
    """Cost of a plan.

    Attributes
    ----------
    patches
        Patches to compute.
    canvas_bytes
        Memory of the canvas.
    seconds
        Time, from the pace of earlier patches on this device; None before any was measured.
    """

    patches: int
    canvas_bytes: int
    seconds: float | None


def estimate(
    plan: Plan,
    seconds_per_prediction: float | None = None,
    samples: int = 1,
    *,
    ids: NDArray[Any] | None = None,
    kept: float = 0.0,
) -> Estimate:
    """Estimate what a plan, run for so many samples, will cost; in continuous mode a window counts as a patch.

    ``seconds_per_prediction`` is the measured time of one prediction for one patch; ``ids`` and ``kept`` are those of `evaluations`.
    """
    height, width = plan.frame.shape
    seconds = None
    if seconds_per_prediction is not None:
        seconds = seconds_per_prediction * evaluations(plan, ids=ids, kept=kept) * samples
    return Estimate(len(plan) * samples, height * width * BYTES_PER_PIXEL * samples, seconds)


def evaluations(plan: Plan, done: int | None = None, *, ids: NDArray[Any] | None = None, kept: float = 0.0) -> float:
    """Return how many predictions for single patches or windows a plan takes, or took where ``done`` of its patches are finished.

    Of an edit of real tissue ``ids`` are those of the section's spots, without which it counts as reaching everything, and ``kept`` is
    the share of what it reaches whose noise is known already.
    """
    if (
        plan.counterfactual
    ):  # one branch: to the noise unless it is kept, and back; back twice where the change is weighed
        back = 1 if plan.request.edit_scale == 1 else 2
        return (plan.steps + 1) * (1 - kept + back) * len(edited_places(plan, ids))
    share = 1.0 if done is None else done / len(plan)
    return share * _predictions(plan) * len(plan if plan.windows is None else plan.windows)


def edited_places(plan: Plan, ids: NDArray[Any] | None = None) -> frozenset[int]:
    """Return what the edits reach, as far as their lists of spots say: rows of the spots of patches, or numbers of windows."""
    rows = spot_rows(plan)
    touched = np.zeros(len(rows), dtype=bool)
    for edit in plan.request.edits:
        if edit.enabled and edit.strength > 0:
            named = (*edit.group_a, *edit.group_b) if isinstance(edit, SwapEdit) else edit.spots
            touched |= True if ids is None or named is None else np.isin(ids[rows], list(named))
    if plan.windows is None:
        return frozenset(rows[touched].tolist())
    reached = reached_windows(plan.windows, changed_windows(plan.windows, rows, touched))
    return frozenset(np.flatnonzero(reached).tolist())


def _predictions(plan: Plan) -> float:
    """Predictions that a patch takes: of several branches at the steps that are guided, of one at the others."""
    if plan.counterfactual:  # to the noise and back, each unguided
        return 2 * (plan.steps + 1)
    scales = plan.guidance
    given = {"has_morphology": plan.has_morphology, "has_expression": plan.has_expression}
    count = len(branches(scales.rule, scales.morphology, scales.expression, **given))
    above = scales.above
    return plan.steps * ((1 - above) * count + above)
