"""Noise that belongs to a place on the slide, not to a region."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

BLOCK = 32
"""Side of the blocks of latent cells that noise is drawn in."""


def field_noise(seed: int, channels: int, corner: tuple[int, int], shape: tuple[int, int]) -> NDArray[np.float32]:
    """Return standard normal noise (channels, height, width) float32 of a part of the plane.

    A cell's noise depends on the seed and on its position alone: two regions that share a place start from the same noise there.

    Parameters
    ----------
    seed
        Of the run.
    channels
        Latent channels.
    corner
        (y, x) of the part, in latent cells from the slide's corner; may be negative.
    shape
        (height, width) in latent cells.
    """
    (y0, x0), (height, width) = corner, shape
    noise = np.empty((channels, height, width), dtype=np.float32)
    for by in range(y0 // BLOCK, -(-(y0 + height) // BLOCK)):
        for bx in range(x0 // BLOCK, -(-(x0 + width) // BLOCK)):
            block = _block(seed, channels, by, bx)
            top, left = max(by * BLOCK, y0), max(bx * BLOCK, x0)
            bottom, right = min((by + 1) * BLOCK, y0 + height), min((bx + 1) * BLOCK, x0 + width)
            noise[:, top - y0 : bottom - y0, left - x0 : right - x0] = block[
                :, top - by * BLOCK : bottom - by * BLOCK, left - bx * BLOCK : right - bx * BLOCK
            ]
    return noise


def _block(seed: int, channels: int, by: int, bx: int) -> NDArray[np.float32]:
    digest = hashlib.sha256(f"{seed}/{channels}/{by}/{bx}".encode()).digest()
    generator = np.random.default_rng(int.from_bytes(digest[:16], "little"))
    return generator.standard_normal((channels, BLOCK, BLOCK), dtype=np.float32)
