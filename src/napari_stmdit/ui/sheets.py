"""Contact sheets of one spot, made through the same queue as runs. No Qt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..errors import RequestError, StmditError
from ..synthesis.plan import plan as make_plan
from ..synthesis.variants import DOSES, GRID, Variant, dose_strip, guidance_grid
from ..types import Request
from . import jobs
from .jobs import Handlers, Lane, Start
from .queue import RunQueue
from .state import Message, RunStatus, WorkbenchState


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
