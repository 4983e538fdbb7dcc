"""Gestures on the tissue: a click on a spot, a ring around spots, a stroke of the brush, whatever layer is active. No Qt."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .state import Brush, Combine, Tool

CLICK_PX = 4
"""Maximum movement of a click in screen pixels; more is a pan."""
STEP_PX = 2
"""Minimum distance between points of a ring in screen pixels."""
OnPlace = Callable[[NDArray[np.float64], Combine | None], None]
OnStroke = Callable[[str, NDArray[np.float64], bool], bool]
"""Callback (``begin``, ``move`` or ``end``, place, whether Alt is held); its result on ``begin`` says whether to continue."""
Line = Sequence[tuple[float, float]]
"""Points (x, y) on the canvas, in screen pixels."""


def camera_of(viewer: Any) -> Any:
    """Return the camera: it moved from the viewer to its scene in napari 0.9."""
    scene: Any = getattr(viewer, "scene", None)
    return scene.camera if hasattr(scene, "camera") else viewer.camera


def combine_of(modifiers: Sequence[Any], click: bool) -> Combine | None:
    """Return the effect of modifier keys: Shift adds (a click also removes), Alt or Control removes; None without.

    Control equals Alt, because many desktops reserve a drag with Alt.
    """
    names = {str(getattr(m, "name", m)) for m in modifiers}
    if "Shift" in names:
        return "toggle" if click else "add"
    return "subtract" if names & {"Control", "Ctrl", "Meta", "Alt"} else None


@contextmanager
def held(viewer: Any, event: Any) -> Iterator[None]:
    """Disable the camera, and a drawing tool of the active layer, during a drag of ours."""
    camera, active = camera_of(viewer), viewer.layers.selection.active
    pan, mode = camera.mouse_pan, str(getattr(active, "mode", "pan_zoom"))
    if mode != "pan_zoom":
        active.mode = "pan_zoom"  # before its own callbacks hear of the press
    camera.mouse_pan = False
    event.handled = True
    try:
        yield
    finally:
        camera.mouse_pan = pan
        if mode != "pan_zoom":
            active.mode = mode


class Hand:
    """Tool in hand: a drag callback of the viewer, so that it works whatever layer is active and whatever its mode.

    A click is left to a layer of the user's that is being drawn on.

    Parameters
    ----------
    viewer
        The viewer.
    spots
        Returns the layer whose data coordinates are used, or None where there are no spots.
    on_click
        Called with the place (2,) of a click.
    on_ring
        Called with a ring (n, 2), or a place (1, 2) for a click.
    on_stroke
        Called with the movements of the brush.
    on_double
        Called with the place (2,) of a double click while clicking is the tool; returns whether it was on a spot.
    """

    def __init__(
        self,
        viewer: Any,
        spots: Callable[[], Any],
        on_click: OnPlace,
        on_ring: OnPlace,
        on_stroke: OnStroke,
        on_double: Callable[[NDArray[np.float64]], bool],
    ) -> None:
        self.show_line: Callable[[Line], None] = lambda line: None
        """Callback that draws the unfinished ring, or nothing for an empty one; set by the dock."""
        self.tool: Tool = "click"
        self._spots = spots
        self._on_click, self._on_ring, self._on_stroke, self._on_double = on_click, on_ring, on_stroke, on_double
        self._drawing = False
        self._resting = False
        self.holding = False
        """Whether a drag of ours is under way: the view stays where it is until the button is released."""
        viewer.mouse_drag_callbacks.append(self.drag)
        self._zooms = list(viewer.mouse_double_click_callbacks)  # napari's own, which stay beside the spots
        viewer.mouse_double_click_callbacks[:] = [self.double_click]

    def take(self, viewer: Any, tool: Tool, brush: Brush, mpp: float | None) -> None:
        """Select a tool and its cursor. While Space is held, a drag moves the camera."""
        self.cancel()
        self.tool = tool
        viewer.bind_key("Space", None if tool == "click" else self._rest, overwrite=True)
        self.show_cursor(viewer, brush, mpp)

    def show_cursor(self, viewer: Any, brush: Brush, mpp: float | None) -> None:
        """Set the cursor of the tool; napari shows that of the last activated layer."""
        if self.tool == "brush":
            spots = self._spots()
            scale = 1.0 if mpp is not None or spots is None else float(np.abs(spots.scale).min())
            viewer.cursor.size = max(1.0, 2 * brush.radius_um * scale)
        viewer.cursor.style = {"brush": "circle", "lasso": "cross", "rectangle": "cross"}.get(self.tool, "standard")

    def cancel(self) -> None:
        """Discard the unfinished ring."""
        self._drawing = False
        self.show_line(())

    def drag(self, viewer: Any, event: Any) -> Iterator[None]:
        """Handle a mouse press; a drag callback of the viewer."""
        spots = self._spots()
        if event.button != 1 or event.handled or spots is None or self._resting or viewer.dims.ndisplay != 2:
            return
        if self.tool == "click":
            yield from self._click(viewer, event, spots)
        elif self.tool == "brush":
            yield from self._stroke(viewer, event, spots)
        else:
            yield from self._ring(viewer, event, spots)

    def double_click(self, viewer: Any, event: Any) -> None:
        """Handle a double click; a callback of the viewer. Beside the spots it is left to napari, and for the brush it is a second dab."""
        spots = self._spots()
        if spots is not None and viewer.dims.ndisplay == 2:
            place = _in_data(spots, event.position)
            if self.tool == "brush":
                if self._on_stroke("begin", place, _erases(event)):
                    self._on_stroke("end", place, _erases(event))
                return
            if self.tool != "click" or (not event.modifiers and self._on_double(place)):
                return
        for zoom in self._zooms:
            zoom(viewer, event)

    def _click(self, viewer: Any, event: Any, spots: Any) -> Iterator[None]:
        if str(getattr(viewer.layers.selection.active, "mode", "pan_zoom")) != "pan_zoom":
            return
        start, moved = np.asarray(event.pos, dtype=float), 0.0
        how = combine_of(event.modifiers, click=True)
        yield
        while event.type == "mouse_move":
            moved = max(moved, float(np.linalg.norm(np.asarray(event.pos, dtype=float) - start)))
            yield
        if moved < CLICK_PX:
            self._on_click(_in_data(spots, event.position), how)

    def _stroke(self, viewer: Any, event: Any, spots: Any) -> Iterator[None]:
        erase = _erases(event)
        if not self._on_stroke("begin", _in_data(spots, event.position), erase):
            return
        with self._held(viewer, event):
            yield
            while event.type == "mouse_move":
                self._on_stroke("move", _in_data(spots, event.position), erase)
                yield
            self._on_stroke("end", _in_data(spots, event.position), erase)

    def _ring(self, viewer: Any, event: Any, spots: Any) -> Iterator[None]:
        how, box = combine_of(event.modifiers, click=False), self.tool == "rectangle"
        line, world = [_on_canvas(event)], [np.asarray(event.position, dtype=float)[-2:]]
        self._drawing = True
        with self._held(viewer, event):
            yield
            while event.type == "mouse_move":
                if self._drawing and np.abs(np.subtract(_on_canvas(event), line[-1])).max() >= STEP_PX:
                    line.append(_on_canvas(event))
                    world.append(np.asarray(event.position, dtype=float)[-2:])
                    self.show_line(_corners(line[0], line[-1]) if box else line)
                yield
            line.append(_on_canvas(event))  # napari leaves out moves that come fast
            world.append(np.asarray(event.position, dtype=float)[-2:])
        drawn, self._drawing = self._drawing, False
        self.show_line(())
        if not drawn:  # given up
            return
        if np.ptp(np.array(line), axis=0).max() < CLICK_PX:
            world = world[:1]
        elif box:
            world = [np.array(place) for place in _corners(tuple(world[0]), tuple(world[-1]))]
        # world first: the data coordinates of two layers are never compared
        self._on_ring(np.array([_in_data(spots, place) for place in world]), how)

    @contextmanager
    def _held(self, viewer: Any, event: Any) -> Iterator[None]:
        self.holding = True
        try:
            with held(viewer, event):
                yield
        finally:
            self.holding = False

    def _rest(self, viewer: Any) -> Iterator[None]:
        self._resting = True
        yield
        self._resting = False


def _erases(event: Any) -> bool:
    return any(str(getattr(m, "name", m)) == "Alt" for m in event.modifiers)


def _on_canvas(event: Any) -> tuple[float, float]:
    return float(event.pos[0]), float(event.pos[1])


def _corners(one: tuple[float, ...], other: tuple[float, ...]) -> list[tuple[float, float]]:
    return [(one[0], one[1]), (one[0], other[1]), (other[0], other[1]), (other[0], one[1])]


def _in_data(layer: Any, world: Any) -> NDArray[np.float64]:
    return np.asarray(layer.world_to_data(world), dtype=np.float64)[-2:]
