"""Ownership of outputs: only a free place, or an unchanged earlier product of the same work, may be replaced.

A work signs its product: the hidden file ``.made_by.json`` names the work and the SHA-256 of every file. Hidden files do not enter a
checkpoint's hash.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import StmditError, StoreError
from ..files import BadFile, read_json
from ..text import some_of
from .atomic import bring_to_disk, drafting, sync, write_json

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
            self.sign(draft, {name: digest(draft / name) for name, is_folder in _entries(draft) if not is_folder})
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


def digest(file: Path) -> str:
    """Return the SHA-256 of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


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
    for top, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(top, name)
            yield path.relative_to(folder).as_posix(), path.is_dir() and not path.is_symlink()


def _fits(file: Path, expected: str | None) -> bool:
    return expected is not None and file.is_file() and not file.is_symlink() and digest(file) == expected
