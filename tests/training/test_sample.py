"""The script that the bundled sample sections were made with."""

import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from skimage.measure import label

sys.path.insert(0, str(Path(__file__).parents[2] / "docs" / "evidence"))
from sample_painting import Painter
from sample_section import SIDE_PX, TISSUES, draw_counts, hex_spots, layout

from napari_stmdit.types import Genes, SpotTable

MPP = 0.688


def painter(side, mpp=MPP):
    return Painter(side, mpp, np.random.default_rng(2026))


def spots_on(side, mpp):
    rc, yx = hex_spots(side * mpp)
    ids, genes = np.array([f"S{k}" for k in range(len(rc))]), Genes(np.array(["A"]))
    return SpotTable(ids, yx / mpp, 55 / mpp, csr_matrix((len(rc), 1), dtype=np.float32), genes, array_rc=rc)


@pytest.fixture(scope="module")
def breast():
    return TISSUES["breast"].design(painter(SIDE_PX))


def test_spots_lie_on_a_visium_lattice_inside_the_slide():
    rc, yx = hex_spots(SIDE_PX * MPP)
    assert SIDE_PX >= 2500 and 300 <= len(rc) <= 400
    assert yx.min() >= 60 and yx.max() <= SIDE_PX * MPP - 60
    distance = np.linalg.norm(yx[:, None] - yx[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    np.testing.assert_allclose(distance.min(axis=1), 100.0)
    assert set(rc.sum(axis=1) % 2) == {0}


def test_breast_has_nests_with_septa_fat_immune_cells_and_a_vessel(breast):
    assert label(breast.regions["tumour"]).max() >= 15
    assert breast.vessel[breast.lumen].all() and breast.regions["stroma"][breast.vessel].all()


def test_colon_has_crypts_in_a_row_and_a_follicle():
    mpp = 0.9673
    colon = TISSUES["colon"].design(painter(SIDE_PX, mpp))
    assert label(colon.crypts).max() >= 100 and label(colon.regions["b_plasma"]).max() == 1
    assert colon.regions["epithelial"][colon.crypts].all() and colon.regions["stromal"][colon.lumen].all()


@pytest.mark.parametrize(("name", "mpp"), [("breast", MPP), ("colon", 0.9673)])
def test_each_pixel_is_of_one_region_and_each_region_has_spots(name, mpp):
    tissue = TISSUES[name]
    regions = tissue.design(painter(SIDE_PX, mpp)).regions
    assert (np.sum([regions[one] for one in tissue.depth], axis=0) == 1).all()
    weights = layout(spots_on(SIDE_PX, mpp), {one: regions[one] for one in tissue.depth}).weights
    np.testing.assert_allclose(weights.sum(axis=1), 1.0)
    assert (np.bincount(weights.argmax(axis=1), minlength=4) >= 3).all()


def test_nuclei_are_crowded_in_nests_and_fat_is_pale():
    small = painter(512)
    designed = TISSUES["breast"].design(small)
    picture = TISSUES["breast"].paint(small, designed)
    assert picture.shape == (512, 512, 3) and picture.dtype == np.uint8
    light = [picture[designed.regions[name]].mean() for name in ("tumour", "stroma", "adipose")]
    assert light == sorted(light)


def test_counts_follow_the_profiles(breast):
    rng = np.random.default_rng(0)
    spots, depth = spots_on(SIDE_PX, MPP), TISSUES["breast"].depth
    tissue = layout(spots, breast.regions)
    mean = {name: rng.uniform(0, 5, 40).astype(np.float32) for name in tissue.regions}
    counts = draw_counts(tissue, mean, {name: np.full(40, 0.3, np.float32) for name in mean}, depth, rng)
    assert counts.shape == (len(spots), 40)
    assert (counts.data == np.round(counts.data)).all()
    dense = counts.toarray()
    x = np.log1p(1e4 * dense / dense.sum(axis=1, keepdims=True))
    for k in range(len(tissue.regions)):
        pure = tissue.weights[:, k] > 0.9
        scores = [np.corrcoef(x[pure].mean(axis=0), mean[other])[0, 1] for other in tissue.regions]
        assert np.argmax(scores) == k
