"""Morphology embeddings that were computed elsewhere, by spot: for users who may not have the encoder itself.

A file is never guessed at: its vectors and its ids have one of the names below, or the user names them. Formats: see
`read_embeddings`. How they lie in a file is in ``embedding_files.py``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import SectionError
from .embedding_files import read_arrays

_SHOWN = 5
_SUFFIX = re.compile(r"-\d+$")
_PREFIX = re.compile(r"^.*[_:]")


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
        - ``.h5ad``, or a ``.zarr`` that holds AnnData (also ``section.zarr/tables/NAME``): an entry of ``obsm``; ids are the
          names of the observations.

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
    vectors, own, source = read_arrays(str(path), wants_ids=ids is None)
    faults = []
    given = None if ids is None else np.asarray(ids).astype(str)
    if given is not None and own is not None and not np.array_equal(given, own):
        faults.append("it has ids of its own, and they are not those given; leave out either")
    names = given if given is not None else own
    assert names is not None  # read_arrays refuses a file without ids where none are given
    if vectors.dtype.kind != "f":
        faults.append(f"vectors are {vectors.dtype}, expected float16, float32 or float64")
        vectors = np.zeros(vectors.shape)  # the rest of the faults can still be told
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
    return PrecomputedEmbeddings(names, vectors, source)


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
        named = [str(ids[row]) if row < ids.size else f"row {row}" for row in wrong[:_SHOWN]]
        faults.append(f"{len(wrong)} vectors hold values that are not finite in float32: {_some(named, len(wrong))}")
    return faults


def _refuse(source: str, faults: list[str]) -> None:
    if faults:
        raise SectionError(f"{source} is not usable: {'; '.join(faults)}.")


def _some(names: list[str], total: int | None = None) -> str:
    more = (len(names) if total is None else total) - len(names[:_SHOWN])
    return ", ".join(repr(name) for name in names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _hint(missing: list[str], have: list[str]) -> str:
    """Say which change of spelling would make ids match; the change is the user's to make."""
    spellings = {
        "without the number at the end ('-1')": lambda name: _SUFFIX.sub("", name),
        "without what precedes '_' or ':'": lambda name: _PREFIX.sub("", name),
        "in capitals": str.upper,
    }
    for words, spell in spellings.items():
        known = {spell(name) for name in have}
        matching = sum(spell(name) in known for name in missing)
        if matching:
            return (
                f" {matching} of the missing ids would match {words}; ids are matched exactly, so rename them in the file if "
                "they mean the same spots."
            )
    return ""
