import errno
import os

import pytest

from napari_stmdit.errors import StoreError
from napari_stmdit.synthesis import disk


def test_ranges_there_and_back():
    for numbers in (set(), {0}, {3, 4, 5}, {0, 2, 3, 9}, set(range(500)) - {7, 8, 250}):
        assert disk.from_ranges(disk.to_ranges(numbers)) == numbers
    assert disk.to_ranges({0, 1, 2, 7}) == "0-2,7"
    with pytest.raises(ValueError, match="invalid literal"):
        disk.from_ranges("0-2;7")


def test_a_write_that_fails_leaves_the_old_content_and_no_rubbish(tmp_path):
    path = tmp_path / "a.json"
    disk.write_json(path, {"a": 1})

    def fail(file):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        disk.write_atomically(path, fail)
    assert path.read_text() == '{\n "a": 1\n}'
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_share_that_hiccups_is_tried_again(monkeypatch):
    monkeypatch.setattr(disk, "WAITS_S", (0.0, 0.0))
    tries = []

    def flaky():
        tries.append(1)
        if len(tries) < 3:
            raise OSError(errno.ESTALE, "Stale file handle")
        return "done"

    assert disk.patiently(flaky) == "done"
    assert len(tries) == 3
    tries.clear()
    with pytest.raises(PermissionError):
        disk.patiently(lambda: tries.append(1) or (_ for _ in ()).throw(PermissionError(errno.EACCES, "no")))
    assert len(tries) == 1


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "is full: make room"),
        (errno.EROFS, "may no longer be written to"),
        (errno.ENOENT, "was removed or moved"),
        (errno.EIO, "disk or share"),
    ],
)
def test_each_fault_says_what_to_do(number, said, tmp_path):
    with pytest.raises(StoreError, match=said) as error, disk.explained(tmp_path):
        raise OSError(number, os.strerror(number))
    assert "--resume" in str(error.value)
    assert str(tmp_path) in str(error.value)
