"""Expression counts as Space Ranger writes them: HDF5, or a folder of Matrix Market files."""

from __future__ import annotations

import gzip
import re
import shutil
import zlib
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import SectionError
from ..files import is_packed
from ..text import shorten
from ..types import Genes

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

EXPRESSION_FEATURE = "Gene Expression"
"""Cell Ranger's feature type of genes; antibodies and guides have others."""
_CONTROL = re.compile(
    r"^(NegControl(Probe|Codeword)|(Unassigned|Deprecated)Codeword|antisense|BLANK|Blank)_|^Intergenic_Region"
)
"""Names of Xenium's control probes and codewords, which some tables do not mark as such."""
_MAX_LINE = 100_000
_LIKE_COUNTS = re.compile(
    r"feature_bc_matrix|feature_cell_matrix|gene_bc_matri|matrix\.(mtx|h5)|\.h5ad$|molecule_info", re.IGNORECASE
)
MAX_COUNTS = 2**31 - 1
"""Maximum count of a gene in a spot, and in files of Cell Ranger."""
# what HDF5, gzip and Matrix Market readers raise on damaged files
_DAMAGE = (
    OSError,
    KeyError,
    IndexError,
    ValueError,
    TypeError,
    RuntimeError,
    AttributeError,
    EOFError,
    OverflowError,
    MemoryError,
    zlib.error,
)


@dataclass(frozen=True)
class CountMatrix:
    """Counts of barcodes by genes.

    Attributes
    ----------
    barcodes
        (n,), unique.
    counts
        (n, g) sparse.
    genes
        The g columns; antibody and other features are left out.
    source
        The file or folder.
    """

    barcodes: NDArray[np.str_]
    counts: csr_matrix
    genes: Genes
    source: Path


def find_counts(folder: Path) -> Path:
    """Return the counts of a Space Ranger folder: filtered before raw, HDF5 before Matrix Market.

    Raises
    ------
    SectionError
        There are none, or several of the same rank.
    """
    for kind in ("filtered", "raw"):
        files = sorted(f for f in folder.glob(f"*{kind}_feature_bc_matrix.h5") if f.is_file())
        if len(files) > 1:
            names = ", ".join(f.name for f in files)
            raise SectionError(f"{folder} holds several counts files ({names}); keep one section per folder")
        if files:
            return files[0]
        matrix = folder / f"{kind}_feature_bc_matrix"
        if matrix.is_dir():
            return matrix
    raise SectionError(
        f"{folder} holds no counts; expected filtered_feature_bc_matrix.h5, or a folder filtered_feature_bc_matrix with "
        "matrix.mtx.gz, barcodes.tsv.gz and features.tsv.gz"
    )


def lacks_counts(folder: Path) -> bool:
    """Return whether no file of a folder is named like counts; readability is not checked."""
    return not any(map(is_like_counts, folder.iterdir()))


def is_like_counts(file: Path) -> bool:
    """Return whether a file is named like counts."""
    return _LIKE_COUNTS.search(file.name) is not None


def read_counts(source: Path) -> CountMatrix:
    """Read what `find_counts` found.

    Raises
    ------
    SectionError
        It is incomplete or contradicts itself.
    """
    matrix = _read_matrix_market(source) if source.is_dir() else _read_h5(source)
    refuse_twice(matrix.barcodes, str(source))
    fault = fault_of_counts(matrix.counts)
    if fault is not None:
        raise SectionError(f"{source} holds {fault}; expected raw counts, not normalised or scaled expression")
    return matrix


def are_controls(names: NDArray[np.str_]) -> NDArray[np.bool_]:
    """Return which features, (n,) names, are control probes or codewords of Xenium."""
    return np.array([_CONTROL.match(name) is not None for name in names.tolist()], dtype=bool)


def refuse_twice(barcodes: NDArray[np.str_], source: str) -> None:
    """Raise SectionError that names a barcode listed twice."""
    names, times = np.unique(barcodes, return_counts=True)
    if (times > 1).any():
        raise SectionError(f"{source} lists the barcode {shorten(str(names[times > 1][0]))} twice")


def fault_of_counts(matrix: Any) -> str | None:
    """Return why values cannot be counts, or None where they are whole numbers from 0 to `MAX_COUNTS`."""
    data = matrix.data
    if data.dtype.kind not in "iuf":
        return f"values of the type {data.dtype}, where numbers are expected"
    if data.size == 0:
        return None
    if not np.isfinite(data).all():
        return "values that are no finite numbers"
    if data.min() < 0:
        return "negative values"
    if (data != np.rint(data)).any():
        return "fractional values"
    return f"a count of {data.max():.3g}" if float(data.max()) > MAX_COUNTS else None


def note_empty(counts: csr_matrix, noun: str = "spots") -> list[str]:
    """Return a note with the number of rows without counts, if any."""
    empty = int((np.asarray(counts.sum(axis=1)).ravel() == 0).sum())
    return [f"{empty} of {counts.shape[0]} {noun} have a total count of zero"] if empty else []


def canonical(counts: Any) -> csr_matrix:
    """Return counts as a canonical CSR matrix in a type whose sums do not overflow.

    Raises
    ------
    ValueError
        Indices lie outside the table.
    """
    from scipy.sparse import csr_matrix

    if counts.dtype == np.float16:  # scipy has no such sparse matrices
        counts = counts.astype(np.float32)
    tidied = csr_matrix(counts)
    if tidied.dtype.kind in "iu" and tidied.dtype.itemsize < 4:
        tidied = tidied.astype(np.int32)
    tidied.check_format(full_check=True)
    tidied.sum_duplicates()
    tidied.sort_indices()
    return tidied


def _read_h5(source: Path) -> CountMatrix:
    import h5py
    from scipy.sparse import csr_matrix

    try:
        with h5py.File(source, "r") as file:
            if "matrix" not in file:
                raise SectionError(
                    f"{source} has the groups {sorted(file)}; expected 'matrix', as Cell Ranger 3 and Space Ranger write it"
                )
            group = file["matrix"]
            if not isinstance(group, h5py.Group):
                raise SectionError(
                    f"{source}: 'matrix' is no group; expected what Cell Ranger 3 and Space Ranger write"
                )
            genes, barcodes = _h5_shape(group, source)
            _check_h5_sizes(group, genes, barcodes, source)
            data, indices, indptr = (group[key][:] for key in ("data", "indices", "indptr"))
            features = group["features"]
            ids, names, kinds = (_text(features[key][:]) for key in ("id", "name", "feature_type"))
            labels = _text(group["barcodes"][:])
        if data.dtype == np.float16:  # sparse matrices know no half precision
            data = data.astype(np.float32)
        counts = csr_matrix((data, indices.astype(np.int64), indptr.astype(np.int64)), shape=(barcodes, genes))
        counts.check_format(full_check=True)
    except _DAMAGE as error:
        raise SectionError(f"{source} cannot be read as a Space Ranger counts file: {error}") from error
    return _assemble(source, labels, counts, names, ids, kinds)


def _h5_shape(group: Any, source: Path) -> tuple[int, int]:
    shape = group["shape"]
    if shape.shape != (2,) or shape.dtype.kind not in "iu" or min(shape[:]) < 0:
        raise SectionError(f"{source}: 'shape' of the matrix is no pair of sizes, features and barcodes")
    return int(shape[0]), int(shape[1])


def _check_h5_sizes(group: Any, genes: int, barcodes: int, source: Path) -> None:
    """Compare the sizes of the parts before they are read: a damaged file may claim terabytes."""
    for key in ("indices", "indptr"):
        if group[key].dtype.kind not in "iu":
            raise SectionError(f"{source}: {key!r} of the matrix are {group[key].dtype}, not whole numbers")
    if group["indptr"].shape != (barcodes + 1,):
        raise SectionError(
            f"{source}: 'indptr' of the matrix has the shape {group['indptr'].shape}, but 'shape' says {barcodes} barcodes"
        )
    entries = int(group["indptr"][-1])
    sizes = {"data": entries, "indices": entries, "barcodes": barcodes}
    sizes |= {f"features/{key}": genes for key in ("id", "name", "feature_type")}
    for key, expected in sizes.items():
        if group[key].shape != (expected,):
            raise SectionError(
                f"{source}: {key!r} of the matrix has the shape {group[key].shape}, expected ({expected},) by 'shape' and 'indptr'; "
                f"it says {barcodes} barcodes, {genes} features and {entries} entries"
            )


def _read_matrix_market(folder: Path) -> CountMatrix:
    from scipy.io import mmread
    from scipy.sparse import csr_matrix

    try:
        labels = np.array(_lines(folder, "barcodes.tsv"), dtype=np.str_)
        rows = [line.split("\t") for line in _lines(folder, "features.tsv")]
        with _open(folder, "matrix.mtx") as file:
            _check_market_header(folder, file, len(rows), len(labels))
        with _open(folder, "matrix.mtx") as file, TemporaryDirectory(prefix="stmdit-") as place:
            # unpacked first: the reader, in C++, ends the process where a stream of Python fails under it
            plain = Path(place) / "matrix.mtx"
            with plain.open("wb") as target:
                shutil.copyfileobj(file, target)
            counts = csr_matrix(mmread(plain).T)
    except _DAMAGE as error:
        raise SectionError(f"{folder} cannot be read as a Matrix Market folder: {error}") from error
    ids = np.array([row[0] for row in rows], dtype=np.str_)
    names = np.array([row[1] if len(row) > 1 else row[0] for row in rows], dtype=np.str_)
    kinds = np.array([row[2] if len(row) > 2 else EXPRESSION_FEATURE for row in rows], dtype=np.str_)
    return _assemble(folder, labels, counts, names, ids, kinds)


def _check_market_header(folder: Path, file: Any, features: int, barcodes: int) -> None:
    """Compare a matrix's header with the lists: the reader allocates whatever a damaged header claims."""
    banner = file.readline(_MAX_LINE).decode("ascii").lower().split()
    if len(banner) < 4 or banner[0] != "%%matrixmarket":
        raise SectionError(
            f"{folder} cannot be read as a Matrix Market folder: its matrix has no %%MatrixMarket header"
        )
    if banner[3] not in ("integer", "real", "unsigned-integer", "double"):
        raise SectionError(f"{folder} holds a matrix of the kind {banner[3]!r}; expected numbers, integer or real")
    line = b"%"
    while line.startswith(b"%") or (line and not line.strip()):
        line = file.readline(_MAX_LINE)
    sizes = [int(part) for part in line.split()]
    height, width = sizes[0], sizes[1]
    entries = sizes[2] if banner[2] == "coordinate" else height * width
    if (height, width) != (features, barcodes) or entries > height * width:
        raise SectionError(
            f"{folder} holds a {height} x {width} matrix with {entries} entries, but {features} features and {barcodes} barcodes"
        )


def _assemble(
    source: Path,
    labels: NDArray[np.str_],
    counts: Any,
    names: NDArray[np.str_],
    ids: NDArray[np.str_],
    kinds: NDArray[np.str_],
) -> CountMatrix:
    if counts.shape != (len(labels), len(names)):
        raise SectionError(
            f"{source} holds a {counts.shape[0]} x {counts.shape[1]} matrix, but {len(labels)} barcodes and {len(names)} features"
        )
    keep = (kinds == EXPRESSION_FEATURE) & ~are_controls(names)
    if not keep.any():
        raise SectionError(
            f"{source} holds no feature of the type {EXPRESSION_FEATURE!r}, only {sorted(set(kinds.tolist()))}"
        )
    if not keep.all():
        counts = counts[:, np.flatnonzero(keep)]
    return CountMatrix(labels, canonical(counts), Genes(names[keep], ids[keep]), source)


def _text(values: Any) -> NDArray[np.str_]:
    return np.array([v.decode() if isinstance(v, bytes) else str(v) for v in values.tolist()], dtype=np.str_)


def _open(folder: Path, name: str) -> Any:
    """Open a file that may be compressed, or only named so."""
    path = next((folder / n for n in (f"{name}.gz", name) if (folder / n).is_file()), None)
    if path is None:
        raise SectionError(f"{folder} holds neither {name}.gz nor {name}")
    return gzip.open(path, "rb") if is_packed(path) else path.open("rb")


def _lines(folder: Path, name: str) -> list[str]:
    with _open(folder, name) as file:
        return [
            line.replace('"', "") for line in file.read().decode("utf-8-sig").splitlines() if line
        ]  # R quotes what it writes
