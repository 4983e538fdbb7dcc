"""What a disk or a network share does wrong: try again where it passes, else say what to do."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from ..errors import StoreError

T = TypeVar("T")

_HICCUPS = {
    number
    for name in ("EIO", "ESTALE", "ETIMEDOUT", "EAGAIN", "EHOSTDOWN", "ENOTCONN", "EBUSY", "EINTR", "EREMOTEIO")
    if (number := getattr(errno, name, None)) is not None
}
WAITS_S = (0.2, 1.0, 3.0)
"""Pauses before a write that failed by a passing fault is tried again."""


def patiently(action: Callable[[], T]) -> T:
    """Do something with files, and again after a pause where a network share fails for a moment."""
    for pause in WAITS_S:
        try:
            return action()
        except OSError as error:
            if error.errno not in _HICCUPS:
                raise
            time.sleep(pause)
    return action()


@contextmanager
def explained(folder: Path, then: str = "run again with --resume, what is finished is kept") -> Iterator[None]:
    """Turn a failed write into a message that says what to do."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"{reason(error, folder)}; then {then}") from error


def reason(error: OSError, folder: Path) -> str:
    """Say what is wrong with a folder that cannot be written, and what to do about it."""
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return f"the disk with {folder} is full: make room"
        case errno.EROFS | errno.EACCES | errno.EPERM:
            return f"{folder} may no longer be written to ({error.strerror}): allow it"
        case errno.ENOENT | errno.ENOTDIR:
            return f"{folder} was removed or moved while it was written to: put it back"
        case _:
            return f"{folder} cannot be written ({error}): see that the disk or share is there"
