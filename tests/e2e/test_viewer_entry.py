"""Ways into the dock, and from what was painted to a run: menus, drops, dialogs, Run, and the example."""

import shutil

import numpy as np
import pytest
from qtpy.QtCore import Qt
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QFileDialog
from viewing import Mouse, answer, no_leaks, opened, settle, viewer, workbench  # noqa: F401

from napari_stmdit.ui import layers
from napari_stmdit.ui.gestures import camera_of
from napari_stmdit.ui.manifest import DOCK, PLUGIN
from napari_stmdit.ui.presenter import Presenter, presenter_of
from napari_stmdit.ui.state import EditDraft

pytestmark = pytest.mark.gui
PREPARE = Presenter.prepare  # which the viewers of tests leave out


@pytest.fixture
def without_model(monkeypatch):
    """No checkpoint is loaded when a section is opened."""
    monkeypatch.setattr(Presenter, "load_model", lambda self, choice: None)


def dock_of(viewer):  # noqa: F811
    found = [d for name, d in viewer.window.dock_widgets.items() if name.startswith(DOCK)]
    return found[0] if found else None


def test_a_dock_imports_ahead_once_what_checkpoints_need(viewer, monkeypatch):  # noqa: F811
    started = []
    monkeypatch.setattr(Presenter, "prepare", PREPARE)
    monkeypatch.setattr(Presenter, "_submit", lambda self, lane, job, *then: started.append(job))
    dock = viewer.window.add_plugin_dock_widget(PLUGIN, DOCK)[1]
    assert settle(lambda: started)
    dock.hide()
    dock.show()
    (job,) = started
    assert job.title == "Importing" and job.quiet and not dock.state.busy


def test_what_was_painted_can_be_run_and_a_double_click_is_one_run(viewer, opened):  # noqa: F811
    state, bar = opened.state, opened.run_bar
    assert not bar.run.isEnabled() and "paint an edit" in bar.run.toolTip() and "paint an edit" in bar.words.plain()
    ids = state.section.spots.ids[3:8].tolist()
    opened.presenter.painting.take_draft(EditDraft(operation="knock_out", genes=("ERBB2",)))
    opened.presenter.painting.add(ids)
    assert state.selected == ()
    assert bar.run.isEnabled() and bar.run.text() == "Run on 5 painted spots"
    assert settle(lambda: "5 patches" in opened.synthesize.estimate.plain())
    QTest.mouseClick(bar.run, Qt.MouseButton.LeftButton)
    QTest.mouseDClick(bar.run, Qt.MouseButton.LeftButton)  # the second press of a double click
    QTest.mouseRelease(bar.run, Qt.MouseButton.LeftButton)
    assert settle(lambda: state.results and not state.status.busy)
    settle(lambda: False, 0.3)
    (entry,) = state.results
    assert entry.spots == tuple(ids) and not state.queue
    opened.presenter.looking.back()
    QTest.mouseClick(bar.run, Qt.MouseButton.LeftButton)  # its pixels are there
    assert len(state.results) == 1 and not state.status.busy
    assert "Already made" in state.message.text and state.way_back
    mouse = Mouse(viewer)
    mouse.press(Qt.Key.Key_Return, Qt.KeyboardModifier.ControlModifier | Qt.KeyboardModifier.ShiftModifier)
    assert settle(lambda: len(state.results) == 2 and not state.status.busy)
    opened.presenter.select(ids[:1])
    assert bar.run.text() == "Run"


def test_a_dropped_section_opens_the_dock_and_the_next_gets_camera_and_path(
    viewer,  # noqa: F811
    without_model,
    tiny_folder,
    tmp_path,
):
    assert dock_of(viewer) is None
    viewer.open(str(tiny_folder), plugin="napari-stmdit")
    assert dock_of(viewer) is not None
    state = presenter_of(viewer).state
    assert state.section is layers.section_of(viewer.layers[-1])
    dock = viewer.window._wrapped_dock_widgets[next(n for n in viewer.window.dock_widgets if n.startswith(DOCK))]
    bench = dock.inner_widget()
    assert bench.section.path.text() == str(tiny_folder)
    camera = camera_of(viewer)
    camera.center, camera.zoom = (5000.0, 5000.0), 10.0
    other = shutil.copytree(tiny_folder, tmp_path / "other")
    viewer.open(str(other), plugin="napari-stmdit")
    assert bench.section.path.text() == str(other)
    np.testing.assert_allclose(camera.center[-2:], np.array([860, 860]) * 0.7 / 2, atol=2)
    assert camera.zoom < 2
    assert len([n for n in viewer.window.dock_widgets if n.startswith(DOCK)]) == 1


def test_before_a_section_is_replaced_one_question_says_what_becomes_of_work_and_edits(
    viewer,  # noqa: F811
    opened,  # noqa: F811
    tiny_folder,
    tmp_path,
):
    from models_for_ui import SlowModel

    from napari_stmdit.edits import KnockOut

    state, presenter, bench = opened.state, opened.presenter, opened.section
    first, edits = state.section, (KnockOut(genes=("ERBB2",)),)
    other = str(shutil.copytree(tiny_folder, tmp_path / "other"))
    presenter.select(first.spots.ids[:2].tolist())
    presenter.runs.run()
    assert settle(lambda: state.results and not state.status.busy)
    state.request = state.request.model_copy(update={"edits": edits})
    presenter.use_model(SlowModel(state.checkpoint.card, 0.3))
    state.batch = 1
    presenter.select_all()
    presenter.runs.run()
    assert settle(lambda: state.progress is not None and state.progress.patches_done > 0)
    before = list(viewer.layers)
    viewer.open(other, plugin="napari-stmdit")
    words = answer("Keep it")
    assert (
        f"1 result and 1 edit are not saved: results stay in the list, edits come back when you open {first.name}"
        in words
    )
    assert "replacing the section ends it, and what is finished is kept" in words
    assert state.section is first and list(viewer.layers) == before and state.status.busy and state.selected
    bench.path.setText(other)
    QTest.keyClick(bench.path, Qt.Key.Key_Return)
    answer("Keep it")
    assert state.section is first and not state.busy and state.status.busy
    viewer.open(other, plugin="napari-stmdit")
    answer("Replace it")
    assert state.section is layers.section_of(viewer.layers[-1]) is not first
    assert not state.status.busy and len(state.results) == 2  # with what the run had finished
    assert all(entry.section is first for entry in state.results) and not state.request.edits
    presenter.show(first)
    assert state.request.edits == edits


def test_a_section_is_replaced_unasked_where_nothing_changes_for_it(viewer, opened, tiny_folder):  # noqa: F811
    viewer.open(str(tiny_folder), plugin="napari-stmdit")
    assert opened.state.section.path == tiny_folder
    opened.state.request = opened.state.request.model_copy(update={"steps": 3})
    opened.section._correct()  # the same one anew
    QTest.keyClick(opened.section.path, Qt.Key.Key_Return)
    assert settle(lambda: opened.state.section is not None and not opened.state.busy)


def test_the_readers_command_of_the_palette_opens_the_dock(viewer):  # noqa: F811
    from napari._app_model import get_app_model

    get_app_model().commands.execute_command("napari-stmdit.read").result()
    assert dock_of(viewer) is not None


def test_choosing_in_the_dialog_opens(viewer, workbench, without_model, tiny_folder, monkeypatch):  # noqa: F811
    from qtpy.QtWidgets import QMenu

    monkeypatch.setattr(QFileDialog, "getExistingDirectory", lambda *_: str(tiny_folder))
    menu = next(m for m in workbench.section.findChildren(QMenu) if len(m.actions()) == 3)
    assert menu.actions()[2].text() == "Plain H&&E slide…"  # one & would underline the E
    menu.actions()[0].trigger()
    assert settle(lambda: workbench.state.section is not None and not workbench.state.busy)


@pytest.mark.slow
def test_the_example_shows_this_tissue_before_and_after_in_one_click(viewer, workbench):  # noqa: F811
    state, section = workbench.state, workbench.section
    assert section.welcome.isVisible()
    QTest.mouseClick(section.example, Qt.MouseButton.LeftButton)
    assert settle(lambda: state.comparison is not None, 180), state.message.text
    assert not section.welcome.isVisible()
    (entry,) = state.results
    assert entry.counterfactual and len(state.request.edits) == 1 and len(entry.spots) == 7
    assert (state.comparison.mode, state.comparison.left) == ("grid", None)
    assert [label.text for label in workbench.overlay.labels] == [
        "this tissue, before",
        "after (synthetic): towards its palest spots, 7 spots",
    ]
    assert len(workbench.overlay.frames) == 7 and state.way_back
    assert "before" in state.message.text and state.request.preset == "exact"
    assert workbench.run_bar.run.text() == "Run on 7 painted spots"


def test_napari_asks_once_before_closing_and_says_what_would_be_lost(viewer, opened):  # noqa: F811
    from models_for_ui import SlowModel
    from qtpy.QtCore import QTimer
    from qtpy.QtWidgets import QApplication, QLabel

    state, asked = opened.state, []

    def refuse():
        question = QApplication.activeModalWidget()
        asked.append("".join(label.text() for label in question.findChildren(QLabel)))
        question.reject()

    def close():
        QTimer.singleShot(500, refuse)
        viewer.window._qt_window.close(quit_app=True, confirm_need=True)  # as Ctrl+Q does

    close()
    assert len(asked) == 1 and "not saved" not in asked[0]
    opened.presenter.select(state.section.spots.ids[:2].tolist())
    opened.presenter.runs.run()
    assert settle(lambda: state.results and not state.status.busy)
    opened.presenter.use_model(SlowModel(state.checkpoint.card, 0.5))
    opened.presenter.select_all()
    opened.presenter.runs.run()
    assert settle(lambda: state.progress is not None)
    close()
    assert len(asked) == 2
    assert "1 result is not saved: kept, and offered" in asked[1] and "closing ends it" in asked[1]
    assert viewer.window._qt_window.isVisible()
    opened.presenter.stop()
    assert settle(lambda: not state.status.busy)
