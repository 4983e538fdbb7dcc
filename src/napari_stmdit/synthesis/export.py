"""Export of a result into files for other programs; `Result.save` writes into a SpatialData store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..errors import StoreError
from ..tissue.export import Placement, label_of_result, write_ome_tiff, write_ome_zarr, write_patches
from ..types import Patch, Section
from .result import NO_PATCH, Finished, Result, finished
from .stored import StoredResult

if TYPE_CHECKING:
    import pandas as pd

ExportKind = Literal["ome-zarr", "ome-tiff", "patches"]


def export_result(result: Result | StoredResult, path: str | Path, kind: ExportKind, name: str | None = None) -> Path:
    """Write a result into a new file or folder, with its provenance.

    Parameters
    ----------
    result
        Finished or stopped result with at least one patch, of a run or from a store.
    path
        New file or folder. A missing ending of the format is added.
    kind
        ``ome-zarr`` or ``ome-tiff`` (the blended image with its physical size and place), or ``patches`` (every patch as PNG, with
        a table as CSV and Parquet whose column ``pixels`` says whether they are as made or cut from the canvas).
    name
        Name of the image; by default its kind and the section's name.

    Returns
    -------
    Path
        The file or folder.

    Raises
    ------
    StoreError
        The result is empty, the path is taken, or it cannot be written.
    """
    made = finished(result)
    if not made.done:
        raise StoreError("the result holds no finished patch; there is nothing to export")
    name = name or f"{label_of_result(made.provenance).title} {made.section.name}"
    if kind == "patches":
        if not len(made):
            raise StoreError(NO_PATCH)
        spots = [patch.spot_id for patch in made.patches]
        pixels = (made.pixels(k) for k in range(len(made)))
        return write_patches(path, pixels, spots, _table(made), made.patch_mpp, dict(made.provenance))
    if kind not in ("ome-zarr", "ome-tiff"):
        raise StoreError(f"{kind!r} is no kind of export; choose ome-zarr, ome-tiff or patches")
    write = write_ome_zarr if kind == "ome-zarr" else write_ome_tiff
    return write(path, made.rgba, _placement(made), name, dict(made.provenance))


def _placement(made: Finished) -> Placement:
    frame, mpp = made.frame, made.section.mpp
    return Placement((frame.origin[0] * mpp, frame.origin[1] * mpp), frame.pixel_size * mpp)


def patch_table(result: Result | StoredResult) -> pd.DataFrame:
    """Return one row a finished patch: spot, seed, and place in microns, full-resolution and canvas pixels."""
    return _table(finished(result))


def _table(made: Finished) -> pd.DataFrame:
    import pandas as pd

    request = made.request
    rows = []
    for patch in made.patches:
        place = place_of(patch, made.section)
        place |= {"canvas_y0": patch.canvas_box[0], "canvas_x0": patch.canvas_box[1]}
        rows.append(
            {
                "spot": patch.spot_id,
                "seed": str(patch.seed),  # as text: 63 bits are more than a float column keeps
                "run_seed": request.seed,
                **place,
                "patch_px": made.patch_px,
                "patch_mpp": made.patch_mpp,
                "edits": sum(
                    edit.enabled and patch.spot_id in (edit.spots or (patch.spot_id,)) for edit in request.edits
                ),
                "pixels": made.source,
                "section": made.section.name,
                "checkpoint": dict(made.provenance["checkpoint"]).get("name"),
            }
        )
    return pd.DataFrame(rows)


def place_of(patch: Patch, section: Section) -> dict[str, float]:
    """Return the columns of a patch's place: its spot in microns and full-resolution pixels, and its box in the latter."""
    mpp = section.mpp
    y, x = (float(v) for v in section.spots.yx[patch.row])
    box = dict(zip(("source_y0", "source_x0", "source_y1", "source_x1"), map(float, patch.source_box), strict=True))
    return {"y_um": y * mpp, "x_um": x * mpp, "y_fullres": y, "x_fullres": x, **box}
