"""What a user sees of a result, and what it costs to show it: camera, frames, names, rings, repaints, one history."""

import os
import re
import subprocess
import sys
import time

import numpy as np
import pytest
from models_for_ui import SlowModel
from mouse import CONTROL, SHIFT
from qtpy.QtCore import QEvent, QObject, Qt
from qtpy.QtTest import QTest
from viewing import Mouse, no_leaks, opened, settle, viewer, workbench  # noqa: F401

from napari_stmdit.edits import KnockOut
from napari_stmdit.ui import layers
from napari_stmdit.ui.gestures import camera_of
from napari_stmdit.ui.state import Colouring, EditDraft

pytestmark = pytest.mark.gui


def run(bench, spots, edits=()):
    state, ids = bench.state, bench.state.section.spots.ids
    state.request = state.request.model_copy(update={"edits": edits})
    bench.presenter.select(ids[list(spots)].tolist())
    count = len(state.results)
    bench.presenter.runs.run()
    assert settle(lambda: len(state.results) > count and not state.status.busy), state.message.text
    return state.results[-1].number


def test_the_camera_goes_to_a_small_result_and_back(viewer, opened):  # noqa: F811
    state, camera = opened.state, camera_of(viewer)
    before = (tuple(camera.center), camera.zoom)
    run(opened, [12])
    assert camera.zoom > 2 * before[1] and state.way_back and opened.run_bar.back.isVisible()
    world = state.section.spots.yx[12] * state.section.calibration.mpp
    np.testing.assert_allclose(camera.center[-2:], world, atol=1)
    (quad,) = opened.overlay.frames
    assert opened.overlay.isVisible()
    np.testing.assert_allclose(np.ptp(quad, axis=0), 64 * 0.7, atol=0.1)
    np.testing.assert_allclose(quad.mean(axis=0), world, atol=1)
    side = opened.overlay.on_canvas(quad[1]).x() - opened.overlay.on_canvas(quad[0]).x()
    mouse = Mouse(viewer)
    assert side == pytest.approx(mouse.at(quad[1]).x() - mouse.at(quad[0]).x(), abs=0.5)
    QTest.mouseClick(opened.run_bar.back, Qt.MouseButton.LeftButton)
    assert (tuple(camera.center), camera.zoom) == before
    assert not state.way_back and not opened.run_bar.back.isVisible()
    run(opened, range(30))  # it fills the view already
    assert (tuple(camera.center), camera.zoom) == before and not state.way_back
    assert len(opened.overlay.frames) == 30
    opened.presenter.results.show(state.chosen_result, False)
    assert not len(opened.overlay.frames)


def test_names_say_what_was_done_and_where(viewer, opened):  # noqa: F811
    edit = KnockOut(genes=("ERBB2",), name="ERBB2 knocked out")
    run(opened, range(13), (edit,))
    run(opened, [7])
    ids = opened.state.section.spots.ids
    assert [e.name for e in opened.state.results] == [
        "ERBB2 knocked out, 13 spots (synthetic, 1)",
        f"as measured, {ids[7]} (synthetic, 2)",
    ]
    assert opened.state.message.text.startswith("1 synthetic patch in")


def test_choosing_a_result_raises_it_and_a_double_click_goes_there(viewer, opened):  # noqa: F811
    run(opened, [3])
    run(opened, [25])
    opened.presenter.looking.back()
    results, panel, camera = opened.presenter.results, opened.results.list, camera_of(viewer)
    place = next(k for k in range(panel.count()) if panel.item(k).data(Qt.ItemDataRole.UserRole) == 1)
    opened.reveal(panel)
    at = panel.visualItemRect(panel.item(place)).center()
    QTest.mouseClick(panel.viewport(), Qt.MouseButton.LeftButton, pos=at)
    assert opened.state.chosen_result == 1
    order = [x for x in viewer.layers if layers.role_of(x) == "result"]
    assert order == [results.layer(2), results.layer(1)]
    assert layers.role_of(viewer.layers[-1]) == "spots"
    QTest.mouseDClick(panel.viewport(), Qt.MouseButton.LeftButton, pos=at)
    world = opened.state.section.spots.yx[3] * opened.state.section.calibration.mpp
    np.testing.assert_allclose(camera.center[-2:], world, atol=1)
    assert opened.state.way_back


def test_no_ring_lies_over_a_result_and_h_shows_spots_in_three_ways(viewer, opened):  # noqa: F811
    opened.presenter.colour(Colouring("ERBB2"))
    run(opened, [3, 4])
    spots, mouse = opened.presenter.view.spots, Mouse(viewer)
    under = np.array([3, 4])
    assert not spots.face_color[under, 3].any() and not spots.border_color[under, 3].any()
    assert not spots.border_width[under].any()
    assert spots.face_color[10, 3] > 0.5 and spots.border_width[10] > 0
    mouse.press(Qt.Key.Key_H, text="h")
    assert opened.state.spots_as == "outline" and not spots.face_color[:, 3].any()
    assert (spots.border_width > 0).all() and spots.border_width[3] < 0.07
    mouse.press(Qt.Key.Key_H, text="h")
    assert opened.state.spots_as == "hide" and not spots.visible
    assert opened.colour.spots_as.value() == "hide"
    opened.colour.spots_as.button("fill").click()
    assert spots.visible and spots.face_color[10, 3] > 0.5


class Repaints(QObject):
    """Counts how often a window is drawn anew."""

    def __init__(self, window):
        super().__init__(window)
        self.count, self.since = 0, time.perf_counter()
        window.installEventFilter(self)

    def eventFilter(self, watched, event):
        self.count += event.type() == QEvent.Type.UpdateRequest
        return False

    def per_second(self):
        return self.count / (time.perf_counter() - self.since)


def test_nothing_is_animated_while_work_runs(viewer, opened):  # noqa: F811
    state = opened.state
    opened.presenter.use_model(SlowModel(state.checkpoint.card, 0.02))  # 12 s
    opened.presenter.select_all()
    state.request, state.batch = state.request.model_copy(update={"steps": 40}), 2
    opened.presenter.runs.run()
    assert settle(lambda: state.progress is not None)
    settle(lambda: False, 0.7)  # what begins is shown at once
    repaints = Repaints(viewer.window._qt_window)
    assert not settle(lambda: not state.status.busy, 6)
    # every two seconds the picture, drawn in two goes by the canvas and the window, and the words of the bar
    assert repaints.per_second() <= 2.5
    opened.presenter.stop()
    assert settle(lambda: not state.status.busy)
    state.busy = "Loading the checkpoint"
    settle(lambda: False, 0.5)
    repaints = Repaints(viewer.window._qt_window)
    # a slow computer may miss a second, so two of any
    said = set()
    assert settle(lambda: said.add(opened.run_bar.count.plain()) or len(said) > 2), said
    assert all(re.fullmatch(r"Loading the checkpoint …( \d+ s)?", text) for text in said), said
    assert repaints.per_second() <= 2
    state.busy = ""
    assert settle(lambda: opened.run_bar.count.isHidden())


def test_undo_walks_selections_and_edits_in_one_history(viewer, opened):  # noqa: F811
    state, mouse = opened.state, Mouse(viewer)
    world, ids = state.section.spots.yx * state.section.calibration.mpp, state.section.spots.ids
    opened.presenter.select(ids[:9].tolist())
    opened.presenter.painting.take_draft(EditDraft(operation="knock_out", genes=("ERBB2",)))
    opened.presenter.painting.add(state.selected)
    mouse.click(world[20])  # a stray click
    assert state.selected == (ids[20],)
    mouse.press(Qt.Key.Key_Z, CONTROL)
    assert state.selected == tuple(ids[:9]) and len(state.request.edits) == 1
    assert opened.presenter.view.spots.selected_data == set(range(9))
    assert "9 of 30" in opened.select.count.text()
    mouse.press(Qt.Key.Key_Z, CONTROL)
    assert state.selected == tuple(ids[:9]) and not state.request.edits
    opened.select.undo.click()
    assert state.selected == () and not opened.select.undo.isEnabled()
    for _ in range(3):
        mouse.press(Qt.Key.Key_Z, CONTROL | SHIFT)
    assert state.selected == (ids[20],) and len(state.request.edits) == 1


def test_rings_keep_their_width_on_the_screen(viewer, opened):  # noqa: F811
    camera, spots = camera_of(viewer), opened.presenter.view.spots
    opened.presenter.select(opened.state.section.spots.ids[:3].tolist())

    def on_screen():
        diameter = float(np.ravel(spots.size)[0]) * abs(spots.scale).min() * camera.zoom
        return np.array(spots.border_width)[[0, 10]] * diameter

    camera.zoom = 60.0
    close = on_screen()
    assert 2 < close[0] < 4 and 1 < close[1] < 2
    camera.zoom = 240.0
    np.testing.assert_allclose(on_screen(), close, rtol=0.3)
    camera.zoom = 0.05  # seen from afar they shrink with the spots
    assert on_screen()[0] < 1 and spots.border_width[0] == pytest.approx(0.14)


DENSE = """
import napari, numpy as np
from qtpy.QtWidgets import QApplication
from napari_stmdit.ui.widgets.overlay import Overlay, canvas_in

viewer = napari.Viewer(show=True)
viewer.add_image(np.zeros((900, 1000)))
for _ in range(30):
    QApplication.processEvents()
canvas = viewer.window._qt_viewer.canvas
overlay = Overlay(canvas_in(viewer.window._qt_window))
overlay._viewer = viewer
place = overlay.on_canvas((200.0, 300.0))
print(overlay.devicePixelRatioF(), *canvas._map_canvas2world((place.x(), place.y()), canvas.view)[-2:])
overlay.hide(), viewer.close()
"""


@pytest.mark.parametrize("scale", [1.0, 1.5])
def test_lines_lie_where_the_tissue_is_on_a_dense_display(scale):
    """Frames and labels are drawn by Qt, the tissue by napari, which must agree on a laptop's scaled display as well."""
    scaled = os.environ | {"QT_SCALE_FACTOR": str(scale)}
    done = subprocess.run([sys.executable, "-c", DENSE], capture_output=True, text=True, env=scaled, check=True)
    assert [float(word) for word in done.stdout.split()[-3:]] == pytest.approx([scale, 200, 300], abs=1)
