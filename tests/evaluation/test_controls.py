import numpy as np
import pytest

from napari_stmdit.evaluation.statistics import bootstrap_correlation, correlate, permutation_interval, shuffle_within


@pytest.fixture
def pairs():
    rng = np.random.default_rng(0)
    x = rng.normal(size=120)
    return x, 0.6 * x + 0.8 * rng.normal(size=120)


def test_bootstrap_interval_surrounds_the_correlation_and_narrows_with_n(pairs):
    few = bootstrap_correlation(pairs[0][:30], pairs[1][:30])
    many = bootstrap_correlation(*pairs)
    assert many.low < many.r < many.high
    assert many.high - many.low < few.high - few.low
    assert many.n == 120 and abs(many.r - np.corrcoef(*pairs)[0, 1]) < 1e-12


def test_unrelated_pairs_fall_around_zero(pairs):
    low, high = permutation_interval(*pairs)
    assert low < 0 < high < bootstrap_correlation(*pairs).r


def test_constant_values_have_no_correlation():
    assert np.isnan(correlate([1, 1, 1], [1, 2, 3]))
    assert np.isnan(bootstrap_correlation([1, 1, 1], [1, 2, 3]).low)
    with pytest.raises(ValueError, match="same length"):
        correlate([1, 2], [1, 2, 3])


@pytest.mark.parametrize("count", [2, 3, 50])
def test_shuffling_keeps_every_row_and_no_place(count):
    other = shuffle_within(count, seed=4)
    assert sorted(other) == list(range(count))
    assert not np.any(other == np.arange(count))
    np.testing.assert_array_equal(other, shuffle_within(count, seed=4))
    with pytest.raises(ValueError, match="at least 2"):
        shuffle_within(1, 0)
