"""Editing real tissue in a real viewer by mouse: paint, run, swipe, another strength, save, and find it again."""

import numpy as np
import pytest
from mouse import SHIFT, Mouse
from tiny_fixtures import tiny_checkpoint, tiny_model  # noqa: F401
from viewing import answer, no_leaks, settle, viewer, workbench  # noqa: F401

from napari_stmdit.ui.state import Brush, RunStatus

pytestmark = pytest.mark.gui


@pytest.fixture(autouse=True)
def own_noise(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_paint_run_swipe_change_strength_run_again_save_and_reopen(
    viewer,  # noqa: F811
    workbench,  # noqa: F811
    tiny_section,
    tiny_model,  # noqa: F811
    tmp_path,
):
    bench, state, mouse = workbench, workbench.state, Mouse(viewer)
    bench.presenter.use_model(tiny_model)
    bench.presenter.show(tiny_section)
    settle(lambda: False, 0.2)
    world = tiny_section.spots.yx * tiny_section.calibration.mpp
    bench.edits.form.what.setText("ERBB2, KRT8, EPCAM")
    bench.edits.form.what.commit()
    assert not bench.synthesize.tissue.button("edit").isEnabled()  # nothing to change yet
    bench.presenter.set_brush(Brush(radius_um=60, softness=0.5))
    bench.edits.paint.click()
    mouse.draw(np.linspace(world[12], world[14], 8))
    assert state.request.edits
    bench.select.tool.button("click").click()
    mouse.click(world[12])
    mouse.click(world[13], SHIFT)
    assert bench.synthesize.tissue.value() == "edit"

    bench.run_bar.run.click()
    assert settle(lambda: not state.status.busy, 120)
    assert state.status is RunStatus.DONE, state.message
    assert tiny_model.editor.abducted == 2
    (first,) = state.results
    assert "(edited real tissue, synthetic, 1)" in first.name

    assert (state.comparison.mode, state.comparison.left) == ("grid", None)
    assert [label.text for label in bench.overlay.labels] == [
        "this tissue, before",
        f"after (synthetic): {first.title[0]}",
    ]
    bench.compare.mode.button("swipe").click()
    ends = bench.presenter.compare.swipe.ends(0.5)
    middle, across = ends.mean(axis=0), np.array([0.0, 25.0])
    mouse.draw([middle, middle + across / 2, middle + across])
    assert state.comparison.position > 0.5

    bench.presenter.painting.set_strength(0, 0.5)
    bench.run_bar.run.click()
    assert settle(lambda: not state.status.busy and len(state.results) == 2, 120)
    assert tiny_model.editor.abducted == 2  # the noise was kept
    assert (state.comparison.mode, state.comparison.right) == ("swipe", state.results[1].number)  # as it was
    assert not np.array_equal(state.results[0].result.rgba, state.results[1].result.rgba)

    bench.results.change.click()
    assert settle(lambda: state.changes == {state.results[1].number}, 30)
    assert bench.results.change.isChecked()

    store = tmp_path / "kept.zarr"
    bench.results.saveRequested.emit(state.results[1].number, str(store))
    assert settle(lambda: state.results[1].saved is not None, 60), state.message
    asked = state.results[1].request
    from napari_stmdit.tissue.open import SectionSource

    bench.presenter.open(SectionSource(path=str(store)))
    assert "1 result is not saved" in answer("Replace it")
    assert settle(lambda: any(entry.stored is not None for entry in state.results), 60), state.message
    found = next(entry for entry in state.results if entry.stored is not None)
    assert found.counterfactual and found.name.startswith(state.results[1].name)  # napari numbers one of two
    assert found.request == asked
