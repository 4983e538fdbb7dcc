"""Outlines of cells: their line segments, and pictures of them, drawn lazily."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

_TILE = 512
_MIN_PX = 1024


def outlines_of(shapes: NDArray[Any]) -> NDArray[np.float32]:
    """Return the outlines of shapely polygons as line segments; see `pieces_of_rings`."""
    import shapely

    rings = shapely.get_exterior_ring(shapely.get_parts(shapes))
    corners, ring = shapely.get_coordinates(rings, return_index=True)
    return pieces_of_rings(corners[:, ::-1], ring)


def pieces_of_rings(corners: NDArray[np.float64], ring: NDArray[Any]) -> NDArray[np.float32]:
    """Return the line segments of closed rings, (k, 2, 2): start and end of each.

    Parameters
    ----------
    corners
        (m, 2) corners (y, x) of the rings, one ring after the other.
    ring
        (m,) ring of each corner.
    """
    same = ring[1:] == ring[:-1]
    return np.stack([corners[:-1][same], corners[1:][same]], axis=1).astype(np.float32)


def drawn_outlines(pieces: NDArray[np.float32], shape: tuple[int, int]) -> list[Any]:
    """Draw outlines as black lines of one pixel, in a lazy picture.

    Half a million cells have millions of segments, more than a layer of vectors or shapes can show; only the part in view is drawn.

    Parameters
    ----------
    pieces
        (k, 2, 2), in full-resolution pixels.
    shape
        Height and width of the picture in full-resolution pixels.

    Returns
    -------
    list
        Dask arrays (y, x, 4) uint8, each half as large as the one before.
    """
    import dask.array as da

    ordered = pieces[np.argsort(pieces[:, 0, 0], kind="stable")]
    levels: list[Any] = []
    factor = 1
    while not levels or max(levels[-1].shape) > _MIN_PX:
        source = _Drawing(ordered, (-(-shape[0] // factor), -(-shape[1] // factor)), factor)
        levels.append(
            da.from_array(
                source, chunks=(_TILE, _TILE, 4), name=f"outlines-{uuid4().hex}", meta=np.empty((0, 0, 0), np.uint8)
            )
        )
        factor *= 2
    return levels


class _Drawing:
    """Picture of line segments, sorted by where they start from top to bottom, drawn part by part as it is sliced."""

    dtype = np.dtype(np.uint8)
    ndim = 3

    def __init__(self, pieces: NDArray[np.float32], size: tuple[int, int], factor: int) -> None:
        self.shape = (*size, 4)
        self.factor = factor
        self._pieces, self._top = pieces, pieces[:, 0, 0]
        self._reach = float(np.abs(pieces[:, 1] - pieces[:, 0]).max(initial=0.0)) + factor

    def __getitem__(self, key: tuple[slice, slice, slice]) -> NDArray[np.uint8]:
        (top, bottom, _), (left, right, _) = (
            part.indices(size) for part, size in zip(key[:2], self.shape[:2], strict=True)
        )
        drawn = np.zeros((bottom - top, right - left, 4), dtype=np.uint8)
        first, last = np.searchsorted(self._top, (top * self.factor - self._reach, bottom * self.factor + self._reach))
        near = self._pieces[first:last]
        x = near[:, 0, 1]
        near = near[(x >= left * self.factor - self._reach) & (x <= right * self.factor + self._reach)] / np.float32(
            self.factor
        )
        along = near[:, 1] - near[:, 0]
        counts = np.ceil(np.abs(along).max(axis=1, initial=0.0)).astype(np.int64) + 1
        piece = np.repeat(np.arange(len(near)), counts)
        share = (np.arange(len(piece)) - np.repeat(np.cumsum(counts) - counts, counts)) / counts[piece]
        at = np.floor(near[piece, 0] + share[:, None] * along[piece]).astype(np.int64) - (top, left)
        at = at[((at >= 0) & (at < drawn.shape[:2])).all(axis=1)]
        drawn[at[:, 0], at[:, 1], 3] = 255
        return drawn[..., key[2]]
