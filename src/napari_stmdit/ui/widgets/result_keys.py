"""Keys for running, stopping and comparing, bound when the dock is made and given back when it goes.

A manifest's key bindings are ignored by napari. The keys are bound twice: in the viewer, for the canvas, and in the dock. Two
viewers have two canvases and two docks, and a key reaches the one it was pressed in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from qtpy.QtGui import QKeySequence
from qtpy.QtWidgets import QWidget

from .keys import bind_keys, sequence

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
    """Bind actions, by name, to their keys; return what gives the viewer's keys back."""
    return bind_keys(viewer, dock, {KEYS[name][0]: action for name, action in actions.items()})


def with_key(tip: str, name: str) -> str:
    """Return a tooltip with the keys of an action, as this system writes them."""
    return f"{tip} ({sequence(KEYS[name][0]).toString(QKeySequence.SequenceFormat.NativeText)})"
