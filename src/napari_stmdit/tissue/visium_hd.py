"""Read Visium HD folders: bins far smaller than a patch, summed to pseudo-spots of the size that networks are trained with."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from ..errors import SectionError
from ..files import is_number
from ..text import shorten
from ..types import Section
from .counts import find_counts, read_counts
from .geometry import VISIUM_PITCH_UM, calibrate
from .pseudo_spots import aggregate
from .spaceranger import (
    choose_image,
    clusters_of,
    coordinate_systems,
    join,
    read_positions,
    read_scalefactors,
    section_name,
    spot_diameter,
    synthetic_marker,
)

_PREFERRED = ("square_008um", "square_016um", "square_002um")
_SQUARE = re.compile(r"^square_(\d+)um$")


def open_visium_hd(path: Path, fullres: Path | None = None, mpp: float | None = None) -> Section:
    """Open a Visium HD folder, its bins aggregated to 55 um discs on a hexagonal grid of 100 um.

    Parameters
    ----------
    path
        ``binned_outputs``, the folder above it, or one of the ``square_*`` folders; of several bin sizes 8 um is taken.
    fullres
        The microscope image that Space Ranger was run on; by default it is looked for.
    mpp
        Microns per full-resolution pixel; by default found by the rules of `geometry.calibrate`.

    Raises
    ------
    SectionError
        Where files are missing or contradict each other, or the scale is unknown, without which nothing can be aggregated.
    """
    folder, notes = _bins_folder(path)
    scalefactors = read_scalefactors(folder)
    positions = read_positions(folder)
    bin_um = _bin_size(folder, scalefactors.get("bin_size_um"))
    calibration = calibrate(scalefactors, positions.yx, positions.array_rc, mpp, bin_um)
    matrix = read_counts(find_counts(folder))
    bins, bin_notes = join(positions, matrix, spot_diameter(scalefactors, folder), "bins")
    bins = replace(bins, obs=clusters_of(folder, bins.ids))
    spots, aggregated = aggregate(bins, calibration, bin_um)
    root = folder.parent.parent if folder.parent.name == "binned_outputs" else folder.parent
    places = [folder, folder.parent, root]
    image, image_notes = choose_image(folder, scalefactors, bins.yx, fullres, places, calibration)
    name = f"{section_name(root)}_{folder.name}"
    synthetic, synthetic_notes = synthetic_marker(folder)
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
    )


def _bins_folder(path: Path) -> tuple[Path, list[str]]:
    root = path / "binned_outputs" if (path / "binned_outputs").is_dir() else path
    folders = {f.name: f for f in sorted(root.glob("square_*")) if (f / "spatial").is_dir()}
    name = next((n for n in _PREFERRED if n in folders), next(iter(folders), None))
    if name is None and (path / "spatial").is_dir():
        return path, []
    if name is None:
        raise SectionError(f"{path} holds no folder of bins; expected square_008um, square_016um or square_002um")
    others = [n for n in folders if n != name]
    return folders[name], [f"bins of {name} are used, not those of {', '.join(others)}"] if others else []


def _bin_size(folder: Path, stated: object) -> float:
    if stated is not None:
        if not is_number(stated) or not 0 < stated < VISIUM_PITCH_UM:
            raise SectionError(
                f"{folder}: bin_size_um of the scalefactors is {shorten(repr(stated))}; expected microns, 2, 8 or 16 as a rule"
            )
        return float(stated)
    match = _SQUARE.match(folder.name)
    if match is None:
        raise SectionError(
            f"{folder}: the size of its bins is unknown; expected bin_size_um in the scalefactors or a folder named square_008um"
        )
    return float(match.group(1))
