"""Results into paired data sets from the dock: on a worker of its own, so that runs go on meanwhile. No Qt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from ..dataset.export import Exported
from ..errors import RequestError, StmditError
from ..evaluation.cases import EvaluationRequest
from ..evaluation.evaluate import Evaluated
from ..intent import Request
from ..progress import Progress
from ..synthesis.plan import plan as make_plan
from ..synthesis.result import Result
from ..synthesis.stored import StoredResult
from ..synthesis.variants import DOSES, GRID, Variant, dose_strip, guidance_grid
from . import jobs
from .jobs import Handlers, Lane, Start
from .results import ResultList
from .runs import RunQueue
from .state import Message, RunStatus, WorkbenchState


class DataSets:
    """Writes one data set at a time; the same choice once more goes on with one that was stopped.

    Parameters
    ----------
    state
        Of the viewer.
    start
        How a job is started.
    results
        Where results are found.
    """

    def __init__(self, state: WorkbenchState, start: Start, results: ResultList) -> None:
        self.state = state
        self._lane = Lane(start)
        self._results = results
        self._path = ""

    def export(self, number: int, path: str) -> None:
        """Write a result as a data set, with its baseline where that is in the list, so that the two are linked."""
        if self._lane.busy:
            self._tell("warning", f"{self.state.exporting} Stop that first.")
            return
        found = self.sources(number)
        if not found:
            self._tell("warning", "This result has no patches to make a data set of; run it again first.")
            return
        self._path = path
        self.state.exporting = f"A data set is being written to {path}."
        job = jobs.exporting_dataset(found, path)
        self._lane.submit(job, Handlers(self._advance, self._failed, self._ended))

    def sources(self, number: int) -> list[Result | StoredResult]:
        """Return what a data set of a result is made of: its baseline, where there is one, and the result."""
        entries = (self._results.baseline(number), self._results.entry(number))
        return [entry.source for entry in entries if entry is not None and entry.source is not None]

    def stop(self) -> None:
        """Ask the present export to end; what is done is kept."""
        self._lane.cancel()

    def close(self) -> None:
        """End the present export and listen to it no longer; what is done is kept."""
        self._lane.abandon()
        self.state.exporting = ""

    def _advance(self, value: Progress | Exported) -> None:
        if isinstance(value, Progress):
            done, total = value.patches_done, value.patches_total
            self.state.exporting = f"A data set is being written to {self._path}: {done} of {total} images."
        elif value.complete:
            known = "was there already" if value.existed else "was written"
            self._tell(
                "info",
                f"The data set {known}: {value.rows} images in {value.path}. Its licence is yours to state in README.md.",
            )
        else:
            self._tell(
                "warning",
                f"Stopped: {value.done} of {value.rows} images are kept; choose the same place again to go on.",
            )

    def _failed(self, error: StmditError) -> None:
        self._tell("error", str(error))

    def _ended(self) -> None:
        self.state.exporting = ""

    def _tell(self, kind: Literal["info", "warning", "error"], text: str) -> None:
        self.state.message = Message(kind, text)


# Evaluating the open section with the chosen checkpoint, through the same queue as runs.


class Evaluations:
    """Evaluates one section at a time; the same choice once more goes on with an evaluation that was stopped.

    Parameters
    ----------
    state
        Of the viewer.
    start
        How a job is started.
    queue
        Shared with the runs: one piece of work at a time uses the model.
    """

    def __init__(self, state: WorkbenchState, start: Start, queue: RunQueue) -> None:
        self.state = state
        self._lane = Lane(start)
        self._queue = queue
        self._failed: StmditError | None = None
        self._found: Evaluated | None = None

    @property
    def busy(self) -> bool:
        """Whether an evaluation is under way."""
        return self._lane.busy

    def evaluate(self, path: str, spots: int, seeds: int) -> None:
        """Evaluate the open section into a folder, with the guidance, steps and seed of the form, and its edits where it has some."""
        state = self.state
        section, model, form = state.section, state.checkpoint, state.request
        if section is None or model is None:
            state.message = Message("warning", state.obstacle)
            return
        wanted = EvaluationRequest(
            spots=spots,
            seeds=seeds,
            seed=min(form.seed, 2**31 - 1),
            steps=form.steps,
            guidance=form.guidance,
            edits=tuple(edit for edit in form.edits if edit.enabled),
            programs=form.programs,
            profiles=form.profiles,
        )
        job = jobs.evaluating(section, model, wanted, path, state.model.checkpoint, state.batch)

        def start() -> None:
            self._failed = self._found = None
            state.status = RunStatus.RUNNING
            state.message = Message("info", f"{section.name} is being evaluated into {path} ...")
            self._lane.submit(job, Handlers(self._advance, self._note, self._ended))

        if not self._queue.add(f"Evaluation of {section.name}", start):
            state.message = Message("info", "The evaluation waits for the present run.")

    def stop(self) -> None:
        """End the evaluation at its next denoising step; what is finished is kept."""
        self.state.status = RunStatus.STOPPING
        self._lane.cancel()

    def abandon(self) -> None:
        """End the evaluation now and listen to it no longer; what is finished is kept."""
        if self.busy:
            self._lane.abandon()
            self.state.status = RunStatus.STOPPED
            self.state.progress = None

    def _advance(self, value: Progress | Evaluated) -> None:
        if isinstance(value, Progress):
            self.state.progress = value
        else:
            self._found = value

    def _note(self, error: StmditError) -> None:
        self._failed = error

    def _ended(self) -> None:
        state, found = self.state, self._found
        state.progress = None
        if self._failed is not None:
            state.status, state.message = RunStatus.FAILED, Message("error", str(self._failed))
        elif found is None or found.report is None:
            done = "" if found is None else f" {found.done} of {found.total} patches are kept;"
            text = f"Stopped.{done} choose the same folder again to go on."
            state.status, state.message = RunStatus.STOPPED, Message("warning", text)
        else:
            state.evaluation = found
            state.status = RunStatus.DONE
            state.message = Message("info", f"The evaluation is finished: {found.report.html}")
        self._queue.ended(well=state.status is RunStatus.DONE)


# Contact sheets of one spot, made through the same queue as runs.


class Sheets:
    """Makes dose strips and guidance grids.

    Parameters
    ----------
    state
        Of the viewer.
    start
        How a job is started.
    queue
        Shared with the runs.
    request
        Returns what the form asks for.
    """

    def __init__(self, state: WorkbenchState, start: Start, queue: RunQueue, request: Callable[[], Request]) -> None:
        self.state = state
        self._lane = Lane(start)
        self._queue = queue
        self._request = request
        self._failed: StmditError | None = None
        self._stopped = False

    @property
    def busy(self) -> bool:
        """Whether a sheet is being made."""
        return self._lane.busy

    def dose_strip(self, spot: str, edit: int | None = None) -> None:
        """Show a spot at strengths 0 to 1 of an edit, by default the last one that is switched on."""
        try:
            variants = dose_strip(self._request(), spot, edit)
        except RequestError as error:
            self.state.message = Message("warning", error.faults[0][1])
            return
        self._make("Dose strip", variants, DOSES)

    def guidance_grid(self, spot: str) -> None:
        """Show a spot under three scales of each guidance."""
        model = self.state.checkpoint
        if model is not None:
            self._make("Guidance", guidance_grid(self._request(), spot, model.card.guidance), len(GRID))

    def stop(self) -> None:
        """End the sheet at its next denoising step; finished images stay."""
        self._stopped = True
        self.state.status = RunStatus.STOPPING
        self._lane.cancel()

    def abandon(self) -> None:
        """End the sheet now and listen to it no longer."""
        if self.busy:
            self._lane.abandon()
            self.state.status = RunStatus.STOPPED
            self.state.progress = None

    def _make(self, title: str, variants: Sequence[Variant], columns: int) -> None:
        state = self.state
        section, model = state.section, state.checkpoint
        if section is None or model is None:
            state.message = Message("warning", state.obstacle)
            return
        try:
            for variant in variants:
                make_plan(section, variant.request, model.card)
        except RequestError as error:
            text = " ".join(dict.fromkeys(message for _, message in error.faults))
            state.message = Message("error", f"This cannot be run: {text}")
            return
        job = jobs.sheet(title, variants, columns, section, model)

        def start() -> None:
            self._failed, self._stopped = None, False
            state.status = RunStatus.RUNNING
            state.message = Message("info", f"{title} of spot {variants[0].request.region.ids[0]} ...")  # type: ignore[union-attr]
            state.sheet = None
            self._lane.submit(job, Handlers(self._advance, self._note, self._ended))

        if not self._queue.add(f"{title}: {len(variants)} images", start):
            state.message = Message("info", f"{title} waits for the present run.")

    def _advance(self, value: Any) -> None:
        sheet, self.state.progress = value
        if self.state.sheet is None or len(sheet.cells) != len(self.state.sheet.cells):
            self.state.sheet = sheet

    def _note(self, error: StmditError) -> None:
        self._failed = error

    def _ended(self) -> None:
        state = self.state
        state.progress = None
        done = 0 if state.sheet is None else len(state.sheet.cells)
        if self._failed is not None:
            state.status, state.message = RunStatus.FAILED, Message("error", str(self._failed))
        elif self._stopped:
            state.status, state.message = RunStatus.STOPPED, Message("warning", f"Stopped. {done} images are finished.")
        else:
            state.status, state.message = (
                RunStatus.DONE,
                Message("info", f"The contact sheet is finished: {done} images."),
            )
        self._queue.ended(well=state.status is RunStatus.DONE)
