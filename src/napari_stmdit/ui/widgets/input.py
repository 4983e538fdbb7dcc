"""Keys and the mouse wheel.

Keys are bound while the workbench is open, as napari ignores a manifest's; the wheel scrolls the dock and changes only a focused control.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from qtpy.QtCore import QEvent, QObject, Qt
from qtpy.QtGui import QKeySequence, QShortcut
from qtpy.QtWidgets import QAbstractSpinBox, QComboBox, QSlider, QWidget

from ..presenter import Presenter


def bind_keys(viewer: Any, dock: QWidget, actions: Mapping[str, Callable[[], Any]]) -> Callable[[], None]:
    """Bind keys, written as napari writes them, in a viewer's canvas and in the dock.

    Returns
    -------
    Callable
        Unbinds the viewer's keys; those of the dock end with it.
    """
    bound = []
    for keys, action in actions.items():
        viewer.bind_key(keys, lambda viewer, action=action: action(), overwrite=True)
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
    """Return keys as Qt's sequence."""
    return QKeySequence(keys.replace("Control", "Ctrl").replace("Enter", "Return").replace("-", "+"))


_LARGER = 1.25
RUN_KEYS: Mapping[str, tuple[str, str]] = {
    "run": ("Control-Enter", "run, or queue a run"),
    "again": ("Control-Shift-Enter", "run, also what was made already"),
    "stop": ("Control-.", "stop"),
    "grid": ("Control-Alt-1", "side by side, on and off"),
    "swipe": ("Control-Alt-2", "swipe, on and off"),
    "blink": ("Control-Alt-3", "blink, on and off"),
    "fade": ("Control-Alt-4", "fade, on and off"),
    "flip": ("Control-Alt-B", "show the other one"),
    "baseline": ("Control-Alt-0", "compare with the baseline"),
}
"""Action -> its keys, as napari writes them, and description."""


def paint_actions(presenter: Presenter) -> dict[str, Callable[[], Any]]:
    """Return the actions of keys for painting and selection."""

    def resize(factor: float) -> None:
        brush = presenter.state.brush
        presenter.set_brush(replace(brush, radius_um=float(min(max(round(brush.radius_um * factor), 5), 5000))))

    return {
        "Control-Z": presenter.painting.undo,
        "Control-Shift-Z": presenter.painting.redo,
        "Control-1": partial(presenter.use_tool, "click"),
        "Control-2": partial(presenter.use_tool, "rectangle"),
        "Control-3": partial(presenter.use_tool, "lasso"),
        "Control-4": partial(presenter.use_tool, "brush"),
        "Escape": presenter.hand.cancel,
        "H": presenter.next_spots,
        "[": partial(resize, 1 / _LARGER),
        "]": partial(resize, _LARGER),
    }


def with_key(tip: str, name: str) -> str:
    """Return a tooltip with the keys of an action, in the notation of this system."""
    return f"{tip} ({sequence(RUN_KEYS[name][0]).toString(QKeySequence.SequenceFormat.NativeText)})"


class WheelGuard(QObject):  # type: ignore[misc,unused-ignore]
    """Event filter by which a spin box, combo box or slider without the focus ignores the wheel."""

    def watch(self, root: QWidget) -> None:
        """Watch a widget and all that is in it now."""
        for kind in (QAbstractSpinBox, QComboBox, QSlider):
            for control in (*root.findChildren(kind), *([root] if isinstance(root, kind) else [])):
                control.removeEventFilter(self)
                control.installEventFilter(self)
                control.setFocusPolicy(Qt.FocusPolicy.StrongFocus)  # the wheel alone must not give it the focus

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        """Pass the wheel to the parent."""
        if event.type() != QEvent.Type.Wheel or watched.hasFocus():
            return False
        event.ignore()
        return True
