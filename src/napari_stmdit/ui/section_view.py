"""The layers of the open section in one viewer: slide, spots with their colours, lasso. Driven by the presenter; no Qt."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..types import Section
from . import layers
from .colouring import look_of, scale_of
from .gestures import Lasso, OnPlace, on_click
from .selection import SpotFinder
from .state import Colouring, ColourScale


class SectionView:
    """Slide, spots and lasso of one section.

    Parameters
    ----------
    viewer
        Held weakly.
    section
        What is shown.
    on_click, on_lasso
        Called with a place (2,) in full-resolution pixels, and a ring (n, 2) in full-resolution pixels.
    """

    def __init__(self, viewer: Any, section: Section, on_click: OnPlace, on_lasso: OnPlace) -> None:
        self._viewer = weakref.ref(viewer)
        self.section = section
        self.finder = SpotFinder(section.spots)
        self.slide: Any = None
        self.spots: Any = None
        self._on_click, self._on_lasso = on_click, on_lasso
        self._lasso: Lasso | None = None
        self._values: NDArray[np.float32] | None = None
        self._scale = ColourScale()
        self._colormap = Colouring().colormap

    # ------------------------------------------------------------------------------------------- layers

    def show(self) -> None:
        """Add the section's layers, or take over those that a reader added, and look at them."""
        viewer = self._viewer()
        assert viewer is not None
        for layer in list(viewer.layers):
            if layers.section_of(layer) is self.section:
                self._take(layer)
        if self.spots is None:
            for data in layers.section_layers(self.section):
                self._take(viewer.add_layer(layers.make(data)))
            viewer.reset_view()
        self.activate()

    def _take(self, layer: Any) -> None:
        role = layers.role_of(layer)
        if role == "slide":
            self.slide = layer
        elif role == "spots":
            self.spots = layer
            layer.mouse_drag_callbacks.append(on_click(self._on_click))
            layer.editable = False  # a stray Delete must not remove spots; positions belong to the file

    def holds(self, layer: Any) -> bool:
        """Whether a layer is one of ours."""
        return layer is self.slide or layer is self.spots or (self._lasso is not None and layer is self._lasso.layer)

    def forget(self, layer: Any) -> bool:
        """Note that the user removed a layer; return whether the section can no longer be worked with."""
        if layer is self.slide:
            self.slide = None
        if self._lasso is not None and layer is self._lasso.layer:
            self._lasso = None
        if layer is self.spots:
            self.spots = None
        return self.spots is None

    def remove(self) -> None:
        """Take the section's layers out of the viewer."""
        viewer = self._viewer()
        self.stop_lasso()
        for layer in (self.spots, self.slide):
            if viewer is not None and layer is not None and layer in viewer.layers:
                viewer.layers.remove(layer)

    def activate(self) -> None:
        """Make the spots the active layer, so that clicks reach them."""
        viewer = self._viewer()
        if viewer is not None and self.spots is not None and self.spots in viewer.layers:
            viewer.layers.selection.active = self.spots

    # ------------------------------------------------------------------------------------------- lasso

    @property
    def lasso_layer(self) -> Any:
        """The layer that a lasso is drawn on, or None."""
        return None if self._lasso is None else self._lasso.layer

    def start_lasso(self) -> None:
        """Let the user draw around spots until `stop_lasso`."""
        viewer = self._viewer()
        if viewer is None:
            return
        if self._lasso is None:
            self._lasso = Lasso(viewer.add_layer(layers.make(layers.lasso_layer(self.section))), self._ring)
        viewer.layers.selection.active = self._lasso.layer

    def stop_lasso(self) -> None:
        """Take the lasso layer away and go back to clicking."""
        viewer, lasso = self._viewer(), self._lasso
        self._lasso = None
        if lasso is not None and viewer is not None and lasso.layer in viewer.layers:
            viewer.layers.remove(lasso.layer)
            self.activate()

    def _ring(self, world: NDArray[np.float64], how: Any) -> None:
        # world first: the data coordinates of two layers are never compared
        if self.spots is not None:
            self._on_lasso(np.array([self.spots.world_to_data(vertex) for vertex in world]), how)

    # ------------------------------------------------------------------------------------------- colours

    def colour(self, colouring: Colouring) -> ColourScale:
        """Compute what the spots show; `draw` shows it. Return what the colours mean, or why there are none."""
        self._values, self._scale = scale_of(self.section.spots, colouring)
        self._colormap = colouring.colormap
        if self.spots is not None:
            features: dict[str, Any] = {"spot": self.section.spots.ids}
            if self._values is not None:
                features[self._scale.gene or ""] = np.round(self._values, 3)
            self.spots.features = features
        return self._scale

    def draw(self, selected: tuple[str, ...], hollow: set[str]) -> None:
        """Draw colours, selection and rings."""
        if self.spots is None:
            return
        ids = self.section.spots.ids
        chosen = np.isin(ids, np.array(selected, dtype=ids.dtype)) if selected else np.zeros(len(ids), dtype=bool)
        rings = np.isin(ids, np.array(list(hollow), dtype=ids.dtype)) if hollow else np.zeros(len(ids), dtype=bool)
        layers.draw_spots(self.spots, look_of(self._values, self._scale, self._colormap, chosen, rings))
        self.spots.selected_data = set(np.flatnonzero(chosen).tolist())
