"""Between the forms and the tissue: takes intent, plans, runs, and is the only one that changes the viewer. No Qt."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..assemble import free_device_memory
from ..errors import StmditError
from ..expression.genes import match_genes
from ..tissue.open import synthesis_fault
from ..types import Section
from . import jobs, layers
from .compare import SideBySide
from .jobs import Handlers, Lane, Start
from .runs import RunCycle
from .section_view import SectionView
from .selection import combine, inverted
from .state import (
    Colouring,
    Combine,
    Message,
    ModelChoice,
    OpenIntent,
    ResultEntry,
    Tool,
    WorkbenchState,
)

_PRESENTERS: weakref.WeakKeyDictionary[Any, Presenter] = weakref.WeakKeyDictionary()


def presenter_of(viewer: Any, start: Start = jobs.start_inline) -> Presenter:
    """Return the presenter of a viewer, made on first use; two viewers share nothing."""
    viewer = getattr(viewer, "__wrapped__", viewer)  # napari hands a proxy to widgets, a new one each time
    if viewer not in _PRESENTERS:
        _PRESENTERS[viewer] = Presenter(viewer, start)
    return _PRESENTERS[viewer]


class Presenter:
    """What the workbench of one viewer does.

    Parameters
    ----------
    viewer
        A napari viewer or ViewerModel; held weakly.
    start
        How jobs are started: on a thread, or inline where there is no event loop.
    """

    def __init__(self, viewer: Any, start: Start) -> None:
        self._viewer = weakref.ref(viewer)
        self.state = WorkbenchState()
        self.view: SectionView | None = None
        self.runs = RunCycle(self.state, start, self.insert_result, self.redraw)
        self.compare = SideBySide(viewer)
        self._lanes = {name: Lane(start) for name in ("section", "model", "save")}
        self._titles: dict[str, str] = {}
        self._result_layers: dict[int, Any] = {}
        self._inserting = False
        viewer.layers.events.inserted.connect(self._inserted)
        viewer.layers.events.removed.connect(self._removed)
        viewer.layers.selection.events.active.connect(self._active_changed)

    # --- sections

    def adopt(self) -> None:
        """Take up a section whose layers are already in the viewer, as from a reader or the sample menu."""
        viewer = self._viewer()
        for layer in reversed(viewer.layers if viewer is not None else ()):
            section = layers.section_of(layer)
            if section is not None and layers.role_of(layer) == "spots":
                self._show(section)
                return

    def open(self, intent: OpenIntent | None) -> None:
        """Open a section, or the bundled sample where ``intent`` is None, off the GUI thread."""
        job = jobs.opening_sample() if intent is None else jobs.opening(intent)
        self._submit("section", job, self._show)

    def _show(self, section: Section) -> None:
        viewer = self._viewer()
        if viewer is None or (self.view is not None and self.view.section is section):
            return
        view = self.view
        self.close_section()
        if view is not None:
            view.remove()
            for entry in self.state.results:  # of another tissue: they are kept, but would lie over this one
                self.show_result(entry.number, False)
        self.view = SectionView(viewer, section, self.click, self.ring)
        state = self.state
        state.section = section
        self.view.show()
        state.request = state.request.model_copy(
            update={"section": str(section.path) if section.path else section.name}
        )
        self.colour(replace(state.colouring, limits=None))
        self.tell("info", f"{section.name}: {len(section.spots):,} spots. Click spots, or draw a lasso around them.")
        if state.checkpoint is None and not self._lanes["model"].busy:
            self.load_model(state.model)
        self.runs.preview()

    def close_section(self) -> None:
        """Let go of the open section, but not of its layers; a run is stopped and what it finished is kept."""
        self.runs.abandon()
        self.set_compare(False)
        self.view = None
        self.state.selected = ()
        self.state.tool = "click"
        self.state.section = None

    def section_fault(self) -> str:
        """Say why the open section cannot be synthesized from, in words; empty where it can or nothing is known yet."""
        section, model = self.state.section, self.state.checkpoint
        if section is None or model is None:
            return ""
        return synthesis_fault(section, model.card.patch_mpp) or self.state.faults.get("genes", "")

    def gene_overlap(self) -> tuple[int, int] | None:
        """Return how many of the checkpoint's genes the section has, and how many there are; None before both are there."""
        section, model = self.state.section, self.state.checkpoint
        if section is None or model is None:
            return None
        return match_genes(model.card.genes, section.spots.genes).shared, len(model.card.genes)

    # --- colours and selection

    def colour(self, colouring: Colouring) -> None:
        """Colour the spots."""
        self.state.colouring = colouring
        if self.view is not None:
            self.state.colour_scale = self.view.colour(colouring)
            self.redraw()

    def redraw(self) -> None:
        """Draw colours, selection and rings of the spots."""
        if self.view is not None:
            self.view.draw(self.state.selected, self._hollow())

    def _hollow(self) -> set[str]:
        shown = [e.result.plan for e in self.state.results if e.visible and e.result.section is self.state.section]
        plans = [*shown, *([self.runs.plan] if self.runs.plan is not None else [])]
        return {patch.spot_id for plan in plans for patch in plan.patches}

    def select(self, ids: Sequence[str], how: Combine = "replace") -> None:
        """Change the selection, which is kept as spot ids."""
        if self.state.section is None:
            return
        self.state.selected = combine(self.state.section.spots, self.state.selected, ids, how)
        self.redraw()
        self.runs.preview()

    def select_all(self) -> None:
        """Select every spot."""
        if self.state.section is not None:
            self.select(self.state.section.spots.ids.tolist())

    def invert_selection(self) -> None:
        """Select what is not selected."""
        if self.state.section is not None:
            self.select(inverted(self.state.section.spots, self.state.selected))

    def click(self, yx: NDArray[np.float64], how: Combine | None) -> None:
        """Select the spot at a place in full-resolution pixels; a click beside the spots changes nothing."""
        if self.view is not None and (found := self.view.finder.at(yx.tolist())):
            self.select(found, how or self.state.combine)

    def ring(self, yx: NDArray[np.float64], how: Combine | None) -> None:
        """Select the spots inside a lasso's ring in full-resolution pixels."""
        if self.view is None:
            return
        found = self.view.finder.within(yx)
        if found or len(yx) > 2:
            self.select(found, how or self.state.combine)

    def use_tool(self, tool: Tool) -> None:
        """Choose spots by clicking or by drawing around them."""
        if self.view is None:
            tool = "click"
        elif tool == "lasso":
            self.view.start_lasso()
        else:
            self.view.stop_lasso()
            self.view.activate()
        self.state.tool = tool  # last: adding the lasso's layer makes it active, which is also how a tool is put away

    # --- model

    def load_model(self, choice: ModelChoice) -> None:
        """Load a checkpoint off the GUI thread; the one before is let go first, so that two are never held."""
        self.runs.abandon()
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
        """Let the checkpoint and its memory go."""
        self.runs.abandon()
        self._abandon("model")
        self.state.checkpoint = None
        free_device_memory()
        self.tell("info", "The checkpoint was unloaded.")

    # --- results

    def insert_result(self, data: layers.LayerTuple) -> Any:
        """Add the layer of a run: over the slide and earlier results, under the spots."""
        viewer, view = self._viewer(), self.view
        if viewer is None or view is None:
            return None
        below = [x for x in viewer.layers if x is view.slide or layers.role_of(x) == "result"]
        self._inserting = True
        try:
            layer = layers.insert(viewer, data, above=below[-1] if below else None)
        finally:
            self._inserting = False
        layer.events.visible.connect(self._visible_changed)
        self._result_layers[layers.ours(layer)["run"]] = layer
        return layer

    def result_layer(self, number: int) -> Any:
        """Return the layer of a run by its number, or None."""
        return self._result_layers.get(number)

    def show_result(self, number: int, visible: bool) -> None:
        """Show or hide a result."""
        layer = self._result_layers.get(number)
        if layer is not None:
            layer.visible = visible

    def _visible_changed(self, event: Any = None) -> None:
        def shown(entry: ResultEntry) -> ResultEntry:
            layer = self._result_layers.get(entry.number)
            return entry if layer is None or layer.visible == entry.visible else replace(entry, visible=layer.visible)

        results = tuple(shown(entry) for entry in self.state.results)
        if any(a is not b for a, b in zip(results, self.state.results, strict=True)):
            self.state.results = results
            self.redraw()

    def save_result(self, number: int, path: str) -> None:
        """Write a result into a SpatialData store, off the GUI thread."""
        entry = next(e for e in self.state.results if e.number == number)

        def saved(element: str) -> None:
            where = f"{path} as {element}"
            results = [replace(e, saved=where) if e.number == number else e for e in self.state.results]
            self.state.results = tuple(results)
            self.tell("info", f"{entry.name} was saved in {where}.")

        self._submit("save", jobs.saving(entry.result, path), saved)

    def set_compare(self, on: bool) -> None:
        """Show the slide and the chosen result side by side, or end that."""
        if on and self.view is not None:
            number = self.state.chosen_result
            layer = None if number is None else self._result_layers.get(number)
            if layer is None or self.view.slide is None:
                self.tell("warning", "Choose a result to compare with the slide.")
                on = False
            else:
                self.use_tool("click")
                self.compare.start(self.view.slide, self.view.spots, layer)
        if not on:
            self.compare.stop()
        self.state.comparing = on and self.compare.active

    # --- all

    def tell(self, kind: Any, text: str) -> None:
        """Leave a message for the user; it stays until the next one."""
        self.state.message = Message(kind, text)

    def close(self) -> None:
        """End everything that is under way; what a run finished is kept."""
        self.runs.abandon()
        for lane in self._lanes:
            self._abandon(lane)

    def _submit(self, lane: str, job: jobs.Job, on_value: Any) -> None:
        def error(fault: StmditError) -> None:
            self.tell("error", str(fault))

        self._note_busy(lane, job.title)
        self._lanes[lane].submit(job, Handlers(on_value, error, lambda: self._note_busy(lane, "")))

    def _abandon(self, lane: str) -> None:
        self._lanes[lane].abandon()
        self._note_busy(lane, "")

    def _note_busy(self, lane: str, title: str) -> None:
        self._titles[lane] = title
        self.state.busy = next((text for text in self._titles.values() if text), "")

    def _inserted(self, event: Any) -> None:
        section = layers.section_of(event.value)
        if section is not None and layers.role_of(event.value) == "spots" and section is not self.state.section:
            self._show(section)

    def _removed(self, event: Any) -> None:
        layer = event.value
        number = next((n for n, known in self._result_layers.items() if known is layer), None)
        if number is not None:
            del self._result_layers[number]
            self.runs.forget(number)
            self.state.results = tuple(e for e in self.state.results if e.number != number)
            if self.state.chosen_result == number:
                self.state.chosen_result = None
            self.redraw()
        elif self.view is not None and self.view.holds(layer):
            if layer is self.view.lasso_layer:
                self.state.tool = "click"
            if self.view.forget(layer):
                self.close_section()
        if self.compare.uses(layer):
            self.set_compare(False)

    def _active_changed(self, event: Any) -> None:
        # another layer was chosen while a lasso was to be drawn: the tool is put away, or the next drag would surprise
        view = self.view
        if view is not None and not self._inserting and event.value is not view.lasso_layer:
            self.state.tool = "click"  # its layer is taken away when a tool is next chosen, not amid napari's own event
