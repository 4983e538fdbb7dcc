"""Validation of an autoencoder on held-out pictures while it learns."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from ..evaluation.effects import ms_ssim
from ..evaluation.measures import high_frequency
from ..model.autoencoder import StmditAutoencoder
from .config import TrainingConfig
from .pictures import held_out_crops

CROPS = 6
"""Crops of each held-out picture."""


class HeldOutImages:
    """A few crops of each held-out picture of a config, always the same ones, on whose reconstructions an autoencoder is validated."""

    def __init__(self, config: TrainingConfig) -> None:
        self.every = config.autoencoder.validate_every
        self.crops = held_out_crops(config, CROPS)

    def due(self, step: int) -> bool:
        """Return whether a validation is due after so many steps."""
        return bool(self.crops) and step % self.every == 0

    def figures(self, model: StmditAutoencoder) -> dict[str, dict[str, float]]:
        """Return for each picture the likeness (MS-SSIM), the high-frequency energy relative to the real one and the largest shift of a mean colour in grey levels."""
        return {name: judge(crops, reconstruct(model, crops)) for name, crops in self.crops.items()}


@torch.inference_mode()
def reconstruct(model: StmditAutoencoder, crops: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Encode and decode (n, h, w, 3) uint8 crops."""
    device = next(model.parameters()).device
    images = torch.from_numpy(crops).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
    made = model.decode_latents(model.encode_latents(images))
    pixels: NDArray[np.uint8] = ((made + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return pixels


def judge(crops: NDArray[np.uint8], made: NDArray[np.uint8]) -> dict[str, float]:
    """Return the figures of (n, h, w, 3) reconstructions beside what they are of."""
    sharp, real = (np.mean([high_frequency(image) for image in images]) for images in (made, crops))
    shift = np.abs(made.mean(axis=(1, 2)) - crops.mean(axis=(1, 2))).max(axis=1)
    likeness = np.mean([ms_ssim(a, b) for a, b in zip(crops, made, strict=True)])
    return {
        "ms_ssim": round(float(likeness), 4),
        "high_frequency": round(float(sharp / real), 4),
        "colour": round(float(shift.mean()), 2),
    }
