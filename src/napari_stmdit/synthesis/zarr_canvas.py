"""Canvas on disk: finished patches, image and manifest of a run that can be continued."""

from __future__ import annotations

import datetime
import json
import os
import shutil
import time
import uuid
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from ..errors import StoreError
from ..storage.atomic import (
    LOCK,
    explained,
    patiently,
    read_object,
    remove_drafts_in,
    remove_left_drafts,
    replacing,
    sync,
    take_lock,
    write_atomically,
    write_json,
)
from ..text import some_of
from ..tissue.elements import CHUNK, halved_rgba, halvings
from ..tissue.store_entries import PatchFiles, chunk_path, new_array, written_array
from ..types import Patch, PatchResult, Plan
from .canvas import even, feather, masked
from .identity import differences, is_older

if TYPE_CHECKING:
    from filelock import BaseFileLock


def to_ranges(numbers: Iterable[int]) -> str:
    """Format a set of numbers as ranges: ``0-3,7``."""
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
    """Parse what `to_ranges` wrote; raises ValueError for anything else."""
    numbers: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        numbers.update(range(int(first), int(last or first) + 1))
    return numbers


# The folder of a run on disk: its files, its lock, and the patches in it.


RUN, MANIFEST, PATCHES, IMAGE, SOLVER = "run.json", "manifest.json", "patches", "image", "solver.npz"


class PatchStore:
    """Finished patches before blending, one chunk each, so that several processes may write at once.

    Parameters
    ----------
    folder, run_id
        Of a `ZarrCanvas`.
    """

    def __init__(self, folder: Path, run_id: str) -> None:
        self._folder, self._run_id = folder, run_id
        with explained(folder):
            check_run(folder, run_id)
            self.array = written_array(folder / PATCHES)

    def write(self, index: int, pixels: NDArray[np.uint8]) -> None:
        """Write a patch to disk; it counts as finished once the manifest lists it."""
        with explained(self._folder):
            check_run(self._folder, self._run_id)
            patiently(lambda: self.array.__setitem__(index, pixels))
            chunk = self.path(index)
            sync(chunk)
            sync(chunk.parent)

    def read(self, index: int) -> NDArray[np.uint8]:
        """Return the (p, p, 3) pixels of a patch that was written."""
        pixels: NDArray[np.uint8] = np.asarray(self.array[index])
        return pixels

    def path(self, index: int) -> Path:
        """Return the file of a patch."""
        return chunk_path(self._folder / PATCHES, index)


def manifest_of(
    plan: Plan, finished: set[int], composed: set[int], failed: Mapping[int, str], facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the content of ``manifest.json``."""
    return {
        "format": 1,
        "patches": len(plan),
        "finished": to_ranges(finished),
        "composed": to_ranges(composed),
        "failed": {str(index): why for index, why in failed.items()},
        "facts": dict(facts),
        "updated": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def create_arrays(folder: Path, plan: Plan) -> None:
    """Create the arrays of a canvas in the layout of a SpatialData image, which they later become."""
    import zarr

    folder.mkdir()
    group = zarr.create_group(folder / IMAGE)
    chunk = CHUNK if plan.windows is None else plan.windows.tile
    height, width = plan.frame.shape
    for level in range(halvings(height, width) + 1):
        group.create_array(
            str(level),
            shape=(4, height >> level, width >> level),
            chunks=(4, chunk, chunk),
            dtype="uint8",
            fill_value=0,
            dimension_names=("c", "y", "x"),
        )
    if plan.windows is None:
        new_array(folder / PATCHES, len(plan), plan.card.patch_px)


def check_run(folder: Path, run_id: str) -> None:
    """Raise where the folder is gone, which zarr would make anew without the finished patches, or holds another run."""
    os.stat(folder / RUN)
    if read_object(folder / RUN).get("run_id") != run_id:
        raise StoreError(
            f"{folder} holds another run by now, which this one leaves as it is; give each run a folder of its own"
        )


def hold_run(folder: Path, run_id: str) -> BaseFileLock:
    """Hold the folder of a run, as `take_lock`; refuses one that was removed, or taken for another run, before it was held."""
    lock = take_lock(folder)
    if (folder / RUN).exists():
        try:
            check_run(folder, run_id)
        except StoreError:
            lock.release()
            raise
        return lock
    _remove_lock(folder, lock)
    raise StoreError(
        f"the run in {folder} is gone: another process has saved it, or the folder was moved; run the same again"
    )


def _remove_lock(folder: Path, lock: BaseFileLock) -> None:
    """Remove a lock with its file, and the folder where that is all in it."""
    with suppress(OSError):  # Windows removes no file that is open
        (folder / LOCK).unlink()
    lock.release()
    with suppress(OSError):
        (folder / LOCK).unlink(missing_ok=True)
        folder.rmdir()


def progress_text(folder: Path) -> str:
    """Return how much of a run is finished, as far as its manifest can be read."""
    try:
        manifest = read_object(folder / MANIFEST)
        return f" ({len(from_ranges(manifest['finished']))} of {manifest['patches']} patches are finished)"
    except (StoreError, KeyError, ValueError, TypeError, AttributeError):
        return ""


# A canvas in a folder: safe at any moment, readable at any time, of any size.


OVERHEAD = 0.1
"""Maximum share of the time for blending into the image; manifests never wait."""
_MAX_PATCHES_KEPT = 128


class ZarrCanvas:
    """Canvas in a folder; docs/decisions describes the layout and how nothing is lost.

    Make one with `create` or continue one with `resume`. One process at a time holds a canvas.

    Attributes
    ----------
    folder, frame
        Its place on the disk and on the slide.
    finished
        Indices of the patches that are safe.
    failed
        Index -> reason of the failed patches.
    facts
        Facts of all sessions for the result's record, in JSON types.
    committed
        Number of patches that the manifest lists.
    run_id
        Unique id of the run.
    """

    def __init__(self, folder: Path, plan: Plan, run_id: str, lock: BaseFileLock) -> None:
        import zarr

        self.folder, self.frame, self.run_id = folder, plan.frame, run_id
        self.finished: set[int] = set()
        self.failed: dict[int, str] = {}
        self.facts: dict[str, Any] = {}
        self.committed = 0
        self._plan, self._lock = plan, lock
        self._chunk = CHUNK if plan.windows is None else plan.windows.tile
        self._composed: set[int] = set()
        self._group = zarr.open_group(folder / IMAGE, mode="r+")
        self._levels = [self._group[str(level)] for level in range(len(list(self._group.array_keys())))]
        self._store = None if plan.windows is not None else PatchStore(folder, run_id)
        self._recent: OrderedDict[int, NDArray[np.uint8]] = OrderedDict()
        self._on_chunk = _patches_on_chunks(plan, self._chunk)
        self._next_composing = 0.0

    # --- making and taking up

    @classmethod
    def create(cls, folder: str | Path, plan: Plan, identity: Mapping[str, Any]) -> ZarrCanvas:
        """Create the folder of a new run.

        Raises
        ------
        StoreError
            It exists, or cannot be created.
        """
        folder = Path(folder).expanduser().absolute()
        if folder.exists():
            raise StoreError(
                f"an unfinished run{progress_text(folder)} is in {folder}; continue it with --resume, or remove that folder to start anew"
            )
        run_id = uuid.uuid4().hex
        with explained(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            remove_left_drafts(folder.parent, folder.name)
            with replacing(folder) as draft:
                create_arrays(draft, plan)
                write_json(draft / MANIFEST, manifest_of(plan, set(), set(), {}, {}))
                write_json(draft / RUN, {"format": 1, "run_id": run_id, "identity": dict(identity)})
        return cls(folder, plan, run_id, take_lock(folder))

    @classmethod
    def resume(cls, folder: str | Path, plan: Plan, identity: Mapping[str, Any]) -> ZarrCanvas:
        """Continue a run where it stopped, however it stopped.

        Raises
        ------
        StoreError
            It is another run (with the differences), another process holds it, or it cannot be read.
        """
        folder = Path(folder).expanduser().absolute()
        record = read_object(folder / RUN)
        then = record.get("identity", {})
        if is_older(then):
            raise StoreError(
                f"the unfinished run in {folder} was begun by an earlier version, which did not record all that it is made from, so that it "
                "cannot be continued; finish it with that version, or remove that folder to start anew"
            )
        found = differences(then, json.loads(json.dumps(identity)))
        if found:
            what = some_of(found, 8, "\n  ")
            raise StoreError(
                f"the unfinished run in {folder} is not this one, so it cannot be continued:\n  {what}\nGive the same request, or remove "
                "that folder to start anew"
            )
        lock = hold_run(folder, str(record.get("run_id")))
        manifest = read_object(folder / MANIFEST)
        with explained(folder):
            remove_drafts_in(folder)
            canvas = cls(folder, plan, str(record["run_id"]), lock)
        canvas._restore(manifest)
        return canvas

    def _restore(self, manifest: Mapping[str, Any]) -> None:
        try:
            self.finished = from_ranges(manifest["finished"])
            self._composed = from_ranges(manifest["composed"]) & self.finished
            self.facts = dict(manifest.get("facts", {}))  # earlier versions kept none
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise StoreError(
                f"{self.folder / MANIFEST} is damaged ({error}); remove the folder to start anew"
            ) from error
        if self._store is not None:
            # the manifest is written after what it lists, so this finds only what was removed by hand
            self.finished = {i for i in self.finished if self._store.path(i).is_file()}
        self._composed &= self.finished
        self.committed = len(self.finished)

    # --- what the run does

    def paste(self, result: PatchResult) -> tuple[int, int, int, int]:
        """Write a patch or tile to disk; return its box. It is safe after `commit`."""
        y0, x0, y1, x1 = result.patch.canvas_box
        if result.mask is None:
            assert self._store is not None  # patches come in spots mode alone
            self._store.write(result.patch.index, result.pixels)
            self._remember(result.patch.index, result.pixels)
        else:
            self._write_chunk(0, y0 // self._chunk, x0 // self._chunk, np.moveaxis(masked(result), -1, 0))
        self.finished.add(result.patch.index)
        return y0, x0, y1, x1

    def adopt(self, indices: Collection[int]) -> None:
        """Take over patches that other processes say they wrote; raises StoreError for what is not on this disk."""
        here = {i for i in indices if i in self.finished or (self._store is not None and self._store.path(i).is_file())}
        self.finished |= here
        if missing := set(indices) - here:
            raise StoreError(
                f"patches {to_ranges(missing)} were reported as written, and are not in {self.folder}; all workers need this disk, at the "
                "same path"
            )

    def commit(self) -> None:
        """Make everything pasted count as finished, atomically.

        Raises
        ------
        StoreError
            The folder cannot be written; earlier commits stay safe.
        """
        if time.perf_counter() >= self._next_composing:  # the image may lag behind, `close` completes it
            self._compose()
        self._write_manifest()

    def close(self) -> None:
        """Blend missing patches into the image, write the manifest, and release the folder."""
        try:
            if (self.folder / RUN).exists():
                self._compose()
                self._write_manifest()
        finally:
            self.release()

    def release(self) -> None:
        """Release the folder as it is."""
        self._recent.clear()
        self._lock.release()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder again, after the run has ended; raises StoreError where another process has it now."""
        if self._lock.is_locked:
            yield
            return
        self._lock = hold_run(self.folder, self.run_id)
        try:
            yield
        finally:
            self._lock.release()

    def discard(self) -> None:
        """Remove the run's files after its image was saved.

        The folder stays where foreign files are in it, or another process has taken it up, which then saves the same and removes it.
        """
        with suppress(StoreError), self.held():
            remove_drafts_in(self.folder)
            for name in (IMAGE, PATCHES, SOLVER, MANIFEST, RUN):
                place = self.folder / name
                with suppress(OSError):
                    if place.is_dir():
                        shutil.rmtree(place)
                    else:
                        place.unlink()
            self._recent.clear()
            _remove_lock(self.folder, self._lock)

    # --- what others read

    @property
    def levels(self) -> list[Any]:
        """Lazy dask arrays (h, w, 4) uint8, largest first."""
        import dask.array as da

        return [da.moveaxis(da.from_zarr(level), 0, -1) for level in self._levels]

    @property
    def rgba(self) -> Any:
        """Lazy dask array (height, width, 4) uint8."""
        return self.levels[0]

    @property
    def is_blank(self) -> bool:
        """Whether nothing would be lost without the folder: no patch is finished, and no solver state is saved."""
        return not self.finished and not (self.folder / SOLVER).exists()

    @property
    def inputs(self) -> dict[str, Any]:
        """Inputs of the run beside its request, as of `inputs_of` when it began."""
        identity = dict(read_object(self.folder / RUN).get("identity", {}))
        identity.pop("request", None)
        return identity

    @property
    def image_folder(self) -> Path:
        """Folder with the levels ``0``, ``1``, ... as zarr arrays (4, y, x)."""
        return self.folder / IMAGE

    @property
    def patch_files(self) -> PatchFiles | None:
        """Files of the finished patches, by index; None in continuous mode."""
        if self._store is None:
            return None
        return PatchFiles([self._store.path(index) for index in sorted(self.finished)], self._plan.card.patch_px)

    def patches(self) -> Any:
        """Return the finished patches before blending as a lazy dask array (n, p, p, 3) uint8, by index; empty in continuous mode."""
        import dask.array as da

        side = self._plan.card.patch_px
        if self._store is None:
            return np.zeros((0, side, side, 3), dtype=np.uint8)
        return da.from_zarr(self._store.array)[sorted(self.finished)]

    # --- the state of the solver

    def load_state(self) -> dict[str, NDArray[Any]] | None:
        """Return the latest solver state; None where there is none that can be read."""
        try:
            with np.load(self.folder / SOLVER, allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files}
        except (OSError, ValueError, KeyError, EOFError, BadZipFile):
            return None

    def save_state(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Write the solver state atomically."""
        with explained(self.folder):
            check_run(self.folder, self.run_id)
            patiently(
                lambda: write_atomically(self.folder / SOLVER, lambda file: np.savez(file, allow_pickle=False, **state))
            )

    # --- blending

    def _compose(self) -> None:
        """Blend new patches into the image, and update the smaller levels."""
        start = time.perf_counter()
        news = self.finished - self._composed
        if not news:
            return
        # whole chunks are blended again, from the patches: an interrupted run could not tell what a half-written sum contains
        dirty: set[tuple[int, int]] = set()
        for index in news:
            dirty.update(_chunks_under(self._plan.patches[index], self._chunk))
        if self._store is not None:
            for place in sorted(dirty):
                self._write_chunk(0, *place, self._blend(*place))
        for level in range(1, len(self._levels)):
            dirty = {(y // 2, x // 2) for y, x in dirty}
            for place in sorted(dirty):
                self._halve(level, *place)
        self._composed |= news
        now = time.perf_counter()
        self._next_composing = now + (now - start) / OVERHEAD

    def _blend(self, row: int, column: int) -> NDArray[np.uint8]:
        """Return a chunk (4, h, w) blended from the finished patches on it, in the order of their index."""
        y0, x0, y1, x1 = self._chunk_box(0, row, column)
        total = np.zeros((y1 - y0, x1 - x0, 3), dtype=np.float32)
        weights = np.zeros(total.shape[:2], dtype=np.float32)
        for index in self._on_chunk.get((row, column), ()):
            if index not in self.finished:
                continue
            top, left, bottom, right = self._plan.patches[index].canvas_box
            low_y, low_x, high_y, high_x = max(top, y0), max(left, x0), min(bottom, y1), min(right, x1)
            there = (slice(low_y - top, high_y - top), slice(low_x - left, high_x - left))
            here = (slice(low_y - y0, high_y - y0), slice(low_x - x0, high_x - x0))
            weight = (even if self._plan.counterfactual else feather)(bottom - top)[there]
            total[here] += weight[..., None] * self._pixels(index)[there]
            weights[here] += weight
        shown = weights > 0
        colours = np.rint(total / np.where(shown, weights, 1)[..., None])
        rgba = np.concatenate([colours, 255.0 * shown[..., None]], axis=-1).astype(np.uint8)
        return np.moveaxis(rgba, -1, 0)

    def _halve(self, level: int, row: int, column: int) -> None:
        y0, x0, y1, x1 = self._chunk_box(level, row, column)
        if y0 < y1 and x0 < x1:  # an odd last row or column has no place in the level below
            block = np.asarray(self._levels[level - 1][:, 2 * y0 : 2 * y1, 2 * x0 : 2 * x1])
            self._write_chunk(level, row, column, halved_rgba(block))

    def _write_chunk(self, level: int, row: int, column: int, block: NDArray[np.uint8]) -> None:
        y0, x0, y1, x1 = self._chunk_box(level, row, column)
        array = self._levels[level]
        with explained(self.folder):
            check_run(self.folder, self.run_id)
            patiently(lambda: array.__setitem__((slice(None), slice(y0, y1), slice(x0, x1)), block))
            sync(self.folder / IMAGE / str(level) / "c" / "0" / str(row) / str(column))

    def _chunk_box(self, level: int, row: int, column: int) -> tuple[int, int, int, int]:
        height, width = self._levels[level].shape[1:]
        y, x = row * self._chunk, column * self._chunk
        return y, x, min(y + self._chunk, height), min(x + self._chunk, width)

    def _pixels(self, index: int) -> NDArray[np.uint8]:
        if index not in self._recent:
            assert self._store is not None  # patches come in spots mode alone
            self._remember(index, self._store.read(index))
        self._recent.move_to_end(index)
        return self._recent[index]

    def _remember(self, index: int, pixels: NDArray[np.uint8]) -> None:
        self._recent[index] = pixels
        while len(self._recent) > _MAX_PATCHES_KEPT:
            self._recent.popitem(last=False)

    def _write_manifest(self) -> None:
        with explained(self.folder):
            check_run(self.folder, self.run_id)
            content = manifest_of(self._plan, self.finished, self._composed, self.failed, self.facts)
            patiently(lambda: write_json(self.folder / MANIFEST, content))
        self.committed = len(self.finished)


def _chunks_under(patch: Patch, chunk: int) -> list[tuple[int, int]]:
    y0, x0, y1, x1 = patch.canvas_box
    return [
        (row, column) for row in range(y0 // chunk, -(-y1 // chunk)) for column in range(x0 // chunk, -(-x1 // chunk))
    ]


def _patches_on_chunks(plan: Plan, chunk: int) -> dict[tuple[int, int], list[int]]:
    found: dict[tuple[int, int], list[int]] = {}
    for patch in plan.patches:
        for place in _chunks_under(patch, chunk):
            found.setdefault(place, []).append(patch.index)
    return found
