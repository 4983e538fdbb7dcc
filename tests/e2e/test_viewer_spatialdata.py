"""A store of ours in napari-spatialdata, whose readers and layers are its own."""

import importlib.util

import numpy as np
import pytest
from qtpy import API_NAME
from standins import CropModel, card_for
from viewing import no_leaks, settle, viewer  # noqa: F401

from napari_stmdit.intent import Request
from napari_stmdit.regions import SpotList
from napari_stmdit.synthesis.session import synthesize

pytestmark = [
    pytest.mark.gui,
    pytest.mark.nightly,
    pytest.mark.skipif(
        not importlib.util.find_spec("napari_spatialdata"), reason="napari-spatialdata is not installed"
    ),
    pytest.mark.skipif(API_NAME != "PyQt6", reason=f"napari-spatialdata needs PyQt6, and this is {API_NAME}"),
]


def test_slide_spots_and_results_lie_in_place(viewer, tiny_section, tmp_path):  # noqa: F811
    from napari_spatialdata import Interactive
    from spatialdata import read_zarr

    spots = tiny_section.spots
    model = CropModel(card_for(tuple(spots.genes.symbols.tolist()), patch_px=64, patch_mpp=0.7))
    result = synthesize(tiny_section, Request(region=SpotList(ids=tuple(spots.ids[:2])), seed=5), model)
    name = result.save(tmp_path / "out.zarr")
    sdata = read_zarr(tmp_path / "out.zarr")
    (slide,) = set(sdata.images) - {name}
    (circles,) = sdata.shapes
    system, to_system = next(iter(tiny_section.coordinate_systems.items()))
    shown = Interactive(sdata, headless=True)
    # elements are read in a thread: one at a time, and what is asked for meanwhile is passed over
    thread = shown._sdata_widget.worker_thread
    for element in (slide, circles, name):
        shown.add_element(element, system)
        assert settle(lambda element=element: element in viewer.layers and not thread.isRunning(), 120)

    def on_slide(yx):
        return np.atleast_2d(yx) @ to_system[:2, :2].T + to_system[:2, 2]

    def in_world(element, points):
        return np.array([viewer.layers[element].data_to_world(point) for point in points])

    np.testing.assert_allclose(in_world(circles, viewer.layers[circles].data), on_slide(spots.yx), atol=1e-6)
    frame = result.plan.frame
    for element, origin, pixel, first in (
        (slide, (0.0, 0.0), 1.0, tiny_section.image.levels[0]),
        (name, frame.origin, frame.pixel_size, result.rgba),
    ):
        # pixel (i, j) has its centre at (i + 0.5, j + 0.5) pixels from the image's corner
        centres = (np.array([[0, 0], [3, 5]]) + 0.5) * pixel + origin
        np.testing.assert_allclose(in_world(element, [(0, 0), (3, 5)]), on_slide(centres), atol=1e-6)
        np.testing.assert_array_equal(np.asarray(viewer.layers[element].data[0]), np.asarray(first))
