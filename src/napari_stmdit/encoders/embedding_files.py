"""Where vectors and ids lie in NumPy, HDF5, Zarr and AnnData files. Nothing is unpickled."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import SectionError
from ..files import read_text

VECTOR_NAMES = ("embeddings", "embedding", "features", "feats")
ID_NAMES = ("barcodes", "barcode", "ids", "id", "spot_ids", "spot_id")
HDF5_SUFFIXES = (".h5", ".hdf5", ".h5ad")
KNOWN = ".npy, .h5, .hdf5, .h5ad or .zarr"

Arrays = tuple[NDArray[Any], NDArray[np.str_] | None, str]
"""Vectors as they are stored, ids or None, and the file's name for messages."""


def read_arrays(text: str, *, wants_ids: bool) -> Arrays:
    """Read what ``path`` or ``path::name`` means.

    Raises
    ------
    SectionError
        The file is missing, damaged, of no known layout or ambiguous, or lacks ids although ``wants_ids``.
    """
    place, _, name = text.partition("::")
    path = Path(place).expanduser()
    if not path.exists():
        raise SectionError(f"{path} does not exist; expected embeddings in a {KNOWN} file")
    if path.suffix == ".npy":
        if name:
            raise SectionError(f"{text}: a .npy file holds one array without a name; leave out '::{name}'")
        vectors, ids = _read_npy(path), _ids_beside(path)
    elif path.suffix in HDF5_SUFFIXES:
        with _open_hdf5(path) as group:
            vectors, ids = _read_group(group, name, path)
    elif (path / "zarr.json").is_file() or (path / ".zgroup").is_file():
        with _told_as_damage(path):
            vectors, ids = _read_group(_open_zarr(path), name, path)
    else:
        raise SectionError(f"{path} is of no known kind; expected embeddings in a {KNOWN} file")
    if ids is None and wants_ids:
        raise SectionError(f"{path} does not say which vector belongs to which spot. {_how_to_add_ids(path)}")
    return vectors, ids, path.name


def _how_to_add_ids(path: Path) -> str:
    if path.suffix == ".npy":
        where = f"Put the ids, one a line, into {path.stem}.ids.txt beside it"
    else:
        where = f"Add an array of ids, named {ID_NAMES[0]!r}, to it"
    return f"{where}; or, if its rows are in the order of the section's spots, give the section's ids as ids=..."


def _read_npy(path: Path) -> NDArray[Any]:
    try:
        found: NDArray[Any] = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise SectionError(f"{path} is no readable array of plain numbers or text: {error}") from error
    return found


def _ids_beside(path: Path) -> NDArray[np.str_] | None:
    beside = [path.with_name(f"{path.stem}.ids{suffix}") for suffix in (".txt", ".csv", ".npy")]
    there = [file for file in beside if file.is_file()]
    if not there:
        return None
    if len(there) > 1:
        raise SectionError(
            f"ids of {path.name} are in {' and in '.join(file.name for file in there)}; keep one of them"
        )
    (file,) = there
    if file.suffix == ".npy":
        return _as_ids(_read_npy(file), file)
    try:
        if file.suffix == ".txt":
            return np.array(read_text(file).splitlines(), dtype=str)
        return _csv_ids(file)
    except ValueError as error:  # a decoding error is one, too, and so is whatever pandas cannot parse
        raise SectionError(f"{file} is not readable as text: {error}") from error


def _csv_ids(file: Path) -> NDArray[np.str_]:
    import pandas as pd

    columns = pd.read_csv(file, dtype=str, keep_default_na=False)
    named = [name for name in columns.columns if name in ID_NAMES]
    if len(named) != 1:
        raise SectionError(
            f"{file} has the columns {', '.join(map(str, columns.columns))}; expected a header with one of {', '.join(ID_NAMES)}"
        )
    return columns[named[0]].to_numpy().astype(str)


@contextmanager
def _open_hdf5(path: Path) -> Iterator[Any]:
    import h5py

    with _told_as_damage(path), h5py.File(path, "r") as group:
        yield group


def _open_zarr(path: Path) -> Any:
    import zarr

    return zarr.open_group(path, mode="r")


@contextmanager
def _told_as_damage(path: Path) -> Iterator[None]:
    """Turn whatever a damaged file makes a reader raise into one message."""
    try:
        yield
    except SectionError:
        raise
    except Exception as error:  # readers of damaged files fail with anything
        raise SectionError(f"{path} cannot be read ({type(error).__name__}: {error}). Copy it again.") from error


def _read_group(group: Any, name: str, path: Path) -> tuple[NDArray[Any], NDArray[np.str_] | None]:
    """Read an HDF5 or Zarr group, which offer the same access; AnnData's layout is recognised by its parts."""
    if "obsm" in group and "obs" in group:
        vectors = _pick(group["obsm"], name, path, "obsm has")
        index = group["obs"].attrs.get("_index", "_index")
        return _values(vectors, path), _as_ids(_text(group["obs"][index], path), path)
    vectors = _pick(group, name, path, "it has")
    named = [candidate for candidate in ID_NAMES if candidate in group]
    if len(named) > 1:
        raise SectionError(f"{path} has several arrays of ids: {', '.join(named)}; keep one of them")
    ids = _as_ids(_text(group[named[0]], path), path) if named else None
    return _values(vectors, path), ids


def _pick(group: Mapping[str, Any], name: str, path: Path, has: str) -> Any:
    """Return the array of vectors: the one that was named, or the only one with a known name."""
    names = sorted(group.keys())
    found = [candidate for candidate in VECTOR_NAMES if candidate in names]
    chosen = [name] if name else found
    if len(chosen) != 1 or chosen[0] not in names:
        reason = f"has no array {name!r}" if name else "has several arrays" if found else "has no array of a known name"
        raise SectionError(
            f"{path} {reason}: {has} {', '.join(names) or 'nothing'}. Expected one of {', '.join(VECTOR_NAMES)}, or say which: "
            f"{path.name}::NAME"
        )
    array = group[chosen[0]]
    if not hasattr(array, "shape"):
        raise SectionError(f"{path}: {chosen[0]} is a group (a sparse matrix or a table), expected a plain array")
    return array


def _values(array: Any, path: Path) -> NDArray[Any]:
    _refuse_pickles(array, path)
    return np.asarray(array[()])


def _text(array: Any, path: Path) -> NDArray[Any]:
    if not hasattr(array, "shape"):
        raise SectionError(f"{path}: its ids are stored as a group, expected a plain array of text")
    return _values(array, path)


def _refuse_pickles(array: Any, path: Path) -> None:
    """Refuse a Zarr array whose values are pickled: reading them would run whatever they say."""
    metadata = getattr(array, "metadata", None)
    stages = [getattr(metadata, "compressor", None)]
    for name in ("filters", "codecs"):
        stages += getattr(metadata, name, None) or ()
    if any("pickle" in f"{type(stage).__name__} {getattr(stage, 'codec_id', '')}".lower() for stage in stages):
        raise SectionError(
            f"{path} is refused: {array.name} is pickled, and reading it could run code. Nothing was run."
        )


def _as_ids(values: NDArray[Any], path: Path) -> NDArray[np.str_]:
    """Return ids as text, (n,); HEST stores them as (n, 1) bytes."""
    flat = values.reshape(-1).tolist()
    if not all(isinstance(value, str | bytes | int) for value in flat):
        raise SectionError(f"{path}: its ids are {values.dtype}, expected text")
    try:
        return np.array([value.decode() if isinstance(value, bytes) else str(value) for value in flat], dtype=str)
    except UnicodeDecodeError as error:
        raise SectionError(f"{path}: its ids are not text in UTF-8 ({error})") from None
