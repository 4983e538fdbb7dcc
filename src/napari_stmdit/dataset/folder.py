"""One shard in the formats of `datasets`: a folder of PNG files with a table beside them, and a Parquet file that holds the images."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import __version__
from ..errors import StoreError
from ..files import BadFile, user_path
from ..storage.atomic import (
    LOCK,
    bring_to_disk,
    explained,
    remove_drafts_in,
    remove_left_drafts,
    replacing,
    sync,
    take_lock,
    write_json,
)
from ..synthesis.identity import differences
from ..synthesis.session import unfinished_folder
from ..synthesis.zarr_canvas import read_json
from ..tissue.export import SLIDE, SYNTHETIC_SLIDE, Label, label_of_result, png_of
from .contents import Contents, as_arrow

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix


_LONGEST_NAME = 80
_ROW_GROUP = 64
"""Rows that a reader of a Parquet file decodes together; few, as each holds an image."""


@dataclass(frozen=True)
class Shard:
    """Some rows of a data set, ready to be written.

    Attributes
    ----------
    number, start, stop
        Its number, and the rows it holds.
    pixels
        (n, p, p, 3) uint8.
    records
        The columns of each row.
    labels
        What each image is.
    """

    number: int
    start: int
    stop: int
    pixels: NDArray[np.uint8]
    records: tuple[dict[str, Any], ...]
    labels: tuple[Label, ...]

    @classmethod
    def of(cls, contents: Contents, number: int, start: int, pixels: NDArray[np.uint8]) -> Shard:
        """Put a shard together from its images."""
        stop = start + len(pixels)
        measured, edited = contents.measured(start, stop), contents.conditioned(start, stop)
        records = tuple(
            {
                **contents.facts(start + k),
                **_sparse(measured, k, "gene_index", "gene_count"),
                **_sparse(edited, k, "edited_gene_index", "edited_gene_count"),
            }
            for k in range(len(pixels))
        )
        made = {run.name: label_of_result(run.provenance) for run in contents.runs}
        slide = SYNTHETIC_SLIDE if contents.section.synthetic else SLIDE
        labels = tuple(made[r["run"]] if r["origin"] == "model" else slide for r in records)
        return cls(number, start, stop, pixels, records, labels)


def _sparse(matrix: csr_matrix, row: int, index: str, count: str) -> dict[str, NDArray[Any]]:
    part = slice(matrix.indptr[row], matrix.indptr[row + 1])
    return {index: matrix.indices[part].astype(np.int32), count: matrix.data[part].astype(np.float32)}


def encoded(shard: Shard, mpp: float) -> list[bytes]:
    """Return the images of a shard as PNG files, each of which says what it is."""
    return [png_of(pixels, mpp, label) for pixels, label in zip(shard.pixels, shard.labels, strict=True)]


def file_names(shard: Shard) -> list[str]:
    """Return a name for the file of each image: its row in the data set, which no other has, and what it is."""
    return [
        f"{shard.start + k:07d}_{re.sub(r'[^0-9A-Za-z_.-]', '_', record['id'])[:_LONGEST_NAME]}.png"
        for k, record in enumerate(shard.records)
    ]


def write_folder(shard: Shard, images: Sequence[bytes], folder: Path) -> None:
    """Write a shard as a folder that the ``imagefolder`` loader reads: PNG files and ``metadata.parquet``."""
    import pyarrow.parquet as pq

    folder.mkdir(parents=True)
    names = file_names(shard)
    for name, image in zip(names, images, strict=True):
        (folder / name).write_bytes(image)
    table = as_arrow([{"file_name": n, **r} for n, r in zip(names, shard.records, strict=True)], "file_name")
    pq.write_table(table, folder / "metadata.parquet", compression="zstd")


def write_parquet(shard: Shard, images: Sequence[bytes], file: Path) -> None:
    """Write a shard as one Parquet file whose column ``image`` holds the files and decodes to images."""
    import pyarrow.parquet as pq

    rows = zip(file_names(shard), images, shard.records, strict=True)
    table = as_arrow([{"image": {"bytes": image, "path": name}, **record} for name, image, record in rows], "image")
    pq.write_table(table, file, compression="zstd", row_group_size=_ROW_GROUP)


# The folder of a data set while it is written: nothing half done under a lasting name, nothing done twice.


MANIFEST = "manifest.json"
WORK = ".work"
CONTENT = "content"
"""Of an identity: hashes of the counts and of the slide's crops. Manifests of earlier versions lack it."""
FORMAT = 1
AGAIN = "export again, what is finished is kept"


class DatasetFolder:
    """The unfinished folder of a data set; one process at a time holds it.

    Attributes
    ----------
    out
        Where the data set will be.
    path
        Where it grows.
    shards
        Number -> its entry in the manifest, of the shards that are safe.
    notes
        What happened when it was taken up, in sentences.
    """

    def __init__(self, out: Path, path: Path, manifest: dict[str, Any], lock: Any) -> None:
        self.out, self.path = out, path
        self.shards: dict[int, dict[str, Any]] = {}
        self.notes: list[str] = []
        self._manifest, self._lock = manifest, lock

    @classmethod
    def open(cls, out: Path, identity: Mapping[str, Any]) -> DatasetFolder:
        """Make the folder of a new data set, or take up that of this one.

        Raises
        ------
        StoreError
            It is of another data set (saying what differs), another process holds it, or it cannot be written.
        """
        path = unfinished_folder(out)
        with explained(path, AGAIN):
            if path.exists():
                if not (path / MANIFEST).is_file():
                    raise StoreError(
                        f"{path} is in the way: it is no unfinished data set; remove it, or choose another place"
                    )
                manifest = read_json(path / MANIFEST)
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
        """Return an empty folder for what is not whole yet."""
        place = self.path / WORK
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        return place

    def put(self, source: Path, name: str) -> None:
        """Move a whole file or folder to its place; what an interrupted export left there makes room."""
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

    def publish(self, facts: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
        """Complete the manifest with what belongs to no shard, let go of the folder, and give it its name."""
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
        with suppress(FileNotFoundError):
            self.out.rmdir()  # it is empty, or this fails
        os.rename(self.path, self.out)
        sync(self.out.parent)
        return self._manifest

    def release(self) -> None:
        """Let go of the folder as it is."""
        self._lock.release()

    # --- private

    def _entry(self, name: str) -> dict[str, Any]:
        size, digest = measure(self.path / name)
        return {"path": name, "bytes": size, "sha256": digest}

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
    """Return the absolute path of a data set that may be written; raises StoreError for one that is none."""
    try:
        return user_path(out).absolute()
    except BadFile as error:
        raise StoreError(f"the data set cannot be written: {error}; choose another place") from error


def complete_manifest(out: Path, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the manifest of the data set that is at its place already, whole; None where the place is free.

    Raises
    ------
    StoreError
        Something else is there, or it is this data set but not whole.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        if out.is_symlink() and not out.exists():
            raise StoreError(f"{out} is a link that leads nowhere; remove it, or choose another place")
        return None
    if not (out / MANIFEST).is_file():
        raise StoreError(
            f"{out} is there already and is no data set of ours; nothing is overwritten, choose another place"
        )
    manifest = read_json(out / MANIFEST)
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
    """Return the size and SHA-256 of a file, or of a folder: of its files' names and hashes."""
    if path.is_file():
        with path.open("rb") as stream:
            return path.stat().st_size, hashlib.file_digest(stream, "sha256").hexdigest()
    total, size = hashlib.sha256(), 0
    for file in _files(path):
        bytes_, digest = measure(file)
        size += bytes_
        total.update(f"{file.relative_to(path).as_posix()}\n{digest}\n".encode())
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
        more = f"\n  and {len(found) - 8} more" if len(found) > 8 else ""
        raise StoreError(
            f"{path} holds another data set:\n  "
            + "\n  ".join(found[:8])
            + more
            + "\nChoose another place, or remove it"
        )


def _plain(value: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(value))
    return found
