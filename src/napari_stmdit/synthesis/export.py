"""A result into files for other programs. Into a SpatialData store it goes with `Result.save`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..errors import StoreError
from ..tissue.export import Placement, write_ome_tiff, write_ome_zarr, write_patches
from .result import Result

if TYPE_CHECKING:
    import pandas as pd

ExportKind = Literal["ome-zarr", "ome-tiff", "patches"]


def export_result(result: Result, path: str | Path, kind: ExportKind, name: str | None = None) -> Path:
    """Write a result into a new file or folder, with its provenance.

    Parameters
    ----------
    result
        Finished or stopped; at least one patch.
    path
        Where to; must not exist. The ending of the format is added where it is missing.
    kind
        ``ome-zarr`` or ``ome-tiff`` (the blended image with its physical size and place), or ``patches`` (every patch as PNG, as
        it was made, with a table as CSV and Parquet).
    name
        Of the image; by default it names the section.

    Returns
    -------
    Path
        What was written.

    Raises
    ------
    StoreError
        The result is empty, the path is taken, or it cannot be written.
    """
    if not result.done:
        raise StoreError("the result holds no finished patch; there is nothing to export")
    name = name or f"synthetic {result.section.name}"
    if kind == "patches":
        spots = [result.plan.patches[k].spot_id for k in result.done]
        pixel_um = result.plan.card.patch_mpp
        return write_patches(path, result.patches, spots, patch_table(result), pixel_um, dict(result.provenance))
    if kind not in ("ome-zarr", "ome-tiff"):
        raise StoreError(f"{kind!r} is no kind of export; choose ome-zarr, ome-tiff or patches")
    write = write_ome_zarr if kind == "ome-zarr" else write_ome_tiff
    return write(path, result.rgba, placement(result), name, dict(result.provenance))


def placement(result: Result) -> Placement:
    """Return where a result's canvas lies, in microns."""
    frame, mpp = result.plan.frame, result.section.calibration.mpp
    assert mpp is not None  # a section without a scale cannot be synthesized from
    return Placement((frame.origin[0] * mpp, frame.origin[1] * mpp), frame.pixel_size * mpp)


def patch_table(result: Result) -> pd.DataFrame:
    """Return one row a finished patch: spot, seed, and its place in microns, full-resolution and canvas pixels."""
    import pandas as pd

    mpp = result.section.calibration.mpp or 1.0
    request = result.plan.request
    rows = []
    for index in result.done:
        patch = result.plan.patches[index]
        y, x = (float(v) for v in result.section.spots.yx[patch.row])
        y0, x0, y1, x1 = patch.source_box
        rows.append(
            {
                "spot": patch.spot_id,
                "seed": str(patch.seed),  # as text: 63 bits are more than a float column keeps
                "run_seed": request.seed,
                "y_um": y * mpp,
                "x_um": x * mpp,
                "y_fullres": y,
                "x_fullres": x,
                "source_y0": y0,
                "source_x0": x0,
                "source_y1": y1,
                "source_x1": x1,
                "canvas_y0": patch.canvas_box[0],
                "canvas_x0": patch.canvas_box[1],
                "patch_px": result.plan.card.patch_px,
                "patch_mpp": result.plan.card.patch_mpp,
                "edits": sum(
                    edit.enabled and patch.spot_id in (edit.spots or (patch.spot_id,)) for edit in request.edits
                ),
                "section": result.section.name,
                "checkpoint": result.plan.card.name,
            }
        )
    return pd.DataFrame(rows)
