"""Atomic writes, locks and drafts, with retries for faults that pass; and ownership of outputs: what may be replaced."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from .. import files
from ..errors import StmditError, StoreError
from ..files import BadFile, read_json
from ..text import some_of
from .fingerprint import of_file

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


def take_lock(folder: Path) -> BaseFileLock:
    """Hold a folder until the lock is released or the process ends.

    Raises
    ------
    StoreError
        Another process holds it, or it cannot be written to.
    """
    with explained(folder):
        lock = hold(folder / LOCK)
    if lock is None:
        raise StoreError(f"another process is at work in {folder}; wait for it, or stop it")
    return lock


@contextmanager
def holding(folder: Path) -> Iterator[None]:
    """Hold a folder, made where it is not there, inside this context; errors as for `take_lock`."""
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
    lock = take_lock(folder)
    try:
        yield
    finally:
        lock.release()


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

    A folder never replaces one that holds something; see `place_folder`.

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


@contextmanager
def new_file(path: Path, error: type[StmditError] = StoreError) -> Iterator[Path]:
    """Yield the draft of a file that is not there yet; raises ``error``, which says what to do, where it is or cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, new=True) as draft:
            yield draft
    except FileExistsError:
        raise error(f"{path} is already there; nothing is overwritten, give another name") from None
    except OSError as fault:
        raise error(f"{path} cannot be written: {fault}") from fault


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file atomically: readers find the old content or the new, also after a power cut."""
    with replacing(path) as draft, draft.open("wb") as file:
        write(file)


def write_text(path: Path, text: str, *, new: bool = False) -> None:
    """Write a text atomically; ``new`` as for `replacing`."""
    with replacing(path, new=new) as draft:
        draft.write_bytes(text.encode("utf-8"))


def write_json(path: Path, value: Any, *, sort_keys: bool = False) -> None:
    """Write JSON atomically."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, sort_keys=sort_keys) + "\n")


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


MARK = ".made_by.json"
_SHOWN = 3


def check_free(place: Path, remedy: str, error: type[StmditError] = StoreError) -> None:
    """Refuse a place where something is; an empty folder is free.

    Parameters
    ----------
    place
        A file or folder that is to be written.
    remedy
        What to do, such as "give another --output".
    error
        What to raise.
    """
    found = _what_is_there(place)
    if found is not None:
        raise error(f"{place} {found}; nothing is overwritten, {remedy}")


@dataclass(frozen=True)
class Work:
    """Work whose product may be replaced by its own newer one.

    Attributes
    ----------
    identity
        Unique id of the work; None where it has made nothing yet.
    name
        Name in a sentence, such as "this training".
    remedy
        What the user can do where something else is in the way.
    """

    identity: str | None
    name: str
    remedy: str

    def check(self, place: Path) -> None:
        """Refuse a folder that is neither free nor, file by file, this work's own.

        Raises
        ------
        StoreError
            Says what is there and what to do.
        """
        found = _what_is_there(place)
        if found is None:
            return
        if place.is_symlink() or not place.is_dir():
            raise self._refusal(place, found)
        files = self._signed(place)
        if files is None:
            raise self._refusal(place, f"{found}, not made by {self.name}")
        folders = {str(parent) for name in files for parent in Path(name).parents}
        changed = [
            name
            for name, is_folder in _entries(place)
            if name != MARK and (name not in folders if is_folder else not _fits(place / name, files.get(name)))
        ]
        if changed:
            raise self._refusal(
                place, f"was made by {self.name}, but {some_of(changed, _SHOWN)} in it was added or changed since"
            )

    def check_files(self, folder: Path, names: Sequence[str]) -> None:
        """Refuse to replace files of a folder that this work did not make.

        Raises
        ------
        StoreError
            Says what is there and what to do.
        """
        there = [name for name in names if os.path.lexists(folder / name)]
        if not there:
            return
        files = self._signed(folder)
        if files is None:
            raise self._refusal(folder, f"holds {some_of(there, _SHOWN)}, not made by {self.name}")
        changed = [name for name in there if not _fits(folder / name, files.get(name))]
        if changed:
            raise self._refusal(folder, f"holds {some_of(changed, _SHOWN)}, changed since {self.name} made it")

    def sign(self, folder: Path, digests: dict[str, str]) -> None:
        """Record in a folder the names and SHA-256 of this work's files."""
        write_json(folder / MARK, {"work": self.identity, "files": digests})

    @contextmanager
    def replacing(self, place: Path) -> Iterator[Path]:
        """Yield a draft folder that replaces this work's earlier product, or takes a free place.

        Raises
        ------
        StoreError
            The place is taken by something else, which stays as it is.
        """
        self.check(place)
        with drafting(place) as draft:
            yield draft
            self.sign(draft, {name: of_file(draft / name) for name, is_folder in _entries(draft) if not is_folder})
            bring_to_disk(draft)
            put_in_place(draft, place, lambda old: self._check_moved(old, place))

    def _check_moved(self, old: Path, place: Path) -> None:
        try:
            self.check(old)
        except StoreError as error:
            raise StoreError(str(error).replace(str(old), str(place))) from None

    def _signed(self, folder: Path) -> dict[str, str] | None:
        """Return the files that the work made in a folder; None where it made none."""
        try:
            mark: Any = read_json(folder / MARK)
            ours = self.identity is not None and mark["work"] == self.identity
            return {str(name): str(value) for name, value in mark["files"].items()} if ours else None
        except (BadFile, KeyError, TypeError, AttributeError):
            return None

    def _refusal(self, place: Path, found: str) -> StoreError:
        return StoreError(f"{place} {found}; nothing is overwritten, {self.remedy}")


def put_in_place(draft: Path, place: Path, check: Callable[[Path], None] = lambda _: None) -> None:
    """Move a folder to its place; an earlier one is moved aside meanwhile, then removed.

    Parameters
    ----------
    draft, place
        On one disk.
    check
        Called with the folder that was moved aside; where it raises, that one is put back.
    """
    old = place.with_name(f"{place.name}.replaced-{uuid.uuid4().hex[:8]}")
    try:
        os.rename(place, old)
    except FileNotFoundError:
        os.rename(draft, place)
        sync(place.parent)
        return
    try:
        check(old)
        os.rename(draft, place)
    except BaseException:
        os.rename(old, place)
        raise
    sync(place.parent)
    shutil.rmtree(old, ignore_errors=True)


def _what_is_there(place: Path) -> str | None:
    """Return a description of what is in a place; None where it is free or an empty folder."""
    if place.is_symlink():
        return f"is a link to {os.readlink(place)}"
    if not place.is_dir():
        return "is there already" if place.exists() else None
    names = sorted(entry.name for entry in os.scandir(place))
    return f"is a folder that holds {some_of(names, _SHOWN)}" if names else None


def _entries(folder: Path) -> Iterator[tuple[str, bool]]:
    """Yield the name of everything below a folder, as POSIX paths, and whether it is a folder; a link is none."""
    for top, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = Path(top, name)
            yield path.relative_to(folder).as_posix(), path.is_dir() and not path.is_symlink()


def _fits(file: Path, expected: str | None) -> bool:
    return expected is not None and file.is_file() and not file.is_symlink() and of_file(file) == expected
