"""A run from its plan to its result, on a canvas in memory or on disk: scripts, the command line and the dock all drive it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import RequestError, StmditError, StoreError, SynthesisError, first_line, is_out_of_memory
from ..intent import Request
from ..progress import BATCH, CancelToken, Progress, Stopwatch
from ..tissue.excluded import exclude_file
from ..types import PatchResult, Plan, Section
from .canvas import MemoryCanvas, fits_in_memory
from .identity import identity_of, inputs_of
from .models import KnownModel, PatchModel
from .plan import plan as make_plan
from .result import Result, collect
from .run import Preview, run_steps
from .zarr_canvas import ZarrCanvas


@dataclass(frozen=True)
class Pasted:
    """Patches or tiles that are on the canvas now, and the boxes (y0, x0, y1, x1) of canvas pixels that they changed."""

    images: tuple[PatchResult, ...]
    boxes: tuple[tuple[int, int, int, int], ...]


Event = Preview | Pasted | Progress


class Session:
    """One run of a plan.

    Any thread may drive `steps`; another may `close` it and ask for the `result`.

    Parameters
    ----------
    plan, section, model, batch, cancel, preview_every
        As for `napari_stmdit.run`.
    canvas
        What is finished is pasted on it. One on disk says what earlier sessions finished, and is closed at the end.

    Attributes
    ----------
    progress
        The latest.
    inputs
        What all is made from; None before the first event.
    """

    def __init__(
        self,
        plan: Plan,
        section: Section,
        model: PatchModel,
        canvas: MemoryCanvas | ZarrCanvas,
        *,
        batch: int = BATCH,
        cancel: CancelToken | None = None,
        preview_every: int = 0,
    ) -> None:
        self.plan, self.section, self.model, self.canvas = plan, section, model, canvas
        self.cancel = cancel or CancelToken()
        self.watch = Stopwatch()
        self.progress = Progress(0, len(plan), 0, plan.steps, 0, 0.0)
        self.inputs: Mapping[str, Any] | None = None
        self._batch, self._preview_every = batch, preview_every
        self._before = frozenset(canvas.finished)
        self._lock = threading.Lock()
        self._closed = False

    @property
    def events(self) -> int:
        """How many events to expect, for a progress bar."""
        units = len(self.plan) if self.plan.windows is None else len(self.plan.windows)
        steps = self.plan.steps
        previews = (steps - 1) // self._preview_every if self._preview_every and self.plan.windows is None else 0
        return 1 + -(-units // self._batch) * (steps + 1 + previews)

    def steps(self) -> Iterator[Event]:
        """Compute the plan; every finished batch is pasted, and safe where the canvas is on disk, before its progress is yielded.

        Raises
        ------
        SynthesisError, StoreError
            Sampling fails for good, or the folder cannot be written; what is finished stays on the canvas.
        """
        on_disk = isinstance(self.canvas, ZarrCanvas)
        with kept(self.canvas, self.plan) if isinstance(self.canvas, ZarrCanvas) else nullcontext():
            try:
                self.inputs = None if on_disk else inputs_of(self.plan, self.section, self.model)
                yield from self._steps()
            except StmditError:
                raise
            except Exception as error:
                raise SynthesisError(sampling_failure(error)) from error

    def _steps(self) -> Iterator[Event]:
        canvas = self.canvas
        steps = run_steps(
            self.plan,
            self.section,
            self.model,
            batch=self._batch,
            cancel=self.cancel,
            done=self._before,
            states=canvas if isinstance(canvas, ZarrCanvas) else None,
            preview_every=self._preview_every,
        )
        for step in steps:
            if isinstance(step, Preview):
                yield step
                continue
            images, progress = step
            with self._lock:
                if self._closed:
                    return
                boxes = tuple(canvas.paste(image) for image in images)
                if isinstance(canvas, ZarrCanvas):
                    canvas.failed = dict(progress.failed)
                    canvas.facts |= progress.facts
                    if images:
                        canvas.commit()
                self.progress = progress
            if images:
                yield Pasted(images, boxes)
            yield progress

    def close(self) -> None:
        """End the run; nothing more is pasted."""
        self.cancel.cancel()
        with self._lock:
            self._closed = True

    def result(self) -> Result:
        """Return what is finished; nothing more is pasted."""
        with self._lock:
            self._closed = True
        return collect(
            self.plan,
            self.section,
            self.model,
            self.canvas,
            self.watch.seconds,
            self.progress,
            self.inputs,
            resumed=len(self._before),
        )


def synthesize(
    section: Section,
    request: Request,
    model: PatchModel,
    *,
    batch: int = BATCH,
    cancel: CancelToken | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    folder: str | Path | None = None,
    resume: bool = False,
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
    folder
        Where to keep the canvas on disk, so that it may be of any size and a run that dies can be continued. None keeps it in memory.
    resume
        Continue the run in ``folder``; where there is none, start.

    Raises
    ------
    RequestError
        Where the request cannot be planned, with every fault.
    StoreError
        Where the folder holds another run or cannot be written.
    SynthesisError
        Where sampling fails for good. What is finished stays in ``folder``.
    """
    if request.exclude is not None and section.excluded is None:
        section = exclude_file(section, request.exclude)
    plan = make_plan(section, request, model.card)
    canvas: MemoryCanvas | ZarrCanvas
    if folder is not None:
        canvas = open_canvas(folder, plan, section, model, resume)
    elif fits_in_memory(plan.frame):
        canvas = MemoryCanvas(plan.frame, plan.counterfactual)
    else:
        height, width = plan.frame.shape
        reason = f"it spans {height} x {width} canvas pixels, too many for memory; give folder= to keep it on disk"
        raise RequestError([("region", reason)])
    session = Session(plan, section, model, canvas, batch=batch, cancel=cancel)
    for event in session.steps():
        if on_progress is not None and isinstance(event, Progress):
            on_progress(event)
    return session.result()


def unfinished_folder(output: str | Path) -> Path:
    """Return where the command line keeps a run that is not finished yet: beside its output, on the same disk."""
    output = Path(output).expanduser().absolute()
    return output.with_name(output.name + ".unfinished")


def open_canvas(
    folder: str | Path, plan: Plan, section: Section, model: KnownModel, resume: bool = False
) -> ZarrCanvas:
    """Make a canvas on disk, or, with ``resume``, take up the one that is there.

    Raises
    ------
    StoreError
        Where the folder holds another run, or holds one and ``resume`` was not asked for, or cannot be written.
    """
    identity = identity_of(plan, section, model)
    if resume and Path(folder).expanduser().exists():
        return ZarrCanvas.resume(folder, plan, identity)
    return ZarrCanvas.create(folder, plan, identity)


@contextmanager
def kept(canvas: ZarrCanvas, plan: Plan) -> Iterator[None]:
    """However a run on disk ends, leave its folder readable; and say where it is where it ends badly."""
    try:
        yield
    except StmditError as error:
        with suppress(Exception):
            canvas.close()
        where = f"{canvas.committed} of {len(plan)} patches are finished and kept in {canvas.folder}"
        kind = StoreError if isinstance(error, StoreError) else SynthesisError
        raise kind(f"{error}\n{where}; run the same again with --resume to go on") from error
    except BaseException:
        with suppress(Exception):
            canvas.close()
        raise
    canvas.close()


def sampling_failure(error: Exception) -> str:
    """Say what went wrong in the sampler and what to do about it."""
    if is_out_of_memory(error):
        advice = "close what else uses the device, use a smaller dtype, or choose the CPU"
        return f"There is too little memory even for one patch at a time; {advice}. ({first_line(error)})"
    return f"Sampling failed: {first_line(error)} ({type(error).__name__})."
