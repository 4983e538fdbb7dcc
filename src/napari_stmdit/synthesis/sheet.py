"""A contact sheet: one spot under several requests, with common noise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import RequestError
from ..progress import CancelToken, Progress, Stopwatch
from ..tissue.crops import read_patches
from ..types import Section
from .identity import inputs_of
from .plan import plan as make_plan
from .result import provenance_of
from .run import PatchModel, run
from .variants import Variant


@dataclass(frozen=True)
class SheetCell:
    """One image of a sheet: its label, (h, w, 3) uint8 pixels, and where they come from (JSON types)."""

    label: str
    pixels: NDArray[np.uint8]
    provenance: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True)
class ContactSheet:
    """Images of one spot, row by row.

    Attributes
    ----------
    title
        What varies.
    spot
        Id of the spot.
    cells
        Row by row; fewer than planned where it was stopped.
    columns
        Images in a row.
    patch_um
        Side of an image in microns.
    real
        The slide's own crop at the spot, (h, w, 3) uint8.
    """

    title: str
    spot: str
    cells: tuple[SheetCell, ...]
    columns: int
    patch_um: float
    real: NDArray[np.uint8] | None = field(default=None, repr=False)


def make_sheet(
    title: str,
    variants: Sequence[Variant],
    columns: int,
    section: Section,
    model: PatchModel,
    cancel: CancelToken | None = None,
) -> Iterator[tuple[ContactSheet, Progress]]:
    """Synthesize the variants one after another; each of them asks for one and the same spot.

    Parameters
    ----------
    title
        What varies.
    variants
        From `napari_stmdit.synthesis.variants`.
    columns
        Images in a row.
    section, model
        As for a run.
    cancel
        Asked at every denoising step; the sheet then ends with what is done.

    Yields
    ------
    tuple
        The sheet so far and the progress, after every denoising step.

    Raises
    ------
    RequestError
        A variant cannot be planned, or asks for something else than one patch; nothing is computed then.
    """
    plans = [make_plan(section, variant.request, model.card) for variant in variants]
    if any(plan.windows is not None or len(plan) != 1 for plan in plans):
        raise RequestError([("region", "each image of a sheet is the patch of one spot; give one id, in mode spots")])
    watch = Stopwatch()
    (patch,) = plans[0].patches
    real = None if section.image is None else read_patches(section.image, [patch.source_box], model.card.patch_px)[0]
    sheet = ContactSheet(title, patch.spot_id, (), columns, model.card.patch_um, real)
    for number, (variant, plan) in enumerate(zip(variants, plans, strict=True)):
        for done, progress in run(plan, section, model, batch=1, cancel=cancel):
            if done:
                made = [one.patch for one in done]
                inputs = inputs_of(plan, section, model)
                record = provenance_of(plan, section, model, made, watch.seconds, inputs=inputs, facts=progress.facts)
                cell = SheetCell(variant.label, done[0].pixels, record)
                sheet = ContactSheet(title, patch.spot_id, (*sheet.cells, cell), columns, sheet.patch_um, real)
            at = number + len(done)
            yield sheet, Progress(at, len(plans), progress.step, progress.steps, 1 - len(done), watch.seconds)
        if cancel is not None and cancel.cancelled:
            return
