"""Presenter between forms and tissue: takes intent, plans and runs; only it changes the viewer. No Qt."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..devices import free_device_memory
from ..errors import ScaleError, StmditError
from ..expression.genes import match_genes
from ..intent import Request
from ..regions import AllSpots
from ..synthesis.plan import gene_fault, region_rows
from ..text import some_of
from ..tissue.elements import is_same_section
from ..tissue.open import SectionSource, synthesis_fault
from ..types import Section
from . import jobs, layers
from .checkpoints import Acquisition
from .compare import Comparing, scale_bar_of
from .gestures import Hand, camera_of
from .jobs import Handlers, Lane, Series, Start
from .keeping import Keeping
from .live import Live
from .looking import Changes, Looking
from .painting import EditFiles, Painting
from .results import CloseUps, ResultList
from .runs import LivePreview, RunCycle, RunQueue
from .section_view import Choosing, Corrections, SectionView, combine, inverted
from .state import Brush, Colouring, Combine, CompareMode, ModelChoice, Offer, SpotLook, Tool, WorkbenchState
from .strokes import without_spots
from .tools import DataSets, Effects, Evaluations, Example, Groups, Sheets, remember_section

PLANNED_AT_ONCE = 500
"""Maximum number of spots that are planned at once: more take longer than a lasso may."""
Ask = Callable[[str, Callable[[], None], Callable[[], None]], None]
"""Question that is not waited for: its words, what to call on yes, and what to call on no."""


def unasked(words: str, go_on: Callable[[], None], stay: Callable[[], None]) -> None:
    """Go on without a question: where there is nobody to ask."""
    go_on()


_PRESENTERS: weakref.WeakKeyDictionary[Any, Presenter] = weakref.WeakKeyDictionary()


def presenter_of(viewer: Any, start: Start = jobs.start_inline) -> Presenter:
    """Return the presenter of a viewer, made on first use; two viewers share nothing."""
    viewer = getattr(viewer, "__wrapped__", viewer)  # napari hands a proxy to widgets, a new one each time
    if viewer not in _PRESENTERS:
        _PRESENTERS[viewer] = Presenter(viewer, start)
    return _PRESENTERS[viewer]


def known_presenter(viewer: Any) -> Presenter | None:
    """Return the presenter of a viewer whose workbench was opened, else None."""
    return None if viewer is None else _PRESENTERS.get(getattr(viewer, "__wrapped__", viewer))


class Presenter:
    """Presenter of one viewer; ``start`` runs jobs on a thread, or inline without an event loop."""

    def __init__(self, viewer: Any, start: Start) -> None:
        self._viewer = weakref.ref(viewer)
        self.state = WorkbenchState()
        self.view: SectionView | None = None
        self.queue = RunQueue(self.state)
        self.results = ResultList(viewer, self.state, self._submit, self._write, self.redraw)
        self.looking = Looking(viewer, self.state, self.results)
        self.data_sets = DataSets(self.state, start, self.results)
        self.runs = RunCycle(self.state, start, self.queue, self.results, LivePreview(viewer), self.redraw)
        self.sheets = Sheets(self.state, start, self.queue, self.runs.request)
        self.evaluations = Evaluations(self.state, start, self.queue)
        self.effects = Effects(self.state, start, self.queue, self.results)
        self.compare = Comparing(viewer, self.state, self.results, lambda: self.view)
        self.results.placing = self.compare.make_room
        self.looking.turning = self.compare.turn_to
        self.runs.edited_tissue = self._compare_edited
        self.changes = Changes(viewer, self.state, start, self.results)
        self.close_ups = CloseUps(self.state, self.results, self._submit)
        self.acquisition = Acquisition(self.state, start, self.load_model, self.open)
        self.painting = Painting(self.state, lambda: self.view, self.colour, self.select)
        self.groups = Groups(self.state, start, self.painting)
        self.edit_files = EditFiles(self.painting)
        self.live = Live(
            viewer, self.state, start, self._live_request, lambda: self.view, self.results.place, self.redraw
        )
        self.painting.stroked = self.live.follow
        self.example = Example(self.state, self._submit, self.painting, self.runs, self._open_example)
        self.choosing = Choosing(self.state, lambda: self.view, self.select, self.painting.edited)
        self.corrections = Corrections(self.state, start, self._correct)
        self.keeping = Keeping(self.state, start, self.results, self.painting, self.open)
        self.preview_soon: Callable[[], None] = self.runs.preview
        """Callback that shows the cost of a run; the dock replaces it by one that waits until the mouse is still."""
        self.baseline_mode: CompareMode = "grid"
        """Mode to compare an edit with its baseline in; the dock sets the user's preference."""
        self.ask: Ask = unasked
        """Callback that asks before a section is replaced; the dock replaces it by a question."""
        self.after_removal: Callable[[Callable[[], None]], None] = lambda do: None
        """Callback that does something once napari has removed all it is removing; the dock replaces it by a timer."""
        self.hand = Hand(viewer, self._spots_layer, self.click, self.ring, self.stroke, self.run_at)
        self.looking.drawing = lambda: self.hand.holding
        self._limits: dict[tuple[str | None, ...], tuple[float, float]] = {}
        self._lanes = {
            name: Lane(start) for name in ("section", "model", "stored", "spot", "link", "example", "ahead", "outlines")
        }
        self._saves = Series(start)
        self._unsaved: list[str] = []
        self._titles: dict[str, str] = {}
        self._unlinked: Section | None = None
        self._left: SectionView | None = None
        self.state.events.status.connect(self._link, max_args=0)
        self.close_ups.follow(viewer, lambda: self.view)
        camera_of(viewer).events.zoom.connect(self._zoomed)
        viewer.layers.events.inserted.connect(self._inserted)
        viewer.layers.events.removed.connect(self._removed)
        viewer.layers.selection.events.active.connect(self._show_cursor, position="last")  # after napari's own

    # --- sections

    def adopt(self) -> None:
        """Use a section whose layers are already in the viewer, as from a reader or the sample menu."""
        viewer = self._viewer()
        own = [] if viewer is None else list(viewer.layers)
        for layer in own:  # napari puts a copy over what it copied
            layers.claim(layer)
        for layer in reversed(own):
            section = layers.section_of(layer)
            if section is not None and layers.role_of(layer) == "spots":
                self.show(section)
                return

    def open(self, source: SectionSource | None, stay: Callable[[], None] = lambda: None) -> None:
        """Open a section, or the bundled sample where ``source`` is None, off the GUI thread; ask first if that ends or puts away something."""
        job = jobs.opening(source)

        def failed(fault: StmditError) -> None:
            if isinstance(fault, ScaleError) and source is not None:
                self.state.scale_asked = str(source.path)

        def opened(section: Section) -> None:
            self.keeping.opened(section, source)
            self.show(section)

        def begin() -> None:
            self.state.scale_asked = ""
            self._submit("section", job, opened, failed)

        self._replace(None if source is None else Path(source.path), begin, stay)

    def _correct(self, section: Section, said: str) -> None:
        """Show the open section with what the user corrected."""

        def go_on() -> None:
            self.show(section)
            self.state.tell("info", said)

        self._replace(section.path, go_on, same=True)

    def _take_up(self, section: Section) -> None:
        """Show a section whose layers a reader put into the viewer, or remove them again."""
        viewer = self._viewer()

        def go_on() -> None:
            self.show(section)
            if self.view is not None:  # napari looks at the first layer of a viewer alone
                self.looking.look_at(self.view.slide or self.view.spots)

        def stay() -> None:
            if viewer is None:
                return
            for layer in [x for x in viewer.layers if layers.section_of(x) is section]:
                layers.remove(viewer, layer)

        self._replace(section.path, go_on, stay)

    def _replace(
        self, path: Path | None, go_on: Callable[[], None], stay: Callable[[], None] = lambda: None, same: bool = False
    ) -> None:
        """Replace the section by that at a path; ask first if that ends a run or puts away unsaved work."""
        section = self.state.section
        if section is not None and section.path is not None and path is not None:
            same = same or section.path.resolve() == path.resolve()  # a section's is where the given one leads to
        if words := self.state.replacing(same):
            self.ask(words, go_on, stay)
        else:
            go_on()

    def _open_example(self, choice: ModelChoice | None) -> None:
        # first, so that it is drawn while the checkpoint, whose imports take longer, is loaded
        self.open(None, self.example.give_up)
        if choice is not None:
            self.load_model(choice)

    def show(self, section: Section) -> None:
        """Show an opened section in place of the one before."""
        viewer = self._viewer()
        if viewer is None or (self.view is not None and self.view.section is section):
            return
        self._remove_left()
        view, before = self.view, self.state.section
        again = before is not None and before.path is not None and before.path == section.path
        selected = self.state.selected if again else ()
        self.close_section()
        self.results.opened_again(section)
        if view is not None:
            view.remove()
            for entry in self.state.results:
                if again and entry.stored is not None and entry.saved is not None:
                    self.results.delete(entry.number)  # its store is read again
                elif entry.section is not section:  # it is kept, but would lie over another tissue
                    self._hide(entry.number)
        self.view = SectionView(viewer, section, self._refused, self.select_all, self._read_outlines)
        state = self.state
        state.section = section
        self.view.show()
        if self.view.slide is not None:
            self.results.lay_over(self.view.slide)
        form = state.request
        if before is None or (before.path, before.name) != (section.path, section.name):
            # what was allowed, ignored or turned up for one section is not taken for the next
            form = Request(edits=form.edits, programs=form.programs, profiles=form.profiles, preset=form.preset)
        state.request = form.model_copy(update={"section": str(section.path) if section.path else section.name})
        self.painting.section_changed(before, section)
        self.choosing.section_changed(before, section)
        self._limits.clear()
        self.looking.forget()
        self.show_spots(state.spots_as)
        self.colour(self.view.first_colouring(state.colouring))
        self._zoomed()
        if before is None and section.calibration.mpp is not None:
            scale_bar_of(viewer).visible = True  # for the first section: who hides it then does not get it back
        state.tell("info", "")
        remember_section(section)
        if state.checkpoint is None and not self._lanes["model"].busy:
            self.load_model(state.model)
        if known := set(selected) & set(section.spots.ids.tolist()):
            self.select([spot for spot in selected if spot in known])
        self.runs.preview()
        self.results.read_stored(section)
        self._unlinked = section
        self._link()
        self.corrections.check(section)
        self.keeping.section_shown()

    def close_section(self) -> None:
        """Close the open section, but not its layers; a run is stopped and its finished patches kept."""
        self._end_work()
        self.compare.stop()
        self.view = None
        self.state.hovered = self.state.close_up = None
        self.state.selected = ()
        self.use_tool("click")
        self.state.section = self._unlinked = None
        self._abandon("outlines")

    def _read_outlines(self) -> None:
        """Read the outlines of cells, which takes seconds for many, and show them in their layer."""
        view = self.view
        assert view is not None  # it asks
        words = "The outlines of the cells are being read, and then shown."
        self.state.tell("info", words)

        def done(levels: list[Any]) -> None:
            view.outline_cells(levels)
            if self.state.message.text == words:
                self.state.tell("info", "")

        self._submit("outlines", jobs.outlining(view.section), done, lambda _: view.outline_cells(None))

    def _link(self) -> None:
        """Link the section for other plugins once nothing is waited for: the imports of that take seconds."""
        section = self._unlinked
        if section is not None and not self.state.busy and not self.state.status.busy:
            self._unlinked = None
            self._submit("link", jobs.linking(section), self._linked)

    def _linked(self, found: Any) -> None:
        if found is not None and self.view is not None and self.view.spots is not None:
            self.view.spots.metadata.update(found.metadata())

    def section_fault(self) -> str:
        """Return why the open section cannot be synthesized from, in words; empty where it can or nothing is known yet."""
        section, model = self.state.section, self.state.checkpoint
        if section is None or model is None:
            return ""
        return synthesis_fault(section, model.card.patch_mpp) or self.gene_fault()

    def gene_fault(self) -> str:
        """Return why the checkpoint cannot read the section's genes, in words; empty where it can or nothing is known yet."""
        section, model, overlap = self.state.section, self.state.checkpoint, self.gene_overlap()
        if section is None or model is None or overlap is None or section.expression.kind == "none":
            return ""
        return gene_fault(self.state.request, model.card, section, overlap[0]) or ""

    def gene_overlap(self) -> tuple[int, int] | None:
        """Return the number of the checkpoint's genes in the section, and of all; None before both are there."""
        section, model = self.state.section, self.state.checkpoint
        if section is None or model is None:
            return None
        return match_genes(model.card.genes, section.spots.genes).shared, len(model.card.genes)

    # --- colours and selection

    def colour(self, colouring: Colouring) -> None:
        """Colour the spots; the user's limits are kept for each gene, program and column."""
        if colouring.limits is not None:
            self._limits[colouring.key] = colouring.limits
        elif colouring.key == self.state.colouring.key and colouring.key in self._limits:
            del self._limits[colouring.key]  # the same as before, with limits no longer set: automatic again
        else:
            colouring = replace(colouring, limits=self._limits.get(colouring.key))
        self.state.colouring = colouring
        if self.view is not None:
            self.state.colour_scale = self.view.colour(colouring, self.painting.edited())
            self.redraw()

    def redraw(self) -> None:
        """Redraw colours, selection and rings of the spots."""
        if self.view is not None:
            self.view.draw(self.state.selected, self._hollow(), self.painting.outlined())

    def show_spots(self, how: SpotLook) -> None:
        """Show the spots filled, as rings, or not at all."""
        self.state.spots_as = how
        if self.view is not None and self.view.spots is not None:
            self.view.spots.visible = how != "hide"
            self.view.outline_only = how == "outline"
            self.redraw()

    def next_spots(self) -> None:
        """Switch to the next way of showing the spots."""
        ways: tuple[SpotLook, ...] = ("fill", "outline", "hide")
        self.show_spots(ways[(ways.index(self.state.spots_as) + 1) % len(ways)])

    def _hollow(self) -> set[str]:
        shown = [e.spots for e in self.state.results if e.visible and e.section is self.state.section]
        shown.append(tuple(self.live.spots))
        if self.runs.plan is not None and self.state.section is not None:
            rows = region_rows(self.state.section, self.runs.plan.request, [])
            shown.append(tuple(self.state.section.spots.ids[rows].tolist()))
        return {spot for spots in shown for spot in spots}

    def select(self, ids: Sequence[str], how: Combine = "replace") -> None:
        """Change the selection, which is kept as spot ids."""
        if self.state.section is None:
            return
        self.state.selected = combine(self.state.section.spots, self.state.selected, ids, how)
        self.redraw()
        if len(self.state.selected) <= PLANNED_AT_ONCE:
            self.runs.preview()
        else:
            self.preview_soon()

    def _live_request(self) -> Request:
        return self.runs.request().model_copy(update={"edits": self.painting.edited().edits, "region": AllSpots()})

    def select_all(self) -> None:
        """Select every spot."""
        if self.state.section is not None:
            self.select(self.state.section.spots.ids.tolist())

    def select_edited(self) -> None:
        """Select the spots that the chosen edit changes."""
        edit = self.painting.chosen
        if edit is not None and edit.spots is None and edit.operation != "swap":
            self.select_all()
        else:
            self.select(sorted(self.painting.outlined()))

    def invert_selection(self) -> None:
        """Invert the selection."""
        if self.state.section is not None:
            self.select(inverted(self.state.section.spots, self.state.selected))

    def click(self, yx: NDArray[np.float64], how: Combine | None) -> None:
        """Select the spot at a place in full-resolution pixels; a click beside the spots changes nothing."""
        if self.view is not None and (found := self.view.finder.at(yx.tolist())):
            self.select(found, how or self.state.combine)

    def run_at(self, yx: NDArray[np.float64]) -> bool:
        """Run the spot at a place in full-resolution pixels, alone; return whether there is one."""
        found = () if self.view is None else self.view.finder.at(yx.tolist())
        if found:
            self.select(found)
            self.run()
        return bool(found)

    def ring(self, yx: NDArray[np.float64], how: Combine | None) -> None:
        """Select the spots inside a lasso's ring in full-resolution pixels."""
        if self.view is None:
            return
        found = self.view.finder.within(yx)
        if found or len(yx) > 2:
            self.select(found, how or self.state.combine)

    def stroke(self, kind: str, yx: NDArray[np.float64], erase: bool) -> bool:
        """Paint with the brush, if it is the tool; return whether it is."""
        if self.view is None or self.state.tool != "brush":
            return False
        if kind == "begin":
            self.painting.begin_stroke(yx, erase)
        elif kind == "move":
            self.painting.move_stroke(yx)
        else:
            self.painting.end_stroke(yx)
        return True

    def use_tool(self, tool: Tool) -> None:
        """Set the tool: click, lasso or brush, whatever layer is active. An unfinished stroke ends."""
        if tool != self.state.tool:
            self.painting.end_stroke()
        self.state.tool = "click" if self.view is None else tool
        viewer = self._viewer()
        if viewer is not None:
            self.hand.take(viewer, self.state.tool, self.state.brush, self._mpp())

    def set_brush(self, brush: Brush) -> None:
        """Change the brush, and its cursor."""
        self.state.brush = brush
        self._show_cursor()

    def _spots_removed(self) -> None:
        """Close a section whose spots the user removed; its edits and names are kept for its return."""
        view, section = self.view, self.state.section
        self.close_section()
        if view is not None:
            for layer in (view.slide, view.outlines):
                if layer is not None:
                    layer.visible = False
            for entry in self.state.results:
                self._hide(entry.number)
            self._left = view  # napari may be removing many layers, and fails where one of them is gone already
            self.after_removal(self._remove_left)
        if section is not None:
            self.painting.section_changed(section, None)
            self.choosing.section_changed(section, None)
            text = "was closed, as its layer of spots was removed. Open it again, and its edits and named selections are back."
            self.state.tell("info", f"{section.name} {text}")

    def _hide(self, number: int) -> None:
        self.results.show(number, False)
        self.changes.show(number, False)

    def _remove_left(self) -> None:
        """Remove the other layers of a section whose spots the user removed, and the results that its store holds."""
        view, self._left = self._left, None
        if view is None:
            return
        view.remove()
        for entry in self.state.results:
            if entry.section is view.section and entry.stored is not None and entry.saved is not None:
                self.results.delete(entry.number)  # its store is read again

    def _zoomed(self, event: Any = None) -> None:
        viewer = self._viewer()
        if viewer is not None and self.view is not None:
            self.view.zoomed(float(camera_of(viewer).zoom))

    def _show_cursor(self, event: Any = None) -> None:
        viewer = self._viewer()
        if viewer is not None and self.state.tool != "click":
            self.hand.show_cursor(viewer, self.state.brush, self._mpp())

    def _mpp(self) -> float | None:
        return None if self.state.section is None else self.state.section.calibration.mpp

    def _spots_layer(self) -> Any:
        return None if self.view is None else self.view.spots

    def _refused(self) -> None:
        self.state.tell(
            "info", "The slide and the spots are as they were measured, and stay so. Choose spots with the tools here."
        )

    # --- model

    def prepare(self) -> None:
        """Import in the background what checkpoints need, while the user still looks around."""
        self._submit("ahead", jobs.importing(), lambda _: None)

    def load_model(self, choice: ModelChoice) -> None:
        """Load a checkpoint off the GUI thread; the present one is released first, so that two are never held."""
        self._end_work()
        self.state.model = choice
        self.state.checkpoint = None
        self._submit("model", jobs.loading(choice), self._loaded)

    def use_model(self, model: Any) -> None:
        """Use a model that is already there."""
        self._abandon("model")
        self._loaded(jobs.LoadedModel(model, self.state.devices))

    def _loaded(self, loaded: jobs.LoadedModel) -> None:
        self.state.devices = loaded.devices
        self.state.checkpoint = loaded.model
        self.runs.preview()

    def unload_model(self) -> None:
        """Release the checkpoint and its memory."""
        self._end_work()
        self._abandon("model")
        self.state.checkpoint = None
        free_device_memory()
        self.state.tell("info", "The checkpoint was unloaded.")

    # --- results

    def run(self, again: bool = False) -> None:
        """Run the request; an existing result of it is shown, unless ``again``."""
        state = self.state
        made = (
            None
            if again or state.obstacle or state.samples > 1
            else self.results.made(self.runs.request(), state.checkpoint)
        )
        if made is None:
            self.runs.run()
            return
        state.chosen_result = made.number
        self.looking.go(made.number)
        state.tell("info", f"Already made, and shown: {made.name}.", "again")

    def act(self, offer: Offer) -> None:
        """Act on a message's offer."""
        if offer == "again":
            self.run(again=True)
        else:
            self.runs.go_on()

    def ignore_expression(self) -> None:
        """Synthesize from morphology alone, for a section whose genes the checkpoint does not know."""
        self.state.request = self.state.request.model_copy(update={"expression": "null"})
        self.runs.preview()

    def stop(self) -> None:
        """Stop the present work at its next denoising step; finished patches are kept."""
        if self.sheets.busy:
            self.sheets.stop()
        elif self.evaluations.busy:
            self.evaluations.stop()
        elif self.effects.busy:
            self.effects.stop()
        else:
            self.runs.stop()

    def reuse(self, number: int) -> None:
        """Load a result's request into the form, and select its spots; of another section's none are taken, as its ids mean others here."""
        entry, section = self.results.entry(number), self.state.section
        if entry is None:
            return
        asked, spots, said = entry.request, entry.spots, ""
        if section is not None and not is_same_section(entry.section, section):
            (asked, left_out), spots = without_spots(asked), ()
            said = f" It was made from {entry.section.name}: its spots are not taken"
            said += f", nor what names them: {some_of(left_out, 3, '; ')}." if left_out else "."
        self.state.request = asked.model_copy(update={"section": self.state.request.section})
        known = set() if section is None else set(section.spots.ids.tolist())
        if chosen := [spot for spot in spots if spot in known]:
            self.select(chosen)
        self.state.tell("info", f"The form now holds the request of {entry.name}.{said}")

    def _compare_edited(self, number: int) -> None:
        """Compare edited tissue with the slide, in the mode that is on, else in the preferred one."""
        if self.hand.holding:  # the tissue would move under the brush
            return
        comparison = self.state.comparison or self.compare.interrupted
        if not self.compare.fault(number):  # the message of the run stays
            self.compare.start(self.baseline_mode if comparison is None else comparison.mode, number)

    def compare_with_baseline(self, mode: CompareMode | None = None) -> None:
        """Compare the chosen result with the same request without its edits, which is run first if needed.

        Edited real tissue is compared with the slide, which is its baseline.
        """
        mode = mode or self.baseline_mode
        number = self.state.chosen_result
        entry = self.results.entry(number)
        if entry is None or number is None or not entry.request.edits:
            self.state.tell("warning", "Choose a result with edits: its baseline is the same request without them.")
            return
        base = self.results.baseline(number)
        if entry.counterfactual:
            self.compare.start(mode, number)
        elif base is not None:
            self.compare.start(mode, number, base.number)
        else:
            self.runs.run_baseline(number, lambda new: self.compare.start(mode, number, new))

    # --- all

    def close(self) -> None:
        """End all work; finished patches of a run are kept."""
        self._unlinked = None
        self._saves.finish()  # first: what was asked for is written, whatever fails below
        self._end_work()
        self.keeping.close()
        self.acquisition.close()
        self.data_sets.close()
        self.changes.close()
        self.effects.close()
        self.live.close()
        self.corrections.close()
        self.groups.close()
        self.compare.stop()
        for lane in self._lanes:
            self._abandon(lane)

    def _end_work(self) -> None:
        """End the present run or sheet now, and drop queued ones, whose plans are outdated."""
        dropped = self.queue.clear()
        self.sheets.abandon()
        self.evaluations.abandon()
        self.effects.abandon()
        self.runs.abandon()
        if dropped:
            self.state.tell("warning", f"{dropped} queued runs were dropped, as section or checkpoint changed.")

    def _submit(self, lane: str, job: jobs.Job, on_value: Any, on_error: Any = None) -> None:
        def error(fault: StmditError) -> None:
            self.state.tell_error(fault)
            if on_error is not None:
                on_error(fault)

        self._note_busy(lane, "" if job.quiet else job.title)  # looking at a spot keeps nobody from pressing Run
        self._lanes[lane].submit(job, Handlers(on_value, error, lambda: self._note_busy(lane, "")))

    def _write(self, job: jobs.Job, on_value: Any, name: str) -> None:
        """Queue the writing of a result; each failure is reported."""
        if not self._saves.busy:
            self._unsaved = []

        def done(value: Any) -> None:
            on_value(value)
            self._report_unsaved()

        def failed(fault: StmditError) -> None:
            self._unsaved.append(f"{name} was not saved: {fault}")
            self._report_unsaved()

        def begun() -> None:
            self._note_busy("save", job.title)

        self._saves.submit(job, Handlers(done, failed, lambda: self._note_busy("save", "")), begun)

    def _report_unsaved(self) -> None:
        """Report unsaved results again, so that a save that went well does not hide one that failed."""
        if self._unsaved:
            last = self.state.message
            good = [last.text] if last.kind == "info" and "was saved in" in last.text else []
            self.state.tell("error", "\n".join([*self._unsaved, *good]))

    def _abandon(self, lane: str) -> None:
        self._lanes[lane].abandon()
        self._note_busy(lane, "")

    def _note_busy(self, lane: str, title: str) -> None:
        self._titles[lane] = title
        self.state.opening = bool(self._titles.get("section"))
        self.state.busy = next((text for text in self._titles.values() if text), "")
        self._link()

    def _inserted(self, event: Any) -> None:
        layers.claim(event.value)
        section = layers.section_of(event.value)
        if section is not None and layers.role_of(event.value) == "spots" and section is not self.state.section:
            self._take_up(section)
        elif section is not None and layers.role_of(event.value) == "stored" and section is self.state.section:
            if not self.results.inserting:
                self.results.take_stored(event.value)

    def _removed(self, event: Any) -> None:
        layer = event.value
        if self.compare.uses(layer):
            self.compare.stop()
        self.changes.removed(layer)
        number = self.results.removed(layer)
        if number is not None:
            self.changes.forget(number)
            self.runs.forget(number)
        elif self.view is not None and self.view.holds(layer):
            if self.view.forget(layer):
                self._spots_removed()
