import json

import numpy as np
import pytest

from napari_stmdit.encoders.cancer_foundation.vocabulary import allowed_digits, bin_row, bin_rows, row_generator


@pytest.fixture(scope="module")
def reference(golden):
    from safetensors.numpy import load_file

    names = json.loads((golden / "cancerfoundation_binning_rows.json").read_text())
    return names, load_file(golden / "cancerfoundation_binning.safetensors")


def counts(rows=6, genes=120, seed=0):
    return np.random.default_rng(seed).poisson(1.2, (rows, genes)).astype(np.float32)


def test_the_released_draw_is_reproduced_exactly(reference):
    names, arrays = reference
    for name, row, expected in zip(names, arrays["rows"], arrays["bins_numpy_seed_123"], strict=True):
        np.testing.assert_array_equal(bin_row(row, 51, np.random.RandomState(123)), expected, err_msg=name)


def test_the_allowed_digits_are_those_of_the_reference(reference):
    names, arrays = reference
    checked = 0
    for name, row, lo, hi, raises in zip(
        names, arrays["rows"], arrays["lo"], arrays["hi"], arrays["reference_raises"], strict=True
    ):
        if raises:
            continue
        filled = row != 0
        found_lo, found_hi = allowed_digits(row[filled])
        np.testing.assert_array_equal(found_lo, lo[filled], err_msg=name)
        np.testing.assert_array_equal(found_hi, hi[filled], err_msg=name)
        checked += 1
    assert checked == 13


@pytest.mark.parametrize("ties", ["middle", "random"])
def test_every_digit_lies_among_those_allowed(reference, ties):
    _, arrays = reference
    digits = bin_rows(arrays["rows"], 51, ties, seed=5)
    assert (digits >= arrays["lo"]).all() and (digits <= arrays["hi"]).all()


def test_without_ties_both_rules_agree():
    values = np.random.default_rng(1).gamma(2.0, size=(3, 300)).astype(np.float32)
    np.testing.assert_array_equal(bin_rows(values), bin_rows(values, ties="random", seed=9))
    assert bin_rows(values).min() == 1 and bin_rows(values).max() == 50


@pytest.mark.parametrize("row", [np.zeros(5), np.array([0.0, -3.0, 0.0, -1.0]), np.zeros(0)])
@pytest.mark.parametrize("ties", ["middle", "random"])
def test_a_row_without_a_positive_value_is_all_zeros(row, ties):
    np.testing.assert_array_equal(bin_rows(row[None].astype(np.float32), ties=ties), np.zeros((1, len(row))))


def test_a_single_value_and_equal_values_take_the_middle():
    np.testing.assert_array_equal(bin_row(np.float32([0, 7, 0])), [0, 25, 0])
    np.testing.assert_array_equal(bin_row(np.float32([2, 2, 2])), [25, 25, 25])


def test_negative_values_are_binned_below_the_others():
    np.testing.assert_array_equal(bin_row(np.float32([-1, 0, 4])), [1, 0, 50])


def test_equal_values_get_equal_digits_whatever_their_place_and_batch():
    rows = counts()
    digits = bin_rows(rows)
    turned = np.random.default_rng(3).permutation(rows.shape[1])
    np.testing.assert_array_equal(bin_rows(rows[:, turned]), digits[:, turned])
    np.testing.assert_array_equal(bin_rows(rows[4:5])[0], digits[4])
    for row, own in zip(rows, digits, strict=True):
        for value in np.unique(row):
            assert len(np.unique(own[row == value])) == 1


def test_random_digits_depend_on_seed_and_row_and_not_on_the_batch():
    rows = counts()
    digits = bin_rows(rows, ties="random", seed=4)
    np.testing.assert_array_equal(bin_rows(rows[::-1], ties="random", seed=4), digits[::-1])
    np.testing.assert_array_equal(bin_rows(rows[2:3], ties="random", seed=4)[0], digits[2])
    assert (bin_rows(rows, ties="random", seed=5) != digits).mean() > 0.2
    changed = rows[0].copy()
    changed[0] += 1
    assert row_generator(rows[0], 4).random_sample() != row_generator(changed, 4).random_sample()
    singles = np.arange(1, 31, dtype=np.float32)[:, None]  # each may get any digit, and they are drawn apart
    assert len(np.unique(bin_rows(singles, ties="random", seed=4))) > 10


def test_depth_and_logarithm_leave_the_digits():
    rows = counts(seed=2)
    depth = np.float32([[0.5], [2], [4], [8], [0.25], [16]])  # powers of two: exact
    np.testing.assert_array_equal(bin_rows(rows * depth), bin_rows(rows))
    np.testing.assert_array_equal(bin_rows(np.log1p(rows * 37)), bin_rows(rows))
