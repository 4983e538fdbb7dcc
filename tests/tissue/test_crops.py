"""Patches lie where they should, to a twentieth of a pixel, at every scale; and only what they need is read."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
from dask.callbacks import Callback
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_stmdit.tissue.crops import area_weights, background_colour, level_factors, read_patches
from napari_stmdit.types import SlideImage

PATCH_MPP = 0.688
MPPS = (0.25, 0.5, 0.69, 0.724)
PERIOD = 37.3
"""Of the waves, in patch pixels."""


def slide_of(array: np.ndarray, halvings: int = 3, pixel_size: float = 1.0) -> SlideImage:
    """A slide with levels by area mean, as the package makes them (the last row and column may be partly filled)."""
    levels = [array]
    for _ in range(halvings):
        a = levels[-1]
        padded = np.pad(a, ((0, a.shape[0] % 2), (0, a.shape[1] % 2), (0, 0)), mode="edge").astype(float)
        levels.append(
            np.rint(padded.reshape(-(-a.shape[0] // 2), 2, -(-a.shape[1] // 2), 2, 3).mean((1, 3))).astype(np.uint8)
        )
    return SlideImage(tuple(da.from_array(level, chunks=256) for level in levels), pixel_size, "made")


def waves(shape: tuple[int, int], mpp: float) -> np.ndarray:
    """A wave along y in red, along x in green, with the same period in microns whatever the scale."""
    period = PERIOD * PATCH_MPP / mpp
    y, x = np.arange(shape[0])[:, None] + 0.5, np.arange(shape[1])[None, :] + 0.5
    red = 128 + 100 * np.sin(2 * np.pi * y / period) + 0 * x
    green = 128 + 100 * np.sin(2 * np.pi * x / period) + 0 * y
    return np.rint(np.stack([red, green, np.full(shape, 77.0)], axis=-1)).astype(np.uint8)


def phase_shift(line: np.ndarray, start: float, period: float) -> float:
    """Shift of a sampled wave against where it should lie, in its own pixels."""
    at = start + np.arange(len(line)) + 0.5
    basis = np.stack([np.sin(2 * np.pi * at / period), np.cos(2 * np.pi * at / period), np.ones(len(at))], axis=1)
    sine, cosine, _ = np.linalg.lstsq(basis, line, rcond=None)[0]
    return float(np.arctan2(cosine, sine) / (2 * np.pi) * period)


@pytest.mark.parametrize("mpp", MPPS)
@pytest.mark.parametrize("corner", [(100.0, 150.0), (101.37, 150.81), (33.5, 40.25)])
def test_a_wave_is_not_shifted(mpp, corner):
    image = slide_of(waves((900, 907), mpp))
    px, ratio = 128, PATCH_MPP / mpp
    box = (corner[0], corner[1], corner[0] + px * ratio, corner[1] + px * ratio)
    patch = read_patches(image, [box], px)[0].astype(float)
    assert abs(phase_shift(patch[..., 0].mean(axis=1), corner[0] / ratio, PERIOD)) < 0.05
    assert abs(phase_shift(patch[..., 1].mean(axis=0), corner[1] / ratio, PERIOD)) < 0.05
    assert patch[..., 0].std() > 60  # nor flattened
    assert np.abs(patch[..., 2] - 77).max() <= 1


def test_the_measure_of_a_shift_finds_one():
    at = np.arange(128) + 0.5
    assert phase_shift(np.sin(2 * np.pi * (at + 0.1) / PERIOD), 0, PERIOD) == pytest.approx(0.1, abs=1e-6)


@pytest.mark.parametrize("mpp", MPPS)
def test_a_ramp_has_the_right_value_everywhere(mpp):
    px, ratio, side = 24, PATCH_MPP / mpp, 126
    ramp = np.repeat(np.repeat(2 * np.arange(side)[:, None, None], side, 1), 3, 2).astype(np.uint8)
    patch = read_patches(slide_of(ramp, 2), [(20.3, 30.6, 20.3 + px * ratio, 30.6 + px * ratio)], px)[0]
    centres = 20.3 + (np.arange(px) + 0.5) * ratio
    expected = 2 * centres - 1  # pixel i has the value 2 i and its centre at i + 0.5
    assert np.abs(patch[:, 5, 0] - expected).max() < 0.5 + 0.01  # what rounding to whole grey levels costs


def test_equal_scale_on_whole_pixels_gives_the_very_pixels():
    noise = np.random.default_rng(0).integers(0, 256, (300, 310, 3), dtype=np.uint8)
    patch = read_patches(slide_of(noise), [(17.0, 33.0, 81.0, 97.0)], 64)
    np.testing.assert_array_equal(patch[0], noise[17:81, 33:97])


def test_whole_blocks_give_exact_means():
    noise = np.random.default_rng(1).integers(0, 256, (240, 240, 3), dtype=np.uint8)
    patch = read_patches(slide_of(noise, 0), [(30.0, 60.0, 126.0, 156.0)], 32)[0]
    mean = noise[30:126, 60:156].reshape(32, 3, 32, 3, 3).mean((1, 3))
    np.testing.assert_array_equal(patch, np.rint(mean))


def test_brightness_is_kept_when_enlarging():
    noise = np.random.default_rng(2).integers(60, 190, (100, 100, 3), dtype=np.uint8)
    patch = read_patches(slide_of(noise, 0), [(20.0, 20.0, 52.0, 52.0)], 128)[0]
    np.testing.assert_allclose(patch.mean((0, 1)), noise[20:52, 20:52].mean((0, 1)), atol=0.2)


@pytest.mark.parametrize("width", [0.3, 0.95, 1.0, 1.376, 2.752, 7.1])
def test_weights_add_to_one_and_keep_straight_lines(width):
    edges = 1.3 + np.arange(33) * width
    weights = area_weights(edges, int(np.ceil(edges[-1])) + 1)
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-5)
    centres = 1.3 + (np.arange(32) + 0.5) * width
    np.testing.assert_allclose(weights @ (np.arange(weights.shape[1]) + 0.5), centres, atol=1e-4)


def marked(factors: tuple[int, ...]) -> SlideImage:
    """A slide whose level number is its colour."""
    sizes = [(1024 // f, 1024 // f, 3) for f in factors]
    return SlideImage(tuple(da.full(s, 10 * i, dtype=np.uint8, chunks=128) for i, s in enumerate(sizes)), 1.0, "made")


@pytest.mark.parametrize(("ratio", "level"), [(0.5, 0), (1.0, 0), (1.99, 0), (2.0, 1), (2.75, 1), (4.0, 2), (30.0, 3)])
def test_the_coarsest_level_that_is_fine_enough_is_read(ratio, level):
    patch = read_patches(marked((1, 2, 4, 8)), [(0.0, 0.0, 16 * ratio, 16 * ratio)], 16)
    assert patch[0, 8, 8, 0] == 10 * level


def test_only_the_chunks_under_a_box_are_read():
    read = []

    def load(block_id):
        read.append(block_id)
        return np.zeros((128, 128, 3), np.uint8)

    import dask

    levels = da.map_blocks(
        lambda block_info: load(block_info[None]["chunk-location"][:2]),
        chunks=((128,) * 8, (128,) * 8, (3,)),
        dtype=np.uint8,
        meta=np.empty((0, 0, 0), np.uint8),
    )
    with dask.config.set(scheduler="synchronous"):
        read_patches(SlideImage((levels,), 1.0, "made"), [(140.0, 270.0, 200.0, 330.0)], 60)
    assert set(read) == {(1, 2)}


def test_outside_the_slide_is_the_colour_of_its_glass():
    array = np.full((200, 200, 3), (230, 217, 235), dtype=np.uint8)
    array[50:150, 50:150] = (150, 60, 140)
    image = slide_of(array)
    assert background_colour(image) == (230, 217, 235)
    patches = read_patches(
        image, [(-20.0, -20.0, 12.0, 12.0), (500.0, 500.0, 532.0, 532.0), (190.5, 60.0, 222.5, 92.0)], 32
    )
    for patch in patches:
        np.testing.assert_array_equal(patch, np.broadcast_to((230, 217, 235), (32, 32, 3)))


def test_a_box_over_the_border_keeps_its_place():
    array = np.zeros((100, 100, 3), dtype=np.uint8)
    array[0:4, :, 0] = 200  # no glass at all: outside is white
    patch = read_patches(slide_of(array, 0), [(-8.0, 20.0, 24.0, 52.0)], 32)[0]
    assert patch[:8, 5].tolist() == [[255, 255, 255]] * 8
    assert patch[8:12, 5, 0].tolist() == [200] * 4
    assert patch[12:, 5, 0].max() == 0


@settings(max_examples=120, deadline=None)
@given(
    mpp=st.floats(0.2, 1.0),
    patch_mpp=st.sampled_from([0.25, 0.5, 0.688, 1.0]),
    px=st.sampled_from([16, 64]),
    pixel_size=st.sampled_from([1.0, 1.0000001, 5.878]),
    border=st.one_of(st.integers(-3, 90), st.floats(-40, 140)),
    ulps=st.integers(-2, 2),
)
def test_a_patch_has_its_size_and_the_slides_colour_at_any_scale_and_place(
    mpp, patch_mpp, px, pixel_size, border, ulps
):
    """Borders that are whole numbers but for the last bit are where two roundings of one size differ."""
    array = np.full((64, 80, 3), (230, 217, 235), dtype=np.uint8)  # glass all over: outside is of the same colour
    image = slide_of(array, 2, pixel_size)
    side = px * patch_mpp / mpp
    end = (border + ulps * float(np.spacing(float(border)))) * pixel_size
    boxes = [(end - side, end - side, end, end), (end, end, end + side, end + side)]
    patches = read_patches(image, boxes, px)
    np.testing.assert_array_equal(patches, np.broadcast_to((230, 217, 235), (2, px, px, 3)))


@pytest.mark.parametrize("patch_mpp", [0.25, 0.5, 0.688, 1.0])
def test_no_scale_and_offset_from_the_edge_ends_in_an_error(patch_mpp):
    image = SlideImage((da.full((64, 64, 3), 90, dtype=np.uint8, chunks=64),), 1.0, "made")
    for mpp in np.arange(0.2, 1.0, 0.02):
        half = 16 * patch_mpp / mpp / 2
        centres = [k - half for k in range(1, 12)] + [46 / mpp, half / 2, half]
        boxes = [(c - half, c - half, c + half, c + half) for c in centres]
        assert read_patches(image, boxes, 16).shape == (len(boxes), 16, 16, 3)


def test_a_coarse_image_is_read_at_its_own_place():
    array = waves((400, 400), 5 * PATCH_MPP)
    image = slide_of(array, 1, pixel_size=5.0)
    patch = read_patches(image, [(500.0, 250.0, 820.0, 570.0)], 64)[0]
    np.testing.assert_array_equal(patch, array[100:164, 50:114])


def test_levels_of_odd_sizes_are_not_stretched():
    sizes = [(1717, 950), (858, 475), (429, 237), (214, 118)]  # as a reader that drops the last row writes them
    image = SlideImage(tuple(da.zeros((*s, 3), dtype=np.uint8) for s in sizes), 1.0, "made")
    assert level_factors(image) == [(1, 1), (2, 2), (4, 4), (8, 8)]
    up = [(9936, 9270), (4968, 4635), (2484, 2318), (1242, 1159)]  # as one that completes it does
    image = SlideImage(tuple(da.zeros((*s, 3), dtype=np.uint8) for s in up), 1.0, "made")
    assert level_factors(image) == [(1, 1), (2, 2), (4, 4), (8, 8)]
    odd = SlideImage((da.zeros((1000, 1000, 3)), da.zeros((600, 600, 3))), 1.0, "made")
    assert level_factors(odd)[1] == pytest.approx((1000 / 600, 1000 / 600))


def test_no_boxes_give_no_patches():
    assert read_patches(marked((1,)), [], 16).shape == (0, 16, 16, 3)


def test_a_cache_that_another_thread_turned_on_for_dask_breaks_no_reading():
    """napari does so while it draws a lazy layer; its cache then misses tasks of other threads."""
    image = slide_of(waves((600, 600), 0.5))
    box = (20.0, 30.0, 320.0, 330.0)
    expected = read_patches(image, [box], 64)

    def lost(key, *_):
        raise KeyError(key)

    with Callback(pretask=lost, posttask=lost):
        np.testing.assert_array_equal(read_patches(image, [box], 64), expected)
        background_colour(image)
