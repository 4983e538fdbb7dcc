"""Presets: what a run may save, at a cost that docs/guides/speed.md states. A plan resolves them, and says so."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from ..types import CheckpointCard, Guidance, Preset, Request

FEWEST_STEPS = 4


@dataclass(frozen=True)
class PresetSettings:
    """What a preset stands for.

    Attributes
    ----------
    steps
        Share of the checkpoint's steps.
    above
        Noise level above which guidance acts; below it the plain conditional prediction is made, one branch in place of several
        (Kynkaanniemi et al., 2024, arXiv 2404.07724).
    fast_solver
        Whether a solver that needs fewer steps takes the place of the checkpoint's own, where there is one for its schedule; see
        `napari_stmdit.model.solvers.fast_solver`.
    preview_decoder
        Whether the checkpoint's preview decoder is used, where it has one.
    """

    steps: float = 1.0
    above: float = 0.0
    fast_solver: bool = False
    preview_decoder: bool = False


PRESETS: dict[Preset, PresetSettings] = {
    "exact": PresetSettings(),
    "fast": PresetSettings(steps=1 / 2, above=0.4, fast_solver=True),
    "draft": PresetSettings(steps=0.4, above=0.65, fast_solver=True, preview_decoder=True),
}


def resolve_steps(request: Request, card: CheckpointCard) -> int:
    """Return the denoising steps: the request's own, else the checkpoint's by the preset's share."""
    if request.steps is not None:
        return request.steps
    share = PRESETS[request.preset].steps
    return card.steps if share == 1 else min(card.steps, max(FEWEST_STEPS, ceil(share * card.steps)))


COUNTERFACTUAL_STEPS: dict[Preset, int] = {"exact": 12, "fast": 6, "draft": 4}
"""Second-order steps from the real tissue to its noise, and as many back; see docs/evidence/inversion.md."""


def resolve_counterfactual_steps(request: Request) -> int:
    """Return the steps each way of an edit of this tissue: the request's own, else the preset's."""
    return COUNTERFACTUAL_STEPS[request.preset] if request.steps is None else request.steps


def resolve_guidance(request: Request, card: CheckpointCard) -> Guidance:
    """Return scales, rule and interval: the request's own, else the preset's, else the checkpoint's."""
    above = request.guidance.above if request.guidance.above is not None else (PRESETS[request.preset].above or None)
    filled = request.guidance.model_copy(update={"above": above}).filled(card.guidance)
    return filled if filled.above is not None else filled.model_copy(update={"above": 0.0})


def preset_notes(request: Request, card: CheckpointCard) -> list[str]:
    """Say in a sentence what a preset does to a run; nothing for ``exact``."""
    settings = PRESETS[request.preset]
    if request.preset == "exact":
        return []
    steps, above = resolve_steps(request, card), resolve_guidance(request, card).above
    decoder = ", the checkpoint's preview decoder where it has one" if settings.preview_decoder else ""
    solver = " of a solver for few steps" if settings.fast_solver else ""
    return [
        f"preset {request.preset}: {steps} steps{solver} (the checkpoint's own: {card.steps}), guidance only above noise level "
        f"{above:g}{decoder}; the image differs from that of the preset exact"
    ]
