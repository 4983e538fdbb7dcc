"""One canvas on its way from noise to latents: predicts windows of it, steps all of it, and can be put down and taken up again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import SynthesisError
from .guidance import Branch, by_level
from .predict import ConditionTensors, on_device, prediction
from .sampler import model_time, noise_levels, ready

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
