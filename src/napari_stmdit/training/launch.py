"""Starting the processes of a training, hearing from them, and stopping them so that nothing is lost.

On a few CPU cores several one-thread processes beat one process with several threads, and they do not collapse when something else
uses the machine; they are started here. On a GPU one process runs here; several are started by ``accelerate launch``.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import multiprocessing
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, spawn

from ..errors import StmditError
from ..progress import CancelToken
from .config import TrainingConfig
from .parallel import Compute, Link, TrainingProgress, choose_compute, is_launched, make_worker, require_extra

POLL_SECONDS = 0.2
REPORT_SECONDS = 0.5
FAILED = 3
"""Exit code of a process that has told its error."""

OnProgress = Callable[[TrainingProgress], None]


class TrainingStoppedError(StmditError):
    """A training was asked to stop and did; what it had reached is saved."""


class Control:
    """How a training is watched and stopped.

    Parameters
    ----------
    on_progress
        Called now and then with how far a phase is.
    cancel
        Once set, the training saves what it has after its present step, and ends with `TrainingStoppedError`.
    """

    def __init__(self, on_progress: OnProgress | None = None, cancel: CancelToken | None = None) -> None:
        self.on_progress: OnProgress = on_progress or (lambda _: None)
        self.cancel = cancel or CancelToken()
        self.last: TrainingProgress | None = None

    def stop_wanted(self) -> bool:
        """Whether a stop was asked for."""
        return self.cancel.cancelled

    def report(self, progress: TrainingProgress) -> None:
        """Pass progress on."""
        self.last = progress
        self.on_progress(progress)

    def check(self, config: TrainingConfig) -> None:
        """Raise TrainingStoppedError where a stop was asked for."""
        if self.cancel.cancelled:
            at = "" if self.last is None else f" at step {self.last.step} of {self.last.steps} of the {self.last.phase}"
            raise TrainingStoppedError(
                f"training stopped{at}; it is saved in {config.output}. Run the same again to go on from there."
            )


def run_workers(config: TrainingConfig, control: Control, function: Callable[..., None], *arguments: Any) -> None:
    """Call ``function(worker, *arguments)`` in every process of a training, and wait for them.

    Raises
    ------
    TrainingStoppedError
        It was asked to stop.
    StmditError
        What a process raised; or one was ended from outside.
    """
    require_extra()
    compute = choose_compute(config)
    if compute.device == "cpu" and config.workers > 1 and not is_launched():
        _run_apart(compute, config.workers, control, function, arguments)
    else:
        _run_here(compute, control, function, arguments)
    control.check(config)


def run_alone(config: TrainingConfig, function: Callable[..., object], *arguments: Any) -> None:
    """Call a function once: in the leading process, where several were launched, while the others wait."""
    if not is_launched():
        function(*arguments)
        return
    worker = make_worker(choose_compute(config), Control())
    if worker.leads:
        function(*arguments)
    worker.wait()


def _run_here(compute: Compute, control: Control, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    from accelerate.state import AcceleratorState, GradientState, PartialState

    alone = compute.device == "cpu" and not is_launched()
    threads, ours = torch.get_num_threads(), PartialState._shared_state == {}
    if alone:
        torch.set_num_threads(1)
    try:
        function(make_worker(compute, control), *arguments)
    finally:
        if alone:
            torch.set_num_threads(threads)
        if (
            ours and not is_launched()
        ):  # accelerate's state is one a process: another training may want another precision
            AcceleratorState._reset_state(reset_partial_state=True)
            GradientState._reset_state()


def _run_apart(
    compute: Compute, count: int, control: Control, function: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    context = multiprocessing.get_context("spawn")
    stop, messages = context.Event(), context.SimpleQueue()
    errors: list[str] = []

    def hear() -> None:
        while not messages.empty():
            heard = messages.get()
            if isinstance(heard, TrainingProgress):
                control.report(heard)
            else:
                errors.append(heard)

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with _interrupts_ignored():
        started: Any = spawn(
            _be_worker,
            args=(count, port, compute, stop, messages, os.getpid(), function, arguments),
            nprocs=count,
            join=False,
        )
    try:
        while not started.join(timeout=POLL_SECONDS):
            hear()
            if control.cancel.cancelled:
                stop.set()
        hear()
    except (ProcessExitedException, ProcessRaisedException) as error:
        hear()
        if errors:
            raise StmditError(errors[0]) from None
        if isinstance(error, ProcessExitedException):
            raise StmditError(
                f"a process of the training was ended from outside ({error.signal_name or error.exit_code}), perhaps for want of memory. "
                "Run the same again to go on from what was saved last; fewer workers and smaller batches take less memory."
            ) from None
        raise
    finally:
        for process in started.processes:
            if process.is_alive():
                process.kill()  # interrupted a second time: what was saved last counts


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Let processes that are started here be born deaf to Ctrl-C, which a terminal sends to all of them: they are asked to stop."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before if before is not None else signal.SIG_DFL)


class _Pipe:
    """A link to the process that started this one; a process whose parent is gone stops, too."""

    def __init__(self, stop: Any, messages: Any, parent: int) -> None:
        self._stop, self._messages, self._parent = stop, messages, parent
        self._told, self._phase = 0.0, ""

    def stop_wanted(self) -> bool:
        return os.getppid() != self._parent or bool(self._stop.is_set())

    def report(self, progress: TrainingProgress) -> None:
        now = time.monotonic()
        if self._phase != progress.phase or progress.step == progress.steps or now - self._told > REPORT_SECONDS:
            self._told, self._phase = now, progress.phase
            if os.getppid() == self._parent:
                self._messages.put(progress)


def _be_worker(
    rank: int,
    count: int,
    port: int,
    compute: Compute,
    stop: Any,
    messages: Any,
    parent: int,
    function: Callable[..., None],
    arguments: tuple[Any, ...],
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    os.environ.update({name: str(value) for name, value in place.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1")
    torch.set_num_threads(1)
    link: Link = _Pipe(stop, messages, parent)
    try:
        function(make_worker(compute, link), *arguments)
    except StmditError as error:
        messages.put(str(error))
        sys.exit(FAILED)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
