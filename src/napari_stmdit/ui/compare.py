"""The slide and a synthetic result side by side, with linked pan and zoom: napari's grid, and the way back. No Qt."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

from . import layers

CONTEXT_OPACITY = 0.35
"""The slide under a synthetic result is faded, so that nobody takes what is not synthesized for synthesized."""


def grid_of(viewer: Any) -> Any:
    """Return the grid model: it moved from the viewer to its canvas in napari 0.9."""
    canvas: Any = getattr(viewer, "canvas", None)
    return canvas.grid if hasattr(canvas, "grid") else viewer.grid


@dataclass
class _Before:
    """What the user had before."""

    grid: dict[str, Any]
    order: list[Any]
    visible: dict[int, bool]
    named: list[tuple[Any, bool]]


class SideBySide:
    """Left: the slide with its spots. Right: the result over a faded slide.

    napari's grid puts every ``stride`` layers of the list into a cell and leaves out cells without a visible layer. Our four
    layers are moved to the bottom of the list for the time being and all others are hidden.
    """

    def __init__(self, viewer: Any) -> None:
        self._viewer = weakref.ref(viewer)
        self._before: _Before | None = None
        self._context: Any = None
        self._shown: tuple[Any, ...] = ()

    @property
    def active(self) -> bool:
        """Whether the comparison is on."""
        return self._before is not None

    def uses(self, layer: Any) -> bool:
        """Whether a layer is needed by the comparison that is on."""
        return self.active and any(layer is one for one in self._shown)

    def start(self, slide: Any, spots: Any, result: Any) -> None:
        """Show two layers and what belongs to them side by side; replaces a comparison that is on."""
        self.stop()
        viewer = self._viewer()
        if viewer is None:
            return
        grid = grid_of(viewer)
        pairs = [(layer, layer.name_overlay.visible) for layer in (slide, result) if hasattr(layer, "name_overlay")]
        self._before = _Before(
            {name: getattr(grid, name) for name in ("stride", "shape", "spacing", "enabled")},
            list(viewer.layers),
            {id(layer): layer.visible for layer in viewer.layers},
            pairs,
        )
        section = layers.section_of(slide)
        assert section is not None
        data = layers.slide_layer(section, "context", "slide, faded")
        self._context = layers.insert(viewer, data)
        self._context.opacity = CONTEXT_OPACITY
        left, right = [slide, spots], [self._context, result]
        self._shown = (slide, spots, result)
        for place, layer in enumerate([*left, *right]):
            viewer.layers.move(viewer.layers.index(layer), place)
        for layer in viewer.layers:
            layer.visible = any(layer is one for one in (*left, *right))
        for layer, _ in pairs:
            layer.name_overlay.visible = True
        grid.stride, grid.shape, grid.spacing, grid.enabled = 2, (1, 2), 6, True

    def stop(self) -> None:
        """Give the user's grid, order and visibility back."""
        viewer, before = self._viewer(), self._before
        context, self._before, self._context, self._shown = self._context, None, None, ()
        if viewer is None or before is None:
            return
        grid = grid_of(viewer)
        grid.enabled = False
        if context in viewer.layers:
            viewer.layers.remove(context)
        for layer, named in before.named:
            layer.name_overlay.visible = named
        for layer in viewer.layers:
            layer.visible = before.visible.get(id(layer), layer.visible)
        order = [layer for layer in before.order if layer in viewer.layers]
        order += [layer for layer in viewer.layers if layer not in order]
        for place, layer in enumerate(order):
            viewer.layers.move(viewer.layers.index(layer), place)
        for name, value in before.grid.items():
            setattr(grid, name, value)
