"""Results out of a SpatialData store: which there are, their images, places and records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..errors import SectionError, StoreError
from .geometry import Affine
from .spatialdata_store import RESULT_ATTRS, RESULT_PREFIX, read_store

REGISTRATION = "registration"
"""Key in a result's record of its place: the affine to full-resolution pixels."""


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
    return _result_of(open_store(path), path, name)


def read_results(path: str | Path) -> dict[str, tuple[Any, Affine, dict[str, Any]]]:
    """Read all results of a store back, by name, each as `read_result` does; the store is opened once."""
    path = Path(path).expanduser()
    sdata = open_store(path)
    return {name: _result_of(sdata, path, name) for name in names_in(sdata)}


def _result_of(sdata: Any, path: Path, name: str) -> tuple[Any, Affine, dict[str, Any]]:
    record = dict(dict(sdata.attrs.get(RESULT_ATTRS) or {}).get(name) or {})
    if name not in sdata.images or REGISTRATION not in record:
        known = ", ".join(names_in(sdata)) or "none"
        raise StoreError(f"{path} holds no result {name}; its results: {known}")
    element = sdata.images[name]
    array = element["scale0"]["image"] if "scale0" in getattr(element, "children", {}) else element
    affine = np.array(record.pop(REGISTRATION)["pixel_to_fullres_yx"], dtype=np.float64)
    return array.transpose("y", "x", "c").data, affine, record


def list_results(path: str | Path) -> tuple[str, ...]:
    """Return the names of a store's results, by number and name.

    Raises
    ------
    StoreError
        Where it is no SpatialData.
    """
    return names_in(open_store(Path(path).expanduser()))


def names_in(sdata: Any) -> tuple[str, ...]:
    """Return the names of a store's results, by number and name."""
    names = [str(n) for n in sdata.images if str(n).lower().startswith(RESULT_PREFIX)]

    def key(name: str) -> tuple[bool, int, str]:
        number = name[len(RESULT_PREFIX) :]
        return not number.isdigit(), int(number) if number.isdigit() else 0, name

    return tuple(sorted(names, key=key))


def open_store(path: Path) -> Any:
    """Return a store as SpatialData; raises StoreError where it is none."""
    try:
        if not path.is_dir():
            raise SectionError(f"there is no store {path}")
        return read_store(path)
    except SectionError as error:
        raise StoreError(str(error)) from error
