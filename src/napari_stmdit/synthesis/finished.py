"""One view of a result, fresh or read back from a store: its finished patches, where each lies, and their pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import StoreError
from ..types import Calibration, CanvasFrame, Patch, Request, Section
from .boxes import boxes_around
from .plan import region_rows
from .result import Result
from .stored import StoredResult

PixelSource = Literal["as made", "cut from the blended canvas", "cut from the seamless canvas"]
"""Whether a patch is what the model returned; patches cut from a canvas share their overlaps with their neighbours."""
NO_PATCH = (
    "the result is seamless tissue that is nowhere wide enough around a spot for a whole patch, so no patch can be cut from it; "
    "synthesize a larger region, or in spots mode"
)
_BAND = 512


@dataclass(frozen=True)
class Finished:
    """The finished patches of a result.

    Attributes
    ----------
    name
        Of the element, or of the result where it was not saved.
    section, request, provenance
        What it was made from, and how. The section has the scale that the result was made with.
    patches
        Where each patch lies, in the order of the plan; in continuous mode one for each spot around which the canvas is filled.
    done
        How many patches, or tiles in continuous mode, were finished.
    left_out
        Spots of continuous mode inside the canvas around which it is not filled.
    patch_px, patch_mpp
        Side of a patch, and microns per pixel.
    frame
        Place of the canvas.
    rgba
        (h, w, 4) uint8, numpy or lazy.
    source
        Where the pixels of the patches come from.
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
        """Return a patch, (patch_px, patch_px, 3) uint8, by its place in ``patches``."""
        if self.made is not None:
            return np.asarray(self.made[at])
        y0, x0, y1, x1 = self.patches[at].canvas_box
        return np.ascontiguousarray(np.asarray(self.rgba[y0:y1, x0:x1])[..., :3])


def finished(result: Result | StoredResult, name: str | None = None) -> Finished:
    """Return the finished patches of a result.

    Parameters
    ----------
    result
        Of a run, or read back with `stored_results`.
    name
        What to call it; by default the element's name.

    Raises
    ------
    StoreError
        The record of a result that was read back lacks what is needed, or does not fit its section.
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
    """Return the ids of the spots that a result shows, and how many were asked for; no pixel is read.

    Of patches these are the spots they were made at. Seamless tissue shows the spots of its region that lie in a finished tile; a
    tile belongs to no spot.

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
    """The section with the scale that was in force: a store that was not ours may say nothing of it, or something else."""
    if section.calibration.mpp == mpp:
        return section
    detail = f"{mpp:g} um/px, as recorded with the result"
    return replace(section, calibration=Calibration(mpp, "override", detail))


def _recorded(section: Section, record: Mapping[str, Any], frame: CanvasFrame) -> tuple[Patch, ...]:
    """Patches of spots mode as their record has them."""
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
    """Patches around the spots where a canvas is filled, on its own pixels, and how many spots on the canvas have none."""
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
    """Whether the middle, and whether every pixel, of the box at each (y, x) corner was synthesized, each (n,).

    The canvas is read once, band by band, so that it may be of any size.
    """
    height, width = (int(n) for n in rgba.shape[:2])
    y, x = corners[:, 0], corners[:, 1]
    inside = (corners >= 0).all(axis=1) & (y + side <= height) & (x + side <= width)
    shown, filled = np.zeros(len(corners), dtype=bool), inside.copy()
    my, mx = y + side // 2, x + side // 2
    for top in range(0, height, _BAND):
        alpha = np.asarray(rgba[top : top + _BAND, :, 3]) > 0
        bottom = top + len(alpha)
        here = (my >= top) & (my < bottom) & (mx >= 0) & (mx < width)
        shown[here] = alpha[my[here] - top, mx[here]]
        for k in np.flatnonzero(inside & (y < bottom) & (y + side > top)):
            filled[k] &= bool(alpha[max(y[k] - top, 0) : y[k] + side - top, x[k] : x[k] + side].all())
    return shown, filled
