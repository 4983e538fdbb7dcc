"""Adapting to a section from the dock in a real viewer: the process learns by itself, is stopped, gone on with after the viewer, and used."""

from functools import partial

import pytest
from checkpoints import write_tiny_checkpoint
from qtpy.QtCore import QPoint, Qt
from qtpy.QtTest import QTest
from viewing import no_leaks, settle, viewer, workbench  # noqa: F401

from napari_stmdit.tissue.open import open_section
from napari_stmdit.training.adaptation import request_of
from napari_stmdit.ui.checkpoints import Adaptations
from napari_stmdit.ui.widgets.model import AdaptPanel

pytestmark = pytest.mark.gui


def click(button):
    QTest.mouseClick(button, Qt.MouseButton.LeftButton, pos=QPoint(button.width() // 2, button.height() // 2))


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A folder of the user's data in which ``demo`` means a small checkpoint, in every process."""
    monkeypatch.setenv("STMDIT_HOME", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr("napari_stmdit.ui.checkpoints.request_of", partial(request_of, workers=1))  # quick to start
    write_tiny_checkpoint(tmp_path / "checkpoints" / "demo", tuple(f"OTHER{k}" for k in range(20)))
    return tmp_path


@pytest.fixture
def opened(home, workbench, tiny_folder):  # noqa: F811
    workbench.presenter.show(open_section(tiny_folder))
    workbench.reveal(workbench.adapt)
    settle(lambda: False, 0.1)
    return workbench


def test_it_is_stopped_gone_on_with_and_the_checkpoint_is_used(opened, home):
    panel = opened.adapt
    assert panel.name.placeholderText() == "my-tiny_section" and not panel.known.isVisible()
    panel.form["minutes"].value = 1
    panel.name.setText("mine")
    click(panel.go)
    assert panel.stop.isVisible() and panel.told.plain() == "Opening the section and preparing."
    assert settle(lambda: panel.adaptations.look("mine").progress is not None, 120), panel.fault.plain()
    click(panel.stop)
    assert settle(lambda: not panel.adaptations.look("mine").alive, 120)
    panel.look()
    assert panel.more.isVisible() and panel.told.plain().startswith("Stopped at ")
    request = home / "adapted" / "mine" / "request.json"
    request.write_text(request.read_text().replace('"minutes": 1.0', '"minutes": 0.001'))  # the rest in no time
    click(panel.more)
    assert panel.stop.isVisible()
    later = Adaptations()  # a viewer that was opened later knows of it by its folder alone
    assert later.names() == ["mine"]
    assert settle(lambda: later.look("mine").alive, 60) and not later.look("mine").done
    assert settle(lambda: later.look("mine").done and panel.use.isVisible(), 300), panel.fault.plain()
    assert panel.picture.isVisible() and panel.figures.plain().startswith("On held-out tissue, a spot given")
    names = [opened.model.checkpoint.itemData(row) for row in range(opened.model.checkpoint.count())]
    assert "mine" in names
    click(panel.use)
    assert settle(lambda: opened.state.checkpoint is not None and opened.state.checkpoint.card.name == "mine", 60)
    assert opened.model.value().checkpoint == "mine"


def test_what_is_refused_is_said_in_the_dock(opened):
    panel = opened.adapt
    panel.name.setText("../mine")
    click(panel.go)
    assert "is no name for a checkpoint" in panel.asked.plain()
    panel.name.setText("other")
    panel.form["minutes"].value = 1
    panel.hold_out.addItem("elsewhere", "elsewhere")
    panel.hold_out.setCurrentIndex(panel.hold_out.count() - 1)
    click(panel.go)
    assert panel.asked.plain() == ""
    assert settle(lambda: panel.fault.plain() != "", 120)
    assert "'elsewhere' is neither a corner" in panel.fault.plain() and not panel.stop.isVisible()


def test_without_a_section_there_is_nothing_to_adapt_to(qapp, monkeypatch, tmp_path):
    monkeypatch.setenv("STMDIT_HOME", str(tmp_path))
    panel = AdaptPanel()
    assert not panel.go.isEnabled()
    panel._begin()
    assert panel.asked.plain().startswith("Open a section from a folder or a store first")
