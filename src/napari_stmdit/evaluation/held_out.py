"""Spots that checkpoints are evaluated on: their real patches, what is measured in them, and their encodings."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..intent import CheckpointCard
from ..synthesis.canvas import boxes_around
from ..synthesis.models import PatchModel
from ..tissue.crops import read_patches
from ..types import Section
from .measures import PatchStatistics, measure


class SpotSet:
    """Spots of a section with their encodings by a checkpoint; everything is read or computed when it is first used.

    Parameters
    ----------
    section
        A calibrated section with a full-resolution image.
    rows
        (n,) rows of its table.
    checkpoint
        The checkpoint, or a stand-in.
    """

    def __init__(self, section: Section, rows: NDArray[np.int64], checkpoint: PatchModel) -> None:
        self.section, self.rows, self.checkpoint = section, rows, checkpoint

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of the spots."""
        return tuple(self.section.spots.ids[self.rows].tolist())

    @cached_property
    def crops(self) -> NDArray[np.uint8]:
        """(n, side, side, 3) uint8 real patches at the checkpoint's own scale."""
        return crops_at(self.section, self.section.spots.yx[self.rows], self.checkpoint.card)

    @cached_property
    def real(self) -> PatchStatistics:
        """Measures of the real patches."""
        return measure(self.crops)

    @cached_property
    def expression(self) -> NDArray[np.float32]:
        """(n, d) or (n, tokens, d) encoded expression."""
        spots = self.section.spots
        return self.checkpoint.encode_expression(
            spots.counts[self.rows], spots.genes, self.ids, spots.relative_depth[self.rows]
        )

    @cached_property
    def morphology(self) -> NDArray[np.float32]:
        """(n, tokens, d) encoded morphology of the real patches."""
        return self.checkpoint.encode_morphology(self.crops, self.ids)

    def shifted(self, max_px: float, seed: int = 0) -> NDArray[np.uint8]:
        """Return real patches around the same places moved by up to ``max_px`` full-resolution pixels along each axis."""
        places = self.section.spots.yx[self.rows]
        rng = np.random.default_rng(seed)
        return crops_at(self.section, places + rng.uniform(-max_px, max_px, places.shape), self.checkpoint.card)


def crops_at(section: Section, yx: NDArray[np.float64], card: CheckpointCard) -> NDArray[np.uint8]:
    """Read (n, side, side, 3) patches at a checkpoint's scale around positions (n, 2) in full-resolution pixels."""
    boxes = [b.source for b in boxes_around(yx, card.patch_px, card.patch_mpp / section.mpp)]
    return read_patches(section.slide, boxes, card.patch_px)


def reconstruct(checkpoint: Any, crops: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pass real crops through a checkpoint's autoencoder: the sharpest that it could do."""
    from ..model.autoencoder import decode_images, encode_latents

    vae = checkpoint.pipeline.vae
    parts = []
    for start in range(0, len(crops), 8):
        decoded = decode_images(vae, encode_latents(vae, crops[start : start + 8])).float().clamp(-1, 1)
        parts.append(((decoded + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy())
    return np.concatenate(parts)
