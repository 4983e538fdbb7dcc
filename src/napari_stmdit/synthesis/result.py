"""Results, fresh or stored: their finished patches, where each lies, and their pixels."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from .. import __version__
from ..errors import StoreError
from ..intent import Request
from ..progress import Progress
from ..tissue.crops import computed
from ..tissue.export import Placement, label_of, label_of_result, write_ome_tiff, write_ome_zarr, write_patches
from ..tissue.geometry import napari_affine
from ..tissue.store import add_to_spatialdata, link_result, write_result
from ..types import Calibration, CanvasFrame, Patch, Plan, Section
from .canvas import MemoryCanvas, boxes_around
from .models import KnownModel
from .plan import region_rows
from .stored import StoredResult
from .windows import rule_of
from .zarr_canvas import ZarrCanvas

if TYPE_CHECKING:
    import pandas as pd
    from spatialdata import SpatialData

PixelSource = Literal["as made", "cut from the blended canvas", "cut from the seamless canvas"]
"""Origin of a patch's pixels; patches cut from a canvas share their overlaps with their neighbours."""
NO_PATCH = (
    "the result is seamless tissue that is nowhere wide enough around a spot for a whole patch, so no patch can be cut from it; "
    "synthesize a larger region, or in spots mode"
)
_BAND = 512


@dataclass(frozen=True)
class Finished:
    """Finished patches of a result.

    Attributes
    ----------
    name
        Of the element, or of the result where it was not saved.
    section, request, provenance
        Inputs and record. The section has the scale that the result was made with.
    patches
        Patches in the order of the plan; in continuous mode one for each spot around which the canvas is filled.
    done
        Number of finished patches, or tiles in continuous mode.
    left_out
        Number of spots on the canvas of continuous mode around which it is not filled.
    patch_px, patch_mpp
        Side of a patch, and microns per pixel.
    frame
        Place of the canvas.
    rgba
        (h, w, 4) uint8, numpy or lazy.
    source
        Origin of the patches' pixels.
    """

    name: str
    section: Section
    request: Request
    provenance: Mapping[str, Any] = field(repr=False)
    patches: tuple[Patch, ...] = field(repr=False)
    done: int
    left_out: int
    patch_px: int
    patch_mpp: float
    frame: CanvasFrame
    rgba: Any = field(repr=False)
    source: PixelSource
    made: Any = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.patches)

    def pixels(self, at: int) -> NDArray[np.uint8]:
        """Return a patch, (patch_px, patch_px, 3) uint8, by its position in ``patches``."""
        if self.made is not None:
            return np.asarray(self.made[at])
        y0, x0, y1, x1 = self.patches[at].canvas_box
        (found,) = computed(self.rgba[y0:y1, x0:x1])
        return np.ascontiguousarray(found[..., :3])


def finished(result: Result | StoredResult, name: str | None = None) -> Finished:
    """Return the finished patches of a result.

    Parameters
    ----------
    result
        Of a run, or read back with `stored_results`.
    name
        Its name; by default the element's.

    Raises
    ------
    StoreError
        A stored record is incomplete, or does not fit its section.
    """
    if isinstance(result, StoredResult):
        return _read_back(result, name or result.element)
    card, plan = result.plan.card, result.plan
    if plan.windows is None:
        patches, left_out, made = tuple(plan.patches[index] for index in result.done), 0, result.patches
    else:
        patches, left_out = _at_spots(result.section, plan.request, plan.frame, card.patch_px, result.rgba)
        made = None
    return Finished(
        name or "synthetic",
        result.section,
        plan.request,
        result.provenance,
        patches,
        len(result.done),
        left_out,
        card.patch_px,
        card.patch_mpp,
        plan.frame,
        result.rgba,
        "as made" if made is not None else "cut from the seamless canvas",
        made,
    )


def spots_of(section: Section, request: Request, provenance: Mapping[str, Any]) -> tuple[tuple[str, ...], int]:
    """Return the ids of the spots that a result shows, and how many were requested; no pixel is read.

    Seamless tissue shows the spots of its region that lie in a finished tile.

    Raises
    ------
    StoreError
        The record is damaged.
    """
    try:
        if request.mode == "spots":
            record = dict(provenance.get("patches") or {})
            shown = tuple(map(str, record.get("spots", ())))
            return shown, int(record.get("planned", len(shown)))
        record = dict(provenance.get("continuous") or {})
        tiles = np.array(record.get("tiles_yx_fullres", ()), dtype=np.float64).reshape(-1, 4)
        whole = len(tiles) >= int(record.get("tiles_planned", len(tiles)))
    except (TypeError, ValueError) as error:
        raise StoreError(f"the record of a result is damaged ({error}); run it again") from error
    rows = region_rows(section, request, [])
    yx = section.spots.yx[rows][:, None]
    inside: Any = ((tiles[:, :2] <= yx) & (yx < tiles[:, 2:])).all(axis=2)
    shown = tuple(section.spots.ids[rows[inside.any(axis=1)]].tolist())
    return shown, len(shown) if whole else len(rows)


def _read_back(stored: StoredResult, name: str) -> Finished:
    record, request = stored.provenance, stored.request
    try:
        checkpoint, mpp = dict(record["checkpoint"]), float(record["section"]["mpp"])
        side, patch_mpp = int(checkpoint["patch_px"]), float(checkpoint["patch_mpp"])
        frame = _frame_of(stored)
        section = _with_scale(stored.section, mpp)
        left_out, made, done = 0, None, 0
        if request.mode == "continuous":
            patches, left_out = _at_spots(section, request, frame, side, stored.rgba)
            done = len(record["continuous"]["tiles_yx_fullres"])
        else:
            patches, made = _recorded(section, record["patches"], frame), stored.patches
            done = len(patches)
    except (KeyError, TypeError, ValueError) as error:
        where = f"{stored.element} in {stored.store}"
        raise StoreError(f"{where} has a record that does not fit its section: {error!r}; run it again") from error
    cut: PixelSource = "cut from the seamless canvas" if request.mode == "continuous" else "cut from the blended canvas"
    source: PixelSource = cut if made is None else "as made"
    return Finished(
        name, section, request, record, patches, done, left_out, side, patch_mpp, frame, stored.rgba, source, made
    )


def _frame_of(stored: StoredResult) -> CanvasFrame:
    affine = stored.pixel_to_fullres
    size = float(affine[0, 0])
    if not np.allclose(affine, [[size, 0, affine[0, 2]], [0, size, affine[1, 2]], [0, 0, 1]], rtol=1e-9, atol=1e-9):
        raise ValueError("its image is turned or sheared")
    height, width = (int(n) for n in stored.rgba.shape[:2])
    return CanvasFrame((height, width), (float(affine[0, 2]), float(affine[1, 2])), size)


def _with_scale(section: Section, mpp: float) -> Section:
    """Return the section with the scale at the time of the run: a store that was not ours may state none, or another."""
    if section.calibration.mpp == mpp:
        return section
    detail = f"{mpp:g} um/px, as recorded with the result"
    return replace(section, calibration=Calibration(mpp, "override", detail))


def _recorded(section: Section, record: Mapping[str, Any], frame: CanvasFrame) -> tuple[Patch, ...]:
    """Return the patches of spots mode from their record."""
    spots = [str(spot) for spot in record["spots"]]
    listed = zip(
        spots, section.spots.rows(spots).tolist(), record["seeds"], record["source_boxes_yx_fullres"], strict=True
    )
    patches = []
    for index, (spot, row, seed, box) in enumerate(listed):
        y0, x0, y1, x1 = (float(v) for v in box)
        corners = [
            (value - origin) / frame.pixel_size
            for value, origin in zip((y0, x0, y1, x1), frame.origin * 2, strict=True)
        ]
        top, left, bottom, right = (round(corner) for corner in corners)
        patches.append(Patch(index, spot, row, (y0, x0, y1, x1), (top, left, bottom, right), int(seed)))
    return tuple(patches)


def _at_spots(
    section: Section, request: Request, frame: CanvasFrame, side: int, rgba: Any
) -> tuple[tuple[Patch, ...], int]:
    """Return the patches around the spots where a canvas is filled, on its own pixels, and the number of the other spots."""
    shift = np.array([round(origin / frame.pixel_size) for origin in frame.origin])
    corners = np.array([box.canvas[:2] for box in boxes_around(section.spots.yx, side, frame.pixel_size)]) - shift
    shown, filled = _coverage(rgba, corners, side)
    patches = []
    (oy, ox), size = frame.origin, frame.pixel_size
    for index, row in enumerate(np.flatnonzero(filled).tolist()):
        y, x = (int(v) for v in corners[row])
        source = (oy + y * size, ox + x * size, oy + (y + side) * size, ox + (x + side) * size)
        canvas = (y, x, y + side, x + side)
        patches.append(Patch(index, str(section.spots.ids[row]), row, source, canvas, request.seed))
    return tuple(patches), int(shown.sum()) - len(patches)


def _coverage(rgba: Any, corners: NDArray[np.int64], side: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return whether the middle, and whether every pixel, of the box at each (y, x) corner was synthesized, each (n,).

    The canvas is read once, band by band, as it may be of any size.
    """
    height, width = (int(n) for n in rgba.shape[:2])
    y, x = corners[:, 0], corners[:, 1]
    inside = (corners >= 0).all(axis=1) & (y + side <= height) & (x + side <= width)
    shown, filled = np.zeros(len(corners), dtype=bool), inside.copy()
    my, mx = y + side // 2, x + side // 2
    for top in range(0, height, _BAND):
        alpha = computed(rgba[top : top + _BAND, :, 3])[0] > 0
        bottom = top + len(alpha)
        here = (my >= top) & (my < bottom) & (mx >= 0) & (mx < width)
        shown[here] = alpha[my[here] - top, mx[here]]
        for k in np.flatnonzero(inside & (y < bottom) & (y + side > top)):
            filled[k] &= bool(alpha[max(y[k] - top, 0) : y[k] + side - top, x[k] : x[k] + side].all())
    return shown, filled


# What was computed: the canvas with its plan and provenance.


@dataclass(frozen=True)
class Result:
    """Finished or stopped run.

    Attributes
    ----------
    rgba
        (h, w, 4) uint8; alpha 0 where nothing was synthesized. A lazy dask array where the canvas is on disk.
    plan
        The plan, with the canvas's place.
    section
        The section.
    done
        Indices of the finished patches; fewer than the plan's where the run was stopped.
    patches
        (n, patch_px, patch_px, 3) uint8, the finished patches before blending, in the order of ``done``; lazy where the canvas is on
        disk, and empty in continuous mode, which has none.
    provenance
        Request, checkpoint hash, code version, device, dtype, seeds, timing; JSON types only.
    failed
        Index -> reason of the failed patches.
    canvas
        The canvas on disk, if any.
    """

    rgba: NDArray[np.uint8]
    plan: Plan
    section: Section
    done: tuple[int, ...]
    patches: NDArray[np.uint8] = field(repr=False)
    provenance: Mapping[str, Any] = field(repr=False)
    failed: Mapping[int, str] = field(default_factory=dict)
    canvas: ZarrCanvas | None = field(default=None, repr=False)

    @property
    def complete(self) -> bool:
        """Whether every patch of the plan was finished."""
        return len(self.done) == len(self.plan)

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes for the user, from the plan and the run."""
        return tuple(self.provenance["notes"])

    def save(self, path: str | Path, run: str | None = None) -> str:
        """Write the result into a SpatialData store as a new image element, registered to the section, with its patches before blending.

        A canvas on disk is linked into the store file by file, or copied where it is unfinished or links fail; it is not loaded.
        Its folder stays; ``result.canvas.discard()`` removes it.

        Parameters
        ----------
        path
            A .zarr folder, created or added to.
        run
            Name of the run; by default the next free number.

        Returns
        -------
        str
            The element's name, ``stmdit_<run>``; for a run that the store already holds, its name there.

        Raises
        ------
        StoreError
            The store cannot be written, or is no SpatialData.
        """
        affine = self.plan.frame.affine
        if self.canvas is None:
            return write_result(path, self.rgba, affine, self.section, run, dict(self.provenance), self.patches)
        levels, record = self.canvas.image_folder, dict(self.provenance)
        files, copy = self.canvas.patch_files, not self.complete
        try:
            with self.canvas.held():
                return link_result(path, levels, affine, self.section, run, record, copy=copy, patches=files)
        except StoreError as error:
            kept = f"What was computed is kept in {self.canvas.folder}; run the same again with --resume to save it"
            raise StoreError(f"{error}\n{kept}") from error

    def to_spatialdata(self) -> SpatialData:
        """Return a SpatialData in memory with the result, and the section's spots, counts and a slide image of at most 4000 px.

        Examples
        --------
        >>> sdata = result.to_spatialdata()
        >>> sorted(sdata.images)
        ['sample_section_slide', 'stmdit_1']
        """
        sdata, _ = add_to_spatialdata(None, self.rgba, self.plan.frame.affine, self.section, None, self.provenance)
        return sdata

    def add_to(self, sdata: SpatialData, run: str | None = None) -> str:
        """Add the result as an image to a SpatialData in memory that holds its section; return the image's name, ``stmdit_<run>``.

        Parameters
        ----------
        sdata
            Usually the object given to `napari_stmdit.open_section`; it is changed.
        run
            Name of the run; by default the next free number.

        Raises
        ------
        StoreError
            The SpatialData holds another section, or the name is taken.
        """
        _, name = add_to_spatialdata(sdata, self.rgba, self.plan.frame.affine, self.section, run, self.provenance)
        return name

    def to_layer(self) -> tuple[NDArray[np.uint8], dict[str, Any], Literal["image"]]:
        """Return the result as data, settings and kind of a napari layer, in microns, where the section's own layers lie.

        Examples
        --------
        >>> pixels, settings, _ = result.to_layer()
        >>> settings["units"]
        ('um', 'um')

        ``viewer.add_image(pixels, **settings)`` shows it.
        """
        settings = {
            "name": f"{label_of_result(self.provenance).title} {self.section.name}",
            "rgb": True,
            "affine": napari_affine(self.plan.frame.affine, self.section.mpp),
            "axis_labels": ("y", "x"),
            "units": ("um", "um"),
            "metadata": {"provenance": dict(self.provenance)},
        }
        return self.rgba, settings, "image"

    def export(self, path: str | Path, kind: ExportKind, name: str | None = None) -> Path:
        """Write the result into a new file or folder, as ``ome-zarr``, ``ome-tiff`` or ``patches`` (PNG, with a table); return its path.

        Parameters and errors are those of `napari_stmdit.synthesis.result.export_result`.
        """
        return export_result(self, path, kind, name)


def provenance_of(
    plan: Plan,
    section: Section,
    model: KnownModel,
    done: Sequence[Patch],
    seconds: float,
    notes: Sequence[str] = (),
    failed: Mapping[int, str] | None = None,
    inputs: Mapping[str, Any] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the record of how a result was made and can be made again; JSON types only.

    ``inputs`` is from `inputs_of` before the run; None leaves it out, as of a run under way that is only shown.
    """
    savings = {
        "preset": plan.request.preset,
        "fast_solver": plan.sampling.fast_solver,
        "preview_decoder": plan.sampling.preview_decoder and bool(model.provenance.get("preview_decoder")),
    }
    label = label_of(plan.counterfactual, section.synthetic)
    record = {
        "synthetic": True,
        "counterfactual": plan.counterfactual,
        "statement": label.statement,
        "label": label.title,
        "digital_source_type": label.source,
        "software": {"name": "napari-stmdit", "version": __version__},
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "request": plan.request.model_dump(mode="json"),
        "checkpoint": {
            "name": plan.card.name,
            "patch_px": plan.card.patch_px,
            "patch_mpp": plan.card.patch_mpp,
            "gene_hash": plan.card.gene_hash,
            "conditions": list(plan.card.conditions),
            "training_data": plan.card.training_data,
            "limits": plan.card.limits,
            **model.provenance,
        },
        "section": {
            "name": section.name,
            "kind": section.kind,
            "synthetic": section.synthetic,
            "mpp": section.calibration.mpp,
            "mpp_source": section.calibration.source,
            "expression": section.expression.facts(),
            "notes": list(section.notes),
        },
        "guidance": asdict(plan.guidance),
        "steps": plan.steps,
        "genes_shared": plan.genes_shared,
        "savings": savings,
        "notes": [*plan.notes, *notes],
        "seconds": round(seconds, 3),
    }
    if inputs is not None:
        record["inputs"] = dict(inputs)
    if plan.counterfactual:
        asked = {"scale": plan.request.edit_scale, "fresh_noise": plan.request.fresh_noise}
        record["edit"] = {**asked, "steps_each_way": plan.steps, **dict(facts or {})}
    boxes = [list(patch.source_box) for patch in done]
    if plan.windows is None:
        record["patches"] = {
            "planned": len(plan),
            "spots": [patch.spot_id for patch in done],
            "seeds": [str(patch.seed) for patch in done],  # as text: JSON readers lose digits of 63-bit numbers
            "source_boxes_yx_fullres": boxes,
            "failed": {plan.patches[index].spot_id: why for index, why in (failed or {}).items()},
        }
    else:
        record["continuous"] = {
            "rule": rule_of(plan, model.provenance),
            "windows": len(plan.windows),
            "window_px": plan.windows.side,
            "stride_px": plan.windows.stride,
            "tiles_planned": len(plan),
            "tiles_yx_fullres": boxes,
            "failed": {str(index): why for index, why in (failed or {}).items()},
        }
    return record


def collect(
    plan: Plan,
    section: Section,
    model: KnownModel,
    canvas: MemoryCanvas | ZarrCanvas,
    seconds: float,
    progress: Progress,
    inputs: Mapping[str, Any] | None = None,
    resumed: int = 0,
) -> Result:
    """Make a Result of a finished or stopped run.

    Parameters
    ----------
    plan, section, model, canvas
        Of the run; a canvas on disk is closed.
    seconds
        Duration of this session of the run.
    progress
        The last progress, with failures and notes.
    inputs
        From `inputs_of`; a canvas on disk has them.
    resumed
        Number of patches that earlier sessions had finished.
    """
    done = sorted(canvas.finished)
    made = [plan.patches[index] for index in done]
    failed = dict(progress.failed)
    if isinstance(canvas, MemoryCanvas):
        side = plan.card.patch_px
        patches = canvas.patches() if done else None
        record = provenance_of(plan, section, model, made, seconds, progress.notes, failed, inputs, progress.facts)
        pixels = np.zeros((0, side, side, 3), np.uint8) if patches is None else patches
        return Result(canvas.rgba, plan, section, tuple(done), pixels, record, failed)
    follows = dict(canvas.facts.get("map") or {}).get("statement")  # a session with nothing left to do does not say it
    notes = list(dict.fromkeys([*([follows] if follows else []), *progress.notes]))
    if resumed:
        notes.append(
            f"continued: {resumed} of {len(plan)} patches were finished before, and the time is that of the last session"
        )
    record = provenance_of(plan, section, model, made, seconds, notes, failed, canvas.inputs, canvas.facts)
    part = "" if len(done) == len(plan) else f"/{len(done)}"  # a part of a run and the whole of it are two results
    record["run_id"] = canvas.run_id + part
    return Result(canvas.rgba, plan, section, tuple(done), canvas.patches(), record, failed, canvas)


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
        return write_patches(path, pixels, spots, patch_table(made), made.patch_mpp, dict(made.provenance))
    if kind not in ("ome-zarr", "ome-tiff"):
        raise StoreError(f"{kind!r} is no kind of export; choose ome-zarr, ome-tiff or patches")
    write = write_ome_zarr if kind == "ome-zarr" else write_ome_tiff
    return write(path, made.rgba, _placement(made), name, dict(made.provenance))


def _placement(made: Finished) -> Placement:
    frame, mpp = made.frame, made.section.mpp
    return Placement((frame.origin[0] * mpp, frame.origin[1] * mpp), frame.pixel_size * mpp)


def patch_table(made: Finished) -> pd.DataFrame:
    """Return one row a finished patch: spot, seed, and place in microns, full-resolution and canvas pixels."""
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
