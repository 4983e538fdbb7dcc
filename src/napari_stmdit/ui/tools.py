"""What the dock does besides runs: the example, two groups compared, data sets, evaluations, contact sheets, unsaved work. No Qt."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

from ..dataset.export import Exported
from ..errors import GeneError, RequestError, StmditError, StoreError, SynthesisError
from ..evaluation.cases import EvaluationRequest
from ..evaluation.evaluate import Evaluated
from ..expression.groups import GroupTable, compare_groups
from ..expression.programs import known_programs
from ..intent import Request, SpotList, TowardsEdit
from ..progress import CancelToken, Progress
from ..synthesis.models import PatchModel
from ..synthesis.plan import plan as make_plan
from ..synthesis.requests import EditFile, used_by
from ..synthesis.result import Result
from ..synthesis.sessions import KeptSection, KeptSession, Session, discard, find_sessions
from ..synthesis.stored import StoredResult
from ..synthesis.variants import DOSES, GRID, Variant, dose_strip, guidance_grid
from ..text import counted
from ..tissue.elements import fingerprint
from ..tissue.open import SectionSource
from ..types import Section
from . import jobs, layers
from .jobs import Handlers, Job, Lane, Start, failing, once
from .painting import Painting
from .results import ResultList
from .runs import RunCycle, RunQueue
from .state import EditDraft, Kind, ModelChoice, RunStatus, WorkbenchState


class DataSets:
    """Writes one data set at a time, beside runs; the same choice once more goes on with one that was stopped."""

    def __init__(self, state: WorkbenchState, start: Start, results: ResultList) -> None:
        self.state = state
        self._lane = Lane(start)
        self._results = results
        self._path = ""

    def export(self, number: int, path: str) -> None:
        """Write a result as a data set, with its baseline where that is in the list, so that the two are linked."""
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
            self.state.tell(
                "info",
                f"The data set {known}: {value.rows} images in {value.path}. Its licence is yours to state in README.md.",
            )
        else:
            self.state.tell(
                "warning",
                f"Stopped: {value.done} of {value.rows} images are kept; choose the same place again to go on.",
            )

    def _failed(self, error: StmditError) -> None:
        self.state.tell("error", str(error))

    def _ended(self) -> None:
        self.state.exporting = ""


class _UsesModel:
    """Work that takes its turn with the runs: one piece of work at a time uses the model."""

    def __init__(self, state: WorkbenchState, start: Start, queue: RunQueue) -> None:
        self.state = state
        self._lane = Lane(start)
        self._queue = queue
        self._failed: StmditError | None = None

    @property
    def busy(self) -> bool:
        """Whether it is under way."""
        return self._lane.busy

    def stop(self) -> None:
        """End it at its next denoising step; what is finished is kept."""
        self.state.status = RunStatus.STOPPING
        self._lane.cancel()

    def abandon(self) -> None:
        """End it now and listen to it no longer; what is finished is kept."""
        if self.busy:
            self._lane.abandon()
            self.state.status = RunStatus.STOPPED
            self.state.progress = None

    def _begin(self, job: jobs.Job, text: str, advance: Callable[[Any], None], ended: Callable[[], None]) -> None:
        self._failed = None
        self.state.status = RunStatus.RUNNING
        self.state.tell("info", text)
        self._lane.submit(job, Handlers(advance, self._note, ended))

    def _note(self, error: StmditError) -> None:
        self._failed = error

    def _end(self, status: RunStatus, kind: Kind, text: str) -> None:
        """Say how it ended; what failed says so itself."""
        state = self.state
        state.progress = None
        if self._failed is not None:
            status, kind, text = RunStatus.FAILED, "error", str(self._failed)
        state.status = status
        state.tell(kind, text)
        self._queue.ended(well=status is RunStatus.DONE)


class Evaluations(_UsesModel):
    """Evaluates one section at a time; the same choice once more goes on with an evaluation that was stopped."""

    _found: Evaluated | None = None

    def evaluate(self, path: str, spots: int, seeds: int) -> None:
        """Evaluate the open section into a folder, with the guidance, steps and seed of the form, and its edits where it has some."""
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
            self._found = None
            self._begin(job, f"{section.name} is being evaluated into {path} ...", self._advance, self._ended)

        if not self._queue.add(f"Evaluation of {section.name}", start):
            state.tell("info", "The evaluation waits for the present run.")

    def _advance(self, value: Progress | Evaluated) -> None:
        if isinstance(value, Progress):
            self.state.progress = value
        else:
            self._found = value

    def _ended(self) -> None:
        found = self._found
        if found is None or found.report is None:
            done = "" if found is None else f" {found.done} of {found.total} patches are kept;"
            self._end(RunStatus.STOPPED, "warning", f"Stopped.{done} choose the same folder again to go on.")
            return
        self.state.evaluation = found
        self._end(RunStatus.DONE, "info", f"The evaluation is finished: {found.report.html}")


class Sheets(_UsesModel):
    """Makes contact sheets of one spot: dose strips and guidance grids, of the ``request`` that the form asks for."""

    def __init__(self, state: WorkbenchState, start: Start, queue: RunQueue, request: Callable[[], Request]) -> None:
        super().__init__(state, start, queue)
        self._request = request
        self._stopped = False

    def dose_strip(self, spot: str, edit: int | None = None) -> None:
        """Show a spot at strengths 0 to 1 of an edit, by default the last one that is switched on."""
        try:
            variants = dose_strip(self._request(), spot, edit)
        except RequestError as error:
            self.state.tell("warning", error.faults[0][1])
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
        super().stop()

    def _make(self, title: str, variants: Sequence[Variant], columns: int) -> None:
        state = self.state
        section, model = state.section, state.checkpoint
        if section is None or model is None:
            state.tell("warning", state.obstacle)
            return
        try:
            for variant in variants:
                make_plan(section, variant.request, model.card)
        except RequestError as error:
            text = " ".join(dict.fromkeys(message for _, message in error.faults))
            state.tell("error", f"This cannot be run: {text}")
            return
        job = jobs.sheet(title, variants, columns, section, model)

        def start() -> None:
            self._stopped = False
            state.sheet = None
            spot = variants[0].request.region.ids[0]  # type: ignore[union-attr]
            self._begin(job, f"{title} of spot {spot} ...", self._advance, self._ended)

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


REST = "the rest"


class Groups:
    """Compares the selection with the rest of the section, or with a named selection."""

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
        handlers = Handlers(self._compared, lambda fault: self.state.tell("error", _sentence(fault)), lambda: None)
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
            said = f"An edit makes {found.names[0]} like {found.names[1]}: it is under Paint expression. Select spots and press Run to see it."
            self.state.tell("info", said)

    def close(self) -> None:
        """End what is under way."""
        self._lane.abandon()


def _sentence(fault: StmditError) -> str:
    text = str(fault)
    return f"{text[0].upper()}{text[1:]}."


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


# Results and edits that are not saved: kept on disk from when they are made, and what earlier sessions left is offered.


class Keeping:
    """Keeps what is not saved of one viewer, in the background, and brings back what an earlier session left.

    Parameters
    ----------
    state, results, painting
        Of the viewer.
    start
        How a job is started.
    open_section
        Opens a section.
    """

    def __init__(
        self,
        state: WorkbenchState,
        start: Start,
        results: ResultList,
        painting: Painting,
        open_section: Callable[[SectionSource], None],
    ) -> None:
        self.state = state
        self._start, self._results, self._painting, self._open = start, results, painting, open_section
        self._own: Session | None = None
        self._taken: list[Session] = []
        self._works: deque[Callable[[], Callable[[], None]]] = deque()
        self._one_at_a_time = Lock()
        self._busy = self._closed = self._edits_wait = False
        self._known: set[int] = set()
        self._places: dict[int, tuple[Session, Path]] = {}
        self._pending: dict[str, tuple[Session, KeptSession]] = {}
        self._source: tuple[Section, SectionSource | None] | None = None

    def begin(self, home: Path) -> None:
        """Keep from now on, in a folder of user data, and look for what earlier sessions left there."""
        if self._own is not None:
            return
        self._own = Session(home)
        self.state.keeps = True
        self._known = {entry.number for entry in self.state.results}
        events = self.state.events
        events.results.connect(self._results_changed, max_args=0)
        events.request.connect(self._edits_changed, max_args=0)
        events.section.connect(self._section_changed, max_args=0)
        self._results.deleted = lambda number: self._forget([number])

        def look() -> Callable[[], None]:
            found = find_sessions(home)
            return lambda: setattr(self.state, "kept", found)

        self._do(look)

    def opened(self, section: Section, source: SectionSource | None) -> None:
        """Note how a section was opened."""
        self._source = section, source

    # --- what is kept

    def _results_changed(self) -> None:
        for entry in self.state.results:
            if entry.number not in self._known and entry.saved is None and entry.result is not None:
                self._do(partial(self._keep, entry.number, entry.result, entry.name, self._source_of(entry.section)))
            self._known.add(entry.number)
        saved = [entry.number for entry in self.state.results if entry.saved is not None and entry.number in self._places]
        if saved:
            self._forget(saved)

    def _keep(self, number: int, result: Result, name: str, source: SectionSource | None) -> Callable[[], None]:
        own = self._own
        assert own is not None
        self._places[number] = own, own.keep(result, name, source)

        def kept() -> None:
            entry = self._results.entry(number)
            if entry is not None and entry.saved is not None:  # meanwhile
                self._forget([number])

        return kept

    def _forget(self, numbers: Sequence[int]) -> None:
        def forget() -> Callable[[], None]:
            for number in numbers:
                if number in self._places:
                    session, place = self._places.pop(number)
                    session.forget([place])
            return lambda: None

        self._do(forget)

    def _edits_changed(self) -> None:
        if self.state.section is not None and not self._edits_wait:
            self._edits_wait = True
            self._do(self._note_edits)

    def _note_edits(self) -> Callable[[], None]:
        self._edits_wait = False
        section, own = self.state.section, self._own
        if section is not None and own is not None:
            edits = used_by(self.state.unsaved_edits, self.state.request)
            own.note_edits(section, self._source_of(section), edits)
        return lambda: None

    def _source_of(self, section: Section) -> SectionSource | None:
        """Return how a section is opened again; None where it is in memory alone."""
        if section.path is None:
            return None
        if self._source is not None and self._source[1] is not None and self._source[0].path == section.path:
            return self._source[1]
        image, scale = section.image, section.calibration
        fullres = None if image is None or section.kind == "image" or image.pixel_size > 1 else image.file
        mpp = scale.mpp if scale.source == "override" else None
        return SectionSource(path=str(section.path), fullres=None if fullres is None else str(fullres), mpp=mpp)

    # --- what earlier sessions left

    def restore(self, kept: KeptSession) -> None:
        """Bring back what a session left: its section is opened where it is not, its results are as unsaved as they were."""
        self._take_from_offer(kept)
        if self._own is None or (session := Session.take(self._own.home, kept)) is None:
            self.state.tell("warning", "These results belong to another viewer now; close that first.")
            return
        self._taken.append(session)
        self._pending |= dict.fromkeys(kept.sections, (session, kept))
        if self._section_changed():
            return
        sources = [one.source for one in kept.sections.values() if one.source is not None]
        if sources:
            self._open(sources[-1])
        else:
            names = " or ".join(one.name for one in kept.sections.values())
            self.state.tell("info", f"Open {names}: its results come with it.")

    def discard(self, kept: KeptSession) -> None:
        """Remove for good what a session left."""
        self._take_from_offer(kept)

        def remove() -> Callable[[], None]:
            discard(kept)
            return lambda: None

        self._do(remove)

    def _take_from_offer(self, kept: KeptSession) -> None:
        self.state.kept = tuple(one for one in self.state.kept if one is not kept)

    def _section_changed(self) -> bool:
        """Bring back what waits for the section that is open; return whether something does."""
        section = self.state.section
        found = None if section is None else self._pending.pop(fingerprint(section.whole), None)
        if section is None or found is None:
            return False
        session, kept = found
        key = fingerprint(section.whole)

        def read() -> Callable[[], None]:
            read, faults = [], []
            for one in kept.results:
                if one.section == key:
                    try:
                        read.append((one, one.read(section)))
                    except StoreError as error:
                        faults.append(str(error))
            return partial(self._bring, section, session, kept.sections[key], read, faults)

        self._do(read)
        return True

    def _bring(
        self, section: Section, session: Session, kept: KeptSection, read: Sequence[Any], faults: Sequence[str]
    ) -> None:
        if self.state.section is not section:  # another was opened meanwhile: when this one comes back
            return
        for one, stored in read:
            layer = self._results.place(layers.stored_layer(stored))
            number = None if layer is None else self._results.take_stored(layer, saved=False)
            if number is not None:
                self._places[number] = session, one.place
                layer.name = one.name
                self.state.chosen_result = number
        if kept.edits.edits and not self.state.request.edits:
            self._painting.take(kept.edits)  # from now on this viewer keeps them

            def hand_over() -> Callable[[], None]:
                session.note_edits(section, kept.source, EditFile())
                return lambda: None

            self._do(hand_over)
        parts = [counted(len(read), "result")] if read else []
        parts += [counted(len(kept.edits.edits), "edit")] if kept.edits.edits else []
        text = f"Brought back, and still not saved: {' and '.join(parts)} of {kept.name}." if parts else ""
        self.state.tell("warning" if faults else "info", " ".join([text, *faults]).strip())

    # --- in the background

    def close(self) -> None:
        """Let others have what is not saved, when what is under way has been written."""
        if self._own is None or self._closed:
            return
        self._do(self._note_edits)
        sessions = [self._own, *self._taken]

        def close() -> Callable[[], None]:
            for session in sessions:
                session.close()
            return lambda: None

        self._do(close, now=True)
        self._closed = True

    def _do(self, work: Callable[[], Callable[[], None]], now: bool = False) -> None:
        """Do something with files after what was asked for before, on one thread; what it returns is called on this one."""
        if self._closed:
            return
        self._works.append(work)
        if self._busy and not now:
            return
        self._busy = True
        outcomes: list[Callable[[], None]] = []

        def all_of_them() -> None:
            with self._one_at_a_time:  # who closes starts a job of its own, and does not wait for this one
                while self._works:
                    try:
                        outcomes.append(self._works.popleft()())
                    except (StmditError, OSError) as error:
                        outcomes.append(partial(self._failed, str(error)))

        job = jobs.Job(
            "Keeping what is not saved",
            jobs.once(all_of_them),
            jobs.failing(StoreError, "what is not saved could not be kept"),
            quiet=True,
        )
        ended = partial(self._ended, outcomes)
        self._start(job, CancelToken(), Handlers(lambda _: None, lambda fault: self._failed(str(fault)), ended))

    def _ended(self, outcomes: list[Callable[[], None]]) -> None:
        self._busy = False
        if self._closed:
            return
        for outcome in outcomes:
            outcome()
        if self._works and not self._busy:
            self._do(self._works.popleft())

    def _failed(self, why: str) -> None:
        self.state.keep_fault = why
        self.state.tell("warning", why)
