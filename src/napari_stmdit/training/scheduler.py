"""The scheduler that a training's checkpoint is sampled with."""

from __future__ import annotations

from typing import Any

from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler

from .config import TrainingConfig


def make_scheduler(config: TrainingConfig) -> Any:
    """Return the scheduler of the checkpoint: for flow, with the solver and the shift that the config's card names."""
    shift = float(config.card.get("shift", 1.0))
    if config.card.get("solver", "dpm") == "euler":
        return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=shift)
    return DPMSolverMultistepScheduler(
        num_train_timesteps=1000,
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=shift,
        solver_order=2,
        algorithm_type="dpmsolver++",
        final_sigmas_type="zero",
    )
