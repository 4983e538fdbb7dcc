"""The dock widget: panels above, run bar below. Connects forms and state, and knows nothing else."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

from qtpy.QtCore import QSize, Qt
from qtpy.QtWidgets import QFrame, QScrollArea, QWidget
from superqt.utils import qdebounced

from ...assemble import list_checkpoints
from ...types import Request
from .. import worker
from ..acquisition import offers
from ..presenter import Presenter, presenter_of
from ..state import RunStatus, WorkbenchState
from .colour import ColourPanel
from .common import Fold, Text, column
from .compare import ComparePanel
from .edits import EditsPanel
from .edits_wiring import wire_edits
from .evaluate import EvaluatePanel
from .model import ModelPanel
from .queue import QueuePanel
from .results import ResultsPanel
from .run_bar import RunBar
from .section import SectionPanel
from .select import SelectPanel
from .shortcuts import bind
from .spot import SpotPanel
from .synthesize import SynthesizePanel
from .wiring import Desk

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
        unbinders = (bind(viewer, self.presenter, self), self.desk.unbind_keys)
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
