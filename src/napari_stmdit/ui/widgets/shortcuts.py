"""Keyboard shortcuts of the workbench, bound when the dock is made: they work wherever its window has the focus.

napari's own bindings are not touched. Two viewers have two windows, and a key reaches the one it was pressed in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from qtpy.QtCore import Qt
from qtpy.QtGui import QKeySequence
from qtpy.QtWidgets import QShortcut, QWidget

KEYS: Mapping[str, tuple[str, str]] = {
    "run": ("Ctrl+Return", "Run, or queue a run"),
    "stop": ("Ctrl+.", "Stop"),
    "grid": ("Ctrl+Alt+1", "Side by side, on and off"),
    "swipe": ("Ctrl+Alt+2", "Swipe, on and off"),
    "blink": ("Ctrl+Alt+3", "Blink, on and off"),
    "fade": ("Ctrl+Alt+4", "Fade, on and off"),
    "flip": ("Ctrl+Alt+B", "Show the other one"),
    "baseline": ("Ctrl+Alt+0", "Compare with baseline"),
}
"""Action -> keys and what they do."""


def bind(window: QWidget, actions: Mapping[str, Callable[[], Any]]) -> dict[str, QShortcut]:
    """Bind the shortcuts of a dock; they go with it."""
    found = {}
    for name, action in actions.items():
        shortcut = QShortcut(QKeySequence(KEYS[name][0]), window)
        shortcut.setContext(Qt.ShortcutContext.WindowShortcut)
        shortcut.activated.connect(action)
        found[name] = shortcut
    return found


def with_key(tip: str, name: str) -> str:
    """Return a tooltip with the keys of an action, as this system writes them."""
    keys = QKeySequence(KEYS[name][0]).toString(QKeySequence.SequenceFormat.NativeText)
    return f"{tip} ({keys})"
