"""Canvas in memory: boxes of patches, and blending where they overlap."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ..types import CanvasFrame, PatchResult


@lru_cache(maxsize=8)
def even(patch_px: int) -> NDArray[np.float32]:
    """Return the (patch_px, patch_px) float32 weights of an edited patch, wide: patches of one slide share their background."""
    window = np.sin(np.pi * (np.arange(patch_px) + 0.5) / patch_px) ** 2
    return np.asarray(np.maximum(window[:, None] * window[None], 1e-6), dtype=np.float32)


@lru_cache(maxsize=8)
def feather(patch_px: int) -> NDArray[np.float32]:
    """Return the (patch_px, patch_px) float32 weights of a patch's pixels.

    A Gaussian of the distance r to the patch's centre, exp(-r^2 / (2 s^2)) with s = patch_px / 11. The ratio of two such weights is a logistic
    function of the position, so each pixel goes to the nearer centre with a soft seam (about 8 pixels wide at a distance of half a patch),
    in any order of pasting. Averaging whole overlaps would blur nuclei that do not coincide.
    """
    axis = np.arange(patch_px) + 0.5 - patch_px / 2
    r2 = axis[:, None] ** 2 + axis[None, :] ** 2
    s = patch_px / 11
    # the floor keeps far corners above float32's smallest normal number, so that they still count where nothing else lies
    return np.maximum(np.exp(-r2 / (2 * s**2)), 1e-30).astype(np.float32)


# Where patches lie: snapped to a grid of canvas pixels that starts at the slide's corner.


@dataclass(frozen=True)
class Box:
    """Box of a patch: ``canvas`` in whole canvas pixels, ``source`` in full-resolution pixels, both (y0, x0, y1, x1)."""

    canvas: tuple[int, int, int, int]
    source: tuple[float, float, float, float]


def boxes_around(centres: NDArray[np.float64], patch_px: int, pixel_size: float) -> list[Box]:
    """Return the box of a patch around each centre, snapped to the canvas grid.

    The grid starts at the slide's corner and has pixels of ``pixel_size`` full-resolution pixels. Snapping moves a patch by at most half a
    canvas pixel, and pasting then never resamples.

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


# Where finished patches are put together.


BYTES_PER_PIXEL = 20
"""Bytes of a pixel: three float32 sums, one float32 weight, four uint8 channels; sums exist only under patches."""


MAX_PIXELS = 150_000_000
"""Largest canvas held in memory: at 20 bytes a pixel, 3 GB."""


def masked(result: PatchResult) -> NDArray[np.uint8]:
    """Return a tile as (h, w, 4) uint8, transparent outside its mask."""
    assert result.mask is not None
    rgba = np.zeros((*result.mask.shape, 4), dtype=np.uint8)
    rgba[..., :3] = result.pixels * result.mask[..., None]
    rgba[..., 3] = 255 * result.mask.astype(np.uint8)
    return rgba


def fits_in_memory(frame: CanvasFrame) -> bool:
    """Return whether a canvas fits in memory; others are kept on disk."""
    return frame.shape[0] * frame.shape[1] <= MAX_PIXELS


class MemoryCanvas:
    """Canvas in memory.

    Attributes
    ----------
    frame
        Size and place.
    even
        Whether overlapping patches are blended evenly, as edited ones are, or each pixel goes to the nearest.
    rgba
        (height, width, 4) uint8, updated in place by `paste`; alpha is 0 where nothing was synthesized and 255 elsewhere.
    finished
        Indices of the pasted patches or tiles.
    """

    def __init__(self, frame: CanvasFrame, even: bool = False) -> None:
        self.frame = frame
        self.even = even
        self.rgba: NDArray[np.uint8] = np.zeros((*frame.shape, 4), dtype=np.uint8)
        self.finished: set[int] = set()
        self._sums = _Sums()
        self._patches: dict[int, NDArray[np.uint8]] = {}

    def paste(self, result: PatchResult) -> tuple[int, int, int, int]:
        """Blend a patch in, or set a tile; return the changed box, (y0, x0, y1, x1) in canvas pixels."""
        y0, x0, y1, x1 = result.patch.canvas_box
        self.finished.add(result.patch.index)
        if result.mask is not None:
            self.rgba[y0:y1, x0:x1] = masked(result)
            return y0, x0, y1, x1
        self._patches[result.patch.index] = result.pixels
        weight = (even if self.even else feather)(y1 - y0)[..., None]
        added = np.concatenate([weight * result.pixels, weight], axis=-1)
        for tile, own in self._sums.under((y0, x0, y1, x1)):
            tile += added[own]
            rows, columns = (slice(part.start + at, part.stop + at) for part, at in zip(own, (y0, x0), strict=True))
            self.rgba[rows, columns, :3] = np.rint(tile[..., :3] / tile[..., 3:]).astype(np.uint8)
            self.rgba[rows, columns, 3] = 255
        return y0, x0, y1, x1

    def patches(self) -> NDArray[np.uint8] | None:
        """Return the pasted patches before blending, (n, p, p, 3), by index; None where there are none."""
        return np.stack([self._patches[index] for index in sorted(self._patches)]) if self._patches else None


class _Sums:
    """Weighted sums of colours and of weights, (h, w, 4) float32, in square tiles allocated when needed.

    In one large array a patch touches fresh memory pages in every row; getting these from the system takes longer than the blending.
    """

    SIDE = 256

    def __init__(self) -> None:
        self._tiles: dict[tuple[int, int], NDArray[np.float32]] = {}

    def under(self, box: tuple[int, int, int, int]) -> Iterator[tuple[NDArray[np.float32], tuple[slice, slice]]]:
        """Yield the parts of tiles under a box (y0, x0, y1, x1), each with its slices of the box."""
        y0, x0, y1, x1 = box
        side = self.SIDE
        for row in range(y0 // side, -(-y1 // side)):
            for column in range(x0 // side, -(-x1 // side)):
                tile = self._tiles.get((row, column))
                if tile is None:
                    tile = self._tiles[row, column] = np.zeros((side, side, 4), dtype=np.float32)
                top, bottom = max(y0, row * side), min(y1, (row + 1) * side)
                left, right = max(x0, column * side), min(x1, (column + 1) * side)
                part = tile[top - row * side : bottom - row * side, left - column * side : right - column * side]
                yield part, (slice(top - y0, bottom - y0), slice(left - x0, right - x0))
