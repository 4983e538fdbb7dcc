"""The mouse wheel over the dock: it scrolls, and changes no control that nobody has taken hold of."""

from __future__ import annotations

from qtpy.QtCore import QEvent, QObject, Qt
from qtpy.QtWidgets import QAbstractSpinBox, QComboBox, QSlider, QWidget


class WheelGuard(QObject):  # type: ignore[misc,unused-ignore]
    """An event filter: a spin box, choice or slider without the focus leaves the wheel to what it lies in."""

    def watch(self, root: QWidget) -> None:
        """Watch a widget and all that is in it now."""
        for kind in (QAbstractSpinBox, QComboBox, QSlider):
            for control in (*root.findChildren(kind), *([root] if isinstance(root, kind) else [])):
                control.removeEventFilter(self)
                control.installEventFilter(self)
                control.setFocusPolicy(Qt.FocusPolicy.StrongFocus)  # the wheel alone must not give it the focus

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        """Leave the wheel to the parent."""
        if event.type() != QEvent.Type.Wheel or watched.hasFocus():
            return False
        event.ignore()
        return True
