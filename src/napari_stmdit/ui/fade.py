"""One layer over another, faded by hand or blinking. Works by opacity, so that no list of visible layers changes. No Qt."""

from __future__ import annotations

import weakref
from typing import Any

from .compare import Kept


class Fade:
    """The upper of two layers, more or less transparent."""

    def __init__(self, viewer: Any) -> None:
        self._viewer = weakref.ref(viewer)
        self._kept = Kept()
        self._pair: tuple[Any, Any] | None = None

    @property
    def active(self) -> bool:
        """Whether the comparison is on."""
        return self._pair is not None

    def uses(self, layer: Any) -> bool:
        """Whether a layer is needed by the comparison that is on."""
        return self._pair is not None and any(layer is one for one in self._pair)

    def start(self, left: Any, right: Any, others: list[Any], position: float) -> None:
        """Show ``right`` over ``left``; ``others`` are hidden for the time being."""
        self.stop()
        if self._viewer() is None:
            return
        for layer in others:
            self._kept.change(layer, visible=False)
        for layer in (left, right):
            self._kept.change(layer, visible=True, opacity=layer.opacity)
        self._pair = (left, right)
        self.move(position)

    def move(self, position: float) -> None:
        """Show so much of the right layer, 0 to 1, and the rest of the left one."""
        viewer = self._viewer()
        if viewer is None or self._pair is None:
            return
        left, right = self._pair
        if viewer.layers.index(right) > viewer.layers.index(left):
            left.opacity, right.opacity = 1.0, position
        else:
            left.opacity, right.opacity = 1.0 - position, 1.0

    def stop(self) -> None:
        """Give the layers their opacity and visibility back."""
        self._pair = None
        self._kept.restore()
