"""From latents to tiles: each is decoded with a margin and blended with its neighbours at its borders."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..types import Patch, PatchResult, Plan, Windows

RAMP = 32
"""Tiles are blended from so many pixels inside a border to as many outside."""
MARGIN = 128
"""A tile is decoded with so many pixels more on each side: the ramp, and context for a decoder to look at."""


class TileDecoder:
    """Decodes a canvas of latents tile by tile; memory grows with the width of the canvas, not with its area.

    Parameters
    ----------
    latents
        (c, h, w) of the area that the windows cover.
    plan, windows
        Its tiles and their place.
    factor
        Pixels per latent cell.
    decode
        Takes latents (c, h, w), and the corner (y, x) of their place on the canvas in pixels, to an image (h * factor, w * factor, 3).
    """

    def __init__(
        self,
        latents: NDArray[np.float32],
        plan: Plan,
        windows: Windows,
        factor: int,
        decode: Callable[[NDArray[np.float32], tuple[int, int]], NDArray[Any]],
    ) -> None:
        self._latents, self._windows, self._factor, self._decode = latents, windows, factor, decode
        self._tiles = {patch.canvas_box[:2]: patch for patch in plan.patches}
        self._decoded: OrderedDict[tuple[int, int], _Decoded] = OrderedDict()
        # tiles come row by row, and each needs the rows above and below its own
        self._most = 3 * (plan.frame.shape[1] // windows.tile + 2)

    def tile(self, patch: Patch) -> PatchResult:
        """Return a finished tile, with the mask of its pixels that belong to the region."""
        return PatchResult(patch, np.rint(self.blended(patch)).astype(np.uint8), self.mask(patch))

    def blended(self, patch: Patch) -> NDArray[np.float32]:
        """Return what was decoded of a tile, (side, side, 3), blended with its neighbours at its borders."""
        side = self._windows.tile
        y, x = patch.canvas_box[:2]
        total = np.zeros((side, side, 3), dtype=np.float32)
        weights = np.zeros((side, side), dtype=np.float32)
        for dy in (-side, 0, side):
            for dx in (-side, 0, side):
                if (y + dy, x + dx) in self._tiles:
                    self._add((y + dy, x + dx), (y, x), total, weights)
        return np.asarray(total / np.maximum(weights, np.float32(1e-6))[..., None], dtype=np.float32)

    def _add(
        self, at: tuple[int, int], corner: tuple[int, int], total: NDArray[np.float32], weights: NDArray[np.float32]
    ) -> None:
        """Blend in what the tile at ``at`` has to say about the tile at ``corner``."""
        side = self._windows.tile
        decoded = self._get(at)
        ramps, here, there = [], [], []
        for own, other, start, size in zip(corner, at, decoded.corner, decoded.pixels.shape[:2], strict=True):
            low = max(own, other - RAMP, start)
            high = min(own + side, other + side + RAMP, start + size)
            if low >= high:
                return
            middle = np.arange(low, high) + 0.5
            rise = np.minimum(middle - (other - RAMP), other + side + RAMP - middle) / (2 * RAMP)
            ramps.append(np.clip(rise, 0, 1).astype(np.float32))
            here.append(slice(low - own, high - own))
            there.append(slice(low - start, high - start))
        weight = ramps[0][:, None] * ramps[1][None]
        total[tuple(here)] += weight[..., None] * decoded.pixels[tuple(there)]
        weights[tuple(here)] += weight

    def _get(self, at: tuple[int, int]) -> _Decoded:
        if at in self._decoded:
            self._decoded.move_to_end(at)
            return self._decoded[at]
        top, left = self._windows.origin
        side, factor = self._windows.tile, self._factor
        height, width = (n * factor for n in self._latents.shape[1:])
        y0, x0 = max(at[0] - MARGIN - top, 0), max(at[1] - MARGIN - left, 0)
        y1, x1 = min(at[0] + side + MARGIN - top, height), min(at[1] + side + MARGIN - left, width)
        crop = self._latents[:, y0 // factor : y1 // factor, x0 // factor : x1 // factor]
        corner = (y0 + top, x0 + left)
        found = _Decoded(corner, self._decode(np.ascontiguousarray(crop), corner))
        self._decoded[at] = found
        while len(self._decoded) > self._most:
            self._decoded.popitem(last=False)
        return found

    def mask(self, patch: Patch) -> NDArray[np.bool_]:
        """Return which pixels (side, side) of a tile belong to the region."""
        y, x = patch.canvas_box[:2]
        cell, side = self._windows.cell, self._windows.tile
        cells = self._windows.cells[y // cell : (y + side) // cell, x // cell : (x + side) // cell]
        return cells.repeat(cell, axis=0).repeat(cell, axis=1)


class _Decoded:
    """A decoded tile with its margin: its corner on the canvas, and its pixels."""

    def __init__(self, corner: tuple[int, int], pixels: NDArray[Any]) -> None:
        self.corner, self.pixels = corner, pixels
