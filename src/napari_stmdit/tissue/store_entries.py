"""Patches of a result before blending, kept in the section's store beside the blended image.

A patch of 128 to 176 microns on spots 100 microns apart overlaps its neighbours, so patches cannot be cut from the blended image.
They lie in a group that SpatialData ignores: ``stmdit_patches/<element>``, a zarr array (n, p, p, 3) uint8, one
chunk a patch, in the order of ``provenance["patches"]["spots"]``.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import SectionError, StoreError
from ..storage.atomic import put_in_place
from .geometry import Affine
from .spatialdata_store import RESULT_ATTRS, RESULT_PREFIX, affines_of, is_result_name, read_store, unread_elements

PATCHES = "stmdit_patches"
PutFile = Callable[[str, str], Any]
"""Function that copies or links a file from source to target."""


@dataclass(frozen=True)
class PatchFiles:
    """Patches on disk, one file each.

    Attributes
    ----------
    paths
        The files, in order; each a chunk of a zarr array as `new_array` makes it.
    side
        Pixels along a side.
    """

    paths: Sequence[Path]
    side: int

    def __len__(self) -> int:
        return len(self.paths)


def link_file(source: str, target: str) -> str:
    """Link a file to a second name, or copy it where links fail."""
    try:
        os.link(source, target)
    except OSError:  # another disk, or a file system without links
        shutil.copy2(source, target)
    return target


def new_array(place: Path, count: int, side: int) -> Any:
    """Create the zarr array for ``count`` patches, one chunk each, so that they are written, linked and read one by one."""
    import zarr

    return zarr.create_array(
        place,
        shape=(count, side, side, 3),
        chunks=(1, side, side, 3),
        dtype="uint8",
        fill_value=0,
        config={"write_empty_chunks": True},
    )


def written_array(place: Path) -> Any:
    """Open a zarr array to write into, whole chunks of zeros too: an opened one would leave a black image out."""
    import zarr

    with zarr.config.set({"array.write_empty_chunks": True}):
        return zarr.open_array(place, mode="r+")


def chunk_path(array: Path, index: int) -> Path:
    """Return the file of a patch in such an array."""
    return array / "c" / str(index) / "0" / "0" / "0"


def put_patches(
    store: Path,
    name: str,
    patches: NDArray[np.uint8] | PatchFiles,
    record: Mapping[str, Any],
    put: PutFile = shutil.copy2,
) -> None:
    """Write the patches of a result into a store, or link its files.

    Parameters
    ----------
    store
        The .zarr folder.
    name
        Of the element.
    patches
        (n, p, p, 3) uint8, or their files.
    record
        The result's provenance, which ties the patches to it.
    put
        Copies or links a file.
    """
    import zarr

    zarr.open_group(store, mode="a", use_consolidated=False).require_group(PATCHES)
    place = store / PATCHES / name
    if isinstance(patches, PatchFiles):
        array = new_array(place, len(patches.paths), patches.side)
        for index, source in enumerate(patches.paths):
            target = chunk_path(place, index)
            target.parent.mkdir(parents=True)
            put(os.fspath(source), os.fspath(target))
    else:
        array = new_array(place, len(patches), patches.shape[1])
        for index, pixels in enumerate(patches):
            array[index] = pixels
    array.attrs.update(_mark(record))


def move_patches(scratch: Path, store: Path, name: str) -> None:
    """Move the patches of one result from a store into another, replacing those of a removed element of this name."""
    import zarr

    source, target = scratch / PATCHES / name, store / PATCHES / name
    if not source.is_dir():
        return
    zarr.open_group(store, mode="r+", use_consolidated=False).require_group(PATCHES)
    put_in_place(source, target)


def drop_patches(store: Path, name: str) -> None:
    """Remove the patches of one result."""
    shutil.rmtree(store / PATCHES / name, ignore_errors=True)


def read_stored_patches(store: Path, name: str, record: Mapping[str, Any]) -> Any | None:
    """Return the patches of a result, (n, p, p, 3) uint8, lazy; None where the store does not hold this result's patches.

    Stores of earlier versions hold none, and neither do those that SpatialData has rewritten.
    """
    import zarr

    try:
        array = zarr.open_array(store / PATCHES / name, mode="r")
    except (OSError, KeyError, ValueError):
        return None
    return array if dict(array.attrs) == _mark(record) and array.ndim == 4 else None


def _mark(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts that tie patches to their result."""
    spots = dict(record.get("patches") or {}).get("spots", ())
    return {"created": str(record.get("created")), "patches": len(spots)}


# Results out of a SpatialData store: which there are, their images, places and records.


REGISTRATION = "registration"
"""Key of a result's place in its record: the affine to full-resolution pixels, and their section."""


@dataclass(frozen=True)
class StoredImage:
    """Result in a store.

    Attributes
    ----------
    levels
        (h, w, 4) uint8 lazy dask arrays, largest first, each half of the one before.
    pixel_to_fullres
        (3, 3) affine from (y, x, 1) pixels of the largest level to full-resolution pixels.
    provenance
        Its record.
    origin
        Record of the section that it was made from; empty in stores of earlier versions.
    systems
        Coordinate system -> (3, 3) affine from its pixels.
    """

    levels: tuple[Any, ...] = field(repr=False)
    pixel_to_fullres: Affine
    provenance: dict[str, Any] = field(repr=False)
    origin: Mapping[str, Any]
    systems: Mapping[str, Affine] = field(repr=False)


def element_name(run: str) -> str:
    """Return the element's name of a run, ``stmdit_<run>``; a name that begins so is kept."""
    return run if run.startswith(RESULT_PREFIX) else RESULT_PREFIX + run


def read_result(path: str | Path, name: str) -> tuple[Any, Affine, dict[str, Any]]:
    """Read a result back.

    Parameters
    ----------
    path
        The store.
    name
        Of the element, ``stmdit_<run>``.

    Returns
    -------
    tuple
        The (h, w, 4) uint8 image as a lazy dask array, its (3, 3) affine to full-resolution pixels, and its provenance.

    Raises
    ------
    StoreError
        There is no such result.
    """
    path = Path(path).expanduser()
    found = read_image(open_store(path), path, name)
    return found.levels[0], found.pixel_to_fullres, found.provenance


def read_image(sdata: Any, path: Path, name: str) -> StoredImage:
    """Return a result of an open store; raises StoreError where it is none, or cannot be read."""
    if name not in sdata.images:
        if (path / "images" / name).is_dir() and is_result_name(name):
            raise StoreError(
                f"image {name} of {path} cannot be read; it is damaged, or was left by a save that was cut short"
            )
        known = ", ".join(names_in(sdata)) or "none"
        raise StoreError(f"{path} holds no result {name}; its results: {known}")
    try:
        record = dict(dict(sdata.attrs[RESULT_ATTRS])[name])
        place = record.pop(REGISTRATION)
        affine = np.array(place["pixel_to_fullres_yx"], dtype=np.float64)
        origin = dict(place.get("section") or {})
        if affine.shape != (3, 3) or not np.isfinite(affine).all():
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise StoreError(f"image {name} of {path} has no record of a result, so that nothing is known of it") from None
    levels = _levels(sdata.images[name])
    if levels is None:
        raise StoreError(f"image {name} of {path} is no (c, y, x) image with four channels of 8 bit, as results are")
    try:
        systems = affines_of(sdata.images[name])
    except SectionError:  # its own affine is what places it
        systems = {}
    return StoredImage(levels, affine, record, origin, systems)


def _levels(element: Any) -> tuple[Any, ...] | None:
    """Return the levels (h, w, 4) of an image element, largest first; None where they are no RGBA."""
    trees = [node for node in getattr(element, "children", {}).values() if node.data_vars]
    arrays = [next(iter(node.data_vars.values())) for node in trees] or [element]
    if any(set(a.dims) != {"c", "y", "x"} or a.sizes["c"] != 4 or a.dtype != np.uint8 for a in arrays):
        return None
    return tuple(a.transpose("y", "x", "c").data for a in sorted(arrays, key=lambda a: -int(a.sizes["y"])))


def list_results(path: str | Path) -> tuple[str, ...]:
    """Return the names of a store's results, by number and name.

    Raises
    ------
    StoreError
        It is no SpatialData.
    """
    return names_in(open_store(Path(path).expanduser()))


def names_in(sdata: Any) -> tuple[str, ...]:
    """Return the names of a store's images with the name of a result, by number and name."""

    def key(name: str) -> tuple[bool, int, str]:
        number = name[len(RESULT_PREFIX) :]
        return not number.isdigit(), int(number) if number.isdigit() else 0, name

    return tuple(sorted((str(name) for name in sdata.images if is_result_name(str(name))), key=key))


def names_there(sdata: Any, path: Path) -> tuple[str, ...]:
    """Return the names of a store's images with the name of a result, including unreadable ones."""
    lost = sorted(name for kind, name in unread_elements(sdata, path) if kind == "images" and is_result_name(name))
    return (*names_in(sdata), *lost)


def open_store(path: Path) -> Any:
    """Return a store as SpatialData; raises StoreError where it is none."""
    try:
        if not path.is_dir():
            raise SectionError(f"there is no store {path}")
        return read_store(path)
    except SectionError as error:
        raise StoreError(str(error)) from error
