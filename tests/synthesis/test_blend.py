import numpy as np

from napari_stmdit.synthesis.canvas import MemoryCanvas, feather
from napari_stmdit.types import CanvasFrame, Patch, PatchResult


def patch(index: int, y: int, x: int, value: int, side: int = 64) -> PatchResult:
    box = (y, x, y + side, x + side)
    pixels = np.full((side, side, 3), value, np.uint8)
    return PatchResult(Patch(index, str(index), index, tuple(float(v) for v in box), box, 0), pixels)


def canvas() -> MemoryCanvas:
    return MemoryCanvas(CanvasFrame((64, 110), (0.0, 0.0), 1.0))


def test_one_patch_is_pasted_unchanged_and_the_rest_stays_clear():
    target = canvas()
    assert target.paste(patch(0, 0, 0, 77)) == (0, 0, 64, 64)
    assert (target.rgba[:, :64, :3] == 77).all()
    assert (target.rgba[:, :64, 3] == 255).all()
    assert (target.rgba[:, 64:] == 0).all()


def test_each_pixel_goes_to_the_nearer_centre_with_a_soft_seam():
    target = canvas()
    target.paste(patch(0, 0, 0, 0))
    target.paste(patch(1, 0, 40, 200))
    row = target.rgba[32, :, 0].astype(int)
    assert row[30] < 2  # its own centre lies at 32, the other's at 72
    assert row[74] > 198
    assert abs((row[51] + row[52]) / 2 - 100) <= 1  # half way between the centres
    assert (np.diff(row[:104]) >= 0).all()
    seam = np.flatnonzero((row > 20) & (row < 180))
    assert 2 <= len(seam) <= 16


def test_the_order_of_pasting_does_not_matter():
    results = [patch(0, 0, 0, 10), patch(1, 0, 20, 120), patch(2, 0, 46, 250)]
    one, other = canvas(), canvas()
    for result in results:
        one.paste(result)
    for result in reversed(results):
        other.paste(result)
    assert np.abs(one.rgba.astype(int) - other.rgba).max() <= 1


def test_a_tile_is_set_where_its_mask_is_and_clear_elsewhere():
    pixels = np.random.default_rng(0).integers(1, 255, (64, 64, 3), dtype=np.uint8)
    mask = np.zeros((64, 64), dtype=bool)
    mask[:20, 5:] = True
    made = MemoryCanvas(CanvasFrame((64, 128), (0.0, 0.0), 1.0))
    box = (0, 64, 64, 128)
    assert made.paste(PatchResult(Patch(0, "s", 0, (0, 0, 1, 1), box, 0), pixels, mask)) == box
    part = made.rgba[:64, 64:128]
    np.testing.assert_array_equal(part[mask], np.column_stack([pixels[mask], np.full(mask.sum(), 255)]))
    assert not part[~mask].any() and not made.rgba[:, :64].any()


def test_patches_over_the_borders_of_the_tiles_of_sums_blend_as_in_one_array():
    rng = np.random.default_rng(1)
    made = MemoryCanvas(CanvasFrame((600, 700), (0.0, 0.0), 1.0))
    total, weights = np.zeros((600, 700, 3)), np.zeros((600, 700, 1))
    for y, x in ((230, 240), (200, 210), (0, 450), (480, 500), (536, 636), (256, 512)):
        pixels = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        made.paste(PatchResult(Patch(0, "s", 0, (0, 0, 1, 1), (y, x, y + 64, x + 64), 0), pixels))
        weight = feather(64).astype(float)[..., None]
        total[y : y + 64, x : x + 64] += weight * pixels
        weights[y : y + 64, x : x + 64] += weight
    shown = weights[..., 0] > 0
    expected = total[shown] / weights[shown]
    assert np.abs(made.rgba[shown][:, :3] - expected).max() < 0.51
    np.testing.assert_array_equal(made.rgba[..., 3], 255 * shown)


def test_what_fits_in_memory_is_decided_by_the_area(monkeypatch):
    from napari_stmdit.synthesis import canvas as module

    monkeypatch.setattr(module, "MAX_PIXELS", 600)
    for shape, fits in (((20, 30), True), ((30, 20), True), ((20, 31), False), ((601, 1), False)):
        assert module.fits_in_memory(CanvasFrame(shape, (0.0, 0.0), 1.0)) is fits
