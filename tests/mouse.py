"""A mouse and keys for a real viewer, by Qt's own events."""

import time

import numpy as np
from qtpy.QtCore import QEvent, QPoint, QPointF, Qt
from qtpy.QtGui import QKeyEvent, QMouseEvent, QWheelEvent
from qtpy.QtWidgets import QApplication

from napari_stmdit.ui.compare import SPACING_PX, cells_of

PLAIN, SHIFT = Qt.KeyboardModifier.NoModifier, Qt.KeyboardModifier.ShiftModifier
CONTROL, ALT = Qt.KeyboardModifier.ControlModifier, Qt.KeyboardModifier.AltModifier


class Mouse:
    """Drives the canvas with Qt's mouse events, at places in the world."""

    def __init__(self, viewer):
        self.viewer = viewer
        self.canvas = viewer.window._qt_viewer.canvas.native

    def at(self, world):
        camera = self.viewer.scene.camera if hasattr(self.viewer, "scene") else self.viewer.camera
        centre, zoom = np.array(camera.center[-2:]), camera.zoom
        y, x = (np.asarray(world)[-2:] - centre) * zoom
        middle = self._middle_of_first_cell()
        return QPointF(float(x) + middle.x(), float(y) + middle.y())

    def _middle_of_first_cell(self):
        """Return the middle of where the section is shown: the whole canvas, or the first of some pictures beside or below each other."""
        rows, columns = cells_of(self.viewer).tolist()
        width, height = self.canvas.width() + SPACING_PX, self.canvas.height() + SPACING_PX
        return QPointF((width / columns - SPACING_PX) / 2, (height / rows - SPACING_PX) / 2)

    def send(self, kind, world, button=Qt.MouseButton.LeftButton, keys=PLAIN):
        place = self.at(world)
        moving = kind == QEvent.Type.MouseMove
        if moving:
            time.sleep(0.006)  # napari leaves out moves that come within 5 ms of each other
        held = Qt.MouseButton.NoButton if kind == QEvent.Type.MouseButtonRelease else button
        event = QMouseEvent(
            kind,
            place,
            QPointF(self.canvas.mapToGlobal(QPoint(int(place.x()), int(place.y())))),
            Qt.MouseButton.NoButton if moving else button,
            held,
            keys,
        )
        QApplication.sendEvent(self.canvas, event)
        QApplication.processEvents()

    def click(self, world, keys=PLAIN):
        self.send(QEvent.Type.MouseButtonPress, world, keys=keys)
        self.send(QEvent.Type.MouseButtonRelease, world, keys=keys)

    def draw(self, path, keys=PLAIN):
        self.send(QEvent.Type.MouseButtonPress, path[0], keys=keys)
        for world in path[1:]:
            self.send(QEvent.Type.MouseMove, world, keys=keys)
        self.send(QEvent.Type.MouseButtonRelease, path[-1], keys=keys)

    def press(self, key, keys=PLAIN, text=""):
        """Press and release a key while the canvas has the focus."""
        for kind in (QEvent.Type.KeyPress, QEvent.Type.KeyRelease):
            QApplication.sendEvent(self.canvas, QKeyEvent(kind, key, keys, text))
            QApplication.processEvents()


def turn_wheel(control, notches):
    """Turn the wheel over the middle of a control, as the system would: what it does not take goes on to its parents."""
    window, middle = control.window(), control.rect().center()
    place, accepted = window.childAt(control.mapTo(window, middle)), False
    # Qt itself passes on only what comes from the system, and QTest.wheelEvent, which does, is PySide's alone
    while place is not None and not accepted:
        event = QWheelEvent(
            QPointF(place.mapFromGlobal(control.mapToGlobal(middle))),
            QPointF(control.mapToGlobal(middle)),
            QPoint(),
            QPoint(0, 120 * notches),
            Qt.MouseButton.NoButton,
            PLAIN,
            Qt.ScrollPhase.NoScrollPhase,
            False,
        )
        QApplication.sendEvent(place, event)
        place, accepted = place.parentWidget(), event.isAccepted()
    QApplication.processEvents()


class Press:
    """A press of the mouse as napari hands it to its callbacks."""

    button, type, pos, handled = 1, "mouse_press", (0.0, 0.0), False

    def __init__(self, keys=()):
        self.modifiers, self.position = keys, (0.0, 0.0)


def drag(viewer, path, keys=()):
    """Drag over places in the world through the viewer's callbacks alone: without a window."""
    event = Press(keys)
    event.position, event.pos = tuple(path[0]), tuple(np.asarray(path[0])[-2:][::-1])
    gestures = [callback(viewer, event) for callback in viewer.mouse_drag_callbacks]
    gestures = [gesture for gesture in gestures if next(gesture, gesture) is not gesture]
    for place in path[1:]:
        event.type, event.position, event.pos = "mouse_move", tuple(place), tuple(np.asarray(place)[-2:][::-1])
        for gesture in gestures:
            next(gesture, None)
    event.type = "mouse_release"
    for gesture in gestures:
        next(gesture, None)
