"""A data set as AnnData, and its images as a zarr array beside it, row for row. Both are written block by block."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..tissue.labels import NEW
from ..tissue.spatialdata_store import quiet
from .columns import FACTS
from .contents import Contents

if TYPE_CHECKING:
    import pandas as pd
    from scipy.sparse import csr_matrix

IMAGES, TABLE = "anndata/images.zarr", "anndata/dataset.zarr"
ROWS_AT_ONCE = 256
"""Edits work on dense rows; so many are held at a time."""


def make_images(place: Path, contents: Contents, rows_per_shard: int) -> None:
    """Make the zarr array of the images, (n, y, x, rgb) uint8, where it is not there yet: a chunk an image, a file a shard."""
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
    """Write the images of one shard: one file, in one step."""
    import zarr

    zarr.open_array(place, mode="r+")[start : start + len(pixels)] = pixels


def images_file(number: int) -> str:
    """Return the file that holds the images of a shard."""
    return f"{IMAGES}/c/{number}/0/0/0"


def write_table(place: Path, contents: Contents, records: Mapping[str, Any], check: Callable[[], None]) -> None:
    """Write everything but the images as AnnData in zarr.

    ``X`` are the counts as measured, ``layers["edited"]`` those the images were conditioned on, both CSR float32; ``obs`` the facts of
    each image, ``obsm["spatial"]`` the spot's (x, y) in full-resolution pixels, ``var`` the genes.

    Parameters
    ----------
    place
        The new folder.
    contents
        What to write.
    records
        Run -> its provenance, kept in ``uns``.
    check
        Called before every block; what it raises ends the writing.
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
    """The genes; a symbol that occurs twice gets a number as its name here, and stays as it is in the column ``symbol``."""
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
    """The counts of all rows, a block at a time."""
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
