"""Spots mode: patches of single spots by batch, new tissue or edited real tissue."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..errors import NotFiniteError
from ..tissue.crops import read_patches
from ..types import Patch, PatchResult, Plan, Section
from .conditions import Conditions, condition_rows
from .counterfactual import Before, content_key, fade_rim
from .models import Edited, Event, PatchBatch, PatchModel, Preview

if TYPE_CHECKING:
    from .session import Session

SLIDE_BATCH = 32
"""Number of unedited crops of the slide that are read together."""
MAX_MEASURED = 256
"""Number of spots whose crops and encodings are cached; one takes 0.2 MB, with gene tokens up to 2."""


def run_spots(session: Session, known: MeasuredSpots, conditions: Conditions | None = None) -> Iterator[Event]:
    """Denoise the missing patches of a session; ``conditions`` where they are known already."""
    conditions = conditions or condition_rows(session.plan, session.section, session.model)
    todo = session.todo
    if conditions.before is not None:
        yield from _untouched(session, conditions.before)
        todo = [patch for patch in todo if conditions.before.touched[patch.index]]
        if session.stopped():
            return

    def work(patches: list[Patch]) -> Iterator[Event]:
        yield from _denoise(session, tuple(patches), conditions, known)

    yield from session.batches.each(todo, work, session.stopped)


def _untouched(session: Session, before: Before) -> Iterator[Event]:
    """Finish patches out of reach of the edits: they are the slide."""
    session.follows(before)
    same = [patch for patch in session.todo if not before.touched[patch.index]]
    for start in range(0, len(same), SLIDE_BATCH):
        if session.stopped():
            return
        patches = same[start : start + SLIDE_BATCH]
        yield from session.keep(_results(patches, _crops(patches, session.plan, session.section)))


def _results(patches: Sequence[Patch], images: NDArray[np.uint8]) -> list[PatchResult]:
    return [PatchResult(*made) for made in zip(patches, images, strict=True)]


def _denoise(
    session: Session, patches: tuple[Patch, ...], conditions: Conditions, known: MeasuredSpots
) -> Iterator[Event]:
    """Denoise one batch; patches that are not finite are removed and the others denoised again."""
    while patches:
        batch = _batch(session, patches, conditions, known)
        try:
            for update in session.model.denoise(batch):
                if session.stopped():
                    return
                if update.preview is not None:
                    yield Preview(PatchResult(patches[0], update.preview))
                if update.images is None:
                    yield session.report(update.step, count=len(patches))
                else:
                    images = update.images
                    if batch.edited is not None and batch.crops is not None:  # else the slide would show patch borders
                        images = fade_rim(batch.crops, images)
                    yield from session.keep(_results(patches, images))
            return
        except NotFiniteError as error:
            # the others start again, to the same pixels but for rounding: a patch does not depend on its batch
            patches = _without(session, patches, error)


def _without(session: Session, patches: tuple[Patch, ...], error: NotFiniteError) -> tuple[Patch, ...]:
    bad = set(error.items) or set(range(len(patches)))
    if len(bad) == len(patches) and not session.finished:
        raise error  # the checkpoint is at fault, not a patch
    for place in sorted(bad):
        patch = patches[place]
        session.leave_out([patch.index], str(error), f"the patch of spot {patch.spot_id} was left out: {error}")
    return tuple(p for place, p in enumerate(patches) if place not in bad)


def _crops(patches: Sequence[Patch], plan: Plan, section: Section) -> NDArray[np.uint8]:
    return read_patches(section.slide, [p.source_box for p in patches], plan.card.patch_px)


@dataclass(frozen=True)
class AtSpots:
    """Measured conditions of b spots: crops (b, p, p, 3), morphology (b, t, d), expression (b, d) or (b, g, d), and content keys."""

    crops: NDArray[np.uint8]
    morphology: NDArray[np.float32]
    expression: NDArray[np.float32]
    keys: tuple[str, ...]


class MeasuredSpots:
    """Cache of the measured conditions of a section's spots, encoded by a checkpoint; the latest `MAX_MEASURED` are kept."""

    def __init__(self, section: Section, model: PatchModel) -> None:
        self._section, self._model = section, model
        self._kept: OrderedDict[int, AtSpots] = OrderedDict()

    def of(self, patches: Sequence[Patch]) -> AtSpots:
        """Return the measured conditions of patches; missing ones are read and encoded in one go."""
        found = {patch.row: self._kept[patch.row] for patch in patches if patch.row in self._kept}
        missing = [patch for patch in patches if patch.row not in found]
        if missing:
            found |= zip([patch.row for patch in missing], self._read(missing), strict=True)
        for row, one in found.items():
            self._kept[row] = one
            self._kept.move_to_end(row)
        while len(self._kept) > MAX_MEASURED:
            self._kept.popitem(last=False)
        parts = [found[patch.row] for patch in patches]
        return AtSpots(
            np.concatenate([part.crops for part in parts]),
            np.concatenate([part.morphology for part in parts]),
            np.concatenate([part.expression for part in parts]),
            tuple(key for part in parts for key in part.keys),
        )

    def _read(self, patches: Sequence[Patch]) -> list[AtSpots]:
        spots, model = self._section.spots, self._model
        rows, names = [patch.row for patch in patches], tuple(patch.spot_id for patch in patches)
        crops = read_patches(self._section.slide, [p.source_box for p in patches], model.card.patch_px)
        counts, depth = spots.counts[rows].astype(np.float32), spots.relative_depth[rows]
        morphology = model.encode_morphology(crops, names)
        expression = model.encode_expression(counts, spots.genes, names, depth)
        found = []
        for k in range(len(patches)):
            own = slice(k, k + 1)
            key = content_key(crops[k], counts[k], depth[own])
            found.append(AtSpots(crops[own], morphology[own], expression[own], (key,)))
        return found


def _batch(session: Session, patches: tuple[Patch, ...], conditions: Conditions, known: MeasuredSpots) -> PatchBatch:
    plan, section, model = session.plan, session.section, session.model
    seeds = tuple(patch.seed for patch in patches)
    how = seeds, plan.sampling, session.preview_every
    if conditions.before is not None:
        at, after, before = known.of(patches), conditions.expression(patches, section, model), conditions.before
        assert after is not None  # plan() edits no tissue without expression
        along = None if before.along is None else before.along[[patch.index for patch in patches]]
        others = None if before.others is None else before.others.expression(patches, section, model)
        moved = before.follows.moved(at.morphology, at.expression, after, along, others)
        edited = Edited(moved, after, at.keys, plan.request.edit_scale, plan.request.fresh_noise)
        return PatchBatch(patches, at.crops, at.morphology, at.expression, *how, edited=edited)
    crops = None
    morphology = None
    if plan.request.morphology == "own":
        crops = _crops(patches, plan, section)
        morphology = model.encode_morphology(crops, tuple(p.spot_id for p in patches))
    elif conditions.morphology is not None:
        morphology = np.repeat(conditions.morphology[None], len(patches), axis=0)
    return PatchBatch(patches, crops, morphology, conditions.expression(patches, section, model), *how)
