"""Whether the transformer uses its conditions: its losses with true, shuffled and null ones, on the same noise every time."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .batches import first_variants, morphology_vectors, prediction_losses
from .config import DiffusionSettings
from .encoding import window_corners
from .objective import Objective
from .parallel import Worker

PLACES = 96


class Controls:
    """Losses on the spots of the held-out sections; where none are held out, on crops that were trained on, and named so.

    Parameters
    ----------
    cache
        From `load_cache`.
    settings
        Of the diffusion stage.
    objective
        What is predicted.
    worker
        Where to compute.

    Attributes
    ----------
    name
        ``validation``, or ``seen_in_training``: such figures say nothing about tissue that was not seen.
    """

    def __init__(
        self, cache: dict[str, Tensor], settings: DiffusionSettings, objective: Objective, worker: Worker
    ) -> None:
        held = "held_latents" in cache
        self.name = "validation" if held else "seen_in_training"
        self.objective, self.worker = objective, worker
        latents, morphology, expression = (
            (cache["held_latents"], cache["held_morphology"], cache.get("held_expression"))
            if held
            else (cache["latents"], cache["morphology"], first_variants(cache))
        )
        rng = torch.Generator().manual_seed(7)
        count = min(PLACES, len(latents))
        rows = torch.randperm(len(latents), generator=rng)[:count]
        x, vectors, window = latents[rows].float(), morphology_vectors(morphology), 0
        if vectors.shape[1] > 1:  # windows cost a fraction of whole crops
            corners = window_corners(cache["latents"].shape[-1], settings.small_cells)
            middle = len(corners) // 2
            (top, left), side, window = corners[middle], settings.small_cells, middle + 1
            x = x[..., top : top + side, left : left + side]
        x = (x - cache["mean"].view(1, -1, 1, 1)) / cache["std"].view(1, -1, 1, 1)
        noise = torch.randn(x.shape, generator=rng)
        order = torch.randperm(count, generator=rng)
        level = objective.even_levels(count, settings.level_shift)[order]
        true = vectors[rows, window]
        self._given = tuple(part.to(worker.device) for part in (x, noise, level))
        cases: dict[str, tuple[Tensor | None, Tensor | None]] = {"morphology": (true, None), "none": (None, None)}
        if expression is not None:
            own = expression[rows]
            shuffled = own.roll(count // 2, 0)
            cases |= {
                "both": (true, own),
                "both_shuffled": (true, shuffled),
                "expression": (None, own),
                "expression_shuffled": (None, shuffled),
            }
        self._cases = {
            name: [None if part is None else part.to(worker.device) for part in parts] for name, parts in cases.items()
        }

    @torch.no_grad()
    def losses(self, model: nn.Module) -> dict[str, dict[str, float]]:
        """Return, for every combination of conditions, the parts of the loss; noise and levels are the same every time."""
        x, noise, level = self._given
        figures = {}
        for name, (morphology, expression) in self._cases.items():
            losses = prediction_losses(
                model,
                x,
                noise,
                level,
                objective=self.objective,
                autocast=self.worker.autocast,
                morphology=morphology,
                expression=expression,
            )
            figures[name] = {part: round(value.item(), 4) for part, value in vars(losses).items()}
        return figures
