"""Denoising: a transformer and a diffusers scheduler take noise to latents, one step at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError, NotFiniteError, SynthesisError
from .guidance import Branch, by_level
from .predict import ConditionTensors as ConditionTensors
from .predict import on_device, prediction


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
    on_estimate: Callable[[int, Tensor], None] | None = None,
    *,
    above: float = 0.0,
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
    on_estimate
        Called at every step, as (step from 1, latents), with what the clean latents (b, c, h, w) are predicted to be at that
        step; see `clean_estimate`. Does not change what is yielded.

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
    if steps < 1 or not guidance:
        raise SynthesisError(f"Denoising needs at least one step and one branch, got {steps} and {len(guidance)}.")
    scheduler = ready(scheduler, steps)
    times = scheduler.timesteps
    with torch.inference_mode():
        latents = on_device(noise.float(), transformer.device) * float(getattr(scheduler, "init_noise_sigma", 1.0))
        told = torch.stack([model_time(scheduler, index, time) for index, time in enumerate(times)])
        plan = by_level(guidance, noise_levels(scheduler, told), above)
        predict = prediction(transformer, conditions, plan, told, latents.shape)
    for index, time in enumerate(times):
        # entered anew for every step: around a yield, the mode would leak to whoever consumes the generator
        with torch.inference_mode():
            scaled = scheduler.scale_model_input(latents, time) if hasattr(scheduler, "scale_model_input") else latents
            predicted = predict(index, scaled)
            if on_estimate is not None:
                on_estimate(index + 1, clean_estimate(scheduler, index, time, scaled, predicted))
            latents = scheduler.step(predicted, time, latents, return_dict=False)[0]
            if index == len(times) - 1:
                _check_finite(latents)
        yield index + 1, latents.clone()  # a clone made here is an ordinary tensor, and nobody can reach into the loop


def ready(scheduler: Any, steps: int) -> Any:
    """Return a copy of a scheduler, set to so many steps from the first.

    It stays on the CPU, wherever the transformer is: its numbers are then plain factors, and no step waits for a device to tell them.
    """
    check_scheduler(scheduler)
    made = type(scheduler).from_config(scheduler.config)
    made.set_timesteps(steps, device="cpu")
    if hasattr(made, "set_begin_index"):
        made.set_begin_index(0)  # else it is searched for
    return made


def clean_estimate(scheduler: Any, index: int, time: Tensor, scaled: Tensor, predicted: Tensor) -> Tensor:
    """Return the clean latents that a prediction amounts to, whatever it is a prediction of.

    With x the latents that the transformer saw, x = a x0 + s noise:

    - flow, v = noise - x0 with a = 1 - s (Lipman et al., 2023, arXiv 2210.02747): x0 = x - s v
    - noise, with a^2 + s^2 = 1 (Ho et al., 2020, arXiv 2006.11239): x0 = (x - s noise) / a
    - v = a noise - s x0 (Salimans & Ho, 2022, arXiv 2202.00512): x0 = a x - s v

    Parameters
    ----------
    scheduler
        After ``set_timesteps``.
    index, time
        The step from 0, and the scheduler's time of it.
    scaled
        (b, c, h, w) latents as the transformer saw them, after ``scale_model_input``.
    predicted
        (b, c, h, w) its guided prediction.

    Raises
    ------
    CheckpointError
        The scheduler's prediction type is none of the above.
    """
    config = scheduler.config
    sigmas = getattr(scheduler, "sigmas", None)
    kind = config.get("prediction_type", "flow_prediction")  # flow schedulers know only one and do not name it
    if kind == "sample":
        return predicted.clone()
    if kind == "flow_prediction" and sigmas is not None:
        sigma: Tensor = sigmas[index].to(scaled)
        return scaled - sigma * predicted
    signal: Tensor
    if sigmas is not None:  # noise over signal
        signal = 1 / (sigmas[index].to(scaled) ** 2 + 1) ** 0.5
    else:
        signal = scheduler.alphas_cumprod[int(time)].to(scaled) ** 0.5
    noise = (1 - signal**2) ** 0.5
    if kind == "epsilon":
        return (scaled - noise * predicted) / signal
    if kind == "v_prediction":
        return signal * scaled - noise * predicted
    raise CheckpointError(
        f"{type(scheduler).__name__} predicts {kind!r}; expected epsilon, v_prediction, sample or flow"
    )


def noise_levels(scheduler: Any, told: Tensor) -> list[float]:
    """Return the noise levels between 0 and 1 of times (s,) that the transformer is told."""
    return [float(time) / float(scheduler.config.num_train_timesteps) for time in told]


def model_time(scheduler: Any, index: int, time: Tensor) -> Tensor:
    """Return the time to tell the transformer: flow sigmas exactly, where the scheduler rounds them to integers."""
    if scheduler.config.get("use_flow_sigmas"):
        sigma: Tensor = scheduler.sigmas[index]
        return sigma.to(time.device).float() * float(scheduler.config.num_train_timesteps)
    return time.float()


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
