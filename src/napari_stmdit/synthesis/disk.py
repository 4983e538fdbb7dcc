"""Writing so that a power cut, a full disk or a share that hiccups never leaves half a file under its name."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from ..errors import StoreError

T = TypeVar("T")

_HICCUPS = {
    number
    for name in ("EIO", "ESTALE", "ETIMEDOUT", "EAGAIN", "EHOSTDOWN", "ENOTCONN", "EBUSY", "EINTR", "EREMOTEIO")
    if (number := getattr(errno, name, None)) is not None
}
WAITS_S = (0.2, 1.0, 3.0)
"""Pauses before a write that failed by a hiccup is tried again."""


def sync(path: Path) -> None:
    """Have the system put a file or the entries of a folder on the disk; what is not there is passed over."""
    with suppress(FileNotFoundError):
        handle = os.open(path, os.O_RDONLY)
        try:
            with suppress(OSError):  # some file systems cannot sync a folder
                os.fsync(handle)
        finally:
            os.close(handle)


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file in one step: whoever looks sees the old content or the new, also after a power cut."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise
    sync(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write JSON in one step."""
    data = json.dumps(value, indent=1, ensure_ascii=False).encode()
    write_atomically(path, lambda file: file.write(data))


def patiently(action: Callable[[], T]) -> T:
    """Do something with files, and again after a pause where a network share hiccups."""
    for pause in WAITS_S:
        try:
            return action()
        except OSError as error:
            if error.errno not in _HICCUPS:
                raise
            time.sleep(pause)
    return action()


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Turn a failed write into a message that says what to do."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"{reason(error, folder)}; then run again with --resume, what is finished is kept") from error


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


# ------------------------------------------------------------------------------------------------- sets of numbers


def to_ranges(numbers: Iterable[int]) -> str:
    """Write a set of numbers shortly: ``0-3,7``."""
    parts: list[str] = []
    ordered = sorted(set(numbers))
    start = 0
    for place, number in enumerate(ordered):
        if place + 1 == len(ordered) or ordered[place + 1] != number + 1:
            first = ordered[start]
            parts.append(str(number) if first == number else f"{first}-{number}")
            start = place + 1
    return ",".join(parts)


def from_ranges(text: str) -> set[int]:
    """Read what `to_ranges` wrote; raises ValueError for anything else."""
    numbers: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        numbers.update(range(int(first), int(last or first) + 1))
    return numbers
