"""Several one-thread processes that train one model together.

On a few CPU cores this beats one process with several threads, and it does not collapse when something else uses the machine.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed
from torch.multiprocessing.spawn import spawn


@dataclass(frozen=True)
class Worker:
    """One of ``count`` processes; the one with rank 0 validates, saves and reports."""

    rank: int = 0
    count: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process validates, saves and reports."""
        return self.rank == 0

    def average_gradients(self, parameters: Iterable[Tensor], limit: float) -> float:
        """Average gradients over the processes, clip their norm to ``limit`` and return the norm before clipping."""
        parameters = [p for p in parameters if p.grad is not None]
        flat = torch.cat([p.grad.reshape(-1) for p in parameters])  # type: ignore[union-attr]
        if self.count > 1:
            distributed.all_reduce(flat)
            flat /= self.count
        norm = float(flat.norm())
        flat *= min(1.0, limit / (norm + 1e-6))
        place = 0
        for p in parameters:
            assert p.grad is not None
            p.grad.copy_(flat[place : place + p.numel()].view_as(p))
            place += p.numel()
        return norm

    def agree(self, flag: bool) -> bool:
        """Return the leading process's flag, in every process."""
        if self.count == 1:
            return flag
        value = torch.tensor([float(flag)])
        distributed.broadcast(value, 0)
        return bool(value.item())

    def wait(self) -> None:
        """Wait for the other processes."""
        if self.count > 1:
            distributed.barrier()


def run_workers(count: int, function: Callable[..., None], *arguments: Any) -> None:
    """Call ``function(worker, *arguments)`` in ``count`` processes of one thread each, and wait for them.

    With one worker the function runs in this process.
    """
    if count == 1:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            function(Worker(), *arguments)
        finally:
            torch.set_num_threads(threads)
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    spawn(_start, args=(count, port, function, arguments), nprocs=count)


def _start(rank: int, count: int, port: int, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", rank=rank, world_size=count, timeout=timedelta(minutes=60))
    try:
        function(Worker(rank, count), *arguments)
    finally:
        distributed.destroy_process_group()
