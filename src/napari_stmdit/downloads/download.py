"""Download of an entry's files, from the hub, the web or a folder, checked, with a record of their origin.

Files have temporary names until the last one is whole. They are only hashed, never opened, and no code is fetched.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from .. import __version__
from ..errors import DownloadError
from ..files import BadFile, is_offline, read_json
from ..frozen import Frozen
from ..progress import CancelToken, DownloadProgress, Stopwatch
from ..storage.atomic import hold, write_text
from ..storage.fingerprint import of_file
from .places import Entry, download_directory, find_reference
from .transfer import PartFile, RemoteFile, check_cancelled, fetch, has_part, look_up, offline_error, writing_error

RECORD_FILE = "download.json"
_BLOCK = 1 << 20
_REPORT_S = 0.1


class FileRecord(Frozen):
    """SHA-256 and bytes of one file."""

    sha256: str
    size: int


class DownloadRecord(Frozen):
    """Record of a download (``download.json``): source, date, terms and hashes.

    Attributes
    ----------
    name, source, subfolder, licence, terms
        As in the entry.
    revision
        The commit; None where the files came from a web server or a folder.
    copied_from
        That folder; None where they were fetched.
    files
        File -> hash and size.
    date
        When it was finished, UTC, ISO 8601.
    software
        The version of this package.
    """

    name: str
    source: str
    subfolder: str
    revision: str | None
    copied_from: str | None
    files: dict[str, FileRecord]
    licence: str
    terms: str
    date: str
    software: str


@dataclass(frozen=True)
class Downloaded:
    """Result of a download.

    Attributes
    ----------
    entry, folder
        The zoo entry, and the folder of its files.
    record
        Contents of its ``download.json``; None where it was not put there by a download.
    already
        Whether it was here before.
    """

    entry: Entry
    folder: Path
    record: DownloadRecord | None
    already: bool


def download(
    entry: Entry,
    *,
    on_progress: Callable[[DownloadProgress], None] | None = None,
    cancel: CancelToken | None = None,
    offline: bool | None = None,
    endpoint: str | None = None,
    token: str | None = None,
    source_folder: str | Path | None = None,
    force: bool = False,
) -> Downloaded:
    """Bring the files of an entry into its download directory.

    Parameters
    ----------
    entry
        Of the zoo, or a public section.
    on_progress
        Called about ten times a second.
    cancel
        Checked at every block; what has arrived is kept and continued next time.
    offline
        Never touch the network; None takes it from ``STMDIT_OFFLINE`` and ``HF_HUB_OFFLINE``.
    endpoint, token
        Of the hub; None takes them from the hub client (``HF_ENDPOINT``, ``HF_TOKEN``, `hf auth login`).
    source_folder
        Copy from this folder instead; files lie in it or in the entry's sub-folder of it.
    force
        Fetch again what is here already.

    Raises
    ------
    DownloadError
        It is not available, arrived damaged, or cannot be written.
    DownloadCancelledError
        A stop was asked for.
    """
    try:
        entry = type(entry).model_validate(entry.model_dump())  # one that was built by hand may never have been
    except ValidationError as error:
        raise DownloadError(f"{entry.name!r} is no valid entry: {error}") from None
    if not force and (done := find_download(entry)) is not None:
        return done
    check_source(entry, offline=offline, source_folder=source_folder)
    folder = download_directory(entry.name)
    with _held(folder):
        if source_folder is None:
            remotes = _look_up_all(entry, endpoint, token, cancel)
            sizes, revision = {remote.name: remote.size for remote in remotes}, remotes[0].revision
        else:
            places = _places(entry, Path(source_folder))
            sizes, revision = {name: place.stat().st_size for name, place in places.items()}, None
        _check_ours(entry, folder, force, lambda name: (folder / name).stat().st_size == sizes[name])
        report = _Report(on_progress, sum(sizes.values()))
        if source_folder is None:
            parts = _fetch_all(entry, remotes, token, report, cancel)
        else:
            parts = _copy_all(entry, places, report, cancel)
        hashes = dict(zip(entry.files, (part.sha256 for part in parts), strict=True))
        _check_ours(entry, folder, force, lambda name: of_file(folder / name) == hashes[name])
        record = _record(entry, parts, revision, source_folder)
        _publish(folder, parts, record)
    return Downloaded(entry, folder, record, already=False)


def find_download(entry: Entry) -> Downloaded | None:
    """Return an entry that is on this computer and whole by its sizes, or None."""
    folder = download_directory(entry.name)
    if (folder / RECORD_FILE).is_file():
        record = _read_record(folder)
        fits = record is not None and (record.source, record.subfolder) == (entry.source, entry.subfolder)
        if record is not None and fits and all(_whole(folder / n, record.files.get(n)) for n in entry.files):
            return Downloaded(entry, folder, record, already=True)
        return None
    place = find_reference(entry)
    if place == folder and any(has_part(folder / name) for name in entry.files):
        return None  # ended while its files were replaced: they are of two versions
    return None if place is None else Downloaded(entry, place, None, already=True)


def check_source(entry: Entry, *, offline: bool | None = None, source_folder: str | Path | None = None) -> None:
    """Raise DownloadError early: a folder that lacks files, offline, or an entry to be fetched by hand."""
    if source_folder is not None:
        _places(entry, Path(source_folder))
    elif entry.fetch == "manual":
        raise DownloadError(
            f"{entry.title} is on no hub. Get {', '.join(entry.files)} from {entry.source} (licence: {entry.licence}), unpack "
            f"them into one folder, and run `stmdit download {entry.name} --from FOLDER`."
        )
    elif is_offline() if offline is None else offline:
        raise offline_error(entry)


def ask_size(entry: Entry, cancel: CancelToken | None = None) -> int | None:
    """Return the bytes of an entry: the stated ones, or those its servers state; None: unknown.

    Only headers are fetched, and nothing while offline.
    """
    if entry.size_bytes is not None or entry.fetch == "manual" or is_offline():
        return entry.size_bytes
    try:
        return sum(remote.size for remote in _look_up_all(entry, None, None, cancel))
    except DownloadError:  # the download itself says what is wrong
        return None


def _look_up_all(entry: Entry, endpoint: str | None, token: str | None, cancel: CancelToken | None) -> list[RemoteFile]:
    """Look up every file before any byte is fetched, all at the commit of the first one."""
    found: list[RemoteFile] = []
    for name in entry.files:
        revision = found[0].revision if found else entry.revision
        found.append(look_up(entry, name, revision, endpoint=endpoint, token=token, cancel=cancel))
    return found


def _fetch_all(
    entry: Entry, remotes: list[RemoteFile], token: str | None, report: _Report, cancel: CancelToken | None
) -> list[PartFile]:
    folder = download_directory(entry.name)
    parts = [PartFile(folder / remote.name, remote.version) for remote in remotes]
    have = sum(part.path.stat().st_size for part in parts if part.path.is_file())
    _check_room(folder, sum(remote.size for remote in remotes) - have)
    for remote, part in zip(remotes, parts, strict=True):
        with part:
            fetch(remote, part, entry, token=token, cancel=cancel, on_size=report.of(remote.name))
            part.settle()
        report.finish(part.size)
        for expected in (entry.sha256.get(remote.name), remote.sha256):
            _check_hash(part, expected, f"`stmdit download {entry.name}`")
    return parts


def _copy_all(entry: Entry, places: dict[str, Path], report: _Report, cancel: CancelToken | None) -> list[PartFile]:
    folder = download_directory(entry.name)
    _check_room(folder, sum(place.stat().st_size for place in places.values()))
    parts = []
    for name, place in places.items():
        on_size = report.of(name)
        with PartFile(folder / name, "copy") as part:
            part.restart()
            for block in _blocks(place):
                check_cancelled(cancel)
                part.write(block)
                on_size(part.size)
            part.settle()
        report.finish(part.size)
        _check_hash(part, entry.sha256.get(name), f"a whole copy; this one came from {place}")
        parts.append(part)
    return parts


def _blocks(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as stream:
            while block := stream.read(_BLOCK):
                yield block
    except OSError as error:
        raise DownloadError(f"{path} cannot be read: {error.strerror or error}.") from None


def _places(entry: Entry, source: Path) -> dict[str, Path]:
    source = source.expanduser()
    found = {}
    for name in entry.files:
        choices = (source / entry.subfolder / name, source / name, source / Path(name).name)
        found[name] = next((place for place in choices if place.is_file()), None)
    missing = [name for name, place in found.items() if place is None]
    if missing:
        raise DownloadError(
            f"{source} {'lacks ' + ', '.join(missing) if source.is_dir() else 'is no folder'}. {entry.name} needs "
            f"{', '.join(entry.files)} of {entry.source}, in that folder"
            f"{f' or in {entry.subfolder}/ of it' if entry.subfolder else ''}."
        )
    return {name: place for name, place in found.items() if place is not None}


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DownloadError(
            f"{folder} has room for {free:,} bytes, but {needed:,} are needed. Make room, or set STMDIT_HOME to another disk."
        )


def _check_ours(entry: Entry, folder: Path, force: bool, fits: Callable[[str], bool]) -> None:
    """Refuse to replace a file that no download put there, unless it is the same."""
    record = _read_record(folder)
    for name in entry.files:
        path = folder / name
        listed = record is not None and name in record.files
        if not force and not listed and path.exists() and not (path.is_file() and fits(name)):
            raise DownloadError(
                f"{path} was not put there by `stmdit download` and is another file than it would put there; nothing is overwritten: "
                "move it away, or give --force to replace it."
            )


def _check_hash(part: PartFile, expected: str | None, remedy: str) -> None:
    if expected is not None and part.sha256 != expected:
        got = part.sha256
        part.remove()
        raise DownloadError(
            f"{part.final.name} arrived with the SHA-256 {got}, but {expected} was expected: it is damaged or another version. "
            f"It was removed. Try {remedy} again."
        )


def _record(
    entry: Entry, parts: list[PartFile], revision: str | None, source_folder: str | Path | None
) -> DownloadRecord:
    return DownloadRecord(
        name=entry.name,
        source=entry.source,
        subfolder=entry.subfolder,
        revision=revision,
        copied_from=None if source_folder is None else str(Path(source_folder).expanduser().resolve()),
        files={
            name: FileRecord(sha256=part.sha256, size=part.size) for name, part in zip(entry.files, parts, strict=True)
        },
        licence=entry.licence,
        terms=entry.terms,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        software=f"napari-stmdit {__version__}",
    )


def _publish(folder: Path, parts: list[PartFile], record: DownloadRecord) -> None:
    final = folder / RECORD_FILE
    try:
        final.unlink(missing_ok=True)  # first gone, last written: a record never describes other files
        for part in parts:
            part.publish()
        write_text(final, record.model_dump_json(indent=2) + "\n")
    except OSError as error:
        raise writing_error(error, final) from None


def _read_record(folder: Path) -> DownloadRecord | None:
    try:
        return DownloadRecord.model_validate(read_json(folder / RECORD_FILE))
    except (BadFile, ValidationError):
        return None  # then it is fetched again


def _whole(path: Path, record: FileRecord | None) -> bool:
    return record is not None and path.is_file() and path.stat().st_size == record.size


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Hold a lock: a second download of the same entry would write into the same temporary files."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = hold(folder / ".lock", wait_s=1)
    except OSError as error:
        raise writing_error(error, folder) from None
    if lock is None:
        raise DownloadError(f"another download into {folder} is under way; wait for it, or stop it.")
    try:
        yield
    finally:
        lock.release()


class _Report:
    """Progress over all files, by their sizes."""

    def __init__(self, on_progress: Callable[[DownloadProgress], None] | None, total: int) -> None:
        self._tell = on_progress
        self._total = total
        self._finished = self._told = 0
        self._file = ""
        self._watch = Stopwatch()
        self._told_at = -_REPORT_S

    def of(self, file: str) -> Callable[[int], None]:
        """Return the callback for the growing size of one file."""
        self._file = file
        return self._grow

    def finish(self, size: int) -> None:
        """Count the present file as whole."""
        self._finished += size
        self._send(self._finished)

    def _grow(self, size: int) -> None:
        if self._watch.seconds - self._told_at >= _REPORT_S:
            self._send(self._finished + size)

    def _send(self, done: int) -> None:
        self._told = max(self._told, min(done, self._total))  # a restarted file must not move the bar back
        self._told_at = self._watch.seconds
        if self._tell is not None:
            self._tell(DownloadProgress(self._told, self._total, self._file, self._told_at))
