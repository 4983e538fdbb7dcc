"""Checks that spots are those of one section, each large enough for a patch: not several libraries, bins or cells."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import SectionError
from ..text import capitalised, shorten
from ..types import SpotTable
from .geometry import VISIUM_PITCH_UM, fit_lattice

MIN_PITCH_UM = 40.0
"""Minimum distance between spots: nearer ones are bins or cells, which say nothing of a patch of 128 um or more."""
LIBRARY_COLUMN = "library_id"
"""Column of a spot's library in scanpy and squidpy."""
_GEM_GROUP = re.compile(r"^(?:[ACGTN]{10,}|s_\d+um_\d+_\d+)-(\d+)$")
_BARCODE = re.compile(r"(?<![A-Z])[ACGT]{16}(?![A-Z])")
_BIN = re.compile(r"^s_0*(\d+)um_\d+_\d+")
_MAX_NEIGHBOURS = 2000
_KEEP_ONE = "a section is one of them: keep the rows of one and write them again"


def refuse_aggregated(counted: NDArray[np.str_], placed: NDArray[np.str_], source: object) -> None:
    """Raise SectionError where counts are of several libraries, joined by ``spaceranger aggr``, and positions are of one.

    Barcodes are the same on every slide, and ``-1`` is the suffix of every library on its own: joined by it, the counts of the first
    library would be laid on whatever section the positions are of. Positions with another suffix name the library.

    Parameters
    ----------
    counted, placed
        Barcodes of the counts and of the positions.
    source
        The counts, for the message.
    """
    libraries, of_positions = _gem_groups(counted), _gem_groups(placed)
    if len(of_positions) > 1:
        libraries = libraries | of_positions
    elif of_positions != {"1"}:
        return
    if len(libraries) > 1:
        listed = ", ".join(f"-{n}" for n in sorted(libraries, key=int))
        raise SectionError(
            f"{source} and its positions hold barcodes of several libraries (suffixes {listed}), as spaceranger aggr joins them, and it is not said "
            "which of them this section is; give the matrix of its library alone, or positions whose barcodes have that library's suffix"
        )


def _gem_groups(barcodes: NDArray[np.str_]) -> set[str]:
    """Return the suffixes of barcodes that look like those of 10x Genomics."""
    if len({barcode.rpartition("-")[2] for barcode in barcodes.tolist()}) < 2:  # the common case, for millions of bins
        barcodes = barcodes[:1]
    return {found[1] for barcode in barcodes.tolist() if (found := _GEM_GROUP.match(barcode))}


def refuse_libraries(
    ids: NDArray[np.str_], obs: Mapping[str, NDArray[Any]], array_rc: NDArray[np.int64] | None, source: str
) -> None:
    """Raise SectionError where spots are of several libraries: by a column, by barcodes, or by array positions that occur twice.

    Parameters
    ----------
    ids
        (n,) names of the spots.
    obs
        Columns of the spots' table, each (n,).
    array_rc
        (n, 2) array rows and columns, or None.
    source
        The table, for the message.
    """
    values = np.unique(obs[LIBRARY_COLUMN]).tolist() if LIBRARY_COLUMN in obs else []
    named = {str(value) for value in values} - {"", "nan"}
    if len(named) > 1:
        raise SectionError(
            f"{source} holds spots of several libraries ({LIBRARY_COLUMN}: {shorten(', '.join(sorted(named)))}); {_KEEP_ONE}"
        )
    same = _same_barcode(ids)
    if same is not None:
        raise SectionError(
            f"{source} holds spots of several samples: {same[0]} and {same[1]} have one barcode, which a slide has once; {_KEEP_ONE}"
        )
    if array_rc is None or not len(array_rc) or (np.ptp(array_rc, axis=0) == 0).any():
        return  # constant indices say nothing
    _, times = np.unique(array_rc, axis=0, return_counts=True)
    if (times > 1).any():
        raise SectionError(
            f"{source} holds spots of several samples: {int((times > 1).sum())} of {len(times)} places of the array (array_row, array_col) are there twice or "
            f"more, and a slide has one spot at each; {_KEEP_ONE}"
        )


def _same_barcode(ids: NDArray[np.str_]) -> tuple[str, str] | None:
    """Return two names with the same barcode of 10x Genomics, whatever is around it."""
    first: dict[str, str] = {}
    for name in ids.tolist():
        found = _BARCODE.search(name)
        if found is not None and first.setdefault(found[0], name) != name:
            return first[found[0]], name
    return None


def bin_size_of(name: str) -> float | None:
    """Return the side of a bin of Visium HD in microns, by its barcode; None where it is no bin's."""
    found = _BIN.match(name)
    return None if found is None else float(found[1])


def one_bin_size(stated: Mapping[str, float | None], source: object) -> float | None:
    """Return the side of bins in microns, None where nothing states it.

    Parameters
    ----------
    stated
        What states it, in words, and the size.
    source
        The folder or store, for the message.

    Raises
    ------
    SectionError
        Two statements differ.
    """
    sizes = {by: size for by, size in stated.items() if size is not None}
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{size:g} um by {by}" for by, size in sizes.items())
        raise SectionError(f"{source} has bins of {listed}, and bins have one size; put the files of one size together")
    return next(iter(sizes.values()), None)


def refuse_bins(spots: SpotTable, mpp: float | None, source: object) -> None:
    """Raise SectionError where the spots are bins of Visium HD, cells, or otherwise far smaller than a patch.

    Parameters
    ----------
    spots
        The spots.
    mpp
        Microns per full-resolution pixel, or None.
    source
        The store or folder, for the message.
    """
    sizes = [size for name in spots.ids[:10].tolist() if (size := bin_size_of(name)) and size < MIN_PITCH_UM]
    instead = "for Visium HD give the Space Ranger folder binned_outputs, whose bins are summed to discs of 55 um"
    if len(sizes) == min(len(spots), 10) > 0:
        raise SectionError(
            f"{source} holds bins of Visium HD ({spots.ids[0]}) in the place of spots; one of {sizes[0]:g} um cannot stand for a patch: {instead}"
        )
    on_lattice = spots.array_rc is not None and fit_lattice(spots.array_rc, spots.yx) is not None
    if mpp is None or on_lattice or len(spots) < 2:
        return
    from scipy.spatial import cKDTree

    some = spots.yx[:: max(1, len(spots) // _MAX_NEIGHBOURS)]
    pitch = float(np.median(cKDTree(spots.yx).query(some, k=2)[0][:, 1])) * mpp
    if pitch < MIN_PITCH_UM:
        raise SectionError(
            f"{source} holds spots that lie {pitch:.3g} um from each other (median; by {mpp:.4g} um/px), where those of Visium lie {VISIUM_PITCH_UM:g} um "
            f"apart: they are bins or cells, which cannot stand for a patch, or the scale is wrong. {capitalised(instead)}; where the scale is "
            "wrong give the right one with --mpp (mpp=...)"
        )
