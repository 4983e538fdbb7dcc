"""Visium HD folders: bins and segmented cells, far smaller than a patch, summed to pseudo-spots."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import SectionError
from ..files import is_number
from ..text import shorten
from ..types import Outlines, Section
from .counts import find_counts, read_counts
from .geometry import VISIUM_PITCH_UM, calibrate
from .one_section import bin_size_of, one_bin_size
from .pseudo_spots import SHARES, aggregate, outlines_of, sum_cells
from .spaceranger import (
    choose_image,
    clusters_of,
    coordinate_systems,
    join,
    read_positions,
    read_scalefactors,
    section_name,
    slide_places,
    spot_diameter,
    synthetic_marker,
)
from .zarr_codecs import damage_as_section_error

if TYPE_CHECKING:
    import pandas as pd

_BINNED = "binned_outputs"
_MAPPINGS = "barcode_mappings.parquet"
"""File of Space Ranger 4 with the bin of each square of 2 um, and whether it lies in a cell and in a nucleus."""
_PREFERRED = ("square_008um", "square_016um", "square_002um")
_SQUARE = re.compile(r"^square_(\d+)um$")


def open_visium_hd(path: Path, fullres: Path | None = None, mpp: float | None = None) -> Section:
    """Open a Visium HD folder, its bins summed to 55 um discs on a hexagonal grid of 100 um.

    Parameters
    ----------
    path
        ``binned_outputs``, the folder above it, or a folder of bins of any size in it; of several, 8 um is taken.
    fullres
        The microscope image that Space Ranger was run on; by default it is looked for.
    mpp
        Microns per full-resolution pixel; by default found by the rules of `geometry.calibrate`.

    Raises
    ------
    SectionError
        Files are missing or contradict each other, or the scale, which aggregation needs, is unknown.
    """
    folder, notes = _bins_folder(path)
    scalefactors = read_scalefactors(folder)
    positions = read_positions(folder)
    bin_um = _bin_size(folder, scalefactors.get("bin_size_um"), "".join(positions.barcodes[:1]))
    calibration = calibrate(scalefactors, positions.yx, positions.array_rc, mpp, bin_um)
    matrix = read_counts(find_counts(folder))
    bins, bin_notes = join(positions, matrix, spot_diameter(scalefactors, folder), "bins")
    root = folder.parent.parent if folder.parent.name == _BINNED else folder.parent
    bins = replace(
        bins, obs={**clusters_of(folder, bins.ids), **_shares_in_cells(root / _MAPPINGS, folder.name, bins.ids)}
    )
    empty = positions.yx[positions.in_tissue & ~np.isin(positions.barcodes, bins.ids)]
    spots, aggregated = aggregate(bins, calibration, bin_um, empty=empty)
    places = [folder, folder.parent, *slide_places(root)]
    image, image_notes = choose_image(folder, scalefactors, bins.yx, fullres, places, calibration)
    name = f"{section_name(root)}_{folder.name}"
    synthetic, synthetic_notes = synthetic_marker(folder)
    cells = root / CELLS / _OUTLINES
    return Section(
        name=name,
        path=folder,
        kind="visium_hd",
        spots=spots,
        image=image,
        calibration=calibration,
        coordinate_systems=coordinate_systems(name, scalefactors),
        synthetic=synthetic,
        notes=(*synthetic_notes, *notes, *bin_notes, *aggregated, *image_notes),
        outlines=Outlines(lambda: outlines_of(_shapes(cells)[1])) if cells.is_file() else None,
    )


def _bins_folder(path: Path) -> tuple[Path, list[str]]:
    root = path / _BINNED if (path / _BINNED).is_dir() else path
    pattern = "*" if root.name == _BINNED else "square_*"  # bins of a size that was asked for may have another name
    folders = {f.name: f for f in sorted(root.glob(pattern)) if (f / "spatial").is_dir()}
    name = next((n for n in _PREFERRED if n in folders), next(iter(folders), None))
    if name is None and (path / "spatial").is_dir():
        return path, []
    if name is None:
        raise SectionError(f"{path} holds no folder of bins; expected square_008um, square_016um or square_002um")
    others = [n for n in folders if n != name]
    return folders[name], [f"bins of {name} are used, not those of {', '.join(others)}"] if others else []


def _shares_in_cells(file: Path, bins: str, ids: NDArray[np.str_]) -> dict[str, NDArray[np.float64]]:
    """Return the shares of each bin in cells and in nuclei; nothing where Space Ranger did not segment them, or the file cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not file.is_file():
        return {}
    try:
        squares = pq.read_table(file, columns=[bins, *SHARES])
        for name in SHARES:
            squares = squares.set_column(squares.schema.get_field_index(name), name, squares[name].cast(pa.int8()))
        shares = squares.group_by(bins).aggregate([(name, "mean") for name in SHARES]).to_pandas().set_index(bins)
    except (OSError, ValueError, KeyError, pa.ArrowException):
        return {}
    shares = shares.reindex(ids.astype(object)).fillna(0.0)
    return {name: shares[f"{name}_mean"].to_numpy(dtype=np.float64) for name in SHARES}


def _bin_size(folder: Path, stated: object, barcode: str) -> float:
    if stated is not None and (not is_number(stated) or not 0 < stated <= VISIUM_PITCH_UM):
        raise SectionError(
            f"{folder}: bin_size_um of the scalefactors is {shorten(repr(stated))}; expected microns, 2, 8 or 16 as a rule"
        )
    named = _SQUARE.match(folder.name)
    sizes = {
        "bin_size_um of its scalefactors": float(stated) if is_number(stated) else None,
        "its barcodes": bin_size_of(barcode),
        "its name": None if named is None else float(named[1]),
    }
    size = one_bin_size(sizes, folder)
    if size is None:
        raise SectionError(
            f"{folder}: the size of its bins is unknown; expected bin_size_um in the scalefactors or a folder named square_008um"
        )
    return size


def holds_bins(path: Path) -> bool:
    """Return whether a folder holds bins, or folders of bins; beside these, ``outs`` has only a ``spatial`` of images."""
    if (path / "spatial").is_dir() and path.name.startswith("square_"):
        return True
    if _are_bins(path):
        return True
    bins = [
        *path.glob("square_*"),
        *path.glob(f"{_BINNED}/*"),
        *(path.iterdir() if path.name == _BINNED else ()),
    ]
    return any((p / "spatial").is_dir() for p in bins)


def _are_bins(path: Path) -> bool:
    """Return whether the positions of a folder are those of bins; a Visium section's may be in a .parquet, too."""
    file = path / "spatial" / "tissue_positions.parquet"
    if not file.is_file():
        return False
    if bin_size_of(_first_barcode(file)) is not None:
        return True
    try:
        return read_scalefactors(path).get("bin_size_um") is not None
    except SectionError:
        return False


def _first_barcode(file: Path) -> str:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as table:
            return str(next(table.iter_batches(1, columns=["barcode"]))["barcode"][0])
    except (OSError, ValueError, LookupError, StopIteration, pa.ArrowException):
        return ""  # `read_positions` tells of it


CELLS = "segmented_outputs"
_OUTLINES = "cell_segmentations.geojson"
_COUNTS = ("filtered_feature_cell_matrix.h5", "filtered_feature_cell_matrix")
_ALIGNED = (3, 1, 2)
"""First version of Space Ranger that corrects the shift of 16 um of some CytAssist instruments."""
_VERSION = re.compile(r"^spaceranger-(\d+)\.(\d+)\.(\d+)$")


def holds_cells(path: Path) -> bool:
    """Return whether a folder is, or holds, ``segmented_outputs``."""
    return (path / _OUTLINES).is_file() or (path / CELLS / _OUTLINES).is_file()


def open_cells(path: Path, fullres: Path | None = None, mpp: float | None = None) -> Section:
    """Open the cells of a Visium HD section that Space Ranger 4 segmented, summed to pseudo-spots.

    Parameters
    ----------
    path
        ``segmented_outputs``, or the folder above it.
    fullres, mpp
        As for `open_visium_hd`.

    Raises
    ------
    SectionError
        Files are missing or contradict each other, or the scale is unknown.
    """
    folder = path if (path / _OUTLINES).is_file() else path / CELLS
    scalefactors = read_scalefactors(folder)
    source = next((folder / name for name in _COUNTS if (folder / name).exists()), None)
    if source is None:
        raise SectionError(f"{folder} holds no counts of cells; expected {_COUNTS[0]}")
    matrix = read_counts(source)
    cells, shapes = _cells(folder / _OUTLINES)
    middles = cells[["y", "x"]].to_numpy()
    calibration = calibrate(scalefactors, middles, None, mpp)
    cells["area"] *= (calibration.mpp or 0) ** 2
    spots, notes = sum_cells(matrix, cells, calibration, clusters_of(folder, matrix.barcodes))
    places = [folder, *slide_places(folder.parent)]
    image, image_notes = choose_image(folder, scalefactors, middles, fullres, places, calibration)
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
        outlines=Outlines(lambda: outlines_of(shapes)),
    )


def _shapes(file: Path) -> tuple[pd.Series, NDArray[Any]]:
    """Return the ``cell_id`` of each cell, and its polygon in full-resolution pixels."""
    import geopandas as gpd

    with damage_as_section_error(file, "outlines of cells"):
        table = gpd.read_file(file, columns=["cell_id"])
        return table["cell_id"], table.geometry.to_numpy()


def _cells(file: Path) -> tuple[pd.DataFrame, NDArray[Any]]:
    """Return the centre (y, x) and area of each cell in full-resolution pixels, by its name in the counts, and all polygons."""
    import pandas as pd
    import shapely

    named, shapes = _shapes(file)
    with damage_as_section_error(file, "outlines of cells"):
        numbers = pd.to_numeric(named, errors="coerce").to_numpy(dtype=np.float64)
        middles, areas = shapely.centroid(shapes), shapely.area(shapes)
    if not (numbers == np.rint(numbers)).all():
        raise SectionError(f"{file}: a cell_id is no whole number")
    names = [f"cellid_{int(n):09d}-1" for n in numbers]
    cells = pd.DataFrame({"y": shapely.get_y(middles), "x": shapely.get_x(middles), "area": areas}, index=names)
    if not cells.index.is_unique:
        raise SectionError(f"{file}: a cell_id is there twice")
    return cells[areas > 0], shapes


def note_version(section: Section, folder: Path) -> Section:
    """Add a note to a Visium HD section, which is always made with a CytAssist, if its version is known to misplace spots.

    Parameters
    ----------
    section
        As it was opened.
    folder
        Folder of its counts, which name the version.
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
