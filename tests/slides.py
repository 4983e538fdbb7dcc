"""Plain slides and predicted tables, made on the spot: glass with round pieces of something stained on it."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import tifffile
from tiny import TINY_GENES

GLASS = (243, 240, 245)
SLIDE_MPP = 0.5
SLIDE_SIDE = 1600
"""0.8 mm."""
PIECES = (((0.36, 0.36), 0.26), ((0.76, 0.78), 0.16))
"""Centres and radii of the pieces, as shares of the side."""


def tissue_picture(side: int = SLIDE_SIDE, seed: int = 0) -> np.ndarray:
    """A (side, side, 3) uint8 picture: grainy purple and pink discs on glass."""
    return _tissue_picture(side, seed).copy()


@cache
def _tissue_picture(side: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    picture = np.empty((side, side, 3), np.uint8)
    picture[:] = GLASS
    y, x = np.mgrid[:side, :side] / side
    on = on_tissue(np.stack([y, x], axis=-1).reshape(-1, 2) * side, side).reshape(side, side)
    grain = np.kron(rng.normal(size=(-(-side // 4), -(-side // 4))), np.ones((4, 4)))[:side, :side, None]
    stained = np.clip((195, 120, 175) - grain * (30, 25, 15), 0, 255)
    picture[on] = stained[on]
    return picture


def on_tissue(yx: np.ndarray, side: int = SLIDE_SIDE) -> np.ndarray:
    """Which of (n, 2) places lie on the pieces."""
    found = np.zeros(len(yx), dtype=bool)
    for centre, radius in PIECES:
        found |= ((yx / side - centre) ** 2).sum(axis=1) <= radius**2
    return found


def write_pyramid(path: Path, picture: np.ndarray | None = None, levels: int = 3, **options) -> Path:
    """Write a tiled TIFF with its halves, as scanners and libvips do."""
    picture = tissue_picture() if picture is None else picture
    shared = {"tile": (256, 256), "photometric": "rgb", "compression": "zlib"}
    with tifffile.TiffWriter(path, ome=path.name.endswith(".ome.tif")) as tiff:
        tiff.write(picture, subifds=levels - 1, **shared, **options)
        for level in range(1, levels):
            tiff.write(picture[:: 2**level, :: 2**level], subfiletype=1, **shared)
    return path


def write_aperio(path: Path, picture: np.ndarray | None = None, description: str | None = None) -> Path:
    """Write what Aperio's scanners write: full resolution, a thumbnail, and the halves as pages of one file."""
    picture = tissue_picture() if picture is None else picture
    side = picture.shape[0]
    text = f"Aperio Image Library v12.0.15\r\n{side}x{side} [0,0 {side}x{side}] (256x256) JPEG/RGB Q=70|AppMag = 20|MPP = 0.4990"
    tiled = {"tile": (256, 256), "photometric": "rgb", "compression": "zlib", "metadata": None}
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(picture, description=text if description is None else description, **tiled)
        tiff.write(picture[::8, ::8], photometric="rgb", metadata=None, description="Aperio Image Library v12.0.15\r\n")
        tiff.write(picture[::4, ::4], description="Aperio Image Library v12.0.15\r\n", **tiled)
    return path


def predicted_counts(rows: int, seed: int = 0) -> np.ndarray:
    """Expected counts (rows, 20) with fractions."""
    return np.random.default_rng(seed).gamma(2.0, 3.0, (rows, len(TINY_GENES))).astype(np.float32)


def write_table(path: Path, yx: np.ndarray, values: np.ndarray | None = None, **changes) -> Path:
    """Write a predicted table with scanpy's marker for logarithms; ``changes`` replace parts of it."""
    import anndata
    import pandas as pd

    if values is None:
        counts = predicted_counts(len(yx))
        values = np.log1p(counts * 1e4 / counts.sum(axis=1, keepdims=True)).astype(np.float32)
    names = changes.get("names", [f"row{i}" for i in range(len(yx))])
    table = anndata.AnnData(
        values, obs=pd.DataFrame(index=names), var=pd.DataFrame(index=changes.get("genes", list(TINY_GENES)))
    )
    table.uns.update(changes.get("uns", {"log1p": {}}))
    if changes.get("spatial", True):
        table.obsm["spatial"] = np.asarray(yx, dtype=np.float64)[:, ::-1]
    table.write_h5ad(path)
    return path


def write_philips(path: Path, picture: np.ndarray | None = None, spacing: str = '"0.0005" "0.0005"') -> Path:
    """Write what Philips scanners export: a TIFF whose XML states the spacing in millimetres."""
    picture = tissue_picture() if picture is None else picture
    text = (
        '<?xml version="1.0" encoding="UTF-8" ?><DataObject ObjectType="DPUfsImport">'
        '<Attribute Name="DICOM_MANUFACTURER" PMSVR="IString">PHILIPS</Attribute>'
        f'<Attribute Name="DICOM_PIXEL_SPACING" PMSVR="IDoubleArray">{spacing}</Attribute></DataObject>'
    )
    shared = {"tile": (256, 256), "photometric": "rgb", "compression": "zlib", "metadata": None}
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(picture, description=text, software="Philips DP v1.0", **shared)
        for step in (2, 4):
            tiff.write(picture[::step, ::step], software="Philips DP v1.0", **shared)
    return path
