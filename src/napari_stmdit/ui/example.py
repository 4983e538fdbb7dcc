"""The example: the bundled section, one painted edit, and this tissue before and after, without a question asked. No Qt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..errors import SynthesisError
from ..intent import SpotList, TowardsEdit
from ..synthesis.models import PatchModel
from ..types import Section
from .jobs import Job, failing, once
from .painting import Painting
from .runs import RunCycle
from .state import ModelChoice, WorkbenchState

PROFILES = {"tumour", "stroma"}
"""Profiles of a checkpoint by which the place is found."""
PAINTED = 0.5
"""Least weight of the spots that are painted, of those that the brush of `stmdit demo` reaches."""


def painting_example(section: Section, model: PatchModel) -> Job:
    """Find what to paint and where; yields the edit and its scale."""

    def work() -> tuple[TowardsEdit, float]:
        from ..evaluation.demo import demo_request

        request, _ = demo_request(section, model.profiles, model.card)
        edit = request.edits[0]
        assert isinstance(edit, TowardsEdit)
        spots = {spot: weight for spot, weight in (edit.spots or {}).items() if weight >= PAINTED}
        return edit.model_copy(update={"spots": spots}), request.edit_scale

    return Job("Painting the example", once(work), failing(SynthesisError, "the example could not be painted"))


class Example:
    """Shows the example once section and checkpoint are there.

    Parameters
    ----------
    state
        Of the viewer.
    submit
        Starts a job on a lane.
    painting, runs
        Of the viewer.
    begin
        Opens the bundled section, and loads the checkpoint where one is given.
    """

    def __init__(
        self,
        state: WorkbenchState,
        submit: Callable[[str, Job, Callable[[Any], None]], None],
        painting: Painting,
        runs: RunCycle,
        begin: Callable[[ModelChoice | None], None],
    ) -> None:
        self.state = state
        self._submit, self._painting, self._runs, self._begin = submit, painting, runs, begin
        self._wanted = False
        state.events.busy.connect(self._go_on, max_args=0)

    def show(self) -> None:
        """Open the bundled section, paint one edit, and show this tissue before and after."""
        model = self.state.checkpoint
        fits = model is not None and set(model.profiles or {}) >= PROFILES
        self._begin(None if fits else ModelChoice(device=self.state.model.device))
        self._wanted = True
        self._go_on()

    def _go_on(self) -> None:
        section, model = self.state.section, self.state.checkpoint
        if not self._wanted or self.state.busy or section is None or model is None:
            return
        self._wanted = False
        self._submit("example", painting_example(section, model), self._paint)

    def _paint(self, found: tuple[TowardsEdit, float]) -> None:
        edit, scale = found
        state = self.state
        update = {"edits": (edit,), "edit_scale": scale, "counterfactual": "on", "mode": "spots"}
        state.request = state.request.model_copy(update=update)
        self._painting.choose(0)
        spots = SpotList(ids=tuple(edit.spots or ()))
        self._runs.submit(self._runs.request().model_copy(update={"region": spots, "preset": "draft"}), self._told)

    def _told(self, number: int) -> None:
        self._runs.edited_tissue(number)
        self.state.tell(
            "info",
            "This tissue before (left of the line) and after an edit towards its palest spots (right): drag the line. It is a draft; Run "
            "makes it with all steps.",
        )
