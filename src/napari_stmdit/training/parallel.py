"""One process of a training: its device, its precision, and how it keeps step with the others. All of that is accelerate's."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from ..errors import RequestError, StmditError

if TYPE_CHECKING:
    from .config import TrainingConfig

Network = TypeVar("Network", bound=nn.Module)

EXTRA = ("accelerate", "tensorboard")
WAIT = timedelta(hours=2)
"""How long a process waits for the others, of which one may be fitting, validating or drawing samples."""


def require_extra() -> None:
    """Raise StmditError, naming the extra to install, where what a training needs is not there."""
    missing = [name for name in EXTRA if find_spec(name) is None]
    if missing:
        raise StmditError(
            f"Training needs {' and '.join(missing)}, which the extra 'train' brings: pip install 'napari-stmdit[train]'"
        )


@dataclass(frozen=True)
class Compute:
    """``device``: ``cpu``, ``cuda`` or ``mps``; ``precision``: ``no`` (float32), ``bf16`` or ``fp16``, of the networks' products."""

    device: str
    precision: str


def choose_compute(config: TrainingConfig) -> Compute:
    """Resolve the device and the precision of a config.

    ``auto`` takes a GPU where there is one; and bfloat16 on a CPU and on GPUs that have it, float16 on other GPUs of NVIDIA, float32
    on MPS, unless ``accelerate launch`` was told another precision.

    Raises
    ------
    RequestError
        The device is not there, or does not compute in that precision.
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
        told = os.environ.get("ACCELERATE_MIXED_PRECISION", "no") if is_launched() else "no"
        bf16 = device == "cpu" or (device == "cuda" and torch.cuda.is_bf16_supported())
        own = "bf16" if bf16 else {"cuda": "fp16", "mps": "no"}[device]
        precision = told if told in ("bf16", "fp16") else own
    if device == "cpu" and precision == "fp16":
        raise RequestError([("precision", "fp16 is for GPUs; choose bf16 or no on a CPU")])
    return Compute(device, precision)


def is_launched() -> bool:
    """Whether something outside (``accelerate launch``, torchrun) has started several processes, of which this is one."""
    return int(os.environ.get("LOCAL_RANK", -1)) != -1 and int(os.environ.get("WORLD_SIZE", 1)) > 1


@dataclass(frozen=True)
class TrainingProgress:
    """How far a phase is: ``phase`` (``autoencoder``, ``decoder``, ``latents`` or ``transformer``), ``step`` of ``steps``, and its loss."""

    phase: str
    step: int
    steps: int
    loss: float | None = None


class Link(Protocol):
    """What a worker and whoever started it tell each other."""

    def stop_wanted(self) -> bool:
        """Whether this process was asked to stop."""

    def report(self, progress: TrainingProgress) -> None:
        """Tell how far the training is."""


class Worker:
    """One of ``count`` processes, on its ``device``; the one with rank 0 validates, saves and reports.

    Networks are placed and not wrapped (``Accelerator.prepare``): the stages reach into them, and in one of them two learn at once. Their
    gradients are averaged in one sum instead, which on few CPU cores and for small networks is what is fast, too; what says whether
    to stop travels with it, so that all processes stop after the same step.

    Parameters
    ----------
    accelerator
        An ``accelerate.Accelerator``.
    link
        To whoever started this process.
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
        """Take one step down a loss: gradients averaged over the processes, their norm clipped to ``limit``.

        Returns
        -------
        Tensor
            The norm before clipping, a scalar.
        """
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
        place = 0
        for gradient in gradients:
            gradient.copy_(flat[place : place + gradient.numel()].view_as(gradient))
            place += gradient.numel()
        self.stopping = bool(flat[-1] > 0)

    def report(self, phase: str, step: int, steps: int, loss: float | None = None) -> None:
        """Tell how far a phase is; without a loss, the last one stands."""
        self._loss = self._loss if loss is None else loss
        if self.leads:
            self._link.report(TrainingProgress(phase, step, steps, self._loss))

    def wait(self) -> None:
        """Wait for the other processes."""
        if self.count > 1:
            self._accelerator.wait_for_everyone()


def make_worker(compute: Compute, link: Link) -> Worker:
    """Set accelerate up in this process and return its worker.

    Raises
    ------
    StmditError
        accelerate is not installed, or has been set up otherwise by the program that this is called from.
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
