"""Results into paired data sets from the dock: on a worker of its own, so that runs go on meanwhile. No Qt."""

from __future__ import annotations

from typing import Literal

from ..dataset.export import Exported
from ..errors import StmditError
from ..progress import Progress
from ..synthesis.result import Result
from ..synthesis.stored import StoredResult
from . import jobs
from .jobs import Handlers, Lane, Start
from .results import ResultList
from .state import Message, WorkbenchState


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
