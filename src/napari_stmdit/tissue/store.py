"""Results into SpatialData stores and out of them: an image element that is registered to its section, with its provenance.

A store is never overwritten. Everything is written beside it first, read back and compared, and only then moved into place, so
that a failed or interrupted write leaves the store as it was.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import StoreError
from ..files import BadFile, user_path
from ..storage.atomic import drafting
from ..types import Section
from .elements import about, fingerprint, image_element, link_levels, section_elements
from .geometry import Affine
from .pyramid import CHUNK
from .spatialdata_store import RESULT_ATTRS, RESULT_PREFIX, SECTION_ATTRS, is_spatialdata, quiet
from .stored_patches import PatchFiles, PutFile, drop_patches, link_file, move_patches, put_patches
from .stored_results import REGISTRATION, open_store
from .stored_results import list_results as list_results
from .stored_results import read_result as read_result
from .stored_results import read_results as read_results

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

    A store that does not exist is made, with the section's spots, counts and a slide image of at most 4000 px, so that it
    stands alone. To one that exists and holds the same section, the image is added.

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
        (n, p, p, 3) uint8, the patches as they were made, kept beside the image; see `napari_stmdit.tissue.stored_patches`.

    Returns
    -------
    str
        Name of the element, ``stmdit_<run>``.

    Raises
    ------
    StoreError
        Where the path holds something else or another section, the name is taken, or writing fails.
    """
    if rgba.ndim != 3 or rgba.shape[2] != 4 or rgba.dtype != np.uint8 or min(rgba.shape) == 0:
        raise StoreError(f"a result is a (h, w, 4) uint8 image with at least one pixel, not {rgba.shape} {rgba.dtype}")
    target = _Target.of(path, pixel_to_fullres, section, run, provenance)
    element = image_element(rgba, target.affine, section.coordinate_systems)
    _put(target, section, element, patches, lambda scratch: _check(scratch, target.name, rgba))
    return target.name


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
    """Put a synthesized image that is on disk into a SpatialData store without loading it.

    Parameters
    ----------
    path, pixel_to_fullres, section, run, provenance
        As for `write_result`. Where the provenance has a ``run_id`` that the store already knows, nothing is written.
    levels
        Folder of the image's levels ``0``, ``1``, ...: zarr arrays (4, y, x) uint8, each half of the one before. Its files are
        linked, so they must not be changed in place afterwards.
    copy
        Copy the files, as links to a canvas that is still written to would change with it.
    patches
        The files of the patches as they were made, linked or copied likewise.

    Returns
    -------
    str
        Name of the element, ``stmdit_<run>``.

    Raises
    ------
    StoreError
        As for `write_result`, or where there is no image.
    """
    import dask.array as da
    import zarr

    known = _known_run(Path(path).expanduser(), provenance.get("run_id"))
    if known is not None:
        return known
    target = _Target.of(path, pixel_to_fullres, section, run, provenance)
    with _failures(target.path):
        height, width = zarr.open_array(levels / "0", mode="r").shape[1:]
    blank = da.zeros((height, width, 4), dtype=np.uint8, chunks=(CHUNK, CHUNK, 4))  # writing zeros writes no chunk
    element = image_element(blank, target.affine, section.coordinate_systems)
    put = shutil.copy2 if copy else link_file
    _put(
        target,
        section,
        element,
        patches,
        lambda scratch: link_levels(levels, scratch / "images" / target.name, put),
        put,
    )
    return target.name


def check_writable(path: str | Path, section: Section) -> None:
    """Refuse, before anything is computed, a path that `write_result` would refuse after it.

    Raises
    ------
    StoreError
        Where the path holds something else or another section, or its folder cannot be written to.
    """
    path = _output(path)
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        _elements_of(path, section)
    folder = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise StoreError(
            f"{path} cannot be written: {folder} is no folder that you may write to; choose another --output"
        )


def _output(path: str | Path) -> Path:
    """Return a path that may be written to, as far as its name goes; a link that leads nowhere is none."""
    try:
        path = user_path(path)
    except BadFile as error:
        raise StoreError(f"the output cannot be written: {error}; choose another --output") from error
    if path.is_symlink() and not path.exists():
        raise StoreError(f"{path} is a link that leads nowhere; remove it, or choose another --output")
    return path


# ------------------------------------------------------------------------------------------------- which store, which name


def _elements_of(path: Path, section: Section) -> set[str]:
    """Names of all elements of a store that the section belongs to; refuses any other."""
    if not is_spatialdata(path):
        raise StoreError(
            f"{path} exists and is no SpatialData store; give a path that does not exist, or a store to add to"
        )
    if not (path / "zarr.json").is_file():
        raise StoreError(f"{path} was written in an older zarr format that images cannot be added to; give a new path")
    sdata = open_store(path)
    own = dict(sdata.attrs.get(SECTION_ATTRS) or {})
    if own:
        same = own.get("fingerprint") == fingerprint(section)
    else:
        ids = set(section.spots.ids.tolist())
        same = any(ids <= set(table.obs_names.tolist()) for table in sdata.tables.values())
        same = same and set(section.coordinate_systems) <= set(sdata.coordinate_systems)
    if not same:
        raise StoreError(
            f"{path} holds another section than {section.name}; give a new path, or the store of this section"
        )
    return {str(name) for _, name, _ in sdata.gen_elements()}


def _result_name(existing: set[str], run: str | None) -> str:
    taken = {name.lower() for name in existing}  # names must differ in more than case
    if run is None:
        number = 1
        while f"{RESULT_PREFIX}{number}" in taken:
            number += 1
        return f"{RESULT_PREFIX}{number}"
    name = run if run.startswith(RESULT_PREFIX) else RESULT_PREFIX + run
    if not run or not _NAME.fullmatch(name):
        raise StoreError(f"run name {run!r} holds other characters than letters, digits, and _ . -")
    if name.lower() in taken:
        raise StoreError(f"the store already holds {name}; results are never overwritten, give another name")
    return name


# ------------------------------------------------------------------------------------------------- writing


@dataclass(frozen=True)
class _Target:
    """Where a result goes: the store, whether it is to be made, the element's name, its affine, and its record."""

    path: Path
    is_new: bool
    name: str
    affine: Affine
    record: Mapping[str, Any]

    @classmethod
    def of(
        cls, path: str | Path, pixel_to_fullres: ArrayLike, section: Section, run: str | None, record: Mapping[str, Any]
    ) -> _Target:
        path = _output(path)
        affine = np.asarray(pixel_to_fullres, dtype=np.float64)
        if affine.shape != (3, 3) or not np.isfinite(affine).all():
            raise StoreError(f"the affine of a result is a (3, 3) matrix of finite numbers, not {affine.tolist()}")
        try:
            full = json.loads(json.dumps({**record, REGISTRATION: {"pixel_to_fullres_yx": affine.tolist()}}))
        except (TypeError, ValueError) as error:
            raise StoreError(f"the provenance holds something that JSON cannot: {error}") from error
        is_new = not path.exists() or (path.is_dir() and not any(path.iterdir()))
        existing = set() if is_new else _elements_of(path, section)
        return cls(path, is_new, _result_name(existing, run), affine, full)


def _put(
    target: _Target,
    section: Section,
    element: Any,
    patches: NDArray[np.uint8] | PatchFiles | None,
    finish: Callable[[Path], None],
    put: PutFile = shutil.copy2,
) -> None:
    """Write an element with its patches beside its store, have it finished and checked there, and move it in."""
    path, name = target.path, target.name
    elements = {"images": {name: element}}
    if target.is_new:
        elements = section_elements(section, elements)
    with _failures(path), _scratch(path) as scratch:
        own = {SECTION_ATTRS: about(section)} if target.is_new else {}
        _write(scratch, elements, {RESULT_ATTRS: {name: target.record}, **own})
        if patches is not None and len(patches):
            put_patches(scratch, name, patches, target.record, put)
        finish(scratch)
        _consolidate(scratch)
        if target.is_new:
            if path.exists():
                path.rmdir()  # it is empty, or this fails
            os.rename(scratch, path)
        else:
            _move_in(scratch, path, name, target.record)


def _consolidate(path: Path) -> None:
    import zarr

    with quiet():
        zarr.consolidate_metadata(zarr.open_group(path, mode="r+", use_consolidated=False).store)


def _known_run(path: Path, run_id: object) -> str | None:
    """Name under which a store holds a run already; None where it does not."""
    if run_id is None or not (path / "zarr.json").is_file():
        return None
    import zarr

    records = dict(zarr.open_group(path, mode="r", use_consolidated=False).attrs).get(RESULT_ATTRS) or {}
    names = [name for name, record in records.items() if record.get("run_id") == run_id]
    return next((name for name in names if (path / "images" / name).is_dir()), None)


def _write(path: Path, elements: Mapping[str, Mapping[str, Any]], attrs: Mapping[str, Any]) -> None:
    from spatialdata import SpatialData

    with quiet():
        SpatialData(**{kind: dict(group) for kind, group in elements.items()}, attrs=dict(attrs)).write(path)


def _check(path: Path, name: str, rgba: NDArray[np.uint8]) -> None:
    """Compare what is on disk with what was to be written."""
    pixels, _, _ = read_result(path, name)
    if not np.array_equal(np.asarray(pixels.compute()), rgba):
        raise StoreError("what was written reads back differently; the disk may be full or faulty, nothing was kept")


def _move_in(scratch: Path, path: Path, name: str, record: Mapping[str, Any]) -> None:
    """Move one image from a finished store into another, and its record."""
    import zarr

    root = zarr.open_group(path, mode="r+", use_consolidated=False)
    root.require_group("images")
    target = path / "images" / name
    os.rename(scratch / "images" / name, target)
    try:
        move_patches(scratch, path, name)
        attrs = dict(root.attrs)
        results = {**dict(attrs.get(RESULT_ATTRS) or {}), name: dict(record)}
        root.attrs.put({**attrs, RESULT_ATTRS: results})
        _consolidate(path)
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        drop_patches(path, name)
        raise


@contextmanager
def _scratch(path: Path) -> Iterator[Path]:
    """A path beside the store, so that moving from there is one step of the file system; gone afterwards."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with drafting(path) as scratch:
        yield scratch


@contextmanager
def _failures(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise StoreError(f"{path} cannot be written: {error}; nothing was changed") from error
