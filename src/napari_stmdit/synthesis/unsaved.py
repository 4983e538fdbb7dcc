"""Unsaved results and edits: kept on disk as they are made, and offered at the next start, also after a crash.

A session is the folder of one viewer, which holds its lock while it lives::

    sessions/<when and random>/lock
                               session.json    sections, their edits, and which results were saved or deleted since
                               results/<n>/    a result: record.json, the zarr array rgba, the patches before blending

Each file is written atomically; only unchanged files of this program are removed.
"""

from __future__ import annotations

import datetime
import json
import shutil
import uuid
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ValidationError

from ..errors import RequestError, SectionError, StoreError
from ..files import BadFile, read_json
from ..storage.atomic import LOCK, Work, explained, hold, remove_left_drafts, write_json
from ..text import counted
from ..tissue.crops import computed
from ..tissue.elements import section_key
from ..tissue.open import SectionSource
from ..tissue.store_entries import put_patches
from ..types import Section
from .requests import EditFile
from .result import Result
from .stored import StoredResult

if TYPE_CHECKING:
    from filelock import BaseFileLock

SESSIONS, FILE, RESULTS, RECORD, RGBA = "sessions", "session.json", "results", "record.json", "rgba"
MAX_DAYS = 30
"""Age after which an unrestored session is removed."""
MAX_BYTES = 4 * 2**30
"""Maximum size of all sessions: the oldest are removed at a start; what does not fit is not kept, with a message."""
CHUNK = 512
WORK = Work("sessions of napari-stmdit", "this program", "move it away")
THEN = "save what you need yourself"


def results_and_edits(results: int, edits: int) -> str:
    """Return ``3 results and 1 edit``; empty where there is nothing."""
    parts = [counted(n, word) for n, word in ((results, "result"), (edits, "edit")) if n]
    return " and ".join(parts)


@dataclass(frozen=True)
class KeptSection:
    """Section with unsaved work: its name, source and edits; ``source`` is None of one in memory."""

    name: str
    source: SectionSource | None
    edits: EditFile = EditFile()

    @property
    def facts(self) -> dict[str, Any]:
        """JSON types only."""
        source = None if self.source is None else self.source.absolute().model_dump(mode="json", exclude_defaults=True)
        return {"name": self.name, "source": source, "edits": self.edits.model_dump(mode="json")}

    @classmethod
    def read(cls, facts: Mapping[str, Any]) -> KeptSection:
        """Build from facts; raises ValueError, SectionError or RequestError where they are damaged."""
        source = facts.get("source")
        found = None if source is None else SectionSource.model_validate(source)
        return cls(str(facts["name"]), found, EditFile.model_validate(facts.get("edits") or {}))


@dataclass(frozen=True)
class KeptResult:
    """Unsaved result: its folder, its name, and the key of its section (`section_key`)."""

    place: Path
    name: str
    section: str

    def read(self, section: Section) -> StoredResult:
        """Read it as a result of the section; its pixels stay lazy.

        Raises
        ------
        StoreError
            It is damaged, or of another section.
        """
        import dask.array as da

        try:
            record = read_json(self.place / RECORD)
            affine = np.array(record["pixel_to_fullres_yx"], dtype=np.float64).reshape(3, 3)
            rgba = da.from_zarr(str(self.place / RGBA))
            provenance = dict(record["provenance"])
        except (BadFile, OSError, KeyError, TypeError, ValueError) as error:
            raise StoreError(f"{self.name} was kept in {self.place}, and is damaged ({error})") from error
        if self.section != section_key(section):
            raise StoreError(f"{self.name} was made from other spots than those of {section.name}")
        return StoredResult(self.place.name, self.place, rgba, affine, section, provenance, (rgba,))


@dataclass(frozen=True)
class KeptSession:
    """Unsaved work of a session; ``sections`` by their keys (`section_key`)."""

    folder: Path
    begun: datetime.datetime
    sections: Mapping[str, KeptSection]
    results: tuple[KeptResult, ...]

    @property
    def words(self) -> str:
        """Summary of the unsaved work."""
        edits = sum(len(one.edits.edits) for one in self.sections.values())
        names = " and ".join(dict.fromkeys(one.name for one in self.sections.values()))
        return f"{results_and_edits(len(self.results), edits)} of {names} from {self.begun:%d %B, %H:%M}"

    def __bool__(self) -> bool:
        return bool(self.results or any(one.edits.edits for one in self.sections.values()))


@dataclass
class ViewerSession:
    """Session of one viewer; its folder is created with the first thing to keep. Driven by one thread at a time.

    Parameters
    ----------
    home
        The folder of user data.
    """

    home: Path
    folder: Path | None = None
    lock: BaseFileLock | None = None
    sections: dict[str, KeptSection] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)
    """Names of the folders of results that were saved or deleted."""
    closed: Path | None = None
    """Its folder before `close`, where unsaved work stays."""

    @classmethod
    def take(cls, home: Path, kept: KeptSession) -> ViewerSession | None:
        """Continue an abandoned session; None where another viewer has it."""
        lock = _lock(kept.folder)
        if lock is None:
            return None
        there = {place.name for place in _places(kept.folder)}
        return cls(home, kept.folder, lock, dict(kept.sections), there - {one.place.name for one in kept.results})

    def keep(self, result: Result | StoredResult, name: str, source: SectionSource | None) -> Path:
        """Write a result and the source of its section; return its folder.

        Raises
        ------
        StoreError
            There is no room, or the folder cannot be written.
        """
        affine = result.pixel_to_fullres if isinstance(result, StoredResult) else result.plan.frame.affine
        key = self._note(result.section, source)
        patches, rgba = result.patches, result.rgba
        size = int(np.prod(rgba.shape)) + (0 if patches is None else int(np.prod(patches.shape)))
        free = MAX_BYTES - _size(self.home / SESSIONS)
        if size > free:
            text = (
                f"it may take {size / 2**20:,.0f} MB, and {max(free, 0) / 2**20:,.0f} MB are left for unsaved results"
            )
            raise StoreError(f"{name} is not kept for the next start: {text}; save it")
        folder = self._begun()
        number = 1 + max((int(place.name) for place in _places(folder)), default=0)
        place = folder / RESULTS / str(number)
        provenance = json.loads(json.dumps(dict(result.provenance)))
        self._write()  # first: a result whose section is not known would not be offered
        with explained(folder, THEN):
            place.parent.mkdir(exist_ok=True)
            with WORK.replacing(place) as draft:
                draft.mkdir()
                _write_rgba(draft / RGBA, rgba)
                if patches is not None and len(patches):
                    put_patches(draft, place.name, np.asarray(patches[:]), provenance)
                about = {"name": name, "section": key, "pixel_to_fullres_yx": affine.tolist(), "provenance": provenance}
                write_json(draft / RECORD, about)
        return place

    def note_edits(self, section: Section, source: SectionSource | None, edits: EditFile) -> None:
        """Write the unsaved edits of a section; none remove them."""
        known = self.sections.get(section_key(section))
        if (known is None and not edits.edits) or (known is not None and known.edits == edits):
            return
        key = self._note(section, source)
        self.sections[key] = KeptSection(section.name, self.sections[key].source, edits)
        self._begun()
        self._write()

    def forget(self, places: Iterable[Path]) -> None:
        """Mark results as saved or deleted. Their files stay until `close`, as they may be shown."""
        self.gone |= {place.name for place in places}
        self._write()

    def close(self) -> None:
        """End and unlock the session: unsaved work stays, everything else is removed."""
        folder, lock = self.folder, self.lock
        if folder is None or lock is None:
            return
        try:
            for place in _places(folder):
                if place.name in self.gone:
                    _remove_result(place)
            self.gone &= {place.name for place in _places(folder)}
            self._write()
            if not _read(folder):
                _remove(folder)
        finally:
            self.folder, self.lock, self.closed = None, None, folder
            lock.release()

    def reopen(self) -> bool:
        """Continue after `close`; return whether its work is still there, and no other viewer's."""
        if self.folder is not None:
            return True
        folder, self.closed = self.closed, None
        self.lock = _lock(folder) if folder is not None and (folder / FILE).exists() else None
        if self.lock is None:
            self.sections, self.gone = {}, set()
            return False
        self.folder = folder
        return True

    def _note(self, section: Section, source: SectionSource | None) -> str:
        key = section_key(section)
        before = self.sections.get(key)
        edits = EditFile() if before is None else before.edits
        known = source if source is not None or before is None else before.source
        self.sections[key] = KeptSection(section.name, known, edits)
        return key

    def _begun(self) -> Path:
        if self.folder is None:
            stamp = f"{datetime.datetime.now():%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:6]}"
            folder = self.home / SESSIONS / stamp
            with explained(folder, THEN):
                folder.mkdir(parents=True)
                self.lock = _lock(folder)
            self.folder = folder
        return self.folder

    def _write(self) -> None:
        if self.folder is not None:
            about = {
                "sections": {key: section.facts for key, section in self.sections.items()},
                "gone": sorted(self.gone),
            }
            with explained(self.folder, THEN):
                write_json(self.folder / FILE, about)


def find_sessions(home: Path) -> tuple[KeptSession, ...]:
    """Return the sessions with unsaved work and no living viewer, the latest first.

    Sessions that are too old, too large or empty are removed first.
    """
    found: list[KeptSession] = []
    used = 0
    folder = home / SESSIONS
    for place in sorted(folder.iterdir() if folder.is_dir() else (), reverse=True):
        if not place.is_dir() or (lock := _lock(place)) is None:
            continue
        try:
            kept = _read(place)
            used += _size(place)
            age = datetime.datetime.now() - _last_written(kept)
            if not kept or age.days > MAX_DAYS or used > MAX_BYTES:
                _remove(place)
            else:
                found.append(kept)
        except (OSError, StoreError):  # not as this program writes it: it stays as it is, and is not offered
            continue
        finally:
            lock.release()
    return tuple(found)


def discard(kept: KeptSession) -> None:
    """Remove a session for good; foreign files in it stay.

    Raises
    ------
    StoreError
        Another viewer has it.
    """
    lock = _lock(kept.folder)
    if lock is None:
        raise StoreError("these results belong to another viewer now; close that first")
    try:
        _remove(kept.folder)
    finally:
        lock.release()


# ------------------------------------------------------------------------------------------------- files


def _lock(folder: Path) -> BaseFileLock | None:
    with suppress(OSError):  # a disk without locks, or one that may not be written
        return hold(folder / LOCK)
    return None


def _read(folder: Path) -> KeptSession:
    """Read the session of a folder; raises StoreError where it is not as this program writes it."""
    try:
        about = read_json(folder / FILE) if (folder / FILE).exists() else {}
        sections = {str(key): KeptSection.read(facts) for key, facts in dict(about.get("sections") or {}).items()}
        gone = set(about.get("gone") or ())
        begun = datetime.datetime.strptime(folder.name[:15], "%Y%m%d-%H%M%S")
    except (
        BadFile,
        AttributeError,
        KeyError,
        TypeError,
        ValueError,
        ValidationError,
        SectionError,
        RequestError,
    ) as error:
        raise StoreError(f"{folder} is damaged ({error})") from error
    results = []
    for place in _places(folder):
        with suppress(BadFile, KeyError, TypeError):  # a damaged one hides no other
            record = read_json(place / RECORD)
            if place.name not in gone and record["section"] in sections:
                results.append(KeptResult(place, str(record["name"]), str(record["section"])))
    return KeptSession(folder, begun, sections, tuple(results))


def _last_written(kept: KeptSession) -> datetime.datetime:
    """Return when work was last written into a session: a viewer may stay open for longer than sessions are kept."""
    files = (kept.folder / FILE, *(one.place / RECORD for one in kept.results))
    times = [datetime.datetime.fromtimestamp(file.stat().st_mtime) for file in files if file.exists()]
    return max(times, default=kept.begun)


def _places(folder: Path) -> list[Path]:
    there = folder / RESULTS
    found = [place for place in (there.iterdir() if there.is_dir() else ()) if place.name.isdigit()]
    return sorted(found, key=lambda place: int(place.name))


def _write_rgba(place: Path, rgba: Any) -> None:
    import zarr

    height, width = (int(n) for n in rgba.shape[:2])
    array = zarr.create_array(place, shape=(height, width, 4), chunks=(CHUNK, CHUNK, 4), dtype="uint8", fill_value=0)
    for top in range(0, height, CHUNK):
        (array[top : top + CHUNK],) = computed(rgba[top : top + CHUNK])


def _size(folder: Path) -> int:
    total = 0
    for file in folder.rglob("*") if folder.is_dir() else ():
        with suppress(OSError):
            total += file.stat().st_size
    return total


def _remove_result(place: Path) -> None:
    """Remove the folder of a result if unchanged."""
    with suppress(StoreError, OSError):
        WORK.check(place)
        shutil.rmtree(place)


def _remove(folder: Path) -> None:
    """Remove a session; the folder stays where foreign files are in it."""
    for place in _places(folder):
        _remove_result(place)
    with suppress(OSError):
        if (folder / RESULTS).is_dir():
            remove_left_drafts(folder / RESULTS)
            (folder / RESULTS).rmdir()
        remove_left_drafts(folder)
        (folder / FILE).unlink(missing_ok=True)
        (folder / LOCK).unlink(missing_ok=True)
        folder.rmdir()
