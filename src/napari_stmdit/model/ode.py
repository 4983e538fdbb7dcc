"""The probability-flow ODE of a checkpoint: its nodes between data and noise, and the slope that a prediction gives there.

With x = a x0 + s noise, the input of a transformer, the ODE dy/dtau = f has no linear term of its own in these coordinates (Song et al., 2021,
arXiv 2011.13456; Karras et al., 2022, arXiv 2206.00364):

- flow, a = 1 - s: y = x, tau = s, f the predicted velocity
- noise or v prediction, a^2 + s^2 = 1: y = x / a, tau = s / a, f the predicted noise (v = a noise - s x0)

In both, y - tau f is what the clean latents are predicted to be.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import CheckpointError, SynthesisError
from .sampling import check_scheduler

MAX_RATIO = 1000.0
"""Noise over signal at which a schedule is cut off: beyond it float32 loses the data."""
DENSITY = 1.25
"""Exponent by which the nodes of a flow lie denser near the noise, where large edits turn most; see docs/evidence/inversion.md."""
_FLOW, _NOISE, _VELOCITY = "flow_prediction", "epsilon", "v_prediction"


@dataclass(frozen=True)
class OdePath:
    """Nodes from data (0) to noise (steps).

    Attributes
    ----------
    kind
        ``flow_prediction``, ``epsilon`` or ``v_prediction``.
    timesteps
        (steps + 1,) float32, as the transformer takes them.
    tau, signal, noise
        The coordinate, a and s of each node.
    """

    kind: str
    timesteps: Tensor
    tau: tuple[float, ...]
    signal: tuple[float, ...]
    noise: tuple[float, ...]

    @property
    def steps(self) -> int:
        """Number of steps between the nodes."""
        return len(self.tau) - 1

    def latents(self, node: int, state: Tensor) -> Tensor:
        """Return x, the transformer's input, of a state y."""
        return state if self.kind == _FLOW else state * self.signal[node]

    def state(self, node: int, latents: Tensor) -> Tensor:
        """Return the state y of latents x."""
        return latents if self.kind == _FLOW else latents / self.signal[node]

    def slope(self, node: int, latents: Tensor, predicted: Tensor) -> Tensor:
        """Return f = dy/dtau of a prediction made from latents x."""
        if self.kind == _VELOCITY:
            return self.signal[node] * predicted + self.noise[node] * latents
        return predicted


def prediction_kind(scheduler: Any) -> str:
    """Return what a checkpoint predicts; raises CheckpointError for any but flow, noise and v over a known noise schedule."""
    check_scheduler(scheduler)
    kind = str(scheduler.config.get("prediction_type", _FLOW))  # flow schedulers know only one and do not name it
    if kind == _FLOW or (kind in (_NOISE, _VELOCITY) and getattr(scheduler, "alphas_cumprod", None) is not None):
        return kind
    raise CheckpointError(
        f"{type(scheduler).__name__} with prediction type {kind!r} has no probability-flow ODE that this version knows; expected "
        "flow, epsilon or v prediction"
    )


def ode_path(scheduler: Any, steps: int) -> OdePath:
    """Return the nodes of a scheduler's ODE: evenly spaced in the time of a noise schedule, for flow denser near the noise.

    Raises
    ------
    CheckpointError
        As for `prediction_kind`.
    SynthesisError
        ``steps`` are fewer than 1 or as many as the scheduler was trained with.
    """
    kind, most = prediction_kind(scheduler), int(scheduler.config.num_train_timesteps)
    if not 1 <= steps < most:
        raise SynthesisError(f"The ODE needs 1 to {most - 1} steps, got {steps}.")
    if kind == _FLOW:
        level = 1 - np.linspace(1, 0, steps + 1) ** DENSITY
        timesteps = np.maximum(level, 1 / most) * most  # a time of 0, without any noise, is never trained
        return _path(kind, timesteps, level, 1 - level, level)
    kept = scheduler.alphas_cumprod.double().numpy()
    last = int(np.flatnonzero((1 - kept) <= MAX_RATIO**2 * kept).max())  # some schedules end without signal
    timesteps = np.rint(np.linspace(0, last, steps + 1))
    signal, noise = np.sqrt(kept[timesteps.astype(int)]), np.sqrt(1 - kept[timesteps.astype(int)])
    return _path(kind, timesteps, noise / signal, signal, noise)


def _path(kind: str, timesteps: Any, tau: Any, signal: Any, noise: Any) -> OdePath:
    rows = (tuple(float(value) for value in row) for row in (tau, signal, noise))
    return OdePath(kind, torch.as_tensor(timesteps, dtype=torch.float32), *rows)
