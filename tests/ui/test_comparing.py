"""Comparisons with napari's viewer model: no Qt, no screen."""

from dataclasses import replace

import numpy as np
import pytest
from presenting import EDIT, run

from napari_stmdit.ui import layers
from napari_stmdit.ui.compare import NOTHING, camera_of, grid_of, scale_bar_of
from napari_stmdit.ui.state import RunStatus


def arrangement(viewer):
    grid, bar = grid_of(viewer), scale_bar_of(viewer)
    names = [(x.name, x.visible, x.opacity, x.name_overlay.visible) for x in viewer.layers]
    return names, (grid.stride, tuple(grid.shape), grid.spacing, grid.enabled), (bar.visible, bar.gridded)


@pytest.mark.parametrize("mode", ["grid", "swipe", "blink", "fade"])
@pytest.mark.parametrize("with_baseline", [False, True])
def test_a_comparison_gives_everything_back(presenter, viewer, by_hand, mode, with_baseline):
    base, edited = run(presenter, by_hand), run(presenter, by_hand, edits=(EDIT,))
    mine = viewer.add_image(np.zeros((4, 4)), name="mine", opacity=0.4)
    grid = grid_of(viewer)
    grid.stride, grid.shape = 3, (2, 2)
    presenter.results.show(base, False)
    scale_bar_of(viewer).visible = False
    before, callbacks = arrangement(viewer), list(viewer.mouse_drag_callbacks)
    pixels = [presenter.results.layer(n).data for n in (base, edited)]
    kept = [p.copy() for p in pixels]
    zoom = camera_of(viewer).zoom
    presenter.compare.start(mode, edited, base if with_baseline else None)
    assert presenter.state.comparison.mode == mode
    cells = 1 if mode != "grid" else 3 if with_baseline else 2
    assert camera_of(viewer).zoom == pytest.approx(zoom / cells)  # a cell shows what the canvas did
    assert mine.visible is (mode != "grid")
    for position in (0.1, 0.9, 0.3):
        presenter.compare.move(position)
    presenter.compare.flip()
    presenter.compare.stop()
    assert presenter.state.comparison is None
    assert arrangement(viewer) == before and camera_of(viewer).zoom == pytest.approx(zoom)
    for number, data, copy in zip((base, edited), pixels, kept, strict=True):
        assert presenter.results.layer(number).data is data  # its own array again
        np.testing.assert_array_equal(data, copy)
    assert list(viewer.mouse_drag_callbacks) == callbacks


def test_a_comparison_that_cannot_be_drawn_leaves_nothing_and_the_queue_goes_on(
    presenter, viewer, by_hand, monkeypatch
):
    number = run(presenter, by_hand)
    before, insert = arrangement(viewer), layers.insert

    def fails(viewer, data, above=None):
        layer = insert(viewer, data, above)
        if layers.role_of(layer) == "context":
            raise KeyError("napari slices anew")
        return layer

    monkeypatch.setattr("napari_stmdit.ui.compare.layers.insert", fails)
    presenter.compare.start("grid", number)
    assert presenter.state.comparison is None and arrangement(viewer) == before
    assert presenter.state.message.kind == "warning" and "comparison" in presenter.state.message.text
    monkeypatch.undo()
    presenter.compare.start("grid", number)
    assert [layers.role_of(x) for x in viewer.layers] == ["slide", "spots", "context", "result"]
    presenter.compare.stop()


@pytest.mark.parametrize(("size", "shape"), [((600, 800), (1, 3)), ((800, 600), (3, 1))])
def test_the_grid_shows_slide_baseline_and_edited_with_names_and_scale(
    presenter, viewer, by_hand, monkeypatch, size, shape
):
    monkeypatch.setattr("napari_stmdit.ui.compare.canvas_size_of", lambda viewer: np.array(size, dtype=float))
    base, edited = run(presenter, by_hand), run(presenter, by_hand, edits=(EDIT,))
    presenter.compare.start("grid", edited, base)
    grid = grid_of(viewer)
    cells = {x.name: grid.position(i, viewer.layers) for i, x in enumerate(viewer.layers) if x.visible}
    assert grid.enabled and tuple(grid.shape) == shape
    slide, spots = presenter.view.slide.name, presenter.view.spots.name
    assert cells[slide] == cells[spots]
    places = [cells[slide], cells[presenter.results.layer(base).name], cells[presenter.results.layer(edited).name]]
    assert len(set(places)) == 3
    assert scale_bar_of(viewer).visible and scale_bar_of(viewer).gridded
    presenter.compare.stop()


def test_back_leads_to_the_view_before_also_from_cells_side_by_side(presenter, viewer, by_hand):
    edited, camera = run(presenter, by_hand, count=1, edits=(EDIT,)), camera_of(viewer)
    presenter.looking.forget()
    camera.center, camera.zoom = (0, 5, 5), 0.5
    presenter.looking.go(edited)
    presenter.compare.start("grid", edited)
    assert camera.zoom != 0.5
    presenter.looking.back()
    presenter.compare.stop()
    assert camera.center[-2:] == (5, 5) and camera.zoom == pytest.approx(0.5)


def test_a_layer_that_comes_takes_no_cell_of_the_grid(presenter, viewer, by_hand):
    edited = run(presenter, by_hand, edits=(EDIT,))
    presenter.compare.start("grid", edited)
    presenter.runs.run()
    by_hand.finish()
    assert presenter.state.comparison is None and not grid_of(viewer).enabled


def test_swipe_shows_one_left_and_the_other_right_of_the_seam(presenter, viewer, by_hand):
    base, edited = run(presenter, by_hand), run(presenter, by_hand, edits=(EDIT,))
    result = presenter.state.results[-1].result
    whole = result.rgba.copy()
    presenter.compare.start("swipe", edited, base)
    left, right = presenter.results.layer(base), presenter.results.layer(edited)
    width = result.rgba.shape[1]
    for position in (0.5, 0.2, 0.8, 0.0, 1.0, 0.35):
        presenter.compare.move(position)
        seam = round(position * width)
        assert not right.data[:, :seam, 3].any()
        np.testing.assert_array_equal(right.data[:, seam:], result.rgba[:, seam:])
        assert not left.data[:, seam:, 3].any()
        np.testing.assert_array_equal(left.data[:, :seam], presenter.state.results[0].result.rgba[:, :seam])
    np.testing.assert_array_equal(result.rgba, whole)  # what would be saved is whole
    (seam,) = [x for x in viewer.layers if layers.role_of(x) == "seam"]
    start = seam.data_to_world(seam.data[0, 0])
    assert right.world_to_data(start)[-1] == pytest.approx(0.35 * width - 0.5, abs=0.01)
    presenter.compare.stop()


def test_swipe_follows_results_that_were_moved(presenter, viewer, by_hand):
    base, edited = run(presenter, by_hand), run(presenter, by_hand, count=2, edits=(EDIT,))
    for layer in viewer.layers:
        layer.translate = (300, -200)
    presenter.compare.start("swipe", edited, base)
    presenter.compare.move(0.5)
    left, right = presenter.results.layer(base), presenter.results.layer(edited)
    column = right.data.shape[1] // 2
    world = right.data_to_world((right.data.shape[0] / 2, column - 0.5))
    seam = round(left.world_to_data(world)[-1] + 0.5)
    assert not left.data[:, seam:, 3].any()
    assert left.data[:, :seam, 3].any()
    presenter.compare.stop()


def test_the_seam_is_dragged_with_the_mouse(presenter, viewer, by_hand):
    number = run(presenter, by_hand, count=6)
    presenter.compare.start("swipe", number)
    layer = presenter.results.layer(number)
    height, width = layer.data.shape[:2]

    class Event:
        type, button, handled = "mouse_press", 1, False

        def __init__(self, column):
            self.position = layer.data_to_world((height / 2, column))

    def drag(start, end):
        event = Event(start)
        steps = presenter.compare.swipe.drag(viewer, event)
        taken = next(steps, "not taken") is None
        if taken:
            event.type, event.position = "mouse_move", Event((start + end) / 2).position
            next(steps)
            assert not camera_of(viewer).mouse_pan
            event.type, event.position = "mouse_release", Event(end).position
            assert next(steps, "over") == "over"
        return taken

    assert not drag(width * 0.1, width * 0.9)  # far from the seam: the tissue is panned
    assert drag(width * 0.5 - 0.5, width * 0.25 - 0.5)
    assert camera_of(viewer).mouse_pan
    assert presenter.state.comparison.position == pytest.approx(0.25, abs=0.01)
    assert not layer.data[:, : round(0.24 * width), 3].any()
    presenter.compare.stop()


def test_fade_and_blink_go_by_opacity(presenter, viewer, by_hand):
    number = run(presenter, by_hand)
    layer = presenter.results.layer(number)
    presenter.compare.start("fade", number)
    presenter.compare.move(0.3)
    assert layer.opacity == pytest.approx(0.3)
    presenter.compare.start("blink", number)
    shown = []
    for _ in range(4):
        presenter.compare.flip()
        shown.append(layer.opacity)
    assert shown == [0, 1, 0, 1]
    assert layer.visible
    presenter.compare.stop()
    assert layer.opacity == 1


def test_the_baseline_is_run_once_and_with_the_same_noise(presenter, by_hand):
    number = run(presenter, by_hand, edits=(EDIT,), seed=7)
    presenter.compare_with_baseline("swipe")
    assert presenter.state.status is RunStatus.RUNNING
    by_hand.finish()
    base = presenter.state.results[-1]
    assert base.request.edits == () and base.request.seed == 7
    seeds = [[p.seed for p in e.result.plan.patches] for e in presenter.state.results]
    assert seeds[0] == seeds[1]
    assert (presenter.state.comparison.left, presenter.state.comparison.right) == (base.number, number)
    presenter.compare.stop()
    presenter.state.chosen_result = number
    presenter.compare_with_baseline("fade")
    assert not presenter.state.status.busy  # it is there already
    assert presenter.state.comparison.left == base.number
    presenter.compare.stop()
    presenter.state.chosen_result = base.number
    presenter.compare_with_baseline()
    assert "with edits" in presenter.state.message.text


@pytest.mark.parametrize("change", [{"seed": 8}, {"steps": 3}, {"morphology": "mean"}])
def test_what_differs_in_more_than_the_edits_is_no_baseline(presenter, by_hand, change):
    run(presenter, by_hand, **change)
    number = run(presenter, by_hand, edits=(EDIT,))
    assert presenter.results.baseline(number) is None


# --- what comes amid a comparison


def shown_with_the_slide(presenter, viewer):
    """Roles of the visible layers in the cell of the slide, or of all where there is no grid."""
    grid = grid_of(viewer)
    cells = {x: grid.position(k, viewer.layers) for k, x in enumerate(viewer.layers) if x.visible}
    own = cells[presenter.view.slide]
    return {layers.role_of(x) for x, cell in cells.items() if cell == own}


@pytest.fixture
def two(presenter, by_hand):
    return run(presenter, by_hand, edits=(EDIT,)), run(presenter, by_hand, edits=(EDIT,), seed=2)


@pytest.mark.parametrize("mode", ["grid", "swipe", "blink", "fade"])
def test_a_result_that_the_user_goes_to_is_compared_in_place_of_the_other(presenter, viewer, two, mode):
    first, second = two
    presenter.compare.start(mode, second)
    presenter.looking.go(first)
    comparison = presenter.state.comparison
    assert (comparison.mode, comparison.left, comparison.right) == (mode, None, first)
    assert not presenter.results.layer(second).visible
    if mode == "grid":
        assert shown_with_the_slide(presenter, viewer) == {"slide", "spots"}
    presenter.looking.go(first)  # it is there
    assert presenter.state.comparison == comparison
    presenter.compare.stop()


@pytest.mark.parametrize("mode", ["grid", "swipe", "blink", "fade"])
def test_a_result_that_is_shown_ends_the_comparison_and_stays_shown(presenter, viewer, two, mode):
    first, second = two
    presenter.results.show(first, False)
    presenter.compare.start(mode, second)
    assert not presenter.results.layer(first).visible
    presenter.results.show(first, True)
    assert presenter.state.comparison is None and not grid_of(viewer).enabled
    assert presenter.results.layer(first).visible and presenter.results.entry(first).visible
    assert [layers.role_of(x) for x in viewer.layers] == ["slide", "result", "result", "spots"]


def test_side_by_side_ends_before_other_layers_take_its_cells(presenter, viewer, two):
    first, second = two
    mine = viewer.add_image(np.zeros((4, 4)), name="mine")
    order = list(viewer.layers)

    def moved():
        viewer.layers.move(0, 3)

    def hidden():
        presenter.view.slide.visible = False

    def context_removed():
        viewer.layers.remove(next(x for x in viewer.layers if layers.role_of(x) == "context"))

    def grid_changed():
        grid_of(viewer).stride = 1

    def shown():
        mine.visible = True

    for change in (moved, hidden, context_removed, grid_changed, shown):
        presenter.compare.start("grid", second, first)
        change()
        assert presenter.state.comparison is None and not grid_of(viewer).enabled, change
        assert list(viewer.layers) == order, change
        assert presenter.view.slide.visible is (change is not hidden)
        presenter.view.slide.visible = True
    presenter.compare.start("grid", second)
    other = viewer.add_image(np.ones((4, 4)), name="of another plugin")
    assert presenter.state.comparison is None and list(viewer.layers) == [*order, other] and other.visible
    presenter.compare.start("grid", second)
    presenter.show_spots("hide")  # over the slide, in its own cell
    assert presenter.state.comparison is not None
    presenter.compare.stop()


def test_a_swipe_ends_where_a_new_picture_would_lie_on_the_slide_and_the_next_takes_it_up(presenter, viewer, by_hand):
    number = run(presenter, by_hand, edits=(EDIT,))
    presenter.compare.start("swipe", number)
    presenter.compare.move(0.2)
    presenter.runs.live_preview = True
    run(presenter, by_hand, edits=(EDIT,), seed=3)
    assert presenter.state.comparison is None and presenter.results.layer(2).visible
    presenter.compare.start("swipe", 2)
    assert presenter.state.comparison.position == 0.2
    presenter.compare.stop()


def test_the_reason_why_nothing_is_compared_is_the_right_one(presenter, viewer, by_hand):
    presenter.compare.start("grid")
    assert presenter.state.message.text == NOTHING
    number = run(presenter, by_hand, edits=(EDIT,))
    assert presenter.compare.fault(number, number) == "Choose two different results to compare."
    viewer.layers.remove(presenter.view.slide)
    presenter.compare.start("grid", number)
    assert presenter.state.message.text == "The slide's layer was removed; open the section again to compare."
    presenter.show(replace(presenter.state.section, name="no slide", path=None, image=None))
    presenter.compare.start("grid", number)
    assert presenter.state.message.text == "This section has no slide to compare with."
