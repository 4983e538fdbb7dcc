"""Fixtures for tests that drive a real viewer, and the check that it leaves nothing behind."""

import gc
import time

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


def our_top_level_widgets():
    from qtpy.QtWidgets import QApplication

    return [w for w in QApplication.topLevelWidgets() if type(w).__module__.startswith("napari_stmdit")]


@pytest.fixture
def no_leaks(qapp):
    """Fails a test that leaves a widget of ours or a running thread behind. Ask for it before the viewer."""
    from qtpy.QtCore import QThreadPool
    from qtpy.QtWidgets import QApplication

    before = set(our_top_level_widgets())
    yield
    gc.collect()
    QApplication.processEvents()
    left = [w for w in our_top_level_widgets() if w not in before]
    assert not left, f"widgets left behind: {left}"
    pool = QThreadPool.globalInstance()
    assert settle(lambda: pool.activeThreadCount() == 0, 10), "a worker is still running"


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
