"""Connects the panels of results, comparisons, spots, sheets and the queue with the presenter of a workbench."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

from qtpy.QtCore import QSize, Qt, QTimer
from qtpy.QtWidgets import QFrame, QScrollArea, QWidget
from superqt.utils import qdebounced

from ...assemble import list_checkpoints
from ...expression.programs import bundled_notes, known_programs
from ...intent import Request
from .. import worker
from ..acquisition import offers
from ..preferences import preference_events, read_preferences
from ..presenter import Presenter, presenter_of
from ..state import ModelChoice, RunStatus, WorkbenchState
from .colour import ColourPanel
from .common import Fold, Text, column
from .compare import ComparePanel
from .edits import EditsPanel
from .evaluate import EvaluatePanel, SheetWindow
from .keys import bind_paint_keys, bind_run_keys, with_key
from .model import ModelPanel
from .results import ResultsPanel
from .run_bar import QueuePanel, RunBar
from .section import SectionPanel
from .select import SelectPanel
from .spot import SpotPanel
from .synthesize import SynthesizePanel

LOOK_MS = 150
"""The mouse has to rest on a spot for so long before its patches are cut out and measured."""


class Desk:
    """What a workbench does with its results; held by the workbench, which is its parent in every sense."""

    def __init__(self, bench: Workbench, viewer: Any) -> None:
        self._viewer = viewer
        self.bench = bench
        self.presenter = bench.presenter
        self.sheet = SheetWindow(bench)
        self._mode = "swipe"
        self._rest = QTimer(bench)  # a child: it ends with the dock, whatever it still waits for
        self._rest.setSingleShot(True)
        self._rest.timeout.connect(self._look_now)
        self._wire_forms()
        self._bind_keys()
        self._viewer = None  # only the keys needed it
        self.use_preferences(first=True)

    def state_connections(self) -> list[tuple[tuple[str, ...], Any]]:
        """Return which fields of the state are shown where, as (fields, what shows them)."""
        bench, state = self.bench, self.presenter.state
        return [
            (("results",), lambda: bench.results.show_results(state.results, state.chosen_result)),
            (("chosen_result",), lambda: bench.results.show_chosen(state.chosen_result)),
            (("results", "chosen_result"), lambda: bench.compare.show_results(state.results, state.chosen_result)),
            (("changes",), lambda: bench.results.show_changes(state.changes)),
            (("exporting",), lambda: bench.results.show_exporting(state.exporting)),
            (("comparison",), lambda: bench.compare.show_comparison(state.comparison)),
            (("queue", "queue_held"), lambda: bench.queue.show_queue(state.queue, state.queue_held)),
            (("samples",), lambda: bench.synthesize.show_samples(state.samples)),
            (("sheet",), lambda: self.sheet.show_sheet(state.sheet)),
            (("evaluation",), lambda: bench.evaluate.show_evaluation(state.evaluation)),
            (("status", "section", "checkpoint"), self._show_evaluable),
            (("close_up",), self._show_spot),
            (("hovered", "selected", "results", "chosen_result", "checkpoint"), self._look),
        ]

    def use_preferences(self, first: bool = False) -> None:
        """Take over napari's preferences, now and whenever they change."""
        chosen = read_preferences()
        self.presenter.runs.live_preview = chosen.live_preview
        self.bench.compare.use_pace(chosen.blink_ms)
        self._mode = chosen.compare_mode
        state = self.presenter.state
        if first and state.checkpoint is None and state.model == ModelChoice() and chosen.device != "auto":
            state.model = ModelChoice(device=chosen.device)

    def watch_preferences(self) -> list[tuple[Any, Any]]:
        """Return the connection that follows changed preferences, for the workbench to undo when it closes."""
        events = preference_events()
        if events is None:
            return []

        def follow(event: Any = None) -> None:
            self.use_preferences()

        events.connect(follow)
        return [(events, follow)]

    # --- private

    def _wire_forms(self) -> None:
        bench, presenter = self.bench, self.presenter
        results = presenter.results
        bench.results.visibleChanged.connect(results.show)
        bench.results.chosenChanged.connect(lambda number: setattr(presenter.state, "chosen_result", number))
        bench.results.renamed.connect(results.rename)
        bench.results.deleteRequested.connect(results.delete)
        bench.results.saveRequested.connect(results.save)
        bench.results.exportRequested.connect(results.export)
        bench.results.dataSetRequested.connect(presenter.data_sets.export)
        bench.results.dataSetStopped.connect(presenter.data_sets.stop)
        bench.results.againRequested.connect(presenter.runs.run_again)
        bench.results.changeToggled.connect(presenter.changes.show)
        bench.results.reuseRequested.connect(presenter.reuse)
        bench.compare.modeChosen.connect(self._compare)
        bench.compare.positionChanged.connect(presenter.compare.move)
        bench.compare.blinked.connect(presenter.compare.flip)
        bench.compare.baselineRequested.connect(self._baseline)
        bench.queue.removeRequested.connect(presenter.queue.remove)
        bench.queue.resumeRequested.connect(presenter.queue.resume)
        bench.synthesize.samplesChanged.connect(self._samples)
        bench.spot.doseRequested.connect(lambda: self._with_spot(presenter.sheets.dose_strip))
        bench.spot.gridRequested.connect(lambda: self._with_spot(presenter.sheets.guidance_grid))
        bench.evaluate.evaluateRequested.connect(presenter.evaluations.evaluate)
        bench.folds["spot"].unfolded_changed.connect(lambda _: self._look_now())

    def _bind_keys(self) -> None:
        bench, presenter = self.bench, self.presenter
        actions: dict[str, Any] = {
            "run": presenter.runs.run,
            "stop": presenter.stop,
            "flip": presenter.compare.flip,
            "baseline": self._baseline,
        }
        for mode in ("grid", "swipe", "blink", "fade"):
            actions[mode] = lambda mode=mode: self._toggle(mode)
            button = bench.compare.mode.button(mode)
            button.setToolTip(with_key(button.toolTip(), mode))
        self.unbind_keys = bind_run_keys(self._viewer, bench, actions)
        for button, name in ((bench.run_bar.stop, "stop"), (bench.compare.baseline, "baseline")):
            button.setToolTip(with_key(button.toolTip(), name))

    def _toggle(self, mode: str) -> None:
        comparison = self.presenter.state.comparison
        off = comparison is not None and comparison.mode == mode
        self._compare("off" if off else mode, self.bench.compare.against.currentData())

    def _compare(self, mode: str, left: int | None) -> None:
        if mode == "off":
            self.presenter.compare.stop()
        else:
            self.presenter.compare.start(mode, left=left)  # type: ignore[arg-type]
        self.bench.compare.show_comparison(self.presenter.state.comparison)  # also where it could not be started

    def _baseline(self) -> None:
        self.presenter.compare_with_baseline(self._mode)  # type: ignore[arg-type]

    def _samples(self, count: int) -> None:
        self.presenter.state.samples = count
        self.presenter.runs.preview()

    def _with_spot(self, make: Any) -> None:
        spot = self.presenter.close_ups.spot
        if spot is not None:
            make(spot)

    def _look(self) -> None:
        self._rest.start(LOOK_MS)

    def _look_now(self) -> None:
        if self.bench.folds["spot"].unfolded:
            self.presenter.close_ups.look()
        self._show_spot()

    def _show_evaluable(self) -> None:
        state = self.presenter.state
        self.bench.evaluate.show_status(state.status, state.section is not None and state.checkpoint is not None)

    def _show_spot(self) -> None:
        self.bench.spot.show_close_up(self.presenter.state.close_up, self.presenter.close_ups.spot)


# Connects the forms of colouring, choosing and painting with the presenter: forms say what is wanted, the state
# what is.


def wire_edits(bench: Workbench) -> list[tuple[Any, Any]]:
    """Connect both ways; return the (signal, slot) pairs by which the state is listened to, to be undone at the end."""
    _forms_to_presenter(bench)
    return _state_to_forms(bench)


def _forms_to_presenter(bench: Workbench) -> None:
    presenter, panel, select = bench.presenter, bench.edits, bench.select
    painting, choosing, files, state = presenter.painting, presenter.choosing, presenter.edit_files, presenter.state
    select.growRequested.connect(choosing.grow)
    select.categoryRequested.connect(lambda name: choosing.by_category(state.colouring.obs or "", name, state.combine))
    select.valuesRequested.connect(lambda low, high: choosing.by_values(state.colouring, low, high, state.combine))
    select.saveRequested.connect(choosing.save)
    select.recallRequested.connect(choosing.recall)
    select.deleteRequested.connect(choosing.delete)
    bench.colour.categoryChosen.connect(lambda column, name: choosing.by_category(column, name, state.combine))
    panel.form.valueChanged.connect(painting.take_draft)
    panel.form.profileRequested.connect(files.import_profile)
    panel.brush.valueChanged.connect(presenter.set_brush)
    panel.brushToggled.connect(lambda on: presenter.use_tool("brush" if on else "click"))
    panel.addRequested.connect(lambda everywhere: painting.add(None if everywhere else state.selected))
    panel.newRequested.connect(lambda: painting.choose(None))
    panel.spotsRequested.connect(lambda: _select_chosen(presenter))
    panel.list.picked.connect(lambda number: None if number == state.chosen_edit else painting.choose(number))
    panel.list.enabledChanged.connect(painting.set_enabled)
    panel.list.renamed.connect(painting.rename)
    panel.list.strengthChanged.connect(painting.set_strength)
    panel.undoRequested.connect(painting.undo)
    panel.redoRequested.connect(painting.redo)
    panel.moveRequested.connect(lambda by: _with_chosen(state, lambda number: painting.move(number, by)))
    panel.deleteRequested.connect(lambda: _with_chosen(state, painting.delete))
    panel.loadRequested.connect(files.load)
    panel.saveRequested.connect(files.save)
    panel.setsRequested.connect(files.import_gmt)
    panel.moversSaveRequested.connect(files.export_movers)
    panel.profileSaveRequested.connect(files.export_profile)


def _with_chosen(state: Any, do: Any) -> None:
    if state.chosen_edit is not None:
        do(state.chosen_edit)


def _select_chosen(presenter: Any) -> None:
    edit = presenter.painting.chosen
    if edit is not None and edit.spots is None and edit.operation != "swap":
        presenter.select_all()
    else:
        presenter.select(sorted(presenter.painting.outlined()))


def _state_to_forms(bench: Workbench) -> list[tuple[Any, Any]]:
    state, panel, painting = bench.state, bench.edits, bench.presenter.painting

    def show_section() -> None:
        section = state.section
        panel.form.show_section(section)
        panel.brush.show_unit(section is None or section.calibration.mpp is not None)
        panel.setEnabled(section is not None)

    def show_programs() -> None:
        programs, view = known_programs(state.request.programs), bench.presenter.view
        if shown.get("programs") != (tuple(programs), state.section, state.checkpoint):
            shown["programs"] = (tuple(programs), state.section, state.checkpoint)
            notes = {name: note for name, note in bundled_notes().items() if name not in state.request.programs}
            panel.form.show_programs(tuple(programs), notes, painting.program_reaches())
            columns = () if view is None else view.values.columns()
            bench.colour.show_section(state.section, columns, programs)

    def show_groups() -> None:
        panel.form.show_groups(state.selected, state.named, painting.profile_names())

    def show_movers() -> None:
        if panel.moving.unfolded:
            panel.show_movers(painting.movers())

    panel.moving.unfolded_changed.connect(lambda on: show_movers())
    shown: dict[str, Any] = {}
    connections = []
    for names, show in (
        (("section",), show_section),
        (("section", "request", "checkpoint"), show_programs),
        (("section", "request", "checkpoint"), show_movers),
        (("section", "request", "checkpoint", "selected", "named"), show_groups),
        (
            ("request", "chosen_edit", "checkpoint", "section"),
            lambda: panel.show_edits(painting.edits, state.chosen_edit, painting.reaches()),
        ),
        (("draft",), lambda: panel.form.setValue(state.draft)),
        (("draft_faults",), lambda: panel.form.show_faults(state.draft_faults)),
        (("brush",), lambda: panel.brush.setValue(state.brush)),
        (("undoable",), lambda: panel.show_undoable(state.undoable)),
        (("selected", "draft"), lambda: panel.show_selected(len(state.selected), state.draft)),
        (("tool",), lambda: panel.show_brushing(state.tool == "brush")),
        (("colour_scale",), lambda: bench.select.show_scale(state.colour_scale)),
        (("named",), lambda: bench.select.show_named(state.named)),
    ):
        for name in names:
            signal = getattr(state.events, name)
            signal.connect(show, max_args=0)
            connections.append((signal, show))
        show()
    return connections


# The dock widget: panels above, run bar below.


NARROWEST = 300


class Workbench(QWidget):  # type: ignore[misc,unused-ignore]
    """The STMDiT workbench of one viewer.

    Parameters
    ----------
    napari_viewer
        napari passes it in, by this name.
    """

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__()
        viewer = getattr(napari_viewer, "__wrapped__", napari_viewer)
        self.presenter: Presenter = presenter_of(viewer, worker.start)
        self._viewer = weakref.ref(viewer)
        self._connections: list[tuple[Any, Any]] = []
        self.section, self.colour, self.select = SectionPanel(), ColourPanel(), SelectPanel()
        self.edits = EditsPanel()
        self.model, self.synthesize, self.results = ModelPanel(), SynthesizePanel(), ResultsPanel()
        self.compare, self.spot, self.queue = ComparePanel(), SpotPanel(), QueuePanel()
        self.evaluate = EvaluatePanel()
        self.run_bar = RunBar(self.queue)
        self.model.offer_checkpoints([entry.name for entry in list_checkpoints()])
        self._lay_out()
        self._wire_forms()
        self.desk = Desk(self, viewer)
        self._wire_state()
        self._use_theme()
        viewer.events.theme.connect(self._use_theme)
        self._connections += wire_edits(self)
        self.presenter.preview_soon = self._preview
        unbinders = (bind_paint_keys(viewer, self.presenter, self), self.desk.unbind_keys)
        self.destroyed.connect(_closer(self.presenter, self._connections, unbinders))
        self.presenter.adopt()

    @property
    def state(self) -> WorkbenchState:
        """What the workbench shows and does."""
        return self.presenter.state

    def sizeHint(self) -> QSize:
        """Return the size that the dock is opened with."""
        return QSize(340, 760)

    # --- layout

    def _lay_out(self) -> None:
        self.folds = {
            "section": Fold("Section", self.section),
            "colour": Fold("Colour", self.colour),
            "select": Fold("Select", self.select),
            "edits": Fold("Paint expression", self.edits, unfolded=False),
            "model": Fold("Model", self.model, unfolded=False),
            "synthesize": Fold("Synthesize", self.synthesize),
            "results": Fold("Results", self.results),
            "compare": Fold("Compare", self.compare),
            "spot": Fold("Spot close-up", self.spot, unfolded=False),
            "evaluate": Fold("Evaluate", self.evaluate, unfolded=False),
        }
        inside = QWidget()
        panels = column(*self.folds.values(), spacing=8)
        panels.setContentsMargins(8, 4, 10, 8)
        panels.addStretch(1)
        inside.setLayout(panels)
        scroll = QScrollArea()
        scroll.setWidgetResizable(True)
        scroll.setFrameShape(QFrame.Shape.NoFrame)
        scroll.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        scroll.setWidget(inside)
        self.scroll = scroll
        self.run_bar.setContentsMargins(8, 4, 10, 6)
        layout = column(scroll, self.run_bar, spacing=2)
        layout.setStretch(0, 1)
        self.setLayout(layout)
        self.setMinimumWidth(NARROWEST)

    def _use_theme(self, event: Any = None) -> None:
        from napari.utils.theme import get_theme

        viewer = self._viewer()
        if viewer is None:
            return
        red, green, blue = get_theme(viewer.theme).background.as_rgb_tuple()[:3]
        for text in self.findChildren(Text):
            text.use_theme(red + green + blue < 384)

    # --- forms -> presenter

    def _wire_forms(self) -> None:
        presenter = self.presenter
        self.section.openRequested.connect(presenter.open)
        self.section.refused.connect(lambda text: presenter.tell("error", text))
        self.colour.valueChanged.connect(presenter.colour)
        self.select.toolChosen.connect(presenter.use_tool)
        self.select.combineChosen.connect(lambda how: setattr(presenter.state, "combine", how))
        self.select.allRequested.connect(presenter.select_all)
        self.select.clearRequested.connect(lambda: presenter.select(()))
        self.select.invertRequested.connect(presenter.invert_selection)
        self.model.valueChanged.connect(presenter.load_model)
        self.model.unloadRequested.connect(presenter.unload_model)
        self.model.pathChosen.connect(presenter.acquisition.choose)
        self.model.convert.convertRequested.connect(presenter.acquisition.convert)
        self.model.downloads.downloadRequested.connect(presenter.acquisition.download)
        self.model.downloads.stopRequested.connect(presenter.acquisition.stop_download)
        self.synthesize.valueChanged.connect(self._request_edited)
        self.synthesize.batchChanged.connect(lambda count: setattr(presenter.state, "batch", count))
        self.synthesize.pick.clicked.connect(self._pick_spot)
        self.run_bar.runRequested.connect(presenter.runs.run)
        self.run_bar.stopRequested.connect(presenter.stop)

    def _request_edited(self, request: Request) -> None:
        self.state.request = request
        self._preview()

    @qdebounced(timeout=120)  # type: ignore[untyped-decorator,unused-ignore]
    def _preview(self) -> None:
        self.presenter.runs.preview()

    def _pick_spot(self) -> None:
        if self.state.selected:
            self.synthesize.use_spot(self.state.selected[0])

    # --- state -> forms

    def _wire_state(self) -> None:
        events = self.state.events
        for names, show in (
            (("section",), self._show_section),
            (("scale_asked",), lambda: self.section.ask_scale(self.state.scale_asked)),
            (("section", "checkpoint", "faults"), self._show_fit),
            (("colouring",), lambda: self.colour.setValue(self.state.colouring)),
            (("colour_scale",), lambda: self.colour.show_scale(self.state.colour_scale)),
            (("selected", "section"), self._show_selection),
            (("tool",), lambda: self.select.tool.setValue(self.state.tool)),
            (("request",), self._preview),
            (("combine",), lambda: self.select.combine.setValue(self.state.combine)),
            (("devices",), lambda: self.model.offer_devices(self.state.devices)),
            (("model",), lambda: self.model.setValue(self.state.model)),
            (("checkpoint",), self._show_model),
            (("fetching",), self._show_fetching),
            (("foreign",), lambda: self.model.convert.show_foreign(self.state.foreign)),
            (("converting",), lambda: self.model.convert.show_converting(self.state.converting)),
            (("request",), lambda: self.synthesize.setValue(self.state.request)),
            (("request", "checkpoint", "section"), self._show_editable),
            (("faults",), lambda: self.synthesize.show_faults(self.state.faults)),
            (("estimate", "notes", "faults", "section", "checkpoint", "selected"), self._show_estimate),
            (("status", "busy", "section", "checkpoint", "selected"), self._show_status),
            (("progress", "busy"), lambda: self.run_bar.show_progress(self.state.progress, self.state.busy)),
            (("message",), lambda: self.run_bar.show_message(self.state.message)),
            *self.desk.state_connections(),
        ):
            for name in names:
                signal = getattr(events, name)
                signal.connect(show, max_args=0)
                self._connections.append((signal, show))
            show()
        self._connections += self.desk.watch_preferences()

    def _show_section(self) -> None:
        self.section.show_section(self.state.section)

    def _show_fit(self) -> None:
        self.section.show_fit(self.presenter.gene_overlap(), self.presenter.section_fault())

    def _show_selection(self) -> None:
        section = self.state.section
        self.select.show_count(len(self.state.selected), None if section is None else len(section.spots))

    def _show_model(self) -> None:
        model = self.state.checkpoint
        card = None if model is None else model.card
        device = "" if model is None else str(model.provenance.get("device", ""))
        self.model.show_model(card, device, getattr(model, "lacking", None))
        self.synthesize.set_defaults(card)

    def _show_editable(self) -> None:
        self.synthesize.show_editable(self.presenter.runs.edit_fault())

    def _show_fetching(self) -> None:
        if self.state.fetching is None:
            self.model.downloads.offer(offers())
        self.model.downloads.show_fetching(self.state.fetching)

    def _show_estimate(self) -> None:
        why_not = "" if self.state.faults else self.state.obstacle
        self.synthesize.show_estimate(self.state.estimate, self.state.notes, why_not)

    def _show_status(self) -> None:
        self.run_bar.show_status(self.state.status, self.state.obstacle)
        self.section.show_busy(self.state.busy.startswith("Opening"))
        self.model.setEnabled(not self.state.status.busy)
        if self.state.status is RunStatus.DONE and self.state.results:  # an evaluation leaves none
            self.folds["results"].unfold()


def _closer(
    presenter: Presenter, connections: list[tuple[Any, Any]], unbinders: Sequence[Callable[[], None]]
) -> Callable[[], None]:
    """Return a slot that ends what is under way and takes the widget off the state, which outlives a dock that is closed.

    It must not hold the widget, which is being destroyed when it is called.
    """

    def close() -> None:
        while connections:
            signal, show = connections.pop()
            signal.disconnect(show)
        for unbind in unbinders:
            unbind()
        presenter.preview_soon = presenter.runs.preview
        presenter.close()

    return close
