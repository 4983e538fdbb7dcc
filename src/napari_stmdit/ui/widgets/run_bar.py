"""The run under way and those that wait."""

from __future__ import annotations

from collections.abc import Sequence

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QLabel, QListWidget, QListWidgetItem, QProgressBar, QWidget

from ...progress import Progress
from ..presenter import Presenter
from ..state import QueuedRun, RunStatus
from .common import Connections, Text, button, column, connect_state, fit_lines, named, row
from .keys import with_key
from .synthesize import duration

MAX_LINES = 3


class QueuePanel(QWidget):  # type: ignore[misc,unused-ignore]
    """The runs that wait for the present one; hidden where none does."""

    def __init__(self) -> None:
        super().__init__()
        self.head = QLabel()
        self.list = named(QListWidget(), "Queued runs", "Runs that start when the present one has ended well")
        self.list.setTextElideMode(Qt.TextElideMode.ElideRight)
        self.list.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.remove = button("Remove", "Remove from the queue", "Take the chosen run out of the queue")
        self.resume = button("Continue", "Continue the queue", "Start the next queued run")
        self.setLayout(column(self.head, self.list, row(self.remove, self.resume, stretch=None), spacing=3))
        self.show_queue((), False)

    def bind(self, presenter: Presenter) -> Connections:
        """Connect with a presenter; return what shows its state."""
        state = presenter.state

        def remove() -> None:
            item = self.list.currentItem()
            if item is not None:
                presenter.queue.remove(int(item.data(Qt.ItemDataRole.UserRole)))

        self.remove.clicked.connect(remove)
        self.resume.clicked.connect(lambda: presenter.queue.resume())
        return connect_state(state.events, ("queue queue_held", lambda: self.show_queue(state.queue, state.queue_held)))

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
        fit_lines(self.list, len(queue), MAX_LINES, 16)
        self.resume.setEnabled(held)


RUN_TIP = "Synthesize patches for the selected spots"


class RunBar(QWidget):  # type: ignore[misc,unused-ignore]
    """Run, Stop, progress and the last message: always in sight, below the panels."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = QueuePanel()
        self.run = button("Run", "Run", RUN_TIP)
        self.stop = button("Stop", "Stop", "End the run at its next denoising step; finished patches are kept")
        self.bar = QProgressBar()
        self.bar.setRange(0, 1000)
        self.bar.setTextVisible(False)
        self.bar.setFixedHeight(6)
        named(self.bar, "Progress", "Progress of the run")
        self.count = Text("quiet")
        self.message = Text("info")
        self.message.setAccessibleName("Message")
        for one in (self.run, self.stop):
            one.setMinimumHeight(30)
        self.setLayout(column(self.message, self.bar, self.count, self.queue, row(self.run, self.stop), spacing=4))
        self.show_status(RunStatus.IDLE, "")
        self.show_progress(None, "")

    def bind(self, presenter: Presenter) -> Connections:
        """Connect with a presenter; return what shows its state."""
        state = presenter.state
        self.run.clicked.connect(lambda: presenter.runs.run())
        self.stop.clicked.connect(lambda: presenter.stop())
        connections = connect_state(
            state.events,
            ("status busy section checkpoint selected", lambda: self.show_status(state.status, state.obstacle)),
            ("progress busy", lambda: self.show_progress(state.progress, state.busy)),
            ("message", lambda: self.message.show_text(state.message.text, state.message.kind)),
        )
        connections.add(self.queue.bind(presenter).close)
        return connections

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
