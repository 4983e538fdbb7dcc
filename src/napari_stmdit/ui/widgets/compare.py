"""Comparison of a result with the slide or another result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qtpy.QtCore import Qt, QTimer, Signal
from qtpy.QtWidgets import QLabel, QSlider, QWidget
from superqt.utils import qthrottled

from ..presenter import Presenter
from ..state import Comparison, ResultEntry
from .common import Choice, Connections, blocked, boxed, button, column, combo, connect_state, named, row

MODES = (
    ("off", "Off", "End the comparison and restore the viewer"),
    ("grid", "Side", "Side by side (below each other in a high canvas) with linked pan and zoom, names and scale bars"),
    ("swipe", "Swipe", "A seam across the tissue: drag it in the viewer, or move the slider"),
    ("blink", "Blink", "Show one and the other in turn"),
    ("fade", "Fade", "Fade one into the other with the slider"),
)
_STEPS = 200


class ComparePanel(QWidget):  # type: ignore[misc,unused-ignore]
    """Mode and partner of the chosen result's comparison."""

    modeChosen = Signal(str, object)
    positionChanged = Signal(float)

    def __init__(self) -> None:
        super().__init__()
        self.blink_ms = 700
        self._left: int | None = None
        self.against = combo("Compare with", "What the chosen result is compared with", length=8)
        self.mode = Choice(MODES)
        self.mode.setValue("off")
        self.slider = named(
            QSlider(Qt.Orientation.Horizontal), "Seam or opacity", "Place of the seam, or how much is shown"
        )
        self.slider.setRange(0, _STEPS)
        self.left, self.right = QLabel(), QLabel()
        self.baseline = button(
            "Compare with baseline",
            "Compare with baseline",
            "Run the chosen result's request without its edits, with the same noise, and compare: what differs is the effect of "
            "the edits",
            once=True,
        )
        self._timer = QTimer(self)
        self.mode.chosen.connect(self._chosen)
        self.against.activated.connect(self._against_changed)
        self.slider.valueChanged.connect(self._moved)
        self._slider_row = boxed(row(self.left, self.slider, self.right, stretch=1))
        self.setLayout(
            column(row(QLabel("Against"), self.against, stretch=1), self.mode, self._slider_row, self.baseline)
        )
        self.show_results((), None)
        self.show_comparison(None)

    def bind(self, presenter: Presenter) -> Connections:
        """Connect with a presenter; return the connections."""
        state, compare = presenter.state, presenter.compare

        def choose(mode: Any, left: int | None) -> None:
            if mode == "off":
                compare.stop()
            else:
                compare.start(mode, left=left)
            self.show_comparison(state.comparison)  # also where it could not be started

        self.modeChosen.connect(choose)
        self.positionChanged.connect(compare.move)
        self._timer.timeout.connect(compare.flip)
        self.baseline.clicked.connect(lambda: presenter.compare_with_baseline())
        return connect_state(
            state.events,
            ("results chosen_result", lambda: self.show_results(state.results, state.chosen_result)),
            ("comparison", lambda: self.show_comparison(state.comparison)),
        )

    def toggle(self, mode: str) -> None:
        """Toggle a mode of comparison."""
        self._chosen("off" if mode == self.mode.value() else mode)

    def use_pace(self, milliseconds: int) -> None:
        """Set the time per image while blinking."""
        self.blink_ms = milliseconds
        if self._timer.isActive():
            self._timer.start(milliseconds)

    def show_results(self, entries: Sequence[ResultEntry], chosen: int | None) -> None:
        """Offer the slide and every result but the chosen one."""
        present = self._left
        with blocked(self.against):
            self.against.clear()
            self.against.addItem("the slide", None)
            for entry in reversed(entries):
                if entry.number != chosen:
                    self.against.addItem(entry.label, entry.number)
                    self.against.setItemData(self.against.count() - 1, entry.name, Qt.ItemDataRole.ToolTipRole)
            self.against.setCurrentIndex(max(0, self.against.findData(present)))
        found = next((e for e in entries if e.number == chosen), None)
        self.setEnabled(found is not None)
        self.baseline.setVisible(found is not None and any(edit.enabled for edit in found.request.edits))
        real = found is not None and found.counterfactual
        self.baseline.setText("Compare with the slide" if real else "Compare with baseline")

    def show_comparison(self, comparison: Comparison | None) -> None:
        """Show the active comparison."""
        mode = "off" if comparison is None else comparison.mode
        self.mode.setValue(mode)
        if comparison is not None:
            self._left = comparison.left
            self.against.setCurrentIndex(max(0, self.against.findData(comparison.left)))
        self._slider_row.setVisible(mode in ("swipe", "fade"))
        self.left.setText("0" if mode == "fade" else "◂")
        self.right.setText("1" if mode == "fade" else "▸")
        if comparison is not None and not self.slider.isSliderDown():
            with blocked(self.slider):
                self.slider.setValue(round(_STEPS * comparison.position))
        if mode != "blink":
            self._timer.stop()
        elif not self._timer.isActive():
            self._timer.start(self.blink_ms)

    # --- private

    def _chosen(self, mode: str) -> None:
        self.modeChosen.emit(mode, self.against.currentData())

    def _against_changed(self) -> None:
        self._left = self.against.currentData()
        if self.mode.value() != "off":
            self._chosen(self.mode.value())

    @qthrottled(timeout=50)  # type: ignore[untyped-decorator,unused-ignore]
    def _moved(self, value: int) -> None:
        self.positionChanged.emit(value / _STEPS)
