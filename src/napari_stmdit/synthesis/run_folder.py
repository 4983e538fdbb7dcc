"""The folder of a run on disk: its files, its lock, and the patches in it. See docs/decisions for what lies where."""

from __future__ import annotations

import datetime
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import files
from ..errors import StoreError
from ..storage.atomic import sync
from ..storage.faults import explained, patiently
from ..tissue.pyramid import CHUNK, halvings
from ..tissue.stored_patches import chunk_path, new_array
from ..types import Plan
from .disk import from_ranges, to_ranges

RUN, MANIFEST, PATCHES, IMAGE, SOLVER = "run.json", "manifest.json", "patches", "image", "solver.npz"


class PatchStore:
    """Finished patches before blending, one chunk each, so that several processes may write at once.

    Parameters
    ----------
    folder
        Of a `ZarrCanvas`.
    """

    def __init__(self, folder: Path) -> None:
        import zarr

        self._folder = folder
        with explained(folder):
            self.array = zarr.open_array(folder / PATCHES, mode="r+")

    def write(self, index: int, pixels: NDArray[np.uint8]) -> None:
        """Put a patch on the disk; it counts as finished when the manifest lists it."""
        with explained(self._folder):
            check_there(self._folder)
            patiently(lambda: self.array.__setitem__(index, pixels))
            chunk = self.path(index)
            sync(chunk)
            sync(chunk.parent)

    def read(self, index: int) -> NDArray[np.uint8]:
        """Return the (p, p, 3) pixels of a patch that was written."""
        pixels: NDArray[np.uint8] = np.asarray(self.array[index])
        return pixels

    def path(self, index: int) -> Path:
        """Return the file that holds a patch."""
        return chunk_path(self._folder / PATCHES, index)


def manifest_of(
    plan: Plan, finished: set[int], composed: set[int], failed: Mapping[int, str], facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the contents of ``manifest.json``."""
    return {
        "format": 1,
        "patches": len(plan),
        "finished": to_ranges(finished),
        "composed": to_ranges(composed),
        "failed": {str(index): why for index, why in failed.items()},
        "facts": dict(facts),
        "updated": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def lay_out(folder: Path, plan: Plan) -> None:
    """Make the arrays of a canvas; their layout is the one that a SpatialData image has, which they later become."""
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


def check_there(folder: Path) -> None:
    """Refuse to go on where the folder is gone: zarr would make a new one with a hole for everything that was done."""
    os.stat(folder / RUN)


def read_json(path: Path) -> dict[str, Any]:
    """Read one of the folder's files; raises StoreError where it is damaged."""
    try:
        found = files.read_json(path)
    except files.BadFile as error:
        raise StoreError(f"{path} cannot be read ({error}); remove {path.parent} to start anew") from error
    if not isinstance(found, dict):
        raise StoreError(f"{path} is damaged; remove {path.parent} to start anew")
    return found


def how_far(folder: Path) -> str:
    """Say how much of a run is finished, as far as its manifest can be read."""
    try:
        manifest = read_json(folder / MANIFEST)
        return f" ({len(from_ranges(manifest['finished']))} of {manifest['patches']} patches are finished)"
    except (StoreError, KeyError, ValueError, TypeError, AttributeError):
        return ""
