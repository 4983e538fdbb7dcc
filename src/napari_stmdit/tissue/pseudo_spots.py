"""Pseudo-spots: bins and cells summed to discs of the size that networks are trained with; outlines of cells."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from ..errors import SectionError
from ..text import counted
from ..types import Calibration, SpotTable
from .counts import MAX_COUNTS, CountMatrix, fault_of_counts
from .geometry import MAX_PX, VISIUM_PITCH_UM, check_positions
from .one_section import MIN_PITCH_UM

if TYPE_CHECKING:
    import pandas as pd
    from scipy.sparse import csr_matrix

DISC_UM = 55.0
"""Diameter of a pseudo-spot: that of a Visium spot."""
MIN_CELLS = 3
"""Minimum number of cells in a pseudo-spot: fewer say little about a patch."""
CLUSTERS = "graphclust"
"""Column of the clusters by 10x's pipelines; a pseudo-spot has that of most of its members."""
SHARES = ("in_cell", "in_nucleus")
"""Columns of the shares of a bin in cells and in nuclei, 0 to 1, as of Space Ranger 4."""
_MIN_COVERED = 0.5


def aggregate(
    bins: SpotTable,
    calibration: Calibration,
    bin_um: float | None,
    areas: NDArray[np.float64] | None = None,
    empty: NDArray[np.float64] | None = None,
) -> tuple[SpotTable, list[str]]:
    """Sum bins, or cells, into discs of 55 um on a hexagonal grid of 100 um; bins of `MIN_PITCH_UM` and more are spots as they are.

    One bin of 2 to 16 um cannot stand for a patch of 128 to 176 um. A disc counts if bins on tissue cover half of it; in a
    table of so few bins that no disc is, if it has any bin. Of cells, whose outlines leave gaps, three must have their centre in a disc.

    Parameters
    ----------
    bins
        The bins on tissue, or cells. A centre of the grid is at the one nearest to their middle.
    calibration
        Its ``mpp`` must be known.
    bin_um
        Side of a bin; None for cells.
    areas
        (n,) areas of cells in square microns.
    empty
        (m, 2) centres of the bins on tissue that have no row of counts: filters drop them, and they cover a disc as the others do.

    Returns
    -------
    tuple
        The pseudo-spots, with the number of their bins in ``obs["bins"]`` or of their cells in ``obs["cells"]``, and `CLUSTERS` and
        `SHARES` where the bins have them; and notes for the user.
    """
    from scipy.sparse import csr_matrix

    if bin_um is not None and bin_um >= MIN_PITCH_UM:
        return bins, [f"bins of {bin_um:g} um are spots as they are, and not summed"]
    mpp = calibration.mpp
    noun = "cells" if bin_um is None else "bins"
    if mpp is None:
        raise SectionError(f"{noun} cannot be brought together to spots without a scale: {calibration.detail}")
    middle = np.median(bins.yx, axis=0)
    anchor = bins.yx[np.argmin(((bins.yx - middle) ** 2).sum(axis=1))]
    yx = bins.yx if empty is None else np.concatenate([bins.yx, empty[(np.abs(empty) < MAX_PX).all(axis=1)]])
    rc, distance = _nearest_centre((yx - anchor) * mpp)
    inside = np.flatnonzero(distance <= DISC_UM / 2)
    discs, disc_of = np.unique(rc[inside], axis=0, return_inverse=True)
    disc_of = disc_of.ravel()
    filled = np.bincount(disc_of, minlength=len(discs)) >= (MIN_CELLS if bin_um is None else _half_disc(bin_um))
    disc_of, inside = disc_of[inside < len(bins)], inside[inside < len(bins)]
    members = np.bincount(disc_of, minlength=len(discs))
    covered = filled & (members > 0)
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
        obs={noun: members[keep], **_carried(bins, belongs[keep])},
    )
    fault = fault_of_counts(spots.counts)
    if fault is not None:
        raise SectionError(f"{noun} cannot be summed to spots: a sum is {fault}, more than any spot has")
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
        note += f". No disc is covered by half, which would take {_half_disc(bin_um):.0f} bins"
    elif left := int(np.count_nonzero(members)) - len(spots):
        note += f"; left out: {counted(left, 'disc')} of which bins cover less than half"
    return spots, [note]


def _carried(bins: SpotTable, belongs: csr_matrix) -> dict[str, NDArray[Any]]:
    """Return the mean shares of the members of each disc, and their most frequent cluster; empty text where none has one.

    Shares that are text are no numbers to take a mean of, and stay behind.
    """
    members = np.asarray(belongs.sum(axis=1), dtype=np.float64).ravel()
    carried: dict[str, NDArray[Any]] = {
        name: np.asarray(belongs @ bins.obs[name]).ravel() / members
        for name in SHARES
        if name in bins.obs and bins.obs[name].dtype.kind == "f"
    }
    if CLUSTERS not in bins.obs:
        return carried
    names, which = np.unique(bins.obs[CLUSTERS], return_inverse=True)
    votes = np.stack([np.asarray(belongs @ (which == k)).ravel() for k in range(len(names))], axis=1)
    votes[:, np.isin(names, ("", "nan"))] = 0  # members without a cluster do not vote
    return {CLUSTERS: np.where(votes.any(axis=1), names[votes.argmax(axis=1)], ""), **carried}


def sum_cells(
    matrix: CountMatrix, cells: pd.DataFrame, calibration: Calibration, clusters: Mapping[str, NDArray[np.str_]]
) -> tuple[SpotTable, list[str]]:
    """Sum cells with counts and position into pseudo-spots.

    Parameters
    ----------
    matrix
        Counts of cells.
    cells
        Columns ``y``, ``x`` (full-resolution pixels) and ``area`` (square microns), by names as the counts have them.
    calibration
        Its ``mpp`` must be known.
    clusters
        A column for the cells of the matrix, or none.

    Raises
    ------
    SectionError
        No cell has both, or the scale is unknown.
    """
    import pandas as pd

    at = cells.index.get_indexer(pd.Index(matrix.barcodes.astype(object)))
    keep = np.flatnonzero(at >= 0)
    if not len(keep):
        raise SectionError(
            f"no cell of {matrix.source} has a place: counts have names like {matrix.barcodes[:1].tolist()}, places {cells.index[:1].tolist()}"
        )
    there = cells.iloc[at[keep]]
    yx, ids = there[["y", "x"]].to_numpy(dtype=np.float64), matrix.barcodes[keep]
    check_positions(yx, ids, "of the cells", "(y, x)")
    obs = {name: values[keep] for name, values in clusters.items()}
    table = SpotTable(ids, yx, 1.0, matrix.counts[keep], matrix.genes, obs=obs)
    spots, notes = aggregate(table, calibration, None, there["area"].to_numpy(dtype=np.float64))
    if len(keep) < len(matrix.barcodes):
        notes.append(f"{len(matrix.barcodes) - len(keep)} cells have no outline and are left out")
    return spots, notes


def _half_disc(bin_um: float) -> float:
    """Return how many bins cover half of a disc; one wider than its radius may be the only one with its centre in it."""
    return 1 if bin_um > DISC_UM / 2 else _MIN_COVERED * math.pi * (DISC_UM / 2) ** 2 / bin_um**2


def _nearest_centre(microns: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return array indices (n, 2) of the nearest grid centre on a Visium lattice, and the distance (n,) to it in microns."""
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


_TILE = 512
_MIN_PX, _DRAWN_PX, _BAND = 1024, 4096, 128


def outlines_of(shapes: NDArray[Any]) -> NDArray[np.float32]:
    """Return the outlines of shapely polygons as line segments; see `pieces_of_rings`."""
    import shapely

    rings = shapely.get_exterior_ring(shapely.get_parts(shapes))
    corners, ring = shapely.get_coordinates(rings, return_index=True)
    return pieces_of_rings(corners[:, ::-1], ring)


def pieces_of_rings(corners: NDArray[np.float64], ring: NDArray[Any]) -> NDArray[np.float32]:
    """Return the line segments of closed rings, (k, 2, 2): start and end of each.

    Parameters
    ----------
    corners
        (m, 2) corners (y, x) of the rings, one ring after the other.
    ring
        (m,) ring of each corner.
    """
    same = ring[1:] == ring[:-1]
    return np.stack([corners[:-1][same], corners[1:][same]], axis=1).astype(np.float32)


def drawn_outlines(pieces: NDArray[np.float32], shape: tuple[int, int]) -> list[Any]:
    """Draw outlines as black lines of one pixel, in a lazy picture.

    Half a million cells have millions of segments, more than a layer of vectors or shapes can show; only the part in view is drawn.

    Parameters
    ----------
    pieces
        (k, 2, 2), in full-resolution pixels.
    shape
        Height and width of the picture in full-resolution pixels.

    Returns
    -------
    list
        Arrays (y, x, 4) uint8, each half as large as the one before. Levels of up to `_DRAWN_PX`, in which everything is in view, are drawn;
        the others are dask arrays.
    """
    import dask.array as da

    ordered = pieces[np.argsort(pieces[:, 0, 0], kind="stable")]
    levels: list[Any] = []
    for number, (height, width) in enumerate(level_sizes(shape)):
        source = _Drawing(ordered, (height, width), 2**number)
        if max(height, width) <= _DRAWN_PX:
            # in bands: a thread that works on millions of pieces at once keeps the others waiting
            bands = [source[top : top + _BAND, :, :] for top in range(0, height, _BAND)]
            levels.append(np.concatenate(bands))
            continue
        how: dict[str, Any] = {"name": f"outlines-{uuid4().hex}", "meta": np.empty((0, 0, 0), np.uint8)}
        levels.append(da.from_array(source, chunks=(_TILE, _TILE, 4), **how))
    return levels


def level_sizes(shape: tuple[int, int]) -> list[tuple[int, int]]:
    """Return height and width of the levels of `drawn_outlines`."""
    sizes = [shape]
    while max(sizes[-1]) > _MIN_PX:
        sizes.append((-(-shape[0] // 2 ** len(sizes)), -(-shape[1] // 2 ** len(sizes))))
    return sizes


class _Drawing:
    """Picture of line segments, sorted by where they start from top to bottom, drawn part by part as it is sliced."""

    dtype = np.dtype(np.uint8)
    ndim = 3

    def __init__(self, pieces: NDArray[np.float32], size: tuple[int, int], factor: int) -> None:
        self.shape = (*size, 4)
        self.factor = factor
        self._pieces, self._top = pieces, pieces[:, 0, 0]
        self._reach = float(np.abs(pieces[:, 1] - pieces[:, 0]).max(initial=0.0)) + factor

    def __getitem__(self, key: tuple[slice, slice, slice]) -> NDArray[np.uint8]:
        (top, bottom, _), (left, right, _) = (
            part.indices(size) for part, size in zip(key[:2], self.shape[:2], strict=True)
        )
        drawn = np.zeros((bottom - top, right - left, 4), dtype=np.uint8)
        first, last = np.searchsorted(self._top, (top * self.factor - self._reach, bottom * self.factor + self._reach))
        near = self._pieces[first:last]
        x = near[:, 0, 1]
        near = near[(x >= left * self.factor - self._reach) & (x <= right * self.factor + self._reach)] / np.float32(
            self.factor
        )
        along = near[:, 1] - near[:, 0]
        counts = np.ceil(np.abs(along).max(axis=1, initial=0.0)).astype(np.int64) + 1
        piece = np.repeat(np.arange(len(near)), counts)
        share = (np.arange(len(piece)) - np.repeat(np.cumsum(counts) - counts, counts)) / counts[piece]
        at = np.floor(near[piece, 0] + share[:, None] * along[piece]).astype(np.int64) - (top, left)
        at = at[((at >= 0) & (at < drawn.shape[:2])).all(axis=1)]
        drawn[at[:, 0], at[:, 1], 3] = 255
        return drawn[..., key[2]]
