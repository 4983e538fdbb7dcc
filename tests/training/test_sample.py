"""The script that the bundled sample section was made with."""

import runpy
from pathlib import Path

import numpy as np

from napari_stmdit.expression.changes import Profile

SCRIPT = runpy.run_path(str(Path(__file__).parents[2] / "docs" / "evidence" / "sample_section.py"))
DEPTH, draw_counts, hex_spots, layout = (SCRIPT[name] for name in ("DEPTH", "draw_counts", "hex_spots", "layout"))

SIDE_UM = 1376.0


def test_spots_lie_on_a_visium_lattice_inside_the_slide():
    rc, yx = hex_spots(SIDE_UM)
    assert 100 <= len(rc) <= 200
    assert yx.min() >= 60 and yx.max() <= SIDE_UM - 60
    distance = np.linalg.norm(yx[:, None] - yx[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    np.testing.assert_allclose(distance.min(axis=1), 100.0)
    assert set(rc.sum(axis=1) % 2) == {0}


def test_the_layout_has_nests_stroma_fat_and_immune_cells():
    _, yx = hex_spots(SIDE_UM)
    tissue = layout(yx, SIDE_UM)
    np.testing.assert_allclose(tissue.weights.sum(axis=1), 1.0)
    main = np.bincount(tissue.weights.argmax(axis=1), minlength=4)
    assert dict(zip(tissue.regions, main, strict=True)).keys() == DEPTH.keys()
    assert (main >= 8).all(), dict(zip(tissue.regions, main, strict=True))


def test_counts_follow_the_profiles():
    rng = np.random.default_rng(0)
    _, yx = hex_spots(SIDE_UM)
    tissue = layout(yx, SIDE_UM)
    genes = tuple(f"G{k}" for k in range(40))
    mean = {name: rng.uniform(0, 5, 40).astype(np.float32) for name in tissue.regions}
    profiles = {name: Profile(genes, m) for name, m in mean.items()}
    counts = draw_counts(tissue, profiles, {name: np.full(40, 0.3, np.float32) for name in mean}, rng)
    assert counts.shape == (len(yx), 40)
    assert (counts.data == np.round(counts.data)).all()
    dense = counts.toarray()
    x = np.log1p(1e4 * dense / dense.sum(axis=1, keepdims=True))
    for k in range(len(tissue.regions)):
        pure = tissue.weights[:, k] > 0.9
        if pure.any():
            scores = [np.corrcoef(x[pure].mean(axis=0), mean[other])[0, 1] for other in tissue.regions]
            assert np.argmax(scores) == k
