"""One shard in the formats of `datasets`: a folder of PNG files with a table beside them, and a Parquet file that holds the images."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..tissue.export import png_of
from ..tissue.labels import SLIDE, SYNTHETIC_SLIDE, Label, label_of_result
from .columns import as_arrow
from .contents import Contents

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

_LONGEST_NAME = 80
_ROW_GROUP = 64
"""Rows that a reader of a Parquet file decodes together; few, as each holds an image."""


@dataclass(frozen=True)
class Shard:
    """Some rows of a data set, ready to be written.

    Attributes
    ----------
    number, start, stop
        Its number, and the rows it holds.
    pixels
        (n, p, p, 3) uint8.
    records
        The columns of each row.
    labels
        What each image is.
    """

    number: int
    start: int
    stop: int
    pixels: NDArray[np.uint8]
    records: tuple[dict[str, Any], ...]
    labels: tuple[Label, ...]

    @classmethod
    def of(cls, contents: Contents, number: int, start: int, pixels: NDArray[np.uint8]) -> Shard:
        """Put a shard together from its images."""
        stop = start + len(pixels)
        measured, edited = contents.measured(start, stop), contents.conditioned(start, stop)
        records = tuple(
            {
                **contents.facts(start + k),
                **_sparse(measured, k, "gene_index", "gene_count"),
                **_sparse(edited, k, "edited_gene_index", "edited_gene_count"),
            }
            for k in range(len(pixels))
        )
        made = {run.name: label_of_result(run.provenance) for run in contents.runs}
        slide = SYNTHETIC_SLIDE if contents.section.synthetic else SLIDE
        labels = tuple(made[r["run"]] if r["origin"] == "model" else slide for r in records)
        return cls(number, start, stop, pixels, records, labels)


def _sparse(matrix: csr_matrix, row: int, index: str, count: str) -> dict[str, NDArray[Any]]:
    part = slice(matrix.indptr[row], matrix.indptr[row + 1])
    return {index: matrix.indices[part].astype(np.int32), count: matrix.data[part].astype(np.float32)}


def encoded(shard: Shard, mpp: float) -> list[bytes]:
    """Return the images of a shard as PNG files, each of which says what it is."""
    return [png_of(pixels, mpp, label) for pixels, label in zip(shard.pixels, shard.labels, strict=True)]


def file_names(shard: Shard) -> list[str]:
    """Return a name for the file of each image: its row in the data set, which no other has, and what it is."""
    return [
        f"{shard.start + k:07d}_{re.sub(r'[^0-9A-Za-z_.-]', '_', record['id'])[:_LONGEST_NAME]}.png"
        for k, record in enumerate(shard.records)
    ]


def write_folder(shard: Shard, images: Sequence[bytes], folder: Path) -> None:
    """Write a shard as a folder that the ``imagefolder`` loader reads: PNG files and ``metadata.parquet``."""
    import pyarrow.parquet as pq

    folder.mkdir(parents=True)
    names = file_names(shard)
    for name, image in zip(names, images, strict=True):
        (folder / name).write_bytes(image)
    table = as_arrow([{"file_name": n, **r} for n, r in zip(names, shard.records, strict=True)], "file_name")
    pq.write_table(table, folder / "metadata.parquet", compression="zstd")


def write_parquet(shard: Shard, images: Sequence[bytes], file: Path) -> None:
    """Write a shard as one Parquet file whose column ``image`` holds the files and decodes to images."""
    import pyarrow.parquet as pq

    rows = zip(file_names(shard), images, shard.records, strict=True)
    table = as_arrow([{"image": {"bytes": image, "path": name}, **record} for name, image, record in rows], "image")
    pq.write_table(table, file, compression="zstd", row_group_size=_ROW_GROUP)
