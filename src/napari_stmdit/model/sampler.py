"""Denoising: a transformer and a diffusers scheduler take noise to latents, one step at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError, NotFiniteError, SynthesisError
from .guidance import Branch, combine


@dataclass(frozen=True)
class ConditionTensors:
    """Conditions of b patches; None where a condition is null for all of them.

    Attributes
    ----------
    morphology
        (b, t, dm) or (b, dm).
    expression
        (b, dg) or (b, g, dg).
    expression_keep
        (b, g) bool, True for the expression vectors that count; None for all.
    """

    morphology: Tensor | None = None
    expression: Tensor | None = None
    expression_keep: Tensor | None = None


def noise_for(seeds: Sequence[int | torch.Generator], shape: Sequence[int]) -> Tensor:
    """Draw noise (len(seeds), *shape) float32, each item from its own generator on the CPU.

    An item depends on its own seed alone: not on the batch it is in, nor on the device.
    """
    own = [seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(int(seed)) for seed in seeds]
    return torch.stack([torch.randn(tuple(shape), generator=generator) for generator in own])


def denoise(
    transformer: Any,
    scheduler: Any,
    noise: Tensor,
    conditions: ConditionTensors,
    guidance: Sequence[Branch],
    steps: int,
) -> Iterator[tuple[int, Tensor]]:
    """Take noise to latents; ends cleanly whenever the generator is closed.

    Parameters
    ----------
    transformer
        `napari_stmdit.model.transformer.STMDiTTransformer2D`, on its device and in its dtype.
    scheduler
        A diffusers scheduler; its state is left alone, every call works on a copy of its own.
    noise
        (b, c, h, w) standard normal, float32.
    conditions
        Of the b patches.
    guidance
        From `napari_stmdit.model.guidance.branches`; all of them are predicted in one batch.
    steps
        Denoising steps.

    Yields
    ------
    tuple
        The number of steps done, from 1, and the latents (b, c, h, w) float32 on the transformer's device.

    Raises
    ------
    SynthesisError
        Shapes do not fit, a branch asks for a condition that is not there, or the latents stop being finite.
    CheckpointError
        The scheduler draws noise of its own, which would make results depend on the batch.
    """
    check_scheduler(scheduler)
    if steps < 1 or not guidance:
        raise SynthesisError(f"Denoising needs at least one step and one branch, got {steps} and {len(guidance)}.")
    scheduler = type(scheduler).from_config(scheduler.config)
    device = transformer.device
    with torch.inference_mode():
        scheduler.set_timesteps(steps, device=device)
        latents = noise.to(device=device, dtype=torch.float32) * getattr(scheduler, "init_noise_sigma", 1.0)
        repeated = repeat_conditions(conditions, guidance, len(latents), transformer)
    for index, time in enumerate(scheduler.timesteps):
        # entered anew for every step: around a yield, the mode would leak to whoever consumes the generator
        with torch.inference_mode():
            scaled = scheduler.scale_model_input(latents, time) if hasattr(scheduler, "scale_model_input") else latents
            predicted = guided(transformer, scaled, model_time(scheduler, index, time), repeated, guidance)
            latents = scheduler.step(predicted, time, latents, return_dict=False)[0]
            if index == len(scheduler.timesteps) - 1:
                _check_finite(latents)
        yield index + 1, latents.clone()  # a clone made here is an ordinary tensor, and nobody can reach into the loop


def guided(
    transformer: Any, latents: Tensor, time: Tensor, conditions: dict[str, Tensor | None], guidance: Sequence[Branch]
) -> Tensor:
    """Predict all branches in one batch and combine them -> (b, c, h, w)."""
    count, channels = len(guidance), latents.shape[1]
    batch = latents.repeat(count, 1, 1, 1)  # (branches * b, c, h, w)
    output = transformer(batch, time.expand(len(batch)), **conditions)  # (branches * b, c or 2c, h, w)
    predictions: Sequence[Tensor] = output[:, :channels].float().chunk(count)
    return combine(predictions, guidance)  # the variance half, if learned, is not used


def model_time(scheduler: Any, index: int, time: Tensor) -> Tensor:
    """Return the time to tell the transformer: flow sigmas exactly, where the scheduler rounds them to integers."""
    if scheduler.config.get("use_flow_sigmas"):
        sigma: Tensor = scheduler.sigmas[index]
        return sigma.to(time.device).float() * float(scheduler.config.num_train_timesteps)
    return time.float()


def repeat_conditions(
    conditions: ConditionTensors, guidance: Sequence[Branch], batch: int, transformer: Any
) -> dict[str, Tensor | None]:
    """Repeat the conditions for every branch and mark where each is null."""
    count, device = len(guidance), transformer.device

    def repeat(tensor: Tensor | None) -> Tensor | None:
        if tensor is None:
            return None
        return tensor.to(device).repeat(count, *(1 for _ in tensor.shape[1:]))

    def null(seen: list[bool]) -> Tensor:
        return ~torch.tensor(seen, device=device).repeat_interleave(batch)

    return {
        "morphology": repeat(conditions.morphology),
        "expression": repeat(conditions.expression),
        "expression_keep": repeat(conditions.expression_keep),
        "morphology_null": null([branch.morphology for branch in guidance]),
        "expression_null": null([branch.expression for branch in guidance]),
    }


def _check_finite(latents: Tensor) -> None:
    """Name the items whose latents are not finite."""
    finite = latents.flatten(1).isfinite().all(dim=1)
    if not bool(finite.all()):
        raise NotFiniteError(
            "The latents are not finite: the checkpoint overflows in this precision. Use --dtype float32 or bfloat16.",
            torch.nonzero(~finite).flatten().tolist(),
        )


def check_scheduler(scheduler: Any) -> None:
    """Refuse a scheduler that draws noise of its own; raises CheckpointError."""
    config = scheduler.config
    if str(config.get("algorithm_type", "")).startswith("sde") or config.get("stochastic_sampling"):
        raise CheckpointError(
            f"{type(scheduler).__name__} is set to draw noise at every step; choose a deterministic setting, for example "
            "algorithm_type 'dpmsolver++'."
        )
