"""Keys for running, stopping and comparing, bound when the dock is made and given back when it goes.

A manifest's key bindings are ignored by napari. The keys are bound twice: in the viewer, for the canvas, and in the dock. Two
viewers have two canvases and two docks, and a key reaches the one it was pressed in.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any

from qtpy.QtCore import Qt
from qtpy.QtGui import QKeySequence, QShortcut
from qtpy.QtWidgets import QWidget

KEYS: Mapping[str, tuple[str, str]] = {
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


def bind(viewer: Any, dock: QWidget, actions: Mapping[str, Callable[[], Any]]) -> Callable[[], None]:
    """Bind actions to their keys; return what gives the viewer's keys back. What is bound in the dock goes with it."""
    bound = []
    for name, action in actions.items():
        keys = KEYS[name][0]
        viewer.bind_key(keys, _handler(action), overwrite=True)
        bound.append(keys)
        shortcut = QShortcut(sequence_of(name), dock)
        shortcut.setContext(Qt.ShortcutContext.WidgetWithChildrenShortcut)
        shortcut.activated.connect(action)
    weak = weakref.ref(viewer)

    def unbind() -> None:
        alive = weak()
        while bound and alive is not None:
            alive.bind_key(bound.pop(), None, overwrite=True)

    return unbind


def sequence_of(name: str) -> QKeySequence:
    """Return an action's keys as Qt has them."""
    return QKeySequence(KEYS[name][0].replace("Control", "Ctrl").replace("Enter", "Return").replace("-", "+"))


def with_key(tip: str, name: str) -> str:
    """Return a tooltip with the keys of an action, as this system writes them."""
    return f"{tip} ({sequence_of(name).toString(QKeySequence.SequenceFormat.NativeText)})"


def _handler(action: Callable[[], Any]) -> Callable[[Any], None]:
    def pressed(viewer: Any) -> None:
        action()

    return pressed
