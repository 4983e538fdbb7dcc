"""The request cycle of one viewer: what is wanted becomes a plan, the plan a run, the run a layer. No Qt."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ..errors import RequestError, StmditError
from ..progress import Progress, Stopwatch
from ..synthesis.canvas import MemoryCanvas, fits_in_memory
from ..synthesis.estimate import estimate, evaluations
from ..synthesis.plan import plan as make_plan
from ..synthesis.result import collect, provenance_of
from ..synthesis.run import PatchModel
from ..types import PatchResult, Plan, Request, Section, SpotList
from . import jobs
from .jobs import Advance, Handlers, Lane, Start
from .layers import KEY, LayerTuple, result_layer
from .state import Message, ResultEntry, RunStatus, WorkbenchState

TOO_LARGE = (
    "the selected spots span more than fits in memory; select fewer, or use the command line, `stmdit synthesize`, which keeps its canvas "
    "on disk"
)
REFRESH_S = 0.2
"""A growing canvas is sent to the screen at most so often."""
BATCH_CPU, BATCH_GPU = 4, 16
"""Patches denoised together where the user leaves it open; fewer on a CPU, so that the first patches are seen early."""


class _Present:
    """The run that is under way."""

    def __init__(self, number: int, plan: Plan, section: Section, model: PatchModel, name: str) -> None:
        self.number, self.plan, self.section, self.model, self.name = number, plan, section, model, name
        self.canvas = MemoryCanvas(plan.frame)
        self.done: list[PatchResult] = []
        self.progress: Progress | None = None
        self.watch = Stopwatch()
        self.layer: Any = None
        self.dirty = False
        self.drawn_at = 0.0
        self.failed: StmditError | None = None
        self.stopped = False


class RunCycle:
    """Drives runs and keeps their state.

    The request cycle:

    1. `run` freezes what the user wants into a Request: the form, the selection, the checkpoint.
    2. `plan` resolves it against section and card in milliseconds. Faults go beside their fields and end the cycle here.
    3. The lane takes the next generation number and a worker drives the plan; from now on only that number is listened to.
    4. Each finished patch arrives on the GUI thread and is pasted on the canvas. The first one brings the layer; later ones
       are sent to the screen at most five times a second.
    5. However the run ends (done, stopped, failed), what is finished becomes a Result with its provenance, and Run is free.

    Parameters
    ----------
    state
        Of the viewer.
    start
        How a job is started.
    insert
        Adds a layer to the viewer and returns it.
    redraw
        Called when spots change their look, because patches now lie under them.
    """

    def __init__(
        self,
        state: WorkbenchState,
        start: Start,
        insert: Callable[[LayerTuple], Any],
        redraw: Callable[[], None],
    ) -> None:
        self.state = state
        self._lane = Lane(start)
        self._insert = insert
        self._redraw = redraw
        self._present: _Present | None = None
        self._pace: dict[str, float] = {}
        self._count = 0

    @property
    def plan(self) -> Plan | None:
        """The plan of the run that is under way."""
        return None if self._present is None else self._present.plan

    # --- what is wanted

    def request(self) -> Request:
        """Return the whole request: the form's, for the selected spots and the chosen checkpoint."""
        state = self.state
        update: dict[str, Any] = {"checkpoint": state.model.checkpoint}
        if state.selected:
            update["region"] = SpotList(ids=state.selected)
        return state.request.model_copy(update=update)

    def preview(self) -> None:
        """Plan without running: show what it would cost, or the faults beside their fields."""
        plan = self._planned()
        self.state.estimate = None if plan is None else estimate(plan, self._pace.get(self._device()))
        self.state.notes = () if plan is None else plan.notes

    def _planned(self) -> Plan | None:
        state = self.state
        if state.section is None or state.checkpoint is None or not state.selected:
            state.faults = {}
            return None
        try:
            plan = make_plan(state.section, self.request(), state.checkpoint.card)
        except RequestError as error:
            state.faults = dict(error.faults)
            return None
        state.faults = {} if fits_in_memory(plan.frame) else {"region": TOO_LARGE}
        return None if state.faults else plan

    # --- the run

    def run(self) -> None:
        """Start a run of what is wanted; a run that is under way goes on."""
        state = self.state
        if state.status.busy:
            return
        if state.obstacle:
            state.message = Message("warning", state.obstacle)
            return
        state.status = RunStatus.PLANNING
        plan = self._planned()
        if plan is None:
            state.status = RunStatus.FAILED
            text = " ".join(dict.fromkeys(state.faults.values()))
            state.message = Message("error", f"This cannot be run: {text}")
            return
        section, model = state.section, state.checkpoint
        assert section is not None and model is not None  # no obstacle
        self._count += 1
        name = f"synthetic (STMDiT {plan.card.name}) {self._count}"
        self._present = _Present(self._count, plan, section, model, name)
        state.progress = None
        state.status = RunStatus.RUNNING
        state.message = Message("info", f"Synthesizing {len(plan)} patches ...")
        self._redraw()
        job = jobs.synthesis(plan, section, model, self._batch())
        state.generation = self._lane.submit(job, Handlers(self._advance, self._failed, self._ended))

    def stop(self) -> None:
        """Ask the run to end at its next denoising step; what is finished is kept."""
        if self._present is not None:
            self._present.stopped = True
            self.state.status = RunStatus.STOPPING
            self._lane.cancel()

    def abandon(self) -> None:
        """End the run now and listen to it no longer; what arrived is kept."""
        if self._present is not None:
            self._present.stopped = True
            self._lane.abandon()
            self._ended()

    def forget(self, number: int) -> None:
        """The user removed a result's layer; if its run is under way, it is ended and dropped."""
        if self._present is not None and self._present.number == number:
            self._lane.abandon()
            self._present = None
            self.state.status = RunStatus.STOPPED
            self.state.message = Message("info", "The run was ended, as its layer was removed.")

    def _advance(self, advance: Advance) -> None:
        present = self._present
        if present is None:
            return
        self.state.progress = present.progress = advance.progress
        for patch in advance.patches:
            present.canvas.paste(patch)
            present.done.append(patch)
            present.dirty = True
        if present.dirty and time.perf_counter() - present.drawn_at >= REFRESH_S:
            self._draw(present)

    def _draw(self, present: _Present) -> None:
        if present.layer is None:
            run = {"run": present.number, "provenance": self._provenance(present)}
            present.layer = self._insert(
                result_layer(present.canvas.rgba, present.plan.frame, present.section, present.name, run)
            )
        else:
            present.layer.refresh(extent=False, thumbnail=False, highlight=False)
        present.dirty = False
        present.drawn_at = time.perf_counter()

    def _failed(self, error: StmditError) -> None:
        if self._present is not None:
            self._present.failed = error

    def _ended(self) -> None:
        present, self._present = self._present, None
        if present is None:
            return
        if present.dirty:
            self._draw(present)
        if present.done:
            self._keep(present)
        self._close(present)
        self._redraw()
        self.preview()

    def _keep(self, present: _Present) -> None:
        seconds = present.watch.seconds
        self._pace[self._device(present.model)] = seconds / evaluations(present.plan, len(present.done))
        last = present.progress
        result = collect(
            present.plan,
            present.section,
            present.model,
            present.canvas,
            present.done,
            seconds,
            last.notes if last else (),
            last.failed if last else None,
        )
        if present.layer is None:
            return
        present.layer.metadata[KEY].update(provenance=dict(result.provenance), result=result)
        present.layer.refresh(extent=False, highlight=False)
        self.state.chosen_result = present.number  # before the list is shown anew, which then marks it
        self.state.results = (*self.state.results, ResultEntry(present.number, present.name, result))

    def _close(self, present: _Present) -> None:
        state, done, total = self.state, len(present.done), len(present.plan)
        kept = f" {done} of {total} patches are finished and kept." if done else " No patch was finished."
        notes = "".join(f" Note: {note}." for note in (present.progress.notes if present.progress else ()))
        if present.failed is not None:
            state.status = RunStatus.FAILED
            state.message = Message("error", f"{present.failed}{kept}")
        elif done < total:
            state.status = RunStatus.STOPPED
            how = "Stopped" if present.stopped else "Not everything could be made"
            state.message = Message("warning", f"{how}.{kept}{notes}")
        else:
            state.status = RunStatus.DONE
            state.message = Message(
                "info", f"{done} synthetic patches in {present.watch.seconds:.1f} s: {present.name}.{notes}"
            )
        state.progress = None

    # --- details

    def _provenance(self, present: _Present) -> dict[str, Any]:
        made = [result.patch for result in present.done]
        return provenance_of(present.plan, present.section, present.model, made, present.watch.seconds)

    def _device(self, model: PatchModel | None = None) -> str:
        model = model or self.state.checkpoint
        return "" if model is None else f"{model.card.name} on {model.provenance.get('device', 'cpu')}"

    def _batch(self) -> int:
        model = self.state.checkpoint
        on_cpu = model is None or str(model.provenance.get("device", "cpu")).startswith("cpu")
        return self.state.batch or (BATCH_CPU if on_cpu else BATCH_GPU)
