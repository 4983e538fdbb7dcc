import numpy as np
import pytest

from napari_stmdit.evaluation.statistics import Interval, correlation_draws, mean_draws, resampled, spot_weights
from napari_stmdit.expression.regression import centred


def test_weights_are_draws_of_spots_within_their_sections():
    groups = np.array([0] * 5 + [1] * 3)
    weights = spot_weights(groups, draws=400)
    assert weights.shape == (400, 8)
    assert (weights[:, :5].sum(axis=1) == 5).all() and (weights[:, 5:].sum(axis=1) == 3).all()
    assert np.allclose(weights.mean(axis=0), 1, atol=0.2) and weights.max() > 1
    assert np.array_equal(weights, spot_weights(groups, draws=400))


def test_weighted_correlations_are_those_of_the_drawn_spots():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 30, 4))
    b = b + a + 100
    weights = spot_weights(np.zeros(30, dtype=np.int64), draws=20)
    whole, draws = correlation_draws(a, b, weights)
    for column in range(4):
        assert whole[column] == pytest.approx(np.corrcoef(a[:, column], b[:, column])[0, 1])
        for draw, weight in enumerate(weights):
            rows = np.repeat(np.arange(30), weight.astype(int))
            assert draws[draw, column] == pytest.approx(np.corrcoef(a[rows, column], b[rows, column])[0, 1])


def test_a_constant_column_tells_nothing():
    whole, draws = correlation_draws(np.full((9, 1), 3.7), np.arange(9.0)[:, None], np.ones((2, 9)))
    assert whole.tolist() == [0.0] and not draws.any()


def test_the_interval_of_a_mean_covers_it_as_often_as_it_says():
    rng = np.random.default_rng(1)
    inside = 0
    for _ in range(200):
        found = mean_draws(
            rng.normal(size=40), spot_weights(np.zeros(40, dtype=np.int64), 300, int(rng.integers(2**31)))
        )
        inside += found.low <= 0 <= found.high
    assert 180 <= inside <= 198  # 95 of 100, less a little for the bootstrap at n = 40


def test_missing_values_are_left_out():
    values = np.array([1.0, np.nan, 3.0])
    found = mean_draws(values, np.ones((5, 3)))
    assert (found.value, found.low, found.high, found.n) == (2.0, 2.0, 2.0, 2)
    nothing = mean_draws(np.full(3, np.nan), np.ones((5, 3)))
    assert nothing.facts == {"value": None, "low": None, "high": None, "n": 0}


def test_an_interval_about_a_distance_has_its_bias_taken_off():
    found = Interval.about(1.0, [4.0, 5.0, 6.0], 9)
    assert found.value == 1.0 and found.low == pytest.approx(0.05) and found.high == pytest.approx(1.95)


def test_sections_are_centred_each_by_itself():
    values = np.array([[1.0], [3.0], [10.0], [30.0]])
    assert centred(values, np.array([0, 0, 1, 1])).ravel().tolist() == [-1, 1, -10, 10]
    assert values[0, 0] == 1.0


def test_a_statistic_of_drawn_rows_is_that_of_the_rows():
    values = np.arange(20.0)
    found = resampled(lambda rows: float(values[rows].mean()), 20, 500, seed=0)
    assert (found.value, found.n) == (9.5, 20) and 6 < found.low < 9.5 < found.high < 13
    assert found == resampled(lambda rows: float(values[rows].mean()), 20, 500, seed=0)
