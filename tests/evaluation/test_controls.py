"""The intervals of the evidence scripts."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

_PATH = Path(__file__).parents[2] / "docs" / "evidence" / "intervals.py"
_SPEC = importlib.util.spec_from_file_location("intervals", _PATH)
intervals = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(intervals)


@pytest.fixture
def pairs():
    rng = np.random.default_rng(0)
    x = rng.normal(size=120)
    return x, 0.6 * x + 0.8 * rng.normal(size=120)


def test_bootstrap_interval_surrounds_the_correlation_and_narrows_with_n(pairs):
    few = intervals.bootstrap_correlation(pairs[0][:30], pairs[1][:30])
    many = intervals.bootstrap_correlation(*pairs)
    assert many.low < many.value < many.high
    assert many.high - many.low < few.high - few.low
    assert many.n == 120 and abs(many.value - np.corrcoef(*pairs)[0, 1]) < 1e-12


def test_unrelated_pairs_fall_around_zero(pairs):
    low, high = intervals.permutation_interval(*pairs)
    assert low < 0 < high < intervals.bootstrap_correlation(*pairs).value


def test_constant_values_have_no_correlation():
    assert np.isnan(intervals.correlate([1, 1, 1], [1, 2, 3]))
    assert np.isnan(intervals.bootstrap_correlation([1, 1, 1], [1, 2, 3]).low)
    with pytest.raises(ValueError, match="same length"):
        intervals.correlate([1, 2], [1, 2, 3])


def test_mean_interval_keeps_to_the_generator_it_is_given():
    values = np.arange(20.0)
    rng = np.random.default_rng(0)
    first, second = intervals.mean_interval(values, rng), intervals.mean_interval(values, rng)
    assert first == intervals.mean_interval(values, np.random.default_rng(0)) and first != second
