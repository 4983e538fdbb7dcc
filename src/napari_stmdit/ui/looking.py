"""Going to a result and back, its frames, and what the spots over it show. No Qt."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import layers
from .gestures import camera_of
from .results import ResultList
from .state import ResultEntry, WorkbenchState

SMALL = 1 / 3
"""A result that takes less of the view than this, along both axes, is gone to when it is there."""
FILLED = 0.5
"""Share of the view that a result takes when it is gone to: the tissue around it is seen too."""
Quads = NDArray[np.float64]
"""Corners (n, 4, 2) of rectangles, (y, x) in the world."""


def canvas_size_of(viewer: Any) -> NDArray[np.float64]:
    """Return height and width of the canvas in pixels: it moved to the canvas's model in napari 0.9."""
    canvas: Any = getattr(viewer, "canvas", None)
    return np.asarray(canvas.size if hasattr(canvas, "size") else viewer._canvas_size, dtype=np.float64)


class Looking:
    """Moves the camera to results and back, and raises the chosen one over the others."""

    def __init__(self, viewer: Any, state: WorkbenchState, results: ResultList) -> None:
        self._viewer = weakref.ref(viewer)
        self.state = state
        self._results = results
        self._before: tuple[Any, float] | None = None
        self._known: frozenset[int] = frozenset()
        state.events.results.connect(self._results_changed, max_args=0)
        state.events.chosen_result.connect(self._raise, max_args=0)

    def frames(self, number: int | None) -> Quads:
        """Return the frames of a result's patches; of seamless tissue, and of what was read back, that of the whole."""
        entry, layer = self._results.entry(number), self._results.layer(number)
        if entry is None or layer is None or entry.section is not self.state.section:
            return np.empty((0, 4, 2))
        if entry.result is not None and entry.request.mode == "spots":
            boxes = [entry.result.plan.patches[place].canvas_box for place in entry.result.done]
        else:
            height, width = (layer.data[0] if layer.multiscale else layer.data).shape[:2]
            boxes = [(0, 0, height, width)]
        corners = np.array([[(y0, x0), (y0, x1), (y1, x1), (y1, x0)] for y0, x0, y1, x1 in boxes])
        corners = corners.reshape(-1, 4, 2) - 0.5
        # an affine is known by three places: to ask napari for each corner takes a second of a whole section
        origin, down, right = (np.array(layer.data_to_world(place)[-2:]) for place in ((0, 0), (1, 0), (0, 1)))
        return np.asarray(origin + corners[..., :1] * (down - origin) + corners[..., 1:] * (right - origin))

    def go(self, number: int | None) -> None:
        """Put a result into the middle of the view; `back` returns from there."""
        viewer, frames = self._viewer(), self.frames(number)
        if viewer is None or not len(frames):
            return
        self._results.show(int(number or 0), True)
        camera = camera_of(viewer)
        if self._before is None:
            self._before = (tuple(camera.center), float(camera.zoom))
        low, high = frames.min(axis=(0, 1)), frames.max(axis=(0, 1))
        camera.center = (*tuple(camera.center)[:-2], *((low + high) / 2))
        camera.zoom = float(FILLED * (canvas_size_of(viewer) / np.maximum(high - low, 1e-6)).min())
        self.state.way_back = True

    def back(self) -> None:
        """Look again where the user looked before."""
        viewer, before = self._viewer(), self._before
        self.forget()
        if viewer is not None and before is not None:
            camera = camera_of(viewer)
            camera.center, camera.zoom = before

    def forget(self) -> None:
        """Forget where the user looked before."""
        self._before = None
        self.state.way_back = False

    def look_at(self, layer: Any) -> None:
        """Show a layer as large as fits."""
        viewer = self._viewer()
        if viewer is None or layer is None:
            return
        camera = camera_of(viewer)
        low, high = (np.asarray(end, dtype=np.float64)[-2:] for end in layer.extent.world)
        camera.center = (*tuple(camera.center)[:-2], *((low + high) / 2))
        camera.zoom = float(0.95 * (canvas_size_of(viewer) / np.maximum(high - low, 1e-6)).min())

    def _results_changed(self) -> None:
        """Go to a result that is new and was made here, where it is small in the view or outside it."""
        known, self._known = self._known, frozenset(entry.number for entry in self.state.results)
        for entry in self.state.results:
            if entry.number not in known and entry.result is not None and not self._is_seen(entry):
                self.go(entry.number)

    def _is_seen(self, entry: ResultEntry) -> bool:
        viewer, frames = self._viewer(), self.frames(entry.number)
        if viewer is None or not len(frames):
            return True
        camera = camera_of(viewer)
        low, high = frames.min(axis=(0, 1)), frames.max(axis=(0, 1))
        view = canvas_size_of(viewer) / camera.zoom
        corner = np.asarray(camera.center, dtype=np.float64)[-2:] - view / 2
        outside = bool((high < corner).any() or (low > corner + view).any())
        return not outside and bool(((high - low) / view).max() >= SMALL)

    def _raise(self) -> None:
        """Put the chosen result over the other ones, unless they are being compared."""
        viewer, layer = self._viewer(), self._results.layer(self.state.chosen_result)
        if viewer is None or layer is None or layer not in viewer.layers or self.state.comparison is not None:
            return
        others = [x for x in viewer.layers if layers.role_of(x) in ("result", "stored") and x is not layer]
        above = max((viewer.layers.index(x) for x in others), default=-1)
        if above > viewer.layers.index(layer):
            viewer.layers.move(viewer.layers.index(layer), above + 1)
