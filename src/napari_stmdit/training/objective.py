"""What a transformer predicts, and what it sees while it learns to: by its checkpoint's scheduler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import CheckpointError

Kind = Literal["flow", "epsilon", "v_prediction", "sample"]


@dataclass(frozen=True)
class Objective:
    """A kind of prediction.

    With clean latents x, noise n and a noise level between 0 and 1, the transformer sees and is to predict:

    - flow: (1 - level) x + level n; the velocity n - x (rectified flow: Liu et al. 2023, arXiv 2209.03003)
    - otherwise a x + s n with a^2 + s^2 = 1 of the time t = floor(level * times) of the checkpoint's noise schedule (Ho et al. 2020,
      arXiv 2006.11239); the noise n (epsilon), a n - s x (v_prediction: Salimans & Ho 2022, arXiv 2202.00512) or x (sample).

    Attributes
    ----------
    kind
        Of the prediction.
    times
        The transformer's time is the level times this; whole numbers below it where there is a schedule.
    signal
        (times,) a of each time; None for flow.
    """

    kind: Kind = "flow"
    times: int = 1000
    signal: Tensor | None = None

    def pose(self, x: Tensor, noise: Tensor, level: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what is seen (B, C, h, w), its time (B,) and what is to be predicted (B, C, h, w), for levels (B,)."""
        if self.signal is None:
            weight = level.view(-1, 1, 1, 1)
            return (1 - weight) * x + weight * noise, level * self.times, noise - x
        time = (level * self.times).long().clamp(0, self.times - 1)
        a = self.signal.to(x.device)[time].view(-1, 1, 1, 1)
        s = (1 - a.square()).sqrt()
        target = {"epsilon": noise, "v_prediction": a * noise - s * x, "sample": x}[self.kind]
        return a * x + s * noise, time.float(), target

    def draw_levels(self, count: int, shift: float, share: float, rng: torch.Generator) -> Tensor:
        """Return (count,) noise levels: for flow logit-normal, with a schedule every time equally often.

        The odds of a ``share`` of the former are multiplied by ``shift``:
        Esser et al. 2024, arXiv 2403.03206. The mean of n cells stays visible until the noise level is about 1 - 1 / sqrt(n): what
        a condition has to say of the whole patch is learned there or nowhere.
        """
        if self.kind == "flow":
            odds, shifted = torch.randn(count, generator=rng), torch.rand(count, generator=rng) < share
            return torch.sigmoid(odds + shifted * torch.tensor(shift).log())
        return torch.rand(count, generator=rng)

    def even_levels(self, count: int, shift: float) -> Tensor:
        """Return (count,) rising noise levels for a comparison, evenly spaced; for flow with odds times ``shift``."""
        level = (torch.arange(count) + 0.5) / count
        return shift * level / (1 + (shift - 1) * level) if self.kind == "flow" else level


def objective_of(scheduler: Any) -> Objective:
    """Return what the transformer of a scheduler predicts.

    Raises
    ------
    CheckpointError
        The scheduler's prediction type is unknown.
    """
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
