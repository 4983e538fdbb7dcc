"""Atomic writes, locks and drafts, with retries for faults that pass and clear errors for others."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from .. import files
from ..errors import StoreError

if TYPE_CHECKING:
    from filelock import BaseFileLock


T = TypeVar("T")

_HICCUPS = {
    number
    for name in ("EIO", "ESTALE", "ETIMEDOUT", "EAGAIN", "EHOSTDOWN", "ENOTCONN", "EBUSY", "EINTR", "EREMOTEIO")
    if (number := getattr(errno, name, None)) is not None
}
WAITS_S = (0.2, 1.0, 3.0)
"""Pauses, in seconds, before a failed write is tried again."""


def patiently(action: Callable[[], T]) -> T:
    """Call a file operation, and retry after a pause where a network share fails briefly."""
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
    """Return a message on why a folder cannot be written, and what to do."""
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return f"the disk with {folder} is full: make room"
        case errno.EROFS | errno.EACCES | errno.EPERM:
            return f"{folder} may no longer be written to ({error.strerror}): allow it"
        case errno.ENOENT | errno.ENOTDIR:
            return f"{folder} was removed or moved while it was written to: put it back"
        case _:
            return f"{folder} cannot be written ({error}): see that the disk or share is there"


# Locks between processes: one holds a folder or a draft until it lets go or ends.


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


# Writing so that a power cut, a full disk or a kill never leaves half a file or folder under its name.


ENDING = ".part"
_OF_OURS = re.compile(r"\..+\.[0-9a-f]{1,12}\.part(\.lock)?")
"""Pattern of draft names, of this version and of earlier ones (process number or 8 hex digits)."""
_LOST = {errno.ENOSPC, errno.EDQUOT, errno.EIO}
_STALE_S = 86_400.0


def sync(path: Path) -> None:
    """Flush a file or the entries of a folder to the disk; a missing one is skipped.

    Raises
    ------
    OSError
        The content of a file could not be written: the disk is full or faulty.
    """
    is_file = path.is_file()
    with suppress(FileNotFoundError, PermissionError):  # Windows opens no folder
        handle = os.open(path, os.O_RDWR if is_file else os.O_RDONLY)  # Windows brings only what is open for writing
        try:
            os.fsync(handle)
        except OSError as error:  # some file systems cannot sync at all
            if is_file and error.errno in _LOST:
                raise
        finally:
            os.close(handle)


@contextmanager
def drafting(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside a path; what is there at the end is removed."""
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}{ENDING}")
    lock_file = Path(f"{draft}.lock")
    lock = None
    if path.parent.is_dir():  # the lock would make it
        with suppress(OSError):  # no locks on this disk: then the age of a draft tells that it was left
            lock = hold(lock_file)
    try:
        yield draft
    finally:
        _remove(draft)
        if lock is not None:
            with suppress(OSError):  # Windows removes no file that is open
                lock_file.unlink()
            lock.release()
        with suppress(OSError):
            lock_file.unlink(missing_ok=True)


@contextmanager
def replacing(path: Path, *, new: bool = False, durable: bool = True) -> Iterator[Path]:
    """Yield a draft that replaces the file at the end, or takes a free place.

    A folder never replaces one that holds something; see `napari_stmdit.storage.owned`.

    Parameters
    ----------
    path
        The file or folder to write; its parent must be there.
    new
        Raise FileExistsError where a file is there at the end.
    durable
        Wait until it is on the disk; False for files that can be computed again and carry their hash.

    Raises
    ------
    OSError
        It cannot be written; the old content stays, and nothing is left behind.
    """
    with drafting(path) as draft:
        yield draft
        if durable:
            bring_to_disk(draft)
        if draft.is_dir():
            place_folder(draft, path, durable=durable)
            return
        if new:
            _name_new(draft, path)
        else:
            os.replace(draft, path)
        if durable:
            sync(path.parent)


def place_folder(draft: Path, path: Path, *, durable: bool = True) -> None:
    """Give a finished folder its name, atomically; it may replace an empty folder, anything else raises OSError."""
    with suppress(FileNotFoundError, NotADirectoryError):
        path.rmdir()  # it is empty, or this fails
    os.rename(draft, path)
    if durable:
        sync(path.parent)


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file atomically: readers find the old content or the new, also after a power cut."""
    with replacing(path) as draft, draft.open("wb") as file:
        write(file)


def write_text(path: Path, text: str, *, new: bool = False) -> None:
    """Write a text atomically; ``new`` as for `replacing`."""
    with replacing(path, new=new) as draft:
        draft.write_bytes(text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False))


def link_or_copy(file: Path, place: Path) -> None:
    """Give a file a second name, or copy it where the disk has no links: slides are large."""
    try:
        os.link(file, place)
    except OSError:
        shutil.copyfile(file, place)


def read_object(path: Path) -> dict[str, Any]:
    """Read the JSON object in a file of a folder of ours; raises StoreError where it is damaged."""
    try:
        found = files.read_json(path)
    except files.BadFile as error:
        raise StoreError(f"{path} cannot be read ({error}); remove {path.parent} to start anew") from error
    if not isinstance(found, dict):
        raise StoreError(f"{path} is damaged; remove {path.parent} to start anew")
    return found


def bring_to_disk(path: Path) -> None:
    """Flush a file, or every file of a folder, to the disk."""
    if path.is_dir():
        for file in path.rglob("*"):
            sync(file)
    sync(path)


def remove_left_drafts(folder: Path, name: str | None = None) -> None:
    """Remove drafts left in a folder by dead processes; one being written stays.

    Parameters
    ----------
    folder
        Searched without its sub-folders.
    name
        Only drafts of this file or folder; None: all.
    """
    for draft in folder.iterdir():
        if not draft.name.endswith(ENDING) or not _OF_OURS.fullmatch(draft.name):
            continue
        if name is not None and draft.name[1:].rsplit(".", 2)[0] != name:
            continue
        lock_file = Path(f"{draft}.lock")
        try:
            if not lock_file.exists():  # of an earlier version, or of a disk without locks
                if time.time() - draft.stat().st_mtime > _STALE_S:
                    _remove(draft)
            elif (lock := hold(lock_file)) is not None:
                _remove(draft)
                lock.release()
                lock_file.unlink()
        except OSError:
            continue  # another process was faster, or it is not ours to remove


def remove_drafts_in(folder: Path) -> None:
    """Remove every draft in a folder, zarr's too; only for the process that holds the folder."""
    for pattern in (f".*{ENDING}", f".*{ENDING}.lock"):
        for draft in folder.rglob(pattern):
            if _OF_OURS.fullmatch(draft.name):
                _remove(draft)
    for part in folder.rglob("*.partial"):
        _remove(part)


def _remove(path: Path) -> None:
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _name_new(draft: Path, path: Path) -> None:
    """Give a file a free name, atomically where the disk can link."""
    try:
        os.link(draft, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        os.rename(draft, path)
