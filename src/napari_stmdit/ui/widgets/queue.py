"""Runs that wait."""

from __future__ import annotations

from collections.abc import Sequence

from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import QLabel, QListWidget, QListWidgetItem, QPushButton, QWidget

from ..state import QueuedRun
from .common import column, named, row

MOST_LINES = 3


class QueuePanel(QWidget):  # type: ignore[misc,unused-ignore]
    """The runs that wait for the present one; hidden where none does."""

    removeRequested = Signal(int)
    resumeRequested = Signal()

    def __init__(self) -> None:
        super().__init__()
        self.head = QLabel()
        self.list = named(QListWidget(), "Queued runs", "Runs that start when the present one has ended well")
        self.list.setTextElideMode(Qt.TextElideMode.ElideRight)
        self.list.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.remove = named(QPushButton("Remove"), "Remove from the queue", "Take the chosen run out of the queue")
        self.resume = named(QPushButton("Continue"), "Continue the queue", "Start the next queued run")
        self.remove.clicked.connect(self._remove)
        self.resume.clicked.connect(self.resumeRequested)
        self.setLayout(column(self.head, self.list, row(self.remove, self.resume, stretch=None), spacing=3))
        self.show_queue((), False)

    def show_queue(self, queue: Sequence[QueuedRun], held: bool) -> None:
        """Show what waits, and whether it waits for the user."""
        self.setVisible(bool(queue))
        self.head.setText(f"{len(queue)} queued" + (", held" if held else ""))
        chosen = max(self.list.currentRow(), 0)
        self.list.clear()
        for entry in queue:
            item = QListWidgetItem(entry.title)
            item.setData(Qt.ItemDataRole.UserRole, entry.number)
            item.setToolTip(entry.title)
            self.list.addItem(item)
        if queue:
            self.list.setCurrentRow(min(chosen, len(queue) - 1))
        lines = min(max(len(queue), 1), MOST_LINES)
        self.list.setFixedHeight(lines * max(self.list.sizeHintForRow(0), 16) + 6)
        self.resume.setEnabled(held)

    def _remove(self) -> None:
        item = self.list.currentItem()
        if item is not None:
            self.removeRequested.emit(int(item.data(Qt.ItemDataRole.UserRole)))
