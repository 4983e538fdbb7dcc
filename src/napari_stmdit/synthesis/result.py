"""What was computed: the canvas with its plan and provenance."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import __version__
from ..progress import CancelToken, Progress, Stopwatch
from ..tissue.store import write_result
from ..types import PatchResult, Plan, Request, Section
from .canvas import MemoryCanvas
from .plan import plan as make_plan
from .run import PatchModel, run


@dataclass(frozen=True)
class Result:
    """A finished or stopped run.

    Attributes
    ----------
    rgba
        (h, w, 4) uint8; alpha 0 where nothing was synthesized.
    plan
        What was to be computed, with the canvas's place.
    section
        The section it belongs to.
    done
        Indices of the patches that were finished; fewer than the plan's where the run was stopped.
    patches
        (n, patch_px, patch_px, 3) uint8, the finished patches before blending, in the order of ``done``.
    provenance
        Request, checkpoint hash, code version, device, dtype, seeds, timing; JSON types only.
    """

    rgba: NDArray[np.uint8]
    plan: Plan
    section: Section
    done: tuple[int, ...]
    patches: NDArray[np.uint8] = field(repr=False)
    provenance: Mapping[str, Any] = field(repr=False)

    @property
    def complete(self) -> bool:
        """Whether every patch of the plan was finished."""
        return len(self.done) == len(self.plan)

    def save(self, path: str | Path, run: str | None = None) -> str:
        """Write the result into a SpatialData store as a new image element, registered to the section.

        Parameters
        ----------
        path
            A .zarr folder; made where it does not exist, added to where it does.
        run
            Name of the run; by default the next free number.

        Returns
        -------
        str
            The element's name, ``stmdit_<run>``.

        Raises
        ------
        StoreError
            Where the store cannot be written, or is no SpatialData.
        """
        return write_result(path, self.rgba, self.plan.frame.affine, self.section, run, dict(self.provenance))


def provenance_of(
    plan: Plan, section: Section, model: PatchModel, done: list[PatchResult], seconds: float
) -> dict[str, Any]:
    """Return everything needed to tell how a result came about and to make it again; JSON types only."""
    return {
        "synthetic": True,
        "statement": "Synthetic image made by a generative model. Not for diagnosis.",
        "software": {"name": "napari-stmdit", "version": __version__},
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "request": plan.request.model_dump(mode="json"),
        "checkpoint": {
            "name": plan.card.name,
            "patch_px": plan.card.patch_px,
            "patch_mpp": plan.card.patch_mpp,
            "gene_hash": plan.card.gene_hash,
            **model.provenance,
        },
        "section": {
            "name": section.name,
            "kind": section.kind,
            "synthetic": section.synthetic,
            "mpp": section.calibration.mpp,
            "mpp_source": section.calibration.source,
            "notes": list(section.notes),
        },
        "guidance": plan.guidance.model_dump(mode="json"),
        "steps": plan.steps,
        "genes_shared": plan.genes_shared,
        "notes": list(plan.notes),
        "patches": {
            "planned": len(plan),
            "spots": [r.patch.spot_id for r in done],
            "seeds": [str(r.patch.seed) for r in done],  # as text: JSON readers lose digits of 63-bit numbers
            "source_boxes_yx_fullres": [list(r.patch.source_box) for r in done],
        },
        "seconds": round(seconds, 3),
    }


def collect(
    plan: Plan, section: Section, model: PatchModel, canvas: MemoryCanvas, done: list[PatchResult], seconds: float
) -> Result:
    """Close a run, finished or stopped, into a Result."""
    size = plan.card.patch_px
    patches = np.stack([r.pixels for r in done]) if done else np.zeros((0, size, size, 3), np.uint8)
    return Result(
        canvas.rgba,
        plan,
        section,
        tuple(r.patch.index for r in done),
        patches,
        provenance_of(plan, section, model, done, seconds),
    )


def synthesize(
    section: Section,
    request: Request,
    model: PatchModel,
    *,
    batch: int = 8,
    cancel: CancelToken | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Result:
    """Plan and run a request to its end, or until it is cancelled.

    Parameters
    ----------
    section
        From `napari_stmdit.open_section`.
    request
        What the user wants.
    model
        From `napari_stmdit.load_checkpoint`.
    batch
        Patches denoised together; the result does not depend on it.
    cancel
        Asked at every denoising step; what is done when it is set is kept.
    on_progress
        Called after every denoising step.

    Raises
    ------
    RequestError
        Where the request cannot be planned, with every fault.
    """
    plan = make_plan(section, request, model.card)
    watch = Stopwatch()
    canvas = MemoryCanvas(plan.frame)
    done: list[PatchResult] = []
    for finished, progress in run(plan, section, model, batch=batch, cancel=cancel):
        for patch in finished:
            canvas.paste(patch)
            done.append(patch)
        if on_progress is not None:
            on_progress(progress)
    return collect(plan, section, model, canvas, done, watch.seconds)
