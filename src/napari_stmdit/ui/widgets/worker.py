"""Jobs on a thread of napari's pool."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache, partial
from typing import Any

from napari.qt.threading import create_worker
from qtpy.QtCore import QCoreApplication, QEventLoop, QObject, Qt, Signal
from superqt.utils import GeneratorWorker

from ...errors import StmditError, SynthesisError
from ...progress import CancelToken
from ..jobs import Handlers, Job, Tell

log = logging.getLogger(__name__)


class _Relay(QObject):  # type: ignore[misc,unused-ignore]
    """Signals of a worker: emitted on its thread, or once more on the thread that made them, the GUI thread."""

    value = Signal(object)
    error = Signal(object)
    ended = Signal()


_RELAYS: set[_Relay] = set()
"""Relays of unfinished workers, which nobody else holds."""


class JobWorker(GeneratorWorker):  # type: ignore[misc,type-arg,unused-ignore]
    """Generator worker that always reports its end.

    Differences from its parent: a RuntimeError is an error like any other, not a sign that the worker was deleted; errors go to
    ``failed``, as what napari connects to ``errored`` cannot take its argument under PySide; the generator is closed on the
    thread that ran it, so that it releases its resources; quitting sets the job's own token, which is checked at every denoising
    step; and no ``warnings.catch_warnings`` is held open, which is process-wide and not safe with two workers at a time.
    """

    def __init__(
        self,
        func: Callable[[CancelToken, Tell], Iterator[Any]],
        token: CancelToken,
        tell: Tell,
        failed: Callable[[Exception], None],
    ) -> None:
        super().__init__(func, token, tell)
        self.token, self._failed = token, failed

    def quit(self) -> None:
        """Ask the job to end; called by us, or by napari when its window closes."""
        self.token.cancel()
        super().quit()

    def run(self) -> None:
        """Drive the generator; called by the thread pool."""
        with suppress(RuntimeError):  # a signal's source is gone: the program ends, and nobody is there to be told
            self._drive()

    def _drive(self) -> None:
        self._running = True
        self.started.emit()
        try:
            for value in self._gen:
                self.yielded.emit(value)
                if self.abort_requested:
                    self.aborted.emit()
                    break
        except Exception as error:  # noqa: BLE001 - a thread has no caller that could take it
            self._failed(error)
        finally:
            self._gen.close()
            self._running = False
            self.finished.emit()
            self._finished.emit(self)


def start(job: Job, token: CancelToken, handlers: Handlers) -> None:
    """Start a job on a thread; the handlers are called on the thread that calls this, the GUI thread."""
    _finish_before_the_end()
    relay = _Relay()
    _RELAYS.add(relay)
    for signal, handler in (
        (relay.value, handlers.value),
        (relay.error, partial(_report, handlers.error)),
        (relay.ended, partial(_end, relay, handlers.end)),
    ):
        signal.connect(handler)

    here = _Relay(relay)  # emitted on the worker's thread; a child, so that it lives until all has arrived
    worker = create_worker(
        job.guarded,
        token,
        here.value.emit,
        failed=here.error.emit,
        _start_thread=False,
        _worker_class=JobWorker,
        _ignore_errors=True,  # an error is shown in the dock; napari would raise it once more in the event loop
        _progress=False,  # its spinner repaints the whole window some thirty times a second; the dock says how far it is
    )
    queued = Qt.ConnectionType.QueuedConnection
    for signal in (worker.yielded, here.value):
        signal.connect(relay.value, queued)
    here.error.connect(relay.error, queued)
    worker.finished.connect(relay.ended, queued)
    worker.start()


@cache
def _finish_before_the_end() -> None:
    """Let jobs begin and end when the program is about to; napari waits for those alone that have begun, and the next ones begin by a timer."""

    def finish() -> None:
        while _RELAYS:
            QCoreApplication.processEvents(QEventLoop.ProcessEventsFlag.AllEvents, 20)

    app = QCoreApplication.instance()
    if app is not None:
        app.aboutToQuit.connect(finish)


def _report(handler: Callable[[StmditError], None], error: Exception) -> None:
    if not isinstance(error, StmditError):
        error = SynthesisError(f"{error} ({type(error).__name__})")
    log.info("job failed", exc_info=error.__cause__ or error)
    handler(error)


def _end(relay: _Relay, handler: Callable[[], None]) -> None:
    try:
        handler()
    finally:
        _RELAYS.discard(relay)
        relay.deleteLater()
