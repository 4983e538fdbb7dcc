import numpy as np
import pytest

from napari_stmdit.evaluation.spaces import Frame, RandomConvolutions, frechet_distance


def test_the_distance_of_two_normal_sets_is_what_the_formula_says():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(40000, 3))
    b = rng.normal(size=(40000, 3)) * [1.0, 2.0, 3.0] + [2.0, 0.0, 0.0]
    # shift 4, spreads (1 - 1)^2 + (2 - 1)^2 + (3 - 1)^2
    assert frechet_distance(a, b) == pytest.approx(9.0, rel=0.03)
    assert frechet_distance(a, a) == pytest.approx(0.0, abs=1e-9)
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b), rel=1e-6)


def test_correlated_sets_are_compared_by_their_whole_covariance():
    from scipy.linalg import sqrtm

    rng = np.random.default_rng(1)
    a, b = (rng.normal(size=(300, 5)) @ rng.normal(size=(5, 5)) for _ in range(2))
    first, second = (np.cov(x.T) + 1e-4 * np.eye(5) for x in (a, b))
    shift = a.mean(axis=0) - b.mean(axis=0)
    expected = shift @ shift + np.trace(first + second - 2 * sqrtm(first @ second).real)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)


def test_sets_of_different_width_are_refused():
    with pytest.raises(ValueError, match=r"got \(4, 3\), \(4, 2\)"):
        frechet_distance(np.zeros((4, 3)), np.zeros((4, 2)))


def test_a_frame_keeps_the_leading_directions_of_the_reference():
    rng = np.random.default_rng(2)
    hidden = rng.normal(size=(500, 2))
    reference = hidden @ rng.normal(size=(2, 10)) * 7 + 3
    frame = Frame.of(reference, components=2)
    coordinates = frame.project(reference)
    assert coordinates.shape == (500, 2) and np.allclose(coordinates.mean(axis=0), 0, atol=1e-9)
    fitted = np.linalg.lstsq(coordinates, hidden - hidden.mean(axis=0), rcond=None)[0]
    assert np.allclose(coordinates @ fitted, hidden - hidden.mean(axis=0), atol=1e-4)


def test_random_features_are_the_same_for_a_seed_and_tell_textures_apart():
    rng = np.random.default_rng(3)
    noise = rng.integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    flat = np.full((6, 32, 32, 3), 128, dtype=np.uint8)
    first, again = (RandomConvolutions(5).features(noise) for _ in range(2))
    assert first.shape == (6, 96) and np.array_equal(first, again)
    assert not np.allclose(RandomConvolutions(6).features(noise), first)
    assert np.abs(RandomConvolutions(5).features(flat) - first.mean(axis=0)).mean() > 3 * first.std(axis=0).mean()


def test_an_encoders_statistics_do_not_depend_on_the_batch():
    from napari_stmdit.assemble import load_checkpoint
    from napari_stmdit.evaluation.spaces import EncoderStatistics

    space = EncoderStatistics(load_checkpoint("demo", device="cpu").morphology, "own")
    patches = np.random.default_rng(4).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    together = space.features(patches)
    assert together.shape == (20, len(space.encoder.mean)) and space.name == "own"
    assert np.allclose(together[17:], space.features(patches[17:]), atol=1e-4)


def test_the_kernel_distance_of_a_hand_computed_case():
    from napari_stmdit.evaluation.spaces import kernel_distance, polynomial_kernel

    a, b = np.array([[0.0], [1.0]]), np.array([[2.0], [3.0]])
    # k(x, y) = (x y + 1)^3: within a k(0, 1) = 1, within b k(2, 3) = 343, across 1, 1, 27, 64
    assert polynomial_kernel(a, b).tolist() == [[1, 1], [27, 64]]
    assert kernel_distance(a, b) == pytest.approx(1 + 343 - 2 * (1 + 1 + 27 + 64) / 4)
    # paired: only pairs of different spots stand across, k(0, 3) = 1 and k(1, 2) = 27
    assert kernel_distance(a, b, paired=True) == pytest.approx(1 + 343 - (1 + 27))
    assert kernel_distance(b, b, paired=True) == 0.0
    wide = np.array([[1.0, 3.0], [0.0, 2.0]])  # divided by the number of features: k = ((0 + 6) / 2 + 1)^3
    assert polynomial_kernel(wide, wide)[0, 1] == pytest.approx(64.0)


def test_the_kernel_distance_is_unbiased_and_the_frechet_distance_is_not():
    from napari_stmdit.evaluation.spaces import kernel_distance

    rng = np.random.default_rng(0)
    sets = [(rng.normal(size=(12, 3)), rng.normal(size=(12, 3))) for _ in range(400)]
    kernel = np.array([kernel_distance(a, b) for a, b in sets])
    assert abs(kernel.mean()) < 3 * kernel.std() / 20 and (kernel < 0).any()
    assert min(frechet_distance(a, b) for a, b in sets) > 0.02


def test_the_kernel_distance_of_a_draw_is_that_of_different_spots_alone():
    from napari_stmdit.evaluation.spaces import kernel_distance_draws, polynomial_kernel

    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 5, 3))
    weights = np.array([[1.0, 1, 1, 1, 1], [2, 0, 1, 2, 0]])
    rows = np.repeat(np.arange(5), weights[1].astype(int))
    apart = rows[:, None] != rows[None]
    within, other = (polynomial_kernel(x, x)[np.ix_(rows, rows)][apart].mean() for x in (a, b))
    across = polynomial_kernel(a, b)[np.ix_(rows, rows)][apart].mean()
    assert kernel_distance_draws(a, b, weights)[1] == pytest.approx(within + other - 2 * across)


def test_sets_that_no_kernel_distance_has_are_refused():
    from napari_stmdit.evaluation.spaces import kernel_distance

    with pytest.raises(ValueError, match="at least 2 samples"):
        kernel_distance(np.zeros((1, 2)), np.zeros((4, 2)))
    with pytest.raises(ValueError, match="one row a spot"):
        kernel_distance(np.zeros((3, 2)), np.zeros((4, 2)), paired=True)
