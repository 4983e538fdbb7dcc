"""Evaluating from the dock in a real viewer: it runs in the background, is stopped, goes on, and its report is opened."""

import json

import pytest
from evaluation_study import CARD, Described, telling_section
from models_for_ui import SlowModel
from qtpy.QtCore import QPoint, Qt
from qtpy.QtGui import QDesktopServices
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QFileDialog
from viewing import no_leaks, settle, viewer, workbench  # noqa: F401

from napari_stmdit.ui.state import RunStatus

pytestmark = pytest.mark.gui


class Slow(SlowModel):
    """Noise that takes its time, with encoders that an evaluation can work with."""

    encode_expression = Described.encode_expression
    encode_morphology = Described.encode_morphology


def click(button):
    QTest.mouseClick(button, Qt.MouseButton.LeftButton, pos=QPoint(button.width() // 2, button.height() // 2))


@pytest.fixture
def opened(workbench):  # noqa: F811
    workbench.presenter.use_model(Slow(CARD, 0.03))
    workbench.presenter.show(telling_section())
    workbench.reveal(workbench.evaluate)
    settle(lambda: False, 0.1)
    return workbench


def test_an_evaluation_is_stopped_goes_on_and_its_report_is_opened(opened, tmp_path, monkeypatch):
    panel, state = opened.evaluate, opened.state
    monkeypatch.setattr(QFileDialog, "getExistingDirectory", lambda *_: str(tmp_path))
    shown = []
    monkeypatch.setattr(QDesktopServices, "openUrl", lambda url: shown.append(url.toLocalFile()))
    panel.spots.setValue(16)
    panel.seeds.setValue(1)
    assert panel.count.plain().startswith("About 112 patches") and not panel.open.isEnabled()
    click(panel.go)
    assert settle(lambda: state.progress is not None and state.progress.patches_done >= 8)
    assert panel.go.text() == "Queue…" and opened.run_bar.stop.isEnabled()
    click(opened.run_bar.stop)
    assert settle(lambda: not state.status.busy)
    assert state.status is RunStatus.STOPPED and "choose the same folder again" in state.message.text
    assert not (tmp_path / "report.html").exists() and list((tmp_path / "stacks").iterdir())
    before = opened.state.checkpoint.steps_done
    click(panel.go)
    assert settle(lambda: not state.status.busy, 120)
    assert state.status is RunStatus.DONE, state.message
    steps = opened.state.checkpoint.steps_done - before
    assert (
        0 < steps <= 6 * 2 * CARD.steps - CARD.steps
    )  # six cases in two batches; what was finished was not made again
    figures = json.loads((tmp_path / "report.json").read_text())
    assert figures["figures"][0]["spots"] == 16
    assert "beats its control in 0 of" in panel.found.plain() and "does not beat" in panel.found.plain()
    click(panel.open)
    assert shown == [str(tmp_path / "report.html")]


def test_what_cannot_be_evaluated_is_said(opened, tmp_path, monkeypatch):
    panel, state = opened.evaluate, opened.state
    monkeypatch.setattr(QFileDialog, "getExistingDirectory", lambda *_: str(tmp_path))
    opened.presenter.show(telling_section(2, "small", rows=2, columns=3))
    click(panel.go)
    assert settle(lambda: state.status is RunStatus.FAILED)
    assert state.message.kind == "error" and "at least 8 are needed" in state.message.text
    opened.presenter.unload_model()
    assert not panel.go.isEnabled()
