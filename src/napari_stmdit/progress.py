"""Progress of a run, cancelling, and batches that halve when memory is short."""

from __future__ import annotations

import inspect
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from .errors import first_line, is_out_of_memory

P = ParamSpec("P")
T = TypeVar("T")
BATCH = 8
"""Default batch size; changes no result, and is halved when memory is short."""


class CancelToken:
    """Flag that any thread may set; a run checks it at every denoising step."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def cancel(self) -> None:
        """Ask the run to stop at its next step."""
        self._event.set()

    @property
    def cancelled(self) -> bool:
        """Whether a stop was asked for."""
        return self._event.is_set()


class Batches:
    """Batch size, halved for all that follows when memory is short.

    Parameters
    ----------
    size
        Initial size.
    items
        Name of the items, for notes.
    smallest
        Size at which too little memory becomes an error.

    Attributes
    ----------
    notes
        Sentences on what was halved and why.
    """

    def __init__(self, size: int, items: str = "items", smallest: int = 1) -> None:
        self.size, self.items, self.smallest = size, items, smallest
        self.notes: list[str] = []

    @classmethod
    def of(cls, size: int | Batches) -> Batches:
        """Return new batches of a size, or the given shared ones."""
        return size if isinstance(size, Batches) else cls(size)

    def each(
        self,
        items: Any,
        work: Callable[[Any], Iterator[T]],
        stopped: Callable[[], bool] = lambda: False,
        halved: Callable[[], None] = lambda: None,
    ) -> Iterator[T]:
        """Yield from ``work`` on slices of ``items``; a slice too large for the memory is repeated in halves.

        ``stopped`` is checked after each slice; ``halved`` is called before a repetition.
        """
        at = 0
        while at < len(items):
            own = items[at : at + self.size]
            try:
                yield from work(own)
            except Exception as error:  # only one kind is dealt with, the rest goes on up
                if not is_out_of_memory(error) or len(own) <= self.smallest:
                    raise
                self._halve(len(own), error)
                halved()
                continue
            if stopped():
                return
            at += len(own)

    def _halve(self, count: int, error: Exception) -> None:
        self.size = (count + 1) // 2
        self.notes.append(
            f"too little memory for {count} {self.items} at once ({first_line(error)}); went on with {self.size} at once"
        )


@dataclass(frozen=True)
class Progress:
    """State of a run after one denoising step or one finished batch.

    Attributes
    ----------
    patches_done, patches_total
        Finished patches and all patches of the plan.
    step, steps
        Denoising step within the present batch, and steps per batch.
    batch
        Patches in the present batch.
    elapsed_s
        Seconds since the run started.
    part
        Share of the present step that is done, 0 to 1; continuous mode, whose steps are long.
    notes
        Sentences for the user.
    failed
        Index -> reason of the patches that could not be made.
    facts
        Facts for the result's record, in JSON types.
    doing
        What is done before the first patch, in words; empty while patches are made.
    """

    patches_done: int
    patches_total: int
    step: int
    steps: int
    batch: int
    elapsed_s: float
    part: float = 0.0
    notes: tuple[str, ...] = ()
    failed: Mapping[int, str] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    doing: str = ""

    @property
    def fraction(self) -> float:
        """Share of the work that is done, 0 to 1."""
        if self.patches_total == 0:
            return 1.0
        part = self.batch * (self.step + self.part) / self.steps if self.steps else 0.0
        return min(1.0, (self.patches_done + part) / self.patches_total)

    @property
    def eta_s(self) -> float | None:
        """Seconds still to go at the present pace; None before anything is done."""
        return None if self.fraction <= 0 else self.elapsed_s * (1 - self.fraction) / self.fraction


@dataclass(frozen=True)
class DownloadProgress:
    """State of a download.

    Attributes
    ----------
    bytes_done, bytes_total
        Of all files together; ``bytes_done`` never goes back.
    file
        The file under way.
    elapsed_s
        Seconds since the first byte was asked for.
    """

    bytes_done: int
    bytes_total: int
    file: str
    elapsed_s: float

    @property
    def fraction(self) -> float:
        """Share of the bytes that have arrived, 0 to 1."""
        return self.bytes_done / self.bytes_total if self.bytes_total else 1.0


@dataclass
class Stopwatch:
    """Timer that starts when it is made."""

    start: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.start


def finish(steps: Generator[Any, None, T], on_step: Callable[[Any], None] | None = None) -> T:
    """Run a generator to its end and return its value; ``on_step`` is called with every item."""
    while True:
        try:
            step = next(steps)
        except StopIteration as end:
            found: T = end.value
            return found
        if on_step is not None:
            on_step(step)


def drained(steps: Callable[P, Generator[Any, None, T]], name: str) -> Callable[P, T]:
    """Return a function ``name`` that runs a generator function to its end and returns its value."""

    @wraps(steps)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        return finish(steps(*args, **kwargs))

    run.__name__ = run.__qualname__ = name
    signature = inspect.signature(steps).replace(return_annotation=inspect.Signature.empty)
    run.__signature__ = signature  # type: ignore[attr-defined]
    return run


def mapped(steps: Generator[Any, None, T], change: Callable[[Any], Any]) -> Generator[Any, None, T]:
    """Apply ``change`` to each item of a generator, and return the generator's value."""
    while True:
        try:
            step = next(steps)
        except StopIteration as end:
            found: T = end.value
            return found
        yield change(step)
