"""The canvas on the screen: small ones as they are, large ones as a pyramid that follows every patch."""

import numpy as np
import pytest
from napari.components import ViewerModel
from standins import make_section

from napari_stmdit.synthesis.canvas import MemoryCanvas
from napari_stmdit.tissue.elements import halved_rgba
from napari_stmdit.types import CanvasFrame, Patch, PatchResult
from napari_stmdit.ui import layers, runs
from napari_stmdit.ui.runs import GrowingLayer


def paste(canvas, layer, y, x, value, side=64):
    pixels = np.full((side, side, 3), value, np.uint8)
    layer.changed(canvas.paste(PatchResult(Patch(0, "s", 0, (0, 0, 1, 1), (y, x, y + side, x + side), 0), pixels)))


def test_a_large_canvas_is_a_pyramid_that_follows_every_patch(monkeypatch):
    monkeypatch.setattr(runs, "MAX_SINGLE_PX", 1000)
    monkeypatch.setattr(runs, "MIN_LEVEL_PX", 100)
    rng = np.random.default_rng(1)
    canvas = MemoryCanvas(CanvasFrame((501, 700), (0.0, 0.0), 2.0))
    layer = GrowingLayer(canvas, make_section(), "synthetic")
    assert [level.shape[:2] for level in layer.levels] == [(501, 700), (250, 350), (125, 175), (62, 87)]
    for _ in range(12):
        y, x = (int(v) for v in rng.integers(0, (437, 636)))
        paste(canvas, layer, y, x, int(rng.integers(20, 250)))
    whole = GrowingLayer(canvas, make_section(), "synthetic")
    whole.changed((0, 0, 501, 700))
    for own, expected in zip(layer.levels, whole.levels, strict=True):
        np.testing.assert_array_equal(own, expected)
    for fine, coarser in zip(layer.levels, layer.levels[1:], strict=False):  # as they are when the result is saved
        np.testing.assert_array_equal(np.moveaxis(coarser, -1, 0), halved_rgba(np.moveaxis(fine, -1, 0)))
    coarse = layer.levels[2]
    assert coarse[..., 3].max() == 255
    assert coarse[coarse[..., 3] > 0][:, :3].min() >= 19  # what was not synthesized darkens no edge
    viewer = ViewerModel()
    layer.add(lambda data: viewer.add_layer(layers.make(data)), {"run": 1})
    assert layer.layer.multiscale
    before = np.array(layer.layer.data[1])
    paste(canvas, layer, 0, 0, 1)
    layer.refresh()
    after = np.asarray(layer.layer.data[1])  # the layer shows the arrays themselves
    assert not np.array_equal(before[:32, :32], after[:32, :32])
    np.testing.assert_array_equal(after, layer.levels[1])


def test_a_small_canvas_stays_one_array():
    canvas = MemoryCanvas(CanvasFrame((300, 400), (0.0, 0.0), 2.0))
    layer = GrowingLayer(canvas, make_section(), "synthetic")
    viewer = ViewerModel()
    layer.add(lambda data: viewer.add_layer(layers.make(data)), {"run": 1})
    assert layer.layer.data is canvas.rgba


@pytest.mark.parametrize("corner", [(0, 0), (200, 130), (255, 255), (256, 256), (37, 411)])
def test_sums_in_tiles_blend_as_one_array_would(corner):
    from napari_stmdit.synthesis.canvas import feather

    rng = np.random.default_rng(2)
    canvas = MemoryCanvas(CanvasFrame((600, 700), (0.0, 0.0), 1.0))
    total, weight = np.zeros((600, 700, 3), np.float32), np.zeros((600, 700), np.float32)
    for shift in ((0, 0), (90, 40), (40, 130)):
        y, x = corner[0] + shift[0], corner[1] + shift[1]
        pixels = rng.integers(0, 255, (128, 128, 3), np.uint8)
        canvas.paste(PatchResult(Patch(0, "s", 0, (0, 0, 1, 1), (y, x, y + 128, x + 128), 0), pixels))
        total[y : y + 128, x : x + 128] += feather(128)[..., None] * pixels
        weight[y : y + 128, x : x + 128] += feather(128)
    seen = weight > 0
    np.testing.assert_array_equal(canvas.rgba[..., 3] == 255, seen)
    np.testing.assert_array_equal(
        canvas.rgba[seen][:, :3], np.rint(total[seen] / weight[seen][:, None]).astype(np.uint8)
    )
