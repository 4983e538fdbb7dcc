"""Choosing spots."""

from __future__ import annotations

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QLabel, QPushButton, QWidget

from .common import Choice, column, named, row


class SelectPanel(QWidget):  # type: ignore[misc,unused-ignore]
    """Tools for the selection, and how many spots are selected."""

    toolChosen = Signal(str)
    combineChosen = Signal(str)
    allRequested = Signal()
    clearRequested = Signal()
    invertRequested = Signal()

    def __init__(self) -> None:
        super().__init__()
        self.tool = Choice(
            (
                ("click", "Click", "Click spots in the viewer. Shift-click adds one or takes it away."),
                ("lasso", "Lasso", "Draw around spots in the viewer. Shift adds, Control takes away."),
            )
        )
        self.combine = Choice(
            (
                ("replace", "New", "The next click or lasso replaces the selection"),
                ("add", "Add", "The next click or lasso is added to the selection"),
                ("subtract", "Subtract", "The next click or lasso is taken from the selection"),
            )
        )
        self.all = named(QPushButton("All"), "Select all spots", "Select every spot")
        self.clear = named(QPushButton("Clear"), "Clear the selection", "Select nothing")
        self.invert = named(QPushButton("Invert"), "Invert the selection", "Select what is not selected")
        self.count = QLabel()
        self.count.setAccessibleName("Selected spots")
        self.tool.chosen.connect(self.toolChosen)
        self.combine.chosen.connect(self.combineChosen)
        self.all.clicked.connect(self.allRequested)
        self.clear.clicked.connect(self.clearRequested)
        self.invert.clicked.connect(self.invertRequested)
        for button in (self.all, self.clear, self.invert):
            button.setMinimumWidth(40)
        self.setLayout(
            column(self.tool, self.combine, row(self.all, self.clear, self.invert, stretch=None), self.count)
        )
        self.show_count(0, None)

    def show_count(self, selected: int, total: int | None) -> None:
        """Show how many spots are selected."""
        self.setEnabled(total is not None)
        self.count.setText("" if total is None else f"{selected:,} of {total:,} spots selected")
