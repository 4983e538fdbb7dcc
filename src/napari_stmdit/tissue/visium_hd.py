"""Read Visium HD folders: bins far smaller than a patch, summed to pseudo-spots of the size that networks are trained with."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import SectionError
from ..files import is_number
from ..text import shorten
from ..types import Calibration, Section, SpotTable
from .counts import (
    MAX_COUNTS,
    fault_of_counts,
    find_counts,
    read_counts,
)
from .geometry import VISIUM_PITCH_UM, calibrate
from .spaceranger import (
    choose_image,
    coordinate_systems,
    join,
    read_positions,
    read_scalefactors,
    section_name,
    spot_diameter,
    synthetic_marker,
)

DISC_UM = 55.0
"""Diameter of a pseudo-spot: that of a Visium spot."""
MIN_CELLS = 3
"""Cells in a pseudo-spot that is made of cells: fewer say little of a patch."""
_PREFERRED = ("square_008um", "square_016um", "square_002um")
_SQUARE = re.compile(r"^square_(\d+)um$")
_MIN_COVERED = 0.5


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


def aggregate(
    bins: SpotTable, calibration: Calibration, bin_um: float | None, areas: NDArray[np.float64] | None = None
) -> tuple[SpotTable, list[str]]:
    """Sum bins, or cells, into discs of 55 um on a hexagonal grid of 100 um.

    One bin of 2 to 16 um cannot stand for a patch of 128 to 176 um. A disc counts where bins on tissue cover half of it; in a
    table of so few bins that no disc is, wherever a bin lies. Of cells, whose outlines leave gaps, three must have their centre in a disc.

    Parameters
    ----------
    bins
        The bins on tissue. One centre of the grid is the bin nearest to the middle of them.
    calibration
        Its ``mpp`` must be known.
    bin_um
        Side of a bin; None for cells.
    areas
        (n,) of cells in square microns.

    Returns
    -------
    tuple
        The pseudo-spots, with the number of their bins in ``obs["bins"]``, and notes for the user.
    """
    from scipy.sparse import csr_matrix

    mpp = calibration.mpp
    if mpp is None:
        raise SectionError(f"bins cannot be brought together to spots without a scale: {calibration.detail}")
    middle = np.median(bins.yx, axis=0)
    anchor = bins.yx[np.argmin(((bins.yx - middle) ** 2).sum(axis=1))]
    rc, distance = _nearest_centre((bins.yx - anchor) * mpp)
    inside = np.flatnonzero(distance <= DISC_UM / 2)
    discs, disc_of = np.unique(rc[inside], axis=0, return_inverse=True)
    disc_of = disc_of.ravel()
    members = np.bincount(disc_of, minlength=len(discs))
    covered = members >= (MIN_CELLS if bin_um is None else _MIN_COVERED * _full_disc(bin_um))
    keep = np.flatnonzero(covered if covered.any() else members > 0)
    kind = bins.counts.dtype
    if (
        kind.kind in "iu"
        and bins.counts.nnz
        and float(bins.counts.data.max()) * float(members.max(initial=0)) > MAX_COUNTS
    ):
        kind = np.dtype(np.int64)  # sums in the type of the bins could wrap around
    ones = np.ones(len(inside), dtype=kind)
    belongs = csr_matrix((ones, (disc_of, inside)), shape=(len(discs), len(bins)))
    discs = discs[keep]
    centres = discs * (VISIUM_PITCH_UM * math.sqrt(3) / 2, VISIUM_PITCH_UM / 2) / mpp + anchor
    discs = discs - discs.min(axis=0) // 2 * 2  # from zero on; by even numbers, which keeps the parity of the lattice
    spots = SpotTable(
        ids=np.array([f"hd_{r:03d}x{c:03d}" for r, c in discs.tolist()], dtype=np.str_),
        yx=centres,
        diameter=DISC_UM / mpp,
        counts=csr_matrix(belongs[keep] @ bins.counts),
        genes=bins.genes,
        array_rc=discs,
        obs={"cells" if bin_um is None else "bins": members[keep]},
    )
    fault = fault_of_counts(spots.counts)
    if fault is not None:
        raise SectionError(f"bins cannot be summed to spots: a sum is {fault}, more than any spot has")
    if bin_um is None:
        size = "" if areas is None else f" of {np.median(areas):.3g} um2 (median)"
        note = f"{len(bins)} cells{size} were summed into {len(spots)} pseudo-spots: discs of {DISC_UM:g} um on a hexagonal grid of {VISIUM_PITCH_UM:g} um"
        few = (
            f"; a disc with fewer than {MIN_CELLS} is left out" if covered.any() else f". No disc has {MIN_CELLS} cells"
        )
        return spots, [f"{note}; {np.median(members[keep]):g} cells in each (median){few}"]
    note = (
        f"{len(bins)} bins of {bin_um:g} um were summed into {len(spots)} pseudo-spots: discs of {DISC_UM:g} um on a hexagonal grid "
        f"of {VISIUM_PITCH_UM:g} um; {np.median(members[keep]):g} bins in each (median)"
    )
    if not covered.any():
        note += f". No disc is covered by half, which would take {_full_disc(bin_um) / 2:.0f} bins"
    return spots, [note]


def _full_disc(bin_um: float) -> float:
    return math.pi * (DISC_UM / 2) ** 2 / bin_um**2


def _nearest_centre(microns: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Array indices (n, 2) of the nearest grid centre on a Visium lattice, and the distance (n,) to it in microns."""
    row_um, half_um = VISIUM_PITCH_UM * math.sqrt(3) / 2, VISIUM_PITCH_UM / 2
    low = np.floor(microns[:, 0] / row_um).astype(np.int64)
    best = np.full(len(microns), np.inf)
    rc = np.zeros((len(microns), 2), dtype=np.int64)
    for row in (low, low + 1):
        shift = row % 2  # odd rows lie half a pitch aside
        column = 2 * np.rint((microns[:, 1] / half_um - shift) / 2).astype(np.int64) + shift
        distance = np.hypot(microns[:, 0] - row * row_um, microns[:, 1] - column * half_um)
        nearer = distance < best
        best[nearer] = distance[nearer]
        rc[nearer] = np.stack([row, column], axis=1)[nearer]
    return rc, best
