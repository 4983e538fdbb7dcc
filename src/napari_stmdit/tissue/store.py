"""Results in SpatialData stores: an image element registered to its section, with its provenance.

A store is never overwritten. Everything is written beside it, read back and compared, and only then moved into place, so
that a failed or interrupted write leaves the store as it was. A writer holds the store's lock from the choice of a name to the
record, so that several processes may save into one store.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import SectionError, StoreError
from ..files import BadFile, user_path
from ..storage.atomic import drafting, hold, place_folder
from ..types import Section, StoreElements
from .crops import computed
from .elements import CHUNK, about, image_element, is_fingerprint_of, link_levels, section_elements, slide_mark
from .identity import find_section, origin_of
from .spatialdata_store import (
    OWN_TABLE,
    RESULT_ATTRS,
    SECTION_ATTRS,
    elements_there,
    is_spatialdata,
    own_spots,
    quiet,
    read_spots,
)
from .store_entries import (
    REGISTRATION,
    PatchFiles,
    PutFile,
    drop_patches,
    element_name,
    link_file,
    move_patches,
    put_patches,
    read_result,
)

LOCK = ".stmdit.lock"
"""Lock file of a store's writers; it stays, and means nothing once they have ended."""
MAX_WAIT_S = 1800
_NAME = re.compile(r"[0-9A-Za-z_.-]+")


def write_result(
    path: str | Path,
    rgba: NDArray[np.uint8],
    pixel_to_fullres: ArrayLike,
    section: Section,
    run: str | None,
    provenance: Mapping[str, Any],
    patches: NDArray[np.uint8] | None = None,
) -> str:
    """Write a synthesized image into a SpatialData store.

    A new store gets the section's spots, counts and a slide image of at most 4000 px, so that it is self-contained. To an existing one
    with the same section, the image is added.

    Parameters
    ----------
    path
        The .zarr folder.
    rgba
        (h, w, 4) uint8; alpha 0 where nothing was synthesized.
    pixel_to_fullres
        (3, 3) affine from (y, x, 1) pixels of ``rgba`` to full-resolution pixels, both measured from their corners.
    section
        The section it belongs to; its coordinate systems become those of the image.
    run
        Name of the run; None takes the next free number.
    provenance
        Kept under ``attrs["stmdit"]``; JSON types only.
    patches
        (n, p, p, 3) uint8, the patches before blending, kept beside the image; see `napari_stmdit.tissue.store_entries`.

    Returns
    -------
    str
        Name of the element, ``stmdit_<run>``.

    Raises
    ------
    StoreError
        The path holds something else or another section, the name is taken, or writing fails.
    """
    if rgba.ndim != 3 or rgba.shape[2] != 4 or rgba.dtype != np.uint8 or min(rgba.shape) == 0:
        raise StoreError(f"a result is a (h, w, 4) uint8 image with at least one pixel, not {rgba.shape} {rgba.dtype}")

    def put(target: _Target) -> None:
        element = image_element(rgba, target.affine, section.coordinate_systems)
        _put(target, section, element, patches, lambda scratch: _check(scratch, target.name, rgba))

    return _add(_Target(_output(path), pixel_to_fullres, section, run, provenance), put)


def link_result(
    path: str | Path,
    levels: Path,
    pixel_to_fullres: ArrayLike,
    section: Section,
    run: str | None,
    provenance: Mapping[str, Any],
    *,
    copy: bool = False,
    patches: PatchFiles | None = None,
) -> str:
    """Link a synthesized image on disk into a SpatialData store without loading it.

    Parameters
    ----------
    path, pixel_to_fullres, section, run, provenance
        As for `write_result`. If the store already holds the provenance's ``run_id``, nothing is written.
    levels
        Folder of the image's levels ``0``, ``1``, ...: zarr arrays (4, y, x) uint8, each half of the one before. Its files are
        linked, so they must not be changed in place afterwards.
    copy
        Whether to copy the files: links to a canvas that is still written to would change with it.
    patches
        The files of the patches before blending, linked or copied likewise.

    Returns
    -------
    str
        Name of the element, ``stmdit_<run>``.

    Raises
    ------
    StoreError
        As for `write_result`, or there is no image.
    """
    import dask.array as da
    import zarr

    copying = shutil.copy2 if copy else link_file

    def put(target: _Target) -> None:
        with _failures(target.path):
            height, width = zarr.open_array(levels / "0", mode="r").shape[1:]
        blank = da.zeros((height, width, 4), dtype=np.uint8, chunks=(CHUNK, CHUNK, 4))  # writing zeros writes no chunk
        element = image_element(blank, target.affine, section.coordinate_systems)

        def link(scratch: Path) -> None:
            link_levels(levels, scratch / "images" / target.name, copying)

        _put(target, section, element, patches, link, copying)

    return _add(_Target(_output(path), pixel_to_fullres, section, run, provenance), put)


def check_writable(path: str | Path, section: Section) -> None:
    """Refuse, before anything is computed, a path that `write_result` would refuse.

    Raises
    ------
    StoreError
        The path holds something else or another section, or its folder cannot be written to.
    """
    path = _output(path)
    if not _is_free(path):
        _place_in(path, section)
    folder = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise StoreError(
            f"{path} cannot be written: {folder} is no folder that you may write to; choose another --output"
        )


def _output(path: str | Path) -> Path:
    """Return a path that may be written to, by its name; a dangling link may not."""
    try:
        path = user_path(path)
    except BadFile as error:
        raise StoreError(f"the output cannot be written: {error}; choose another --output") from error
    if path.is_symlink() and not path.exists():
        raise StoreError(f"{path} is a link that leads nowhere; remove it, or choose another --output")
    return path


# ------------------------------------------------------------------------------------------------- which store, which name


def _is_free(path: Path) -> bool:
    """Return whether a store can be created at a path: nothing is there, or an empty folder."""
    return not path.exists() or (path.is_dir() and not any(path.iterdir()))


def _place_in(path: Path, section: Section) -> tuple[StoreElements | None, set[str]]:
    """Return a section's spots in an existing store, and the names of all its elements; refuses a store without them."""
    if not is_spatialdata(path):
        raise StoreError(
            f"{path} exists and is no SpatialData store; give a path that does not exist, or a store to add to"
        )
    if not (path / "zarr.json").is_file():
        raise StoreError(f"{path} was written in an older zarr format that images cannot be added to; give a new path")
    try:
        sdata = read_spots(path)
    except SectionError as error:
        raise StoreError(str(error)) from error
    own = dict(sdata.attrs.get(SECTION_ATTRS) or {})
    elements = find_section(section, sdata)
    known = dict(own.get("slide") or {}).get("sha256")
    if known is not None and slide_mark(section) not in ("", known):
        raise StoreError(f"{path} holds another slide than {section.name}; give a new path, or the store of this slide")
    from_here = section.store is not None and elements is not None and section.store.root.resolve() == path.resolve()
    if not is_fingerprint_of(own.get("fingerprint"), section) and not (elements if not own else from_here):
        raise StoreError(
            f"{path} holds another section than {section.name}; give a new path, or the store of this section"
        )
    return elements, {name for _, name in elements_there(path)}


def _result_name(existing: set[str], run: str | None) -> str:
    taken = {name.lower() for name in existing}  # names must differ in more than case
    if run is None:
        number = 1
        while element_name(str(number)) in taken:
            number += 1
        return element_name(str(number))
    name = element_name(run)
    if not run or not _NAME.fullmatch(name):
        raise StoreError(f"run name {run!r} holds other characters than letters, digits, and _ . -")
    if name.lower() in taken:
        raise StoreError(f"the store already holds {name}; results are never overwritten, give another name")
    return name


# ------------------------------------------------------------------------------------------------- in memory


def add_to_spatialdata(
    sdata: Any | None,
    rgba: Any,
    pixel_to_fullres: ArrayLike,
    section: Section,
    run: str | None,
    provenance: Mapping[str, Any],
) -> tuple[Any, str]:
    """Add a synthesized image to a SpatialData in memory, as `write_result` does to a store, but without patches.

    Parameters
    ----------
    sdata
        Holds the section; None makes one with its spots, counts and a slide image of at most 4000 px.
    rgba
        (h, w, 4) uint8, numpy or lazy.
    pixel_to_fullres, section, run, provenance
        As for `write_result`.

    Returns
    -------
    tuple
        The SpatialData and the name of the new image, ``stmdit_<run>``.

    Raises
    ------
    StoreError
        The SpatialData holds another section, or the name is taken.
    """
    from spatialdata import SpatialData

    affine = np.asarray(pixel_to_fullres, dtype=np.float64)
    image = image_element(rgba, affine, section.coordinate_systems)
    if sdata is None:
        name = _result_name(set(), run)
        record = _record(provenance, affine, section, StoreElements(Path(), own_spots(section.name), OWN_TABLE))
        elements = section_elements(section, {"images": {name: image}})
        attrs = {SECTION_ATTRS: about(section), RESULT_ATTRS: {name: record}}
        with quiet():
            return SpatialData(**{kind: dict(group) for kind, group in elements.items()}, attrs=attrs), name
    place = find_section(section, sdata)
    if place is None:
        raise StoreError(
            f"the SpatialData holds another section than {section.name}; give the one that this section was opened from, or a new one"
        )
    name = _result_name({element for _, element, _ in sdata.gen_elements()}, run)
    results = dict(sdata.attrs.get(RESULT_ATTRS) or {})
    with quiet():
        sdata.images[name] = image
    sdata.attrs[RESULT_ATTRS] = {**results, name: _record(provenance, affine, section, place)}
    return sdata, name


def _record(
    provenance: Mapping[str, Any], affine: NDArray[np.float64], section: Section, elements: StoreElements | None
) -> dict[str, Any]:
    """Return the provenance of a result with its place and its section; JSON types only."""
    place = {"pixel_to_fullres_yx": affine.tolist(), "section": origin_of(section, elements)}
    return {**json.loads(json.dumps(dict(provenance))), REGISTRATION: place}


# ------------------------------------------------------------------------------------------------- writing


class _Target:
    """Target of a result: the store, its affine, and, after `settle`, the element's name and record."""

    def __init__(
        self, path: Path, pixel_to_fullres: ArrayLike, section: Section, run: str | None, record: Mapping[str, Any]
    ) -> None:
        affine = np.asarray(pixel_to_fullres, dtype=np.float64)
        if affine.shape != (3, 3) or not np.isfinite(affine).all():
            raise StoreError(f"the affine of a result is a (3, 3) matrix of finite numbers, not {affine.tolist()}")
        try:
            self._given = json.loads(json.dumps(dict(record)))
        except (TypeError, ValueError) as error:
            raise StoreError(f"the provenance holds something that JSON cannot: {error}") from error
        self.path, self.affine, self._section, self._run = path, affine, section, run
        self.is_new, self.name, self.record = _is_free(path), "", self._given

    def settle(self) -> None:
        """Choose a name in the store as it is now, and record the section that the result belongs to."""
        section = self._section
        elements: StoreElements | None = StoreElements(self.path, own_spots(section.name), OWN_TABLE)
        existing: set[str] = set()
        if not self.is_new:
            elements, existing = _place_in(self.path, section)
        self.name = _result_name(existing, self._run)
        self.record = _record(self._given, self.affine, section, elements)


class _CreatedElsewhere(Exception):
    """Another process created the store at the same time."""


def _add(target: _Target, put: Callable[[_Target], None]) -> str:
    """Choose a name and write under it, holding the store's lock; return the element's name.

    A run that the store holds already is not written again.
    """
    while True:
        target.is_new = _is_free(target.path)
        try:
            with nullcontext() if target.is_new else _alone(target.path):
                known = None if target.is_new else _known_run(target.path, target.record.get("run_id"))
                if known is not None:
                    return known
                target.settle()
                put(target)
                return target.name
        except _CreatedElsewhere:  # now the store exists, and the image is added to it
            continue


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Lock a store against other writers, threads of this process included; the lock ends with the process."""
    if not is_spatialdata(path):  # nothing is put into what is no store
        yield
        return
    with _failures(path):
        lock = hold(path / LOCK, MAX_WAIT_S)
    if lock is None:
        raise StoreError(
            f"another process has been writing into {path} for {MAX_WAIT_S // 60} minutes; save again when it has ended"
        )
    try:
        yield
    finally:
        lock.release()


def _put(
    target: _Target,
    section: Section,
    element: Any,
    patches: NDArray[np.uint8] | PatchFiles | None,
    finish: Callable[[Path], None],
    put: PutFile = shutil.copy2,
) -> None:
    """Write an element with its patches beside its store, finish and check it there, and move it in."""
    path, name = target.path, target.name
    elements = {"images": {name: element}}
    if target.is_new:
        elements = section_elements(section, elements)
    with _failures(path), _scratch(path) as scratch:
        own = {SECTION_ATTRS: about(section, path)} if target.is_new else {}
        _write(scratch, elements, {RESULT_ATTRS: {name: target.record}, **own})
        if patches is not None and len(patches):
            put_patches(scratch, name, patches, target.record, put)
        finish(scratch)
        if target.is_new:
            _consolidate(scratch)
            _make_store(scratch, path)
        else:
            _move_in(scratch, path, name, target.record)


def _make_store(scratch: Path, path: Path) -> None:
    """Move a finished store to its place; one that another process has created there stays."""
    try:
        place_folder(scratch, path)
    except OSError:
        if is_spatialdata(path):
            raise _CreatedElsewhere from None
        raise


def _consolidate(path: Path) -> None:
    import zarr

    with quiet():
        zarr.consolidate_metadata(zarr.open_group(path, mode="r+", use_consolidated=False).store)


def _known_run(path: Path, run_id: object) -> str | None:
    """Return the name of a run in a store; None where it is not there."""
    if run_id is None or not (path / "zarr.json").is_file():
        return None
    import zarr

    records = dict(zarr.open_group(path, mode="r", use_consolidated=False).attrs).get(RESULT_ATTRS) or {}
    names = [name for name, record in records.items() if record.get("run_id") == run_id]
    return next((name for name in names if (path / "images" / name).is_dir()), None)  # users delete images by hand


def _write(path: Path, elements: Mapping[str, Mapping[str, Any]], attrs: Mapping[str, Any]) -> None:
    from spatialdata import SpatialData

    with quiet():
        SpatialData(**{kind: dict(group) for kind, group in elements.items()}, attrs=dict(attrs)).write(path)


def _check(path: Path, name: str, rgba: NDArray[np.uint8]) -> None:
    """Compare the image on disk with the original."""
    pixels, _, _ = read_result(path, name)
    if not np.array_equal(np.asarray(computed(pixels)[0]), rgba):
        raise StoreError("what was written reads back differently; the disk may be full or faulty, nothing was kept")


def _move_in(scratch: Path, path: Path, name: str, record: Mapping[str, Any]) -> None:
    """Move one image and its record from a finished store into another; the caller holds the lock."""
    import zarr

    root = zarr.open_group(path, mode="r+", use_consolidated=False)
    root.require_group("images")
    target = path / "images" / name
    before = dict(root.attrs)
    # the record comes last: it makes the image a result
    os.rename(scratch / "images" / name, target)
    try:
        move_patches(scratch, path, name)
        results = {**dict(before.get(RESULT_ATTRS) or {}), name: dict(record)}
        root.attrs.put({**before, RESULT_ATTRS: results})
        _consolidate(path)
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        drop_patches(path, name)
        with suppress(Exception):
            root.attrs.put(before)
            _consolidate(path)
        raise


@contextmanager
def _scratch(path: Path) -> Iterator[Path]:
    """Yield a path beside the store, so that a move from there is atomic; it is removed afterwards."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with drafting(path) as scratch:
        yield scratch


@contextmanager
def _failures(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise StoreError(f"{path} cannot be written: {error}; nothing was changed") from error
