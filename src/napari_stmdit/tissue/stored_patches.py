"""The patches of a result as they were made, kept in the section's store beside the image that they were blended into.

A patch of 128 to 176 microns on spots 100 microns apart overlaps its neighbours, so no patch can be had back from the blended image.
They lie in a group of their own, which SpatialData passes over: ``stmdit_patches/<element>``, a zarr array (n, p, p, 3) uint8, one
chunk a patch, in the order of ``provenance["patches"]["spots"]``.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..storage.owned import put_in_place

PATCHES = "stmdit_patches"
PutFile = Callable[[str, str], Any]
"""Copies or links a file; called with source and target."""


@dataclass(frozen=True)
class PatchFiles:
    """Patches that are on disk already, one file each.

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
    """Give a file a second name; it is copied where links cannot be made."""
    try:
        os.link(source, target)
    except OSError:  # another disk, or a file system without links
        shutil.copy2(source, target)
    return target


def new_array(place: Path, count: int, side: int) -> Any:
    """Make the zarr array for ``count`` patches: one chunk each, so that they are written, linked and read one by one."""
    import zarr

    return zarr.create_array(
        place,
        shape=(count, side, side, 3),
        chunks=(1, side, side, 3),
        dtype="uint8",
        fill_value=0,
        config={"write_empty_chunks": True},
    )


def chunk_path(array: Path, index: int) -> Path:
    """Return the file that holds a patch of such an array."""
    return array / "c" / str(index) / "0" / "0" / "0"


def put_patches(
    store: Path,
    name: str,
    patches: NDArray[np.uint8] | PatchFiles,
    record: Mapping[str, Any],
    put: PutFile = shutil.copy2,
) -> None:
    """Write the patches of a result into a store, or its files as they are.

    Parameters
    ----------
    store
        The .zarr folder.
    name
        Of the element.
    patches
        (n, p, p, 3) uint8, or the files that hold them.
    record
        The result's provenance, by which the patches are known as its own.
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
    """Move the patches of one result from a store into another; those of an element of this name that is gone make room."""
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

    Stores of earlier versions hold none, and neither do those that SpatialData has written anew.
    """
    import zarr

    try:
        array = zarr.open_array(store / PATCHES / name, mode="r")
    except (OSError, KeyError, ValueError):
        return None
    return array if dict(array.attrs) == _mark(record) and array.ndim == 4 else None


def _mark(record: Mapping[str, Any]) -> dict[str, Any]:
    """What ties patches to their result."""
    spots = dict(record.get("patches") or {}).get("spots", ())
    return {"created": str(record.get("created")), "patches": len(spots)}
