"""What Space Ranger writes beside bins and spots: cells of version 4, its clusters, and which version it was."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..errors import SectionError
from ..files import BadFile, is_number, read_json
from ..types import Section, SpotTable
from .counts import find_counts, read_counts
from .geometry import calibrate
from .spaceranger import (
    choose_image,
    coordinate_systems,
    read_scalefactors,
    section_name,
)
from .visium_hd import aggregate

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
    outlines = _outlines(folder / _OUTLINES)
    keep = np.array([i for i, name in enumerate(matrix.barcodes.tolist()) if name in outlines], dtype=np.int64)
    if not len(keep):
        raise SectionError(
            f"no cell of {source} has an outline in {_OUTLINES}: counts have names like {matrix.barcodes[:1].tolist()}, outlines {list(outlines)[:1]}"
        )
    ids = matrix.barcodes[keep]
    places = np.array([outlines[name] for name in ids.tolist()])
    calibration = calibrate(scalefactors, places[:, :2], None, mpp)
    cells = SpotTable(ids, places[:, :2], 1.0, matrix.counts[keep], matrix.genes)
    areas = places[:, 2] * (calibration.mpp or 0) ** 2
    spots, notes = aggregate(cells, calibration, None, areas)
    if len(keep) < len(matrix.barcodes):
        notes.append(f"{len(matrix.barcodes) - len(keep)} cells have no outline and are left out")
    image, image_notes = choose_image(
        folder, scalefactors, cells.yx, fullres, [folder, folder.parent, folder.parent.parent], calibration
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
    )


def _outlines(file: Path) -> dict[str, tuple[float, float, float]]:
    """Name of each cell, as the counts have it -> centre (y, x) and area, in full-resolution pixels."""
    import shapely

    try:
        features = read_json(file)["features"]
        shapes = [shapely.Polygon(f["geometry"]["coordinates"][0]) for f in features]
        numbers = [f["properties"]["cell_id"] for f in features]
    except (BadFile, KeyError, TypeError, IndexError, ValueError) as error:
        raise SectionError(f"{file} cannot be read as outlines of cells: {error}") from error
    if not all(is_number(n) and n == int(n) for n in numbers):
        raise SectionError(f"{file}: a cell_id is no whole number")
    return {
        f"cellid_{int(n):09d}-1": (s.centroid.y, s.centroid.x, s.area)
        for n, s in zip(numbers, shapes, strict=True)
        if s.area > 0
    }


def with_version_and_clusters(section: Section, folder: Path, is_hd: bool) -> Section:
    """Return a section with Space Ranger's clusters as a column, and a note where its version is known to misplace spots.

    Parameters
    ----------
    section
        As it was opened.
    folder
        Where its counts lie, which name the version, and ``analysis``.
    is_hd
        Whether it is Visium HD, which is always made with a CytAssist.
    """
    notes = list(section.notes)
    counts = None if section.expression.kind == "none" else find_counts(folder)
    found = None if counts is None or counts.suffix != ".h5" else _VERSION.match(_software(counts))
    version = None if found is None else tuple(int(part) for part in found.groups())
    if is_hd and version is not None and version < _ALIGNED:
        notes.append(
            f"made by Space Ranger {'.'.join(map(str, version))}: before 3.1.2 spots of some CytAssist instruments lie 16 um aside; look at the spots "
            "on the slide, or run a newer version"
        )
    clusters = {} if is_hd else _clusters(folder)
    if clusters:
        column = np.array([clusters.get(name, "") for name in section.spots.ids.tolist()], dtype=np.str_)
        if (column != "").any():
            spots = replace(section.spots, obs={**section.spots.obs, "graphclust": column})
            return replace(section, spots=spots, notes=tuple(notes))
    return replace(section, notes=tuple(notes))


def _software(counts: Path) -> str:
    import h5py

    try:
        with h5py.File(counts, "r") as file:
            stated = file.attrs.get("software_version", "")
    except OSError:
        return ""
    return stated.decode(errors="replace") if isinstance(stated, bytes) else str(stated)


def _clusters(folder: Path) -> dict[str, str]:
    """Barcode -> Space Ranger's cluster by graph; empty where it made none or they cannot be read."""
    import pandas as pd

    for inner in ("gene_expression_graphclust", "graphclust"):
        file = folder / "analysis" / "clustering" / inner / "clusters.csv"
        if file.is_file():
            try:
                table = pd.read_csv(file, dtype=str)
                return dict(zip(table["Barcode"], table["Cluster"], strict=True))
            except (OSError, ValueError, KeyError):
                return {}
    return {}
