"""Binding keys while the workbench is open, and giving them back: a manifest's key bindings are ignored by napari."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any

from qtpy.QtCore import Qt
from qtpy.QtGui import QKeySequence, QShortcut
from qtpy.QtWidgets import QWidget


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
