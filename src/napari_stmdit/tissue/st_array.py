"""Sections of the first Spatial Transcriptomics arrays, from before Visium, as their authors publish them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import SectionError
from ..types import Genes
from .spaceranger_writer import write_spaceranger_folder

PITCH_UM, SPOT_UM = 200.0, 100.0
"""Of the array: centre to centre along both axes of its square grid, and the diameter of a spot."""
_COLUMNS = ("x", "y", "new_x", "new_y", "pixel_x", "pixel_y", "selected")


def write_st_array(path: Path, image: Path, counts: Path, spots: Path) -> None:
    """Write a section of a Spatial Transcriptomics array as a Space Ranger folder, which the readers open.

    Spots are those that were selected as lying on tissue and have counts. Their positions are taken as they are: pixels of the slide image,
    x to the right and y down. The scale follows from the grid: two spots that are one step apart along x or y of the array lie 200 um apart,
    and the slide's microns per pixel are the mean over both axes.

    Parameters
    ----------
    path
        Folder to make.
    image
        The slide, which is copied as it is.
    counts
        Tab-separated, also packed: a row a spot named ``XxY`` by its place on the array, a column a gene symbol.
    spots
        Tab-separated: x, y, new_x, new_y (place on the array, whole and measured), pixel_x, pixel_y, selected.

    Raises
    ------
    SectionError
        A table is damaged or of another kind, or no selected spot has counts.
    """
    import pandas as pd
    from scipy.sparse import csr_matrix

    try:
        places = pd.read_csv(spots, sep="\t")
        table = pd.read_csv(counts, sep="\t", index_col=0)
    except (OSError, EOFError, ValueError) as error:
        raise SectionError(f"{spots.name} or {counts.name} cannot be read as a table: {error}") from error
    if missing := [name for name in _COLUMNS if name not in places.columns]:
        raise SectionError(
            f"{spots} lacks the columns {', '.join(missing)}; it has {', '.join(map(str, places.columns))}"
        )
    if not all(kind.kind in "iu" for kind in table.dtypes):
        raise SectionError(f"{counts} holds something that is no whole number; expected counts, one row a spot")
    places = places[places["selected"] == 1]
    places = places.set_index(places["x"].astype(str) + "x" + places["y"].astype(str))
    places = places.loc[[name for name in table.index if name in places.index]]
    if len(places) < 2 or places.index.has_duplicates:
        raise SectionError(
            f"{counts.name} and {spots.name} do not belong together: of {len(table)} spots, {len(places)} are in both"
        )
    across, down = (np.polyfit(places[f"new_{axis}"], places[f"pixel_{axis}"], 1)[0] for axis in "xy")
    if not (across > 0 and down > 0):
        raise SectionError(
            f"{spots} lies turned or mirrored on its slide, which was never seen of such a table; nothing is guessed"
        )
    mpp = PITCH_UM / float(np.mean([across, down]))
    write_spaceranger_folder(
        path,
        image=image,
        ids=places.index.to_numpy(dtype=np.str_),
        yx=places[["pixel_y", "pixel_x"]].to_numpy(dtype=np.float64),
        counts=csr_matrix(table.loc[places.index].to_numpy()),
        genes=Genes(table.columns.to_numpy(dtype=np.str_)),
        mpp=mpp,
        array_rc=places[["y", "x"]].to_numpy(dtype=np.int64),
        diameter=SPOT_UM / mpp,
        slide_name=image.name,
    )
