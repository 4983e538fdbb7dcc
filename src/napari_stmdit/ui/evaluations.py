"""Evaluating the open section with the chosen checkpoint, through the same queue as runs. No Qt."""

from __future__ import annotations

from ..errors import StmditError
from ..evaluation.cases import EvaluationRequest
from ..evaluation.evaluate import Evaluated
from ..progress import Progress
from . import jobs
from .jobs import Handlers, Lane, Start
from .queue import RunQueue
from .state import Message, RunStatus, WorkbenchState


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
