"""The leak check itself: it has to see what is left behind."""

import threading

import pytest
from viewing import Inventory

pytestmark = pytest.mark.gui


def test_a_window_that_is_left_open_is_seen(qapp):
    from qtpy.QtWidgets import QDialog, QWidget

    from napari_stmdit.ui.widgets.evaluate import SheetWindow

    before = Inventory()
    assert before.left_behind(0.1) == []
    hidden, parent, foreign = SheetWindow(None), QWidget(), QDialog()
    foreign.show()
    faults = before.left_behind(0.1)
    assert "SheetWindow" in faults[0]
    assert "QDialog" in faults[0]
    for widget in (hidden, parent, foreign):
        widget.close()
        widget.deleteLater()
    assert before.left_behind(0.1) == []


def test_a_worker_and_a_thread_that_still_run_are_seen(qapp):
    from qtpy.QtCore import QRunnable, QThreadPool

    gate = threading.Event()

    class Waits(QRunnable):
        def run(self):
            gate.wait(10)

    before = Inventory()
    worker = Waits()
    QThreadPool.globalInstance().start(worker)
    assert before.left_behind(0.1) == ["a worker is still running"]
    thread = threading.Thread(target=gate.wait, args=(10,), name="left over")
    thread.start()
    assert any("left over" in fault for fault in before.left_behind(0.1))
    gate.set()
    thread.join()
    assert before.left_behind(5) == []
