"""Further work of the dock: the example, comparison of groups, data sets, evaluations and contact sheets. No Qt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ..dataset.export import Exported
from ..edits import Towards
from ..errors import GeneError, RequestError, StmditError, SynthesisError
from ..evaluation.cases import EvaluationRequest
from ..evaluation.selection import EditEffect
from ..expression.groups import GroupTable, compare_groups
from ..expression.programs import known_programs
from ..intent import Request
from ..progress import Progress
from ..regions import SpotList
from ..storage.atomic import read_object, write_json
from ..synthesis.models import PatchModel
from ..synthesis.plan import plan as make_plan
from ..synthesis.result import Result
from ..synthesis.stored import StoredResult
from ..synthesis.variants import DOSES, GRID, Variant, dose_strip, guidance_grid
from ..text import capitalised
from ..tissue.open import sample_folder
from ..types import Section
from . import jobs
from .jobs import Handlers, Job, Lane, Start, failing, once
from .painting import Painting
from .results import ResultList
from .runs import RunCycle, RunQueue
from .state import EditDraft, Kind, ModelChoice, RunStatus, WorkbenchState
from .strokes import describe


class DataSets:
    """Export of one data set at a time, beside runs; the same choice again continues a stopped one."""

    def __init__(self, state: WorkbenchState, start: Start, results: ResultList) -> None:
        self.state = state
        self._lane = Lane(start)
        self._results = results
        self._path = ""

    def export(self, number: int, path: str) -> None:
        """Write a result as a data set, linked with its baseline if that is in the list."""
        if self._lane.busy:
            self.state.tell("warning", f"{self.state.exporting} Stop that first.")
            return
        found = self.sources(number)
        if not found:
            self.state.tell("warning", "This result has no patches to make a data set of; run it again first.")
            return
        self._path = path
        self.state.exporting = f"A data set is being written to {path}."
        job = jobs.exporting_dataset(found, path)
        self._lane.submit(job, Handlers(self._advance, self.state.tell_error, self._ended))

    def sources(self, number: int) -> list[Result | StoredResult]:
        """Return the sources of a result's data set: its baseline, if any, and the result."""
        entries = (self._results.baseline(number), self._results.entry(number))
        return [entry.source for entry in entries if entry is not None and entry.source is not None]

    def stop(self) -> None:
        """Ask the present export to end; written rows are kept."""
        self._lane.cancel()

    def close(self) -> None:
        """End the present export and ignore further answers; written rows are kept."""
        self._lane.abandon()
        self.state.exporting = ""

    def _advance(self, value: Progress | Exported) -> None:
        if isinstance(value, Progress):
            done, total = value.patches_done, value.patches_total
            self.state.exporting = f"A data set is being written to {self._path}: {done} of {total} images."
        elif value.complete:
            known = "was there already" if value.existed else "was written"
            self.state.tell(
                "info",
                f"The data set {known}: {value.rows} images in {value.path}. Its licence is yours to state in README.md.",
            )
        else:
            self.state.tell(
                "warning",
                f"Stopped: {value.done} of {value.rows} images are kept; choose the same place again to go on.",
            )

    def _ended(self) -> None:
        self.state.exporting = ""


class _UsesModel:
    """Work that uses the model, and so takes turns with the runs."""

    def __init__(self, state: WorkbenchState, start: Start, queue: RunQueue) -> None:
        self.state = state
        self._lane = Lane(start)
        self._queue = queue
        self._failed: StmditError | None = None
        self._found: Any = None  # what it yields at its end

    @property
    def busy(self) -> bool:
        """Whether it is running."""
        return self._lane.busy

    def stop(self) -> None:
        """Ask it to end at its next denoising step; finished parts are kept."""
        self.state.status = RunStatus.STOPPING
        self._lane.cancel()

    def abandon(self) -> None:
        """End it now and ignore further answers; finished parts are kept."""
        if self.busy:
            self._lane.abandon()
            self.state.status = RunStatus.STOPPED
            self.state.progress = None

    def _begin(self, job: jobs.Job, text: str, ended: Callable[[], None]) -> None:
        self._failed = self._found = None
        self.state.status = RunStatus.RUNNING
        self.state.tell("info", text)
        self._lane.submit(job, Handlers(self._advance, self._note, ended))

    def _advance(self, value: Any) -> None:
        if isinstance(value, Progress):
            self.state.progress = value
        else:
            self._found = value

    def _note(self, error: StmditError) -> None:
        self._failed = error

    def _end(self, status: RunStatus, kind: Kind, text: str) -> None:
        state = self.state
        state.progress = None
        if self._failed is not None:
            status, kind, text = RunStatus.FAILED, "error", str(self._failed)
        state.status = status
        state.tell(kind, text)
        self._queue.ended(well=status is RunStatus.DONE)


class Evaluations(_UsesModel):
    """Evaluation of one section at a time; the same choice again continues a stopped one."""

    def evaluate(self, path: str, spots: int, seeds: int) -> None:
        """Evaluate the open section into a folder, with the form's guidance, steps, seed, and edits if any."""
        state = self.state
        section, model, form = state.section, state.checkpoint, state.request
        if section is None or model is None:
            state.tell("warning", state.obstacle)
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
            self._begin(job, f"{section.name} is being evaluated into {path} ...", self._ended)

        if not self._queue.add(f"Evaluation of {section.name}", start):
            state.tell("info", "The evaluation waits for the present run.")

    def _ended(self) -> None:
        found = self._found
        if found is None or found.report is None:
            done = "" if found is None else f" {found.done} of {found.total} patches are kept;"
            self._end(RunStatus.STOPPED, "warning", f"Stopped.{done} choose the same folder again to go on.")
            return
        self.state.evaluation = found
        self._end(RunStatus.DONE, "info", f"The evaluation is finished: {found.report.html}")


class Sheets(_UsesModel):
    """Contact sheets of one spot: dose strips and guidance grids of the form's ``request``."""

    def __init__(self, state: WorkbenchState, start: Start, queue: RunQueue, request: Callable[[], Request]) -> None:
        super().__init__(state, start, queue)
        self._request = request
        self._stopped = False

    def dose_strip(self, spot: str, edit: int | None = None) -> None:
        """Show a spot at strengths 0 to 1 of an edit, by default the last enabled one."""
        try:
            variants = dose_strip(self._request(), spot, edit)
        except RequestError as error:
            self.state.tell("warning", error.faults[0][1])
            return
        request = variants[-1].request
        at = max(k for k, one in enumerate(request.edits) if one.enabled) if edit is None else edit
        self._make(f"Dose strip, {request.edits[at].name or describe(request.edits[at])}", variants, DOSES)

    def guidance_grid(self, spot: str) -> None:
        """Show a spot under three scales of each guidance."""
        model = self.state.checkpoint
        if model is not None:
            self._make("Guidance", guidance_grid(self._request(), spot, model.card.guidance), len(GRID))

    def stop(self) -> None:
        """End the sheet at its next denoising step; finished images stay."""
        self._stopped = True
        super().stop()

    def _make(self, title: str, variants: Sequence[Variant], columns: int) -> None:
        state = self.state
        section, model = state.section, state.checkpoint
        if section is None or model is None:
            state.tell("warning", state.obstacle)
            return
        try:
            for variant in variants:
                make_plan(section, variant.request, model)
        except RequestError as error:
            state.tell("error", f"This cannot be run: {error.words}")
            return
        job = jobs.sheet(title, variants, columns, section, model)

        def start() -> None:
            self._stopped = False
            state.sheet = None
            spot = variants[0].request.region.ids[0]  # type: ignore[union-attr]
            self._begin(job, f"{title} of spot {spot} ...", self._ended)

        if not self._queue.add(f"{title}: {len(variants)} images", start):
            state.tell("info", f"{title} waits for the present run.")

    def _advance(self, value: Any) -> None:
        sheet, self.state.progress = value
        if self.state.sheet is None or len(sheet.cells) != len(self.state.sheet.cells):
            self.state.sheet = sheet

    def _ended(self) -> None:
        done = 0 if self.state.sheet is None else len(self.state.sheet.cells)
        if self._stopped:
            self._end(RunStatus.STOPPED, "warning", f"Stopped. {done} images are finished.")
        else:
            self._end(RunStatus.DONE, "info", f"The contact sheet is finished: {done} images.")


class Effects(_UsesModel):
    """Effects of edits over all spots of the chosen result, and, on request, of chance alone."""

    def __init__(self, state: WorkbenchState, start: Start, queue: RunQueue, results: ResultList) -> None:
        super().__init__(state, start, queue)
        self._results = results
        self._measuring = Lane(start)
        self._asked: tuple[int, int | None] | None = None
        state.events.chosen_result.connect(self._measure, max_args=0)
        state.events.results.connect(self._measure, max_args=0)

    def _measure(self) -> None:
        """Measure the chosen result in the background, if it is edited and not measured yet."""
        number = self.state.chosen_result
        entry, base = self._results.entry(number), self._results.baseline(number)
        known = {n: found for n, found in self.state.effects.items() if self._results.entry(n) is not None}
        if len(known) != len(self.state.effects):
            self.state.effects = known
        if entry is None or number is None or number in known or entry.source is None:
            return
        measurable = entry.counterfactual or base is not None or "effect" in entry.provenance
        asked = (number, None if base is None else base.number)
        if not any(edit.enabled for edit in entry.request.edits) or not measurable or asked == self._asked:
            return
        self._asked = asked
        job = jobs.measuring_edit(entry, None if base is None else base.source)

        def failed(fault: StmditError) -> None:
            self.state.effect_faults = {**self.state.effect_faults, number: str(fault)}

        self._measuring.submit(job, Handlers(partial(self._keep, number), failed))

    def _keep(self, number: int, effect: EditEffect) -> None:
        """Show the effect, and add it to the record of an unsaved result."""
        entry = self._results.entry(number)
        if entry is None:
            return
        self.state.effects = {**self.state.effects, number: effect}
        if entry.result is not None and entry.saved is None:
            noted = effect.recorded_in(entry.result)
            changed = replace(entry, result=noted, provenance=noted.provenance)
            self.state.results = tuple(changed if one is entry else one for one in self.state.results)

    def compare_with_chance(self, number: int) -> None:
        """Queue the synthesis of some spots of a result without its edits and with two seeds."""
        state, entry = self.state, self._results.entry(number)
        effect, model = state.effects.get(number), state.checkpoint
        if entry is None or effect is None or model is None or effect.chance_spots:
            state.tell("warning", state.obstacle or "Choose a result with edits that was measured.")
            return
        job = jobs.comparing_with_chance(entry, effect, model)

        def start() -> None:
            self._begin(job, "Comparing with chance: some spots, two seeds ...", partial(self._ended, number))

        if not self._queue.add("Comparison with chance", start):
            state.tell("info", "The comparison with chance waits for the present run.")

    def _ended(self, number: int) -> None:
        if self._found is None:
            self._end(RunStatus.STOPPED, "warning", "Stopped: chance is not known.")
            return
        self._keep(number, self._found)
        self._end(RunStatus.DONE, "info", "The effect is shown beside what another seed alone changes.")

    def save(self, number: int, path: str) -> None:
        """Write the table of a result's effect as CSV."""
        effect = self.state.effects.get(number)
        if effect is None:
            return
        with self.state.telling():
            self.state.tell("info", f"Table saved in {effect.write_csv(path)}.")

    def close(self) -> None:
        """End the measurement."""
        self._measuring.abandon()


REST = "the rest"


class Groups:
    """Comparison of the selection with the rest of the section, or with a named selection."""

    def __init__(self, state: WorkbenchState, start: Start, painting: Painting) -> None:
        self.state = state
        self._painting = painting
        self._lane = Lane(start)
        state.events.section.connect(self._forget, max_args=0)

    def _forget(self) -> None:
        self._lane.abandon()
        self.state.groups = None

    def compare(self, other: str | None) -> None:
        """Compare the selection with a named selection, or, where None, with all other spots."""
        section, chosen = self.state.section, self.state.selected
        if section is None or not chosen:
            self.state.tell("warning", "Select the spots of the first group first.")
            return
        if other is not None and other not in self.state.named:
            self.state.tell("warning", f"There is no selection called {other}; keep it under that name first.")
            return
        known = set(section.spots.ids.tolist())
        b = None if other is None else [spot for spot in self.state.named[other] if spot in known]
        name = next((name for name, kept in self.state.named.items() if set(kept) == set(chosen)), "selection")
        names = (name, other or REST)
        programs = known_programs(self.state.request.programs)
        error = failing(GeneError, "the groups could not be compared")
        job = Job(
            "Comparing groups",
            once(lambda: compare_groups(section.spots, chosen, b, programs, names)),
            error,
            quiet=True,
        )
        handlers = Handlers(self._compared, lambda fault: self.state.tell("error", f"{capitalised(str(fault))}."))
        self.state.tell("info", f"Comparing {names[0]} with {names[1]} ...")
        self._lane.submit(job, handlers)

    def _compared(self, found: GroupTable) -> None:
        self.state.groups = found
        self.state.tell("info", found.statement)

    def export(self, path: str) -> None:
        """Write the table as CSV."""
        found = self.state.groups
        if found is None:
            return
        try:
            found.write(path)
        except OSError as error:
            self.state.tell("error", f"{path} cannot be written: {error}")
            return
        self.state.tell("info", f"Table saved in {path}.")

    def make_alike(self) -> None:
        """Add an edit that moves all genes of the first group towards the mean of the second."""
        found = self.state.groups
        if found is None:
            return
        a, b = found.ids
        self._painting.choose(None)
        self.state.draft = replace(EditDraft(), operation="towards", target_spots=b)
        if self._painting.add(a, f"{found.names[0]} like {found.names[1]}"):
            said = f"An edit makes {found.names[0]} like {found.names[1]}: it is in step 2, Change. Select spots and press Run to see it."
            self.state.tell("info", said)

    def close(self) -> None:
        """End the comparison."""
        self._lane.abandon()


PROFILES = {"tumour", "stroma"}
"""Profiles of a checkpoint that decide the place."""
PAINTED = 0.5
"""Minimum weight of the painted spots under the brush of `stmdit demo`."""


def painting_example(section: Section, model: PatchModel) -> Job:
    """Find the edit of the example and its place; yields the edit and its scale."""

    def work() -> tuple[Towards, float]:
        from ..evaluation.demo import demo_request

        request, _ = demo_request(section, model.profiles, model.card)
        edit = request.edits[0]
        assert isinstance(edit, Towards)
        spots = {spot: weight for spot, weight in (edit.spots or {}).items() if weight >= PAINTED}
        return edit.model_copy(update={"spots": spots}), request.edit_scale

    return Job("Painting the example", once(work), failing(SynthesisError, "the example could not be painted"))


class Example:
    """The example, shown once section and checkpoint are there.

    Parameters
    ----------
    state
        Of the viewer.
    submit
        Starts a job on a lane.
    painting, runs
        Of the viewer.
    begin
        Opens the bundled section, and loads the checkpoint if one is given.
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
        self._before: Section | None = None
        state.events.busy.connect(self._go_on, max_args=0)

    def show(self) -> None:
        """Open the bundled section, paint one edit, and show this tissue before and after."""
        model = self.state.checkpoint
        fits = model is not None and set(model.profiles or {}) >= PROFILES
        self._wanted, self._before = True, self.state.section
        self._begin(None if fits else ModelChoice(device=self.state.model.device))
        self._go_on()

    def give_up(self) -> None:
        """Forget it: the user keeps the open section."""
        self._wanted, self._before = False, None

    def _go_on(self) -> None:
        section, model = self.state.section, self.state.checkpoint
        if not self._wanted or section is None or section is self._before:
            return
        if section.path != sample_folder():  # the user went elsewhere meanwhile
            self.give_up()
        elif not self.state.busy and model is not None:
            self.give_up()
            self._submit("example", painting_example(section, model), partial(self._paint, section))

    def _paint(self, section: Section, found: tuple[Towards, float]) -> None:
        edit, scale = found
        state = self.state
        if state.section is not section:
            return
        update = {"edits": (edit,), "edit_scale": scale, "counterfactual": "on", "mode": "spots"}
        state.request = state.request.model_copy(update=update)
        self._painting.choose(0)
        spots = SpotList(ids=tuple(edit.spots or ()))
        self._runs.submit(self._runs.request().model_copy(update={"region": spots, "preset": "draft"}), self._told)

    def _told(self, number: int) -> None:
        self._runs.edited_tissue(number)
        self.state.tell(
            "info",
            "This tissue before and after an edit towards its palest spots. It is a draft; Run makes it with all steps.",
        )


MAX_RECENT = 4


def recent_sections() -> tuple[str, ...]:
    """Return the paths of recent sections that still exist, the latest first."""
    try:
        paths = read_object(_recent_file()).get("sections", [])
    except (OSError, StmditError):  # none yet, or not ours: it is no more than a convenience
        return ()
    paths = paths if isinstance(paths, list) else []
    return tuple(path for path in paths if isinstance(path, str) and Path(path).exists())[:MAX_RECENT]


def remember_section(section: Section) -> None:
    """Add a section to the recent ones; the bundled one is always offered and is left out."""
    if section.path is None or section.synthetic:
        return
    path = str(section.path)
    paths = [path, *(one for one in recent_sections() if one != path)][:MAX_RECENT]
    with suppress(OSError):  # a home that cannot be written to keeps nobody from working
        _recent_file().parent.mkdir(parents=True, exist_ok=True)
        write_json(_recent_file(), {"sections": paths})


def _recent_file() -> Path:
    from ..downloads.places import data_directory

    return data_directory() / "recent.json"
