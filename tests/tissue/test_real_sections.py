"""The real sections that are at hand: spots, genes, scale and places are what they were when this was written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from napari_stmdit.tissue.open import open_section, synthesis_fault

SECTIONS = {
    # spots, genes, um/px, its source, (y, x) of the first spot, mean (y, x), total of the counts, image, its size and pixels
    "her2st_B4_spaceranger1": (283, 15289, 0.6877544, "scalefactors", (3506.0, 1990.0), (6489.46, 3961.02), 935146, "B4_image.jpg", (9923, 9272), 1.0),
    "her2st_C3_spaceranger2": (180, 15821, 0.6873764, "scalefactors", (1159.01, 6066.06), (3452.82, 4178.76), 2033498, "C3_image.jpg", (9936, 9270), 1.0),
    "visium_hd_layout": (5, 10, 0.2738243, "scalefactors", (5448.78, 5618.6), (12153.71, 10512.25), 0, "tissue_lowres_image.png", (600, 473), 39.911667),
    "visium_mouse_brain_crop/outs_spaceranger1": (49, 2092, 0.7242325, "lattice", (439.0, 337.0), (915.76, 479.41), 206513, "test_img.jpg", (1717, 950), 1.0),
    "visium_mouse_brain_crop/outs_spaceranger2": (49, 2092, 0.7242325, "lattice", (439.0, 337.0), (915.76, 479.41), 206513, "test_img.jpg", (1717, 950), 1.0),
    "visium_mouse_colon/d0_naive_spaceranger1": (2604, 4338, 0.9672955, "lattice", (1005.0, 2410.0), (3703.79, 3671.95), 11159158, "d0_naive_HE.jpg", (8192, 7936), 1.0),
    "visium_v4_no_fullres/outs": (2898, 19465, 4.6663340, "lattice", (2056.54, 329.38), (1445.07, 810.32), 3085005, "tissue_lowres_image.png", (600, 600), 5.0),
}  # fmt: skip


@pytest.mark.parametrize("name", SECTIONS)
def test_a_real_section_opens_as_it_did(shared_data, name):
    spots, genes, mpp, source, first, mean, total, image, size, pixels = SECTIONS[name]
    section = open_section(shared_data / name)
    assert section.spots.counts.shape == (spots, genes)
    assert section.calibration.source == source and section.calibration.mpp == pytest.approx(mpp, rel=1e-6)
    np.testing.assert_allclose(section.spots.yx[0], first, atol=0.01)
    np.testing.assert_allclose(section.spots.yx.mean(axis=0), mean, atol=0.01)
    assert section.spots.counts.sum() == total
    assert Path(section.image.source).name == image and section.image.shape == size
    assert section.image.pixel_size == pytest.approx(pixels, rel=1e-6)


def test_real_positions_and_a_slide_without_counts_open(shared_data):
    section = open_section(shared_data / "visium_mouse_colon" / "d14_DSS_spaceranger1")
    assert section.spots.counts.shape == (3630, 0) and section.expression.kind == "none"
    assert section.calibration.source == "lattice" and section.calibration.mpp == pytest.approx(0.971, rel=0.005)
    assert Path(section.image.source).name == "d14_DSS_HE.jpg" and section.image.pixel_size == 1
    assert "no measured expression was used" in section.notes[0] and synthesis_fault(section, 0.688) is None


def test_a_real_predicted_table_lies_where_it_did(shared_data):
    folder = shared_data / "visium_mouse_colon"
    slide = folder / "d0_naive_spaceranger1" / "d0_naive_HE.jpg"
    section = open_section(slide, mpp=0.971, predicted_expression=folder / "d0_naive.h5ad")
    assert section.spots.counts.shape == (2604, 4338) and section.spots.counts.sum() == 11159158
    np.testing.assert_allclose(section.spots.yx[0], (1005.38, 2409.68), atol=0.01)
