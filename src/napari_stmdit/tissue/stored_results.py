"""Results out of a SpatialData store: which there are, their images, places and records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import SectionError, StoreError
from .geometry import Affine
from .spatialdata_store import RESULT_ATTRS, RESULT_PREFIX, affines_of, is_result_name, read_store, unread_elements

REGISTRATION = "registration"
"""Key in a result's record of its place: the affine to full-resolution pixels, and the section that these are of."""


@dataclass(frozen=True)
class StoredImage:
    """A result as its store has it.

    Attributes
    ----------
    levels
        (h, w, 4) uint8 lazy dask arrays, largest first, each half of the one before.
    pixel_to_fullres
        (3, 3) affine from (y, x, 1) pixels of the largest level to full-resolution pixels.
    provenance
        What was recorded.
    origin
        What the record says of the section that it was made from; empty in stores of earlier versions.
    systems
        Coordinate system -> (3, 3) affine from its pixels.
    """

    levels: tuple[Any, ...] = field(repr=False)
    pixel_to_fullres: Affine
    provenance: dict[str, Any] = field(repr=False)
    origin: Mapping[str, Any]
    systems: Mapping[str, Affine] = field(repr=False)


def element_name(run: str) -> str:
    """Return the name of the element that a run of this name has, ``stmdit_<run>``; one that begins so already keeps its name."""
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
        Where there is no such result.
    """
    path = Path(path).expanduser()
    found = read_image(open_store(path), path, name)
    return found.levels[0], found.pixel_to_fullres, found.provenance


def read_image(sdata: Any, path: Path, name: str) -> StoredImage:
    """Return a result of a store that is open; raises StoreError where it is none, or cannot be read."""
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
    """The levels (h, w, 4) of an image element, largest first; None where they are no RGBA."""
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
        Where it is no SpatialData.
    """
    return names_in(open_store(Path(path).expanduser()))


def names_in(sdata: Any) -> tuple[str, ...]:
    """Return the names of a store's images that have the name of a result, by number and name."""

    def key(name: str) -> tuple[bool, int, str]:
        number = name[len(RESULT_PREFIX) :]
        return not number.isdigit(), int(number) if number.isdigit() else 0, name

    return tuple(sorted((str(name) for name in sdata.images if is_result_name(str(name))), key=key))


def names_there(sdata: Any, path: Path) -> tuple[str, ...]:
    """Return the names of a store's images that have the name of a result, with those that could not be read."""
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
