"""Connects the panels of results, comparisons, spots, sheets and the queue with the presenter of a workbench."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QTimer

from ..preferences import preference_events, read_preferences
from ..state import ModelChoice
from . import result_keys
from .sheet import SheetWindow

if TYPE_CHECKING:
    from .dock import Workbench

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
            button.setToolTip(result_keys.with_key(button.toolTip(), mode))
        self.unbind_keys = result_keys.bind(self._viewer, bench, actions)
        for button, name in ((bench.run_bar.stop, "stop"), (bench.compare.baseline, "baseline")):
            button.setToolTip(result_keys.with_key(button.toolTip(), name))

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
