"""A solver that needs fewer steps than a checkpoint's own, over the same schedule of noise."""

from __future__ import annotations

from typing import Any

_OF_ITS_OWN = (
    "use_dynamic_shifting",
    "stochastic_sampling",
    "invert_sigmas",
    "shift_terminal",
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
)
"""What makes a flow schedule one that UniPC is not given here."""


def fast_solver(scheduler: Any) -> Any:
    """Return UniPC of order 2 (Zhao et al., 2023, arXiv 2302.04867) for a diffusers scheduler, or that scheduler itself.

    UniPC corrects each step by the prediction that the next one makes anyway. Noise schedule, shift and kind of prediction are the
    scheduler's own; one whose schedule UniPC cannot follow (shifted by the size of the image, or stochastic) is kept.
    """
    from diffusers import (
        DDIMScheduler,
        DPMSolverMultistepScheduler,
        FlowMatchEulerDiscreteScheduler,
        UniPCMultistepScheduler,
    )

    config = scheduler.config
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        if any(config.get(name) for name in _OF_ITS_OWN):
            return scheduler
        return UniPCMultistepScheduler(
            num_train_timesteps=config["num_train_timesteps"],
            prediction_type="flow_prediction",
            use_flow_sigmas=True,
            flow_shift=config["shift"],
            solver_order=2,
        )
    if isinstance(scheduler, DPMSolverMultistepScheduler | DDIMScheduler):
        if config.get("thresholding") or config.get("use_lu_lambdas"):
            return scheduler
        return UniPCMultistepScheduler.from_config(config, solver_order=2, solver_type="bh2")
    return scheduler
