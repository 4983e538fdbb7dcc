"""Fixtures for tests that drive a real viewer, and the check that it leaves nothing behind."""

import gc
import os
import threading
import time

import pytest
from mouse import Mouse as Mouse
from standins import CropModel, card_for


def settle(condition, seconds=30.0):
    """Let the event loop run until a condition holds; return whether it does."""
    from qtpy.QtCore import QEventLoop
    from qtpy.QtWidgets import QApplication

    end = time.perf_counter() + seconds
    while time.perf_counter() < end:  # a worker may post events faster than they are handled: look in between
        QApplication.processEvents(QEventLoop.ProcessEventsFlag.AllEvents, 20)
        if condition():
            return True
        time.sleep(0.005)
    return bool(condition())


def answer(word):
    """Press a button of the question that is asked, and return its words."""
    from qtpy.QtCore import Qt
    from qtpy.QtTest import QTest
    from qtpy.QtWidgets import QApplication, QMessageBox

    assert settle(lambda: isinstance(QApplication.activeModalWidget(), QMessageBox), 5)
    question = QApplication.activeModalWidget()
    words = question.informativeText()
    (pressed,) = [one for one in question.buttons() if one.text() == word]
    QTest.mouseClick(pressed, Qt.MouseButton.LeftButton)
    settle(lambda: QApplication.activeModalWidget() is None, 5)
    return words


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


@pytest.fixture
def no_leaks(qapp, plugins_found, monkeypatch):
    """Fails a test that leaves a top-level widget or a running thread behind. Ask for it before the viewer."""
    # seconds of imports beside each first dock, which most of its tests do without
    monkeypatch.setattr("napari_stmdit.ui.presenter.Presenter.prepare", lambda self: None)
    before = Inventory()
    yield before
    faults = before.left_behind()
    assert not faults, f"left behind: {'; '.join(faults)}"
    # what outlived that collection is modules and caches, which stay: the next collections, three a viewer, pass them over
    gc.freeze()


@pytest.fixture
def viewer(no_leaks, make_napari_viewer, monkeypatch, tmp_path_factory):
    """A real viewer whose window is shown; what it keeps goes into a folder of the test's own."""
    if "STMDIT_HOME" not in os.environ:
        monkeypatch.setenv("STMDIT_HOME", str(tmp_path_factory.mktemp("home")))
    monkeypatch.setenv("NAPARI_ENSURE_PLUGIN_MAIN_THREAD", "1")
    return make_napari_viewer(show=True)


@pytest.fixture
def workbench(viewer):
    """The dock in a real viewer."""
    from napari_stmdit.ui.manifest import DOCK, PLUGIN

    _, widget = viewer.window.add_plugin_dock_widget(PLUGIN, DOCK)
    return widget


@pytest.fixture
def opened(workbench, tiny_section):
    """The workbench with the tiny section."""
    card = card_for(tuple(tiny_section.spots.genes.symbols.tolist()), patch_px=64, patch_mpp=0.7)
    workbench.presenter.use_model(CropModel(card))
    workbench.presenter.show(tiny_section)
    settle(lambda: False, 0.2)
    return workbench
