"""Where finished patches are put together."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..types import CanvasFrame, PatchResult
from .blend import feather

BYTES_PER_PIXEL = 20
"""Three float32 sums, one float32 weight, four uint8 channels."""


MOST_PIXELS = 150_000_000
"""Largest canvas held in memory: at 20 bytes a pixel, 3 GB."""


class Canvas(Protocol):
    """Takes finished patches and tiles."""

    frame: CanvasFrame

    @property
    def rgba(self) -> Any:
        """(height, width, 4) uint8, numpy or a lazy dask array; alpha is 0 where nothing was synthesized."""

    def paste(self, result: PatchResult) -> tuple[int, int, int, int]:
        """Take a patch or tile in; return the box that changed, (y0, x0, y1, x1) in canvas pixels."""


def masked(result: PatchResult) -> NDArray[np.uint8]:
    """Return a tile as (h, w, 4) uint8; nothing shows outside its mask."""
    assert result.mask is not None
    rgba = np.zeros((*result.mask.shape, 4), dtype=np.uint8)
    rgba[..., :3] = result.pixels * result.mask[..., None]
    rgba[..., 3] = 255 * result.mask.astype(np.uint8)
    return rgba


def fits_in_memory(frame: CanvasFrame) -> bool:
    """Whether a canvas is small enough for `MemoryCanvas`; others are held on disk."""
    return frame.shape[0] * frame.shape[1] <= MOST_PIXELS


class MemoryCanvas:
    """A canvas held in memory.

    Attributes
    ----------
    frame
        Its size and place.
    rgba
        (height, width, 4) uint8, updated in place by `paste`; alpha is 0 where nothing was synthesized and 255 elsewhere.
    """

    def __init__(self, frame: CanvasFrame) -> None:
        self.frame = frame
        self.rgba: NDArray[np.uint8] = np.zeros((*frame.shape, 4), dtype=np.uint8)
        self._sum = np.zeros((*frame.shape, 3), dtype=np.float32)
        self._weight = np.zeros(frame.shape, dtype=np.float32)

    def paste(self, result: PatchResult) -> tuple[int, int, int, int]:
        """Blend a patch in, or set a tile; return the box that changed, (y0, x0, y1, x1) in canvas pixels."""
        y0, x0, y1, x1 = result.patch.canvas_box
        place = (slice(y0, y1), slice(x0, x1))
        if result.mask is not None:
            self.rgba[place] = masked(result)
            return y0, x0, y1, x1
        weight = feather(y1 - y0)
        self._sum[place] += weight[..., None] * result.pixels
        self._weight[place] += weight
        mixed = self._sum[place] / self._weight[place][..., None]
        self.rgba[place][..., :3] = np.rint(mixed).astype(np.uint8)
        self.rgba[place][..., 3] = 255
        return y0, x0, y1, x1
