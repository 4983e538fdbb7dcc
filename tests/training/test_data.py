from dataclasses import replace

import dask.array as da
import numpy as np
import pytest

from napari_stmdit.training.config import AugmentationSettings, ExpressionSettings
from napari_stmdit.training.data import (
    CropSampler,
    crop_weights,
    cut,
    load_training_section,
    neighbour_weights,
    turn,
    vary_stain,
)
from napari_stmdit.types import SlideImage


@pytest.fixture
def loaded(tiny_section):
    return load_training_section(tiny_section, 0.7)


def test_a_section_of_another_scale_is_resampled_with_its_spots(tiny_section, loaded):
    coarse = load_training_section(tiny_section, 1.4)
    assert coarse.pixels.shape == (430, 430, 3)
    np.testing.assert_allclose(coarse.yx, loaded.yx / 2)
    block = loaded.pixels[100:102, 200:202].mean(axis=(0, 1))
    np.testing.assert_allclose(coarse.pixels[50, 100], block, atol=1)


def test_pixels_in_a_store_are_the_same(tiny_section, loaded, tmp_path):
    for _ in range(2):  # made, then found
        np.testing.assert_array_equal(load_training_section(tiny_section, 0.7, tmp_path).pixels, loaded.pixels)


def test_pixels_of_another_scale_or_slide_are_not_taken_for_these(tiny_section, loaded, tmp_path):
    load_training_section(tiny_section, 0.7, tmp_path)
    assert load_training_section(tiny_section, 1.4, tmp_path).pixels.shape == (430, 430, 3)
    dark = da.from_array(np.zeros((*tiny_section.image.shape, 3), dtype=np.uint8))
    other = replace(tiny_section, image=SlideImage((dark,), 1.0, "another slide"))
    assert not load_training_section(other, 0.7, tmp_path).pixels.any()
    assert len(list(tmp_path.iterdir())) == 1  # those before made room


def test_a_crop_lies_where_it_says(loaded):
    sampler = CropSampler([loaded], AugmentationSettings(stain=0, geometry=False))
    rng = np.random.default_rng(0)
    for _ in range(20):
        crop = sampler.draw(rng, 64)
        y, x = (crop.centre - 32).astype(int)
        np.testing.assert_array_equal(crop.pixels, loaded.pixels[y : y + 64, x : x + 64])
        assert (
            np.abs(loaded.yx - crop.centre).max(axis=1).min() <= 103 / 0.7 + 33
        )  # a crop at the border is moved inside


def test_no_crop_is_of_excluded_tissue(tiny_section, loaded):
    from napari_stmdit.tissue.excluded import exclude

    gone = tiny_section.spots.ids[10:16].tolist()
    section = load_training_section(exclude(tiny_section, {"fold": gone}), 0.7)
    sampler = CropSampler([section], AugmentationSettings(stain=0, geometry=False))
    rng = np.random.default_rng(0)
    for _ in range(40):  # small ones, which are not moved inside
        nearest = np.square(loaded.yx - sampler.draw(rng, 8).centre).sum(axis=1).argmin()
        assert tiny_section.spots.ids[nearest] not in gone


def test_a_crop_at_the_border_is_moved_inside(loaded):
    pixels, centre = cut(loaded.pixels, np.array([3.0, 859.0]), 64)
    assert pixels.shape == (64, 64, 3)
    np.testing.assert_array_equal(centre, (32, 860 - 32))


def test_the_same_seed_draws_the_same_crops(loaded):
    sampler = CropSampler([loaded], AugmentationSettings())
    first, again = (sampler.batch(np.random.default_rng(5), 4, 32) for _ in range(2))
    np.testing.assert_array_equal(first, again)


def test_the_eight_symmetries_differ_and_keep_the_pixels():
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    turned = {turn(pixels, k).tobytes() for k in range(8)}
    assert len(turned) == 8
    assert all(sorted(turn(pixels, k).ravel()) == sorted(pixels.ravel()) for k in range(8))


def test_stain_changes_density_by_a_gain_and_keeps_white():
    pixels = np.full((8, 8, 3), 100, dtype=np.uint8)
    pixels[0] = 255
    varied = vary_stain(pixels, np.random.default_rng(1), 0.1)
    assert (varied[0] == 255).all()
    assert (varied[1:] != 100).any() and np.abs(varied[1:].astype(int) - 100).max() < 40


def test_neighbours_weigh_by_their_distance_in_microns():
    yx = np.array([[0.0, 0], [0, 100], [0, 400]])
    weights = neighbour_weights(yx, np.zeros(2), mpp=2.0, spread_um=200.0)
    assert weights.sum() == pytest.approx(1)
    assert weights[1] / weights[0] == pytest.approx(np.exp(-0.5))
    # the same tissue at another scale of the image has the same weights
    np.testing.assert_allclose(neighbour_weights(yx * 2, np.zeros(2), mpp=1.0, spread_um=200.0), weights)


def test_plain_crops_take_the_nearest_spot_alone(loaded):
    weights = crop_weights(loaded, loaded.yx[7] + 3, ExpressionSettings(plain_fraction=1), np.random.default_rng(0))
    assert weights[7] == 1 and weights.sum() == 1
    weights = crop_weights(loaded, loaded.yx[7] + 3, ExpressionSettings(plain_fraction=0), np.random.default_rng(0))
    assert weights.argmax() == 7 and weights[7] < 0.9
