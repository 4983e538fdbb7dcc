"""THE loop: a plan goes in, finished patches and progress come out. The dock, the script and the command line all drive it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import NotFiniteError, SynthesisError, first_line, is_out_of_memory
from ..progress import BATCH, CancelToken, Progress, Stopwatch
from ..tissue.crops import read_patches
from ..types import Patch, PatchResult, Plan, Section
from .conditions import Conditions, condition_rows
from .continuous import run_windows
from .counterfactual import Before, content_key, faded
from .edited_windows import run_edited_windows
from .models import Edited, PatchBatch, PatchModel
from .zarr_canvas import ZarrCanvas

UNTOUCHED_AT_ONCE = 32
"""Crops of the slide that are read together where no edit reaches."""

Update = tuple[tuple[PatchResult, ...], Progress]
"""The patches finished since the last one, and the progress."""


@dataclass(frozen=True)
class Preview:
    """What a patch is predicted to become, while it is denoised."""

    image: PatchResult


def run(
    plan: Plan,
    section: Section,
    model: PatchModel,
    *,
    batch: int = BATCH,
    cancel: CancelToken | None = None,
    done: Collection[int] = (),
    only: Collection[int] | None = None,
    states: ZarrCanvas | None = None,
    preview_every: int = 0,
    on_preview: Callable[[PatchResult], None] | None = None,
    conditions: Conditions | None = None,
) -> Iterator[Update]:
    """Compute a plan batch by batch.

    Too little memory halves the batch and tries again. A patch that comes out as not finite is left out, named in the progress,
    and the others go on.

    Parameters
    ----------
    plan
        From `napari_stmdit.synthesis.plan.plan`, for this section and this model's card.
    section
        The section the plan was made for.
    model
        The checkpoint.
    batch
        Patches, or windows of continuous mode, denoised together; the result does not depend on it.
    cancel
        Asked after every denoising step; once set, the generator ends and what was yielded stays valid.
    done
        Indices of patches that an earlier run finished; they are not computed again.
    only
        Indices of the patches to compute, a share of the plan; None computes all. Not for continuous mode, whose windows belong
        together.
    states
        Where continuous mode keeps its latents every few steps, and takes them up from.
    preview_every, on_preview
        Every so many steps ``on_preview`` is called, in the thread that drives the run, with what the first patch of the batch is
        predicted to become. Costs one decoding each and changes no result; 0, the default, is off. Not in continuous mode.
    conditions
        From `condition_rows`, where a plan is computed share by share; None makes them. Spots mode alone.

    Yields
    ------
    tuple
        The patches finished since the last one (none after most steps) and the progress.

    Raises
    ------
    SynthesisError
        Where sampling fails for good: a single patch needs more memory than there is, or nothing at all comes out finite.
    """
    steps = run_steps(
        plan,
        section,
        model,
        batch=batch,
        cancel=cancel or CancelToken(),
        done=done,
        only=only,
        states=states,
        preview_every=preview_every if on_preview is not None else 0,
        conditions=conditions,
    )
    for step in steps:
        if not isinstance(step, Preview):
            yield step
        elif on_preview is not None:
            on_preview(step.image)


def run_steps(
    plan: Plan,
    section: Section,
    model: PatchModel,
    *,
    batch: int,
    cancel: CancelToken,
    done: Collection[int] = (),
    only: Collection[int] | None = None,
    states: ZarrCanvas | None = None,
    preview_every: int = 0,
    conditions: Conditions | None = None,
) -> Iterator[Update | Preview]:
    """Do what `run` does, with the previews among what is yielded."""
    if plan.windows is not None:
        if only is not None:
            raise SynthesisError("a continuous region stays together and cannot be shared out; share out spots instead")
        how: dict[str, Any] = {"batch": batch, "cancel": cancel, "done": done, "states": states}
        if plan.counterfactual:
            yield from run_edited_windows(plan, section, model, **how)
        else:
            yield from run_windows(plan, section, model, **how)
        return
    wanted = range(len(plan)) if only is None else set(only)
    todo = [p for p in plan.patches if p.index in wanted and p.index not in done]
    yield from _Patches(plan, section, model, todo, len(wanted), batch, cancel, preview_every, conditions).run()


@dataclass
class _Patches:
    """A run of single patches under way."""

    plan: Plan
    section: Section
    model: PatchModel
    todo: list[Patch]
    total: int
    batch: int
    cancel: CancelToken
    preview_every: int
    conditions: Conditions | None = None
    watch: Stopwatch = field(default_factory=Stopwatch)
    notes: list[str] = field(default_factory=list)
    failed: dict[int, str] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    finished: int = 0
    before: int = 0

    def run(self) -> Iterator[Update | Preview]:
        self.before = self.total - len(self.todo)
        yield (), self._progress(0, 0)
        if not self.todo:
            return
        conditions = self.conditions or condition_rows(self.plan, self.section, self.model)
        if conditions.before is not None:
            yield from self._untouched(conditions.before)
        at = 0
        while at < len(self.todo):
            patches = tuple(self.todo[at : at + self.batch])
            try:
                yield from self._denoise(patches, conditions)
            except Exception as error:  # only two kinds are dealt with, the rest goes on up
                if not is_out_of_memory(error) or len(patches) == 1:
                    raise
                self._halve(len(patches), error)
                continue
            if self.cancel.cancelled:
                return
            at += len(patches)

    def _untouched(self, before: Before) -> Iterator[Update]:
        """Finish patches that no edit reaches: they are the slide."""
        self.facts = before.facts
        self.notes.append(before.map.words)
        same = [patch for patch in self.todo if not before.touched[patch.index]]
        self.todo = [patch for patch in self.todo if before.touched[patch.index]]
        for start in range(0, len(same), UNTOUCHED_AT_ONCE):
            if self.cancel.cancelled:
                return
            patches = same[start : start + UNTOUCHED_AT_ONCE]
            crops = _crops(patches, self.plan, self.section)
            self.finished += len(patches)
            yield tuple(PatchResult(p, crop) for p, crop in zip(patches, crops, strict=True)), self._progress(0, 0)

    def _halve(self, size: int, error: Exception) -> None:
        self.batch = (size + 1) // 2
        self.notes.append(
            f"too little memory for {size} patches at once ({first_line(error)}); went on with {self.batch} at once"
        )

    def _denoise(self, patches: tuple[Patch, ...], conditions: Conditions) -> Iterator[Update | Preview]:
        """Denoise one batch; what is not finite is taken out and the others are done again without it."""
        while patches:
            batch = _batch(patches, self.plan, self.section, self.model, conditions, self.preview_every)
            try:
                for update in self.model.denoise(batch):
                    if self.cancel.cancelled:
                        return
                    if update.preview is not None:
                        yield Preview(PatchResult(patches[0], update.preview))
                    if update.images is None:
                        yield (), self._progress(update.step, len(patches))
                    else:
                        images = update.images
                        if batch.edited is not None and batch.crops is not None:
                            images = faded(batch.crops, images)
                        self.finished += len(patches)
                        done = tuple(PatchResult(p, image) for p, image in zip(patches, images, strict=True))
                        yield done, self._progress(0, 0)
                return
            except NotFiniteError as error:
                patches = self._without(patches, error)

    def _without(self, patches: tuple[Patch, ...], error: NotFiniteError) -> tuple[Patch, ...]:
        bad = set(error.items) or set(range(len(patches)))
        if len(bad) == len(patches) and self.before + self.finished == 0:
            raise error  # the checkpoint is at fault, not a patch
        for place in sorted(bad):
            patch = patches[place]
            self.failed[patch.index] = str(error)
            self.notes.append(f"the patch of spot {patch.spot_id} was left out: {error}")
        return tuple(p for place, p in enumerate(patches) if place not in bad)

    def _progress(self, step: int, size: int) -> Progress:
        return Progress(
            self.before + self.finished,
            self.total,
            step,
            self.plan.steps,
            size,
            self.watch.seconds,
            notes=tuple(self.notes),
            failed=dict(self.failed),
            facts=self.facts,
        )


def _crops(patches: Sequence[Patch], plan: Plan, section: Section) -> NDArray[np.uint8]:
    return read_patches(section.slide, [p.source_box for p in patches], plan.card.patch_px)


def _batch(
    patches: tuple[Patch, ...],
    plan: Plan,
    section: Section,
    model: PatchModel,
    conditions: Conditions,
    preview_every: int,
) -> PatchBatch:
    crops = None
    morphology = None
    if plan.request.morphology == "own":
        crops = _crops(patches, plan, section)
        morphology = model.encode_morphology(crops, tuple(p.spot_id for p in patches))
    elif conditions.morphology is not None:
        morphology = np.repeat(conditions.morphology[None], len(patches), axis=0)
    expression = conditions.measured().expression(patches, section, model)
    return PatchBatch(
        patches,
        crops,
        morphology,
        expression,
        tuple(p.seed for p in patches),
        plan.sampling,
        preview_every,
        edited=_edited(patches, crops, morphology, expression, plan, section, model, conditions),
    )


def _edited(
    patches: tuple[Patch, ...],
    crops: NDArray[np.uint8] | None,
    morphology: NDArray[np.float32] | None,
    expression: NDArray[np.float32] | None,
    plan: Plan,
    section: Section,
    model: PatchModel,
    conditions: Conditions,
) -> Edited | None:
    """Return the conditions after the edits where real tissue is edited: morphology follows expression."""
    if conditions.before is None:
        return None
    after = conditions.expression(patches, section, model)
    assert morphology is not None and expression is not None and after is not None  # plan() sees to it
    before = conditions.before
    moved = morphology + before.map.delta(expression, after)
    assert crops is not None
    rows = [patch.index for patch in patches]
    keys = tuple(
        content_key(crop, before.counts[row], before.depth[row : row + 1])
        for crop, row in zip(crops, rows, strict=True)
    )
    return Edited(moved, after, keys, plan.request.edit_scale, plan.request.fresh_noise)
