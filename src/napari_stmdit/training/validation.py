"""Validation of a transformer: losses with true, shuffled and no conditions, and sample sheets; with the same noise every time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor, nn

from ..evaluation.pictures import INK, font_of
from ..model.folder import load_component
from ..model.pipeline import STMDiTPipeline
from ..model.transformer import STMDiTTransformer2D
from ..storage.atomic import write_atomically
from ..tissue.export import NEW, labelled
from ..types import GuidanceScales, Sampling
from .autoencoder import load_autoencoder
from .batches import morphology_vectors
from .cards import guidance_and_steps, make_scheduler
from .config import DiffusionSettings, TrainingConfig
from .latents import window_corners
from .objective import Objective, prediction_losses
from .parallel import Worker
from .start import open_start, starting_vae

MAX_SPOTS = 96
"""Maximum number of spots, or crops, of a validation."""
SEED = 20
"""Seed of a sheet's places and noise."""
GAP, TITLE_PX, LABEL_PX = 8, 44, 22
MIN_WIDTH = 430
"""Minimum width of a sheet in pixels, for its title."""
NOTICE = "Synthetic tissue images made by a generative model. Not for diagnosis."
ROWS = ("both", "expression only", "morphology only", "none")


class Validation:
    """Losses on the spots of the held-out sections; without any, on training crops, under another ``name``.

    ``name`` is ``validation``, or ``seen_in_training``: such figures say nothing about unseen tissue.
    """

    def __init__(
        self, cache: dict[str, Tensor], settings: DiffusionSettings, objective: Objective, worker: Worker
    ) -> None:
        held = "held_latents" in cache
        self.name = "validation" if held else "seen_in_training"
        self.objective, self.worker = objective, worker
        latents, morphology, expression = _places(cache)
        rng = torch.Generator().manual_seed(7)
        count = min(MAX_SPOTS, len(latents))
        rows = torch.randperm(len(latents), generator=rng)[:count]
        x, window = latents[rows].float(), 0
        if morphology.shape[1] > 1:  # windows cost a fraction of whole crops
            corners = window_corners(cache["latents"].shape[-1], settings.small_cells)
            middle = len(corners) // 2
            (top, left), side, window = corners[middle], settings.small_cells, middle + 1
            x = x[..., top : top + side, left : left + side]
        x = _normalised(x, cache)
        noise = torch.randn(x.shape, generator=rng)
        order = torch.randperm(count, generator=rng)
        level = objective.even_levels(count, settings.level_shift)[order]
        self._x, self._noise, self._level = (part.to(worker.device) for part in (x, noise, level))
        true = morphology[rows, window].to(worker.device)
        self._cases: dict[str, tuple[Tensor | None, Tensor | None]] = {"morphology": (true, None), "none": (None, None)}
        if expression is not None:
            own = expression[rows].to(worker.device)
            shuffled = own.roll(count // 2, 0)
            self._cases |= {
                "both": (true, own),
                "both_shuffled": (true, shuffled),
                "expression": (None, own),
                "expression_shuffled": (None, shuffled),
            }

    @torch.no_grad()
    def losses(self, model: nn.Module) -> dict[str, dict[str, float]]:
        """Return the losses of every combination of conditions."""
        figures = {}
        for name, (morphology, expression) in self._cases.items():
            losses = prediction_losses(
                model,
                self._x,
                self._noise,
                self._level,
                objective=self.objective,
                autocast=self.worker.autocast,
                morphology=morphology,
                expression=expression,
            )
            figures[name] = {part: round(value.item(), 4) for part, value in vars(losses).items()}
        return figures


class SampleSheet:
    """Sheet of samples at a few places with both conditions, either, and none, by the card's solver, steps and guidance.

    The places are held-out spots; where there are none, training crops, and the sheet says so.
    """

    def __init__(self, config: TrainingConfig, cache: dict[str, Tensor], device: torch.device) -> None:
        self.where = "held-out spots" if "held_latents" in cache else "crops seen in training"
        latents, morphology, expression = _places(cache)
        count = min(config.diffusion.samples, len(latents))
        rows = torch.randperm(len(latents), generator=torch.Generator().manual_seed(SEED))[:count]
        self.folder = config.output / "samples"
        self.guidance, self.steps = guidance_and_steps(config)
        self._side = config.patch_px
        self._morphology = morphology[rows, 0]
        self._expression = None if expression is None else expression[rows]
        self._real = _normalised(latents[rows].float(), cache)
        self._vae = _decoder(config, cache).to(device)
        self._scheduler = (
            make_scheduler(config) if config.start is None else load_component(open_start(config), "scheduler")
        )

    def save(self, model: STMDiTTransformer2D, step: int) -> NDArray[np.uint8]:
        """Sample with a model's weights, write the sheet as PNG, labelled as synthetic, and return its pixels (h, w, 3)."""
        sheet = self._draw(model, step)
        label = replace(NEW, statement=f"{NOTICE} The first row is real tissue through the autoencoder.")
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"step_{step:06d}.png"
        write_atomically(path, lambda file: sheet.save(file, format="PNG", **labelled(label)))
        return np.asarray(sheet)

    def _draw(self, model: STMDiTTransformer2D, step: int) -> Image.Image:
        pipeline = STMDiTPipeline(transformer=model, vae=self._vae, scheduler=self._scheduler)
        rows = [("slide through the autoencoder", pipeline.decode(self._real))]
        for label in ROWS if self._expression is not None else ("morphology only", "none"):
            morphology = self._morphology if label in ("both", "morphology only") else None
            expression = self._expression if label in ("both", "expression only") else None
            rows.append((f"synthetic: {label}", self._patches(pipeline, morphology, expression)))
        side, columns = self._side, len(self._real)
        size = (max(MIN_WIDTH, GAP + columns * (side + GAP)), TITLE_PX + len(rows) * (LABEL_PX + side + GAP))
        sheet = Image.new("RGB", size, "white")
        draw = ImageDraw.Draw(sheet)
        draw.text((GAP, 6), f"Step {step}, {self.where}, common noise", fill=INK, font=font_of(15))
        draw.text((GAP, 25), NOTICE, fill=INK, font=font_of(11))
        for number, (label, images) in enumerate(rows):
            top = TITLE_PX + number * (LABEL_PX + side + GAP)
            draw.text((GAP, top + 3), label, fill=INK, font=font_of(13))
            for column, image in enumerate(images):
                sheet.paste(Image.fromarray(image), (GAP + column * (side + GAP), top + LABEL_PX))
        return sheet

    def _patches(
        self, pipeline: STMDiTPipeline, morphology: Tensor | None, expression: Tensor | None
    ) -> NDArray[np.uint8]:
        seeds = tuple(range(SEED, SEED + len(self._real)))
        *_, last = pipeline.denoise_images(
            morphology=morphology,
            expression=expression,
            seeds=seeds,
            sampling=Sampling(GuidanceScales.of(self.guidance), self.steps),
            height=self._side,
            width=self._side,
        )
        assert last.images is not None
        return last.images


def _places(cache: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return latents, morphology (n, 1 + W or 1, T, d) and expression (n, e; None of pictures) of the held-out spots, else of the crops."""
    if "held_latents" in cache:
        latents, morphology, expression = cache["held_latents"], cache["held_morphology"], cache.get("held_expression")
    else:
        latents, morphology = cache["latents"], cache["morphology"]
        expression = cache["expression"][:, 0] if "expression" in cache else None
    return latents, morphology_vectors(morphology), expression


def _normalised(latents: Tensor, cache: dict[str, Tensor]) -> Tensor:
    return (latents - cache["mean"].view(1, -1, 1, 1)) / cache["std"].view(1, -1, 1, 1)


def _decoder(config: TrainingConfig, cache: dict[str, Tensor]) -> Any:
    if config.start is not None and config.autoencoder.refine:
        return load_autoencoder(config)
    if config.start is not None:
        return starting_vae(open_start(config))
    vae = load_autoencoder(config)
    vae.set_latent_statistics(cache["mean"].tolist(), cache["std"].tolist())
    return vae
