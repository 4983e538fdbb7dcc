"""Requests made from a request: its baseline, further samples, a dose strip, a grid of guidance scales. Pure.

Each variant is a whole request: it is planned, run, stored and made again like any other. So n samples are n requests with n seeds,
and no other module knows of samples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import RequestError
from ..intent import Guidance, Request
from ..progress import CancelToken, Progress, Stopwatch
from ..regions import SpotList
from ..storage.fingerprint import of_json
from ..tissue.crops import read_patches
from ..types import Section
from .canvas import MemoryCanvas
from .models import PatchModel
from .plan import plan as make_plan
from .session import Session

DOSES = 7
GRID = (0.5, 1.0, 2.0)
"""Factors of the guidance scales along each side of a guidance grid."""


@dataclass(frozen=True)
class Variant:
    """Request with a short label of what distinguishes it."""

    label: str
    request: Request


def baseline_of(request: Request) -> Request:
    """Return the same request without its edits: same spots, seeds, guidance and noise.

    For a result of new tissue. The baseline of edited real tissue is the slide; a request to edit it without an edit is refused.
    """
    return request.model_copy(update={"edits": (), "counterfactual": "off"})


def noise_key(request: Request, provenance: Mapping[str, Any], *, edited: bool = True) -> tuple[Any, ...]:
    """Return the key that two results share if their patches at one spot have the same noise and conditions but for edits.

    Parameters
    ----------
    request, provenance
        Of a result. Region and section path are left out; checkpoint with precision and replaced encoders, guidance and steps count as
        they were used.
    edited
        False leaves the edits out: the key of the result's baseline. No result has that of edited real tissue, whose baseline is the slide.
    """
    changed = bool(provenance.get("counterfactual"))
    edits = tuple(edit for edit in request.edits if edit.enabled) if edited else ()
    update: dict[str, Any] = {"edits": edits, "region": Request().region, "section": None, "checkpoint": ""}
    if not edits:  # nothing names them
        update |= {"programs": {}, "profiles": {}}
    update["counterfactual"] = "on" if changed else "off"
    if not changed:
        update |= {"edit_scale": 1.0, "fresh_noise": 0.0}
    elif not request.fresh_noise:  # nothing is drawn
        update["seed"] = 0
    plain = request.model_copy(update={**update, "guidance": Guidance(), "steps": None})
    known = dict(provenance.get("checkpoint") or {})
    checkpoint = known.get("sha256", request.checkpoint)
    given = [dict(known.get(f"{what}_embeddings") or {}).get("sha256") for what in ("morphology", "expression")]
    further = of_json([known.get("dtype"), known.get("elsewhere"), given])
    guidance = {} if changed else dict(provenance.get("guidance") or {})  # an edit is not guided
    return plain, tuple(sorted(guidance.items())), provenance.get("steps"), checkpoint, further


def sample_seed(seed: int, number: int) -> int:
    """Return the seed of a further sample: number 0 keeps the seed itself."""
    if number == 0:
        return seed
    digest = hashlib.sha256(f"{seed}/sample/{number}".encode()).digest()
    return int.from_bytes(digest[:4], "little")


def samples_of(request: Request, count: int) -> tuple[Request, ...]:
    """Return ``count`` requests that differ in their seed alone; the first is the request itself.

    A patch's noise depends on the run's seed and the spot, so samples are independent and each can be made again alone from the seed in its
    provenance. A region drawn with the seed (`SampleOfSpots`) has to be resolved first.
    """
    if request.region.kind == "sample" and count > 1:
        raise RequestError([("region", "spots drawn with the seed differ from sample to sample; give their ids")])
    return tuple(request.model_copy(update={"seed": sample_seed(request.seed, k)}) for k in range(count))


def dose_strip(request: Request, spot: str, edit: int | None = None, doses: int = DOSES) -> tuple[Variant, ...]:
    """Return one spot's requests at strengths of an edit from 0 to 1, evenly spaced, with common noise.

    Parameters
    ----------
    request
        With at least one enabled edit; the other edits stay as they are.
    spot
        Id of the spot.
    edit
        Index of the edit in the request; by default the last one that is enabled.
    doses
        Number of strengths, at least 2.

    Raises
    ------
    RequestError
        The request has no such edit.
    """
    enabled = [k for k, one in enumerate(request.edits) if one.enabled]
    if not enabled or (edit is not None and edit not in enabled):
        raise RequestError([("edits", "a dose strip needs an edit that is switched on; paint or add one first")])
    at = enabled[-1] if edit is None else edit
    found = []
    for k in range(doses):
        strength = round(k / (doses - 1), 4)
        edits = list(request.edits)
        edits[at] = edits[at].model_copy(update={"strength": strength})
        found.append(Variant(f"strength {strength:.2f}", _at(request, spot, edits=tuple(edits))))
    return tuple(found)


def guidance_grid(
    request: Request, spot: str, default: Guidance, factors: Sequence[float] = GRID
) -> tuple[Variant, ...]:
    """Return one spot's requests under scaled guidance, with common noise; expression varies fastest.

    Always new tissue, as an edit of real tissue is not guided. Without morphology there is one row: its scale would change nothing.

    Parameters
    ----------
    request
        Its scales, completed by ``default``, are multiplied.
    spot
        Id of the spot.
    default
        The checkpoint's own scales.
    factors
        Factors along each side.
    """
    present = default.model_copy(update=request.guidance.model_dump(exclude_none=True))
    assert present.expression is not None and present.morphology is not None  # a card names both
    found = []
    for down in (1.0,) if request.morphology == "null" else factors:
        for across in factors:
            scales = Guidance(
                expression=round(min(present.expression * across, 30), 3),
                morphology=round(min(present.morphology * down, 30), 3),
                rule=present.rule,
                above=present.above,
            )
            label = f"expression {scales.expression:g}, morphology {scales.morphology:g}"
            found.append(Variant(label, _at(request, spot, guidance=scales, counterfactual="off")))
    return tuple(found)


def _at(request: Request, spot: str, **changes: object) -> Request:
    """Return the request for the patch of one spot, in spots mode: a seamless canvas has no patches."""
    return request.model_copy(update={"region": SpotList(ids=(spot,)), "mode": "spots", **changes})


# A contact sheet: one spot under several requests, with common noise.


@dataclass(frozen=True)
class SheetCell:
    """Image of a sheet: its label, (h, w, 3) uint8 pixels, and provenance (JSON types)."""

    label: str
    pixels: NDArray[np.uint8]
    provenance: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True)
class ContactSheet:
    """Images of one spot, row by row.

    Attributes
    ----------
    title
        Name of what varies.
    spot
        Id of the spot.
    cells
        Images row by row; fewer than planned where it was stopped.
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
    """Synthesize variants of one spot one after another.

    Parameters
    ----------
    title
        Name of what varies.
    variants
        From `napari_stmdit.synthesis.variants`.
    columns
        Images in a row.
    section, model
        As for a run.
    cancel
        Asked at every denoising step; the sheet then ends with the finished images.

    Yields
    ------
    tuple
        The sheet so far and the progress, after every denoising step.

    Raises
    ------
    RequestError
        A variant cannot be planned, or has more than one patch; nothing is computed then.
    """
    plans = [make_plan(section, variant.request, model) for variant in variants]
    if any(plan.windows is not None or len(plan) != 1 for plan in plans):
        raise RequestError([("region", "each image of a sheet is the patch of one spot; give one id, in mode spots")])
    watch = Stopwatch()
    (patch,) = plans[0].patches
    real = None if section.image is None else read_patches(section.image, [patch.source_box], model.card.patch_px)[0]
    sheet = ContactSheet(title, patch.spot_id, (), columns, model.card.patch_um, real)
    for number, (variant, plan) in enumerate(zip(variants, plans, strict=True)):
        session = Session(plan, section, model, MemoryCanvas(plan.frame, plan.counterfactual), batch=1, cancel=cancel)
        for event in session.steps():
            if isinstance(event, Progress) and not event.patches_done:
                yield sheet, Progress(number, len(plans), event.step, event.steps, 1, watch.seconds, doing=event.doing)
        result = session.result()
        if result.done:
            cell = SheetCell(variant.label, result.patches[0], result.provenance)
            sheet = ContactSheet(title, patch.spot_id, (*sheet.cells, cell), columns, sheet.patch_um, real)
            yield sheet, Progress(number + 1, len(plans), plan.steps, plan.steps, 0, watch.seconds)
        if cancel is not None and cancel.cancelled:
            return
