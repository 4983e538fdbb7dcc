"""Results on the canvas: navigation to them and back, frames, and the layer of an edit's change. No Qt."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..evaluation.measures import stain_density
from ..synthesis.canvas import MAX_PIXELS, box_at
from ..tissue.crops import computed, read_patches
from ..tissue.geometry import apply
from ..tissue.images import MIN_LEVEL_PX
from . import jobs, layers
from .compare import canvas_size_of, cells_of
from .gestures import camera_of
from .jobs import Handlers, Lane, Start
from .results import ResultList
from .state import ResultEntry, WorkbenchState

SMALL = 1 / 3
"""Fraction of the view, along both axes, below which a new result is zoomed to."""
FILLED = 0.5
"""Fraction of the view that a result takes after zooming: the tissue around it is visible, too."""
Quads = NDArray[np.float64]
"""Corners (n, 4, 2) of rectangles, (y, x) in the world."""


class Looking:
    """Camera movement to results and back; raises the chosen one over the others."""

    def __init__(self, viewer: Any, state: WorkbenchState, results: ResultList) -> None:
        self._viewer = weakref.ref(viewer)
        self.state = state
        self._results = results
        self._before: tuple[Any, float] | None = None
        self._known: frozenset[int] = frozenset()
        self.drawing: Callable[[], bool] = lambda: False
        """Whether the user is drawing: nothing moves under the hand."""
        self.turning: Callable[[int], None] = lambda number: None
        """Callback with the number of a result before the view moves to it."""
        state.events.results.connect(self._results_changed, max_args=0)
        state.events.chosen_result.connect(self._raise, max_args=0)

    def frames(self, number: int | None) -> Quads:
        """Return the frames of a result's patches, or of the whole of seamless tissue."""
        entry, layer = self._results.entry(number), self._results.layer(number)
        if entry is None or layer is None or entry.section is not self.state.section:
            return np.empty((0, 4, 2))
        if entry.result is not None and entry.request.mode == "spots":
            boxes = [entry.result.plan.patches[place].canvas_box for place in entry.result.done]
        elif entry.stored is not None and entry.request.mode == "spots":
            record = dict(entry.provenance.get("patches") or {})
            sources = np.array(record.get("source_boxes_yx_fullres", ())).reshape(-1, 2)
            ends = np.rint(apply(np.linalg.inv(entry.stored.pixel_to_fullres), sources)).astype(int)
            boxes = [(y0, x0, y1, x1) for y0, x0, y1, x1 in ends.reshape(-1, 4).tolist()]
        else:
            height, width = (layer.data[0] if layer.multiscale else layer.data).shape[:2]
            boxes = [(0, 0, height, width)]
        corners = np.array([[(y0, x0), (y0, x1), (y1, x1), (y1, x0)] for y0, x0, y1, x1 in boxes])
        corners = corners.reshape(-1, 4, 2) - 0.5
        # an affine is known by three places: to ask napari for each corner takes a second of a whole section
        origin, down, right = (np.array(layer.data_to_world(place)[-2:]) for place in ((0, 0), (1, 0), (0, 1)))
        return np.asarray(origin + corners[..., :1] * (down - origin) + corners[..., 1:] * (right - origin))

    def go(self, number: int | None) -> None:
        """Centre the view on a result; `back` returns."""
        viewer, frames = self._viewer(), self.frames(number)
        if viewer is None or number is None or not len(frames):
            return
        self.turning(number)
        self._results.show(number, True)
        camera = camera_of(viewer)
        if self._before is None:
            self._before = (tuple(camera.center), float(camera.zoom) * cells_of(viewer).max())
        low, high = frames.min(axis=(0, 1)), frames.max(axis=(0, 1))
        camera.center = (*tuple(camera.center)[:-2], *((low + high) / 2))
        camera.zoom = float(FILLED * (canvas_size_of(viewer) / np.maximum(high - low, 1e-6)).min())
        self.state.way_back = True

    def back(self) -> None:
        """Return to the former view."""
        viewer, before = self._viewer(), self._before
        self.forget()
        if viewer is not None and before is not None:
            camera = camera_of(viewer)
            camera.center, camera.zoom = before[0], before[1] / cells_of(viewer).max()

    def forget(self) -> None:
        """Forget the former view."""
        self._before = None
        self.state.way_back = False

    def look_at(self, layer: Any) -> None:
        """Zoom a layer to fit."""
        viewer = self._viewer()
        if viewer is None or layer is None:
            return
        camera = camera_of(viewer)
        low, high = (np.asarray(end, dtype=np.float64)[-2:] for end in layer.extent.world)
        camera.center = (*tuple(camera.center)[:-2], *((low + high) / 2))
        camera.zoom = float(0.95 * (canvas_size_of(viewer) / np.maximum(high - low, 1e-6)).min())

    def _results_changed(self) -> None:
        """Zoom to a new result made here, where it is small in the view or outside it."""
        known, self._known = self._known, frozenset(entry.number for entry in self.state.results)
        for entry in self.state.results:
            new = entry.number not in known and entry.result is not None
            if new and not self.drawing() and not self._is_seen(entry):
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
        """Raise the chosen result over the other ones, unless they are being compared."""
        viewer, layer = self._viewer(), self._results.layer(self.state.chosen_result)
        if viewer is None or layer is None or layer not in viewer.layers or self.state.comparison is not None:
            return
        others = [x for x in viewer.layers if layers.role_of(x) in ("result", "stored") and x is not layer]
        above = max((viewer.layers.index(x) for x in others), default=-1)
        if above > viewer.layers.index(layer):
            viewer.layers.move(viewer.layers.index(layer), above + 1)


BLOCK = 512
"""Side of the blocks in which a canvas is read, in pixels."""
SAME = 1
"""Maximum difference in grey levels that counts as rounding: the slide was read in other pieces there."""
MIN_LIMIT = 0.1
"""Minimum density at the ends of the colours, so that rounding does not look like a change."""


def change_of(edited: NDArray[np.uint8], slide: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return haematoxylin density (h, w), natural logarithm, of edited pixels minus that of the slide; NaN where nothing changed."""
    same = np.abs(edited.astype(np.int16) - slide).max(axis=-1) <= SAME
    change = stain_density(edited)[..., 0] - stain_density(slide)[..., 0]
    return np.where(same, np.float32(np.nan), change)


def limit_of(change: NDArray[np.float32]) -> float:
    """Return the density at the ends of the colours, symmetric: the 99th percentile of the change."""
    known = np.abs(change[np.isfinite(change)])
    return max(MIN_LIMIT, float(np.percentile(known, 99))) if known.size else MIN_LIMIT


def change_picture(change: NDArray[np.float32], limit: float) -> NDArray[np.uint8]:
    """Return the change (h, w, 3) uint8 in the colours of the layer; white where nothing changed."""
    from .spot_colours import DIVERGING, colormap_of

    share = np.clip(np.nan_to_num(change) / (2 * limit) + 0.5, 0, 1)
    rgb = colormap_of(DIVERGING).map(share.ravel())[:, :3].reshape(*change.shape, 3)
    return np.where(np.isnan(change)[..., None], 255, np.rint(255 * rgb)).astype(np.uint8)


def canvas_change(entry: ResultEntry, cancelled: Any = lambda: False) -> NDArray[np.float32] | None:
    """Return the change (h, w) of a whole result, read block by block; NaN where nothing changed. None where it was cancelled."""
    rgba, affine = canvas_of(entry)
    pixel = float(affine[0, 0])
    corner = np.rint(np.array([affine[0, 2], affine[1, 2]]) / pixel).astype(int)
    height, width = (int(n) for n in rgba.shape[:2])
    found = np.full((height, width), np.nan, dtype=np.float32)
    assert entry.section.image is not None  # there is no edit of real tissue without
    for y in range(0, height, BLOCK):
        for x in range(0, width, BLOCK):
            if cancelled():
                return None
            (block,) = computed(rgba[y : y + BLOCK, x : x + BLOCK])
            if not block[..., 3].any():
                continue
            box = box_at((int(corner[0]) + y, int(corner[1]) + x), BLOCK, pixel)
            slide = read_patches(entry.section.image, [box.source], BLOCK)[0][: block.shape[0], : block.shape[1]]
            change = change_of(block[..., :3], slide)
            found[y : y + BLOCK, x : x + BLOCK] = np.where(block[..., 3] > 0, change, np.nan)
    return found


def canvas_of(entry: ResultEntry) -> tuple[Any, NDArray[np.float64]]:
    """Return the pixels (h, w, 4) of a result, numpy or lazy, and the affine from them to full-resolution pixels."""
    if entry.result is not None:
        return entry.result.rgba, entry.result.plan.frame.affine
    assert entry.stored is not None  # it has one or the other
    return entry.stored.rgba, entry.stored.pixel_to_fullres


def halved(change: NDArray[np.float32]) -> NDArray[np.float32]:
    """Halve a change by the mean of changed pixels; NaN where there are none."""
    height, width = change.shape[0] // 2, change.shape[1] // 2
    blocks = change[: 2 * height, : 2 * width].reshape(height, 2, width, 2)
    known = np.isfinite(blocks)
    count = known.sum(axis=(1, 3))
    total = np.where(known, blocks, 0).sum(axis=(1, 3))
    return np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)


def levels_of(change: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """Return the change and, where it is large, its halvings."""
    levels = [change]
    while change.size > layers.MAX_SINGLE_PX and max(levels[-1].shape) > MIN_LEVEL_PX and min(levels[-1].shape) > 1:
        levels.append(halved(levels[-1]))
    return levels


class Changes:
    """Layers of results' changes, made when first shown."""

    def __init__(self, viewer: Any, state: WorkbenchState, start: Start, results: ResultList) -> None:
        self._viewer = weakref.ref(viewer)
        self.state = state
        self._lane = Lane(start)
        self._results = results
        self._layers: dict[int, Any] = {}

    def layer(self, number: int) -> Any:
        """Return the layer of a result's change, or None."""
        return self._layers.get(number)

    def show(self, number: int, visible: bool) -> None:
        """Show or hide the change of a result."""
        entry, layer = self._results.entry(number), self._layers.get(number)
        if visible and (fault := self._results.elsewhere(number)):
            self._tell("warning", fault)
        elif layer is not None:
            layer.visible = visible
        elif visible and entry is not None and entry.counterfactual:
            height, width = canvas_of(entry)[0].shape[:2]
            if height * width > MAX_PIXELS:
                text = f"The change of {entry.name} spans {height} x {width} pixels, too many for memory; edit a smaller region."
                self._tell("warning", text)
                return
            handlers = Handlers(lambda levels: self._made(entry, levels), lambda fault: self._tell("error", str(fault)))
            self._lane.submit(jobs.measuring_change(entry), handlers)

    def removed(self, layer: Any) -> None:
        """Handle the removal of a layer; the change of a result is removed with the result's own."""
        for number, own in list(self._layers.items()):
            if own is layer:
                del self._layers[number]
                self.state.changes = self.state.changes - {number}

    def forget(self, number: int) -> None:
        """Remove the change of a result from the viewer."""
        layers.remove(self._viewer(), self._layers.get(number))

    def close(self) -> None:
        """End all jobs and ignore their answers."""
        self._lane.abandon()

    def _made(self, entry: ResultEntry, levels: list[NDArray[np.float32]]) -> None:
        viewer, below = self._viewer(), self._results.layer(entry.number)
        if viewer is None or below is None or below not in viewer.layers:
            return
        if fault := self._results.elsewhere(entry.number):  # another section was opened meanwhile
            self._tell("warning", fault)
            return
        if not np.isfinite(levels[0]).any():
            self._tell("info", f"Nothing differs from the slide in {entry.name}.")
        self._results.placing()
        data = layers.change_layer(levels, limit_of(levels[-1]), below, entry.section, entry.number)
        layer = layers.insert(viewer, data, above=below)
        layer.colorbar.visible = True
        self._layers[entry.number] = layer
        layer.events.visible.connect(self._visibility_changed)
        self._visibility_changed()

    def _visibility_changed(self, event: Any = None) -> None:
        self.state.changes = frozenset(number for number, layer in self._layers.items() if layer.visible)

    def _tell(self, kind: Any, text: str) -> None:
        self.state.tell(kind, text)
        self.state.events.changes.emit(self.state.changes, self.state.changes)  # a button that was pressed goes back
