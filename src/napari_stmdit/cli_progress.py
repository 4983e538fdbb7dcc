"""How the commands show progress, and what Ctrl-C does while they work."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .progress import Progress


class ProgressBar:
    """Takes `Progress` values: a bar where stderr is a terminal, a line now and then where it is a log."""

    LINE_SECONDS = 10.0

    def __init__(self, title: str, hidden: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        console = Console(stderr=True)
        self._title = title
        self._lines = not console.is_terminal
        self._told, self._told_at = 0, -self.LINE_SECONDS
        self._bar = Bar(
            TextColumn(title),
            BarColumn(),
            TextColumn("{task.fields[patches]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=hidden or self._lines,
        )
        self._task = self._bar.add_task(title, total=1.0, patches="")

    def __enter__(self) -> ProgressBar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def restart(self) -> None:
        """Begin again from nothing, for the next run."""
        self._told, self._told_at = 0, -self.LINE_SECONDS
        self._bar.update(self._task, completed=0.0, patches="")

    def __call__(self, progress: Progress) -> None:
        """Show it."""
        patches = f"{progress.patches_done}/{progress.patches_total} patches"
        self._bar.update(self._task, completed=progress.fraction, patches=patches)
        due = progress.elapsed_s - self._told_at >= self.LINE_SECONDS
        if self._lines and due and progress.patches_done > self._told:
            self._told, self._told_at = progress.patches_done, progress.elapsed_s
            sys.stderr.write(f"{self._title}: {patches}\n")
            sys.stderr.flush()


class InterruptCancels:
    """While open, the first Ctrl-C asks the run to stop and keep what is done; a second one interrupts at once.

    Parameters
    ----------
    cancel
        A `napari_stmdit.progress.CancelToken`.
    terminated
        Whether a request to end from outside (SIGTERM: a cluster's time limit, a shutdown) asks for the same.
    """

    def __init__(self, cancel: Any, terminated: bool = False) -> None:
        self._cancel, self._terminated = cancel, terminated

    def __enter__(self) -> None:
        import signal

        self._before = signal.signal(signal.SIGINT, self._stop)
        if self._terminated:
            self._before_term = signal.signal(signal.SIGTERM, lambda *_: self._cancel.cancel())

    def _stop(self, *_: object) -> None:
        import signal

        self._cancel.cancel()
        signal.signal(signal.SIGINT, self._before)

    def __exit__(self, *_: object) -> None:
        import signal

        signal.signal(signal.SIGINT, self._before)
        if self._terminated:
            signal.signal(signal.SIGTERM, self._before_term)
