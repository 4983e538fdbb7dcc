"""The runs of this viewer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import QAbstractItemView, QFileDialog, QListWidget, QListWidgetItem, QPushButton, QWidget

from ..state import ResultEntry
from .common import Text, column, named, row

NUMBER = Qt.ItemDataRole.UserRole
MOST_LINES = 6


class ResultsPanel(QWidget):  # type: ignore[misc,unused-ignore]
    """A list of results: ticked ones are shown; the chosen one is saved or compared."""

    visibleChanged = Signal(int, bool)
    chosenChanged = Signal(object)
    saveRequested = Signal(int, str)
    compareToggled = Signal(bool)

    def __init__(self) -> None:
        super().__init__()
        self._entries: dict[int, ResultEntry] = {}
        self.list = named(QListWidget(), "Results", "Tick to show a result; choose one to save or compare it")
        self.list.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        self.list.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.list.setTextElideMode(Qt.TextElideMode.ElideMiddle)
        self.facts = Text("quiet")
        self.save = named(QPushButton("Save…"), "Save the result", "Write the chosen result into a SpatialData .zarr")
        self.compare = named(
            QPushButton("Side by side"),
            "Side by side",
            "Show the slide and the chosen result side by side, with linked zoom",
        )
        self.compare.setCheckable(True)
        self.list.itemChanged.connect(self._ticked)
        self.list.currentItemChanged.connect(self._chosen)
        self.save.clicked.connect(self._save)
        self.compare.clicked.connect(self.compareToggled)
        self.setLayout(column(self.list, self.facts, row(self.compare, self.save, stretch=None)))
        self.show_results((), None)

    def value(self) -> int | None:
        """Return the number of the chosen result."""
        item = self.list.currentItem()
        return None if item is None else int(item.data(NUMBER))

    def show_results(self, entries: Sequence[ResultEntry], chosen: int | None) -> None:
        """Show the results, the latest first."""
        self._entries = {entry.number: entry for entry in entries}
        self.list.blockSignals(True)
        self.list.clear()
        for entry in reversed(entries):
            item = QListWidgetItem(entry.name)
            item.setData(NUMBER, entry.number)
            item.setFlags(item.flags() | Qt.ItemFlag.ItemIsUserCheckable)
            item.setCheckState(Qt.CheckState.Checked if entry.visible else Qt.CheckState.Unchecked)
            item.setToolTip(entry.name)
            self.list.addItem(item)
            if entry.number == chosen:
                self.list.setCurrentItem(item)
        self.list.blockSignals(False)
        lines = min(max(len(entries), 1), MOST_LINES)
        self.list.setFixedHeight(lines * max(self.list.sizeHintForRow(0), 18) + 6)
        self.setEnabled(bool(entries))
        self._describe()

    def show_compare(self, on: bool) -> None:
        """Show whether the comparison is on."""
        self.compare.setChecked(on)

    def _describe(self) -> None:
        entry = self._entries.get(self.value() or 0)
        self.save.setEnabled(entry is not None)
        self.compare.setEnabled(entry is not None)
        if entry is None:
            self.facts.show_text("" if self._entries else "No run yet.")
            return
        result = entry.result
        guidance = result.plan.guidance
        state = "" if result.complete else f" of {len(result.plan)}, stopped"
        saved = f"\nSaved in {entry.saved}" if entry.saved else "\nNot saved yet."
        self.facts.show_text(
            f"{len(result.done)} patches{state}; seed {result.plan.request.seed}, {result.plan.steps} steps, guidance "
            f"{guidance.expression:g} (expression) and {guidance.morphology:g} (morphology), "
            f"morphology: {result.plan.request.morphology}.{saved}"
        )

    def _ticked(self, item: QListWidgetItem) -> None:
        self.visibleChanged.emit(int(item.data(NUMBER)), item.checkState() == Qt.CheckState.Checked)

    def _chosen(self) -> None:
        self._describe()
        self.chosenChanged.emit(self.value())

    def _save(self) -> None:
        number = self.value()
        if number is None:
            return
        section = self._entries[number].result.section
        own = section.path if section.kind == "spatialdata" and section.path is not None else None
        suggestion = own or (section.path or Path(section.name)).with_suffix(".zarr")
        path, _ = QFileDialog.getSaveFileName(
            self,
            "Save into a SpatialData store: a new one, or one to add to",
            str(suggestion),
            "SpatialData (*.zarr)",
            options=QFileDialog.Option.DontConfirmOverwrite,  # nothing is overwritten: a new element is added
        )
        if path:
            self.saveRequested.emit(number, path if path.endswith(".zarr") else f"{path}.zarr")
