import numpy as np
import pytest
from scipy.sparse import csr_matrix

from napari_stmdit.edits import Scale, Swap, Towards
from napari_stmdit.expression.changes import Profile
from napari_stmdit.expression.edits import edited_depths, mix_depths
from napari_stmdit.types import Genes, SpotTable

TOTALS = np.array([100, 200, 400, 0, 200])


@pytest.fixture
def spots():
    counts = np.stack([TOTALS // 2, TOTALS - TOTALS // 2], axis=1)
    ids = np.array([f"s{k}" for k in range(5)])
    return SpotTable(ids, np.zeros((5, 2)), 1.0, csr_matrix(counts.astype(np.float32)), Genes(np.array(["A", "B"])))


def depths(spots, *edits, rows=(0, 1, 2), sources=None, profiles=None):
    sources = None if sources is None else np.array(sources)
    return edited_depths(np.array(rows), spots, edits, {}, profiles or {}, sources)


def test_depth_is_relative_to_the_median_spot_and_knows_nothing_of_the_experiments_own(spots):
    expected = np.log([0.5, 1, 2, 0.5, 1])  # a spot without counts is as shallow as the shallowest that has some
    np.testing.assert_allclose(spots.relative_depth, expected, atol=1e-6)
    deeper = SpotTable(spots.ids, spots.yx, 1.0, spots.counts * 15, spots.genes)
    np.testing.assert_allclose(deeper.relative_depth, spots.relative_depth, atol=1e-6)
    empty = SpotTable(spots.ids, spots.yx, 1.0, csr_matrix((5, 2), dtype=np.float32), spots.genes)
    np.testing.assert_array_equal(empty.relative_depth, np.zeros(5))


def test_edits_of_genes_leave_depth_as_it_was_measured(spots):
    towards = Towards(genes=("A",), target_spots=("s2",))
    np.testing.assert_array_equal(depths(spots, Scale(genes=("A",), factor=9), towards), spots.relative_depth[:3])


def test_the_shuffled_control_takes_depth_with_the_counts(spots):
    np.testing.assert_array_equal(depths(spots, sources=(2, 0, 1)), spots.relative_depth[[2, 0, 1]])


def test_a_whole_profile_moves_depth_with_it(spots):
    half = Towards(target_spots=("s2",), strength=0.5, spots={"s0": 1.0, "s1": 0.5})
    np.testing.assert_allclose(depths(spots, half), np.log(2) * np.array([0, 0.25, 1]), atol=1e-6)
    profiles = {
        "fat": Profile(("A",), np.ones(1, np.float32), depth=-1.0),
        "unknown": Profile(("A",), np.ones(1, np.float32)),
    }
    fat = Towards(target_profile="fat")
    np.testing.assert_allclose(depths(spots, fat, profiles=profiles), [-1, -1, -1], atol=1e-6)
    unknown = Towards(target_profile="unknown")
    np.testing.assert_array_equal(depths(spots, unknown, profiles=profiles), spots.relative_depth[:3])
    disabled = fat.model_copy(update={"enabled": False})
    np.testing.assert_array_equal(depths(spots, disabled, profiles=profiles), spots.relative_depth[:3])


def test_swapped_groups_change_their_mean_depths(spots):
    swap = Swap(group_a=("s0",), group_b=("s2",))
    np.testing.assert_allclose(depths(spots, swap), np.log([2, 1, 0.5]), atol=1e-6)


def test_the_weight_of_a_spot_and_the_strength_count_in_a_swap_as_they_do_for_genes(spots):
    painted = Swap(group_a=("s0",), group_b=("s2",), spots={"s0": 0.5, "s1": 1.0})
    # s0 goes half of the way from log 0.5 to log 2, s2 was not painted, and s1 is of neither group
    np.testing.assert_allclose(depths(spots, painted), np.log([1, 1, 2]), atol=1e-6)
    weak = Swap(group_a=("s0",), group_b=("s2",), strength=0.5)
    np.testing.assert_allclose(depths(spots, weak), np.log([1, 1, 1]), atol=1e-6)


def test_an_edit_of_genes_does_not_end_what_later_edits_do_to_depth(spots):
    genes, whole = Scale(genes=("A",), factor=9), Towards(target_spots=("s2",))
    np.testing.assert_allclose(depths(spots, genes, whole), np.log([2, 2, 2]), atol=1e-6)


def test_places_between_shallow_spots_are_shallow():
    mixed = mix_depths(np.array([[0.5, 0.5], [0.0, 1.0]]), np.array([-1.0, -1.9], dtype=np.float32))
    np.testing.assert_allclose(mixed, [np.log((np.exp(-1) + np.exp(-1.9)) / 2), -1.9], atol=1e-6)
