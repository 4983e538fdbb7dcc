"""Unsaved results and edits: kept on disk as they are made, and those of earlier sessions offered. No Qt."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

from ..errors import StmditError, StoreError
from ..progress import CancelToken
from ..synthesis.requests import EditFile, used_by
from ..synthesis.result import Result
from ..synthesis.unsaved import KeptSection, KeptSession, ViewerSession, discard, find_sessions, results_and_edits
from ..tissue.elements import section_key
from ..tissue.open import SectionSource
from ..types import Section
from . import jobs, layers
from .jobs import Handlers, Start
from .painting import Painting
from .results import ResultList
from .state import WorkbenchState


class Keeping:
    """Background saving of a viewer's unsaved work, and recovery of earlier sessions.

    Parameters
    ----------
    state, results, painting
        Of the viewer.
    start
        Starts a job.
    open_section
        Opens a section.
    """

    def __init__(
        self,
        state: WorkbenchState,
        start: Start,
        results: ResultList,
        painting: Painting,
        open_section: Callable[[SectionSource], None],
    ) -> None:
        self.state = state
        self._start, self._results, self._painting, self._open = start, results, painting, open_section
        self._own: ViewerSession | None = None
        self._taken: list[ViewerSession] = []
        self._works: deque[Callable[[], Callable[[], None]]] = deque()
        self._one_at_a_time = Lock()
        self._busy = self._closed = self._edits_wait = False
        self._known: set[int] = set()
        self._places: dict[int, tuple[ViewerSession, Path]] = {}
        self._pending: dict[str, list[tuple[ViewerSession, KeptSession]]] = {}
        self._source: tuple[Section, SectionSource | None] | None = None

    def begin(self, home: Path) -> None:
        """Start saving into a folder of user data, also again after `close`, and look for earlier sessions there."""
        if self._own is None:
            self._own = ViewerSession(home)
            self._known = {entry.number for entry in self.state.results}
            events = self.state.events
            events.results.connect(self._results_changed, max_args=0)
            events.request.connect(self._edits_changed, max_args=0)
            self._results.deleted = lambda number: self._forget([number])
        elif not self._closed:
            return
        self._closed, self.state.keeps = False, True
        sessions = [self._own, *self._taken]

        def look() -> Callable[[], None]:
            for session in sessions:  # first: what is in the list already is not offered
                if not session.reopen():
                    self._places = {n: place for n, place in self._places.items() if place[0] is not session}
            found = find_sessions(home)
            return lambda: setattr(self.state, "kept", found)

        self._do(look)
        self._results_changed()  # while it was closed
        self._edits_changed()

    def opened(self, section: Section, source: SectionSource | None) -> None:
        """Record how a section was opened."""
        self._source = section, source

    # --- what is kept

    def _results_changed(self) -> None:
        if self._closed:
            return
        for entry in self.state.results:
            if entry.number not in self._known and entry.saved is None and entry.result is not None:
                self._do(partial(self._keep, entry.number, entry.result, entry.name, self._source_of(entry.section)))
            self._known.add(entry.number)
        saved = [
            entry.number for entry in self.state.results if entry.saved is not None and entry.number in self._places
        ]
        if saved:
            self._forget(saved)

    def _keep(self, number: int, result: Result, name: str, source: SectionSource | None) -> Callable[[], None]:
        own = self._own
        assert own is not None
        self._places[number] = own, own.keep(result, name, source)

        def kept() -> None:
            entry = self._results.entry(number)
            if entry is not None and entry.saved is not None:  # meanwhile
                self._forget([number])

        return kept

    def _forget(self, numbers: Sequence[int]) -> None:
        def forget() -> Callable[[], None]:
            for number in numbers:
                if number in self._places:
                    session, place = self._places.pop(number)
                    session.forget([place])
            return lambda: None

        self._do(forget)

    def _edits_changed(self) -> None:
        if self.state.section is not None and not self._edits_wait and not self._closed:
            self._edits_wait = True
            self._do(self._note_edits)

    def _note_edits(self) -> Callable[[], None]:
        self._edits_wait = False
        section, own = self.state.section, self._own
        if section is not None and own is not None:
            edits = used_by(self.state.unsaved_edits, self.state.request)
            own.note_edits(section, self._source_of(section), edits)
        return lambda: None

    def _source_of(self, section: Section) -> SectionSource | None:
        if section.path is None:
            return None
        if self._source is not None and self._source[1] is not None and self._source[0].path == section.path:
            return self._source[1]
        image, scale = section.image, section.calibration
        fullres = None if image is None or section.kind == "image" or image.pixel_size > 1 else image.file
        mpp = scale.mpp if scale.source == "override" else None
        how = {"fullres": None if fullres is None else str(fullres), "mpp": mpp}
        return SectionSource.given(str(section.path), factors=section.expression.place or None, **how)

    # --- what earlier sessions left

    def restore(self, kept: KeptSession) -> None:
        """Restore a session: its section is opened if needed, its results are unsaved again."""
        if self.state.opening:  # another section would take the place of the one that is awaited
            self.state.tell("info", "A section is being opened: press Restore again when it is there.")
            return
        self._take_from_offer(kept)
        if self._own is None or (session := ViewerSession.take(self._own.home, kept)) is None:
            self.state.tell("warning", "These results belong to another viewer now; close that first.")
            return
        self._taken.append(session)
        for key in kept.sections:
            self._pending.setdefault(key, []).append((session, kept))
        if self.section_shown():
            return
        sources = [one.source for one in kept.sections.values() if one.source is not None]
        if sources:
            self._open(sources[-1])
        else:
            names = " or ".join(one.name for one in kept.sections.values())
            self.state.tell("info", f"Open {names}: its results come with it.")

    def discard(self, kept: KeptSession) -> None:
        """Remove a session for good."""
        self._take_from_offer(kept)

        def remove() -> Callable[[], None]:
            discard(kept)
            return lambda: None

        self._do(remove)

    def _take_from_offer(self, kept: KeptSession) -> None:
        self.state.kept = tuple(one for one in self.state.kept if one is not kept)

    def section_shown(self) -> bool:
        """Restore what waits for the section that is open; return whether something did."""
        section = self.state.section
        if section is None:
            return False
        key = section_key(section)
        found = self._pending.pop(key, [])
        for session, kept in found:
            self._read(section, key, session, kept)
        return bool(found)

    def _read(self, section: Section, key: str, session: ViewerSession, kept: KeptSession) -> None:
        def read() -> Callable[[], None]:
            read, faults = [], []
            for one in kept.results:
                if one.section == key:
                    try:
                        read.append((one, one.read(section)))
                    except StoreError as error:
                        faults.append(str(error))
            return partial(self._bring, section, session, kept.sections[key], read, faults)

        self._do(read)

    def _bring(
        self, section: Section, session: ViewerSession, kept: KeptSection, read: Sequence[Any], faults: Sequence[str]
    ) -> None:
        if self.state.section is not section:  # another was opened meanwhile: when this one comes back
            return
        for one, stored in read:
            layer = self._results.place(layers.stored_layer(stored))
            number = None if layer is None else self._results.take_stored(layer, saved=False)
            if number is not None:
                self._places[number] = session, one.place
                layer.name = one.name
                self.state.chosen_result = number
        if kept.edits.edits and not self.state.request.edits:
            self._painting.take(kept.edits)  # from now on this viewer keeps them

            def hand_over() -> Callable[[], None]:
                session.note_edits(section, kept.source, EditFile())
                return lambda: None

            self._do(hand_over)
        words = results_and_edits(len(read), len(kept.edits.edits))
        text = f"Brought back, and still not saved: {words} of {kept.name}." if words else ""
        self.state.tell("warning" if faults else "info", " ".join([text, *faults]).strip())

    # --- in the background

    def close(self) -> None:
        """Release the unsaved work after pending writes."""
        if self._own is None or self._closed:
            return
        self._do(self._note_edits)
        sessions = [self._own, *self._taken]

        def close() -> Callable[[], None]:
            for session in sessions:
                session.close()
            return lambda: None

        self._do(close, now=True)
        self._closed = True

    def _do(self, work: Callable[[], Callable[[], None]], now: bool = False) -> None:
        """Queue work with files on one thread; the function it returns is called on this one."""
        if self._closed:
            return
        self._works.append(work)
        if self._busy and not now:
            return
        self._busy = True
        outcomes: list[Callable[[], None]] = []

        def all_of_them() -> None:
            with self._one_at_a_time:  # who closes starts a job of its own, and does not wait for this one
                while self._works:
                    try:
                        outcomes.append(self._works.popleft()())
                    except (StmditError, OSError) as error:
                        outcomes.append(partial(self._failed, str(error)))

        job = jobs.Job(
            "Keeping what is not saved",
            jobs.once(all_of_them),
            jobs.failing(StoreError, "what is not saved could not be kept"),
            quiet=True,
        )
        ended = partial(self._ended, outcomes)
        self._start(job, CancelToken(), Handlers(lambda _: None, lambda fault: self._failed(str(fault)), ended))

    def _ended(self, outcomes: list[Callable[[], None]]) -> None:
        self._busy = False
        if self._closed:
            return
        for outcome in outcomes:
            outcome()
        if self._works and not self._busy:
            self._do(self._works.popleft())

    def _failed(self, why: str) -> None:
        self.state.keep_fault = why
        self.state.tell("warning", why)
