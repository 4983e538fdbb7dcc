"""The patches of an evaluation, case by case and seed by seed, kept in its folder so that one that was stopped goes on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import StoreError
from ..progress import CancelToken, Progress
from ..storage.atomic import write_atomically
from ..storage.fingerprint import of_json
from ..synthesis.conditions import Conditions
from ..synthesis.identity import inputs_of
from ..synthesis.models import PatchModel
from ..synthesis.run import run
from ..types import Plan, Section

STACKS = "stacks"


@dataclass(frozen=True)
class Stack:
    """Patches of one case and seed in one section.

    Attributes
    ----------
    images
        (n, side, side, 3) uint8.
    made
        (n,) bool: which patches are there. One that came out as not finite never is.
    """

    images: NDArray[np.uint8]
    made: NDArray[np.bool_]


class StackFolder:
    """Where finished patches are kept; each file is named by all that its pixels depend on.

    Parameters
    ----------
    folder
        The evaluation's folder.

    Raises
    ------
    StoreError
        The folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / STACKS
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"{folder} cannot be written: {error.strerror}; give another --output") from error

    def load(self, key: str, count: int, side: int) -> Stack:
        """Return what is kept under a key; an empty stack where there is nothing, or something damaged."""
        empty = Stack(np.zeros((count, side, side, 3), np.uint8), np.zeros(count, dtype=bool))
        path = self._path(key)
        if not path.is_file():
            return empty
        try:
            with np.load(path, allow_pickle=False) as file:
                stack = Stack(file["images"], file["made"])
        except (OSError, ValueError, KeyError, EOFError):
            return empty
        fits = stack.images.shape == empty.images.shape and stack.made.shape == empty.made.shape
        return stack if fits else empty

    def save(self, key: str, stack: Stack) -> None:
        """Keep a stack, whole or not; the file appears at once or not at all."""
        path = self._path(key)
        try:
            write_atomically(path, lambda file: np.savez(file, images=stack.images, made=stack.made))
        except OSError as error:
            raise StoreError(
                f"{path} cannot be written: {error.strerror}; what was finished before is kept, --resume goes on"
            ) from error

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.npz"


class Naming:
    """Names stacks by what they depend on: section, checkpoint, request, dtype and code.

    Parameters
    ----------
    section, model
        Of all plans, which are for the same spots: what of the slide they read, which takes a while to find, differs by morphology alone.
    """

    def __init__(self, section: Section, model: PatchModel) -> None:
        self._section, self._model = section, model
        self._inputs: dict[tuple[str, str], dict[str, Any]] = {}

    def key(self, plan: Plan, further: str = "") -> str:
        """Return the name of a plan's stack; ``further`` tells conditions apart that the request does not."""
        request = plan.request.model_dump(mode="json", exclude={"section", "checkpoint", "allow_gene_mismatch"})
        conditions = plan.request.morphology, plan.request.expression
        if conditions not in self._inputs:
            self._inputs[conditions] = inputs_of(plan, self._section, self._model)
        return of_json({**self._inputs[conditions], "request": request, "further": further})[:24]


def synthesize_stack(
    plan: Plan,
    section: Section,
    model: PatchModel,
    before: Stack,
    batch: int,
    cancel: CancelToken,
    conditions: Conditions | None = None,
) -> Iterator[tuple[Stack, Progress | None]]:
    """Compute what a stack lacks with THE loop; yields it as it grows, with the run's progress."""
    images, made = before.images.copy(), before.made.copy()
    done = frozenset(np.flatnonzero(made).tolist())
    yield Stack(images, made), None
    if len(done) == len(plan):
        return
    for finished, progress in run(plan, section, model, batch=batch, cancel=cancel, done=done, conditions=conditions):
        for patch in finished:
            images[patch.patch.index] = patch.pixels
            made[patch.patch.index] = True
        yield Stack(images, made), progress
