"""Seams with the bundled checkpoint: what no seam would look like is measured on the same tissue."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from napari_stmdit import Request, load_checkpoint, open_sample_section
from napari_stmdit.regions import Polygons
from napari_stmdit.synthesis.continuous import TileDecoder
from napari_stmdit.synthesis.plan import plan
from napari_stmdit.synthesis.session import synthesize

_PATH = Path(__file__).parents[2] / "docs" / "evidence" / "seams.py"
_SPEC = importlib.util.spec_from_file_location("seams", _PATH)
seams = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(seams)


@pytest.fixture(scope="module")
def model():
    return load_checkpoint("demo", device="cpu")


def request(side_px, **wishes):
    low = 1000 - side_px / 2
    high = low + side_px
    ring = ((low, low), (low, high), (high, high), (high, low))
    return Request(region=Polygons(rings=(ring,)), mode="continuous", **wishes)


def test_the_measure_sees_a_seam():
    rng = np.random.default_rng(0)
    rgba = np.full((640, 640, 4), 255, np.uint8)
    rgba[..., :3] = rng.integers(80, 170, (640, 640, 1))
    assert seams.seam_ratios(rgba, (0, 0), 128)[0] == pytest.approx(1, abs=0.05)
    rgba[:, 256:384, :3] += 40  # a window that is too bright
    ratios = seams.seam_ratios(rgba, (0, 0), 128)
    assert ratios[0] > 1.2
    assert (ratios[1:] < ratios[0]).all()
    assert seams.seam_ratios(rgba, (0, 0), 128, 32)[0] > 1.2
    moved = seams.seam_ratios(rgba[:, 37:], (0, 37), 128)  # a canvas that does not begin on the lattice
    assert moved.argmax() == 0


def test_tiles_are_decoded_as_the_whole_is(model):
    section = open_sample_section()
    made = plan(section, request(1300), model.card)
    window = made.windows
    rng = np.random.default_rng(0)
    latents = rng.normal(size=(12, window.size[0] // 8, window.size[1] // 8)).astype(np.float32)
    whole = model.decode(latents).astype(int)
    decoder = TileDecoder(latents, made, window, 8, lambda part, corner: model.decode(part))
    top, left = window.origin
    assert len(made.patches) >= 4
    for patch in made.patches:
        y0, x0, y1, x1 = patch.canvas_box
        result = decoder.tile(patch)
        low, high = max(y0, top), min(y1, top + window.size[0])
        start, stop = max(x0, left), min(x1, left + window.size[1])
        there = whole[low - top : high - top, start - left : stop - left]
        here = result.pixels[low - y0 : high - y0, start - x0 : stop - x0].astype(int)
        mask = result.mask[low - y0 : high - y0, start - x0 : stop - x0]
        assert np.abs(there - here)[mask].max() <= 1


@pytest.mark.nightly  # that nothing meets at a border is tested on tiles and windows each time, in test_continuous and test_windows
def test_window_borders_carry_no_more_gradient_than_the_rest(model, tmp_path):
    section = open_sample_section()
    result = synthesize(section, request(620, steps=4, seed=1), model, batch=8, folder=tmp_path / "run")
    facts = seams.facts_of(np.asarray(result.rgba), result.plan)
    assert facts["window_borders_against_cell_borders_within_32_px"]["ratio"] <= 1.05, facts
