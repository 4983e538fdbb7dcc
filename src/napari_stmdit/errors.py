"""Errors for users: what was got, what was expected, what to do next.

`StmditError` is never a `RuntimeError`: the generator workers of napari take that for a deleted worker and swallow it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Fault = tuple[str, tuple[int, ...], str]
"""Misfit of a tensor: its name, its shape, the reason."""

_ROWS_SHOWN = 20


class StmditError(Exception):
    """Base of all errors that a user sees as one message, without a traceback."""


class SectionError(StmditError):
    """Error of a tissue section: unreadable, or without what an operation needs."""


class ScaleError(SectionError):
    """Error of a slide without a scale: microns per pixel must be given."""


class GeneError(StmditError):
    """Error of genes: missing, unknown or ambiguous."""


class RequestError(StmditError):
    """Error of a request that cannot be planned, with every fault and its place.

    Parameters
    ----------
    faults
        Pairs of (place, message); the place names the field of the request.
    """

    def __init__(self, faults: Sequence[tuple[str, str]]) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(f"{place}: {message}" for place, message in self.faults))

    @property
    def words(self) -> str:
        """The faults without their places, which say little to who has no file of the request."""
        return " ".join(dict.fromkeys(message for _, message in self.faults))


class CheckpointError(StmditError):
    """Error of a checkpoint: unsafe to read, incomplete, or unfit."""


class DownloadError(StmditError):
    """Error of a download: unavailable, or damaged on arrival."""


class SynthesisError(StmditError):
    """Error while sampling; what was finished before is kept."""


class SynthesisStoppedError(SynthesisError):
    """Error of a run that was stopped before it could begin."""


class ClusterGoneError(SynthesisError):
    """Error of a cluster that computes no more: its scheduler or all of its workers are gone."""


class NotFiniteError(SynthesisError):
    """Error of non-finite items in a batch; the others are fine.

    Parameters
    ----------
    items
        Their places in the batch.
    """

    def __init__(self, message: str, items: Sequence[int] = ()) -> None:
        self.items = tuple(items)
        super().__init__(message)


class StoreError(StmditError):
    """Error of a result that cannot be written or read back."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception means too little memory, of a device or of the computer."""
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
