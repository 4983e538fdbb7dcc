"""The probability-flow ODE of a checkpoint: the nodes between data and noise, and what a prediction says of the slope there.

With x = a x0 + s noise, what a transformer sees, the ODE dy/dtau = f has no linear term of its own in these coordinates (Song et al., 2021,
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
"""Noise over signal at which a schedule without any signal left is cut off: beyond it float32 loses the data."""
DENSITY = 1.25
"""How much denser than evenly the nodes of a flow lie near the noise, where large edits turn most; see docs/evidence/inversion.md."""
_FLOW, _NOISE, _VELOCITY = "flow_prediction", "epsilon", "v_prediction"


@dataclass(frozen=True)
class OdePath:
    """Nodes from data (0) to noise (steps).

    Attributes
    ----------
    kind
        ``flow_prediction``, ``epsilon`` or ``v_prediction``.
    told
        (steps + 1,) float32, the time to tell the transformer.
    tau
        The coordinate of each node.
    signal, noise
        a and s of each node.
    """

    kind: str
    told: Tensor
    tau: tuple[float, ...]
    signal: tuple[float, ...]
    noise: tuple[float, ...]

    @property
    def steps(self) -> int:
        """Steps between the nodes."""
        return len(self.tau) - 1

    def seen(self, node: int, state: Tensor) -> Tensor:
        """Return x, what the transformer sees, of a state y."""
        return state if self.kind == _FLOW else state * self.signal[node]

    def state(self, node: int, seen: Tensor) -> Tensor:
        """Return the state y of latents x."""
        return seen if self.kind == _FLOW else seen / self.signal[node]

    def slope(self, node: int, seen: Tensor, predicted: Tensor) -> Tensor:
        """Return f = dy/dtau of a prediction made from ``seen``."""
        if self.kind == _VELOCITY:
            return self.signal[node] * predicted + self.noise[node] * seen
        return predicted


def prediction_kind(scheduler: Any) -> str:
    """Return what a checkpoint predicts.

    Raises
    ------
    CheckpointError
        It is none of flow, noise and v, or the scheduler has another kind of noise schedule or draws noise of its own.
    """
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

    Parameters
    ----------
    scheduler
        A diffusers scheduler; only what it says of the noise schedule and of the prediction matters.
    steps
        Steps from data to noise, at least 1.

    Raises
    ------
    CheckpointError
        As for `prediction_kind`.
    SynthesisError
        There are too few or too many steps.
    """
    kind, most = prediction_kind(scheduler), int(scheduler.config.num_train_timesteps)
    if not 1 <= steps < most:
        raise SynthesisError(f"The ODE needs 1 to {most - 1} steps, got {steps}.")
    if kind == _FLOW:
        level = 1 - np.linspace(1, 0, steps + 1) ** DENSITY
        told = np.maximum(level, 1 / most) * most  # a time of 0, without any noise, is never trained
        return _path(kind, told, level, 1 - level, level)
    kept = scheduler.alphas_cumprod.double().numpy()
    last = int(np.flatnonzero((1 - kept) <= MAX_RATIO**2 * kept).max())  # some schedules end without signal
    told = np.rint(np.linspace(0, last, steps + 1))
    signal, noise = np.sqrt(kept[told.astype(int)]), np.sqrt(1 - kept[told.astype(int)])
    return _path(kind, told, noise / signal, signal, noise)


def _path(kind: str, told: Any, tau: Any, signal: Any, noise: Any) -> OdePath:
    rows = (tuple(float(value) for value in row) for row in (tau, signal, noise))
    return OdePath(kind, torch.as_tensor(told, dtype=torch.float32), *rows)
