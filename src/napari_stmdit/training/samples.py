"""Sheets of samples: the same places and the same noise every time, so that one sees the transformer learn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from ..evaluation.picture import INK, font_of
from ..model.folder import load_component
from ..model.pipeline import STMDiTPipeline
from ..model.transformer import STMDiTTransformer2D
from ..storage.atomic import write_atomically
from ..tissue.labels import NEW, labelled
from .batches import first_variants, morphology_vectors
from .cards import guidance_and_steps, make_scheduler
from .config import TrainingConfig
from .start import open_start, starting_vae

GAP, TITLE_PX, LABEL_PX = 8, 44, 22
NARROWEST = 430
"""Of a sheet in pixels: what its title takes."""
SEED = 20
WORDS = "Synthetic tissue images made by a generative model. Not for diagnosis."
ROWS = ("both", "expression only", "morphology only", "none")


class SampleSheet:
    """Draws patches of a few places with both conditions, either, and none, with the solver, steps and guidance of the card.

    The places are spots of the held-out sections; where there are none, crops that were trained on, and the sheet says so.

    Parameters
    ----------
    config, cache
        Of the training.
    device
        Where the transformer is.
    """

    def __init__(self, config: TrainingConfig, cache: dict[str, Tensor], device: torch.device) -> None:
        held = "held_latents" in cache
        self.where = "held-out spots" if held else "crops seen in training"
        prefix = "held_" if held else ""
        latents = cache[prefix + "latents"]
        expression = cache.get("held_expression") if held else first_variants(cache)
        count = min(config.diffusion.samples, len(latents))
        rows = torch.randperm(len(latents), generator=torch.Generator().manual_seed(SEED))[:count]
        self.folder = config.output / "samples"
        self.guidance, self.steps = guidance_and_steps(config)
        self._side = config.patch_px
        self._morphology = morphology_vectors(cache[prefix + "morphology"])[rows, 0]
        self._expression = None if expression is None else expression[rows]
        mean, std = (cache[key].view(1, -1, 1, 1) for key in ("mean", "std"))
        self._real = (latents[rows].float() - mean) / std
        self._vae = _decoder(config, cache).to(device)
        self._scheduler = (
            make_scheduler(config) if config.start is None else load_component(open_start(config), "scheduler")
        )

    def save(self, model: STMDiTTransformer2D, step: int) -> NDArray[np.uint8]:
        """Draw a sheet with a model's weights, write it as PNG, labelled as synthetic, and return its pixels (h, w, 3)."""
        sheet = self._draw(model, step)
        label = replace(NEW, statement=f"{WORDS} The first row is real tissue through the autoencoder.")
        path = self.path_of(step)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda file: sheet.save(file, format="PNG", **labelled(label)))
        return np.asarray(sheet)

    def path_of(self, step: int) -> Path:
        """Return the file of a step's sheet."""
        return self.folder / f"step_{step:06d}.png"

    def _draw(self, model: STMDiTTransformer2D, step: int) -> Image.Image:
        pipeline = STMDiTPipeline(transformer=model, vae=self._vae, scheduler=self._scheduler)
        rows = [("slide through the autoencoder", pipeline.decode(self._real))]
        for label in ROWS if self._expression is not None else ROWS[2:]:
            morphology = self._morphology if label in ("both", "morphology only") else None
            expression = self._expression if label in ("both", "expression only") else None
            rows.append((f"synthetic: {label}", self._patches(pipeline, morphology, expression)))
        side, columns = self._side, len(self._real)
        size = (max(NARROWEST, GAP + columns * (side + GAP)), TITLE_PX + len(rows) * (LABEL_PX + side + GAP))
        sheet = Image.new("RGB", size, "white")
        draw = ImageDraw.Draw(sheet)
        draw.text((GAP, 6), f"Step {step}, {self.where}, common noise", fill=INK, font=font_of(15))
        draw.text((GAP, 25), WORDS, fill=INK, font=font_of(11))
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
        images: NDArray[np.uint8] | None = None
        for _, _, images in pipeline.denoise_images(  # noqa: B007 # the last one carries the images
            morphology=morphology,
            expression=expression,
            seeds=seeds,
            guidance=self.guidance,
            num_inference_steps=self.steps,
            height=self._side,
            width=self._side,
        ):
            pass
        assert images is not None
        return images


def _decoder(config: TrainingConfig, cache: dict[str, Tensor]) -> Any:
    from .autoencoder import load_autoencoder

    if config.start is not None and config.autoencoder.refine:
        return load_autoencoder(config)
    if config.start is not None:
        return starting_vae(open_start(config))
    vae = load_autoencoder(config)
    vae.set_latent_statistics(cache["mean"].tolist(), cache["std"].tolist())
    return vae
