"""Sections of Spatial Transcriptomics arrays, from before Visium, as their authors publish them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import SectionError
from ..types import Calibration, Genes, Section, SpotTable
from .images import open_image
from .spaceranger_writer import write_spaceranger_folder

PITCH_UM, SPOT_UM = 200.0, 100.0
"""Distance between neighbouring array positions, and diameter of a spot, of the arrays of her2st."""


def write_st_array(path: Path, image: Path, counts: Path, spots: Path) -> None:
    """Write a section of a Spatial Transcriptomics array as a Space Ranger folder; positions and scale as of `read_table_section`.

    Parameters
    ----------
    path
        New folder.
    image, counts, spots
        As for `read_table_section`; the slide is copied unchanged.

    Raises
    ------
    SectionError
        As for `read_table_section`, or counts are no whole numbers, or the array lies mirrored or on its side on the slide.
    """
    section = read_table_section(path.name, counts, spots, image)
    table = section.spots
    assert table.array_rc is not None
    if (table.counts.data < 0).any() or (table.counts.data % 1 != 0).any():
        raise SectionError(f"{counts} holds something that is no whole number; expected counts, one row a spot")
    if any(np.polyfit(table.array_rc[:, axis], table.yx[:, axis], 1)[0] <= 0 for axis in (0, 1)):
        raise SectionError(f"{spots} has its array mirrored or on its side on the slide; nothing is guessed")
    write_spaceranger_folder(
        path,
        image=image,
        ids=table.ids,
        yx=table.yx,
        counts=table.counts,
        genes=table.genes,
        mpp=section.calibration.mpp,
        array_rc=table.array_rc,
        diameter=table.diameter,
        slide_name=image.name,
    )


def read_table_section(
    name: str, counts: Path, spots: Path, image: Path, *, pitch_um: float = PITCH_UM, spot_um: float = SPOT_UM
) -> Section:
    """Read a section of the Spatial Transcriptomics kind: the spots that are in both tables, scaled by their square lattice.

    Parameters
    ----------
    name
        Name of the section.
    counts
        Tab-separated, optionally gzipped: a row for each spot, named ``<x>x<y>`` after its array position; a column for each gene.
    spots
        Tab-separated with columns x, y (array position) and pixel_x, pixel_y (pixels of the image); with a column selected, only
        spots where it is 1.
    image
        RGB slide image.
    pitch_um, spot_um
        Distance between neighbouring array positions, and diameter of a spot, in microns.

    Raises
    ------
    SectionError
        A file is damaged, a file or a column is missing, or the tables share fewer than three spots.
    """
    import pandas as pd
    from scipy.sparse import csr_matrix

    for path in (counts, spots, image):
        if not path.is_file():
            raise SectionError(f"Section {name}: {path} is not a file; correct the path in the training config.")
    try:
        table, places = pd.read_csv(counts, sep="\t", index_col=0), pd.read_csv(spots, sep="\t")
    except (OSError, EOFError, ValueError) as error:
        raise SectionError(f"Section {name}: {counts} or {spots} cannot be read as a table: {error}") from error
    missing = {"x", "y", "pixel_x", "pixel_y"} - set(places.columns)
    if missing:
        raise SectionError(
            f"Section {name}: {spots} lacks the columns {sorted(missing)}; it has {list(places.columns)}."
        )
    if "selected" in places.columns:
        places = places[places["selected"] == 1]
    places.index = pd.Index([f"{int(x)}x{int(y)}" for x, y in zip(places["x"], places["y"], strict=True)])
    shared = [spot for spot in table.index if spot in places.index]
    if len(shared) < 3:
        raise SectionError(
            f"Section {name}: only {len(shared)} spots stand in both {counts} and {spots}; at least 3 are needed. "
            "Row names of the counts must be <x>x<y>."
        )
    places = places.loc[shared]
    array_rc = places[["y", "x"]].to_numpy(dtype=np.int64)
    yx = places[["pixel_y", "pixel_x"]].to_numpy(dtype=np.float64)
    mpp = fit_square_lattice(array_rc, yx, pitch_um)
    spot_table = SpotTable(
        ids=np.array(shared, dtype=np.str_),
        yx=yx,
        diameter=spot_um / mpp,
        counts=csr_matrix(table.loc[shared].to_numpy(dtype=np.float32)),
        genes=Genes(np.array(table.columns, dtype=np.str_)),
        array_rc=array_rc,
    )
    detail = f"{mpp:.4f} um per pixel, from the square lattice of {len(shared)} spots at {pitch_um:g} um"
    return Section(
        name=name,
        path=counts,
        kind="spatialdata",  # the nearest of the kinds: an image with spots, and no folder of 10x
        spots=spot_table,
        image=open_image(image),
        calibration=Calibration(mpp, "lattice", detail),
        coordinate_systems={"global": np.eye(3)},
    )


def fit_square_lattice(array_rc: NDArray[np.int64], yx: NDArray[np.float64], pitch_um: float) -> float:
    """Return microns per pixel, pitch / sqrt(|det A|), with A the least squares affine map from array (row, column) to pixels.

    It is robust to rotation, offset and slightly different scales of the axes; raises SectionError where the spots lie on one line.
    """
    design = np.column_stack([array_rc, np.ones(len(array_rc))])
    if np.linalg.matrix_rank(design) < 3:
        raise SectionError(
            "The spots lie on one line of the array: microns per pixel cannot be fitted; state the scale."
        )
    affine, *_ = np.linalg.lstsq(design, yx, rcond=None)
    return float(pitch_um / np.sqrt(abs(np.linalg.det(affine[:2]))))
