"""Runs that wait."""

from __future__ import annotations

from collections.abc import Sequence

from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import QLabel, QListWidget, QListWidgetItem, QProgressBar, QPushButton, QWidget

from ...progress import Progress
from ..state import Message, QueuedRun, RunStatus
from .common import Text, column, named, row
from .keys import with_key
from .synthesize import duration

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


# Run, Stop, progress and the message: always in sight, below the panels.


RUN_TIP = "Synthesize patches for the selected spots"


class RunBar(QWidget):  # type: ignore[misc,unused-ignore]
    """One button that runs and stops, with progress, time to go and the last message."""

    runRequested = Signal()
    stopRequested = Signal()

    def __init__(self, queue: QueuePanel) -> None:
        super().__init__()
        self.run = named(QPushButton("Run"), "Run", RUN_TIP)
        self.stop = named(
            QPushButton("Stop"), "Stop", "End the run at its next denoising step; finished patches are kept"
        )
        self.bar = QProgressBar()
        self.bar.setRange(0, 1000)
        self.bar.setTextVisible(False)
        self.bar.setFixedHeight(6)
        named(self.bar, "Progress", "Progress of the run")
        self.count = Text("quiet")
        self.message = Text("info")
        self.message.setAccessibleName("Message")
        for button in (self.run, self.stop):
            button.setMinimumHeight(30)
        self.run.clicked.connect(self.runRequested)
        self.stop.clicked.connect(self.stopRequested)
        self.setLayout(column(self.message, self.bar, self.count, queue, row(self.run, self.stop), spacing=4))
        self.show_status(RunStatus.IDLE, "")
        self.show_progress(None, "")

    def show_status(self, status: RunStatus, obstacle: str) -> None:
        """Offer what can be done now; the reason why Run cannot be pressed is its tooltip."""
        self.run.setEnabled(not obstacle)
        self.run.setText("Queue" if status.busy else "Run")
        tip = "Queue this run: it starts when the present one has ended" if status.busy else RUN_TIP
        self.run.setToolTip(obstacle or with_key(tip, "run"))
        self.stop.setEnabled(status is RunStatus.RUNNING)
        self.stop.setText("Stopping …" if status is RunStatus.STOPPING else "Stop")

    def show_progress(self, progress: Progress | None, busy: str) -> None:
        """Show how far the run is, or that something is being opened or loaded."""
        self.bar.setVisible(progress is not None or bool(busy))
        if progress is None:
            self.bar.setRange(0, 0 if busy else 1000)
            self.count.show_text(f"{busy} …" if busy else "")
            return
        self.bar.setRange(0, 1000)
        self.bar.setValue(round(1000 * progress.fraction))
        left = "" if progress.eta_s is None else f", {duration(progress.eta_s)} left"
        self.count.show_text(f"{progress.patches_done} of {progress.patches_total} patches{left}")

    def show_message(self, message: Message) -> None:
        """Show a message until the next one."""
        self.message.show_text(message.text, message.kind)
