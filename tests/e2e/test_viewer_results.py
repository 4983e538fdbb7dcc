"""Runs, comparisons, results and their files in a real viewer, driven by mouse and keyboard."""

import os
import subprocess
import sys

import numpy as np
import pytest
from models_for_ui import SlowModel, Tinted
from qtpy.QtCore import QPoint, Qt
from qtpy.QtGui import QKeySequence
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QFileDialog, QMessageBox
from standins import card_for
from viewing import Mouse, no_leaks, settle, viewer, workbench  # noqa: F401

from napari_stmdit.edits import Scale
from napari_stmdit.tissue.open import SectionSource
from napari_stmdit.ui import layers
from napari_stmdit.ui.compare import grid_of
from napari_stmdit.ui.state import RunStatus
from napari_stmdit.ui.widgets.evaluate import Picture
from napari_stmdit.ui.widgets.input import RUN_KEYS, sequence

pytestmark = pytest.mark.gui
EDIT = Scale(genes=("ERBB2",), factor=5, name="more ERBB2")
QT_KEYS = {"Enter": Qt.Key.Key_Return, ".": Qt.Key.Key_Period, "B": Qt.Key.Key_B}


@pytest.fixture
def opened(workbench, tiny_section):  # noqa: F811
    """The workbench with the tiny section and a quick stand-in for a checkpoint; eight spots are selected."""
    card = card_for(tuple(tiny_section.spots.genes.symbols.tolist()), patch_px=64, patch_mpp=0.7)
    workbench.presenter.use_model(Tinted(card))
    workbench.presenter.show(tiny_section)
    workbench.presenter.select(tiny_section.spots.ids[:8].tolist())
    settle(lambda: False, 0.1)
    return workbench


def press(viewer, name):  # noqa: F811
    """Press the keys of an action in the canvas, where the focus is after a click on the tissue."""
    *modifiers, key = RUN_KEYS[name][0].split("-")
    held = Qt.KeyboardModifier.NoModifier
    for modifier in modifiers:
        held |= {"Control": Qt.KeyboardModifier.ControlModifier, "Alt": Qt.KeyboardModifier.AltModifier}[modifier]
    canvas = viewer.window._qt_viewer.canvas.native
    QTest.keyClick(canvas, QT_KEYS.get(key) or getattr(Qt.Key, f"Key_{key}"), held)


def click(button):
    """Click a button's middle with the mouse."""
    QTest.mouseClick(button, Qt.MouseButton.LeftButton, pos=QPoint(button.width() // 2, button.height() // 2))


def run(bench, viewer, **request):  # noqa: F811
    bench.state.request = bench.state.request.model_copy(update={"edits": (), "seed": 0, **request})
    count = len(bench.state.results)
    press(viewer, "run")
    assert settle(lambda: len(bench.state.results) == count + 1 and not bench.state.status.busy)
    return bench.state.results[-1].number


def test_keys_run_stop_and_queue(viewer, opened):  # noqa: F811
    state = opened.state
    slow = SlowModel(opened.presenter.state.checkpoint.card, 0.5)  # until it is stopped, so that it is not done before
    opened.presenter.use_model(slow)
    press(viewer, "run")
    assert settle(lambda: slow.steps_done >= 1)
    assert opened.run_bar.run.text() == "Queue"
    click(opened.run_bar.run)
    click(opened.run_bar.run)
    assert opened.run_bar.queue.isVisible() and opened.run_bar.queue.list.count() == 2
    click(opened.run_bar.queue.remove)
    assert len(state.queue) == 1
    press(viewer, "stop")
    assert settle(lambda: not state.status.busy)
    slow.step_s = 0.0
    assert state.status is RunStatus.STOPPED
    assert state.queue_held and opened.run_bar.queue.resume.isEnabled()
    click(opened.run_bar.queue.resume)
    assert settle(lambda: state.status is RunStatus.DONE)
    assert not opened.run_bar.queue.isVisible()
    assert [len(e.spots) for e in state.results][-1] == 8


def test_no_key_of_ours_is_one_of_naparis(viewer, opened):  # noqa: F811
    from napari.settings import get_settings
    from qtpy.QtGui import QAction

    taken = set()
    for action in viewer.window._qt_window.findChildren(QAction):
        taken |= {s.toString() for s in action.shortcuts()}
    for bindings in get_settings().shortcuts.shortcuts.values():
        taken |= {QKeySequence(str(b).replace("Enter", "Return")).toString() for b in bindings}
    assert "Ctrl+G" in taken  # the list is what it says it is
    ours = {sequence(RUN_KEYS[name][0]).toString() for name in RUN_KEYS}
    assert len(ours) == len(RUN_KEYS) and "" not in ours
    assert not ours & taken


def test_comparing_by_mouse_and_keyboard(viewer, opened):  # noqa: F811
    state = opened.state
    run(opened, viewer, edits=(EDIT,))
    click(opened.compare.baseline)
    assert settle(lambda: state.comparison is not None)
    assert (state.comparison.mode, state.comparison.left) == ("grid", 2)
    heads = [label.text.split(":")[0] for label in opened.overlay.labels]
    assert heads == ["the slide", "baseline, synthetic, 2", "synthetic, 1"] and opened.overlay.isVisible()
    press(viewer, "swipe")
    right = opened.presenter.results.layer(1)
    width = right.data.shape[1]
    settle(lambda: False, 0.2)
    before = state.comparison.position
    start, end = (right.data_to_world((right.data.shape[0] / 2, share * width - 0.5)) for share in (0.5, 0.25))
    centre = viewer.scene.camera.center if hasattr(viewer, "scene") else viewer.camera.center
    Mouse(viewer).draw(np.linspace(start, end, 5))
    assert before == 0.5 and state.comparison.position == pytest.approx(0.25, abs=0.03)
    assert (viewer.scene.camera.center if hasattr(viewer, "scene") else viewer.camera.center) == centre  # not panned
    assert not right.data[:, : round(0.2 * width), 3].any()
    assert opened.compare.slider.value() == pytest.approx(50, abs=6)
    opened.compare.slider.setFocus()
    QTest.keyClick(opened.compare.slider, Qt.Key.Key_End)
    assert settle(lambda: state.comparison.position == 1.0)

    press(viewer, "fade")
    assert state.comparison.mode == "fade"
    assert right.data[..., 3].any(axis=0)[: round(0.2 * width)].any()  # its own pixels again
    assert viewer.layers.index(right) > viewer.layers.index(
        opened.presenter.results.layer(2)
    )  # the chosen one is raised
    assert right.opacity == 1
    press(viewer, "flip")
    assert right.opacity == 0
    press(viewer, "blink")
    opened.compare.use_pace(400)
    shown = set()
    assert settle(lambda: shown.add(right.opacity) or len(shown) == 2)
    press(viewer, "grid")
    assert state.comparison.mode == "grid"
    settle(lambda: False, 0.3)
    press(viewer, "grid")
    assert state.comparison is None
    assert [layers.role_of(x) for x in viewer.layers] == ["slide", "result", "result", "spots"]
    click(opened.compare.mode.button("swipe"))
    assert state.comparison.mode == "swipe"
    click(opened.compare.mode.button("off"))
    assert state.comparison is None


def test_nothing_synthetic_stands_under_the_name_of_the_slide(viewer, opened):  # noqa: F811
    state = opened.state
    first, second = (run(opened, viewer, edits=(EDIT,), seed=seed) for seed in (1, 2))
    opened.presenter.compare.start("grid", second)
    assert settle(lambda: len(opened.overlay.labels) == 2)
    panel = opened.results.list
    opened.reveal(panel)
    place = next(k for k in range(panel.count()) if panel.item(k).data(Qt.ItemDataRole.UserRole) == first)
    at = panel.visualItemRect(panel.item(place)).center()
    QTest.mouseClick(panel.viewport(), Qt.MouseButton.LeftButton, pos=at)
    QTest.mouseDClick(panel.viewport(), Qt.MouseButton.LeftButton, pos=at)
    assert state.comparison.right == first and "synthetic, 1" in opened.overlay.labels[1].text
    assert [layers.role_of(x) for x in viewer.layers if x.visible] == ["slide", "spots", "context", "result"]
    viewer.add_image(np.zeros((8, 8)), name="of another plugin")
    assert settle(lambda: not grid_of(viewer).enabled) and state.comparison is None
    assert settle(lambda: not opened.overlay.labels) and opened.compare.mode.value() == "off"
    assert [layers.role_of(x) for x in viewer.layers] == ["slide", "result", "result", "spots", None]


@pytest.mark.parametrize(("size", "shape"), [((1500, 700), (1, 2)), ((1100, 980), (2, 1))])
def test_what_the_grid_shows_is_seen(viewer, opened, size, shape):  # noqa: F811
    """The slide first, the result right of it or below, as there is room: the picture on the screen says so, and labels lie where their cells do."""
    viewer.window.resize(*size)
    settle(lambda: False, 0.3)
    opened.presenter.use_model(Tinted(opened.state.checkpoint.card))
    opened.presenter.select_all()
    run(opened, viewer)
    press(viewer, "grid")
    settle(lambda: False, 0.3)
    assert tuple(grid_of(viewer).shape) == shape
    picture = viewer.screenshot(canvas_only=True, flash=False)[..., :3].astype(int)
    first, second = np.array_split(picture, 2, axis=shape.index(2))
    rough = [np.abs(np.diff(side, axis=1)).mean() for side in (first, second)]
    assert rough[1] > 1.25 * rough[0]  # noise in the result, the slide is smooth; frames on both
    places = np.array([label.at for label in opened.overlay.labels])
    half = np.array([opened.overlay.width(), opened.overlay.height()]) / shape[::-1]
    assert (places // half).tolist() == [[0, 0], [shape.index(2), 1 - shape.index(2)]]
    press(viewer, "grid")


def test_a_comparison_ends_with_its_window(viewer, opened):  # noqa: F811
    run(opened, viewer)
    press(viewer, "blink")
    settle(lambda: False, 0.2)
    viewer.close()
    settle(lambda: False, 0.3)


QUITTING = """
import sys
import napari
from models_for_ui import Tinted
from qtpy.QtCore import QTimer
from standins import card_for
from napari_stmdit.tissue.open import open_section
from napari_stmdit.ui.manifest import DOCK, PLUGIN
from napari_stmdit.ui.presenter import Presenter
from viewing import settle

Presenter.prepare = lambda self: None
viewer = napari.Viewer(show=True)
presenter = viewer.window.add_plugin_dock_widget(PLUGIN, DOCK)[1].presenter
section = open_section(sys.argv[1])
card = card_for(tuple(section.spots.genes.symbols.tolist()), patch_px=64, patch_mpp=0.7)
presenter.use_model(Tinted(card)), presenter.show(section)
presenter.select(section.spots.ids[:3].tolist())
for seed in (1, 2, 3):
    presenter.state.request = presenter.state.request.model_copy(update={"seed": seed})
    presenter.runs.run()
    assert settle(lambda: len(presenter.state.results) == seed and not presenter.state.status.busy)
presenter.compare.start("grid", 3)
for number in (1, 2, 3):
    presenter.results.save(number, sys.argv[2])
QTimer.singleShot(0, viewer.window._qt_window.close)
napari.run()
assert presenter.state.comparison is None
"""


def test_what_is_queued_to_be_saved_is_saved_before_napari_ends(tiny_folder, tmp_path):
    from napari_stmdit.tissue.store_entries import list_results

    paths = {"PYTHONPATH": os.pathsep.join(sys.path), "STMDIT_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-c", QUITTING, str(tiny_folder), str(tmp_path / "out.zarr")]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | paths, check=False)
    assert list_results(tmp_path / "out.zarr") == ("stmdit_1", "stmdit_2", "stmdit_3"), done.stderr
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr


def test_save_reopen_and_run_again(viewer, opened, tmp_path, monkeypatch):  # noqa: F811
    state = opened.state
    run(opened, viewer, edits=(EDIT,), seed=11)
    first = state.results[0]
    store = str(tmp_path / "kept.zarr")
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_, **__: (store, ""))
    opened.results.save_store.trigger()
    assert settle(lambda: state.results[0].saved is not None, 60), state.message.text
    assert "Saved in" in opened.results.list.item(0).toolTip()
    opened.section.setValue(SectionSource(path=store))
    click(opened.section.open_button)
    assert settle(lambda: len(state.results) == 2 and not state.busy, 60), state.message.text
    back = state.results[1]
    assert back.result is None and back.request == first.request
    opened.results.show_chosen(back.number)
    assert opened.results.save.isEnabled() and not opened.results.save_store.isEnabled()
    assert not opened.presenter.results.layer(1).visible
    opened.results.show_chosen(back.number)
    state.chosen_result = back.number
    click(opened.results.reuse)
    assert state.request.seed == 11 and state.selected == first.spots
    click(opened.results.again)
    assert settle(lambda: len(state.results) == 3 and not state.status.busy)
    np.testing.assert_array_equal(state.results[2].result.rgba, first.result.rgba)


def test_a_data_set_is_written_while_the_viewer_goes_on(viewer, opened, tmp_path, monkeypatch):  # noqa: F811
    import anndata

    state, panel = opened.state, opened.results
    run(opened, viewer, edits=(EDIT,), seed=11)
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_, **__: (str(tmp_path / "data"), ""))
    assert panel.save_data_set.text() == "Data set…"
    panel.save_data_set.trigger()
    assert state.exporting and not state.obstacle  # Run can be pressed meanwhile
    assert panel.save_data_set.text() == "Stop the data set" and "being written" in panel.writing.plain()
    assert settle(lambda: not state.exporting, 60), state.message.text
    assert "was written: 16 images" in state.message.text
    assert panel.save_data_set.text() == "Data set…"
    assert len(anndata.read_zarr(tmp_path / "data" / "anndata" / "dataset.zarr")) == 16


def test_a_copy_of_a_result_by_napari_is_no_result(viewer, opened):  # noqa: F811
    run(opened, viewer)
    viewer.layers.selection = {opened.presenter.results.layer(1)}
    from napari.layers._layer_actions import _duplicate_layer

    _duplicate_layer(viewer.layers)
    assert [layers.role_of(x) for x in viewer.layers] == ["slide", "result", None, "spots"]
    opened.presenter.results.layer(1).name = "by napari"
    assert settle(lambda: opened.results.list.item(0).text() == "by napari (synthetic)")


def test_rename_hide_and_delete_in_the_list(viewer, opened, monkeypatch):  # noqa: F811
    state = opened.state
    run(opened, viewer)
    item = opened.results.list.item(0)
    assert not item.icon().isNull()
    item.setText("before the edit")
    assert settle(lambda: state.results[0].name == "before the edit (synthetic)")
    opened.results.list.item(0).setCheckState(Qt.CheckState.Unchecked)
    assert settle(lambda: not opened.presenter.results.layer(1).visible)
    asked = []

    def answer(*args, **_):
        asked.append(args)
        return QMessageBox.StandardButton.No if len(asked) == 1 else QMessageBox.StandardButton.Yes

    monkeypatch.setattr(QMessageBox, "question", answer)
    click(opened.results.delete)
    assert len(state.results) == 1
    click(opened.results.delete)
    assert not state.results and len(asked) == 2


def test_the_close_up_and_the_contact_sheet(viewer, opened, tmp_path):  # noqa: F811
    state = opened.state
    run(opened, viewer, edits=(EDIT,))
    click(opened.compare.baseline)
    assert settle(lambda: state.comparison is not None)
    press(viewer, "swipe")
    state.chosen_result = 1
    opened.reveal(opened.spot)
    assert settle(lambda: state.close_up is not None and len(state.close_up.patches) == 3)
    assert settle(lambda: len(opened.spot.texts()) == 16)
    heads = opened.spot.texts()[::4]
    assert [h.split(":")[0] for h in heads] == [
        "Haematoxylin, OD (ln)",
        "Eosin, OD (ln)",
        "Nuclei, per mm²",
        "Blank area, share",
    ]
    assert all("Δ" in h for h in heads)
    change = float(heads[0].split("Δ")[1].replace("−", "-").replace("±", ""))
    real, base, edited = (float(t) for t in opened.spot.texts()[1:4])
    assert change == pytest.approx(edited - base, abs=0.002)
    state.request = state.request.model_copy(update={"edits": (EDIT,)})
    opened.reveal(opened.spot.dose)
    click(opened.spot.dose)
    assert settle(lambda: state.sheet is not None and len(state.sheet.cells) == 7)
    assert settle(lambda: opened.sheet.isVisible())
    small = max(picture.pixmap().width() for picture in opened.sheet.findChildren(Picture))
    opened.sheet.resize(1400, 700)

    def larger():
        pictures = [picture for picture in opened.sheet.findChildren(Picture) if picture.isVisible()]
        return len(pictures) == 8 and min(picture.pixmap().width() for picture in pictures) > small

    assert settle(larger, 5)
    assert all(p.pixmap().width() == p.pixmap().height() for p in opened.sheet.findChildren(Picture) if p.isVisible())
    assert "more ERBB2" in opened.sheet.title.plain()
    opened.sheet.save(tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").stat().st_size > 1000
    opened.sheet.save(tmp_path / "sheet.png")
    assert "already there" in opened.sheet.message.plain()


def test_preferences_are_followed(viewer, opened):  # noqa: F811
    settings = pytest.importorskip("napari.settings")
    if not hasattr(settings, "get_plugin_settings"):
        pytest.skip("napari before 0.9")
    page = settings.get_plugin_settings("napari-stmdit").workbench
    assert page.live_preview is True and opened.presenter.runs.live_preview is True
    try:
        page.live_preview = False
        page.blink_ms = 1200
        assert opened.presenter.runs.live_preview is False
        assert opened.compare.blink_ms == 1200
    finally:
        page.live_preview, page.blink_ms = True, 700


def test_theme_changes_are_followed(viewer, opened):  # noqa: F811
    text = opened.run_bar.message
    dark = text.styleSheet()
    viewer.theme = "light"
    assert text.styleSheet() != dark
