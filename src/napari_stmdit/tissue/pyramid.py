"""Smaller and smaller copies of a picture whose colours are weighted with their alpha."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

CHUNK = 512
"""Side of the chunks of a written image."""
_SMALLEST_LEVEL = 512


def halvings(height: int, width: int) -> int:
    """Return how many times an image is halved for display: until it fits in about 512 pixels, and at least once."""
    wanted = max(1, int(np.ceil(np.log2(max(height, width) / _SMALLEST_LEVEL))))
    return min(wanted, int(np.log2(min(height, width))))


def halved_rgba(rgba: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Halve a (4, h, w) image; colours are weighted with alpha, so that what was not synthesized darkens no edge."""
    height, width = rgba.shape[1] // 2, rgba.shape[2] // 2
    blocks = rgba[:, : 2 * height, : 2 * width].astype(np.float32).reshape(4, height, 2, width, 2)
    alpha = blocks[3:]
    weight = alpha.sum(axis=(2, 4))
    colour = (blocks[:3] * alpha).sum(axis=(2, 4)) / np.maximum(weight, 1)
    return np.concatenate([np.rint(colour), np.rint(weight / 4)]).astype(np.uint8)
