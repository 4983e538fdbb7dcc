"""What a training shows of itself while it runs: scalars and pictures for TensorBoard."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..storage.atomic import write_atomically, write_text


class Board:
    """Writes TensorBoard's files; of the leading process alone.

    Parameters
    ----------
    folder
        Where they go; None: nothing is written.
    start
        Step that the training goes on from: what an earlier run showed after it is not shown twice.
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
        """Write what is left."""
        if self._writer is not None:
            self._writer.close()


# Saving and continuing a stage: nothing is lost when a run is killed.


Module = TypeVar("Module", bound=torch.nn.Module)


def save_state(path: Path, **state: Any) -> None:
    """Write a state so that a kill in the middle leaves the old file whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: torch.save(state, file))


def save_text(path: Path, text: str) -> None:
    """Write a small file in the same way."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text + "\n")


def load_state(path: Path) -> dict[str, Any] | None:
    """Read a state, or None where there is none yet; only tensors and plain values are ever unpickled."""
    if not path.is_file():
        return None
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


class Log:
    """One JSON object a line."""

    def __init__(self, path: Path, active: bool = True) -> None:
        self.path = path
        self.active = active
        self.start = time.perf_counter()
        if active:
            path.parent.mkdir(parents=True, exist_ok=True)

    def write(self, **values: Any) -> None:
        """Append a line."""
        if not self.active:
            return
        line = {"seconds": round(time.perf_counter() - self.start, 1), **values}
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")


class Clock:
    """Says when the next checkpoint is due."""

    def __init__(self, every_s: float) -> None:
        self.every_s = every_s
        self._last = time.perf_counter()

    def due(self) -> bool:
        """Whether the interval has passed since the last time this was true."""
        if time.perf_counter() - self._last < self.every_s:
            return False
        self._last = time.perf_counter()
        return True


class Average:
    """Exponential moving average of a module's weights.

    Parameters
    ----------
    module
        Whose weights to follow.
    decay
        Share of the average that stays at each step; smaller at the start.
    """

    def __init__(self, module: torch.nn.Module, decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self.weights: dict[str, Tensor] = {k: v.detach().clone() for k, v in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: torch.nn.Module) -> None:
        """Move towards the module's present weights."""
        self.steps += 1
        share = 1 - min(self.decay, (1 + self.steps) / (10 + self.steps))
        for key, value in module.state_dict().items():
            if value.is_floating_point():
                self.weights[key].lerp_(value, share)
            else:
                self.weights[key].copy_(value)

    def follow(self, module: Module) -> Module:
        """Return a copy of a module, for evaluation, whose weights are these: it changes as they do, and takes no memory of its own."""
        twin = copy.deepcopy(module)
        twin.load_state_dict(self.weights, assign=True)
        return twin.eval().requires_grad_(False)

    def state(self) -> dict[str, Any]:
        """What `load` takes."""
        return {"steps": self.steps, "weights": self.weights}

    def load(self, state: dict[str, Any]) -> None:
        """Continue from a saved state."""
        self.steps = int(state["steps"])
        for key, value in state["weights"].items():
            self.weights[key].copy_(value)
