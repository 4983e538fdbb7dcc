"""What waits for the present run to end. One piece of work at a time uses the model. No Qt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .state import Message, QueuedRun, WorkbenchState


@dataclass(frozen=True)
class _Waiting:
    entry: QueuedRun
    start: Callable[[], None]


class RunQueue:
    """Starts work at once where nothing is under way, and else after what is before it.

    Work that was stopped by the user or failed holds the queue: who presses Stop wants the computer to stop, and what failed
    once may fail again. It goes on with `resume`, or with the next run that ends well.
    """

    def __init__(self, state: WorkbenchState) -> None:
        self._state = state
        self._waiting: list[_Waiting] = []
        self._count = 0

    def add(self, title: str, start: Callable[[], None]) -> bool:
        """Start a piece of work, or let it wait; return whether it was started. ``start`` has to set the state to busy."""
        if not self._state.status.busy:
            start()
            return True
        self._count += 1
        self._waiting.append(_Waiting(QueuedRun(self._count, title), start))
        self._tell()
        return False

    def remove(self, number: int) -> None:
        """Take one piece of work out."""
        self._waiting = [one for one in self._waiting if one.entry.number != number]
        self._tell()

    def clear(self) -> int:
        """Take all out; return how many there were."""
        count = len(self._waiting)
        self._waiting = []
        self._tell()
        return count

    def ended(self, well: bool) -> None:
        """Note that the present work has ended; the next is started where it ended well."""
        self._state.queue_held = bool(self._waiting) and not well
        if self._state.queue_held:
            text = f"{self._state.message.text} {len(self._waiting)} queued: press Continue to go on."
            self._state.message = Message(self._state.message.kind, text)
        elif well:
            self.resume()

    def resume(self) -> None:
        """Start the next piece of work where nothing is under way."""
        self._state.queue_held = False
        if self._waiting and not self._state.status.busy:
            one = self._waiting.pop(0)
            self._tell()
            one.start()

    def _tell(self) -> None:
        self._state.queue = tuple(one.entry for one in self._waiting)
        if not self._waiting:
            self._state.queue_held = False
