"""Crops of spots as an edit in continuous mode leaves them: a small painted region each."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..progress import CancelToken, Progress
from ..synthesis.boxes import boxes_around
from ..synthesis.canvas import MemoryCanvas
from ..synthesis.models import PatchModel
from ..synthesis.plan import plan
from ..synthesis.run import run
from ..synthesis.windows import CELL
from ..tissue.crops import read_patches
from ..types import CheckpointCard, Plan, Polygons, Request, Section, TowardsEdit


@dataclass(frozen=True)
class PaintedCrop:
    """A spot's crop before and after an edit, (side, side, 3) uint8, pixel by pixel at the same place."""

    before: NDArray[np.uint8] = field(repr=False)
    after: NDArray[np.uint8] = field(repr=False)


def crop_given(
    section: Section, card: CheckpointCard, row: int, other: int, steps: int, *, allow_gene_mismatch: bool = False
) -> Plan:
    """Plan the crop of the spot at ``row`` as a painted region that is given the expression and depth of the spot at ``other``.

    A window's expression is mixed from the spots nearest to its middle, and the windows over a crop reach beyond it. Were the one spot
    edited alone, those that lie over the crop's rim would keep their neighbours' expression, and the crop would show a diluted edit: what
    is told apart then is how the layout mixes, not what the checkpoint does. So all spots that the region's windows draw on are given the
    other expression, every window is told the same, and the crop is asked what a single patch is asked in spots mode.

    Raises
    ------
    RequestError
        The section or the checkpoint allow no such edit.
    """
    ids = section.spots.ids
    (y0, x0, y1, x1), pixel = _crop_box(section, card, row), _pixel(section, card)
    top, left, bottom, right = (v * pixel for v in (y0 - CELL, x0 - CELL, y1 + CELL, x1 + CELL))  # whole cells
    request = Request(
        region=Polygons(rings=(((top, left), (top, right), (bottom, right), (bottom, left)),)),
        edits=(TowardsEdit(target_spots=(str(ids[other]),)),),
        mode="continuous",
        steps=steps,
        counterfactual="on",
        allow_gene_mismatch=allow_gene_mismatch,
    )
    return plan(section, request, card)


def painted_crop(
    made: Plan, section: Section, model: PatchModel, row: int, *, batch: int, cancel: CancelToken
) -> Generator[Progress, None, PaintedCrop | None]:
    """Run a plan and cut the crop of the spot at ``row`` out of its canvas; None where it was cancelled.

    The path to the noise depends on the slide and the measured expression alone: a second edit of the same crop finds it in the
    checkpoint's cache.
    """
    canvas = MemoryCanvas(made.frame)
    done = 0
    for finished, progress in run(made, section, model, batch=batch, cancel=cancel):
        for tile in finished:
            canvas.paste(tile)
        done += len(finished)
        yield progress
    if done < len(made):
        return None
    box = np.array(_crop_box(section, made.card, row))
    corner = np.rint(np.array(made.frame.origin) / made.frame.pixel_size).astype(int)
    low, high = np.maximum(box[:2] - corner, 0), np.minimum(box[2:] - corner, made.frame.shape)
    on_canvas = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    in_crop = tuple(slice(a, b) for a, b in zip(low + corner - box[:2], high + corner - box[:2], strict=True))
    assert section.image is not None  # plan() refuses a section without a usable image
    before = read_patches(section.image, [tuple((box * made.frame.pixel_size).tolist())], made.card.patch_px)[0]
    after = before.copy()
    shown = canvas.rgba[on_canvas][..., 3:] > 0  # nothing is synthesized off the slide
    before[in_crop] = np.where(shown, slide_on(made, section)[on_canvas], before[in_crop])
    after[in_crop] = np.where(shown, canvas.rgba[on_canvas][..., :3], after[in_crop])
    return PaintedCrop(before, after)


def slide_on(made: Plan, section: Section) -> NDArray[np.uint8]:
    """Return the slide on a canvas, (h, w, 3), read tile by tile as the run reads it: one large reading is rounded otherwise."""
    assert made.windows is not None and section.image is not None
    height, width = made.frame.shape
    found = np.full((height, width, 3), 255, np.uint8)
    for patch in made.patches:
        y0, x0, y1, x1 = patch.canvas_box
        tile = read_patches(section.image, [patch.source_box], made.windows.tile)[0]
        own = found[max(y0, 0) : y1, max(x0, 0) : x1]
        own[:] = tile[max(-y0, 0) :, max(-x0, 0) :][: own.shape[0], : own.shape[1]]
    return found


def _crop_box(section: Section, card: CheckpointCard, row: int) -> tuple[int, int, int, int]:
    """Return where the crop of a spot lies on the grid of canvas pixels that starts at the slide's corner, (y0, x0, y1, x1)."""
    (box,) = boxes_around(section.spots.yx[[row]], card.patch_px, _pixel(section, card))
    return box.canvas


def _pixel(section: Section, card: CheckpointCard) -> float:
    """Return full-resolution pixels per canvas pixel."""
    assert section.calibration.mpp is not None  # plan() refuses such sections
    return card.patch_mpp / section.calibration.mpp
