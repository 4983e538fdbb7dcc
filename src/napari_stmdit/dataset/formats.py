"""Formats of a data set: PNG folders and Parquet for `datasets`, AnnData with a zarr array of images; written block by block."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..tissue.export import NEW, SLIDE, SYNTHETIC_SLIDE, Label, label_of_result, png_of
from ..tissue.spatialdata_store import quiet
from .contents import FACTS, Contents, as_arrow

if TYPE_CHECKING:
    import pandas as pd
    from scipy.sparse import csr_matrix

IMAGES, TABLE = "anndata/images.zarr", "anndata/dataset.zarr"
ROWS_AT_ONCE = 256
"""Table rows held at a time: edits work on dense rows."""
_MAX_NAME = 80
_ROW_GROUP = 64
"""Rows of a Parquet row group; few, as each holds an image."""


@dataclass(frozen=True)
class Shard:
    """Rows ``start`` to ``stop`` of a data set: pixels (n, p, p, 3) uint8, and columns and label of each row."""

    number: int
    start: int
    stop: int
    pixels: NDArray[np.uint8]
    records: tuple[dict[str, Any], ...]
    labels: tuple[Label, ...]

    @classmethod
    def of(cls, contents: Contents, number: int, start: int, pixels: NDArray[np.uint8]) -> Shard:
        """Return a shard of images with their facts."""
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
    """Encode the images of a shard as PNG, each with its label."""
    return [png_of(pixels, mpp, label) for pixels, label in zip(shard.pixels, shard.labels, strict=True)]


def file_names(shard: Shard) -> list[str]:
    """Return the file name of each image: its row, and what it is."""
    return [
        f"{shard.start + k:07d}_{re.sub(r'[^0-9A-Za-z_.-]', '_', record['id'])[:_MAX_NAME]}.png"
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


def make_images(place: Path, contents: Contents, rows_per_shard: int) -> None:
    """Make the zarr array of images, (n, y, x, rgb) uint8, unless it exists: one chunk an image, one file a shard."""
    import zarr

    if (place / "zarr.json").is_file():
        return
    side = contents.patch_px
    zarr.create_array(
        place,
        shape=(len(contents), side, side, 3),
        chunks=(1, side, side, 3),
        shards=(rows_per_shard, side, side, 3),
        dtype="uint8",
        fill_value=0,
        dimension_names=("image", "y", "x", "rgb"),
        config={"write_empty_chunks": True},
        attributes={
            "statement": NEW.statement,
            "layout": "image k belongs to row k of dataset.zarr beside it; RGB, 8 bits",
            "microns_per_pixel": contents.patch_mpp,
        },
    )


def write_images(place: Path, start: int, pixels: NDArray[np.uint8]) -> None:
    """Write the images of one shard, atomically."""
    import zarr

    zarr.open_array(place, mode="r+")[start : start + len(pixels)] = pixels


def images_file(number: int) -> str:
    """Return the file that holds the images of a shard."""
    return f"{IMAGES}/c/{number}/0/0/0"


def write_table(place: Path, contents: Contents, records: Mapping[str, Any], check: Callable[[], None]) -> None:
    """Write everything but the images as AnnData in zarr; ``check`` is called before every block, and what it raises ends the writing.

    ``X`` are the counts as measured, ``layers["edited"]`` those the images were conditioned on, both CSR float32; ``obs`` the facts of
    each image, ``obsm["spatial"]`` the spot's (x, y) in full-resolution pixels, ``var`` the genes, ``uns`` the provenance of each run.
    """
    import anndata

    uns = {
        "synthetic": True,
        "statement": NEW.statement,
        "images": "images.zarr beside this store: (n, y, x, rgb) uint8, image k belongs to row k of obs",
        "X": contents.section.expression.statement or "counts as measured at the spot",
        "layer_edited": "counts the image was conditioned on, after edits; zero where obs['expression'] is 'null'",
        "spatial": "(x, y) of the spot's centre in full-resolution pixels of the slide, from its corner",
        "patch_px": contents.patch_px,
        "patch_mpp": contents.patch_mpp,
        "runs": {name: json.dumps(record) for name, record in records.items()},
    }
    with quiet():
        table = anndata.AnnData(
            X=_lazy(contents, contents.measured, check),
            obs=_obs(contents),
            var=_var(contents),
            layers={"edited": _lazy(contents, contents.conditioned, check)},
            uns=uns,
        )
        table.obsm["spatial"] = table.obs[["x_fullres", "y_fullres"]].to_numpy(dtype=np.float64)
        table.write_zarr(place)


def genes_table(contents: Contents) -> pd.DataFrame:
    """Return the genes in the order of every count: index, symbol, and id where the section has ids."""
    import pandas as pd

    genes = contents.section.spots.genes
    found = pd.DataFrame({"index": np.arange(len(genes)), "symbol": genes.symbols.astype(object)})
    if genes.ids is not None:
        found["id"] = genes.ids.astype(object)
    return found


def _var(contents: Contents) -> pd.DataFrame:
    """Return the genes; a symbol that occurs twice gets a number in the index, and stays as it is in the column ``symbol``."""
    import pandas as pd
    from anndata.utils import make_index_unique

    genes = genes_table(contents).drop(columns="index")
    return genes.set_index(make_index_unique(pd.Index(genes["symbol"], name=None)))


def _obs(contents: Contents) -> pd.DataFrame:
    import pandas as pd

    records = [contents.facts(k) for k in range(len(contents))]
    columns: dict[str, Any] = {}
    for column in FACTS[1:]:
        values = [record[column.name] for record in records]
        match column.kind:
            case "string":
                columns[column.name] = pd.Categorical(values)
            case "int64":
                columns[column.name] = pd.array(values, dtype="Int64")
            case _:
                columns[column.name] = np.array(values, dtype=bool if column.kind == "bool" else np.float64)
    return pd.DataFrame(columns, index=pd.Index([record["id"] for record in records], dtype=object))


def _lazy(contents: Contents, counts: Callable[[int, int], csr_matrix], check: Callable[[], None]) -> Any:
    """Return the counts of all rows as a dask array, a block at a time."""
    import dask.array as da
    from scipy.sparse import csr_matrix

    def block(rows: NDArray[np.int64]) -> csr_matrix:
        check()
        return counts(int(rows[0]), int(rows[-1]) + 1)

    rows = da.arange(len(contents), chunks=ROWS_AT_ONCE, dtype=np.int64)
    genes = contents.section.spots.counts.shape[1]
    return rows.map_blocks(
        block,
        chunks=(rows.chunks[0], (genes,)),
        new_axis=1,
        dtype=np.float32,
        meta=csr_matrix((0, 0), dtype=np.float32),
    )
