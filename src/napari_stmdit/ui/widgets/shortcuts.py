"""Keys of the workbench, bound when it opens and given back when it goes: a manifest's key bindings are ignored by napari."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from qtpy.QtWidgets import QWidget

from ..presenter import Presenter
from .keys import bind_keys

KEYS = {
    "Control-Z": "undo the last change of the edits",
    "Control-Shift-Z": "redo it",
    "Control-1": "choose spots by clicking",
    "Control-2": "choose spots by a rectangle",
    "Control-3": "choose spots by a lasso",
    "Control-4": "paint with the brush",
    "[": "a smaller brush",
    "]": "a larger brush",
}
"""What each key does while the workbench is open."""
_LARGER = 1.25


def _actions(presenter: Presenter) -> dict[str, Callable[[], Any]]:
    weak = weakref.ref(presenter)

    def call(do: Callable[[Presenter], Any]) -> Callable[[], Any]:
        def action() -> None:
            alive = weak()
            if alive is not None:
                do(alive)

        return action

    def resize(factor: float) -> Callable[[Presenter], Any]:
        def do(p: Presenter) -> None:
            radius = min(max(round(p.state.brush.radius_um * factor), 5), 5000)
            p.set_brush(replace(p.state.brush, radius_um=float(radius)))

        return do

    return {
        "Control-Z": call(lambda p: p.painting.undo()),
        "Control-Shift-Z": call(lambda p: p.painting.redo()),
        "Control-1": call(lambda p: p.use_tool("click")),
        "Control-2": call(lambda p: p.use_tool("rectangle")),
        "Control-3": call(lambda p: p.use_tool("lasso")),
        "Control-4": call(lambda p: p.use_tool("brush")),
        "[": call(resize(1 / _LARGER)),
        "]": call(resize(_LARGER)),
    }


def bind(viewer: Any, presenter: Presenter, dock: QWidget) -> Callable[[], None]:
    """Bind the keys in a viewer's canvas and in the dock; return what gives the viewer's keys back."""
    return bind_keys(viewer, dock, _actions(presenter))
