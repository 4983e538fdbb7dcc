"""The layer of a run that is under way: patches appear on it as they are finished, whatever the size of the canvas. No Qt."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..synthesis.canvas import MemoryCanvas
from ..tissue.pyramid import halved_rgba
from ..types import Section
from .layers import KEY, LARGEST_SINGLE_PX, LayerTuple, result_layer

_SMALLEST_LEVEL_PX = 512


class GrowingLayer:
    """A canvas on the screen.

    Parameters
    ----------
    canvas
        What patches are pasted on. Its pixels are shown as they are; coarser levels, where there are any, follow in `changed`.
    section
        The section it belongs to.
    name
        Of the layer.
    """

    def __init__(self, canvas: MemoryCanvas, section: Section, name: str) -> None:
        self._canvas, self._section, self._name = canvas, section, name
        self.layer: Any = None
        self.levels: list[NDArray[np.uint8]] = [canvas.rgba]
        if canvas.rgba.shape[0] * canvas.rgba.shape[1] > LARGEST_SINGLE_PX:
            while max(self.levels[-1].shape[:2]) > _SMALLEST_LEVEL_PX and min(self.levels[-1].shape[:2]) > 1:
                height, width = self.levels[-1].shape[:2]
                self.levels.append(np.zeros((height // 2, width // 2, 4), dtype=np.uint8))

    def changed(self, box: tuple[int, int, int, int]) -> None:
        """Bring the coarser levels up to date under a box (y0, x0, y1, x1) of canvas pixels."""
        y0, x0, y1, x1 = box
        for fine, coarse in zip(self.levels, self.levels[1:], strict=False):
            y0, x0 = y0 // 2, x0 // 2
            y1, x1 = min(-(-y1 // 2), coarse.shape[0]), min(-(-x1 // 2), coarse.shape[1])
            block = np.moveaxis(fine[2 * y0 : 2 * y1, 2 * x0 : 2 * x1], -1, 0)
            coarse[y0:y1, x0:x1] = np.moveaxis(halved_rgba(block), 0, -1)

    def add(self, insert: Callable[[LayerTuple], Any], run: Mapping[str, Any]) -> None:
        """Add the layer; ``run`` goes into its metadata."""
        data, state, kind = result_layer(self._canvas.rgba, self._canvas.frame, self._section, self._name, run)
        if len(self.levels) > 1:
            data, state = self.levels, {**state, "multiscale": True}
        self.layer = insert((data, state, kind))

    def refresh(self) -> None:
        """Send what changed to the screen."""
        if self.layer is not None:
            self.layer.refresh(extent=False, thumbnail=False, highlight=False)

    def finish(self, more: Mapping[str, Any]) -> None:
        """Complete metadata and thumbnail when the run has ended."""
        if self.layer is not None:
            self.layer.metadata[KEY].update(more)
            self.layer.refresh(extent=False, highlight=False)
