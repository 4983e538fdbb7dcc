"""Comparison of two images of one tissue: side by side, with a seam, faded or blinking. No Qt.

However a comparison ends, the viewer is restored.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from psygnal import EmitLoopError

from ..errors import first_line
from . import layers
from .gestures import camera_of, held
from .results import ResultList
from .section_view import SectionView
from .state import CompareMode, Comparison, WorkbenchState

CONTEXT_OPACITY = 0.35
"""Opacity of the slide under a synthetic result, so that nobody takes it for synthesized."""
SPACING_PX = 6
"""Pixels between the cells of a comparison side by side."""
GRAB_PX = 10
"""Distance in screen pixels within which a press grabs the seam."""
STEP_S = 0.05
"""Minimum seconds between two updates of the picture while the seam is dragged."""
LINE_PX = 2.0


def grid_of(viewer: Any) -> Any:
    """Return the grid model: it moved from the viewer to its canvas in napari 0.9."""
    canvas: Any = getattr(viewer, "canvas", None)
    return canvas.grid if hasattr(canvas, "grid") else viewer.grid


def cells_of(viewer: Any) -> NDArray[np.int64]:
    """Return the number of cells below and beside each other (2,); (1, 1) without a grid."""
    grid = grid_of(viewer)
    return np.maximum(grid.shape if grid.enabled else 1, np.ones(2, dtype=np.int64))


def canvas_size_of(viewer: Any) -> NDArray[np.float64]:
    """Return height and width of the canvas, or of a cell of it, in pixels: it moved to the canvas's model in napari 0.9."""
    canvas: Any = getattr(viewer, "canvas", None)
    size = np.asarray(canvas.size if hasattr(canvas, "size") else viewer._canvas_size, dtype=np.float64)
    return np.asarray(size / cells_of(viewer))


def scale_bar_of(viewer: Any) -> Any:
    """Return the scale bar's model: it moved from the viewer to its canvas in napari 0.9."""
    canvas: Any = getattr(viewer, "canvas", None)
    return canvas.overlays.scale_bar if hasattr(canvas, "overlays") else viewer.scale_bar


@dataclass
class SavedAttributes:
    """Attributes that a comparison changes, with their former values; `restore` resets them, latest first."""

    values: list[tuple[weakref.ref[Any], str, Any]] = field(default_factory=list)

    def change(self, owner: Any, **new: Any) -> None:
        """Set attributes and remember their former values."""
        for name, value in new.items():
            self.values.append((weakref.ref(owner), name, getattr(owner, name)))
            setattr(owner, name, value)

    def restore(self) -> None:
        """Reset everything."""
        while self.values:
            owner, name, value = self.values.pop()
            found = owner()
            if found is not None:
                setattr(found, name, value)


class ComparisonMode:
    """Mode of comparison; holds the viewer weakly; ``_shown`` are the compared layers."""

    def __init__(self, viewer: Any) -> None:
        self._viewer = weakref.ref(viewer)
        self._kept = SavedAttributes()
        self._shown: tuple[Any, ...] = ()

    @property
    def active(self) -> bool:
        """Whether the comparison is on."""
        return bool(self._shown)

    def uses(self, layer: Any) -> bool:
        """Return whether an active comparison needs a layer."""
        return any(layer is one for one in self._shown)


class Fade(ComparisonMode):
    """Fade between two layers by the opacity of the upper one, so that no list of visible layers changes."""

    def start(self, left: Any, right: Any, others: list[Any], position: float) -> None:
        """Show ``right`` over ``left``; ``others`` are hidden meanwhile."""
        self.stop()
        if self._viewer() is None:
            return
        for layer in others:
            self._kept.change(layer, visible=False)
        for layer in (left, right):
            self._kept.change(layer, visible=True, opacity=layer.opacity)
        self._shown = (left, right)
        self.move(position)

    def move(self, position: float) -> None:
        """Show the right layer with this opacity, 0 to 1, over the left one."""
        viewer = self._viewer()
        if viewer is None or not self._shown:
            return
        left, right = self._shown
        if viewer.layers.index(right) > viewer.layers.index(left):
            left.opacity, right.opacity = 1.0, position
        else:
            left.opacity, right.opacity = 1.0 - position, 1.0

    def stop(self) -> None:
        """Restore opacity and visibility of the layers."""
        self._shown = ()
        self._kept.restore()


class SideBySide(ComparisonMode):
    """Grid with a cell for the slide with its spots, and a cell for each result over a faded slide: below each other in a high canvas.

    napari's grid puts every ``stride`` layers of the list into a cell and leaves out cells without a visible layer. Our layers
    are moved to the bottom of the list meanwhile, and all others are hidden; what else is shown or moved ends the comparison.
    """

    def __init__(self, viewer: Any) -> None:
        super().__init__(viewer)
        self._order: list[Any] | None = None

    def start(self, slide: Any, spots: Any, results: list[Any]) -> None:
        """Show the slide and results side by side; replaces an active comparison."""
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
            cells += [context, result]
        self._shown = tuple(cells)
        for place, layer in enumerate(cells):
            viewer.layers.move(viewer.layers.index(layer), place)
        for layer in viewer.layers:
            self._kept.change(layer, visible=any(layer is one for one in cells))
        count, (height, width) = len(cells) // 2, canvas_size_of(viewer) * cells_of(viewer)
        shape = (1, count) if width >= height else (count, 1)
        self._kept.change(grid_of(viewer), stride=2, shape=shape, spacing=SPACING_PX, enabled=True)
        camera_of(viewer).zoom /= count  # a cell shows what the canvas did
        bar = scale_bar_of(viewer)
        self._kept.change(bar, visible=True)
        if hasattr(bar, "gridded"):
            self._kept.change(bar, gridded=True)

    def stop(self) -> None:
        """Restore the user's grid, scale bar, order and visibility."""
        viewer, order = self._viewer(), self._order
        self._order, self._shown = None, ()
        if viewer is None or order is None:
            self._kept.values.clear()
            return
        bar, grid = scale_bar_of(viewer), grid_of(viewer)
        if hasattr(bar, "gridded"):
            bar.gridded = False  # first: napari redraws a gridded bar while cells come and go
        if grid.enabled:
            camera_of(viewer).zoom *= cells_of(viewer).max()
        grid.enabled = False
        self._kept.restore()
        for context in [layer for layer in viewer.layers if layers.role_of(layer) == "context"]:
            layers.remove(viewer, context)
        order = [layer for layer in order if layer in viewer.layers]
        order += [layer for layer in viewer.layers if layer not in order]
        for place, layer in enumerate(order):
            viewer.layers.move(viewer.layers.index(layer), place)


class ClippedImage:
    """RGBA image (h, w, 4) uint8, numpy or dask, with some columns transparent; nothing is copied, and only what is drawn is read.

    napari has no clipping planes for 2-D images. Layers show this stand-in meanwhile and keep their extent and affine; the result's own
    array, which is what is saved, is never touched.
    """

    def __init__(self, own: Any) -> None:
        self.own = own
        self.shape, self.ndim, self.dtype = tuple(own.shape), 3, own.dtype
        self._visible = np.ones((1, self.shape[1], self.shape[2]), dtype=bool)

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape))

    def hide(self, columns: slice) -> None:
        """Hide these columns and show all others."""
        self._visible[..., 3] = True
        self._visible[:, columns, 3] = False

    def __getitem__(self, key: Any) -> NDArray[np.uint8]:
        visible = np.broadcast_to(self._visible, self.shape)[key]
        return np.where(visible, np.asarray(self.own[key]), np.uint8(0))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self[:], dtype=dtype)


class ClippedLayer:
    """Clipping of an RGBA image layer at a seam, without touching its data; ``keep`` is the visible side."""

    def __init__(self, layer: Any, keep: Literal["left", "right"]) -> None:
        self.layer = layer
        self._keep = keep
        self._data = layer.data
        many = bool(layer.multiscale)
        self._shown = [ClippedImage(level) for level in (layer.data if many else [layer.data])]
        layer.data = self._shown if many else self._shown[0]

    def move(self, column: float) -> None:
        """Put the seam at a column of the largest level, measured from the left border; may lie outside."""
        full = self._shown[0].shape[1]
        for shown in self._shown:
            width = shown.shape[1]
            seam = int(np.clip(round(column * width / full), 0, width))
            shown.hide(slice(0, seam) if self._keep == "right" else slice(seam, width))
        self.layer.refresh(extent=False, thumbnail=False, highlight=False)

    def restore(self) -> None:
        """Show the layer's own data again."""
        self.layer.data = self._data


class Swipe(ComparisonMode):
    """Swipe: the seam, its line, and its handle; ``moved`` gets its position, 0 to 1 over the right layer's width, when it is dragged."""

    def __init__(self, viewer: Any, moved: Callable[[float], None]) -> None:
        super().__init__(viewer)
        self._moved = weakref.WeakMethod(moved)
        self._curtains: list[ClippedLayer] = []
        self._line: Any = None
        self._right: Any = None
        self.position = 0.5

    def start(self, left: Any, right: Any, others: list[Any], position: float) -> None:
        """Show ``right`` right of the seam and ``left`` left of it; ``others`` are hidden meanwhile."""
        self.stop()
        viewer = self._viewer()
        section = layers.section_of(right)
        if viewer is None or section is None:
            return
        for layer in others:
            self._kept.change(layer, visible=False)
        for layer in (left, right):
            self._kept.change(layer, visible=True)
        self._right, self._shown = right, (left, right)
        self._curtains = [ClippedLayer(right, "right")]
        if layers.role_of(left) != "slide":
            self._curtains.append(ClippedLayer(left, "left"))
        width = LINE_PX / max(camera_of(viewer).zoom, 1e-6)
        self._line = layers.insert(viewer, layers.seam_layer(section, self.ends(position), width), above=right)
        viewer.mouse_drag_callbacks.insert(0, self.drag)  # before the tool in hand, which leaves it what it takes
        self.move(position)

    def move(self, position: float) -> None:
        """Put the seam at a fraction of the right layer's width."""
        if not self.active:
            return
        self.position = float(np.clip(position, 0, 1))
        ends = self.ends(self.position)
        middle = ends.mean(axis=0)
        for curtain in self._curtains:
            curtain.move(float(curtain.layer.world_to_data(middle)[-1]) + 0.5)
        if self._line is not None:
            self._line.data = layers.seam_data(ends)

    def stop(self) -> None:
        """Remove the seam and restore data and visibility of the layers."""
        viewer = self._viewer()
        curtains, self._curtains = self._curtains, []
        line, self._line, self._right, self._shown = self._line, None, None, ()
        for curtain in curtains:
            curtain.restore()
        self._kept.restore()
        if viewer is None:
            return
        if self.drag in viewer.mouse_drag_callbacks:
            viewer.mouse_drag_callbacks.remove(self.drag)
        layers.remove(viewer, line)

    # --- private

    def ends(self, position: float) -> NDArray[np.float64]:
        """Return the ends of the seam, (2, 2) in the world; it runs along the right layer's columns."""
        data = self._right.data[0] if self._right.multiscale else self._right.data
        height, width = data.shape[:2]
        column = position * width - 0.5
        return np.array([self._right.data_to_world((row, column))[-2:] for row in (-0.5, height - 0.5)])

    def _share(self, world: Any) -> float:
        data = self._right.data[0] if self._right.multiscale else self._right.data
        return (float(self._right.world_to_data(world)[-1]) + 0.5) / int(data.shape[1])

    def drag(self, viewer: Any, event: Any) -> Iterator[None]:
        """Follow a drag that starts on the line; a drag callback of the viewer."""
        camera = camera_of(viewer)
        reach = GRAB_PX / max(camera.zoom, 1e-6)
        ends = self.ends(self.position)
        along = (ends[1] - ends[0]) / max(float(np.linalg.norm(ends[1] - ends[0])), 1e-9)
        away = np.asarray(event.position, dtype=float)[-2:] - ends[0]
        if event.button != 1 or abs(away[0] * along[1] - away[1] * along[0]) > reach:
            return
        with held(viewer, event):
            yield
            last = 0.0
            while event.type == "mouse_move":
                if time.perf_counter() - last >= STEP_S:
                    self._drag_to(event.position)
                    last = time.perf_counter()
                yield
            self._drag_to(event.position)

    def _drag_to(self, world: Any) -> None:
        if not self.active:
            return
        self.move(self._share(world))
        tell = self._moved()
        if tell is not None:
            tell(self.position)


NOTHING = "Choose a result to compare with the slide."
NO_SLIDE = "This section has no slide to compare with."
SLIDE_REMOVED = "The slide's layer was removed; open the section again to compare."


class Comparing:
    """Switch of comparisons; however one ends, the viewer is restored."""

    def __init__(
        self, viewer: Any, state: WorkbenchState, results: ResultList, view: Callable[[], SectionView | None]
    ) -> None:
        self._viewer = weakref.ref(viewer)
        self.state = state
        self._results = results
        self._view = view
        self.grid = SideBySide(viewer)
        self.swipe = Swipe(viewer, self._dragged)
        self.fade = Fade(viewer)
        self.interrupted: Comparison | None = None
        """Comparison that a new layer ended; the next one takes up its mode and its seam."""
        self._watched: list[tuple[Any, Callable[..., None]]] = []

    def fault(self, right: int | None, left: int | None = None) -> str:
        """Return why two results, or a result and the slide, cannot be compared, in words; empty where they can."""
        view, upper, lower = self._view(), self._results.layer(right), self._results.layer(left)
        if view is None or upper is None or (left is not None and lower is None):
            return NOTHING
        if view.slide is None:
            return NO_SLIDE if view.section.image is None else SLIDE_REMOVED
        if upper is lower:
            return "Choose two different results to compare."
        return self._results.elsewhere(right, left)

    def start(self, mode: CompareMode, right: int | None = None, left: int | None = None) -> None:
        """Compare the result ``right``, or the chosen one, with the result ``left``, or the slide."""
        before = self.state.comparison or self.interrupted
        self.stop()
        right = self.state.chosen_result if right is None else right
        if fault := self.fault(right, left):
            self.state.tell("warning", fault)
            return
        assert right is not None  # it has a layer
        self.state.chosen_result = right  # which raises it: before the order of the layers matters
        position = 0.5 if mode == "swipe" else 1.0
        if before is not None and (before.mode, before.left) == (mode, left) and mode == "swipe":
            position = before.position  # another strength of the same edit: the eye stays where it is
        try:
            self._begin(mode, self._results.layer(right), self._results.layer(left), position)
        except Exception as error:  # noqa: BLE001 - napari draws at each step, and a slide may fail to be read
            self.stop()
            self.state.tell("warning", f"The comparison could not be shown: {first_line(error)}")
            return
        self.state.comparison = Comparison(mode, left, right, position)

    def _begin(self, mode: CompareMode, upper: Any, lower: Any, position: float) -> None:
        viewer, view = self._viewer(), self._view()
        if viewer is None or view is None:
            return
        if mode == "grid":
            self.grid.start(view.slide, view.spots, [x for x in (lower, upper) if x is not None])
            grid, watched = grid_of(viewer).events, [x for x in viewer.layers if x is not view.spots]
            changes = [grid.enabled, grid.stride, grid.shape]
        else:
            below, changes = view.slide if lower is None else lower, []
            watched = [x for x in viewer.layers if layers.is_synthetic(x) and x is not upper and x is not below]
            (self.swipe if mode == "swipe" else self.fade).start(below, upper, watched, position)
        events = viewer.layers.events
        for change in (events.inserted, events.reordered):
            change.connect(self.make_room, position="last")  # after napari's own
        for change in changes:
            change.connect(self.make_room)
        self._watched = [(change, self.make_room) for change in (events.inserted, events.reordered, *changes)]
        for layer in watched:
            layer.events.visible.connect(self._shown_or_hidden, position="last")
            self._watched.append((layer.events.visible, self._shown_or_hidden))

    def stop(self) -> None:
        """End the active comparison."""
        for change, do in self._watched:
            change.disconnect(do)
        self._watched, self.interrupted = [], None
        for way in (self.grid, self.swipe, self.fade):
            # of a window that was closed the canvas is gone, with all there was to restore
            with suppress(RuntimeError, EmitLoopError):
                way.stop()
        self.state.comparison = None

    def make_room(self) -> None:
        """End a comparison before something else is shown, which would stand under a name of it."""
        comparison = self.state.comparison
        if comparison is not None:
            self.stop()
            self.interrupted = comparison

    def turn_to(self, number: int) -> None:
        """Compare a result that the user goes to in place of the present one."""
        comparison = self.state.comparison
        if comparison is not None and number not in (comparison.left, comparison.right):
            self.start(comparison.mode, number)

    def _shown_or_hidden(self, event: Any) -> None:
        """End a comparison where the user shows something beside it, or hides a part of it, and do that."""
        layer, visible = event.source, event.source.visible
        if visible != self.uses(layer):  # napari also tells where nothing changed
            self.make_room()
            layer.visible = visible

    def move(self, position: float) -> None:
        """Put the seam, or the opacity of the right layer, at a fraction of 0 to 1."""
        comparison = self.state.comparison
        if comparison is None or comparison.mode == "grid":
            return
        (self.swipe if comparison.mode == "swipe" else self.fade).move(position)
        self.state.comparison = replace(comparison, position=position)

    def names(self, comparison: Comparison) -> tuple[str, str]:
        """Return the names of the left and the right of a comparison."""
        entry = self._results.entry(comparison.right)
        if comparison.left is not None:
            base = self._results.baseline(comparison.right)
            left = self._results.entry(comparison.left)
            words = "" if left is None else left.label
            left_words = f"baseline, {words}" if base is not None and base is left else words
        else:
            left_words = "this tissue, before" if entry is not None and entry.counterfactual else "the slide"
        if entry is not None and entry.counterfactual and comparison.left is None:
            return left_words, f"after (synthetic): {entry.title[0]}"
        return left_words, "" if entry is None else entry.label

    def flip(self) -> None:
        """Show the other image: a blink."""
        comparison = self.state.comparison
        if comparison is not None and comparison.mode in ("blink", "fade"):
            self.move(0.0 if comparison.position >= 0.5 else 1.0)

    def uses(self, layer: Any) -> bool:
        """Return whether the active comparison needs a layer."""
        return any(way.uses(layer) for way in (self.grid, self.swipe, self.fade))

    def _dragged(self, position: float) -> None:
        if self.state.comparison is not None:
            self.state.comparison = replace(self.state.comparison, position=position)
