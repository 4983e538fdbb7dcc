"""Mouse gestures on the tissue: a click on a spot and a lasso. Callbacks as napari wants them; no Qt."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .state import Combine

CLICK_PX = 4
"""A press and release that moved less than so many screen pixels is a click; more is a pan."""
OnPlace = Callable[[NDArray[np.float64], Combine | None], None]
OnStroke = Callable[[str, NDArray[np.float64], bool], bool]
"""Takes ``begin``, ``move`` or ``end``, a place, and whether Alt is held; what it returns on ``begin`` says whether to go on."""
SHAPES = {"lasso": "add_polygon_lasso", "rectangle": "add_rectangle"}


def combine_of(modifiers: Sequence[Any], click: bool) -> Combine | None:
    """Return what modifier keys ask for: Shift adds (on a click it also takes away), Alt or Control takes away; None without.

    Control does what Alt does, because many desktops keep a drag with Alt to themselves.
    """
    names = {str(getattr(m, "name", m)) for m in modifiers}
    if "Shift" in names:
        return "toggle" if click else "add"
    return "subtract" if names & {"Control", "Ctrl", "Meta", "Alt"} else None


def on_click(call: OnPlace) -> Callable[[Any, Any], Iterator[None]]:
    """Return a drag callback for a layer that reports clicks; ``call`` gets (y, x) in the layer's data and is held weakly."""
    weak = weakref.WeakMethod(call)

    def clicked(layer: Any, event: Any) -> Iterator[None]:
        if event.button != 1:
            return
        start, moved = np.asarray(event.pos, dtype=float), 0.0
        how = combine_of(event.modifiers, click=True)
        yield
        while event.type == "mouse_move":
            moved = max(moved, float(np.linalg.norm(np.asarray(event.pos, dtype=float) - start)))
            yield
        handler = weak()
        if handler is not None and moved < CLICK_PX:
            handler(np.asarray(layer.world_to_data(event.position), dtype=float)[-2:], how)

    return clicked


def on_stroke(call: OnStroke) -> Callable[[Any, Any], Iterator[None]]:
    """Return a drag callback for a layer that reports a brush stroke in the layer's data; ``call`` is held weakly."""
    weak = weakref.WeakMethod(call)

    def tell(kind: str, layer: Any, event: Any, erase: bool) -> bool:
        handler = weak()
        place = np.asarray(layer.world_to_data(event.position), dtype=float)[-2:]
        return handler is not None and handler(kind, place, erase)

    def stroked(layer: Any, event: Any) -> Iterator[None]:
        erase = any(str(getattr(m, "name", m)) == "Alt" for m in event.modifiers)
        if event.button != 1 or not tell("begin", layer, event, erase):
            return
        yield
        while event.type == "mouse_move":
            tell("move", layer, event, erase)
            yield
        tell("end", layer, event, erase)

    return stroked


class Lasso:
    """Watches a Shapes layer in lasso or rectangle mode: reports each ring once, as (n, 2) in world coordinates, and takes it away again.

    A tiny lasso is dropped by napari's simplification and leaves no polygon; it is reported as the one place it began at.
    napari tells of a ring while it is still busy with it: nothing may be removed before the mouse is up.
    """

    def __init__(self, layer: Any, call: OnPlace) -> None:
        self.layer = layer
        self._call = weakref.WeakMethod(call)
        self._how: Combine | None = None
        self._start: NDArray[np.float64] | None = None
        self._reported = False
        layer.events.data.connect(self._changed)

    def take_shape(self, shape: str) -> None:
        """Draw lassos or rectangles from now on."""
        self.layer.mode = SHAPES[shape]
        # one before and one after napari's own, which may finish the ring on a press as well as on a release; the mode puts
        # its own at the end
        callbacks = self.layer.mouse_drag_callbacks
        for ours in (self._before, self._after):
            if ours in callbacks:
                callbacks.remove(ours)
        callbacks.insert(0, self._before)
        callbacks.append(self._after)

    def _before(self, layer: Any, event: Any) -> None:
        self._take_away()
        self._how = combine_of(event.modifiers, click=False)
        self._start = np.asarray(event.position, dtype=float)[-2:]

    def _after(self, layer: Any, event: Any) -> Iterator[None]:
        yield
        while event.type == "mouse_move":
            yield
        self._take_away()

    def _take_away(self) -> None:
        if self._reported:
            self._reported = False
            self.layer.remove(list(range(len(self.layer.data))))
            self.layer.selected_data.clear()

    def _changed(self, event: Any) -> None:
        # napari also tells of the beginning (adding), of every vertex (changing) and of our own removal (removing)
        if str(getattr(event.action, "value", event.action)) != "added":
            return
        rings = self.layer.data
        if len(rings):
            ring = np.array([self.layer.data_to_world(vertex) for vertex in rings[-1]])[:, -2:]
            self._reported = True
        elif self._start is not None:
            ring = self._start[None]
        else:
            return
        handler = self._call()
        if handler is not None:
            handler(ring, self._how)
