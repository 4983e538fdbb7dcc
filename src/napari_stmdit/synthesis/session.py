"""Runs from plan to result, on a canvas in memory or on disk, for scripts, the command line and the dock."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from ..errors import (
    ClusterGoneError,
    RequestError,
    StmditError,
    StoreError,
    SynthesisError,
    first_line,
    is_out_of_memory,
)
from ..intent import Request
from ..progress import BATCH, Batches, CancelToken, Progress, Stopwatch
from ..tissue.excluded import exclude_file
from ..types import Patch, PatchResult, Plan, Section
from .canvas import MemoryCanvas, fits_in_memory
from .conditions import Conditions
from .continuous import run_edited_windows, run_windows
from .counterfactual import Before, follow_steps
from .identity import identity_of, inputs_of
from .models import Event, KnownModel, Pasted, PatchModel
from .plan import plan as make_plan
from .result import Result, collect
from .spots import MeasuredSpots, run_spots
from .zarr_canvas import ZarrCanvas


class Session:
    """One run of a plan: counts progress, halves batches, pastes finished patches, and reports failures.

    Any thread may drive `steps`; another may `close` it and ask for the `result`.

    Parameters
    ----------
    plan
        From `napari_stmdit.synthesis.plan.plan`, for this section and this model's card.
    section, model
        The section of the plan, and the checkpoint.
    canvas
        Canvas to paste on. One on disk knows what earlier sessions finished, and is closed at the end. None: patches are in the
        events only.
    batch
        Patches, or windows of continuous mode, computed together; the result does not depend on it.
    cancel
        Asked after every denoising step; once set, the run ends and finished patches stay valid.
    preview_every
        Steps between previews of the first patch of a batch; each costs one decoding and changes no result. 0 is off.
        Not in continuous mode.
    done
        Indices of patches that are finished already, beside those on the canvas.
    only
        Indices of the patches to compute, a share of the plan; None: all. Not in continuous mode, whose windows belong
        together.
    conditions
        From `condition_rows`, where a plan is computed in shares; None makes them. Spots mode only.
    measured
        Cache of the spots' encodings, shared by successive runs. Spots mode only.
    kept
        Sentence on where finished patches are kept, for errors.

    Attributes
    ----------
    progress
        The latest.
    finished
        Indices of the finished patches or tiles.
    failed
        Index -> reason of those that failed.
    inputs
        From `inputs_of`; None before the first event, and without a canvas in memory.
    """

    def __init__(
        self,
        plan: Plan,
        section: Section,
        model: PatchModel,
        canvas: MemoryCanvas | ZarrCanvas | None = None,
        *,
        batch: int = BATCH,
        cancel: CancelToken | None = None,
        preview_every: int = 0,
        done: Collection[int] = (),
        only: Collection[int] | None = None,
        conditions: Conditions | None = None,
        measured: MeasuredSpots | None = None,
        kept: str = "",
    ) -> None:
        if only is not None and plan.windows is not None:
            raise SynthesisError("a continuous region stays together and cannot be shared out; share out spots instead")
        self.plan, self.section, self.model, self.canvas = plan, section, model, canvas
        self.cancel = cancel or CancelToken()
        self.preview_every = preview_every
        self.batches = Batches(batch, "patches" if plan.windows is None else "windows")
        self.watch = Stopwatch()
        self.inputs: Mapping[str, Any] | None = None
        self.failed: dict[int, str] = {}
        self._wanted = frozenset(range(len(plan)) if only is None else only)
        self._before = frozenset(canvas.finished if canvas is not None else ())
        self.finished = set((self._before | frozenset(done)) & self._wanted)
        self._conditions, self._kept = conditions, kept
        self._measured = measured or MeasuredSpots(section, model)
        self._notes: list[str] = []
        self._facts: Mapping[str, Any] = {}
        self._lock = threading.Lock()
        self._closed = False
        self.progress = self._progress(0, 0.0, 0)

    def steps(self, cancel: CancelToken | None = None) -> Iterator[Event]:
        """Compute the plan; every finished batch is pasted, and safe where the canvas is on disk, before its progress is yielded.

        ``cancel`` replaces the session's own token.

        Raises
        ------
        SynthesisError, StoreError
            Sampling fails for good, or the folder cannot be written; finished patches stay on the canvas.
        """
        self.cancel = cancel or self.cancel
        with kept(self.canvas, self.plan) if isinstance(self.canvas, ZarrCanvas) else nullcontext():
            try:
                if isinstance(self.canvas, MemoryCanvas):
                    self.inputs = inputs_of(self.plan, self.section, self.model)
                for event in self._computed():
                    if self._closed:
                        return
                    yield event
            except StmditError:
                raise
            except Exception as error:
                raise SynthesisError(" ".join(filter(None, (sampling_failure(error), self._kept)))) from error

    def _computed(self) -> Iterator[Event]:
        if self.plan.windows is None:
            yield self.report()
            if self.todo:
                yield from self.read_tissue()
            if self.todo and not self.stopped():
                yield from run_spots(self, self._measured, self._conditions)
        elif self.plan.counterfactual:
            yield from run_edited_windows(self, self.plan.windows)
        else:
            yield from run_windows(self, self.plan.windows)

    # --- what spots, windows and edited windows have in common

    @property
    def todo(self) -> list[Patch]:
        """The patches or tiles that are still to be made."""
        gone = self.finished | self.failed.keys()
        return [p for p in self.plan.patches if p.index in self._wanted and p.index not in gone]

    @property
    def states(self) -> ZarrCanvas | None:
        """Store of the latents of continuous mode, saved every few steps."""
        return self.canvas if isinstance(self.canvas, ZarrCanvas) else None

    def stopped(self) -> bool:
        """Return whether a stop was asked for."""
        return self.cancel.cancelled

    def read_tissue(self) -> Iterator[Progress]:
        """Fit how morphology follows, where tissue is edited; it may be stopped between two batches of spots."""
        if self.plan.counterfactual and self._conditions is None:
            for words in follow_steps(self.section, self.plan.card, self.model):
                yield self.report(doing=words)
                if self.stopped():
                    return

    def report(self, step: int = 0, part: float = 0.0, count: int = 0, doing: str = "") -> Progress:
        """Record the position of the run: a step, the share of it that is done, the number of patches in work, or what is done before."""
        self.progress = self._progress(step, part, count, doing)
        if isinstance(self.canvas, ZarrCanvas):
            self.canvas.failed = dict(self.failed)
            self.canvas.facts |= self._facts
        return self.progress

    def keep(self, results: Sequence[PatchResult], step: int = 0) -> Iterator[Event]:
        """Paste finished patches or tiles, safely where on disk; does nothing after the run was closed."""
        with self._lock:  # another thread may close the run
            if self._closed:
                return
            self.finished |= {result.patch.index for result in results}
            if self.canvas is not None:
                for result in results:
                    self.canvas.paste(result)
            progress = self.report(step)
            if isinstance(self.canvas, ZarrCanvas):  # after the report, whose facts go into the manifest
                self.canvas.commit()
        yield Pasted(tuple(results))
        yield progress

    def leave_out(self, indices: Iterable[int], reason: str, note: str = "") -> None:
        """Record failed patches and the reason; the first reason stays."""
        for index in indices:
            self.failed.setdefault(index, reason)
        if note:
            self._notes.append(note)

    def follows(self, before: Before) -> None:
        """Record how morphology follows the edits."""
        self._facts = before.facts
        self._notes += before.words

    def _progress(self, step: int, part: float, count: int, doing: str = "") -> Progress:
        total, done, whole = len(self._wanted), len(self.finished), self.plan.windows is not None
        return Progress(
            done,
            total,
            step,
            self.plan.steps + whole,  # decoding counts as one more step, of all that is left
            total - done if whole else count,
            self.watch.seconds,
            part=part,
            notes=(*self._notes, *self.batches.notes),
            failed=dict(self.failed),
            facts=self._facts,
            doing=doing,
        )

    # --- its end

    def close(self) -> None:
        """End the run; nothing more is pasted."""
        self.cancel.cancel()
        with self._lock:
            self._closed = True

    def result(self) -> Result:
        """Return the result on the canvas; nothing more is pasted."""
        with self._lock:
            self._closed = True
        assert self.canvas is not None  # a result has one
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


def run(
    plan: Plan, section: Section, model: PatchModel, *, batch: int = BATCH, cancel: CancelToken | None = None
) -> Iterator[tuple[tuple[PatchResult, ...], Progress]]:
    """Compute a plan batch by batch, without a canvas.

    Too little memory halves the batch and tries again. A patch that is not finite is left out, named in the progress, and the others
    go on.

    Parameters
    ----------
    plan, section, model, batch, cancel
        As for `napari_stmdit.synthesis.session.Session`, which also previews patches and computes shares of a plan.

    Yields
    ------
    tuple
        The patches finished since the last one (none after most steps) and the progress.

    Raises
    ------
    SynthesisError
        Sampling fails for good: a single patch needs more memory than there is, or nothing at all is finite.
    """
    images: tuple[PatchResult, ...] = ()
    for event in Session(plan, section, model, batch=batch, cancel=cancel).steps():
        if isinstance(event, Pasted):
            images = event.images
        elif isinstance(event, Progress):
            yield images, event
            images = ()


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
        Request of the user.
    model
        From `napari_stmdit.load_checkpoint`.
    batch
        Patches denoised together; the result does not depend on it.
    cancel
        Asked at every denoising step; finished patches are kept.
    on_progress
        Called after every denoising step.
    folder
        Folder of a canvas on disk, which may be of any size and continued after a crash. None: in memory.
    resume
        Whether to continue the run in ``folder``; starts where there is none.

    Raises
    ------
    RequestError
        The request cannot be planned, with every fault.
    StoreError
        The folder holds another run or cannot be written.
    SynthesisError
        Sampling fails for good. Finished patches stay in ``folder``.
    """
    if request.exclude is not None and section.excluded is None:
        section = exclude_file(section, request.exclude)
    plan = make_plan(section, request, model)
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
    """Return the folder of the command line's unfinished runs: beside the output, on the same disk."""
    output = Path(output).expanduser().absolute()
    return output.with_name(output.name + ".unfinished")


def open_canvas(
    folder: str | Path, plan: Plan, section: Section, model: KnownModel, resume: bool = False
) -> ZarrCanvas:
    """Create a canvas on disk, or, with ``resume``, continue the one in the folder.

    Raises
    ------
    StoreError
        The folder holds another run, holds one without ``resume``, or cannot be written.
    """
    identity = identity_of(plan, section, model)
    if resume and Path(folder).expanduser().exists():
        return ZarrCanvas.resume(folder, plan, identity)
    return ZarrCanvas.create(folder, plan, identity)


@contextmanager
def kept(canvas: ZarrCanvas, plan: Plan) -> Iterator[None]:
    """Close the canvas however a run ends, so that its folder stays readable; name the folder in errors."""
    try:
        yield
    except StmditError as error:
        with suppress(Exception):
            canvas.close()
        where = f"{canvas.committed} of {len(plan)} patches are finished and kept in {canvas.folder}"
        raise to_continue(error, where) from error
    except BaseException:
        with suppress(Exception):
            canvas.close()
        raise
    canvas.close()


def to_continue(error: StmditError, where: str) -> StmditError:
    """Return the error that ends a run, with where what is finished is kept, and how to go on."""
    kind = type(error) if isinstance(error, StoreError | ClusterGoneError) else SynthesisError
    return kind(f"{error}\n{where}; run the same again with --resume to continue")


def sampling_failure(error: Exception) -> str:
    """Return a message about a failure of the sampler and its remedy."""
    if is_out_of_memory(error):
        advice = "close what else uses the device, use a smaller dtype, or choose the CPU"
        return f"There is too little memory even for one patch at a time; {advice}. ({first_line(error)})"
    return f"Sampling failed: {first_line(error)} ({type(error).__name__})."
