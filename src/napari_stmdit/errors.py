"""Every error a user can meet: what was got, what was expected, what to do next.

All of them derive from `StmditError`, which derives from `Exception` and never from `RuntimeError`: the generator workers of
napari take a `RuntimeError` for a deleted worker and swallow it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Fault = tuple[str, tuple[int, ...], str]
"""Of a tensor that does not fit: its name, its shape, the reason."""

_ROWS_SHOWN = 20


class StmditError(Exception):
    """Root of the errors that are shown to a user as one message, without a traceback."""


class SectionError(StmditError):
    """A tissue section cannot be read, or lacks what an operation needs."""


class ScaleError(SectionError):
    """A slide states no microns per pixel, and they were not given: they have to be asked for."""


class GeneError(StmditError):
    """Genes are missing, unknown or ambiguous."""


class RequestError(StmditError):
    """A request cannot be planned. Carries every fault that was seen, each with its place.

    Parameters
    ----------
    faults
        Pairs of (place, message); the place names the field of the request.
    """

    def __init__(self, faults: Sequence[tuple[str, str]]) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(f"{place}: {message}" for place, message in self.faults))


class CheckpointError(StmditError):
    """A checkpoint cannot be read safely, is incomplete, or does not fit."""


class DownloadError(StmditError):
    """Something that is kept elsewhere cannot be fetched, or arrived damaged."""


class SynthesisError(StmditError):
    """Sampling failed; what was finished before is kept."""


class NotFiniteError(SynthesisError):
    """Some items of a batch came out as not finite; the others would be fine without them.

    Parameters
    ----------
    items
        Their places in the batch.
    """

    def __init__(self, message: str, items: Sequence[int] = ()) -> None:
        self.items = tuple(items)
        super().__init__(message)


class StoreError(StmditError):
    """A result cannot be written or read back."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception says that a device or the computer has too little memory, whoever raised it."""
    text = str(error).lower()
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or any(sign in text for sign in ("out of memory", "can't allocate memory", "unable to allocate", "bad_alloc"))
    )


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, or its kind where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def table(faults: Iterable[Fault]) -> str:
    """Write faults as a table of (key, shape, reason), the first 20 of them."""
    rows = [(name, str(shape), reason) for name, shape, reason in faults]
    shown = rows[:_ROWS_SHOWN]
    wide = [max(len(row[column]) for row in shown) for column in range(2)] if shown else [0, 0]
    lines = [f"  {name:<{wide[0]}}  {shape:<{wide[1]}}  {reason}" for name, shape, reason in shown]
    return "\n".join([*lines, f"  ... and {len(rows) - len(shown)} more"] if len(rows) > len(shown) else lines)
