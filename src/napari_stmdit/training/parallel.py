"""One training in several processes: one for each GPU as a launcher starts them, or some of one thread each on a CPU.

Device, precision and the exchange between processes are accelerate's. On a few CPU cores several one-thread processes beat one
process with several threads, and they do not collapse when something else uses the machine.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import parent_process
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from ..errors import CheckpointError

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class Worker:
    """One of the processes; the one with rank 0 validates, saves and reports."""

    accelerator: Accelerator

    @property
    def rank(self) -> int:
        """Number of this process, from 0."""
        return int(self.accelerator.process_index)

    @property
    def count(self) -> int:
        """How many processes there are."""
        return int(self.accelerator.num_processes)

    @property
    def leads(self) -> bool:
        """Whether this process validates, saves and reports."""
        return bool(self.accelerator.is_main_process)

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        device: torch.device = self.accelerator.device
        return device

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context in which networks compute in the run's precision."""
        context: AbstractContextManager[Any] = self.accelerator.autocast()
        return context

    def average_gradients(self, parameters: Iterable[Tensor], limit: float) -> float:
        """Average gradients over the processes, clip their norm to ``limit`` and return the norm before clipping."""
        parameters = [p for p in parameters if p.grad is not None]
        flat = torch.cat([p.grad.reshape(-1) for p in parameters])  # type: ignore[union-attr]
        flat = self.accelerator.reduce(flat, reduction="mean")
        norm = float(flat.norm())
        flat *= min(1.0, limit / (norm + 1e-6))
        place = 0
        for p in parameters:
            assert p.grad is not None
            p.grad.copy_(flat[place : place + p.numel()].view_as(p))
            place += p.numel()
        return norm

    def wait(self) -> None:
        """Wait for the other processes."""
        self.accelerator.wait_for_everyone()


def run_workers(count: int, precision: str, function: Callable[..., None], *arguments: Any) -> None:
    """Call ``function(worker, *arguments)`` in every process of a training, and wait for them.

    Where a launcher (``accelerate launch``, torchrun) has started this process as one of several, or there is a GPU, the function
    runs here. On a CPU it runs in ``count`` new processes of one thread each, or here with one thread where ``count`` is 1.

    Parameters
    ----------
    count
        Processes on a CPU.
    precision
        ``bf16`` or ``no``: what networks compute in.
    function, arguments
        What to call; on a CPU with several processes it must be importable by its name.

    Raises
    ------
    CheckpointError
        accelerate is not installed.
    """
    accelerator_class()  # an absent package is told before anything starts
    launched = int(os.environ.get("LOCAL_RANK", -1)) >= 0
    if launched or torch.cuda.is_available():
        function(Worker(accelerator_class()(mixed_precision=precision)), *arguments)
    elif count == 1:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            function(Worker(accelerator_class()(mixed_precision=precision)), *arguments)
        finally:
            torch.set_num_threads(threads)
    else:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        spawn(_start, args=(count, port, precision, function, arguments), nprocs=count, daemon=True)


def accelerator_class() -> type[Accelerator]:
    """Return accelerate's class; raises CheckpointError with what to install where it is absent."""
    try:
        from accelerate import Accelerator
    except ImportError as error:
        raise CheckpointError(
            "Training needs accelerate, which is not installed: pip install 'napari-stmdit[train]'."
        ) from error
    found: type[Accelerator] = Accelerator
    return found


def _start(
    rank: int, count: int, port: int, precision: str, function: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", ACCELERATE_USE_CPU="true", OMP_NUM_THREADS="1")
    torch.set_num_threads(1)
    from accelerate import Accelerator, InitProcessGroupKwargs

    patience = InitProcessGroupKwargs(timeout=timedelta(minutes=60))
    accelerator = Accelerator(cpu=True, mixed_precision=precision, kwargs_handlers=[patience])
    try:
        function(Worker(accelerator), *arguments)
    finally:
        accelerator.end_training()


def _leave_with_parent() -> None:
    """End this process when the one that started it is gone, however it went: nobody trains on unseen."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
