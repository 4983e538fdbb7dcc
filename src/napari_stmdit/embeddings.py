"""Embeddings of spots computed elsewhere, in NumPy, HDF5, Zarr and AnnData files, for users without the encoder.

Nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import SectionError
from .files import is_packed, read_header, read_text
from .text import some_of

VECTOR_NAMES = ("embeddings", "embedding", "features", "feats")
ID_NAMES = ("barcodes", "barcode", "ids", "id", "spot_ids", "spot_id")
HDF5_SUFFIXES = (".h5", ".hdf5", ".h5ad")
KNOWN = ".npy, .h5, .hdf5, .h5ad, .zarr or .csv"

Arrays = tuple[NDArray[Any], NDArray[np.str_] | None, str, tuple[str, ...]]
"""Stored vectors, their ids or None, the file's name for messages, and the names of a table's columns, none of an array's."""


def read_arrays(text: str, *, wants_ids: bool) -> Arrays:
    """Read ``path`` or ``path::name``.

    Raises
    ------
    SectionError
        The file is missing, damaged, of no known layout or ambiguous, or lacks ids although ``wants_ids``.
    """
    place, _, name = text.partition("::")
    path = Path(place).expanduser()
    columns: tuple[str, ...] = ()
    if not path.exists():
        raise SectionError(f"{path} does not exist; expected embeddings in a {KNOWN} file")
    if path.suffix == ".npy":
        if name:
            raise SectionError(f"{text}: a .npy file holds one array without a name; leave out '::{name}'")
        vectors, ids = _read_npy(path), _ids_beside(path)
    elif path.name.endswith((".csv", ".csv.gz")):
        if name:
            raise SectionError(f"{text}: a .csv file holds one table without a name; leave out '::{name}'")
        vectors, ids, columns = _read_csv(path)
    elif path.suffix in HDF5_SUFFIXES:
        with _open_hdf5(path) as group:
            vectors, ids, columns = _read_group(group, name, path)
    elif (path / "zarr.json").is_file() or (path / ".zgroup").is_file():
        with _as_damage(path):
            vectors, ids, columns = _read_group(_open_zarr(path), name, path)
    else:
        raise SectionError(f"{path} is of no known kind; expected embeddings in a {KNOWN} file")
    if ids is None and wants_ids:
        raise SectionError(f"{path} does not say which vector belongs to which spot. {_how_to_add_ids(path)}")
    return vectors, ids, path.name, columns


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


def _read_csv(path: Path) -> tuple[NDArray[np.float64], NDArray[np.str_], tuple[str, ...]]:
    """Read a table with ids in its first column, whatever that is called, and one factor a column."""
    import pandas as pd

    with _as_damage(path):
        separator, header = read_header(path)
        packing: Literal["gzip"] | None = "gzip" if is_packed(path) else None
        table = pd.read_csv(path, sep=separator, index_col=0, dtype={0: str}, encoding="utf-8-sig", compression=packing)
    twice = [name for name, count in Counter(header[1:]).items() if count > 1]
    if twice:
        raise SectionError(f"{path} has the column {_some(twice)} more than once; expected each factor once")
    wrong = [str(name) for name, kind in table.dtypes.items() if kind.kind not in "iuf"]
    if wrong or not len(table.columns):
        what = f"its columns {_some(wrong)} are" if wrong else "its values are"
        raise SectionError(
            f"{path}: {what} no numbers; expected ids in the first column and one factor in each other, below a header, with decimal points"
        )
    return table.to_numpy(dtype=np.float64), table.index.to_numpy().astype(str), tuple(map(str, table.columns))


@contextmanager
def _open_hdf5(path: Path) -> Iterator[Any]:
    import h5py

    with _as_damage(path), h5py.File(path, "r") as group:
        yield group


def _open_zarr(path: Path) -> Any:
    import zarr

    return zarr.open_group(path, mode="r")


@contextmanager
def _as_damage(path: Path) -> Iterator[None]:
    """Turn any error of a damaged file into one message."""
    try:
        yield
    except SectionError:
        raise
    except Exception as error:  # readers of damaged files fail with anything
        raise SectionError(f"{path} cannot be read ({type(error).__name__}: {error}). Copy it again.") from error


def _read_group(group: Any, name: str, path: Path) -> tuple[NDArray[Any], NDArray[np.str_] | None, tuple[str, ...]]:
    """Read an HDF5 or Zarr group; AnnData's layout is recognised by its parts."""
    if "obsm" in group and "obs" in group:
        vectors = _pick(group["obsm"], name, path, "obsm has")
        index = group["obs"].attrs.get("_index", "_index")
        columns = () if hasattr(vectors, "shape") else tuple(map(str, vectors.attrs["column-order"]))
        return _values(vectors, path), _as_ids(_text(group["obs"][index], path), path), columns
    vectors = _pick(group, name, path, "it has")
    named = [candidate for candidate in ID_NAMES if candidate in group]
    if len(named) > 1:
        raise SectionError(f"{path} has several arrays of ids: {', '.join(named)}; keep one of them")
    ids = _as_ids(_text(group[named[0]], path), path) if named else None
    return _values(vectors, path), ids, ()


def _pick(group: Mapping[str, Any], name: str, path: Path, has: str) -> Any:
    """Return the array of vectors: the named one, or the only one with a known name."""
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
    if not hasattr(array, "shape") and "column-order" not in array.attrs:
        raise SectionError(
            f"{path}: {chosen[0]} is a group (a sparse matrix, say), expected a plain array or a table of numbers"
        )
    return array


def _values(array: Any, path: Path) -> NDArray[Any]:
    """Return an array, or the columns (n, d) of a table as AnnData keeps one in ``obsm``."""
    if not hasattr(array, "shape"):
        columns = [array[name] for name in array.attrs["column-order"]]
        if not all(hasattr(column, "shape") and column.dtype.kind in "iuf" for column in columns):
            raise SectionError(f"{path}: the table {array.name} has a column that is no numbers")
        return np.stack([_values(column, path) for column in columns], axis=1).astype(np.float64)
    _refuse_pickles(array, path)
    return np.asarray(array[()])


def _text(array: Any, path: Path) -> NDArray[Any]:
    if not hasattr(array, "shape"):
        if array.attrs.get("encoding-type") != "nullable-string-array":
            raise SectionError(f"{path}: its ids are stored as a group, expected a plain array of text")
        if np.any(_values(array["mask"], path)):
            raise SectionError(f"{path}: some of its ids are missing")
        array = array["values"]  # text of pandas 3, as AnnData 0.13 writes it
    return _values(array, path)


def _refuse_pickles(array: Any, path: Path) -> None:
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


_MAX_SHOWN = 5
_SUFFIX = re.compile(r"-\d+$")
_PREFIX = re.compile(r"^.*[_:]")
_SAMPLE = re.compile(r"_\d+$")


@dataclass(frozen=True)
class PrecomputedEmbeddings:
    """Morphology vectors by id.

    Parameters
    ----------
    ids
        (n,) ids of spots, unique.
    vectors
        (n, T, d) float32, all finite.
    source
        Where they come from, for messages.
    columns
        Names of the d values where they come from a table; of an array there are none.

    Attributes
    ----------
    sha256
        Hash of ids and vectors: the same content has the same hash in every file format.

    Raises
    ------
    SectionError
        Ids are doubled or empty, vectors not finite, or both of another shape; all faults in one message.
    """

    ids: NDArray[np.str_]
    vectors: NDArray[np.float32]
    source: str = "embeddings"
    columns: tuple[str, ...] = ()
    sha256: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "vectors", np.ascontiguousarray(self.vectors, dtype=np.float32))
        _refuse(self.source, _faults(self.ids, self.vectors))
        total = hashlib.sha256(f"{self.vectors.shape}\n".encode())
        total.update("\n".join(self.ids.tolist()).encode())
        total.update(np.asarray(self.vectors, dtype="<f4").data)
        object.__setattr__(self, "sha256", total.hexdigest())

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, ids: Sequence[str] | NDArray[np.str_]) -> NDArray[np.float32]:
        """Return the vectors of spots, (k, T, d), in the order asked for.

        Raises
        ------
        SectionError
            Ids are not in the file. They match exactly; where another spelling would match, the message says which.
        """
        asked = [str(spot) for spot in ids]
        position = {spot: row for row, spot in enumerate(self.ids.tolist())}
        missing = [spot for spot in asked if spot not in position]
        if missing:
            raise SectionError(
                f"{self.source} has no embedding for {len(missing)} of {len(asked)} spots: {_some(missing)}. It holds "
                f"{len(self)} ids such as {_some(self.ids[:2].tolist())}.{_hint(missing, self.ids.tolist())}"
            )
        return self.vectors[[position[spot] for spot in asked]]


def read_embeddings(
    path: str | Path,
    expected_dim: int | None = None,
    expected_tokens: int | None = None,
    ids: ArrayLike | None = None,
) -> PrecomputedEmbeddings:
    """Read embeddings.

    Parameters
    ----------
    path
        One of

        - ``NAME.npy``, (n, d) or (n, T, d), with ids beside it: ``NAME.ids.txt`` (one a line), ``NAME.ids.csv`` (with a header and
          a column ``barcode``, ``barcodes``, ``id``, ``ids``, ``spot_id`` or ``spot_ids``) or ``NAME.ids.npy``;
        - ``.h5`` or ``.hdf5`` with a dataset ``embeddings``, ``embedding``, ``features`` or ``feats`` and one of the id names above:
          HEST's files as they are, CLAM's and TRIDENT's with ids added;
        - ``.zarr``, a group with arrays of these names;
        - ``.h5ad``, or a ``.zarr`` that holds AnnData (also ``section.zarr/tables/NAME``): an entry of ``obsm``, an array or a table, as
          of cell types or topics; ids are the names of the observations;
        - ``.csv``, with a header, ids in the first column, and one value of the vector in each other.

        ``path::name`` says which array or entry of ``obsm`` is meant.
    expected_dim, expected_tokens
        Width d and number of vectors T that the checkpoint needs.
    ids
        Ids of the rows, for a file without any. Giving the section's own ids says that the rows are in its order.

    Returns
    -------
    PrecomputedEmbeddings
        Vectors as float32, whatever floating-point type the file has.

    Raises
    ------
    SectionError
        The file is missing, damaged or of no known layout, ids are missing or contradict those given, or vectors are doubled,
        empty, not finite or of another width; all faults of the content in one message.
    """
    vectors, own, source, columns = read_arrays(str(path), wants_ids=ids is None)
    faults = []
    given = None if ids is None else np.asarray(ids).astype(str)
    if given is not None and own is not None and not np.array_equal(given, own):
        faults.append("it has ids of its own, and they are not those given; leave out either")
    names = given if given is not None else own
    assert names is not None  # read_arrays refuses a file without ids where none are given
    if vectors.dtype.kind != "f":
        faults.append(f"vectors are {vectors.dtype}, expected float16, float32 or float64")
        vectors = np.zeros(vectors.shape)  # so that the remaining checks can run
    vectors = vectors[:, None] if vectors.ndim == 2 else vectors
    with np.errstate(over="ignore"):  # too large for float32 becomes infinite, which is a fault below
        vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    faults += _faults(names, vectors)
    if vectors.ndim == 3:
        for what, value, expected in (
            ("vectors a spot", vectors.shape[1], expected_tokens),
            ("values a vector", vectors.shape[2], expected_dim),
        ):
            if expected is not None and value != expected:
                faults.append(f"{value} {what}; the checkpoint needs {expected}")
    _refuse(source, faults)
    return PrecomputedEmbeddings(names, vectors, source, columns)


def _faults(ids: NDArray[np.str_], vectors: NDArray[np.float32]) -> list[str]:
    faults = []
    if vectors.ndim != 3 or vectors.size == 0:
        faults.append(f"vectors have shape {vectors.shape}, expected (n, d) or (n, T, d) with no length of zero")
    if ids.ndim != 1 or len(ids) != len(vectors):
        faults.append(f"{ids.size} ids for {len(vectors)} vectors")
    unique, counts = np.unique(ids, return_counts=True)
    if (counts > 1).any():
        faults.append(f"{int((counts > 1).sum())} ids occur more than once: {_some(unique[counts > 1].tolist())}")
    if (ids == "").any():
        faults.append(f"{int((ids == '').sum())} ids are empty")
    if vectors.size and not np.isfinite(vectors).all():
        wrong = np.flatnonzero(~np.isfinite(vectors).reshape(len(vectors), -1).all(axis=1))
        named = [str(ids[row]) if row < ids.size else f"row {row}" for row in wrong]
        faults.append(f"{len(wrong)} vectors hold values that are not finite in float32: {_some(named)}")
    return faults


def _refuse(source: str, faults: list[str]) -> None:
    if faults:
        raise SectionError(f"{source} is not usable: {'; '.join(faults)}.")


def _some(names: list[str]) -> str:
    return some_of(map(repr, names), _MAX_SHOWN)


def _hint(missing: list[str], have: list[str]) -> str:
    """Say which change of spelling would make ids match."""
    spellings = {
        "without the number at the end ('-1')": lambda name: _SUFFIX.sub("", name),
        "without the number of the sample at the end ('_2')": lambda name: _SAMPLE.sub("", name),
        "without what precedes '_' or ':'": lambda name: _PREFIX.sub("", name),
        "in capitals": str.upper,
    }
    for change, spell in spellings.items():
        known = {spell(name) for name in have}
        matching = sum(spell(name) in known for name in missing)
        if matching:
            return (
                f" {matching} of the missing ids would match {change}; ids are matched exactly, so rename them in the file if "
                "they mean the same spots."
            )
    return ""
