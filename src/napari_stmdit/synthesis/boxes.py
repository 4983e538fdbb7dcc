"""Where patches lie: snapped to a grid of canvas pixels that starts at the slide's corner."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Box:
    """Where a patch lies: ``canvas`` in whole canvas pixels, ``source`` in full-resolution pixels, both (y0, x0, y1, x1)."""

    canvas: tuple[int, int, int, int]
    source: tuple[float, float, float, float]


def boxes_around(centres: NDArray[np.float64], patch_px: int, pixel_size: float) -> list[Box]:
    """Return the box of a patch around each centre, snapped to the canvas grid.

    The grid has its corner at the slide's corner and pixels of ``pixel_size`` full-resolution pixels. Snapping moves a patch by
    at most half a canvas pixel, and reading the source at the snapped place means that pasting never resamples.

    Parameters
    ----------
    centres
        (n, 2) in full-resolution pixels.
    patch_px
        Side of a patch in canvas pixels.
    pixel_size
        Full-resolution pixels per canvas pixel.
    """
    corners = np.rint(centres / pixel_size - patch_px / 2).astype(int)
    return [box_at((int(y), int(x)), patch_px, pixel_size) for y, x in corners]


def box_at(corner: tuple[int, int], side: int, pixel_size: float) -> Box:
    """Return the square box with a corner on the canvas grid."""
    y, x = corner
    canvas = (y, x, y + side, x + side)
    return Box(canvas, (y * pixel_size, x * pixel_size, (y + side) * pixel_size, (x + side) * pixel_size))
