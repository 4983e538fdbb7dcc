import numpy as np

from napari_stmdit.synthesis.canvas import MemoryCanvas
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
