"""Locks between processes: one holds a folder or a draft until it lets go or ends."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import StoreError
from .faults import explained

if TYPE_CHECKING:
    from filelock import BaseFileLock

LOCK = "lock"
"""Name of the lock file in a folder that one process at a time works in."""


def hold(file: Path, wait_s: float = 0.0) -> BaseFileLock | None:
    """Lock a file, which is made where it is not there; None where another process holds it.

    Raises
    ------
    OSError
        The file cannot be made, or its disk knows no locks.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(file, timeout=wait_s, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        return None
    except NotImplementedError as error:  # what filelock makes of a file system without locks
        raise OSError(str(error)) from None
    return lock


def take_lock(folder: Path, name: str = LOCK, wait_s: float = 0.0) -> BaseFileLock:
    """Hold a folder until the lock is released or the process ends.

    Raises
    ------
    StoreError
        Another process holds it, or it cannot be written to.
    """
    with explained(folder):
        lock = hold(folder / name, wait_s)
    if lock is None:
        raise StoreError(f"another process is at work in {folder}; wait for it, or stop it")
    return lock
