"""The slide and results side by side, with linked pan and zoom: napari's grid, and the way back. No Qt."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from typing import Any

from . import layers

CONTEXT_OPACITY = 0.35
"""The slide under a synthetic result is faded, so that nobody takes what is not synthesized for synthesized."""
NAME_PT = 7
"""Names have to fit into a third of the canvas."""


def grid_of(viewer: Any) -> Any:
    """Return the grid model: it moved from the viewer to its canvas in napari 0.9."""
    canvas: Any = getattr(viewer, "canvas", None)
    return canvas.grid if hasattr(canvas, "grid") else viewer.grid


def scale_bar_of(viewer: Any) -> Any:
    """Return the scale bar's model: it moved from the viewer to its canvas in napari 0.9."""
    canvas: Any = getattr(viewer, "canvas", None)
    return canvas.overlays.scale_bar if hasattr(canvas, "overlays") else viewer.scale_bar


def camera_of(viewer: Any) -> Any:
    """Return the camera: it moved from the viewer to its scene in napari 0.9."""
    scene: Any = getattr(viewer, "scene", None)
    return scene.camera if hasattr(scene, "camera") else viewer.camera


@dataclass
class Kept:
    """Attributes of the user's that a comparison changes, and their values before; `restore` gives them back, latest first."""

    values: list[tuple[weakref.ref[Any], str, Any]] = field(default_factory=list)

    def change(self, owner: Any, **new: Any) -> None:
        """Set attributes and remember what they were."""
        for name, value in new.items():
            self.values.append((weakref.ref(owner), name, getattr(owner, name)))
            setattr(owner, name, value)

    def restore(self) -> None:
        """Set everything back."""
        while self.values:
            owner, name, value = self.values.pop()
            found = owner()
            if found is not None:
                setattr(found, name, value)


class SideBySide:
    """A cell for the slide with its spots, and a cell for each result over a faded slide.

    napari's grid puts every ``stride`` layers of the list into a cell and leaves out cells without a visible layer. Our layers
    are moved to the bottom of the list for the time being and all others are hidden.
    """

    def __init__(self, viewer: Any) -> None:
        self._viewer = weakref.ref(viewer)
        self._order: list[Any] | None = None
        self._kept = Kept()
        self._contexts: list[Any] = []
        self._shown: tuple[Any, ...] = ()

    @property
    def active(self) -> bool:
        """Whether the comparison is on."""
        return self._order is not None

    def uses(self, layer: Any) -> bool:
        """Whether a layer is needed by the comparison that is on."""
        return self.active and any(layer is one for one in self._shown)

    def start(self, slide: Any, spots: Any, results: list[Any]) -> None:
        """Show the slide and results side by side; replaces a comparison that is on."""
        self.stop()
        viewer = self._viewer()
        if viewer is None:
            return
        self._order = list(viewer.layers)
        section = layers.section_of(slide)
        assert section is not None
        cells = [slide, spots]
        for result in results:
            context = layers.insert(viewer, layers.slide_layer(section, "context", "slide, faded"))
            context.opacity = CONTEXT_OPACITY
            self._contexts.append(context)
            cells += [context, result]
        self._shown = (slide, spots, *results)
        for place, layer in enumerate(cells):
            viewer.layers.move(viewer.layers.index(layer), place)
        for layer in viewer.layers:
            self._kept.change(layer, visible=any(layer is one for one in cells))
        for layer in (slide, *results):
            if hasattr(layer, "name_overlay"):
                self._kept.change(layer.name_overlay, visible=True, font_size=NAME_PT)
        self._kept.change(grid_of(viewer), stride=2, shape=(1, len(cells) // 2), spacing=6, enabled=True)
        bar = scale_bar_of(viewer)
        self._kept.change(bar, visible=True)
        if hasattr(bar, "gridded"):
            self._kept.change(bar, gridded=True)

    def stop(self) -> None:
        """Give the user's grid, scale bar, order and visibility back."""
        viewer, order = self._viewer(), self._order
        contexts, self._contexts, self._order, self._shown = self._contexts, [], None, ()
        if viewer is None or order is None:
            self._kept.values.clear()
            return
        bar = scale_bar_of(viewer)
        if hasattr(bar, "gridded"):
            bar.gridded = False  # first: napari redraws a gridded bar while cells come and go
        grid_of(viewer).enabled = False
        self._kept.restore()
        for context in contexts:
            if context in viewer.layers:
                viewer.layers.remove(context)
        order = [layer for layer in order if layer in viewer.layers]
        order += [layer for layer in viewer.layers if layer not in order]
        for place, layer in enumerate(order):
            viewer.layers.move(viewer.layers.index(layer), place)
