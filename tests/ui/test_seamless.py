"""Continuous mode, size limits and memory as the dock meets them."""

import weakref

import numpy as np
import pytest
from napari.components import ViewerModel

from napari_stmdit.edits import KnockOut
from napari_stmdit.intent import Request
from napari_stmdit.synthesis import canvas
from napari_stmdit.ui import layers
from napari_stmdit.ui.jobs import start_inline
from napari_stmdit.ui.presenter import Presenter
from napari_stmdit.ui.state import ModelChoice, RunStatus
from napari_stmdit.ui.widgets.results import summary


@pytest.fixture
def presenter(viewer, tiny_section, tiny_model):
    made = Presenter(viewer, start_inline)
    made.show(tiny_section)
    made.use_model(tiny_model)
    made.select(tiny_section.spots.ids[:6].tolist())
    return made


def test_seamless_tissue_becomes_a_layer(viewer, presenter):
    presenter.state.request = Request(mode="continuous", steps=2)
    presenter.runs.run()
    assert presenter.state.status is RunStatus.DONE, presenter.state.message
    (layer,) = (x for x in viewer.layers if layers.role_of(x) == "result")
    result = presenter.state.results[0].result
    region = result.plan.windows.cells.repeat(8, axis=0).repeat(8, axis=1)
    np.testing.assert_array_equal(np.asarray(layer.data)[..., 3] == 255, region)
    assert "40 um" in layers.ours(layer)["provenance"]["continuous"]["rule"]
    # the pace is that of a window, so that the next estimate is right for single patches too
    presenter.runs.preview()
    seamless = presenter.state.estimate.seconds
    presenter.state.request = Request(mode="spots", steps=2)
    presenter.runs.preview()
    assert presenter.state.estimate.seconds == pytest.approx(seamless * 6 / len(result.plan.windows))


def test_seamless_tissue_belongs_to_the_spots_of_its_region_and_not_to_those_its_tiles_are_near(viewer, presenter):
    asked = presenter.state.selected
    presenter.state.request = Request(mode="continuous", steps=1)
    presenter.runs.run()
    (entry,) = presenter.state.results
    assert entry.spots == asked and entry.planned == 6
    assert "6 spots of seamless tissue; seed" in summary(entry)
    presenter.select(())
    presenter.reuse(entry.number)
    assert presenter.state.selected == asked
    presenter.select(asked[2:3])
    presenter.close_ups.look()
    close_up = presenter.state.close_up
    assert set(close_up.patches) == {"real", "synthetic"}
    cut = close_up.patches["synthetic"]
    frame = entry.result.plan.frame
    y, x = np.rint((presenter.state.section.spots.yx[2] - frame.origin) / frame.pixel_size).astype(int)
    np.testing.assert_array_equal(cut[32, 32], entry.result.rgba[y, x, :3])


def test_a_dose_strip_of_seamless_tissue_shows_patches_of_the_spot(viewer, presenter):
    knock = KnockOut(genes=("EPCAM",))
    presenter.state.request = Request(mode="continuous", steps=1, edits=(knock,))
    presenter.sheets.dose_strip(presenter.state.selected[0])
    sheet = presenter.state.sheet
    assert sheet.spot == presenter.state.selected[0]
    assert {cell.pixels.shape for cell in sheet.cells} == {sheet.real.shape} == {(64, 64, 3)}


def test_what_does_not_fit_in_memory_is_refused_with_a_way_out(presenter, monkeypatch):
    monkeypatch.setattr(canvas, "MAX_PIXELS", 1000)
    presenter.runs.run()
    assert presenter.state.status is RunStatus.FAILED
    assert "stmdit synthesize" in presenter.state.faults["region"]


def test_the_form_asks_for_it(qtbot):
    from napari_stmdit.ui.widgets.synthesize import SynthesizePanel

    panel = SynthesizePanel()
    qtbot.addWidget(panel)
    with qtbot.waitSignal(panel.valueChanged) as changed:
        panel.mode.setCurrentIndex(1)
    assert changed.args[0].mode == panel.value().mode == "continuous"
    panel.setValue(Request())
    assert panel.value().mode == "spots"
    panel.show_faults({"mode": "not with this checkpoint"})
    assert panel.faults["mode"].text() == "not with this checkpoint"


def test_unload_lets_the_network_go(tiny_checkpoint):
    viewer = ViewerModel()
    presenter = Presenter(viewer, start_inline)
    presenter.load_model(ModelChoice(str(tiny_checkpoint), "cpu"))
    network = weakref.ref(presenter.state.checkpoint.pipeline.transformer)
    assert network() is not None
    presenter.unload_model()
    assert network() is None
