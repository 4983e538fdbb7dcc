"""Plain H&E slides: without counts, so the spots are a virtual grid on the tissue, or the positions of a predicted table."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import SectionError
from ..types import ExpressionSource, Genes, PredictedUnits, Section, SlideImage, SpotTable
from .geometry import VISIUM_PITCH_UM
from .images import open_image
from .predicted import PredictedTable, at_own_positions, match_to_grid, read_predicted
from .slide_scale import calibrate_slide
from .spaceranger import section_name
from .tissue_mask import TissueMask, find_tissue

SPOT_UM = 55.0
"""Diameter of a virtual spot: that of a Visium spot."""
TISSUE_FRACTION = 0.5
"""Minimum share of a spot on tissue."""
PITCH_WITHIN = (10.0, 10_000.0)
MAX_SPOTS = 1_000_000


def open_slide(
    path: Path,
    mpp: float | None = None,
    *,
    grid_pitch: float | None = None,
    tissue_fraction: float = TISSUE_FRACTION,
    predicted_expression: str | Path | None = None,
    predicted_units: PredictedUnits | None = None,
) -> Section:
    """Open a plain H&E image as a section.

    Parameters
    ----------
    path
        JPEG, PNG or TIFF, with scanner formats based on TIFF (SVS, NDPI, OME-TIFF).
    mpp
        Microns per pixel; by default as the file states, see `slide_scale`.
    grid_pitch, tissue_fraction, predicted_expression, predicted_units
        Grid, tissue and predicted expression, see `napari_stmdit.tissue.open.SectionSource`.

    Returns
    -------
    Section
        Of the kind ``image``. Its expression is none (no gene) or predicted, and labelled so.

    Raises
    ------
    ScaleError
        The scale is neither stated nor given.
    SectionError
        A file cannot be read, no spot lies on tissue, or the predicted table does not fit the slide.
    """
    image = open_image(path)
    scale, calibration = calibrate_slide(path, mpp)
    table = None if predicted_expression is None else read_predicted(predicted_expression, predicted_units)
    mask = find_tissue(image, scale) if tissue_fraction > 0 else None
    spots, notes = _spots(image, scale, mask, tissue_fraction, table, grid_pitch)
    expression = ExpressionSource("none") if table is None else table.source
    name = section_name(path)
    return Section(
        name=name,
        path=path,
        kind="image",
        spots=spots,
        image=image,
        calibration=calibration,
        coordinate_systems={name: np.eye(3)},
        notes=(expression.statement, *notes),
        expression=expression,
    )


def _spots(
    image: SlideImage,
    mpp: float,
    mask: TissueMask | None,
    share: float,
    table: PredictedTable | None,
    pitch: float | None,
) -> tuple[SpotTable, list[str]]:
    """Return the spots of a slide: the table's own positions, or a grid, alone or with the nearest rows of the table."""
    height, width = (side * image.pixel_size for side in image.shape)
    radius = SPOT_UM / 2 / mpp
    told = [] if mask is None else [f"tissue: {mask.rule}; {mask.mask.mean():.0%} of the slide"]
    if table is not None and pitch is None:
        spots, notes = at_own_positions(table, (height, width), mask, share, radius)
        return spots, [*told, *notes]
    grid, rc = hex_grid((height, width), (pitch or VISIUM_PITCH_UM) / mpp)
    keep = np.ones(len(grid), dtype=bool)
    if mask is not None:
        keep = mask.fraction(grid, radius) >= share
    if not keep.any():
        raise SectionError(
            f"no spot of the grid lies on tissue ({told[0] if told else 'the slide is smaller than its pitch'}); give a smaller "
            "grid_pitch, or tissue_fraction=0 to cover the whole slide"
        )
    spots = _grid_table(grid[keep], rc[keep], 2 * radius, pitch or VISIUM_PITCH_UM)
    where = "on the slide" if mask is None else f"on tissue (at least {share:.0%} of the spot)"
    told.append(
        f"virtual grid: {len(spots)} spots of {SPOT_UM:g} um, {pitch or VISIUM_PITCH_UM:g} um apart, hexagonal, {where}"
    )
    if table is None:
        return spots, told
    spots, notes = match_to_grid(table, spots, (height, width), radius)
    return spots, [*told, *notes]


def hex_grid(size: tuple[float, float], pitch: float) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Lay a hexagonal grid over an image from its corner.

    Parameters
    ----------
    size
        Height and width in full-resolution pixels.
    pitch
        Distance between centres, in full-resolution pixels.

    Returns
    -------
    tuple
        (n, 2) centres (y, x) in full-resolution pixels, and their (n, 2) array rows and columns, as on Visium: columns in half
        pitches.

    Raises
    ------
    SectionError
        There would be more than `MAX_SPOTS`.
    """
    row, half = pitch * math.sqrt(3) / 2, pitch / 2
    rows, columns = (max(0, math.ceil(side / step - 0.5)) for side, step in zip(size, (row, half), strict=True))
    if rows * columns / 2 > MAX_SPOTS:
        raise SectionError(
            f"a grid of this pitch has {rows * columns // 2:,} spots on the slide; give a larger grid_pitch"
        )
    r, c = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    rc = np.stack([r, c], axis=-1).reshape(-1, 2)
    rc = rc[rc.sum(axis=1) % 2 == 0].astype(np.int64)
    return (rc + 0.5) * (row, half), rc


def _grid_table(yx: NDArray[np.float64], rc: NDArray[np.int64], diameter: float, pitch: float) -> SpotTable:
    from scipy.sparse import csr_matrix

    ids = np.array([f"grid_{r:03d}x{c:03d}" for r, c in rc.tolist()], dtype=np.str_)
    nothing: Any = csr_matrix((len(yx), 0), dtype=np.float32)
    # array indices mean a Visium lattice to every reader, and that has 100 um
    visium = rc if pitch == VISIUM_PITCH_UM else None
    return SpotTable(ids, yx, diameter, nothing, Genes(np.array([], dtype=np.str_)), visium)
