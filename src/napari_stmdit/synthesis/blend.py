"""How overlapping patches share a pixel."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


@lru_cache(maxsize=8)
def even(patch_px: int) -> NDArray[np.float32]:
    """Return the (patch_px, patch_px) float32 weight of an edited patch's pixels, wide: patches of one slide share their background."""
    window = np.sin(np.pi * (np.arange(patch_px) + 0.5) / patch_px) ** 2
    return np.asarray(np.maximum(window[:, None] * window[None], 1e-6), dtype=np.float32)


@lru_cache(maxsize=8)
def feather(patch_px: int) -> NDArray[np.float32]:
    """Return the (patch_px, patch_px) float32 weight of a patch's pixels.

    A Gaussian of the distance r to the patch's centre, exp(-r^2 / (2 s^2)) with s = patch_px / 11. Between two overlapping patches
    the ratio of two such weights is a logistic function of the position, so each pixel goes to the nearer centre with a soft seam
    (about 8 pixels wide at a distance of half a patch), whatever the order of pasting; averaging whole overlaps instead would
    blur nuclei that do not coincide.
    """
    axis = np.arange(patch_px) + 0.5 - patch_px / 2
    r2 = axis[:, None] ** 2 + axis[None, :] ** 2
    s = patch_px / 11
    # the floor keeps far corners above float32's smallest normal number, so that they still count where nothing else lies
    return np.maximum(np.exp(-r2 / (2 * s**2)), 1e-30).astype(np.float32)
