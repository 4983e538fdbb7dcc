"""THE loop: a plan goes in, finished patches and progress come out. The dock, the script and the command line all drive it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..expression.edits import Profile
from ..progress import CancelToken, Progress, Stopwatch
from ..tissue.crops import read_patches
from ..types import CheckpointCard, Genes, Guidance, Patch, PatchResult, Plan, Section
from .conditions import Conditions, condition_rows


@dataclass(frozen=True)
class PatchBatch:
    """What one batch of patches is made from.

    Attributes
    ----------
    patches
        The b patches, in order.
    crops
        (b, patch_px, patch_px, 3) uint8 real tissue at the checkpoint's scale, or None where no patch asks for its own crop.
    morphology
        (b, t, d) float32, or None for null.
    expression
        (b, d) or (b, g, d) float32, or None for null.
    seeds
        One per patch.
    guidance, steps
        As resolved by the plan.
    preview_every
        Steps between looks at what the first patch is becoming; 0 for none.
    """

    patches: tuple[Patch, ...]
    crops: NDArray[np.uint8] | None
    morphology: NDArray[np.float32] | None
    expression: NDArray[np.float32] | None
    seeds: tuple[int, ...]
    guidance: Guidance
    steps: int
    preview_every: int = 0


@dataclass(frozen=True)
class DenoiseStep:
    """State after one denoising step.

    The last one carries the (b, patch_px, patch_px, 3) uint8 images. ``preview`` is what the first patch (patch_px, patch_px, 3)
    uint8 is predicted to become, where one was asked for.
    """

    step: int
    steps: int
    images: NDArray[np.uint8] | None = None
    preview: NDArray[np.uint8] | None = None


class PatchModel(Protocol):
    """What the loop needs of a checkpoint: a diffusion transformer with its encoders, or a stand-in that returns real crops."""

    @property
    def card(self) -> CheckpointCard:
        """What the checkpoint says of itself."""

    @property
    def provenance(self) -> Mapping[str, Any]:
        """What to record with a result: hash of the checkpoint, device, dtype."""

    @property
    def profiles(self) -> Mapping[str, Profile]:
        """Tissue profiles that edits may move towards."""

    def encode_expression(self, counts: Any, genes: Genes, spots: Sequence[str] = ()) -> NDArray[np.float32]:
        """Encode counts, sparse (n, g), measured at n ``spots``, as (n, d) or (n, tokens, d)."""

    def encode_morphology(self, patches: NDArray[np.uint8], spots: Sequence[str] = ()) -> NDArray[np.float32]:
        """Encode (n, patch_px, patch_px, 3) uint8 crops, taken at n ``spots``, as (n, tokens, d)."""

    def denoise(self, batch: PatchBatch) -> Iterator[DenoiseStep]:
        """Yield after every denoising step; the last step carries the images."""


def run(
    plan: Plan,
    section: Section,
    model: PatchModel,
    *,
    batch: int = 8,
    cancel: CancelToken | None = None,
    preview_every: int = 0,
    on_preview: Callable[[PatchResult], None] | None = None,
) -> Iterator[tuple[tuple[PatchResult, ...], Progress]]:
    """Compute a plan batch by batch.

    Parameters
    ----------
    plan
        From `napari_stmdit.synthesis.plan.plan`, for this section and this model's card.
    section
        The section the plan was made for.
    model
        The checkpoint.
    batch
        Patches denoised together; the result does not depend on it.
    cancel
        Asked after every denoising step; once set, the generator ends and what was yielded stays valid.
    preview_every, on_preview
        Every so many steps ``on_preview`` is called, in the thread that drives the run, with what the first patch of the batch is
        predicted to become. Costs one decoding each and changes no result; 0, the default, is off.

    Yields
    ------
    tuple
        The patches finished since the last one (none after most steps) and the progress.
    """
    cancel = cancel or CancelToken()
    watch = Stopwatch()
    total = len(plan)
    yield (), Progress(0, total, 0, plan.steps, 0, watch.seconds)
    conditions = condition_rows(plan, section, model)
    for start in range(0, total, batch):
        patches = plan.patches[start : start + batch]
        made_of = replace(_batch(patches, plan, section, model, conditions), preview_every=preview_every)
        for update in model.denoise(made_of):
            if cancel.cancelled:
                return
            if update.preview is not None and on_preview is not None:
                on_preview(PatchResult(patches[0], update.preview))
            progress = Progress(start, total, update.step, update.steps, len(patches), watch.seconds)
            if update.images is None:
                yield (), progress
            else:
                done = tuple(PatchResult(p, image) for p, image in zip(patches, update.images, strict=True))
                yield done, Progress(start + len(patches), total, 0, update.steps, 0, watch.seconds)


def _batch(
    patches: tuple[Patch, ...], plan: Plan, section: Section, model: PatchModel, conditions: Conditions
) -> PatchBatch:
    crops = None
    morphology = None
    if plan.request.morphology == "own":
        assert section.image is not None  # plan() refuses a section without a usable image
        crops = read_patches(section.image, [p.source_box for p in patches], plan.card.patch_px)
        morphology = model.encode_morphology(crops, tuple(p.spot_id for p in patches))
    elif conditions.morphology is not None:
        morphology = np.repeat(conditions.morphology[None], len(patches), axis=0)
    expression = conditions.expression(patches, section, model)
    return PatchBatch(patches, crops, morphology, expression, tuple(p.seed for p in patches), plan.guidance, plan.steps)
