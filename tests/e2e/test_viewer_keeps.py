"""What is measured and what is asked for stay as they are, whatever napari offers: wheel, keys, buttons and modes."""

import numpy as np
import pytest
from mouse import CONTROL, SHIFT, turn_wheel
from qtpy.QtCore import QEvent, Qt
from qtpy.QtWidgets import QAbstractSpinBox, QApplication, QComboBox, QPushButton, QSlider
from standins import CropModel, card_for
from viewing import Mouse, no_leaks, settle, viewer, workbench  # noqa: F401

from napari_stmdit.edits import Scale
from napari_stmdit.ui import layers
from napari_stmdit.ui.state import Colouring
from napari_stmdit.ui.widgets.common import Fold

pytestmark = pytest.mark.gui
KEYS = {
    "1": Qt.Key.Key_1,
    "2": Qt.Key.Key_2,
    "3": Qt.Key.Key_3,
    "4": Qt.Key.Key_4,
    "5": Qt.Key.Key_5,
    "a": Qt.Key.Key_A,
}


@pytest.fixture
def opened(workbench, tiny_section):  # noqa: F811
    """The workbench with the tiny section, three selected spots, an edit, and a result."""
    presenter = workbench.presenter
    presenter.use_model(
        CropModel(card_for(tuple(tiny_section.spots.genes.symbols.tolist()), patch_px=64, patch_mpp=0.7))
    )
    presenter.show(tiny_section)
    ids = tiny_section.spots.ids.tolist()
    presenter.select(ids[:3])
    edit = Scale(genes=("ERBB2",), factor=5, name="more ERBB2", spots=dict.fromkeys(ids[:3], 1.0))
    presenter.state.request = presenter.state.request.model_copy(update={"edits": (edit,)})
    presenter.colour(Colouring("ERBB2"))
    presenter.runs.run()
    assert settle(lambda: presenter.state.results and not presenter.state.status.busy)
    return workbench


def value_of(control):
    return control.currentIndex() if isinstance(control, QComboBox) else control.value()


def wanted(bench):
    """What a user asks for."""
    state = bench.state
    return (
        state.request,
        state.samples,
        state.batch,
        state.brush,
        state.draft,
        state.colouring,
        state.model,
        state.selected,
        state.tool,
        state.comparison,
        state.chosen_result,
    )


def test_the_wheel_over_an_unfocused_control_scrolls_and_changes_nothing(viewer, opened):  # noqa: F811
    opened.presenter.painting.choose(0)
    opened.presenter.use_tool("brush")
    opened.presenter.compare.start("swipe")
    for fold in opened.findChildren(Fold):
        fold.unfold()
    viewer.window._qt_viewer.canvas.native.setFocus()
    bar, before, walked = opened.scroll.verticalScrollBar(), wanted(opened), set()
    for step in opened.pages:
        opened.show_step(step)
        settle(lambda: False, 0.2)
        for kind in (QAbstractSpinBox, QComboBox, QSlider):
            for control in opened.scroll.findChildren(kind):
                if not control.isEnabled() or not control.isVisible() or control in walked:
                    continue
                name, value = control.accessibleName(), value_of(control)
                assert not control.hasFocus(), name
                assert control.focusPolicy() == Qt.FocusPolicy.StrongFocus, name  # not WheelFocus
                opened.scroll.ensureWidgetVisible(control, 0, 100)
                QApplication.processEvents()
                at = bar.value()
                turn_wheel(control, -1 if at < bar.maximum() else 1)
                assert value_of(control) == value, name
                assert wanted(opened) == before, name
                assert bar.value() != at, (name, at, bar.maximum())  # it went on to the dock
                walked.add(control)
    assert len(walked) > 20
    form = opened.synthesize
    viewer.window._qt_window.activateWindow()
    opened.reveal(form.steps)
    form.steps.setFocus()
    assert settle(form.steps.hasFocus)
    opened.scroll.ensureWidgetVisible(form.steps)
    QApplication.processEvents()
    turn_wheel(form.steps, 1)
    assert opened.state.request.steps == 1  # who has taken hold of a control may turn it


def spots_as_they_are(bench):
    spots = bench.presenter.view.spots
    return (
        np.array(spots.data),
        np.array(spots.size),
        spots.features["spot"].tolist(),
        np.array(spots.face_color),
        np.array(spots.border_color),
        spots.affine.affine_matrix.tolist(),
        spots.scale.tolist(),
    )


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def press_all(mouse):
    mouse.press(Qt.Key.Key_A, text="a")
    mouse.press(Qt.Key.Key_C, CONTROL)
    mouse.press(Qt.Key.Key_V, CONTROL)
    for key in (Qt.Key.Key_Delete, Qt.Key.Key_Backspace):
        mouse.press(key)
    for text in "12345":
        mouse.press(KEYS[text], text=text)
        mouse.draw([mouse.world[5], mouse.world[5] + 40, mouse.world[5] + 80])


def test_keys_of_napari_neither_remove_nor_add_nor_move_spots(viewer, opened):  # noqa: F811
    view, state = opened.presenter.view, opened.state
    mouse = Mouse(viewer)
    mouse.world = state.section.spots.yx * state.section.calibration.mpp
    before, slide = spots_as_they_are(opened), np.array(view.slide.affine.affine_matrix)
    selected = state.selected
    result = opened.presenter.results.layer(1)
    for layer in (view.spots, view.slide, result):
        viewer.layers.selection.active = layer
        place = layer.data_to_world((10, 10))
        press_all(mouse)
        opened.presenter.select(selected)
        assert same(spots_as_they_are(opened), before)
        np.testing.assert_array_equal(view.slide.affine.affine_matrix, slide)
        assert layer.data_to_world((10, 10)) == place
        assert str(layer.mode) == "pan_zoom"
        for word in ("add points", "select points", "transform"):
            assert word not in viewer.help, layer.name
    opened.presenter.colour(Colouring("KRT8"))  # it works on
    viewer.layers.selection.active = view.spots
    mouse.press(Qt.Key.Key_A, SHIFT, text="A")
    assert "slice" not in viewer.status if isinstance(viewer.status, str) else True


def test_buttons_and_calls_of_naparis_points_leave_the_spots(viewer, opened):  # noqa: F811
    spots = opened.presenter.view.spots
    before = spots_as_they_are(opened)
    viewer.layers.selection.active = spots
    controls = viewer.window._qt_viewer.controls.widgets[spots]
    for one in controls.findChildren(QPushButton):
        one.click()
    for mode in ("add", "select", "transform"):
        spots.mode = mode
        assert str(spots.mode) == "pan_zoom"
    spots.selected_data = {0, 1}
    spots.remove_selected()
    spots.add([[5.0, 5.0]])
    spots.selected_data = {2}
    spots._move([2], (3.0, 3.0))
    spots.data = np.array(spots.data)[:4] + 7
    opened.presenter.redraw()
    assert same(spots_as_they_are(opened), before)
    assert layers.role_of(spots) == "spots" and "measured" in opened.state.message.text
    viewer.dims.ndisplay = 3
    viewer.dims.ndisplay = 2
    spots.mode = "add"
    assert str(spots.mode) == "pan_zoom"
    opened.presenter.colour(Colouring("KRT8"))
    for mode in ("swipe", "grid"):  # their lines and faded slides are as well kept
        opened.presenter.compare.start(mode)
        assert not any(layer.editable or layer.help for layer in viewer.layers)


def ring_around(centre, radius=55, count=24):
    angle = np.linspace(0, 2 * np.pi, count)
    return np.asarray(centre) + radius * np.column_stack([np.sin(angle), np.cos(angle)])


def test_clicks_and_rings_choose_whatever_layer_is_active(viewer, opened):  # noqa: F811
    state, mouse = opened.state, Mouse(viewer)
    world, ids = state.section.spots.yx * state.section.calibration.mpp, state.section.spots.ids
    mine = viewer.add_labels(np.zeros((40, 40), dtype=int), name="mine")
    camera = viewer.scene.camera if hasattr(viewer, "scene") else viewer.camera
    for layer in (*viewer.layers, None):
        viewer.layers.selection.active = layer
        opened.select.tool.button("click").click()
        mouse.click(world[20])
        assert state.selected == (ids[20],), layer
        opened.select.tool.button("lasso").click()
        centre = tuple(camera.center)
        mouse.draw(ring_around(world[12]))
        assert state.selected == (ids[12],), layer
        assert tuple(camera.center) == centre and not mine.data.any()
    assert [layers.role_of(x) for x in viewer.layers] == ["slide", "result", "spots", None]


def test_escape_gives_a_lasso_up_and_keeps_the_selection(viewer, opened):  # noqa: F811
    import time

    state, mouse = opened.state, Mouse(viewer)
    world, before = state.section.spots.yx * state.section.calibration.mpp, state.selected
    begun = time.thread_time()
    opened.select.tool.button("lasso").click()
    assert time.thread_time() - begun < 0.05  # nothing is compiled, and no layer is made
    path = ring_around(world[12])
    mouse.send(QEvent.Type.MouseButtonPress, path[0])
    for place in path[1:15]:
        mouse.send(QEvent.Type.MouseMove, place)
    assert opened.overlay.isVisible() and len(opened.overlay.line) > 3
    mouse.press(Qt.Key.Key_Escape)
    assert opened.overlay.line == ()
    for place in path[15:]:
        mouse.send(QEvent.Type.MouseMove, place)
    assert opened.overlay.line == ()
    mouse.send(QEvent.Type.MouseButtonRelease, path[-1])
    assert state.selected == before and state.tool == "lasso"
    mouse.draw(path)
    assert state.selected == (state.section.spots.ids[12],)
    assert opened.overlay.line == ()


def test_after_a_run_the_tool_is_what_it_was(viewer, opened):  # noqa: F811
    state, mouse = opened.state, Mouse(viewer)
    world, ids = state.section.spots.yx * state.section.calibration.mpp, state.section.spots.ids
    for tool in ("lasso", "rectangle", "brush", "click"):
        opened.presenter.use_tool(tool)
        count = len(state.results)
        opened.presenter.select(ids[:2].tolist())
        opened.presenter.runs.run()
        assert settle(lambda count=count: len(state.results) > count and not state.status.busy)
        assert state.tool == tool
        style = {"click": "standard", "brush": "circle"}.get(tool, "cross")
        assert str(viewer.cursor.style) == style
        if tool != "brush":
            mouse.click(world[25])
            assert state.selected == (ids[25],), tool
