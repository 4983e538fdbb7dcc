"""What a plan will cost, said before it runs."""

from __future__ import annotations

from dataclasses import dataclass

from ..model.guidance import branches
from ..types import Plan
from .canvas import BYTES_PER_PIXEL


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


def estimate(plan: Plan, seconds_per_prediction: float | None = None, samples: int = 1) -> Estimate:
    """Estimate what a plan, run for so many samples, will cost; in continuous mode a window counts as a patch.

    ``seconds_per_prediction`` is the measured time of one prediction for one patch.
    """
    height, width = plan.frame.shape
    seconds = None if seconds_per_prediction is None else seconds_per_prediction * evaluations(plan) * samples
    return Estimate(len(plan) * samples, height * width * BYTES_PER_PIXEL * samples, seconds)


def evaluations(plan: Plan, done: int | None = None) -> float:
    """Return how many predictions for single patches or windows a plan takes, or took where ``done`` of its patches are finished."""
    share = 1.0 if done is None else done / len(plan)
    return share * _predictions(plan) * len(plan if plan.windows is None else plan.windows)


def _predictions(plan: Plan) -> float:
    """Predictions that a patch takes: of several branches at the steps that are guided, of one at the others."""
    if plan.counterfactual:  # to the noise and back, each unguided
        return 2 * (plan.steps + 1)
    scales = plan.guidance
    assert scales.rule is not None and scales.morphology is not None and scales.expression is not None
    given = {"has_morphology": plan.has_morphology, "has_expression": plan.has_expression}
    count = len(branches(scales.rule, scales.morphology, scales.expression, **given))
    above = scales.above or 0.0
    return plan.steps * ((1 - above) * count + above)
