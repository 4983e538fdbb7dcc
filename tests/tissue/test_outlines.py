"""Outlines of cells as pictures: the same lines at every level and across tiles."""

import numpy as np
import pytest
import shapely

from napari_stmdit.tissue.pseudo_spots import drawn_outlines, outlines_of


def test_pieces_close_each_ring_and_join_none():
    two = shapely.MultiPolygon([shapely.box(0, 0, 4, 2), shapely.box(10, 10, 12, 12)])
    pieces = outlines_of(np.array([shapely.box(20, 0, 21, 3), two]))
    assert pieces.shape == (12, 2, 2)
    np.testing.assert_array_equal(
        np.sort(np.abs(pieces[:, 1] - pieces[:, 0]).sum(axis=1)), [1, 1, 2, 2, 2, 2, 2, 2, 3, 3, 4, 4]
    )


@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_line_across_tiles_is_drawn_whole_at_every_level(level):
    pieces = np.array([[[10.5, 20.5], [2000.5, 1500.5]], [[3.5, 1800.5], [3.5, 1700.5]]], np.float32)
    levels = drawn_outlines(pieces, (2300, 1900))
    assert [array.shape for array in levels] == [(2300, 1900, 4), (1150, 950, 4), (575, 475, 4)][: len(levels)]
    drawn = np.asarray(levels[level])
    assert drawn[..., :3].max() == 0 and set(np.unique(drawn[..., 3])) == {0, 255}
    along = np.linspace(0, 1, 4000)[1:-1, None]
    for start, end in pieces.astype(float):
        at = ((start + along * (end - start)) / 2**level).astype(int)
        near = np.stack(
            [drawn[np.clip(at[:, 0] + dy, 0, None), at[:, 1] + dx, 3] for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
        )
        assert near.any(axis=0).all()
    assert (drawn[..., 3] > 0).sum() == pytest.approx((1990 + 100) / 2**level, rel=0.01)
    assert not np.asarray(levels[level][-8:, :8]).any()
