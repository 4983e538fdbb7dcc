"""Prediction target of a transformer, by its checkpoint's scheduler, and the losses of a prediction."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import CheckpointError

LOCAL_CELLS = 4
"""Side, in latent cells, of the squares whose mean errors are a loss of their own."""
Kind = Literal["flow", "epsilon", "v_prediction", "sample"]


@dataclass(frozen=True)
class Objective:
    """Prediction target of a transformer.

    With clean latents x, noise n and a noise level between 0 and 1, input and target are:

    - flow: (1 - level) x + level n; the velocity n - x (rectified flow: Liu et al. 2023, arXiv 2209.03003)
    - otherwise a x + s n with a^2 + s^2 = 1 of the time t = floor(level * times) of the checkpoint's noise schedule (Ho et al. 2020,
      arXiv 2006.11239); the noise n (epsilon), a n - s x (v_prediction: Salimans & Ho 2022, arXiv 2202.00512) or x (sample).

    Attributes
    ----------
    kind
        Kind of prediction.
    times
        Number of timesteps; the transformer's timestep is the level times this, rounded down where there is a schedule.
    signal
        (times,) a of each timestep; None for flow.
    """

    kind: Kind = "flow"
    times: int = 1000
    signal: Tensor | None = None

    def make_target(self, x: Tensor, noise: Tensor, level: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return noised latents (B, C, h, w), timesteps (B,) and the prediction target (B, C, h, w) at noise levels (B,)."""
        if self.signal is None:
            weight = level.view(-1, 1, 1, 1)
            return (1 - weight) * x + weight * noise, level * self.times, noise - x
        time = (level * self.times).long().clamp(0, self.times - 1)
        a = self.signal.to(x.device)[time].view(-1, 1, 1, 1)
        s = (1 - a.square()).sqrt()
        target = {"epsilon": noise, "v_prediction": a * noise - s * x, "sample": x}[self.kind]
        return a * x + s * noise, time.float(), target

    def draw_levels(self, count: int, shift: float, share: float, rng: torch.Generator) -> Tensor:
        """Return (count,) noise levels: logit-normal for flow, uniform with a schedule.

        For flow, the odds of a ``share`` of them are multiplied by ``shift`` (Esser et al. 2024, arXiv 2403.03206).
        """
        if self.kind == "flow":
            # The mean of n cells stays visible up to a level of about 1 - 1 / sqrt(n): what a condition says of a whole patch is only
            # learned there.
            odds, shifted = torch.randn(count, generator=rng), torch.rand(count, generator=rng) < share
            return torch.sigmoid(odds + shifted * torch.tensor(shift).log())
        return torch.rand(count, generator=rng)

    def even_levels(self, count: int, shift: float) -> Tensor:
        """Return (count,) increasing, evenly spaced noise levels for a comparison; for flow with odds times ``shift``."""
        level = (torch.arange(count) + 0.5) / count
        return shift * level / (1 + (shift - 1) * level) if self.kind == "flow" else level


FLOW = Objective()
"""Velocity of a rectified flow, the target of a training from scratch."""


def objective_of(scheduler: Any) -> Objective:
    """Return the prediction target of a scheduler; raises CheckpointError where its prediction type is unknown."""
    settings = scheduler.config
    kind = settings.get("prediction_type", "flow_prediction")  # flow schedulers know only one and do not name it
    times = int(settings.num_train_timesteps)
    if kind == "flow_prediction" or settings.get("use_flow_sigmas"):
        return Objective("flow", times)
    if kind not in ("epsilon", "v_prediction", "sample"):
        raise CheckpointError(
            f"{type(scheduler).__name__} predicts {kind!r}; training goes on with epsilon, v_prediction, sample or flow_prediction."
        )
    return Objective(kind, times, scheduler.alphas_cumprod.float().sqrt())


@dataclass(frozen=True)
class Losses:
    """Losses of a prediction, scalars: mean squared error, and squared errors of local and overall means times their number of cells.

    The first is called ``flow``, whatever is predicted.
    """

    flow: Tensor
    local: Tensor
    overall: Tensor

    def total(self, coarse_weight: float) -> Tensor:
        """Return their weighted sum; every part has the same minimiser."""
        return self.flow + coarse_weight * (self.local + self.overall)


def prediction_losses(
    model: nn.Module,
    x: Tensor,
    noise: Tensor,
    level: Tensor,
    *,
    objective: Objective = FLOW,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    **conditions: Tensor | None,
) -> Losses:
    """Return the losses of a prediction at noise levels (B,); a learned variance (extra channels) is ignored.

    The losses of local (`LOCAL_CELLS`) and overall means have the same minimiser, the conditional mean. They give weight to what
    conditions decide, density and composition, against detail that no condition determines.
    """
    mixture, time, target = objective.make_target(x, noise, level)
    with autocast():
        predicted = model(mixture, time, **conditions)[:, : x.shape[1]]
    error = predicted.float() - target
    cells = error.shape[-1] * error.shape[-2]
    local = F.avg_pool2d(error, LOCAL_CELLS).square().mean() * LOCAL_CELLS**2
    return Losses(error.square().mean(), local, error.mean((-2, -1)).square().mean() * cells)
