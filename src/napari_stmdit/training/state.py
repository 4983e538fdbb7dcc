"""Records and state of a stage: log, TensorBoard, saved state and EMA of the weights."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..storage.atomic import write_atomically, write_json
from .config import TrainingConfig
from .parallel import Worker

Module = TypeVar("Module", bound=torch.nn.Module)


def run_steps(
    worker: Worker,
    phase: str,
    steps: range,
    save_seconds: float,
    take_step: Callable[[int], None],
    save: Callable[[int], None],
) -> None:
    """Take the steps of a phase until all are done or a stop is wanted.

    ``save`` gets the number of steps done: in the leading process, every ``save_seconds`` and at the end.
    """
    done, clock = steps.start, Clock(save_seconds)
    while done < steps.stop and not worker.stopping:
        take_step(done)
        done += 1
        worker.report(phase, done, steps.stop)
        if worker.leads and clock.due():
            save(done)
    if worker.leads:
        save(done)
    worker.wait()


def save_state(path: Path, **state: Any) -> None:
    """Write a state atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: torch.save(state, file))


def load_state(path: Path) -> dict[str, Any] | None:
    """Read a state, or None where there is none; only tensors and plain values are unpickled."""
    if not path.is_file():
        return None
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def save_record(path: Path, record: Any, *, sort_keys: bool = False) -> None:
    """Write a small JSON file atomically, into a folder that is made where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, record, sort_keys=sort_keys)


def load_record(path: Path) -> Any:
    """Read a small JSON file; None where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def open_records(
    config: TrainingConfig, worker: Worker, name: str, start: int, part: str | None = None
) -> tuple[Log, Board]:
    """Open the log and TensorBoard files of a stage or ``part``; both write nothing outside the leading process."""
    folder = config.output / "tensorboard" / (part or name) if worker.leads and config.tensorboard else None
    return Log(config.output / f"{name}.jsonl", worker.leads), Board(folder, start)


class Log:
    """Log file with one JSON object a line."""

    def __init__(self, path: Path, active: bool = True) -> None:
        self.path, self.active, self.start = path, active, time.perf_counter()
        if active:
            path.parent.mkdir(parents=True, exist_ok=True)

    def write(self, **values: Any) -> None:
        """Append a line."""
        if self.active:
            line = {"seconds": round(time.perf_counter() - self.start, 1), **values}
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")


class Board:
    """Writer of TensorBoard files; without a ``folder`` it writes nothing.

    ``start`` is the step that the training continues from: later steps of an earlier run are not shown twice.
    """

    def __init__(self, folder: Path | None, start: int = 0) -> None:
        self._writer: Any = None
        if folder is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(folder), purge_step=start or None)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Show values by name (``group/name``)."""
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def picture(self, step: int, name: str, pixels: NDArray[np.uint8]) -> None:
        """Show a picture (h, w, 3)."""
        if self._writer is not None:
            self._writer.add_image(name, pixels, step, dataformats="HWC")
            self._writer.flush()

    def close(self) -> None:
        """Flush and close."""
        if self._writer is not None:
            self._writer.close()


class Clock:
    """Timer of the saves."""

    def __init__(self, every_s: float) -> None:
        self.every_s = every_s
        self._last = time.perf_counter()

    def due(self) -> bool:
        """Return whether the interval has passed since this last returned True."""
        if time.perf_counter() - self._last < self.every_s:
            return False
        self._last = time.perf_counter()
        return True


def timed(work: Callable[[], object], times: int) -> float:
    """Return the seconds that a function takes, after a first call."""
    work()
    start = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - start) / times


class EMA:
    """Exponential moving average (EMA) of a module's weights; the decay is smaller in the first steps."""

    def __init__(self, module: torch.nn.Module, decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self.weights: dict[str, Tensor] = {k: v.detach().clone() for k, v in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: torch.nn.Module) -> None:
        """Update with the module's present weights."""
        self.steps += 1
        share = 1 - min(self.decay, (1 + self.steps) / (10 + self.steps))
        for key, value in module.state_dict().items():
            if value.is_floating_point():
                self.weights[key].lerp_(value, share)
            else:
                self.weights[key].copy_(value)

    def follow(self, module: Module) -> Module:
        """Return a copy of a module, for evaluation, that shares these weights and changes with them."""
        twin = copy.deepcopy(module)
        twin.load_state_dict(self.weights, assign=True)
        return twin.eval().requires_grad_(False)

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` takes."""
        return {"steps": self.steps, "weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state."""
        self.steps = int(state["steps"])
        for key, value in state["weights"].items():
            self.weights[key].copy_(value)
