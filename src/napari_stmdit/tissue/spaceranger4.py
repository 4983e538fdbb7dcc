"""What Space Ranger writes beside bins and spots: cells of version 4, and which version it was."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..errors import SectionError
from ..types import Section
from .counts import find_counts, read_counts
from .geometry import calibrate
from .outlines import outlines_of
from .pseudo_spots import sum_cells
from .spaceranger import (
    choose_image,
    clusters_of,
    coordinate_systems,
    read_scalefactors,
    section_name,
)
from .zarr_codecs import told_as_damage

if TYPE_CHECKING:
    import pandas as pd

CELLS = "segmented_outputs"
_OUTLINES = "cell_segmentations.geojson"
_COUNTS = ("filtered_feature_cell_matrix.h5", "filtered_feature_cell_matrix")
_ALIGNED = (3, 1, 2)
"""First version of Space Ranger that puts right the shift of 16 um of some CytAssist instruments."""
_VERSION = re.compile(r"^spaceranger-(\d+)\.(\d+)\.(\d+)$")


def holds_cells(path: Path) -> bool:
    """Tell whether a folder is, or holds, ``segmented_outputs``."""
    return (path / _OUTLINES).is_file() or (path / CELLS / _OUTLINES).is_file()


def open_cells(path: Path, fullres: Path | None = None, mpp: float | None = None) -> Section:
    """Open the cells of a Visium HD section that Space Ranger 4 segmented, summed to pseudo-spots.

    Parameters
    ----------
    path
        ``segmented_outputs``, or the folder above it.
    fullres, mpp
        As for `visium_hd.open_visium_hd`.

    Raises
    ------
    SectionError
        Where files are missing or contradict each other, or the scale is unknown.
    """
    folder = path if (path / _OUTLINES).is_file() else path / CELLS
    scalefactors = read_scalefactors(folder)
    source = next((folder / name for name in _COUNTS if (folder / name).exists()), None)
    if source is None:
        raise SectionError(f"{folder} holds no counts of cells; expected {_COUNTS[0]}")
    matrix = read_counts(source)
    cells, outlines = _outlines(folder / _OUTLINES)
    middles = cells[["y", "x"]].to_numpy()
    calibration = calibrate(scalefactors, middles, None, mpp)
    cells["area"] *= (calibration.mpp or 0) ** 2
    spots, notes = sum_cells(matrix, cells, calibration, clusters_of(folder, matrix.barcodes))
    image, image_notes = choose_image(
        folder, scalefactors, middles, fullres, [folder, folder.parent, folder.parent.parent], calibration
    )
    name = f"{section_name(folder.parent)}_cells"
    return Section(
        name=name,
        path=folder,
        kind="visium_hd",
        spots=spots,
        image=image,
        calibration=calibration,
        coordinate_systems=coordinate_systems(name, scalefactors),
        notes=(*notes, *image_notes),
        outlines=outlines,
    )


def outlining_cells(section: Section, folder: Path) -> Section:
    """Return a section of bins with the outlines of the cells that Space Ranger 4 found in it, where it did; that they cannot be read is a note.

    Parameters
    ----------
    section
        As it was opened.
    folder
        Where its counts lie.
    """
    file = next((one / CELLS / _OUTLINES for one in folder.parents[:2] if (one / CELLS / _OUTLINES).is_file()), None)
    if file is None:
        return section
    try:
        return replace(section, outlines=_outlines(file)[1])
    except SectionError as error:
        return replace(section, notes=(*section.notes, f"cells are not outlined: {error}"))


def _outlines(file: Path) -> tuple[pd.DataFrame, NDArray[np.float32]]:
    """Return the middle (y, x) and area of each cell in full-resolution pixels, by its name in the counts, and the outlines to draw."""
    import geopandas as gpd
    import pandas as pd
    import shapely

    with told_as_damage(file, "outlines of cells"):
        table = gpd.read_file(file, columns=["cell_id"])
        shapes = table.geometry.to_numpy()
        numbers = pd.to_numeric(table["cell_id"], errors="coerce").to_numpy(dtype=np.float64)
        middles, areas = shapely.centroid(shapes), shapely.area(shapes)
        outlines = outlines_of(shapes)
    if not (numbers == np.rint(numbers)).all():
        raise SectionError(f"{file}: a cell_id is no whole number")
    names = [f"cellid_{int(n):09d}-1" for n in numbers]
    cells = pd.DataFrame({"y": shapely.get_y(middles), "x": shapely.get_x(middles), "area": areas}, index=names)
    if not cells.index.is_unique:
        raise SectionError(f"{file}: a cell_id is there twice")
    return cells[areas > 0], outlines


def noting_version(section: Section, folder: Path) -> Section:
    """Return a Visium HD section, which is always made with a CytAssist, with a note where its version is known to misplace spots.

    Parameters
    ----------
    section
        As it was opened.
    folder
        Where its counts lie, which name the version.
    """
    counts = find_counts(folder)
    found = _VERSION.match(_software(counts)) if counts.suffix == ".h5" else None
    version = None if found is None else tuple(int(part) for part in found.groups())
    if version is None or version >= _ALIGNED:
        return section
    note = (
        f"made by Space Ranger {'.'.join(map(str, version))}: before 3.1.2 spots of some CytAssist instruments lie 16 um aside; look at the spots "
        "on the slide, or run a newer version"
    )
    return replace(section, notes=(*section.notes, note))


def _software(counts: Path) -> str:
    import h5py

    try:
        with h5py.File(counts, "r") as file:
            stated = file.attrs.get("software_version", "")
    except OSError:
        return ""
    return stated.decode(errors="replace") if isinstance(stated, bytes) else str(stated)
