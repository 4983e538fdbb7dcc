"""Undo and redo of a value that is never changed in place."""

from __future__ import annotations

from typing import Generic, TypeVar

T = TypeVar("T")
MOST_STEPS = 200


class History(Generic[T]):
    """The values that something had, in their order, and which of them it has now."""

    def __init__(self, value: T) -> None:
        self._values = [value]
        self._at = 0
        self._merging: object = None

    @property
    def value(self) -> T:
        """The present value."""
        return self._values[self._at]

    @property
    def can_undo(self) -> bool:
        """Whether there is a value before this one."""
        return self._at > 0

    @property
    def can_redo(self) -> bool:
        """Whether there is a value after this one."""
        return self._at + 1 < len(self._values)

    def push(self, value: T, merging: object = None) -> None:
        """Take a new value; what was undone is forgotten.

        Values pushed one after the other with the same ``merging``, which is not None, are one step, as those of a slider that
        is being dragged.
        """
        if merging is not None and merging == self._merging and self._at:
            self._values[self._at :] = [value]
        else:
            self._values[self._at + 1 :] = [value]
            self._values = self._values[-MOST_STEPS - 1 :]
            self._at = len(self._values) - 1
        self._merging = merging

    def replace(self, value: T) -> None:
        """Change the present value without a step."""
        self._values[self._at] = value

    def undo(self) -> T:
        """Go one value back, if there is one, and return the present value."""
        self._at = max(0, self._at - 1)
        self._merging = None
        return self.value

    def redo(self) -> T:
        """Go one value forward, if there is one, and return the present value."""
        self._at = min(len(self._values) - 1, self._at + 1)
        self._merging = None
        return self.value
