"""What the diffusion stage learns from: batches of latents with their conditions, and the error of a prediction."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import DiffusionSettings
from .latents import window_corners
from .parallel import Worker

TIME_SCALE = 1000.0
"""The transformer's time is the noise level (0 to 1) times this."""
LOCAL_CELLS = 4
"""Side of the squares whose mean errors count on their own."""


@dataclass(frozen=True)
class Batch:
    """Latents (B, C, side, side), morphology (B, 1, d), expression (B, e), and masks (B,), True where a condition is dropped."""

    latents: Tensor
    morphology: Tensor
    expression: Tensor
    morphology_null: Tensor
    expression_null: Tensor


class Batches:
    """Draws training batches from the cache.

    Parameters
    ----------
    cache
        From `load_cache`.
    settings
        Shares of the conditions and their noise.
    seed
        Source of chance.
    """

    def __init__(self, cache: dict[str, Tensor], settings: DiffusionSettings, seed: int) -> None:
        self.latents = cache["latents"]
        self.mean, self.std = cache["mean"].view(1, -1, 1, 1), cache["std"].view(1, -1, 1, 1)
        self.morphology, self.expression = cache["morphology"], cache["expression"]
        self.settings = settings
        self.rng = torch.Generator().manual_seed(seed)
        self.corners = torch.tensor(window_corners(self.latents.shape[-1], settings.small_cells))

    def draw(self, count: int, small: bool) -> Batch:
        """Draw, on the CPU, ``count`` whole crops, or windows of them; a window's morphology is its own."""
        rng, settings = self.rng, self.settings
        rows = torch.randint(len(self.latents), (count,), generator=rng)
        x = self.latents[rows].float()
        window = torch.zeros(count, dtype=torch.long)
        if small:
            place = torch.randint(len(self.corners), (count,), generator=rng)
            side, corners = settings.small_cells, self.corners[place].tolist()
            x = torch.stack([item[:, r : r + side, c : c + side] for item, (r, c) in zip(x, corners, strict=True)])
            window = place + 1
        x = (x - self.mean) / self.std
        variant = torch.randint(self.expression.shape[1], (count,), generator=rng)
        morphology = self._disturb(self.morphology[rows, window], settings.condition_noise)
        expression = self._disturb(self.expression[rows, variant], settings.expression_noise)
        lot = torch.rand(count, generator=rng)
        both = settings.share_both
        expression_only = (lot >= both) & (lot < both + settings.share_expression)
        rest = lot - both - settings.share_expression
        morphology_only = (rest >= 0) & (rest < settings.share_morphology)
        none = rest >= settings.share_morphology
        return Batch(x, morphology[:, None], expression, expression_only | none, morphology_only | none)

    def noise(self, like: Tensor) -> Tensor:
        """Return standard normal noise of the same shape."""
        return torch.randn(like.shape, generator=self.rng)

    def levels(self, count: int, small: bool) -> Tensor:
        """Return (count,) noise levels between 0 and 1: logit-normal, with the odds of some or all times ``level_shift``.

        Esser et al. 2024, arXiv 2403.03206. The mean of n cells stays visible until the noise level is about 1 - 1 / sqrt(n): what
        a condition has to say of the whole patch is learned there or nowhere.
        """
        odds, settings = torch.randn(count, generator=self.rng), self.settings
        share = 1.0 if small else settings.shifted_share
        shifted = torch.rand(count, generator=self.rng) < share
        return torch.sigmoid(odds + shifted * torch.tensor(settings.level_shift).log())

    def _disturb(self, vectors: Tensor, spread: float) -> Tensor:
        return vectors + spread * torch.randn(vectors.shape, generator=self.rng)


@dataclass(frozen=True)
class Losses:
    """Scalars: the mean squared error of the velocity, and the squared errors of its local and overall means, each times its number of cells."""

    flow: Tensor
    local: Tensor
    overall: Tensor

    def total(self, coarse_weight: float) -> Tensor:
        """Return their weighted sum; every part has the same minimiser."""
        return self.flow + coarse_weight * (self.local + self.overall)


def flow_losses(
    worker: Worker, model: nn.Module, x: Tensor, noise: Tensor, level: Tensor, **conditions: Tensor | None
) -> Losses:
    """Compare the predicted velocity with noise - x at a mixture of both (rectified flow: Liu et al. 2023, arXiv 2209.03003).

    A squared error in any linear image of the velocity is smallest for the same prediction, its conditional mean; the errors of
    means over squares of `LOCAL_CELLS` and over all cells weigh what conditions decide, density and composition, against the many
    cells whose detail no condition knows.
    """
    x, noise, level = (tensor.to(worker.device, non_blocking=True) for tensor in (x, noise, level))
    conditions = {name: None if c is None else c.to(worker.device, non_blocking=True) for name, c in conditions.items()}
    weight = level.view(-1, 1, 1, 1)
    mixture = (1 - weight) * x + weight * noise
    with worker.autocast():
        velocity = model(mixture, level * TIME_SCALE, **conditions)
    error = velocity.float() - (noise - x)
    cells = error.shape[-1] * error.shape[-2]
    local = F.avg_pool2d(error, LOCAL_CELLS).square().mean() * LOCAL_CELLS**2
    return Losses(error.square().mean(), local, error.mean((-2, -1)).square().mean() * cells)


def batch_loss(worker: Worker, model: nn.Module, batches: Batches, count: int, small: bool) -> Losses:
    """Draw a training batch and return its losses."""
    batch = batches.draw(count, small)
    return flow_losses(
        worker,
        model,
        batch.latents,
        batches.noise(batch.latents),
        batches.levels(count, small),
        morphology=batch.morphology,
        expression=batch.expression,
        morphology_null=batch.morphology_null,
        expression_null=batch.expression_null,
    )
