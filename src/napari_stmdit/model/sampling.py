"""Sampling: starting noise, denoising of a batch by a diffusers scheduler, a faster solver, and a canvas that is denoised in windows."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import CheckpointError, NotFiniteError, SynthesisError
from .guidance import Branch, by_level
from .inference import ConditionTensors, on_device, prediction

_NOT_IN_UNIPC = (
    "use_dynamic_shifting",
    "stochastic_sampling",
    "invert_sigmas",
    "shift_terminal",
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
)
"""Options of a flow schedule without a counterpart in UniPC."""


def fast_solver(scheduler: Any) -> Any:
    """Return UniPC of order 2 (Zhao et al., 2023, arXiv 2302.04867) over a scheduler's own schedule of noise, for fewer steps.

    A scheduler whose schedule UniPC cannot follow (shifted by the size of the image, or stochastic) is returned as it is.
    """
    from diffusers import (
        DDIMScheduler,
        DPMSolverMultistepScheduler,
        FlowMatchEulerDiscreteScheduler,
        UniPCMultistepScheduler,
    )

    config = scheduler.config
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        if any(config.get(name) for name in _NOT_IN_UNIPC):
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


def noise_for(seeds: Sequence[int | torch.Generator], shape: Sequence[int]) -> Tensor:
    """Draw noise (len(seeds), *shape) float32, each item from its own CPU generator: independent of batch and device."""
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
    """Denoise a batch, one step at a time; ends cleanly whenever the generator is closed.

    Parameters
    ----------
    transformer
        `napari_stmdit.model.transformer.STMDiTTransformer2D`, on its device and in its dtype.
    scheduler
        A diffusers scheduler; it is copied.
    noise
        (b, c, h, w) standard normal, float32.
    conditions
        Of the b patches.
    guidance
        From `napari_stmdit.model.guidance.branches`; all of them are predicted in one batch.
    steps
        Denoising steps.
    on_estimate
        Called at every step, as (step from 1, latents), with the `clean_estimate` (b, c, h, w) of that step.
    above
        Noise level, 0 to 1, above which guidance acts.

    Yields
    ------
    tuple
        The number of steps done, from 1, and the latents (b, c, h, w) float32 on the transformer's device.

    Raises
    ------
    SynthesisError
        Shapes do not fit, a branch asks for a condition that is not given, or the latents stop being finite.
    CheckpointError
        The scheduler draws noise of its own, which would make results depend on the batch.
    """
    scheduler, timesteps, plan = _schedule(scheduler, steps, guidance, above)
    with torch.inference_mode():
        latents = on_device(noise.float(), transformer.device) * _start_scale(scheduler)
        predict = prediction(transformer, conditions, plan, timesteps, latents.shape)
    for index, time in enumerate(scheduler.timesteps):
        # entered anew for every step: around a yield, the mode would leak to whoever consumes the generator
        with torch.inference_mode():
            scaled = model_input(scheduler, latents, time)
            predicted = predict(index, scaled)
            if on_estimate is not None:
                on_estimate(index + 1, clean_estimate(scheduler, index, time, scaled, predicted))
            latents = scheduler.step(predicted, time, latents, return_dict=False)[0]
            if index == len(timesteps) - 1:
                _check_finite(latents)
        yield index + 1, latents.clone()  # a clone made here is an ordinary tensor, and nobody can reach into the loop


def _schedule(
    scheduler: Any, steps: int, guidance: Sequence[Branch], above: float
) -> tuple[Any, Tensor, list[tuple[Branch, ...]]]:
    """Return a scheduler of its own, the transformer's timesteps (s,), and the branches of each step."""
    if steps < 1 or not guidance:
        raise SynthesisError(f"Denoising needs at least one step and one branch, got {steps} and {len(guidance)}.")
    scheduler = ready(scheduler, steps)
    timesteps = torch.stack([model_time(scheduler, index, time) for index, time in enumerate(scheduler.timesteps)])
    levels = [float(time) / float(scheduler.config.num_train_timesteps) for time in timesteps]  # of noise, 0 to 1
    return scheduler, timesteps, by_level(guidance, levels, above)


def _start_scale(scheduler: Any) -> float:
    return float(getattr(scheduler, "init_noise_sigma", 1.0))


def model_input(scheduler: Any, latents: Tensor, time: Tensor) -> Tensor:
    """Return latents as the transformer takes them at a time of the scheduler."""
    scaled: Tensor = scheduler.scale_model_input(latents, time) if hasattr(scheduler, "scale_model_input") else latents
    return scaled


def ready(scheduler: Any, steps: int) -> Any:
    """Return a copy of a scheduler, set to ``steps`` steps from the first; raises CheckpointError where it draws noise."""
    check_scheduler(scheduler)
    made = type(scheduler).from_config(scheduler.config)
    made.set_timesteps(steps, device="cpu")  # no step then waits for a device
    if hasattr(made, "set_begin_index"):
        made.set_begin_index(0)  # else it is searched for
    return made


def clean_estimate(scheduler: Any, index: int, time: Tensor, scaled: Tensor, predicted: Tensor) -> Tensor:
    """Return the clean latents (b, c, h, w) that a prediction of any kind implies.

    With x = a x0 + s noise the transformer's input:

    - flow, v = noise - x0 with a = 1 - s (Lipman et al., 2023, arXiv 2210.02747): x0 = x - s v
    - noise, with a^2 + s^2 = 1 (Ho et al., 2020, arXiv 2006.11239): x0 = (x - s noise) / a
    - v = a noise - s x0 (Salimans & Ho, 2022, arXiv 2202.00512): x0 = a x - s v

    Parameters
    ----------
    scheduler
        After ``set_timesteps``.
    index, time
        The step from 0, and the scheduler's time of it.
    scaled, predicted
        (b, c, h, w) the transformer's input, and its guided prediction.

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


def model_time(scheduler: Any, index: int, time: Tensor) -> Tensor:
    """Return the transformer's timestep: of flow sigmas exactly, where the scheduler rounds them to integers."""
    if scheduler.config.get("use_flow_sigmas"):
        sigma: Tensor = scheduler.sigmas[index]
        return sigma.to(time.device).float() * float(scheduler.config.num_train_timesteps)
    return time.float()


def _check_finite(latents: Tensor) -> None:
    """Raise NotFiniteError with the items whose latents are not finite."""
    finite = latents.flatten(1).isfinite().all(dim=1)
    if not bool(finite.all()):
        raise NotFiniteError(
            "The latents are not finite: the checkpoint overflows in this precision. Use --dtype float32 or bfloat16.",
            torch.nonzero(~finite).flatten().tolist(),
        )


def check_scheduler(scheduler: Any) -> None:
    """Raise CheckpointError where a scheduler draws noise of its own."""
    config = scheduler.config
    if str(config.get("algorithm_type", "")).startswith("sde") or config.get("stochastic_sampling"):
        raise CheckpointError(
            f"{type(scheduler).__name__} is set to draw noise at every step; choose a deterministic setting, for example "
            "algorithm_type 'dpmsolver++'."
        )


_LATENTS, _RECORD = "latents", "solver"


class CanvasSolver:
    """A diffusers scheduler over a canvas of latents, which is predicted in windows and can be stored and resumed at any step.

    Canvas and scheduler stay on the CPU; a device holds one batch of windows.
    Averaging the predictions of overlapping windows at every step is MultiDiffusion (Bar-Tal et al., 2023, arXiv 2302.08113).

    Parameters
    ----------
    transformer, scheduler, guidance, steps, above
        As for `denoise`.
    noise
        (c, h, w) float32 standard normal.
    state
        From `state` of an earlier solver with the same arguments, to resume it.

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
        self._transformer = transformer
        self._scheduler, self._timesteps, self._plan = _schedule(scheduler, steps, guidance, above)
        self.steps = len(self._timesteps)
        self.step = 0
        self._latents = torch.from_numpy(noise)[None] * _start_scale(self._scheduler)
        if state is not None:
            self._restore(state)

    @property
    def latents(self) -> NDArray[np.float32]:
        """The canvas (c, h, w)."""
        found: NDArray[np.float32] = self._latents[0].numpy()
        return found

    @torch.inference_mode()
    def inputs(self) -> NDArray[np.float32]:
        """Return the canvas (c, h, w) as the transformer takes it at this step."""
        scaled = model_input(self._scheduler, self._latents, self._scheduler.timesteps[self.step])
        found: NDArray[np.float32] = scaled[0].numpy()
        return found

    @torch.inference_mode()
    def predict(
        self,
        windows: NDArray[np.float32],
        morphology: NDArray[np.float32] | None,
        expression: NDArray[np.float32] | None,
    ) -> NDArray[np.float32]:
        """Return the guided prediction for (b, c, s, s) windows of `inputs`, each under its own conditions."""
        conditions = ConditionTensors(
            *(None if rows is None else torch.from_numpy(rows) for rows in (morphology, expression))
        )
        latents = on_device(torch.from_numpy(np.ascontiguousarray(windows)), self._transformer.device)
        step = slice(self.step, self.step + 1)
        predict = prediction(self._transformer, conditions, self._plan[step], self._timesteps[step], latents.shape)
        found: NDArray[np.float32] = predict(0, latents).cpu().numpy()
        return found

    @torch.inference_mode()
    def advance(self, prediction: NDArray[np.float32]) -> None:
        """Take the whole canvas one step on, by its prediction (c, h, w)."""
        time = self._scheduler.timesteps[self.step]
        predicted = torch.from_numpy(prediction)[None]
        self._latents = self._scheduler.step(predicted, time, self._latents, return_dict=False)[0].clone()
        self.step += 1

    def state(self) -> dict[str, NDArray[Any]]:
        """Return latents and solver state as plain arrays: enough to resume bit by bit."""
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

    def _restore(self, state: Mapping[str, NDArray[Any]]) -> None:
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
    """Turn a scheduler attribute into JSON, tensors into references to ``arrays``; None for anything else."""
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
