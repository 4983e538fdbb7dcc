import pytest

from napari_stmdit.synthesis import disk


def test_ranges_there_and_back():
    for numbers in (set(), {0}, {3, 4, 5}, {0, 2, 3, 9}, set(range(500)) - {7, 8, 250}):
        assert disk.from_ranges(disk.to_ranges(numbers)) == numbers
    assert disk.to_ranges({0, 1, 2, 7}) == "0-2,7"
    with pytest.raises(ValueError, match="invalid literal"):
        disk.from_ranges("0-2;7")
