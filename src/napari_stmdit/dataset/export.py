"""Export of results as a paired data set: synthetic and real patches with expression, edits and records. Streamed and resumable."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..errors import StoreError
from ..progress import CancelToken, Progress, Stopwatch, drained
from ..storage.atomic import explained, write_json, write_text
from ..synthesis.result import Finished
from ..tissue.elements import fingerprint
from ..tissue.identity import slide_identity, table_hash
from .contents import AnyResult, CheckpointFacts, Contents, Slide, checkpoint_facts, find_slide, open_results
from .folder import (
    AGAIN,
    CONTENT,
    IMAGES,
    TABLE,
    DatasetFolder,
    Shard,
    complete_manifest,
    encoded,
    genes_table,
    images_file,
    make_images,
    output_place,
    write_card,
    write_folder,
    write_images,
    write_parquet,
    write_table,
)

Format = Literal["imagefolder", "parquet", "anndata"]
FORMATS: tuple[Format, ...] = ("imagefolder", "parquet", "anndata")
SHARD_BYTES = 32 * 2**20
"""Pixel bytes in a shard; memory holds a few times this."""
_AT_ONCE = 16
_CARD, _GENES = "README.md", "genes.csv"


@dataclass(frozen=True)
class Exported:
    """Data set that was written, whole or in part.

    Attributes
    ----------
    path
        The data set's folder.
    rows, synthetic
        Number of images, and of synthetic ones.
    runs
        Names of the runs in it.
    formats
        What was written.
    done
        Rows on disk.
    unfinished
        Folder of an unfinished data set; None once it is whole.
    existed
        Whether it was there already.
    notes
        Notes for the user.
    """

    path: Path
    rows: int
    synthetic: int
    runs: tuple[str, ...]
    formats: tuple[Format, ...]
    done: int
    unfinished: Path | None = None
    existed: bool = False
    notes: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether the data set is whole."""
        return self.unfinished is None


def export_steps(
    result: AnyResult,
    out: str | Path,
    *,
    formats: Sequence[Format] = FORMATS,
    runs: Sequence[str] = (),
    real: bool = True,
    section: str | Path | None = None,
    fullres: str | Path | None = None,
    checkpoint: str | Path | None = None,
    licence: str | None = None,
    rows_per_shard: int | None = None,
    cancel: CancelToken | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Generator[Progress, None, Exported]:
    """Write results as a paired data set.

    It grows in ``OUT.unfinished``, shard by shard, and is renamed when it is whole. Stopped or killed, the same call goes on.

    Parameters
    ----------
    result
        A SpatialData store with results, a `Result`, one read back, or several of one section. A result with edits and one without
        that share their noise are linked row by row.
    out
        The new folder.
    formats
        ``imagefolder`` and ``parquet`` for `datasets`, ``anndata`` for AnnData with a zarr array of images.
    runs
        Names of the results to take from a store; all by default.
    real
        Whether the crop of the slide at each place is added.
    section, fullres
        Where the slide is, if the result does not lead there.
    checkpoint
        Folder of the checkpoint, if its name does not lead there; read for target profiles and for the card.
    licence
        For the card: a hub's identifier, or words; without it the card says that it is not known.
    rows_per_shard
        Images in a shard; by default about 32 MiB of pixels.
    cancel
        Checked between images; what is done is kept.
    on_progress
        Called after every few images.

    Raises
    ------
    StmditError
        A result cannot be read, is incomplete, or the place cannot be written.
    """
    place, kinds = output_place(out), _formats(formats)
    made = open_results(result, runs)
    slide = find_slide(made[0], section, fullres) if real else None
    checkpoints = tuple(checkpoint_facts(one, checkpoint) for one in made)
    contents = Contents.of(made, [facts.profiles for facts in checkpoints], None if slide is None else slide.image)
    per_shard = _per_shard(rows_per_shard, contents)
    identity = _identity(contents, slide, kinds, per_shard)
    notes = _notes(contents, slide)
    names = tuple(one.name for one in made)
    there = complete_manifest(place, identity)
    if there is not None:
        notes += _licence_note(place, there, licence)
        rows = len(contents)
        return Exported(place, rows, contents.synthetic, names, kinds, rows, existed=True, notes=notes)
    folder = DatasetFolder.open(place, identity)
    export = _Export(folder, contents, slide, checkpoints, kinds, per_shard, licence, cancel or CancelToken())
    try:
        for progress in export.steps():
            if on_progress is not None:
                on_progress(progress)
            yield progress
    finally:
        folder.release()
    unfinished = None if export.published else folder.path
    notes = (*folder.notes, *notes)
    return Exported(place, len(contents), contents.synthetic, names, kinds, folder.rows, unfinished, notes=notes)


export_dataset = drained(export_steps, "export_dataset")


class _Stopped(Exception):
    """Raised when the user asked to stop."""


@dataclass
class _Export:
    folder: DatasetFolder
    contents: Contents
    slide: Slide | None
    checkpoints: tuple[CheckpointFacts, ...]
    formats: tuple[Format, ...]
    per_shard: int
    licence: str | None
    cancel: CancelToken
    watch: Stopwatch = field(default_factory=Stopwatch)
    published: bool = False

    def steps(self) -> Iterator[Progress]:
        """Write the missing shards and publish the data set, unless stopped."""
        with explained(self.folder.path, AGAIN), suppress(_Stopped):
            yield from self._shards()
            self._finish()
            yield self._progress()

    def _shards(self) -> Iterator[Progress]:
        """Write the missing shards; raises _Stopped as `_check`."""
        total = len(self.contents)
        if "anndata" in self.formats:
            make_images(self.folder.path / IMAGES, self.contents, self.per_shard)
        yield self._progress()
        for number in range(-(-total // self.per_shard)):
            if number in self.folder.shards:
                continue
            start, stop = number * self.per_shard, min((number + 1) * self.per_shard, total)
            parts = []
            for first in range(start, stop, _AT_ONCE):
                self._check()
                parts.append(self.contents.pixels(first, min(first + _AT_ONCE, stop)))
                yield self._progress(min(first + _AT_ONCE, stop) - start)
            self._write(Shard.of(self.contents, number, start, np.concatenate(parts)))
            yield self._progress()

    def _write(self, shard: Shard) -> None:
        work, names = self.folder.work(), []
        images = encoded(shard, self.contents.patch_mpp) if {"imagefolder", "parquet"} & set(self.formats) else []
        if "imagefolder" in self.formats:
            write_folder(shard, images, work / "folder")
            names.append(f"imagefolder/train/{shard.number:05d}")
            self.folder.put(work / "folder", names[-1])
        if "parquet" in self.formats:
            write_parquet(shard, images, work / "file.parquet")
            count = -(-len(self.contents) // self.per_shard)
            names.append(f"parquet/train-{shard.number:05d}-of-{count:05d}.parquet")
            self.folder.put(work / "file.parquet", names[-1])
        if "anndata" in self.formats:
            write_images(self.folder.path / IMAGES, shard.start, shard.pixels)
            names.append(images_file(shard.number))
        self.folder.commit(shard.number, (shard.start, shard.stop), names)

    def _finish(self) -> None:
        """Write the files of all shards together, and publish the folder; raises _Stopped as `_check`."""
        records = {made.name: dict(made.provenance) for made in self.contents.runs}
        names = [_GENES]  # not the card, which is the user's to complete
        self._check()
        if "anndata" in self.formats:
            work = self.folder.work()
            write_table(work / "table", self.contents, records, self._check)
            self.folder.put(work / "table", TABLE)
            names += [TABLE, f"{IMAGES}/zarr.json"]
        (self.folder.path / "runs").mkdir(exist_ok=True)
        for name, record in records.items():
            names.append(f"runs/{name}.json")
            write_json(self.folder.path / names[-1], record)
        write_text(self.folder.path / _GENES, genes_table(self.contents).to_csv(index=False))
        card = write_card(self.contents, self.checkpoints, self.slide, self.formats, self.licence)
        write_text(self.folder.path / _CARD, card)
        self._check()
        facts = {
            "rows": len(self.contents),
            "synthetic": self.contents.synthetic,
            "formats": self.formats,
            "licence": self.licence,
        }
        self.folder.publish(facts, names)
        self.published = True

    def _check(self) -> None:
        if self.cancel.cancelled:
            raise _Stopped

    def _progress(self, more: int = 0) -> Progress:
        return Progress(self.folder.rows + more, len(self.contents), 0, 1, 0, self.watch.seconds)


def _formats(formats: Sequence[Format]) -> tuple[Format, ...]:
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        raise StoreError(f"got the formats {', '.join(map(repr, formats)) or 'none'}; there are {', '.join(FORMATS)}")
    return tuple(name for name in FORMATS if name in formats)


def _per_shard(wanted: int | None, contents: Contents) -> int:
    if wanted is not None:
        if wanted < 1:
            raise StoreError(f"a shard has at least one row, got {wanted}")
        return min(wanted, len(contents))
    return min(max(16, SHARD_BYTES // (3 * contents.patch_px**2)), len(contents))


def _identity(contents: Contents, slide: Slide | None, formats: Sequence[Format], per_shard: int) -> dict[str, Any]:
    """Return the identity of an export, which must match for it to go on: images, counts and shards."""
    content: dict[str, Any] = {"counts": table_hash(contents.section.spots)}
    if slide is not None:
        boxes = [row.patch.source_box for row in contents.rows if row.run is None]
        content["slide"] = slide_identity(slide.image, boxes, contents.patch_px)
    return {
        "section": fingerprint(contents.section),
        "runs": {one.name: _hash(one) for one in contents.runs},
        "slide": None if slide is None else {"mpp": round(slide.mpp, 6), "shape": list(slide.image.shape)},
        "formats": list(formats),
        "rows": len(contents),
        "rows_per_shard": per_shard,
        CONTENT: content,
    }


def _hash(made: Finished) -> str:
    text = json.dumps({"record": dict(made.provenance), "source": made.source}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _licence_note(place: Path, manifest: Mapping[str, Any], licence: str | None) -> tuple[str, ...]:
    """Say that an existing data set has another licence; its card belongs to the user and is left alone."""
    if licence is None or manifest.get("licence") == licence:
        return ()
    was = manifest.get("licence")
    before = (
        f"the licence {was!r}" if was else "no licence" if "licence" in manifest else "a licence that was not recorded"
    )
    return (f"the data set was exported with {before}; {licence!r} was not written, change {place / _CARD} by hand",)


def _notes(contents: Contents, slide: Slide | None) -> tuple[str, ...]:
    notes = [] if slide is None else [f"real patches come from {slide.description}"]
    for made in contents.runs:
        if made.source != "as made" and made.request.mode == "spots":
            notes.append(
                f"{made.name} was saved without its patches; they were {made.source}, where neighbours overlap"
            )
        if made.left_out:
            notes.append(f"{made.name}: {made.left_out} spots near its border have no whole patch and are left out")
    if contents.section.synthetic:
        notes.append("the section is synthetic, and so are the crops of its slide")
    return tuple(notes)
