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


def estimate(plan: Plan, seconds_per_patch_step: float | None = None, samples: int = 1) -> Estimate:
    """Estimate what a plan, run for so many samples, will cost.

    ``seconds_per_patch_step`` is the measured time of one denoising step of one patch.
    """
    height, width = plan.frame.shape
    patches = len(plan) * samples
    seconds = None if seconds_per_patch_step is None else seconds_per_patch_step * plan.steps * patches
    return Estimate(patches, height * width * BYTES_PER_PIXEL * samples, seconds)
