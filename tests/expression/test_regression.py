import numpy as np

from napari_stmdit.expression.regression import compact_folds


def test_folds_are_blocks_of_neighbours_from_all_over_the_tissue():
    yx = np.array([(r, c) for r in range(16) for c in range(20)], dtype=float)
    folds = compact_folds(yx, most=16)
    assert set(folds.tolist()) == set(range(5))
    assert np.bincount(folds).min() > len(yx) / 5 * 0.7
    for fold in range(5):
        own = yx[folds == fold]
        assert (np.ptp(own, axis=0) >= [6, 10]).all()  # a stripe would be 4 columns wide
    grid = folds.reshape(16, 20)
    assert (grid[:, 1:] == grid[:, :-1]).mean() > 0.6 and (grid[1:] == grid[:-1]).mean() > 0.6  # 0.2 by chance


def test_folds_do_not_depend_on_the_order_of_ties_or_on_chance():
    yx = np.random.default_rng(0).uniform(0, 1, (101, 2))
    assert np.array_equal(compact_folds(yx), compact_folds(yx.copy()))
