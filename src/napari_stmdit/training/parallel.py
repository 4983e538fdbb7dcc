"""Processes of a training: how they start, stay synchronised, report, and stop without losing anything.

On a few CPU cores several one-thread processes beat one process with several threads. They are started with torch's spawn, since
accelerate's launchers only fork, for debugging, on a CPU. On a GPU one process runs here; ``accelerate launch`` starts several.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from importlib.util import find_spec
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, multiprocessing, nn
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, spawn

from ..devices import choose_device
from ..errors import RequestError, StmditError
from ..progress import CancelToken
from .config import TrainingConfig

POLL_SECONDS = 0.2
REPORT_SECONDS = 0.5
FAILED = 3
"""Exit code of a process that has sent its error."""
EXTRA = ("accelerate", "tensorboard")
WAIT = timedelta(hours=2)
"""Timeout of a process that waits for the others, of which one may be fitting, validating or drawing samples."""
Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class TrainingProgress:
    """Progress of a phase (``autoencoder``, ``decoder``, ``latents`` or ``transformer``): ``step`` of ``steps``, and its loss."""

    phase: str
    step: int
    steps: int
    loss: float | None = None


OnProgress = Callable[[TrainingProgress], None]


class TrainingStoppedError(StmditError):
    """A training was asked to stop and did; its state is saved."""


class Control:
    """Progress and stopping of a training; once ``cancel`` is set, it saves after its present step and ends with `TrainingStoppedError`."""

    def __init__(self, on_progress: OnProgress | None = None, cancel: CancelToken | None = None) -> None:
        self.on_progress: OnProgress = on_progress or (lambda _: None)
        self.cancel = cancel or CancelToken()
        self.last: TrainingProgress | None = None

    def stop_wanted(self) -> bool:
        """Return whether a stop was asked for."""
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
                f"training stopped{at}; it is saved in {config.output}. Run the same again to continue."
            )


def run_workers(config: TrainingConfig, control: Control, function: Callable[..., None], *arguments: Any) -> None:
    """Call ``function(worker, *arguments)`` in every process of a training, and wait for them.

    Raises TrainingStoppedError where it was asked to stop; StmditError where a process raised it or was killed.
    """
    require_extra()
    compute = choose_compute(config)
    if compute.device == "cpu" and config.workers > 1 and not is_launched():
        _spawn(compute, config.workers, control, function, arguments)
    else:
        _run_here(compute, control, function, arguments)
    control.check(config)


def run_alone(config: TrainingConfig, function: Callable[..., object], *arguments: Any) -> None:
    """Call a function in the leading process only, while other launched processes wait."""
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
        # accelerate keeps one state a process and has no public reset: another training may want another precision
        if ours and not is_launched():
            AcceleratorState._reset_state(reset_partial_state=True)
            GradientState._reset_state()


def _spawn(
    compute: Compute, count: int, control: Control, function: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    context = multiprocessing.get_context("spawn")
    stop, messages = context.Event(), context.SimpleQueue()
    errors: list[str] = []

    def read_messages() -> None:
        while not messages.empty():
            message = messages.get()
            if isinstance(message, TrainingProgress):
                control.report(message)
            else:
                errors.append(message)

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with _interrupts_ignored():
        started: Any = spawn(
            _work,
            args=(count, port, compute, stop, messages, os.getpid(), function, arguments),
            nprocs=count,
            join=False,
        )
    try:
        while not started.join(timeout=POLL_SECONDS):
            read_messages()
            if control.cancel.cancelled:
                stop.set()
        read_messages()
    except (ProcessExitedException, ProcessRaisedException) as error:
        read_messages()
        if errors:
            raise StmditError(errors[0]) from None
        if isinstance(error, ProcessExitedException):
            raise StmditError(
                f"a process of the training was ended from outside ({error.signal_name or error.exit_code}), perhaps for want of memory. "
                "Run the same again to continue from the last save; fewer workers and smaller batches take less memory."
            ) from None
        raise
    finally:
        for process in started.processes:
            if process.is_alive():
                process.kill()  # interrupted a second time: what was saved last counts


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Make processes started here ignore SIGINT, which a terminal sends to all of them; this one asks them to stop."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before if before is not None else signal.SIG_DFL)


class _Pipe:
    """Link to the parent process; a process whose parent is gone stops, too."""

    def __init__(self, stop: Any, messages: Any, parent: int) -> None:
        self._stop, self._messages, self._parent = stop, messages, parent
        self._reported, self._phase = 0.0, ""

    def stop_wanted(self) -> bool:
        return os.getppid() != self._parent or bool(self._stop.is_set())

    def report(self, progress: TrainingProgress) -> None:
        now = time.monotonic()
        if self._phase != progress.phase or progress.step == progress.steps or now - self._reported > REPORT_SECONDS:
            self._reported, self._phase = now, progress.phase
            if os.getppid() == self._parent:
                self._messages.put(progress)


def _work(
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
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    os.environ.update({name: str(value) for name, value in ranks.items()})
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


def require_extra() -> None:
    """Raise StmditError, naming the extra to install, where a training dependency is missing."""
    missing = [name for name in EXTRA if find_spec(name) is None]
    if missing:
        raise StmditError(
            f"Training needs {' and '.join(missing)}, which the extra 'train' brings: pip install 'napari-stmdit[train]'"
        )


@dataclass(frozen=True)
class Compute:
    """Device (``cpu``, ``cuda`` or ``mps``) and precision (``no`` for float32, ``bf16`` or ``fp16``) of the networks."""

    device: str
    precision: str


def choose_compute(config: TrainingConfig) -> Compute:
    """Resolve the device and the precision of a config; raises RequestError where the device is missing or lacks that precision.

    ``auto`` takes a GPU if there is one, and the precision that the hardware is fast at (`choose_device`), unless ``accelerate launch`` was
    given another.
    """
    have = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    forced = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    device: str = config.device
    if device == "auto":
        device = "cpu" if forced else next(name for name, there in have.items() if there)
    if not have[device]:
        there = ", ".join(name for name, is_there in have.items() if is_there)
        raise RequestError([("device", f"{device!r} is not available; this computer has: {there}")])
    precision: str = config.precision
    if precision == "auto":
        launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no") if is_launched() else "no"
        own = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "no"}[choose_device(device)[1]]
        precision = launched if launched in ("bf16", "fp16") else own
    if device == "cpu" and precision == "fp16":
        raise RequestError([("precision", "fp16 is for GPUs; choose bf16 or no on a CPU")])
    return Compute(device, precision)


def is_launched() -> bool:
    """Return whether a launcher (``accelerate launch``, torchrun) has started several processes, of which this is one."""
    return int(os.environ.get("LOCAL_RANK", -1)) != -1 and int(os.environ.get("WORLD_SIZE", 1)) > 1


class Link(Protocol):
    """Link of a worker to its starter: `Control` in one process, `_Pipe` between two."""

    def stop_wanted(self) -> bool:
        """Return whether this process was asked to stop."""

    def report(self, progress: TrainingProgress) -> None:
        """Report how far the training is."""


class Worker:
    """One of ``count`` processes, on its ``device``; the one with rank 0 validates, saves and reports.

    Networks are placed and not wrapped (``Accelerator.prepare``), since the stages reach into them and one trains two at once. Gradients and
    the request to stop share a single reduction: fast on few cores, and all processes stop after the same step.
    """

    def __init__(self, accelerator: Any, link: Link) -> None:
        self._accelerator, self._link = accelerator, link
        self.rank, self.count = int(accelerator.process_index), int(accelerator.num_processes)
        self.device: torch.device = accelerator.device
        self.stopping = False
        """Whether all processes have agreed to stop."""
        self._loss: float | None = None

    @property
    def leads(self) -> bool:
        """Whether this process validates, saves and reports."""
        return self.rank == 0

    @property
    def stop_wanted(self) -> bool:
        """Whether this process was asked to stop; for loops in which processes do not wait for each other."""
        return self._link.stop_wanted()

    def place(self, network: Network) -> Network:
        """Put a network on this worker's device."""
        return network.to(self.device)

    def autocast(self) -> AbstractContextManager[Any]:
        """Return a context in which products are computed in this worker's precision."""
        context: AbstractContextManager[Any] = self._accelerator.autocast()
        return context

    def update(self, loss: Tensor, optimizers: Sequence[torch.optim.Optimizer], limit: float) -> Tensor:
        """Take an optimizer step: gradients averaged over the processes, their norm clipped to ``limit``; return the norm before clipping."""
        for optimizer in optimizers:
            optimizer.zero_grad()
        self._accelerator.backward(loss)
        parameters = [p for o in optimizers for group in o.param_groups for p in group["params"] if p.grad is not None]
        self._average([p.grad for p in parameters])
        # several optimizers share one scaler: each is unscaled and stepped, and only then is the scale changed
        scaler = self._accelerator.scaler
        for optimizer in optimizers if scaler is not None else ():
            scaler.unscale_(optimizer)
        norm: Tensor = self._accelerator.clip_grad_norm_(parameters, limit)
        for optimizer in optimizers:
            optimizer.step() if scaler is None else scaler.step(optimizer)
        if scaler is not None:
            scaler.update()
        return norm

    def _average(self, gradients: list[Tensor]) -> None:
        wanted = self._link.stop_wanted()
        if self.count == 1:
            self.stopping = wanted
            return
        flag = torch.full((1,), float(wanted), device=self.device)
        flat = self._accelerator.reduce(torch.cat([*(g.reshape(-1) for g in gradients), flag]), reduction="mean")
        for gradient, mean in zip(gradients, flat.split([*(g.numel() for g in gradients), 1]), strict=False):
            gradient.copy_(mean.view_as(gradient))
        self.stopping = bool(flat[-1] > 0)

    def report(self, phase: str, step: int, steps: int, loss: float | None = None) -> None:
        """Report the progress of a phase; without a loss, the last one stands."""
        self._loss = self._loss if loss is None else loss
        if self.leads:
            self._link.report(TrainingProgress(phase, step, steps, self._loss))

    def wait(self) -> None:
        """Wait for the other processes."""
        if self.count > 1:
            self._accelerator.wait_for_everyone()


def make_worker(compute: Compute, link: Link) -> Worker:
    """Set up accelerate in this process and return its worker.

    Raises StmditError where accelerate is not installed, or was set up differently by the calling program.
    """
    require_extra()
    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs

    try:
        accelerator = Accelerator(
            cpu=compute.device == "cpu",
            mixed_precision=compute.precision,
            kwargs_handlers=[InitProcessGroupKwargs(timeout=WAIT)],
        )
    except ValueError as error:
        raise StmditError(
            f"accelerate cannot train on {compute.device!r} with precision {compute.precision!r} here: {error}"
        ) from None
    return Worker(accelerator, link)
