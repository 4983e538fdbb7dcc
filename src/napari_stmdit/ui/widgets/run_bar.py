"""The run under way and those that wait."""

from __future__ import annotations

import time
from collections.abc import Sequence

from qtpy.QtCore import Qt, QTimer
from qtpy.QtGui import QGuiApplication
from qtpy.QtWidgets import QLabel, QListWidget, QListWidgetItem, QProgressBar, QWidget

from ...progress import Progress
from ...text import counted
from ..presenter import Presenter
from ..state import QueuedRun, RunStatus
from .common import Connections, Text, button, column, connect_state, fit_lines, named, paced, row
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
        self.run = button("Run", "Run", RUN_TIP, once=True)
        self.stop = button("Stop", "Stop", "End the run at its next denoising step; finished patches are kept")
        self.bar = QProgressBar()
        self.bar.setRange(0, 1000)
        self.bar.setTextVisible(False)
        self.bar.setFixedHeight(6)
        named(self.bar, "Progress", "Progress of the run")
        self.count = Text("quiet")
        self.back = button("Back to where I was", "Back", "Look again where you looked before the result was shown")
        self.message = Text("info")
        self.message.setAccessibleName("Message")
        for one in (self.run, self.stop):
            one.setMinimumHeight(30)
        self.setLayout(
            column(self.message, self.back, self.bar, self.count, self.queue, row(self.run, self.stop), spacing=4)
        )
        self._busy, self._since = "", 0.0
        self._clock = QTimer(self)
        self._clock.timeout.connect(self._tick)
        self.show_status(RunStatus.IDLE, "")
        self.show_progress(None, "")

    def bind(self, presenter: Presenter) -> Connections:
        """Connect with a presenter; return what shows its state."""
        state = presenter.state
        self.run.clicked.connect(lambda: presenter.run(again=shift_is_held()))
        self.stop.clicked.connect(lambda: presenter.stop())
        self.back.clicked.connect(lambda: presenter.looking.back())

        def show_status() -> None:
            self.show_status(state.status, state.obstacle, 0 if state.selected else len(state.painted))

        show_progress = paced(
            self, lambda: self.show_progress(state.progress, state.busy), lambda: state.progress is not None
        )
        connections = connect_state(
            state.events,
            ("status busy section checkpoint selected request", show_status),
            ("progress busy", show_progress),
            ("way_back", lambda: self.back.setVisible(state.way_back)),
            ("message", lambda: self.message.show_text(state.message.text, state.message.kind)),
        )
        connections.add(self.queue.bind(presenter).close)
        return connections

    def show_status(self, status: RunStatus, obstacle: str, painted: int = 0) -> None:
        """Offer what can be done now, for so many ``painted`` spots where none is selected; the reason why Run cannot be pressed is its tooltip."""
        self.run.setEnabled(not obstacle)
        where = f" on {counted(painted, 'painted spot')}" if painted else ""
        self.run.setText(("Queue" if status.busy else "Run") + where)
        tip = "Queue this run: it starts when the present one has ended" if status.busy else RUN_TIP
        self.run.setToolTip(obstacle or with_key(tip, "run"))
        self.stop.setEnabled(status is RunStatus.RUNNING)
        self.stop.setText("Stopping …" if status is RunStatus.STOPPING else "Stop")

    def show_progress(self, progress: Progress | None, busy: str) -> None:
        """Show how far the run is, or what is being opened or loaded and for how long; nothing here moves by itself."""
        self.bar.setVisible(progress is not None)
        if busy != self._busy:
            self._busy, self._since = busy, time.monotonic()
        if progress is None:
            self._tick()
            if busy and not self._clock.isActive():
                self._clock.start(1000)
            return
        self._clock.stop()
        self.bar.setValue(round(1000 * progress.fraction))
        left = "" if progress.eta_s is None else f", {duration(progress.eta_s)} left"
        self.count.show_text(f"{progress.patches_done} of {counted(progress.patches_total, 'patch', 'patches')}{left}")

    def _tick(self) -> None:
        seconds = round(time.monotonic() - self._since)
        if not self._busy:
            self._clock.stop()
        self.count.show_text(
            f"{self._busy} … {seconds} s" if self._busy and seconds else self._busy and f"{self._busy} …"
        )


def shift_is_held() -> bool:
    """Return whether Shift is held: what was made already is then made once more."""
    return bool(QGuiApplication.keyboardModifiers() & Qt.KeyboardModifier.ShiftModifier)
