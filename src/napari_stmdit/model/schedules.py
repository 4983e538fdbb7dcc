"""The scheduler of a foreign checkpoint, from what its settings say of the noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError
from ..files import shown

if TYPE_CHECKING:
    from .checkpoint import Opened

# The names that training codes use for a schedule -> that of diffusers.
_BETAS = {
    "linear": "linear",
    "scaled_linear": "scaled_linear",
    "squaredcos_cap_v2": "squaredcos_cap_v2",
    "cosine": "squaredcos_cap_v2",
}
_PUBLISHED = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, "steps": 1000}
"""PixCell's (and PixArt's) schedule, on which STMDiT builds."""


@dataclass(frozen=True)
class FoundScheduler:
    """Class name in diffusers, its configuration, and what was taken from publications for want of settings."""

    name: str
    config: dict[str, Any]
    notes: tuple[str, ...]


def scheduler_of(opened: Opened) -> FoundScheduler:
    """Return the scheduler that samples an opened transformer.

    Noise prediction gets the solver PixCell samples with, DPM-Solver++ of order 2 (Lu et al., 2022, arXiv 2211.01095); flow gets Euler
    steps from noise at time 1 to data at time 0.

    Raises
    ------
    CheckpointError
        The objective or the schedule is unknown.
    """
    section = opened.stated.get("diffusion")
    stated = {key: value for key, value in section.items() if value is not None} if isinstance(section, Mapping) else {}
    objective = opened.options.objective
    if objective is None:
        raise CheckpointError(
            f"{opened.weights.name}: nothing says whether it predicts noise or velocity. Give settings with diffusion: "
            "{objective: ddpm} or {objective: flow}."
        )
    steps = int(stated.get("steps", _PUBLISHED["steps"]))
    if objective == "flow":
        shift = float(stated.get("shift", 1.0))
        note = (
            "Flow: the velocity is taken as noise minus data, with time 1,000 at pure noise, as in rectified flow (Liu et al., 2022); "
            "the checkpoint's own convention is not published."
        )
        return FoundScheduler(
            "FlowMatchEulerDiscreteScheduler",
            {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": steps, "shift": shift},
            (note,),
        )
    lacking = [name for name in _PUBLISHED if name not in stated]
    values = {**_PUBLISHED, **stated}
    schedule = _BETAS.get(str(values["beta_schedule"]))
    if schedule is None:
        raise CheckpointError(
            f"{opened.weights.name}: the noise schedule {shown(values['beta_schedule'])} is unknown; this version knows {', '.join(_BETAS)}."
        )
    notes: tuple[str, ...] = ()
    if lacking:
        notes = (
            f"Noise schedule: {', '.join(lacking)} as PixCell's (linear, 0.0001 to 0.02, 1,000 steps); the settings do not say.",
        )
    config = {
        "_class_name": "DPMSolverMultistepScheduler",
        "num_train_timesteps": steps,
        "beta_schedule": schedule,
        "beta_start": float(values["beta_start"]),
        "beta_end": float(values["beta_end"]),
        "prediction_type": "epsilon",
        "algorithm_type": "dpmsolver++",
        "solver_order": 2,
        "solver_type": "midpoint",
        "timestep_spacing": "linspace",
        "final_sigmas_type": "zero",
        "lower_order_final": True,
        "thresholding": False,
    }
    return FoundScheduler("DPMSolverMultistepScheduler", config, notes)
