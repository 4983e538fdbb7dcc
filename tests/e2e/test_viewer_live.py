"""Live in a real viewer: the tissue changes under the brush and with the slider, and Run puts its result in the place of the picture."""

import numpy as np
import pytest
from mouse import Mouse
from tiny_fixtures import tiny_checkpoint, tiny_model  # noqa: F401
from viewing import no_leaks, settle, viewer, workbench  # noqa: F401

from napari_stmdit.tissue.crops import read_patches
from napari_stmdit.ui import layers
from napari_stmdit.ui.state import Brush, RunStatus

pytestmark = pytest.mark.gui


@pytest.fixture(autouse=True)
def own_noise(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def painting(viewer, workbench, tiny_section, tiny_model):  # noqa: F811
    workbench.presenter.use_model(tiny_model)
    workbench.presenter.show(tiny_section)
    settle(lambda: False, 0.2)
    state = workbench.state
    state.request = state.request.model_copy(update={"steps": 5})
    workbench.edits.form.what.setText("ERBB2, KRT8, EPCAM")
    workbench.edits.form.what.commit()
    workbench.presenter.set_brush(Brush(radius_um=60, softness=0.5))
    workbench.edits.paint.click()
    return workbench


def live_layer(viewer):  # noqa: F811
    return next((layer for layer in viewer.layers if layers.role_of(layer) == "live"), None)


def change_of(layer, section):
    """Largest difference of the picture from the slide, where it shows anything, and where that lies in full-resolution pixels."""
    rgba = np.asarray(layer.data)
    side = max(rgba.shape[:2])
    affine = layer.affine.affine_matrix[-3:, -3:] if layer.affine.affine_matrix.shape[0] >= 3 else np.eye(3)
    pixel = affine[0, 0] / section.calibration.mpp
    y0, x0 = (affine[:2, 2] / section.calibration.mpp) - pixel / 2
    slide = read_patches(section.image, [(y0, x0, y0 + side * pixel, x0 + side * pixel)], side)[0]
    slide = slide[: rgba.shape[0], : rgba.shape[1]]
    off = np.abs(rgba[..., :3].astype(int) - slide).max(axis=-1)
    return np.where(rgba[..., 3] > 0, off, 0), (y0, x0), pixel


def test_tissue_changes_under_the_brush_and_with_the_slider_and_run_replaces_the_picture(
    viewer,  # noqa: F811
    painting,
    tiny_section,
    tiny_model,  # noqa: F811
):
    bench, state, mouse = painting, painting.state, Mouse(viewer)
    world = tiny_section.spots.yx * tiny_section.calibration.mpp
    assert not bench.edits.live.isChecked()  # it is off at first
    mouse.draw(world[27:28].repeat(2, axis=0))
    settle(lambda: False, 0.3)
    assert live_layer(viewer) is None
    bench.edits.undo.click()
    bench.edits.live.click()
    assert state.live and live_layer(viewer) is None
    mouse.draw(np.linspace(world[12], world[14], 8))
    assert state.tool == "brush"
    assert settle(lambda: "5 steps" in state.live_text, 60), state.live_text
    assert "preview" in bench.edits.live_line.text().lower()
    assert state.tool == "brush"  # the new layer does not put the brush away
    layer = live_layer(viewer)
    assert "preview" in layer.name.lower() and "synthetic" in layer.name
    painted = set(state.request.edits[0].spots)
    assert painted
    change, corner, pixel = change_of(layer, tiny_section)
    assert change.max() > 1
    where = np.argwhere(change > 1) * pixel + corner
    own = tiny_section.spots.yx[tiny_section.spots.rows(sorted(painted))]
    away = np.abs(where[:, None] - own[None]).max(axis=2).min(axis=1)
    half = tiny_model.card.patch_um / tiny_section.calibration.mpp / 2
    assert away.max() <= half + 2 * pixel  # where it was painted, and only there

    before = np.asarray(layer.data).copy()
    slider = bench.edits.list.rows[0].strength
    slider.setValue(40)
    assert settle(lambda: not np.array_equal(live_layer(viewer).data, before), 60)
    assert settle(lambda: "5 steps" in state.live_text, 60)
    shown = np.asarray(live_layer(viewer).data).copy()

    bench.presenter.select(sorted(painted))
    bench.run_bar.run.click()
    assert settle(lambda: not state.status.busy, 120)
    assert state.status is RunStatus.DONE, state.message
    assert live_layer(viewer) is None and not state.live_text
    (entry,) = state.results
    result = entry.result.rgba
    assert result.shape == shown.shape
    assert np.abs(result.astype(int) - shown).max() <= 1  # what was previewed is what was made
    settle(lambda: False, 0.3)
    assert live_layer(viewer) is None  # nothing has changed since
    slider.setValue(80)
    assert settle(lambda: live_layer(viewer) is not None, 60)
    bench.edits.live.click()
    assert live_layer(viewer) is None


def test_an_undone_stroke_takes_its_picture_along_and_what_cannot_be_shown_is_said(viewer, painting, tiny_section):  # noqa: F811
    bench, state, mouse = painting, painting.state, Mouse(viewer)
    world = tiny_section.spots.yx * tiny_section.calibration.mpp
    bench.edits.live.click()
    mouse.draw(np.linspace(world[12], world[13], 5))
    assert settle(lambda: live_layer(viewer) is not None, 60)
    bench.edits.undo.click()
    assert settle(lambda: live_layer(viewer) is None, 60)
    assert not state.live_text
    bench.edits.redo.click()
    assert settle(lambda: live_layer(viewer) is not None, 60)
    state.request = state.request.model_copy(update={"counterfactual": "off"})
    assert settle(lambda: live_layer(viewer) is None, 60)
    assert "new tissue is chosen" in bench.edits.live_line.text()
