"""What a plan will cost, said before it runs."""

from __future__ import annotations

from dataclasses import dataclass

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


def estimate(plan: Plan, seconds_per_patch_step: float | None = None) -> Estimate:
    """Estimate a plan's cost; in continuous mode a window counts as a patch.

    ``seconds_per_patch_step`` is the measured time of one denoising step of one patch.
    """
    height, width = plan.frame.shape
    seconds = None if seconds_per_patch_step is None else seconds_per_patch_step * evaluations(plan)
    return Estimate(len(plan), height * width * BYTES_PER_PIXEL, seconds)


def evaluations(plan: Plan, done: int | None = None) -> float:
    """Return how many denoising steps of single patches or windows a plan takes, or took where ``done`` of its patches are finished."""
    share = 1.0 if done is None else done / len(plan)
    return share * plan.steps * len(plan if plan.windows is None else plan.windows)
