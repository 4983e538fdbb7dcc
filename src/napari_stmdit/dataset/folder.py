"""Folder of a data set while it is written: only whole files under lasting names, and none written twice."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import StoreError
from ..files import BadFile, user_path
from ..storage.atomic import (
    LOCK,
    bring_to_disk,
    explained,
    place_folder,
    read_object,
    remove_drafts_in,
    remove_left_drafts,
    replacing,
    sync,
    take_lock,
    write_json,
)
from ..storage.owned import digest
from ..synthesis.identity import differences
from ..synthesis.session import unfinished_folder
from ..text import some_of

MANIFEST = "manifest.json"
WORK = ".work"
CONTENT = "content"
"""Manifest key for the hashes of counts and of the slide's crops; manifests of earlier versions lack it."""
FORMAT = 1
AGAIN = "export again, what is finished is kept"


class DatasetFolder:
    """Unfinished folder of a data set, held by one process at a time.

    It grows at ``path`` and moves to ``out``. ``shards`` are manifest entries of finished shards, by number; ``notes`` tell of a resumed one.
    """

    def __init__(self, out: Path, path: Path, manifest: dict[str, Any], lock: Any) -> None:
        self.out, self.path = out, path
        self.shards: dict[int, dict[str, Any]] = {}
        self.notes: list[str] = []
        self._manifest, self._lock = manifest, lock

    @property
    def rows(self) -> int:
        """Number of rows in finished shards."""
        return sum(stop - start for start, stop in (entry["rows"] for entry in self.shards.values()))

    @classmethod
    def open(cls, out: Path, identity: Mapping[str, Any]) -> DatasetFolder:
        """Make the folder of a data set, or resume it.

        Raises StoreError where it is of another data set (saying what differs), another process holds it, or it cannot be written.
        """
        path = unfinished_folder(out)
        with explained(path, AGAIN):
            if path.exists():
                if not (path / MANIFEST).is_file():
                    raise StoreError(
                        f"{path} is in the way: it is no unfinished data set; remove it, or choose another place"
                    )
                manifest = read_object(path / MANIFEST)
                _check_same(manifest, identity, path)
                folder = cls(out, path, manifest, take_lock(path))
                remove_drafts_in(path)
                folder._take_up()
                return folder
            path.parent.mkdir(parents=True, exist_ok=True)
            remove_left_drafts(path.parent, path.name)
            manifest = {"format": FORMAT, "complete": False, "identity": _plain(identity), "shards": []}
            with replacing(path) as draft:  # with its manifest: a folder without one is not ours
                draft.mkdir()
                write_json(draft / MANIFEST, manifest)
            return cls(out, path, manifest, take_lock(path))

    def work(self) -> Path:
        """Return an empty folder for unfinished files."""
        place = self.path / WORK
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        return place

    def put(self, source: Path, name: str) -> None:
        """Move a whole file or folder to its place, over leftovers of an interrupted export."""
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_dir():
            shutil.rmtree(target)
        bring_to_disk(source)
        os.replace(source, target)
        sync(target.parent)

    def commit(self, number: int, rows: tuple[int, int], names: Sequence[str]) -> None:
        """List a shard whose files are in place."""
        entry = {"shard": number, "rows": list(rows), "files": [self._entry(name) for name in names]}
        self.shards[number] = entry
        self._write()

    def publish(self, facts: Mapping[str, Any], names: Sequence[str]) -> None:
        """Complete the manifest, release the folder, and give it its name."""
        shutil.rmtree(self.path / WORK, ignore_errors=True)
        self._manifest |= {
            **_plain(facts),
            "files": [self._entry(name) for name in names],
            "software": {"name": "napari-stmdit", "version": __version__},
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "complete": True,
        }
        self._write()
        self.release()
        with suppress(OSError):
            (self.path / LOCK).unlink()
        place_folder(self.path, self.out)

    def release(self) -> None:
        """Release the folder as it is."""
        self._lock.release()

    def _entry(self, name: str) -> dict[str, Any]:
        size, sha256 = measure(self.path / name)
        return {"path": name, "bytes": size, "sha256": sha256}

    def _take_up(self) -> None:
        try:
            listed = list(self._manifest["shards"])
            for entry in listed:
                if all(_fits(self.path, file) for file in entry["files"]):
                    self.shards[int(entry["shard"])] = entry
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(
                f"{self.path / MANIFEST} is damaged ({error!r}); remove {self.path} to start anew"
            ) from error
        if len(self.shards) < len(listed):
            self.notes.append(f"{len(listed) - len(self.shards)} shards were damaged or gone and are written again")

    def _write(self) -> None:
        entries = [self.shards[number] for number in sorted(self.shards)]
        self._manifest["shards"] = entries
        write_json(self.path / MANIFEST, self._manifest)


def output_place(out: str | Path) -> Path:
    """Return the absolute path of a data set; raises StoreError where it may not be written."""
    try:
        return user_path(out).absolute()
    except BadFile as error:
        raise StoreError(f"the data set cannot be written: {error}; choose another place") from error


def complete_manifest(out: Path, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the manifest of a whole data set that is there already; None where the place is free.

    Raises StoreError where something else is there, or this data set but incomplete.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        if out.is_symlink() and not out.exists():
            raise StoreError(f"{out} is a link that leads nowhere; remove it, or choose another place")
        return None
    if not (out / MANIFEST).is_file():
        raise StoreError(
            f"{out} is there already and is no data set of ours; nothing is overwritten, choose another place"
        )
    manifest = read_object(out / MANIFEST)
    _check_same(manifest, identity, out)
    files = [*manifest.get("files", []), *(file for shard in manifest.get("shards", []) for file in shard["files"])]
    hurt = [str(file["path"]) for file in files if _size(out / file["path"]) != file["bytes"]]
    if hurt:
        raise StoreError(
            f"{out} holds this data set, but {len(hurt)} of its parts are gone or of another size, such as {hurt[0]}; remove it and "
            "export again"
        )
    return manifest


def measure(path: Path) -> tuple[int, str]:
    """Return size and SHA-256 of a file, or of a folder (names and hashes of its files)."""
    if path.is_file():
        return path.stat().st_size, digest(path)
    total, size = hashlib.sha256(), 0
    for file in _files(path):
        file_bytes, sha256 = measure(file)
        size += file_bytes
        total.update(f"{file.relative_to(path).as_posix()}\n{sha256}\n".encode())
    return size, total.hexdigest()


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in _files(path)) if path.exists() else -1


def _fits(folder: Path, entry: Mapping[str, Any]) -> bool:
    path = folder / entry["path"]
    return path.exists() and measure(path) == (entry["bytes"], entry["sha256"])


def _check_same(manifest: Mapping[str, Any], identity: Mapping[str, Any], path: Path) -> None:
    if "identity" not in manifest:
        raise StoreError(
            f"{path} is there already and is no data set of ours; nothing is overwritten, choose another place"
        )
    then, now = manifest["identity"], _plain(identity)
    if CONTENT not in then:
        if not manifest.get("complete"):
            raise StoreError(
                f"{path} was begun by an earlier version, which did not record what its slide and counts were, so that it cannot be "
                "continued; finish it with that version, or remove it"
            )
        now.pop(CONTENT, None)
    found = differences(then, now)
    if found:
        what = some_of(found, 8, "\n  ")
        raise StoreError(f"{path} holds another data set:\n  {what}\nChoose another place, or remove it")


def _plain(value: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(value))
    return found
