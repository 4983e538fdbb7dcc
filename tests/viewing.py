"""Fixtures for tests that drive a real viewer, and the check that it leaves nothing behind."""

import gc
import threading
import time

import numpy as np
import pytest


def settle(condition, seconds=30.0):
    """Let the event loop run until a condition holds; return whether it does."""
    from qtpy.QtWidgets import QApplication

    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        QApplication.processEvents()
        if condition():
            return True
        time.sleep(0.005)
    return bool(condition())


class Inventory:
    """Top-level widgets and threads that are there now, to find what a test leaves behind."""

    def __init__(self):
        self.widgets = set(map(id, self._top_level()))
        self.threads = set(threading.enumerate())

    @staticmethod
    def _top_level():
        from qtpy.QtWidgets import QApplication

        return QApplication.topLevelWidgets()

    def left_behind(self, seconds=60.0):
        """Say what is there that was not there before; waits so long for threads that are ending."""
        from qtpy.QtCore import QEvent, QThreadPool
        from qtpy.QtWidgets import QApplication

        gc.collect()
        QApplication.processEvents()
        QApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete)
        QApplication.processEvents()
        gc.collect()
        faults = []
        # napari's tooltips, popups, and a closed main window that waits for its deletion are its own affair
        ours = [w for w in self._top_level() if id(w) not in self.widgets and _is_ours(w)]
        if ours:
            faults.append(f"top-level widgets: {ours}")
        pool = QThreadPool.globalInstance()
        if not settle(lambda: pool.activeThreadCount() == 0, seconds):
            faults.append("a worker is still running")
        # the idle hands of thread pools (dask's, napari's slicer) stay for the process; ours are Qt's, asked above
        left = [t for t in threading.enumerate() if t not in self.threads and t.is_alive() and not t.daemon]
        threads = [t for t in left if not t.name.startswith("ThreadPoolExecutor")]
        if threads:
            faults.append(f"threads: {threads}")
        return faults


def _is_ours(widget):
    """A widget of this package, a visible one of whoever, or one that holds a widget of ours."""
    from qtpy.QtWidgets import QWidget

    if type(widget).__module__.startswith("napari_stmdit"):
        return True
    if any(type(child).__module__.startswith("napari_stmdit") for child in widget.findChildren(QWidget)):
        return widget.isVisible()
    return widget.isVisible() and type(widget).__module__.split(".")[0] not in ("napari", "vispy")


class Mouse:
    """Drives the canvas with Qt's mouse events, at places in the world."""

    def __init__(self, viewer):
        self.viewer = viewer
        self.canvas = viewer.window._qt_viewer.canvas.native

    def at(self, world):
        from qtpy.QtCore import QPointF

        camera = self.viewer.scene.camera if hasattr(self.viewer, "scene") else self.viewer.camera
        centre, zoom = np.array(camera.center[-2:]), camera.zoom
        size = np.array([self.canvas.height(), self.canvas.width()])
        y, x = (np.asarray(world)[-2:] - centre) * zoom / self.canvas.devicePixelRatio() + size / 2
        return QPointF(float(x), float(y))

    def send(self, kind, world, keys=None):
        from qtpy.QtCore import QEvent, QPoint, QPointF, Qt
        from qtpy.QtGui import QMouseEvent
        from qtpy.QtWidgets import QApplication

        button, keys = Qt.MouseButton.LeftButton, keys or Qt.KeyboardModifier.NoModifier
        place = self.at(world)
        moving = kind == QEvent.Type.MouseMove
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

    def click(self, world, keys=None):
        from qtpy.QtCore import QEvent

        self.send(QEvent.Type.MouseButtonPress, world, keys=keys)
        self.send(QEvent.Type.MouseButtonRelease, world, keys=keys)

    def draw(self, ring, keys=None):
        from qtpy.QtCore import QEvent

        self.send(QEvent.Type.MouseButtonPress, ring[0], keys=keys)
        for world in ring[1:]:
            self.send(QEvent.Type.MouseMove, world, keys=keys)
        self.send(QEvent.Type.MouseButtonRelease, ring[-1], keys=keys)


@pytest.fixture
def no_leaks(qapp):
    """Fails a test that leaves a top-level widget or a running thread behind. Ask for it before the viewer."""
    before = Inventory()
    yield before
    faults = before.left_behind()
    assert not faults, f"left behind: {'; '.join(faults)}"


@pytest.fixture
def viewer(no_leaks, make_napari_viewer, monkeypatch):
    """A real viewer whose window is shown."""
    monkeypatch.setenv("NAPARI_ENSURE_PLUGIN_MAIN_THREAD", "1")
    return make_napari_viewer(show=True)


@pytest.fixture
def workbench(viewer):
    """The dock in a real viewer."""
    _, widget = viewer.window.add_plugin_dock_widget("napari-stmdit", "STMDiT workbench")
    return widget
