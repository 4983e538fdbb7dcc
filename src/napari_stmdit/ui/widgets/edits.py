"""Painting virtual expression: the form of an edit, the brush, and the list of edits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from qtpy.QtCore import QEvent, QObject, Qt, Signal
from qtpy.QtWidgets import (
    QCheckBox,
    QDoubleSpinBox,
    QFileDialog,
    QFrame,
    QHeaderView,
    QLabel,
    QLineEdit,
    QPushButton,
    QSlider,
    QTableWidget,
    QTableWidgetItem,
    QVBoxLayout,
    QWidget,
)

from ...expression.edits import Mover
from ...expression.reach import Reach
from ...intent import Edit
from ..state import Brush, EditDraft
from .common import Fold, Text, column, labelled, named, row
from .draft import PROFILES, DraftForm

TABLE = "Tables (*.csv)"
YAML = "Edits (*.yaml *.yml)"


class BrushForm(QWidget):  # type: ignore[misc,unused-ignore]
    """A lens on a `Brush`."""

    valueChanged = Signal(object)

    def __init__(self) -> None:
        super().__init__()
        self._value = Brush()
        self.radius = QDoubleSpinBox()
        self.radius.setRange(1, 5000)
        self.radius.setDecimals(0)
        self.radius.setSingleStep(25)
        named(self.radius, "Brush radius", "Radius of the brush on the tissue; [ and ] change it")
        self.softness = self._percent("Softness", "Part of the radius over which the weight falls off to nothing")
        self.strength = self._percent(
            "Brush strength", "Weight that one stroke gives; the next adds its share of the rest"
        )
        self.erase = named(QCheckBox("Erase"), "Erase", "Take weight away instead; so does Alt while painting")
        self.radius.valueChanged.connect(lambda value: self._change(radius_um=float(value)))
        self.softness.valueChanged.connect(lambda value: self._change(softness=value / 100))
        self.strength.valueChanged.connect(lambda value: self._change(strength=value / 100))
        self.erase.toggled.connect(lambda on: self._change(erase=on))
        self.setLayout(
            labelled(
                ("Radius", row(self.radius, self.erase)),
                ("Softness", self.softness),
                ("Strength", self.strength),
            )
        )
        self.show_unit(True)
        self.setValue(Brush())

    def value(self) -> Brush:
        """Return the brush."""
        return self._value

    def setValue(self, value: Brush) -> None:
        """Show a brush."""
        self._value = value
        controls = (self.radius, self.softness, self.strength, self.erase)
        for control in controls:
            control.blockSignals(True)
        self.radius.setValue(value.radius_um)
        self.softness.setValue(round(100 * value.softness))
        self.strength.setValue(round(100 * value.strength))
        self.erase.setChecked(value.erase)
        for control in controls:
            control.blockSignals(False)

    def show_unit(self, calibrated: bool) -> None:
        """Say what the radius is measured in."""
        self.radius.setSuffix(" µm" if calibrated else " px")

    def _percent(self, name: str, tip: str) -> QSlider:
        slider = QSlider(Qt.Orientation.Horizontal)
        slider.setRange(0, 100)
        slider.setPageStep(10)
        slider.setMinimumWidth(60)
        return named(slider, name, tip)

    def _change(self, **changes: Any) -> None:
        value = replace(self._value, **changes)
        if value != self._value:
            self.setValue(value)
            self.valueChanged.emit(value)


class EditRow(QFrame):  # type: ignore[misc,unused-ignore]
    """One edit of the list: shown or not, its name, its strength, and a mark where some of its genes have no effect."""

    picked = Signal(int)
    enabledChanged = Signal(int, bool)
    renamed = Signal(int, str)
    strengthChanged = Signal(int, float)

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number
        self._chosen: bool | None = None
        place = f"Edit {number + 1}"
        self.eye = named(QCheckBox(), f"{place}: on", "Whether this edit is applied")
        self.name = named(
            QLineEdit(), f"{place}: name", "Name of the edit; click to choose the edit, type to rename it"
        )
        self.name.setFrame(False)
        self.name.setMinimumWidth(50)
        self.mark = QLabel("⚠")
        self.mark.setAccessibleName(f"{place}: warning")
        self.strength = QSlider(Qt.Orientation.Horizontal)
        self.strength.setRange(0, 100)
        self.strength.setFixedWidth(60)
        named(self.strength, f"{place}: strength", "How strongly the edit acts, 0 to 100 %")
        self.percent = QLabel()
        self.percent.setFixedWidth(50)
        self.percent.setAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
        layout = row(self.eye, self.name, self.mark, self.strength, self.percent, stretch=1)
        layout.setContentsMargins(4, 2, 4, 2)
        self.setLayout(layout)
        self.eye.toggled.connect(lambda on: self.enabledChanged.emit(self.number, on))
        self.name.editingFinished.connect(self._rename)
        self.strength.valueChanged.connect(lambda value: self.strengthChanged.emit(self.number, value / 100))
        self.name.installEventFilter(self)

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        """Choose the edit whose name is clicked."""
        if event.type() == QEvent.Type.FocusIn:
            self.picked.emit(self.number)
        return False

    def mousePressEvent(self, event: Any) -> None:
        """Choose the edit that is clicked."""
        self.picked.emit(self.number)

    def show_edit(self, edit: Edit, chosen: bool, warning: str) -> None:
        """Show an edit."""
        for control in (self.eye, self.name, self.strength):
            control.blockSignals(True)
        self.eye.setChecked(edit.enabled)
        if not (self.name.hasFocus() and self.name.isModified()):
            self.name.setText(edit.name or edit.operation)
            self.name.setCursorPosition(0)
        if round(100 * edit.strength) != self.strength.value():
            self.strength.setValue(round(100 * edit.strength))
        for control in (self.eye, self.name, self.strength):
            control.blockSignals(False)
        self.percent.setText(f"{100 * edit.strength:.0f} %")
        self.mark.setVisible(bool(warning))
        self.mark.setToolTip(warning)
        if chosen != self._chosen:  # a style sheet is costly: Qt polishes everything under it anew
            self._chosen = chosen
            tint = "rgba(255, 158, 0, 60)" if chosen else "transparent"
            self.setStyleSheet(
                f"EditRow {{ background: {tint}; border-radius: 3px; }}"
                "QLineEdit, QLabel, QCheckBox { background: transparent; }"
            )

    def _rename(self) -> None:
        if self.name.isModified():
            self.name.setModified(False)
            self.renamed.emit(self.number, self.name.text())


class EditList(QWidget):  # type: ignore[misc,unused-ignore]
    """A lens on a tuple of edits. Rows are kept while the list changes, so that a slider can be dragged."""

    picked = Signal(int)
    enabledChanged = Signal(int, bool)
    renamed = Signal(int, str)
    strengthChanged = Signal(int, float)

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[EditRow] = []
        self._rows = QVBoxLayout(self)
        self._rows.setContentsMargins(0, 0, 0, 0)
        self._rows.setSpacing(1)

    def show_edits(self, edits: Sequence[Edit], chosen: int | None, warnings: Sequence[str]) -> None:
        """Show edits, in the order in which they are applied."""
        while len(self.rows) > len(edits):
            gone = self.rows.pop()
            self._rows.removeWidget(gone)
            gone.hide()
            gone.deleteLater()
        while len(self.rows) < len(edits):
            new = EditRow(len(self.rows))
            for signal in ("picked", "enabledChanged", "renamed", "strengthChanged"):
                getattr(new, signal).connect(getattr(self, signal))
            self._rows.addWidget(new)
            self.rows.append(new)
        for number, (line, edit, warning) in enumerate(zip(self.rows, edits, warnings, strict=True)):
            line.show_edit(edit, number == chosen, warning)
        self.setVisible(bool(edits))


class EditsPanel(QWidget):  # type: ignore[misc,unused-ignore]
    """The form, the brush and the list, with what can be done to them."""

    brushToggled = Signal(bool)
    addRequested = Signal(bool)
    """Whether to all spots."""
    newRequested = Signal()
    spotsRequested = Signal()
    undoRequested = Signal()
    redoRequested = Signal()
    moveRequested = Signal(int)
    deleteRequested = Signal()
    loadRequested = Signal(str)
    saveRequested = Signal(str)
    setsRequested = Signal(str)
    profileSaveRequested = Signal(str)
    moversSaveRequested = Signal(str)

    def __init__(self) -> None:
        super().__init__()
        self.form, self.brush, self.list = DraftForm(), BrushForm(), EditList()
        self.paint = self._button("Paint", "Paint with the brush", "Paint the edit over spots with the mouse. Ctrl+4")
        self.paint.setCheckable(True)
        self.to_selected = self._button(
            "To selected", "Apply to selected spots", "Add this edit for the selected spots"
        )
        self.to_all = self._button("To all", "Apply to all spots", "Add this edit for every spot")
        self.new = self._button("New edit", "New edit", "Leave the chosen edit as it is and begin another")
        self.spots = self._button("Its spots", "Select its spots", "Select the spots that the chosen edit changes")
        self.up = self._button("Up", "Move the edit up", "Edits are applied from the top")
        self.down = self._button("Down", "Move the edit down", "Edits are applied from the top")
        self.delete = self._button("Delete", "Delete the edit", "Take the chosen edit out of the list")
        self.undo = self._button("Undo", "Undo", "Take back the last change of the edits. Ctrl+Z")
        self.redo = self._button("Redo", "Redo", "Do again what was taken back. Ctrl+Shift+Z")
        self.load = self._button("Load…", "Load edits", "Read edits from a YAML file")
        self.save = self._button(
            "Save…", "Save edits", "Write the edits into a YAML file, for 'stmdit synthesize --edits'"
        )
        self.sets = self._button("GMT…", "Import gene sets", "Add the gene sets of a GMT file to the programs")
        self.keep = self._button(
            "Profile…", "Save a profile", "Write the mean expression of the selected spots, as a target"
        )
        self.movers = named(
            QTableWidget(0, 3),
            "Genes that move most",
            "Mean log(1 + counts per 10,000) over the spots that the edits act on, as measured and after all edits",
        )
        self.movers.setHorizontalHeaderLabels(["gene", "before", "after"])
        self.movers.verticalHeader().hide()
        self.movers.setEditTriggers(QTableWidget.EditTrigger.NoEditTriggers)
        self.movers.horizontalHeader().setSectionResizeMode(QHeaderView.ResizeMode.Stretch)
        self.movers.setFixedHeight(160)
        self.save_movers = self._button("CSV…", "Save the genes that move most", "Write this table as a CSV file")
        self.state_line, self.warning = Text("quiet"), Text("warning")
        self._lay_out()
        self._connect()
        self.show_edits((), None, ())
        self.show_undoable((False, False))

    def _lay_out(self) -> None:
        brush = Fold("Brush", self.brush, unfolded=True, inner=True)
        order = row(self.up, self.down, self.delete, self.undo, self.redo, stretch=None)
        files = row(self.load, self.save, self.sets, self.keep, stretch=None)
        for bar in (order, files):
            bar.setSpacing(3)
        most = QWidget()
        most.setLayout(column(self.movers, row(self.save_movers, stretch=None)))
        self.moving = Fold("Genes that move most", most, unfolded=False, inner=True)
        self._order = QWidget()
        self._order.setLayout(order)
        self.setLayout(
            column(
                self.form,
                row(self.paint, self.to_selected, self.to_all, stretch=None),
                brush,
                row(self.state_line, self.spots, self.new),
                self.list,
                self.warning,
                self.moving,
                self._order,
                files,
            )
        )

    def _connect(self) -> None:
        self.paint.clicked.connect(self.brushToggled)
        self.to_selected.clicked.connect(lambda: self.addRequested.emit(False))
        self.to_all.clicked.connect(lambda: self.addRequested.emit(True))
        self.new.clicked.connect(self.newRequested)
        self.spots.clicked.connect(self.spotsRequested)
        self.up.clicked.connect(lambda: self.moveRequested.emit(-1))
        self.down.clicked.connect(lambda: self.moveRequested.emit(1))
        self.delete.clicked.connect(self.deleteRequested)
        self.undo.clicked.connect(self.undoRequested)
        self.redo.clicked.connect(self.redoRequested)
        self.save_movers.clicked.connect(
            lambda: self._write("Save the genes that move most", TABLE, ".csv", self.moversSaveRequested)
        )
        self.load.clicked.connect(lambda: self._open("Load edits", YAML, self.loadRequested))
        self.sets.clicked.connect(lambda: self._open("Import gene sets", "Gene sets (*.gmt)", self.setsRequested))
        self.save.clicked.connect(lambda: self._write("Save edits", YAML, ".yaml", self.saveRequested))
        self.keep.clicked.connect(lambda: self._write("Save a profile", PROFILES, ".json", self.profileSaveRequested))

    # --- what is known

    def show_edits(self, edits: Sequence[Edit], chosen: int | None, reaches: Sequence[Reach]) -> None:
        """Show the list, and of the chosen edit what has no effect."""
        warnings = [reach.warning for reach in reaches]
        self.list.show_edits(edits, chosen, warnings)
        known = chosen is not None and chosen < len(edits)
        self.warning.show_text(warnings[chosen] if known and chosen is not None else "")
        self.state_line.show_text(
            f"Form and brush: edit {(chosen or 0) + 1}." if known else "Form and brush: a new edit."
        )
        self.new.setVisible(known)
        self.spots.setVisible(known)
        for button in (self.up, self.down, self.delete):
            button.setEnabled(known)
        self.save.setEnabled(bool(edits))

    def show_movers(self, movers: Sequence[Mover]) -> None:
        """Show the genes that the edits move most."""
        self.movers.setRowCount(len(movers))
        for place, mover in enumerate(movers):
            for at, text in enumerate((mover.gene, f"{mover.before:.2f}", f"{mover.after:.2f}")):
                self.movers.setItem(place, at, QTableWidgetItem(text))
        self.save_movers.setEnabled(bool(movers))

    def show_undoable(self, undoable: tuple[bool, bool]) -> None:
        """Say whether there is something to undo and to redo."""
        self.undo.setEnabled(undoable[0])
        self.redo.setEnabled(undoable[1])

    def show_selected(self, count: int, draft: EditDraft) -> None:
        """Offer what can be done with the form's edit: a swap names its own spots."""
        swap = draft.operation == "swap"
        self.paint.setEnabled(not swap)
        self.to_selected.setVisible(not swap)
        self.to_selected.setEnabled(count > 0)
        self.to_all.setText("Swap" if swap else "To all")
        self.keep.setEnabled(count > 0)

    def show_brushing(self, on: bool) -> None:
        """Show whether the brush is in hand."""
        self.paint.setChecked(on)

    # --- private

    def _button(self, text: str, name: str, tip: str) -> QPushButton:
        button = QPushButton(text)
        button.setMinimumWidth(36)
        return named(button, name, tip)

    def _open(self, title: str, kinds: str, signal: Any) -> None:
        path, _ = QFileDialog.getOpenFileName(self, title, "", kinds)
        if path:
            signal.emit(path)

    def _write(self, title: str, kinds: str, suffix: str, signal: Any) -> None:
        path, _ = QFileDialog.getSaveFileName(self, title, "", kinds)
        if path and not Path(path).suffix:
            path += suffix
            if Path(path).exists():  # the dialog asked about another name: let it ask about this one
                path, _ = QFileDialog.getSaveFileName(self, title, path, kinds)
        if path:
            signal.emit(path)
