"""Binding keys while the workbench is open, and giving them back: a manifest's key bindings are ignored by napari."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from qtpy.QtCore import Qt
from qtpy.QtGui import QKeySequence, QShortcut
from qtpy.QtWidgets import QWidget

from ..presenter import Presenter


def bind_keys(viewer: Any, dock: QWidget, actions: Mapping[str, Callable[[], Any]]) -> Callable[[], None]:
    """Bind keys, written as napari writes them, in a viewer's canvas and in the dock.

    Returns
    -------
    Callable
        Gives the viewer's keys back; what is bound in the dock goes with it.
    """
    bound = []
    for keys, action in actions.items():
        viewer.bind_key(keys, _handler(action), overwrite=True)
        bound.append(keys)
        shortcut = QShortcut(sequence(keys), dock)
        shortcut.setContext(Qt.ShortcutContext.WidgetWithChildrenShortcut)
        shortcut.activated.connect(action)
    weak = weakref.ref(viewer)

    def unbind() -> None:
        alive = weak()
        while bound and alive is not None:
            alive.bind_key(bound.pop(), None, overwrite=True)

    return unbind


def sequence(keys: str) -> QKeySequence:
    """Return keys as Qt has them."""
    return QKeySequence(keys.replace("Control", "Ctrl").replace("Enter", "Return").replace("-", "+"))


def _handler(action: Callable[[], Any]) -> Callable[[Any], None]:
    def pressed(viewer: Any) -> None:
        action()

    return pressed


PAINT_KEYS = {
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


def bind_paint_keys(viewer: Any, presenter: Presenter, dock: QWidget) -> Callable[[], None]:
    """Bind the keys in a viewer's canvas and in the dock; return what gives the viewer's keys back."""
    return bind_keys(viewer, dock, _actions(presenter))


RUN_KEYS: Mapping[str, tuple[str, str]] = {
    "run": ("Control-Enter", "run, or queue a run"),
    "stop": ("Control-.", "stop"),
    "grid": ("Control-Alt-1", "side by side, on and off"),
    "swipe": ("Control-Alt-2", "swipe, on and off"),
    "blink": ("Control-Alt-3", "blink, on and off"),
    "fade": ("Control-Alt-4", "fade, on and off"),
    "flip": ("Control-Alt-B", "show the other one"),
    "baseline": ("Control-Alt-0", "compare with the baseline"),
}
"""Action -> its keys, as napari writes them, and what they do."""


def bind_run_keys(viewer: Any, dock: QWidget, actions: Mapping[str, Callable[[], Any]]) -> Callable[[], None]:
    """Bind actions, by name, to their keys; return what gives the viewer's keys back."""
    return bind_keys(viewer, dock, {RUN_KEYS[name][0]: action for name, action in actions.items()})


def with_key(tip: str, name: str) -> str:
    """Return a tooltip with the keys of an action, as this system writes them."""
    return f"{tip} ({sequence(RUN_KEYS[name][0]).toString(QKeySequence.SequenceFormat.NativeText)})"
