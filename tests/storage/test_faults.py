import errno
import os

import pytest

from napari_stmdit.errors import StoreError
from napari_stmdit.storage import atomic


def test_a_share_that_fails_for_a_moment_is_tried_again(monkeypatch):
    monkeypatch.setattr(atomic, "WAITS_S", (0.0, 0.0))
    tries = []

    def flaky():
        tries.append(1)
        if len(tries) < 3:
            raise OSError(errno.ESTALE, "Stale file handle")
        return "done"

    assert atomic.patiently(flaky) == "done"
    assert len(tries) == 3
    tries.clear()
    with pytest.raises(PermissionError):
        atomic.patiently(lambda: tries.append(1) or (_ for _ in ()).throw(PermissionError(errno.EACCES, "no")))
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
    with pytest.raises(StoreError, match=said) as error, atomic.explained(tmp_path):
        raise OSError(number, os.strerror(number))
    assert "--resume" in str(error.value)
    assert str(tmp_path) in str(error.value)
