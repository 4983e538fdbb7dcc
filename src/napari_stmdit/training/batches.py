"""Batches of the diffusion stage: latents with their conditions."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .config import DiffusionSettings
from .latents import window_corners
from .objective import FLOW, Losses, Objective, prediction_losses


@dataclass(frozen=True)
class Batch:
    """Training batch: latents (B, C, side, side), morphology (B, T, d), expression (B, e) or None; masks (B,), True: condition dropped."""

    latents: Tensor
    morphology: Tensor
    expression: Tensor | None
    morphology_null: Tensor
    expression_null: Tensor | None


class Batches:
    """Sampler of training batches from the cache (`load_cache`), with condition dropout and noise on the conditions."""

    def __init__(
        self, cache: dict[str, Tensor], settings: DiffusionSettings, seed: int, objective: Objective = FLOW
    ) -> None:
        self.latents = cache["latents"]
        self.mean, self.std = cache["mean"].view(1, -1, 1, 1), cache["std"].view(1, -1, 1, 1)
        self.morphology, self.expression = morphology_vectors(cache["morphology"]), cache.get("expression")
        noises = {"morphology": settings.condition_noise, "expression": settings.expression_noise}
        self.noises = [noise * float(cache.get(f"{name}_spread", 1.0)) for name, noise in noises.items()]
        self.settings = settings
        self.objective = objective
        self.rng = torch.Generator().manual_seed(seed)
        self.corners = torch.tensor(window_corners(self.latents.shape[-1], settings.small_cells))

    def seed(self, seed: int) -> None:
        """Seed the draws from here on."""
        self.rng.manual_seed(seed)

    def draw(self, count: int, small: bool) -> Batch:
        """Draw ``count`` whole crops, or windows of crops with the window's own morphology."""
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
        if self.expression is None:
            given = settings.share_both + settings.share_expression + settings.share_morphology
            morphology = self._disturb(self.morphology[rows, window], self.noises[0])
            return Batch(x, morphology, None, torch.rand(count, generator=rng) >= given, None)
        variant = torch.randint(self.expression.shape[1], (count,), generator=rng)
        morphology = self._disturb(self.morphology[rows, window], self.noises[0])
        expression = self._disturb(self.expression[rows, variant], self.noises[1])
        lot = torch.rand(count, generator=rng)
        both = settings.share_both
        expression_only = (lot >= both) & (lot < both + settings.share_expression)
        rest = lot - both - settings.share_expression
        morphology_only = (rest >= 0) & (rest < settings.share_morphology)
        none = rest >= settings.share_morphology
        return Batch(x, morphology, expression, expression_only | none, morphology_only | none)

    def noise(self, like: Tensor) -> Tensor:
        """Return standard normal noise of the same shape."""
        return torch.randn(like.shape, generator=self.rng)

    def levels(self, count: int, small: bool) -> Tensor:
        """Return (count,) noise levels between 0 and 1; see `Objective.draw_levels`."""
        share = 1.0 if small else self.settings.shifted_share
        return self.objective.draw_levels(count, self.settings.level_shift, share, self.rng)

    def _disturb(self, vectors: Tensor, spread: float) -> Tensor:
        return vectors + spread * torch.randn(vectors.shape, generator=self.rng)


def morphology_vectors(cached: Tensor) -> Tensor:
    """Return cached morphology (N, 1 + W, d) or (N, 1, T, d) as (N, 1 + W or 1, T, d)."""
    return cached[:, :, None] if cached.ndim == 3 else cached


def batch_loss(
    model: nn.Module,
    batches: Batches,
    count: int,
    small: bool,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Losses:
    """Draw a training batch and return its losses."""
    batch = batches.draw(count, small)
    noise, level = batches.noise(batch.latents), batches.levels(count, small)
    latents, noise, level = batch.latents.to(device, non_blocking=True), noise.to(device), level.to(device)
    conditions = {
        name: None if value is None else value.to(device, non_blocking=True)
        for name, value in vars(batch).items()
        if name != "latents"
    }
    return prediction_losses(model, latents, noise, level, objective=batches.objective, autocast=autocast, **conditions)
