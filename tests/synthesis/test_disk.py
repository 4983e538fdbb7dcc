import pytest

from napari_stmdit.synthesis import zarr_canvas


def test_ranges_there_and_back():
    for numbers in (set(), {0}, {3, 4, 5}, {0, 2, 3, 9}, set(range(500)) - {7, 8, 250}):
        assert zarr_canvas.from_ranges(zarr_canvas.to_ranges(numbers)) == numbers
    assert zarr_canvas.to_ranges({0, 1, 2, 7}) == "0-2,7"
    with pytest.raises(ValueError, match="invalid literal"):
        zarr_canvas.from_ranges("0-2;7")
