"""The scheduler of a foreign checkpoint, from what its settings say of the noise."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import CheckpointError, NotFiniteError, SynthesisError
from ..text import shown
from .guidance import Branch, by_level
from .inference import ConditionTensors as ConditionTensors
from .inference import on_device, prediction

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


# A solver that needs fewer steps than a checkpoint's own, over the same schedule of noise.


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


# Denoising: a transformer and a diffusers scheduler take noise to latents, one step at a time.


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


# One canvas on its way from noise to latents: predicts windows of it, steps all of it, and can be put down and
# taken up again.


_LATENTS, _RECORD = "latents", "solver"


class CanvasSolver:
    """A diffusers scheduler over a canvas of latents.

    The canvas and the scheduler stay on the CPU, whatever the transformer runs on: a device holds one batch of windows and no more.
    Averaging the predictions of overlapping windows at every step is MultiDiffusion (Bar-Tal et al., 2023, arXiv 2302.08113).

    Parameters
    ----------
    transformer
        On its device and in its dtype.
    scheduler
        A deterministic diffusers scheduler; a copy of it is used.
    guidance
        Branches of the guided prediction.
    noise
        (c, h, w) float32 standard normal.
    steps
        Denoising steps.
    state
        From `state` of an earlier solver with the same arguments, to go on from there.
    above
        Noise level, 0 to 1, from which on guidance acts.

    Raises
    ------
    CheckpointError
        The scheduler draws noise of its own.
    SynthesisError
        The state belongs to another canvas or another number of steps.
    """

    def __init__(
        self,
        transformer: Any,
        scheduler: Any,
        guidance: Sequence[Branch],
        noise: NDArray[np.float32],
        steps: int,
        state: Mapping[str, NDArray[Any]] | None = None,
        *,
        above: float = 0.0,
    ) -> None:
        if steps < 1 or not guidance:
            raise SynthesisError(f"Denoising needs at least one step and one branch, got {steps} and {len(guidance)}.")
        self._transformer = transformer
        self._scheduler = ready(scheduler, steps)
        times = self._scheduler.timesteps
        self._times = torch.stack([model_time(self._scheduler, index, time) for index, time in enumerate(times)])
        self._guidance = by_level(guidance, noise_levels(self._scheduler, self._times), above)
        self.steps = len(times)
        self.step = 0
        self._latents = torch.from_numpy(noise)[None] * float(getattr(self._scheduler, "init_noise_sigma", 1.0))
        if state is not None:
            self._take_up(state)

    @property
    def latents(self) -> NDArray[np.float32]:
        """The canvas (c, h, w)."""
        found: NDArray[np.float32] = self._latents[0].numpy()
        return found

    @torch.inference_mode()
    def inputs(self) -> NDArray[np.float32]:
        """Return what the transformer is to see of the canvas at this step, (c, h, w)."""
        if not hasattr(self._scheduler, "scale_model_input"):
            return self.latents
        scaled: Tensor = self._scheduler.scale_model_input(self._latents, self._scheduler.timesteps[self.step])
        found: NDArray[np.float32] = scaled[0].numpy()
        return found

    @torch.inference_mode()
    def predict(
        self,
        windows: NDArray[np.float32],
        morphology: NDArray[np.float32] | None,
        expression: NDArray[np.float32] | None,
    ) -> NDArray[np.float32]:
        """Return the guided prediction for (b, c, s, s) windows of `inputs`, each under conditions of its own."""
        conditions = ConditionTensors(
            *(None if rows is None else torch.from_numpy(rows) for rows in (morphology, expression))
        )
        latents = on_device(torch.from_numpy(np.ascontiguousarray(windows)), self._transformer.device)
        now = self._times[self.step]
        predict = prediction(self._transformer, conditions, [self._guidance[self.step]], now[None], latents.shape)
        predicted = predict(0, latents)
        found: NDArray[np.float32] = predicted.cpu().numpy()
        return found

    @torch.inference_mode()
    def advance(self, prediction: NDArray[np.float32]) -> None:
        """Take the whole canvas one step on, by the prediction (c, h, w) for all of it."""
        time = self._scheduler.timesteps[self.step]
        predicted = torch.from_numpy(prediction)[None]
        self._latents = self._scheduler.step(predicted, time, self._latents, return_dict=False)[0].clone()
        self.step += 1

    def state(self) -> dict[str, NDArray[Any]]:
        """Return latents and solver state as plain arrays: enough to go on from here bit by bit."""
        arrays: dict[str, NDArray[Any]] = {_LATENTS: self.latents}
        record = {
            "class": type(self._scheduler).__name__,
            "step": self.step,
            "steps": self.steps,
            "values": {
                name: packed
                for name, value in vars(self._scheduler).items()
                if (packed := _pack(value, name, arrays)) is not None
            },
        }
        text = json.dumps(record).encode()
        arrays[_RECORD] = np.frombuffer(text, dtype=np.uint8)
        return arrays

    def _take_up(self, state: Mapping[str, NDArray[Any]]) -> None:
        record = json.loads(bytes(state[_RECORD].tobytes()))
        latents = np.ascontiguousarray(state[_LATENTS], dtype=np.float32)
        here = (type(self._scheduler).__name__, self.steps, self.latents.shape)
        there = (record["class"], record["steps"], latents.shape)
        if here != there:
            raise SynthesisError(f"The solver state was made with {there}; this run needs {here}.")
        for name, packed in record["values"].items():
            setattr(self._scheduler, name, _unpack(packed, state))
        self._latents = torch.from_numpy(latents)[None]
        self.step = int(record["step"])


def _pack(value: Any, name: str, arrays: dict[str, NDArray[Any]]) -> Any:
    """Turn a scheduler's attribute into JSON, tensors into references to ``arrays``; None for what is no state."""
    if isinstance(value, Tensor):
        arrays[name] = value.detach().cpu().numpy()
        return {"array": name}
    if isinstance(value, bool | int | float | str) or value is None:
        return {"value": value}
    if isinstance(value, list | tuple):
        items = [_pack(item, f"{name}.{place}", arrays) for place, item in enumerate(value)]
        return None if None in items else {"items": items}
    return None


def _unpack(packed: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Any:
    if "array" in packed:
        return torch.from_numpy(np.array(arrays[packed["array"]]))
    if "items" in packed:
        return [_unpack(item, arrays) for item in packed["items"]]
    return packed["value"]
