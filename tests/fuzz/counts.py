"""Counts files that are broken or odd."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Callable
from typing import Any

import h5py
import numpy as np
from fuzz.harness import Scene, Works, both, cases, link, remove, request_error, section_error, truncate, write
from tiny import TINY_GENES, tiny_arrays

FILE = "filtered_feature_bc_matrix.h5"
FOLDER = "filtered_feature_bc_matrix"
UNREADABLE = section_error(FILE, "cannot be read as a Space Ranger counts file")


def h5(change: Callable[[h5py.File], object]) -> Callable[[Scene], object]:
    """Change the HDF5 file."""

    def apply(scene: Scene) -> None:
        with h5py.File(scene.section / FILE, "r+") as file:
            change(file)

    return apply


def dataset(name: str, value: Any, **options: Any) -> Callable[[Scene], object]:
    """Replace a dataset of the group ``matrix``; a callable gets the old values."""

    def apply(file: h5py.File) -> None:
        group = file["matrix"]
        old = group[name][()]
        del group[name]
        if options:
            group.create_dataset(name, **options)
        else:
            group.create_dataset(name, data=value(old) if callable(value) else value)

    return h5(apply)


def without(name: str) -> Callable[[Scene], object]:
    def apply(file: h5py.File) -> None:
        del file[name]

    return h5(apply)


def names(change: Callable[[np.ndarray], Any]) -> Callable[[Scene], object]:
    return dataset("features/name", change)


def market(**files: str | bytes | None) -> Callable[[Scene], object]:
    """Put the counts as a Matrix Market folder in the place of the HDF5 file; files by stem, None leaves one out."""

    def apply(scene: Scene) -> None:
        from scipy.io import mmwrite

        arrays = tiny_arrays()
        (scene.section / FILE).unlink()
        folder = scene.section / FOLDER
        folder.mkdir()
        mmwrite(folder / "matrix.mtx", arrays["counts"].T.astype(int))
        matrix = (folder / "matrix.mtx").read_bytes()
        (folder / "matrix.mtx").unlink()
        features = "".join(f"ENSG{i:011d}\t{g}\tGene Expression\n" for i, g in enumerate(TINY_GENES))
        made: dict[str, Any] = {"matrix": matrix, "barcodes": "\n".join(arrays["ids"]) + "\n", "features": features}
        for stem, content in made.items():
            content = files.get(stem, content)
            if content is not None:
                data = content if isinstance(content, bytes) else content.encode()
                ending = "mtx" if stem == "matrix" else "tsv"
                (folder / f"{stem}.{ending}.gz").write_bytes(
                    data if data.startswith((b"\x1f\x8b", b"RAW")) else gzip.compress(data)
                )

    return apply


def _older_layout(file: h5py.File) -> None:
    file.move("matrix", "GRCh38")


def _external(file: h5py.File) -> None:
    del file["matrix/data"]
    file["matrix/data"] = h5py.ExternalLink("../../elsewhere.h5", "/secret")


def _circle(file: h5py.File) -> None:
    del file["matrix/data"]
    file["matrix/data"] = h5py.SoftLink("/matrix/data")


def _raw(scene: Scene) -> None:
    (scene.section / FILE).rename(scene.section / "raw_feature_bc_matrix.h5")


def barcodes(made: Callable[[int], str], placed: Callable[[int], str]) -> Callable[[Scene], object]:
    """Name the barcodes of the counts and of the positions."""

    def apply(scene: Scene) -> None:
        import pandas as pd

        dataset("barcodes", np.array([made(i).encode() for i in range(30)]))(scene)
        file = scene.section / "spatial/tissue_positions.csv"
        pd.read_csv(file).assign(barcode=[placed(i) for i in range(30)]).to_csv(file, index=False)

    return apply


def real(i: int) -> str:
    """A barcode as 10x Genomics has them, without its suffix."""
    return "".join("ACGT"[(i >> (2 * k)) & 3] for k in range(16))


MM = "%%MatrixMarket matrix coordinate {} general\n"
ABSENT = section_error("holds no counts", FILE)
NOT_COUNTS = section_error(FILE, "expected raw counts")

CASES = cases(
    "counts",
    "outs",
    [
        ("missing", remove(FILE), Works()),
        ("empty file", write(FILE, b""), UNREADABLE),
        ("random bytes", write(FILE, np.random.default_rng(0).bytes(5000)), UNREADABLE),
        ("HDF5 signature and nothing else", write(FILE, b"\x89HDF\r\n\x1a\n"), UNREADABLE),
        *((f"cut to {share:.0%}", truncate(FILE, share), UNREADABLE) for share in (0.05, 0.3, 0.6, 0.9, 0.99)),
        ("a JPEG of that name", write(FILE, b"\xff\xd8\xff\xe0" + b"\0" * 100), UNREADABLE),
        (
            "a folder of that name",
            both(remove(FILE), lambda s: (s.section / FILE).mkdir()),
            section_error("matrix.mtx"),
        ),
        ("a link to itself", link(FILE, FILE), ABSENT),
        ("a link to a device", link(FILE, "/dev/zero"), ABSENT),
        (
            "two counts files",
            lambda s: shutil.copy(s.section / FILE, s.section / f"other_{FILE}"),
            section_error("several counts files"),
        ),
        ("raw counts alone", _raw, Works("1 of 30 spots")),
        (
            "group of the genome, as Cell Ranger 2 wrote it",
            h5(_older_layout),
            section_error("GRCh38", "expected 'matrix'"),
        ),
        ("no group at all", h5(lambda f: f.clear()), section_error("expected 'matrix'")),
        (
            "matrix is a dataset",
            h5(lambda f: (f.clear(), f.create_dataset("matrix", data=np.eye(3)))),
            section_error(FILE, "'matrix'"),
        ),
        *(
            (
                f"without {name}",
                without(f"matrix/{name}"),
                section_error(FILE, "object" if name == "features" else name.split("/")[-1]),
            )
            for name in (
                "data",
                "indices",
                "indptr",
                "shape",
                "barcodes",
                "features",
                "features/id",
                "features/name",
                "features/feature_type",
            )
        ),
        (
            "features is a dataset",
            h5(lambda f: (f.__delitem__("matrix/features"), f.create_dataset("matrix/features", data=np.arange(20)))),
            section_error(FILE),
        ),
        ("shape swapped", dataset("shape", lambda v: v[::-1]), section_error(FILE, "indptr")),
        ("shape of one number", dataset("shape", np.array([20])), section_error(FILE, "shape")),
        ("shape of three numbers", dataset("shape", np.array([20, 30, 1])), section_error(FILE, "shape")),
        ("shape is a scalar", dataset("shape", 20), section_error(FILE)),
        ("shape is text", dataset("shape", np.array([b"a", b"b"])), section_error(FILE)),
        ("shape negative", dataset("shape", np.array([-20, 30])), section_error(FILE, "shape")),
        ("shape huge", dataset("shape", np.array([2**40, 2**40])), section_error(FILE, "indptr")),
        ("shape of floats with nan", dataset("shape", np.array([np.nan, 30])), section_error(FILE)),
        ("data too short", dataset("data", lambda v: v[:-5]), section_error(FILE, "data")),
        (
            "data of a terabyte that is not there",
            dataset("data", None, shape=(2**40,), dtype="i4", chunks=(1024,)),
            section_error(FILE, "data"),
        ),
        (
            "data and indices of a terabyte",
            both(
                dataset("data", None, shape=(2**40,), dtype="i4", chunks=(1024,)),
                dataset("indices", None, shape=(2**40,), dtype="i8", chunks=(1024,)),
            ),
            section_error(FILE, "indptr"),
        ),
        ("data in two dimensions", dataset("data", lambda v: v[:, None]), section_error(FILE, "data")),
        (
            "data is a compound type",
            dataset("data", lambda v: np.zeros(len(v), dtype=[("a", "i4")])),
            section_error(FILE),
        ),
        ("data is text", dataset("data", lambda v: v.astype("S")), section_error(FILE, "numbers")),
        ("data is bool", dataset("data", lambda v: v > 0), section_error(FILE, "numbers")),
        ("data is complex", dataset("data", lambda v: v * 1j), section_error(FILE, "numbers")),
        ("data is float but whole", dataset("data", lambda v: v.astype(float)), Works("1 of 30 spots")),
        ("data is half precision", dataset("data", lambda v: v.astype("f2")), Works("1 of 30 spots")),
        ("data is fractional", dataset("data", lambda v: v * 0.37), NOT_COUNTS),
        ("data is negative", dataset("data", lambda v: -v), section_error(FILE, "negative", "expected raw counts")),
        ("one count is nan", dataset("data", lambda v: np.where(np.arange(len(v)) == 7, np.nan, v)), NOT_COUNTS),
        ("one count is inf", dataset("data", lambda v: np.where(np.arange(len(v)) == 7, np.inf, v)), NOT_COUNTS),
        ("one count is 1e300", dataset("data", lambda v: np.where(np.arange(len(v)) == 7, 1e300, v)), NOT_COUNTS),
        (
            "one count is 2^62",
            dataset("data", lambda v: np.where(np.arange(len(v)) == 7, 2**62, v.astype(np.int64))),
            NOT_COUNTS,
        ),
        (
            "one count is a million",
            dataset("data", lambda v: np.where(np.arange(len(v)) == 7, 10**6, v)),
            Works("1 of 30 spots"),
        ),
        (
            "one count is 2^31",
            dataset("data", lambda v: np.where(np.arange(len(v)) == 7, 2**31, v.astype(np.int64))),
            NOT_COUNTS,
        ),
        (
            "one count is as large as a file can hold",
            dataset("data", lambda v: np.where(np.arange(len(v)) == 7, 2**31 - 1, v.astype(np.int64))),
            Works("1 of 30 spots"),
        ),
        (
            "two entries of a gene that overflow together",
            both(
                dataset("data", lambda v: np.where(np.arange(len(v)) < 2, 2**31 - 1, v).astype(np.int32)),
                dataset("indices", lambda v: np.where(np.arange(len(v)) == 1, v[0], v)),
            ),
            section_error(FILE, "expected raw counts"),
        ),
        *(
            (f"{kind} counts", dataset("data", lambda v, k=kind: np.minimum(v, 100).astype(k)), Works("1 of 30 spots"))
            for kind in ("int8", "uint8", "int16", "uint16", "uint32")
        ),
        (
            "barcodes of two libraries, as aggr joins them",
            barcodes(lambda i: f"{real(i % 15)}-{1 + i // 15}", lambda i: f"{real(i)}-1"),
            section_error("several libraries (suffixes -1, -2)"),
        ),
        (
            "barcodes of two libraries, and positions that say which",
            barcodes(lambda i: f"{real(i % 15)}-{1 + i // 15}", lambda i: f"{real(i)}-2"),
            Works("1 of 15 spots"),
        ),
        (
            "positions of two libraries",
            barcodes(lambda i: f"{real(i)}-1", lambda i: f"{real(i % 15)}-{1 + i // 15}"),
            section_error("several libraries"),
        ),
        (
            "barcodes of a real slide",
            barcodes(lambda i: f"{real(i)}-1", lambda i: f"{real(i)}-1"),
            Works("1 of 30 spots"),
        ),
        (
            "barcodes that are places of an array",
            barcodes(lambda i: f"{i // 6}-{i % 6}", lambda i: f"{i // 6}-{i % 6}"),
            Works("1 of 30 spots"),
        ),
        (
            "barcodes of Visium HD",
            barcodes(lambda i: f"s_016um_00001_{i:05d}-1", lambda i: f"s_016um_00001_{i:05d}-1"),
            section_error("bins of Visium HD", "16 um"),
        ),
        ("unsigned 64-bit counts", dataset("data", lambda v: v.astype(np.uint64)), Works("1 of 30 spots")),
        ("big-endian counts", dataset("data", lambda v: v.astype(">i4")), Works("1 of 30 spots")),
        ("all counts zero", dataset("data", lambda v: v * 0), request_error("has a single count")),
        (
            "one spot with zero counts",
            dataset("data", lambda v: np.where(np.arange(len(v)) < 20, 0, v)),
            Works("have a total count of zero"),
        ),
        (
            "no entry at all",
            both(
                dataset("data", np.zeros(0, "i4")),
                dataset("indices", np.zeros(0, "i8")),
                dataset("indptr", np.zeros(31, "i8")),
            ),
            request_error("has a single count"),
        ),
        ("indices out of range", dataset("indices", lambda v: v + 1000), UNREADABLE),
        ("indices negative", dataset("indices", lambda v: v - 1000), UNREADABLE),
        ("indices are floats", dataset("indices", lambda v: v + 0.5), section_error(FILE, "indices")),
        ("indices are nan", dataset("indices", lambda v: v * np.nan), section_error(FILE, "indices")),
        ("indices are text", dataset("indices", lambda v: v.astype("S")), section_error(FILE)),
        ("indptr too short", dataset("indptr", lambda v: v[:-1]), section_error(FILE, "indptr")),
        ("indptr not ascending", dataset("indptr", lambda v: v[::-1]), section_error(FILE, "indptr")),
        ("indptr beyond the data", dataset("indptr", lambda v: v * 10), section_error(FILE, "indptr", "5990")),
        (
            "a gene twice in one spot",
            dataset("indices", lambda v: np.where(np.arange(len(v)) == 1, v[0], v)),
            Works("1 of 30 spots"),
        ),
        ("barcodes too few", dataset("barcodes", lambda v: v[:-1]), section_error(FILE, "barcodes", "(29,)")),
        (
            "a barcode twice",
            dataset("barcodes", lambda v: np.concatenate([v[:1], v[:-1]])),
            section_error(FILE, "lists the barcode", "SPOT00-1"),
        ),
        ("barcodes of zeros", dataset("barcodes", np.arange(30)), section_error("no barcode")),
        ("barcodes not UTF-8", dataset("barcodes", lambda v: np.array([b"\xff\xfe" + x for x in v])), UNREADABLE),
        (
            "barcodes in Greek",
            dataset("barcodes", lambda v: np.array([f"σ{x.decode()}".encode() for x in v])),
            section_error("no barcode", "σSPOT00-1"),
        ),
        (
            "barcodes of variable length",
            dataset("barcodes", lambda v: np.array([x.decode() for x in v], dtype=object)),
            Works("1 of 30 spots"),
        ),
        (
            "barcodes in two dimensions",
            dataset("barcodes", lambda v: np.stack([v, v], axis=1)),
            section_error(FILE, "barcodes"),
        ),
        (
            "no barcode",
            both(
                dataset("barcodes", np.zeros(0, "S8")),
                dataset("shape", np.array([20, 0])),
                dataset("indptr", np.zeros(1, "i8")),
                dataset("data", np.zeros(0, "i4")),
                dataset("indices", np.zeros(0, "i8")),
            ),
            section_error("no barcode"),
        ),
        (
            "no gene",
            both(
                *(dataset(f"features/{k}", np.zeros(0, "S8")) for k in ("id", "name", "feature_type")),
                dataset("shape", np.array([0, 30])),
                dataset("indptr", np.zeros(31, "i8")),
                dataset("data", np.zeros(0, "i4")),
                dataset("indices", np.zeros(0, "i8")),
            ),
            section_error("no feature of the type"),
        ),
        ("names too few", names(lambda v: v[:-1]), section_error(FILE, "features")),
        ("ids too few", dataset("features/id", lambda v: v[:-1]), section_error(FILE, "features")),
        ("feature types too few", dataset("features/feature_type", lambda v: v[:-1]), section_error(FILE, "features")),
        (
            "antibodies alone",
            dataset("features/feature_type", lambda v: np.full(len(v), b"Antibody Capture")),
            section_error("no feature of the type 'Gene Expression'", "Antibody Capture"),
        ),
        (
            "antibodies among genes",
            dataset("features/feature_type", lambda v: np.where(np.arange(len(v)) < 3, b"Antibody Capture", v)),
            Works("1 of 30 spots"),
        ),
        ("a gene name twice", names(lambda v: np.where(np.arange(len(v)) == 1, v[0], v)), Works("1 of 30 spots")),
        (
            "mouse names",
            names(lambda v: np.char.capitalize(np.char.decode(v)).astype("S")),
            request_error("shares 0 of the 20 genes"),
        ),
        (
            "Ensembl ids in the place of names",
            names(lambda v: np.array([f"ENSG{i:011d}".encode() for i in range(len(v))])),
            request_error("shares 0 of the 20 genes"),
        ),
        (
            "Ensembl ids beside the names",
            dataset("features/id", lambda v: np.array([f"ENSG{i:011d}".encode() for i in range(len(v))])),
            Works("1 of 30 spots"),
        ),
        ("empty names", names(lambda v: np.full(len(v), b"")), request_error("shares 0 of the 20 genes")),
        (
            "names with control characters",
            names(lambda v: np.array([b"\x1b[31m" + x for x in v])),
            request_error("shares 0 of the 20 genes"),
        ),
        ("a link out of the file", h5(_external), UNREADABLE),
        ("a link in a circle", h5(_circle), UNREADABLE),
        ("Matrix Market", market(), Works("1 of 30 spots")),
        ("Matrix Market: no matrix", market(matrix=None), section_error("matrix.mtx.gz")),
        ("Matrix Market: no barcodes", market(barcodes=None), section_error("barcodes.tsv.gz")),
        ("Matrix Market: no features", market(features=None), section_error("features.tsv.gz")),
        ("Matrix Market: empty matrix", market(matrix=""), section_error(FOLDER, "cannot be read")),
        ("Matrix Market: not compressed", market(matrix=b"RAW"), section_error(FOLDER, "cannot be read")),
        (
            "Matrix Market: gzip cut short",
            market(matrix=gzip.compress(b"%%MatrixMarket" * 100)[:30]),
            section_error(FOLDER, "cannot be read"),
        ),
        (
            "Matrix Market: gzip damaged",
            market(barcodes=b"\x1f\x8b\x08\0" + b"\xaa" * 50),
            section_error(FOLDER, "cannot be read"),
        ),
        (
            "Matrix Market: gzip of random bytes",
            market(matrix=np.random.default_rng(1).bytes(3000)),
            section_error(FOLDER, "cannot be read"),
        ),
        (
            "Matrix Market: other orientation",
            market(matrix=MM.format("integer") + "30 20 1\n1 1 5\n"),
            section_error("30 x 20 matrix", "20 features and 30 barcodes"),
        ),
        (
            "Matrix Market: index out of range",
            market(matrix=MM.format("integer") + "20 30 1\n99 1 5\n"),
            section_error(FOLDER, "cannot be read"),
        ),
        (
            "Matrix Market: complex",
            market(matrix=MM.format("complex") + "20 30 1\n1 1 5 1\n"),
            section_error(FOLDER, "numbers"),
        ),
        (
            "Matrix Market: fractional",
            market(matrix=MM.format("real") + "20 30 1\n1 1 0.5\n"),
            section_error(FOLDER, "expected raw counts"),
        ),
        (
            "Matrix Market: negative",
            market(matrix=MM.format("integer") + "20 30 1\n1 1 -5\n"),
            section_error(FOLDER, "expected raw counts"),
        ),
        (
            "Matrix Market: dense array",
            market(matrix="%%MatrixMarket matrix array integer general\n20 30\n" + "1\n" * 600),
            Works("1 of 30 spots"),
        ),
        (
            "Matrix Market: size of a planet",
            market(matrix=MM.format("integer") + "99999999999 99999999999 1\n1 1 5\n"),
            section_error(FOLDER),
        ),
        (
            "Matrix Market: entries that are not there",
            market(matrix=MM.format("integer") + "20 30 99999999999\n1 1 5\n"),
            section_error(FOLDER),
        ),
        ("Matrix Market: features with a name alone", market(features="\n".join(TINY_GENES)), Works("1 of 30 spots")),
        (
            "Matrix Market: features not UTF-8",
            market(features=b"\xff\xfe\xfa" * 10),
            section_error(FOLDER, "cannot be read"),
        ),
        ("Matrix Market: barcode twice", market(barcodes="SPOT00-1\n" * 30), section_error("lists the barcode")),
    ],
)
