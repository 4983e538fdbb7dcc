"""Choosing spots."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from qtpy.QtCore import QLocale, Signal
from qtpy.QtGui import QDoubleValidator
from qtpy.QtWidgets import QComboBox, QLabel, QLineEdit, QPushButton, QWidget

from ..state import ColourScale
from .common import Choice, Fold, Text, column, named, row


class SelectPanel(QWidget):  # type: ignore[misc,unused-ignore]
    """Tools for the selection, and how many spots are selected."""

    toolChosen = Signal(str)
    combineChosen = Signal(str)
    allRequested = Signal()
    clearRequested = Signal()
    invertRequested = Signal()
    growRequested = Signal(int)
    categoryRequested = Signal(str)
    valuesRequested = Signal(float, float)
    saveRequested = Signal(str)
    recallRequested = Signal(str)
    deleteRequested = Signal(str)

    def __init__(self) -> None:
        super().__init__()
        self._by: str | None = None
        self.tool = Choice(
            (
                ("click", "Click", "Click spots in the viewer. Shift adds one or takes it away. Ctrl+1"),
                (
                    "rectangle",
                    "Rectangle",
                    "Drag a rectangle over spots. Shift adds, Alt or Control takes away. Ctrl+2",
                ),
                ("lasso", "Lasso", "Draw around spots in the viewer. Shift adds, Alt or Control takes away. Ctrl+3"),
            )
        )
        self.combine = Choice(
            (
                ("replace", "New", "The next choice replaces the selection"),
                ("add", "Add", "The next choice is added to the selection"),
                ("subtract", "Subtract", "The next choice is taken from the selection"),
            )
        )
        self.all = named(QPushButton("All"), "Select all spots", "Select every spot")
        self.clear = named(QPushButton("Clear"), "Clear the selection", "Select nothing")
        self.invert = named(QPushButton("Invert"), "Invert the selection", "Select what is not selected")
        self.grow = named(QPushButton("Grow"), "Grow by a ring", "Add the spots next to the selection, one ring")
        self.shrink = named(QPushButton("Shrink"), "Shrink by a ring", "Take away the outermost ring of the selection")
        self.count = QLabel()
        self.count.setAccessibleName("Selected spots")
        self._by_colour()
        self._by_name()
        self._connect()
        buttons = (self.all, self.clear, self.invert, self.grow, self.shrink)
        for button in buttons:
            button.setMinimumWidth(36)
        bar = row(*buttons, stretch=None)
        bar.setSpacing(3)
        self.setLayout(column(self.tool, self.combine, bar, self.count, self.colour_fold, self.name_fold))
        self.show_count(0, None)
        self.show_scale(ColourScale())
        self.show_named({})

    def _by_colour(self) -> None:
        self.what = Text("quiet")
        self.category = named(QComboBox(), "Category", "Category of the column that the spots are coloured by")
        self.category.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.category.setMinimumContentsLength(8)
        self.low, self.high = self._limit("least", "Least value"), self._limit("most", "Greatest value")
        self.choose = named(
            QPushButton("Select"), "Select by colour", "Select the spots with this category or these values"
        )
        self._range = QWidget()
        limits = row(QLabel("from"), self.low, QLabel("to"), self.high, stretch=1)
        limits.setStretch(3, 1)
        self._range.setLayout(limits)
        inside = QWidget()
        inside.setLayout(column(self.what, row(self.category, self._range, self.choose)))
        self.colour_fold = Fold("By category or value", inside, unfolded=False, inner=True)

    def _by_name(self) -> None:
        self.names = named(
            QComboBox(), "Named selections", "Type a name and keep the selection, or choose one to recall it"
        )
        self.names.setEditable(True)
        self.names.setInsertPolicy(QComboBox.InsertPolicy.NoInsert)
        self.names.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.names.setMinimumContentsLength(8)
        self.names.lineEdit().setPlaceholderText("name of a selection")
        self.keep = named(QPushButton("Keep"), "Keep the selection", "Keep the selected spots under this name")
        self.forget = named(QPushButton("Delete"), "Delete the name", "Forget this named selection; the spots stay")
        inside = QWidget()
        inside.setLayout(row(self.names, self.keep, self.forget))
        self.name_fold = Fold("Named selections", inside, unfolded=False, inner=True)

    def _connect(self) -> None:
        self.tool.chosen.connect(self.toolChosen)
        self.combine.chosen.connect(self.combineChosen)
        self.all.clicked.connect(self.allRequested)
        self.clear.clicked.connect(self.clearRequested)
        self.invert.clicked.connect(self.invertRequested)
        self.grow.clicked.connect(lambda: self.growRequested.emit(1))
        self.shrink.clicked.connect(lambda: self.growRequested.emit(-1))
        self.choose.clicked.connect(self._choose)
        self.keep.clicked.connect(lambda: self.saveRequested.emit(self.names.currentText()))
        self.forget.clicked.connect(lambda: self.deleteRequested.emit(self.names.currentText()))
        self.names.activated.connect(lambda _: self.recallRequested.emit(self.names.currentText()))

    def show_count(self, selected: int, total: int | None) -> None:
        """Show how many spots are selected."""
        self.setEnabled(total is not None)
        self.count.setText("" if total is None else f"{selected:,} of {total:,} spots selected")

    def show_scale(self, scale: ColourScale) -> None:
        """Offer the categories or the range of what the spots are coloured by."""
        known = scale.gene is not None
        self.what.show_text(f"{scale.gene}" if known else "Colour the spots first: their values are chosen from here.")
        self.category.setVisible(known and bool(scale.categories))
        self._range.setVisible(known and not scale.categories)
        self.choose.setVisible(known)
        names: Sequence[str] = [name for name, _, _ in scale.categories]
        if names != [self.category.itemText(k) for k in range(self.category.count())]:
            self.category.clear()
            self.category.addItems(names)
        if known and not scale.categories and scale.gene != self._by:
            low, high = scale.limits
            self.low.setText(f"{low + (high - low) / 2:.2f}")
            self.high.setText("")
        self._by = scale.gene

    def show_named(self, selections: Mapping[str, Sequence[str]]) -> None:
        """Show the named selections."""
        text = self.names.currentText()
        self.names.blockSignals(True)
        self.names.clear()
        for name, ids in selections.items():
            self.names.addItem(name)
            self.names.setItemData(self.names.count() - 1, f"{len(ids):,} spots")
        self.names.setCurrentText(text if text in selections or not selections else next(reversed(list(selections))))
        self.names.blockSignals(False)

    def _limit(self, hint: str, tip: str) -> QLineEdit:
        field = QLineEdit()
        validator = QDoubleValidator(field)
        validator.setLocale(QLocale.c())
        field.setValidator(validator)
        field.setPlaceholderText(hint)
        field.setMinimumWidth(40)
        return named(field, tip, f"{tip} of the spots to select; empty for no limit")

    def _choose(self) -> None:
        if self.category.isVisibleTo(self):
            self.categoryRequested.emit(self.category.currentText())
        else:
            low, high = self.low.text(), self.high.text()
            self.valuesRequested.emit(float(low) if low else -math.inf, float(high) if high else math.inf)
