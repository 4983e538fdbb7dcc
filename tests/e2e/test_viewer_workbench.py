"""A real viewer under a (virtual) screen: the workbench is used as a scientist would, by mouse and buttons."""

import threading

import numpy as np
import pytest
from qtpy.QtCore import QEvent, Qt, QThreadPool
from qtpy.QtTest import QTest
from qtpy.QtWidgets import (
    QAbstractSpinBox,
    QApplication,
    QCheckBox,
    QComboBox,
    QLineEdit,
    QListWidget,
    QPushButton,
    QSlider,
    QToolButton,
)
from standins import CropModel, NoiseModel, card_for
from viewing import Mouse, no_leaks, settle, viewer, workbench  # noqa: F401

from napari_stmdit.tissue.open import SectionSource
from napari_stmdit.ui import layers
from napari_stmdit.ui.manifest import DOCK, PLUGIN
from napari_stmdit.ui.state import Colouring, ModelChoice, RunStatus

pytestmark = pytest.mark.gui


@pytest.fixture
def card(tiny_section):
    return card_for(tuple(tiny_section.spots.genes.symbols.tolist()), patch_px=64, patch_mpp=0.7)


@pytest.fixture
def opened(workbench, tiny_folder, card):  # noqa: F811
    """The workbench with the tiny section, opened through its own field and button."""
    presenter = workbench.presenter
    presenter.use_model(CropModel(card))
    workbench.section.setValue(SectionSource(path=str(tiny_folder)))
    workbench.section.open_button.click()
    assert presenter.state.busy
    assert settle(lambda: presenter.state.section is not None and not presenter.state.busy)
    return workbench


def circle(centre, radius, count=40):
    angle = np.linspace(0, 2 * np.pi, count)
    return np.asarray(centre) + radius * np.column_stack([np.sin(angle), np.cos(angle)])


class Failing(CropModel):
    def denoise(self, batch):
        raise RuntimeError("CUDA out of memory. Tried to allocate 20 MiB")
        yield


class Allowed(NoiseModel):
    """Takes a step when it is let, whatever the speed of the computer, and counts them."""

    def __init__(self, card):
        super().__init__(card)
        self._let, self.steps_let, self.steps_done = threading.Semaphore(0), 0, 0

    def let(self, steps=1):
        self.steps_let += steps
        self._let.release(steps)

    def let_until(self, condition):
        """Let it take one step after another until a condition holds."""

        def reached():
            if not condition() and self.steps_done == self.steps_let:
                self.let()
            return condition()

        assert settle(reached)

    def denoise(self, batch):
        for step in super().denoise(batch):
            self._let.acquire(timeout=60)
            self.steps_done += 1
            yield step


def test_click_lasso_and_run_put_a_layer_in_place(viewer, opened):  # noqa: F811
    state, spots = opened.state, opened.state.section.spots
    mouse = Mouse(viewer)
    mpp = state.section.calibration.mpp
    settle(lambda: False, 0.2)

    mouse.click(spots.yx[7] * mpp)
    assert state.selected == (spots.ids[7],)
    mouse.click(spots.yx[8] * mpp, Qt.KeyboardModifier.ShiftModifier)
    assert state.selected == (spots.ids[7], spots.ids[8])

    opened.select.tool.button("lasso").click()
    centre, radius = spots.yx[12], 185 / mpp  # um: a spot and two rings of neighbours, as far as they are there
    mouse.draw(circle(centre, radius) * mpp)
    inside = np.linalg.norm(spots.yx - centre, axis=1) < radius
    assert 8 <= inside.sum() <= 14
    assert set(state.selected) == set(spots.ids[inside].tolist())
    assert [layers.role_of(x) for x in viewer.layers] == ["slide", "spots"]
    assert f"{inside.sum()} of {len(spots)}" in opened.select.count.text()
    mouse.draw(circle(spots.yx[12], 60 / mpp) * mpp, Qt.KeyboardModifier.ControlModifier)
    assert len(state.selected) == inside.sum() - 1
    mouse.draw(circle(spots.yx[12], 60 / mpp) * mpp, Qt.KeyboardModifier.ShiftModifier)
    assert len(state.selected) == inside.sum()
    opened.select.tool.button("click").click()

    opened.run_bar.run.click()
    assert settle(lambda: not state.status.busy)
    assert state.status is RunStatus.DONE, state.message.text
    found = [x for x in viewer.layers if layers.role_of(x) == "result"]
    assert len(found) == 1
    layer, frame = found[0], state.results[0].result.plan.frame
    assert tuple(str(u) for u in layer.units) == ("micrometer", "micrometer")
    assert layer.axis_labels == ("y", "x")
    expected = mpp * (frame.affine @ [10.5, 20.5, 1])[:2]
    np.testing.assert_allclose(layer.data_to_world((10, 20)), expected, atol=0.01 * mpp)
    world = viewer.layers[-1].data_to_world(spots.yx[12])
    drawn = layer.data[tuple(np.rint(layer.world_to_data(world)).astype(int))]
    slide = state.section.image.levels[0].compute()
    real = slide[tuple(np.rint(viewer.layers[0].world_to_data(world)).astype(int))]
    assert drawn[3] == 255
    assert np.abs(drawn[:3].astype(int) - real).max() < 8
    assert opened.run_bar.run.isEnabled()

    opened.compare.mode.button("grid").click()
    assert state.comparison is not None
    settle(lambda: False, 0.2)
    opened.compare.mode.button("off").click()
    assert state.comparison is None
    assert [layers.role_of(x) for x in viewer.layers] == ["slide", "result", "spots"]


def test_spots_are_drawn_true_to_size(viewer, opened):  # noqa: F811
    spots = opened.state.section.spots
    opened.presenter.colour(Colouring("ERBB2", limits=(-2.0, -1.0)))  # every spot in the last colour of the map
    opened.presenter.view.slide.visible = False
    settle(lambda: False, 0.3)
    picture = viewer.screenshot(canvas_only=True, flash=False)
    camera = viewer.scene.camera if hasattr(viewer, "scene") else viewer.camera
    drawn = (picture[..., :2].min(axis=2) > 100).sum()  # yellow on black
    diameter = spots.diameter * opened.state.section.calibration.mpp * camera.zoom
    assert drawn == pytest.approx(len(spots) * np.pi * (diameter / 2) ** 2, rel=0.2)


def test_a_runtime_error_in_the_sampler_is_told_and_run_is_free_again(opened, card):
    presenter, state = opened.presenter, opened.state
    presenter.use_model(Failing(card))
    presenter.select(state.section.spots.ids[:3].tolist())
    opened.run_bar.run.click()
    assert settle(lambda: not state.status.busy)
    assert state.status is RunStatus.FAILED
    shown = opened.run_bar.message.plain()
    assert "too little memory" in shown
    assert "CUDA out of memory" in shown
    assert opened.run_bar.run.isEnabled()
    assert not opened.run_bar.stop.isEnabled()
    assert opened.run_bar.bar.isHidden()
    presenter.use_model(CropModel(card))
    opened.run_bar.run.click()
    assert settle(lambda: state.status is RunStatus.DONE)


def test_stop_ends_within_one_step_and_keeps_finished_patches(viewer, opened, card):  # noqa: F811
    presenter, state = opened.presenter, opened.state
    model = Allowed(card)
    presenter.use_model(model)
    opened.select.all.click()
    opened.run_bar.run.click()
    model.let_until(lambda: state.progress is not None and state.progress.patches_done >= 4)
    at = model.steps_let
    opened.run_bar.stop.click()
    model.let(1000)
    assert settle(lambda: not state.status.busy)
    assert model.steps_done <= at + 1  # the step that was under way when it was pressed
    assert state.status is RunStatus.STOPPED
    done = state.results[0].result.done
    assert 4 <= len(done) < 30
    layer = presenter.results.layer(1)
    alpha = layer.data[..., 3] > 0
    assert alpha.any()
    assert not alpha.all()
    assert "kept" in opened.run_bar.message.plain()


def test_closing_the_window_amid_a_run(viewer, opened, card):  # noqa: F811
    model = Allowed(card)
    opened.presenter.use_model(model)
    opened.select.all.click()
    opened.run_bar.run.click()
    model.let_until(lambda: model.steps_done >= 3)
    at = model.steps_let
    viewer.close()
    model.let(1000)
    assert settle(lambda: QThreadPool.globalInstance().activeThreadCount() == 0)
    assert model.steps_done <= at + 1  # and no_leaks asks that no thread is left


def test_two_viewers_do_not_share(no_leaks, make_napari_viewer, tiny_section):  # noqa: F811
    first, second = make_napari_viewer(), make_napari_viewer()
    one = first.window.add_plugin_dock_widget(PLUGIN, DOCK)[1]
    two = second.window.add_plugin_dock_widget(PLUGIN, DOCK)[1]
    one.presenter.show(tiny_section)
    one.presenter.select_all()
    assert two.state.section is None
    assert two.state.selected == ()
    assert len(second.layers) == 0


def test_a_dropped_folder_shows_with_and_without_the_dock(no_leaks, make_napari_viewer, tiny_folder, card):  # noqa: F811
    viewer = make_napari_viewer()  # noqa: F811
    viewer.open(str(tiny_folder), plugin="napari-stmdit")
    assert [layers.role_of(x) for x in viewer.layers] == ["slide", "spots"]
    widget = viewer.window.add_plugin_dock_widget(PLUGIN, DOCK)[1]
    assert widget.state.section is layers.section_of(viewer.layers[0])
    widget.presenter.use_model(CropModel(card))
    viewer.open(str(tiny_folder), plugin="napari-stmdit")
    assert widget.state.section is layers.section_of(viewer.layers[-1])
    assert [layers.role_of(x) for x in viewer.layers] == ["slide", "spots"]
    assert "30" in widget.section.rows["Spots"].plain()


def test_every_control_has_a_name_and_a_tooltip(opened):
    kinds = (QPushButton, QToolButton, QLineEdit, QComboBox, QAbstractSpinBox, QSlider, QCheckBox, QListWidget)
    for kind in kinds:
        for control in opened.findChildren(kind):
            if control.parent() is not None and isinstance(control.parent(), QAbstractSpinBox | QComboBox):
                continue  # Qt's own parts
            if control.objectName().startswith("qt_") or isinstance(control.parent(), QLineEdit):
                continue
            assert control.accessibleName(), (kind, control.objectName(), control.parent())
            assert control.toolTip(), (kind, control.accessibleName())


def test_forms_are_lenses_on_their_values(opened):
    colouring = Colouring("KRT8", log=False, limits=(0.5, 20.0), colormap="magma")
    opened.colour.setValue(colouring)
    assert opened.colour.value() == colouring
    choice = ModelChoice("demo", "cpu")
    opened.model.setValue(choice)
    assert opened.model.value() == choice
    form = opened.synthesize
    request = form.value()
    assert request.guidance.expression is None  # the checkpoint's default is shown, not taken for the user's wish
    assert form.expression.number.value() == pytest.approx(2.0)
    edited = request.model_copy(
        update={
            "guidance": request.guidance.model_copy(update={"expression": 3.25, "morphology": 0.5}),
            "steps": 12,
            "seed": 2**32 - 1,
            "morphology": "SPOT03-1",
            "preset": "fast",
        }
    )
    form.setValue(edited)
    assert form.value() == edited


def test_a_preset_is_chosen_and_the_steps_it_stands_for_are_shown(opened, card):
    form = opened.synthesize
    form.set_defaults(card.model_copy(update={"steps": 12}))
    assert form.steps.text() == "default (12)"
    form.preset.setCurrentIndex(form.preset.findData("fast"))
    form.preset.activated.emit(form.preset.currentIndex())
    assert opened.state.request.preset == "fast"
    assert form.steps.text() == "default (6)"


def test_faults_and_facts_are_shown(opened, card):
    presenter = opened.presenter
    assert "0.7" in opened.section.rows["Scale"].plain()
    assert opened.section.rows["Shared genes"].plain().startswith("20 of")
    presenter.select_all()
    assert "30 patches" in opened.synthesize.estimate.plain()
    opened.synthesize.source.setCurrentIndex(opened.synthesize.source.findData("spot"))
    opened.synthesize.spot.setText("nowhere")
    opened.synthesize.spot.editingFinished.emit()
    assert settle(lambda: "nowhere" in opened.synthesize.faults["morphology"].plain())
    presenter.use_model(CropModel(card_for(tuple(f"G{k}" for k in range(50)), patch_px=64, patch_mpp=0.7)))
    assert "0 of the 50 genes" in opened.section.fault.plain()
    assert settle(lambda: "Cannot run" in opened.run_bar.words.plain())
    assert "nowhere" in opened.run_bar.words.plain() and "the reason stands above." in opened.run_bar.words.plain()
    assert "50 genes" not in opened.run_bar.words.plain()
    presenter.use_model(CropModel(card_for(card.genes, patch_px=64, patch_mpp=0.2)))
    assert "Cannot synthesize" in opened.section.fault.plain()


def test_the_dock_may_be_closed_and_opened_again(viewer, opened):  # noqa: F811
    section = opened.state.section
    viewer.window.remove_dock_widget("all")
    opened.deleteLater()  # napari lets it go; this test still holds it
    QApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete)
    settle(lambda: False, 0.2)
    assert not opened.connections
    again = viewer.window.add_plugin_dock_widget(PLUGIN, DOCK)[1]
    assert again is not opened
    assert again.state.section is section
    again.presenter.select_all()
    assert "30 of 30" in again.select.count.text()


def close_dock(widget):
    """Close a dock by its own button, and let Qt delete what is to be deleted."""
    QTest.mouseClick(widget.parentWidget().title.close_button, Qt.MouseButton.LeftButton)
    settle(lambda: False, 0.1)
    QApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete)
    settle(lambda: False, 0.1)


def test_a_dock_that_was_closed_by_its_button_does_nothing_more(viewer, opened):  # noqa: F811
    presenter, events, deleted = opened.presenter, opened.state.events, []

    def slots():
        return [len(getattr(events, name)) for name in ("request", "results", "comparison", "selected")]

    before = slots()
    for _ in range(2):
        opened.destroyed.connect(lambda: deleted.append(True))
        close_dock(opened)
        assert deleted.pop() and not opened.connections
        opened = viewer.window.add_plugin_dock_widget(PLUGIN, DOCK)[1]
        assert opened.presenter is presenter and opened.state.section is not None
        assert settle(lambda: slots() == before, 5), slots()  # some are bound when it is shown
    viewer.theme = "light"
    presenter.select_all()
    assert "30 of 30" in opened.select.count.text()


def test_a_hidden_dock_stays_as_it_is(viewer, opened):  # noqa: F811
    dock = opened.parentWidget()
    dock.title.hide_button.click()
    settle(lambda: False, 0.1)
    dock.setFloating(True)
    dock.show()
    settle(lambda: False, 0.1)
    assert opened.connections and opened.isVisible()
    opened.presenter.select_all()
    assert "30 of 30" in opened.select.count.text()


def test_the_slide_goes_with_the_spots_that_were_removed(viewer, opened):  # noqa: F811
    viewer.layers.selection.active = opened.presenter.view.spots
    viewer.layers.remove_selected()
    assert opened.state.section is None and settle(lambda: not len(viewer.layers), 5)
    opened.section.open_button.click()
    assert settle(lambda: opened.state.section is not None and not opened.state.busy)
    assert [layers.role_of(x) for x in viewer.layers] == ["slide", "spots"]
    viewer.layers.select_all()
    viewer.layers.remove_selected()
    settle(lambda: False, 0.1)
    assert not len(viewer.layers) and opened.state.section is None


def test_limits_of_values_take_a_comma_and_what_is_no_number_is_said(opened):
    panel, state = opened.select, opened.state
    opened.presenter.colour(Colouring(gene="ERBB2"))
    panel.colour_fold.unfold()
    counts = {}
    for text in ("0.5", "0,5", "-", "1e"):
        panel.low.setFocus()
        panel.low.clear()
        QTest.keyClicks(panel.low, text)
        QTest.mouseClick(panel.choose, Qt.MouseButton.LeftButton)
        counts[text] = len(state.selected)
        if text in ("-", "1e"):
            assert state.message.kind == "warning" and f"'{text}' is not a number" in state.message.text
        else:
            assert "from 0.5 to" in state.message.text
    assert len(set(counts.values())) == 1


def test_a_slide_image_is_not_taken_for_the_next_section(opened, tmp_path):
    panel = opened.section
    panel.path.setText(str(tmp_path / "nowhere"))
    panel.fullres.setText("slide.png")
    panel.open_button.click()
    assert settle(lambda: opened.state.message.kind == "error" and not opened.state.busy)
    assert panel.fullres.text() == "slide.png"  # to be tried again
    panel.path.setText(str(tmp_path / "another"))
    assert not panel.fullres.text() and panel.value().fullres is None


def test_a_real_section_and_the_bundled_checkpoint(viewer, workbench, shared_data):  # noqa: F811
    """The main job: open C3, draw a lasso around some ten spots, run; the layer lies on the spots."""
    presenter, state = workbench.presenter, workbench.state
    workbench.section.setValue(SectionSource(path=str(shared_data / "her2st_C3_spaceranger2"), fullres="C3_image.jpg"))
    workbench.section.open_button.click()
    assert settle(lambda: state.section is not None and state.checkpoint is not None and not state.busy, 90)
    assert state.section.calibration.mpp == pytest.approx(0.687376, rel=1e-4)
    mpp, spots = state.section.calibration.mpp, state.section.spots
    near = np.linalg.norm(spots.yx[:, None] - spots.yx[None], axis=2) * mpp < 380
    centre = spots.yx[np.argmin(np.abs(near.sum(axis=1) - 10))] * mpp
    workbench.select.tool.button("lasso").click()
    Mouse(viewer).draw(circle(centre, 380))
    assert 5 <= len(state.selected) <= 14
    state.request = state.request.model_copy(update={"steps": 2})
    workbench.run_bar.run.click()
    assert settle(lambda: state.status is RunStatus.DONE, 120), state.message
    (entry,) = state.results
    layer = presenter.results.layer(entry.number)
    assert "synthetic" in layer.name
    assert {entry.result.plan.patches[k].spot_id for k in entry.result.done} == set(state.selected)
    # every selected spot's centre, in microns, lies on synthesized pixels of the layer
    for yx in spots.yx[spots.rows(list(state.selected))] * mpp:
        row, column = np.rint(layer.world_to_data(yx)).astype(int)
        assert layer.data[row, column, 3] == 255


def test_a_plain_slide_is_asked_for_its_scale_in_the_panel(workbench, tmp_path):  # noqa: F811
    from slides import tissue_picture, write_pyramid, write_table
    from tiny import TINY_GENES

    from napari_stmdit.tissue.open import open_section

    file = write_pyramid(tmp_path / "slide.tif", tissue_picture())
    panel, presenter = workbench.section, workbench.presenter
    presenter.use_model(CropModel(card_for(TINY_GENES)))
    assert not panel.slide_options.isVisibleTo(panel) and panel.slide_image.isVisibleTo(panel.overrides.content)
    panel.path.setText(str(file))
    assert panel.slide_options.isVisibleTo(panel) and not panel.slide_image.isVisibleTo(panel.overrides.content)
    panel.slide.pitch.setText("wide")
    panel.open_button.click()
    assert "'wide' is no number" in presenter.state.message.text
    panel.slide.pitch.setText("120")
    panel.open_button.click()
    assert settle(lambda: presenter.state.scale_asked)
    assert panel.overrides.unfolded and "does not state its scale" in panel.asked.plain()
    panel.mpp.setText("0,5")
    panel.mpp.returnPressed.emit()
    assert settle(lambda: presenter.state.section is not None and not presenter.state.busy)
    assert panel.asked.plain() == "" and "none: a plain slide" in panel.rows["Genes"].plain()
    assert any("120 um apart" in note for note in presenter.state.section.notes)

    table = write_table(tmp_path / "mine.h5ad", open_section(file, mpp=0.5).spots.yx)
    panel.slide.pitch.clear()
    panel.slide.table.setText(str(table))
    panel.open_button.click()
    assert settle(lambda: presenter.state.section.expression.kind == "predicted" and not presenter.state.busy)
    assert "predicted in mine.h5ad" in panel.rows["Genes"].plain()
    panel.path.setText(str(tmp_path / "another.tif"))  # what was stated for one slide is not taken for the next
    assert panel.mpp.text() == "" and panel.slide.table.text() == ""
