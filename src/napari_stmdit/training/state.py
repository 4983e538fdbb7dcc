"""Saving and continuing a stage: nothing is lost when a run is killed."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

TELL_SECONDS = 10.0


def save_state(path: Path, **state: Any) -> None:
    """Write a state so that a kill in the middle leaves the old file whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".writing")
    torch.save(state, draft)
    os.replace(draft, path)


def load_state(path: Path) -> dict[str, Any] | None:
    """Read a state, or None where there is none yet; only tensors and plain values are ever unpickled."""
    if not path.is_file():
        return None
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


class Log:
    """A file with one JSON object a line, the same as TensorBoard events where that is installed, and the state on the screen.

    Parameters
    ----------
    path
        The file; events go to the folder ``tensorboard`` beside it.
    active
        Whether this process reports at all.
    """

    def __init__(self, path: Path, active: bool = True) -> None:
        self.path = path
        self.active = active
        self.start = time.perf_counter()
        self._first: int | None = None
        self._told = self.start
        self._board: Any = None
        if active:
            path.parent.mkdir(parents=True, exist_ok=True)
            with suppress(ImportError):  # the extra `train` has it
                from torch.utils.tensorboard import SummaryWriter

                self._board = SummaryWriter(str(path.parent / "tensorboard" / path.stem))

    def write(self, **values: Any) -> None:
        """Append a line; numbers of a line with a ``step`` become curves."""
        if not self.active:
            return
        line = {"seconds": round(time.perf_counter() - self.start, 1), **values}
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        if self._board is not None and "step" in values:
            head = str(values.get("phase", self.path.stem))
            for name, value in _numbers(values, head):
                self._board.add_scalar(name, value, values["step"])
            self._board.flush()

    def picture(self, name: str, pixels: NDArray[np.uint8], step: int) -> None:
        """Add (h, w, 3) uint8 pixels to the TensorBoard events."""
        if self._board is not None:
            self._board.add_image(name, pixels, step, dataformats="HWC")
            self._board.flush()

    def progress(self, what: str, done: int, total: int) -> None:
        """Tell on the screen how far it is and how long it may still take, every ten seconds and at the end."""
        now = time.perf_counter()
        if self._first is None:
            self._first = done - 1
        if not self.active or (now - self._told < TELL_SECONDS and done < total):
            return
        self._told = now
        left = (now - self.start) / max(1, done - self._first) * (total - done)
        sys.stderr.write(f"{what}: {done} of {total}, about {left / 60:.0f} min left\n")


def _numbers(values: Mapping[str, Any], head: str) -> Iterator[tuple[str, float]]:
    """Yield the numbers of a possibly nested line with their names."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{head}/{name}")
        elif isinstance(value, int | float) and not isinstance(value, bool) and name != "step":
            yield f"{head}/{name}", float(value)


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

    def state(self) -> dict[str, Any]:
        """What `load` takes."""
        return {"steps": self.steps, "weights": self.weights}

    def load(self, state: dict[str, Any]) -> None:
        """Continue from a saved state."""
        self.steps = int(state["steps"])
        for key, value in state["weights"].items():
            self.weights[key].copy_(value)
