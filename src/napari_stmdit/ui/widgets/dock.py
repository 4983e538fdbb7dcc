"""The dock widget: panels above, run bar below, and the user's preferences."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

from qtpy.QtCore import QEvent, QObject, QSize, Qt, QTimer
from qtpy.QtGui import QShowEvent
from qtpy.QtWidgets import QApplication, QFrame, QScrollArea, QWidget

from ...downloads.places import data_directory
from ..manifest import PLUGIN
from ..presenter import Presenter, presenter_of, unasked
from ..state import CompareMode, ModelChoice, WorkbenchState
from . import worker
from .colour import ColourPanel
from .common import COLOURS, LINK, Choice, Connections, Fold, Text, boxed, column, connect_state
from .compare import ComparePanel
from .dialogs import ClosingWords, KeptOffer, ask_to_replace
from .edits import EditsPanel
from .evaluate import EvaluatePanel, SheetWindow, SpotPanel
from .input import RUN_KEYS, WheelGuard, bind_keys, paint_actions, with_key
from .model import AdaptPanel, ModelPanel
from .overlay import Overlay, canvas_in
from .results import ResultsPanel
from .section import SectionPanel
from .select import SelectPanel
from .synthesize import RunBar, SynthesizePanel

PAGE = "workbench"
"""Key of the page in the manifest's ``configurations``."""


@dataclass(frozen=True)
class Preferences:
    """User's preferences for all viewers, in napari's preferences; older napari has no such page, and defaults hold."""

    live_preview: bool = True  # show the patch that is being denoised every few steps
    blink_ms: int = 700  # how long each picture is shown while blinking; not below 350, as fast flicker can harm
    compare_mode: CompareMode = "grid"  # how an edit is compared with what was before
    device: str = "auto"  # where a checkpoint is loaded, unless another device is chosen


def read_preferences() -> Preferences:
    """Return the present preferences."""
    page = _page()
    if page is None:
        return Preferences()
    found = {f.name: getattr(page, f.name) for f in fields(Preferences) if hasattr(page, f.name)}
    return Preferences(**{name: getattr(value, "value", value) for name, value in found.items()})


def _page() -> Any:
    try:
        from napari.settings import get_plugin_settings
    except ImportError:  # before napari 0.9
        return None
    try:
        return getattr(get_plugin_settings(PLUGIN), PAGE, None)
    except KeyError:  # the plugin is not registered, as in a script
        return None


def preference_events() -> Any:
    """Return the event group of changed preferences, or None."""
    page = _page()
    return getattr(page, "events", None)


MIN_WIDTH = 300
MARGINS = (10, 6, 10, 6)
STEPS = (
    ("choose", "1  Choose", "Which spots: tools, colours, values and names"),
    ("change", "2  Change", "Changes there: edits of the expression, painted or applied"),
    ("see", "3  See", "Results: compare, measure and save them"),
)


class Workbench(QWidget):  # type: ignore[misc,unused-ignore]
    """The workbench of one viewer.

    Parameters
    ----------
    napari_viewer
        napari passes it in, by this name.
    """

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__()
        viewer = getattr(napari_viewer, "__wrapped__", napari_viewer)
        self.presenter: Presenter = presenter_of(viewer, worker.start)
        self._viewer, self._docked = weakref.ref(viewer), False
        self.section, self.colour, self.select = SectionPanel(), ColourPanel(), SelectPanel()
        self.edits, self.model, self.synthesize = EditsPanel(), ModelPanel(), SynthesizePanel()
        self.results, self.compare, self.spot = ResultsPanel(), ComparePanel(), SpotPanel()
        self.evaluate, self.run_bar, self.sheet = EvaluatePanel(), RunBar(), SheetWindow(self)
        self.adapt, self.kept = AdaptPanel(), KeptOffer()
        self.adapt.finished.connect(lambda name: self.model.offer_checkpoints([name]))
        self._lay_out()
        self.connections = connections = Connections()
        connections.add(self.presenter.close)  # the first is undone last: nothing that is destroyed hears of it
        for panel in (*self.panels, self.run_bar, self.sheet, self.kept):
            connections.add(panel.bind(self.presenter).close)
        self.overlay: Overlay | None = None
        self.wheel = WheelGuard(self)
        self.wheel.watch(self)
        self._use_state()
        self._use_preferences(first=True)
        self._use_keys(viewer)
        self._use_theme()
        viewer.events.theme.connect(self._use_theme)
        connections.add(partial(viewer.events.theme.disconnect, self._use_theme))
        # it must not hold the widget, which is being destroyed when it is called
        self.destroyed.connect(lambda: connections.close())
        self.presenter.adopt()
        self.presenter.keeping.begin(data_directory())

    @property
    def state(self) -> WorkbenchState:
        """State of the workbench."""
        return self.presenter.state

    def showEvent(self, event: QShowEvent) -> None:
        """Attach the overlay to the canvas of the dock's present window."""
        super().showEvent(event)
        if self.overlay is None and (canvas := canvas_in(self.window())) is not None:
            self.overlay = overlay = Overlay(canvas)
            closing = ClosingWords(self.window(), self.state)
            self.connections.add(partial(_put_away, closing))
            self.connections.add(partial(_put_away, overlay))
            self.connections.add(overlay.bind(self.presenter, self._viewer()).close)
            self.presenter.prepare()

    def changeEvent(self, event: QEvent) -> None:
        """Go once napari has taken this out of its dock: it would live on, as its presenter knows it."""
        super().changeEvent(event)
        if event.type() != QEvent.Type.ParentChange:
            return
        if self.parentWidget() is not None:
            self._docked = True
        elif self._docked:
            self.connections.close()
            self.deleteLater()

    def sizeHint(self) -> QSize:
        """Return the initial size of the dock."""
        return QSize(340, 760)

    # --- layout

    def _lay_out(self) -> None:
        self.panels = (
            *(self.section, self.colour, self.select, self.edits, self.model, self.adapt),
            *(self.synthesize, self.results, self.compare, self.spot, self.evaluate),
        )
        self.folds = {
            "spot": Fold("Spot close-up", self.spot, unfolded=False, inner=True),
            "synthesize": Fold("How it is made", self.synthesize, unfolded=False, inner=True),
            "model": Fold("Model", self.model, unfolded=False, inner=True),
            "adapt": Fold("Adapt to this section", self.adapt, unfolded=False, inner=True),
            "evaluate": Fold("Evaluate", self.evaluate, unfolded=False, inner=True),
        }
        advanced = boxed(
            column(*(self.folds[name] for name in ("synthesize", "model", "adapt", "evaluate")), spacing=2)
        )
        self.advanced = Fold("Advanced", advanced, unfolded=False)
        nothing = Text("quiet", "No results yet. Choose spots, edit them if you like, and press Run.")
        self.made = boxed(column(self.results, self.compare, self.folds["spot"]))
        self.nothing = boxed(column(nothing))
        self.pages = {
            "choose": boxed(column(self.select, self.colour, self.select.more, spacing=4)),
            "change": boxed(column(self.edits, self.synthesize.kind)),
            "see": boxed(column(self.nothing, self.made)),
        }
        self.steps = Choice(STEPS)
        for step in self.pages:
            self.steps.button(step).setProperty("step", True)
        self.steps.chosen.connect(self.show_step)
        panels = column(self.section, *self.pages.values(), self.advanced, spacing=6)
        panels.setContentsMargins(*MARGINS)
        panels.addStretch(1)
        self.scroll = QScrollArea()
        self.scroll.setWidgetResizable(True)
        self.scroll.setFrameShape(QFrame.Shape.NoFrame)
        self.scroll.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.scroll.setWidget(boxed(panels))
        top = column(self.kept, self.section.head, self.steps, spacing=6)
        top.setContentsMargins(*MARGINS)
        self.run_bar.setContentsMargins(*MARGINS)
        layout = column(top, self.scroll, self.run_bar, spacing=0)
        layout.setStretch(1, 1)
        self.setLayout(layout)
        self.setMinimumWidth(MIN_WIDTH)

    def show_step(self, step: str) -> None:
        """Show one of the three steps: choose, change, see."""
        self.steps.setValue(step)
        for name, page in self.pages.items():
            page.setVisible(name == step and self.state.section is not None)
        self.scroll.verticalScrollBar().setValue(0)

    def reveal(self, panel: QWidget) -> None:
        """Show a panel: its step, unfolded and scrolled into view."""
        part: Any = panel
        while part is not None and part is not self:
            if isinstance(part, Fold):
                part.unfold()
            for step, page in self.pages.items():
                if part is page:
                    self.show_step(step)
            part = part.parentWidget()
        QApplication.sendPostedEvents(None, QEvent.Type.LayoutRequest)
        self.scroll.ensureWidgetVisible(panel)

    def _use_theme(self, event: Any = None) -> None:
        from napari.utils.theme import get_theme

        viewer = self._viewer()
        if viewer is None:
            return
        red, green, blue = get_theme(viewer.theme).background.as_rgb_tuple()[:3]
        dark = red + green + blue < 384
        for text in self.findChildren(Text):
            text.use_theme(dark)
        kinds = ("QPushButton", "QToolButton", "QComboBox", "QAbstractSpinBox", "QLineEdit", "QListWidget", "QSlider")
        focused = ", ".join(f"{kind}:focus" for kind in kinds)
        self.setStyleSheet(
            f"{focused} {{ border: 1px solid {LINK[dark]}; }}"  # napari's own marks the focus hardly
            "QPushButton[primary=true]:enabled { background: #0a64b4; color: white; font-weight: bold; }"
            "QPushButton[primary=true]:enabled:hover { background: #1176cf; }"
            "QPushButton[step=true] { background: transparent; border-radius: 0; }"
            f"QPushButton[step=true]:checked {{ font-weight: bold; border-bottom: 2px solid {LINK[dark]}; }}"
            f"QFrame#line {{ background: {COLOURS[dark]['quiet']}; border: none; }}"
        )

    # --- what goes across panels

    def _use_state(self) -> None:
        state, known = self.state, len(self.state.results)

        def show_section() -> None:
            there = state.section is not None
            self.steps.setVisible(there)
            for name in ("synthesize", "adapt", "evaluate"):
                self.folds[name].setVisible(there)
            self.show_step("choose")

        def show_results() -> None:
            nonlocal known
            self.made.setVisible(bool(state.results))
            self.nothing.setVisible(not state.results)
            new, known = len(state.results) > known, len(state.results)
            # made here, not read back; and not while a stroke is drawn, whose page this is
            if new and state.results[-1].result is not None and not self.presenter.hand.holding:
                self.show_step("see")

        def show_brush() -> None:
            if state.tool == "brush":
                self.show_step("change")

        def show_offered() -> None:
            if state.offered:
                self.reveal(self.section.public.download)

        self.presenter.ask = lambda *asked: ask_to_replace(self.window(), *asked)
        self.connections.add(partial(setattr, self.presenter, "ask", unasked))
        self.presenter.after_removal = partial(QTimer.singleShot, 0)
        self.connections.add(partial(setattr, self.presenter, "after_removal", lambda do: None))
        for one in (self.section.details, self.section.another):
            one.clicked.connect(lambda: self.scroll.verticalScrollBar().setValue(0))  # what it shows lies at the top
        self.section.others.clicked.connect(lambda: self.reveal(self.model.checkpoint))
        self.folds["spot"].unfolded_changed.connect(self.spot.unfolded)
        shows = (
            ("section", show_section),
            ("results", show_results),
            ("tool", show_brush),
            ("offered", show_offered),
        )
        self.connections.add(connect_state(state.events, *shows).close)

    def _use_preferences(self, first: bool = False) -> None:
        """Apply napari's preferences, now and whenever they change."""
        chosen, presenter = read_preferences(), self.presenter
        presenter.runs.live_preview = chosen.live_preview
        presenter.baseline_mode = chosen.compare_mode
        self.compare.use_pace(chosen.blink_ms)
        if not first:
            return
        if presenter.state.checkpoint is None and presenter.state.model == ModelChoice() and chosen.device != "auto":
            presenter.state.model = ModelChoice(device=chosen.device)
        if (events := preference_events()) is not None:

            def follow(event: Any = None) -> None:
                self._use_preferences()

            events.connect(follow)
            self.connections.add(partial(events.disconnect, follow))

    def _use_keys(self, viewer: Any) -> None:
        presenter, compare = self.presenter, self.compare
        actions: dict[str, Callable[[], Any]] = {
            "run": presenter.run,
            "again": partial(presenter.run, again=True),
            "stop": presenter.stop,
            "flip": presenter.compare.flip,
            "baseline": presenter.compare_with_baseline,
            **{mode: partial(compare.toggle, mode) for mode in ("grid", "swipe", "blink", "fade")},
        }
        buttons = {"stop": self.run_bar.stop, "baseline": compare.baseline}
        buttons |= {mode: compare.mode.button(mode) for mode in ("grid", "swipe", "blink", "fade")}
        for name, one in buttons.items():
            one.setToolTip(with_key(one.toolTip(), name))
        keys = {RUN_KEYS[name][0]: action for name, action in actions.items()}
        self.connections.add(bind_keys(viewer, self, {**keys, **paint_actions(presenter)}))


def _put_away(part: QObject) -> None:
    with suppress(RuntimeError):  # with the window it is gone already
        part.deleteLater()
