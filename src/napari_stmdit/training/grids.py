"""Grids of samples: what the network makes of the same few spots and the same noise as its training goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..model.guidance import branches
from ..model.sampler import ConditionTensors, denoise, noise_for
from ..model.vae import decode_latents
from ..types import Guidance
from .autoencoder import load_autoencoder
from .config import TrainingConfig
from .scheduler import make_scheduler

ROWS = {"both": (True, True), "expression": (False, True), "morphology": (True, False), "none": (False, False)}
"""Which of morphology and expression the patches of a row are told."""
CAPTION_PX = 24


def sample_grid(
    config: TrainingConfig, cache: dict[str, Tensor], model: Any, weights: dict[str, Tensor]
) -> NDArray[np.uint8]:
    """Synthesize a few spots, held-out ones where there are any, under every combination of conditions.

    Parameters
    ----------
    config
        Its card names steps, solver and scales.
    cache
        From `load_cache`.
    model, weights
        A transformer, and the (averaged) weights it takes.

    Returns
    -------
    NDArray[np.uint8]
        (h, w, 3): a captioned row for each entry of `ROWS`, a column for each spot, the same noise in a column.
    """
    model.load_state_dict(weights)
    model.eval()
    held = "held_latents" in cache
    vectors = cache["held_expression"] if held else cache["expression"][:, 0]
    morphology = cache["held_morphology" if held else "morphology"][:, 0]
    rows = torch.linspace(0, len(vectors) - 1, min(config.diffusion.samples, len(vectors))).long()
    card = config.card.get("guidance", {})
    scales = Guidance(**card).filled(Guidance(expression=2.0, morphology=2.0, rule="nested_morphology_first"))
    assert scales.rule is not None and scales.morphology is not None and scales.expression is not None
    vae, scheduler, steps = load_autoencoder(config), make_scheduler(config), int(config.card.get("steps", 20))
    vae.set_latent_statistics(cache["mean"].tolist(), cache["std"].tolist())
    noise = noise_for([int(row) for row in rows], cache["latents"].shape[1:])
    parts = []
    for name, (use_morphology, use_expression) in ROWS.items():
        conditions = ConditionTensors(
            morphology[rows][:, None] if use_morphology else None, vectors[rows] if use_expression else None
        )
        wanted = branches(
            scales.rule,
            scales.morphology,
            scales.expression,
            has_morphology=use_morphology,
            has_expression=use_expression,
        )
        *_, (_, latents) = denoise(model, scheduler, noise, conditions, wanted, steps)
        parts += [_caption(f"synthetic, told: {name}", len(rows) * config.patch_px), _row(decode_latents(vae, latents))]
    return np.concatenate(parts)


def save_grid(grid: NDArray[np.uint8], path: Path) -> None:
    """Write a grid as PNG that says in its text what it is."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    words = PngInfo()
    words.add_text("Description", "Synthetic tissue images made by a generative model in training. Not for diagnosis.")
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(grid).save(path, pnginfo=words)


def _row(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.concatenate(list(images), axis=1)


def _caption(words: str, width: int) -> NDArray[np.uint8]:
    from PIL import Image, ImageDraw

    strip = Image.new("RGB", (width, CAPTION_PX), "white")
    ImageDraw.Draw(strip).text((6, 6), words, fill=(40, 40, 48))
    return np.asarray(strip)
