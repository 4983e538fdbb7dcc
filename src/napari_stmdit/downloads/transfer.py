"""Transfer of one file of a hub repository or a web server: metadata, and bytes into a temporary file, hashed on the way."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self, TypeVar

from ..errors import DownloadError, first_line
from ..progress import CancelToken
from .places import Entry

_BLOCK = 1 << 20


class PartFile:
    """A temporary file beside its final place. It is kept when closed early, and continued later.

    Every method raises DownloadError where the disk is full or the place is not writable.

    Parameters
    ----------
    final
        Where the file belongs.
    version
        Of the content; a partial file of another version is removed.
    """

    ENDING = ".part"

    def __init__(self, final: Path, version: str) -> None:
        self.final = final
        tag = hashlib.sha256(version.encode()).hexdigest()[:12]
        self.path = final.with_name(f"{final.name}.{tag}{self.ENDING}")
        self.size = 0
        self._digest = hashlib.sha256()
        self._stream: BinaryIO | None = None

    def __enter__(self) -> Self:
        try:
            self.final.parent.mkdir(parents=True, exist_ok=True)
            for other in self.final.parent.iterdir():
                if self._is_other_version(other):
                    other.unlink()
            self._stream = self.path.open("a+b")
            self._read_back(self._stream)
        except OSError as error:
            raise writing_error(error, self.path) from None
        return self

    def __exit__(self, *_: object) -> None:
        if self._stream is not None:
            with suppress(
                OSError
            ):  # a full disk was reported when the bytes were written; `settle` comes before a name is given
                self._stream.close()
            self._stream = None

    def write(self, block: bytes) -> None:
        """Append bytes."""
        assert self._stream is not None
        try:
            self._stream.write(block)
            self._stream.flush()  # a full disk shows here, and a killed process loses nothing
        except OSError as error:
            raise writing_error(error, self.path) from None
        self._digest.update(block)
        self.size += len(block)

    def restart(self) -> None:
        """Drop what has arrived."""
        assert self._stream is not None
        self._stream.seek(0)
        self._stream.truncate()
        self._digest = hashlib.sha256()
        self.size = 0

    def settle(self) -> None:
        """Flush everything to the disk."""
        assert self._stream is not None
        try:
            self._stream.flush()
            os.fsync(self._stream.fileno())
        except OSError as error:
            raise writing_error(error, self.path) from None

    @property
    def sha256(self) -> str:
        """SHA-256 of what has arrived."""
        return self._digest.hexdigest()

    def remove(self) -> None:
        """Remove the temporary file."""
        self.__exit__()
        self.path.unlink(missing_ok=True)

    def publish(self) -> None:
        """Give the file its own name; one that was there is replaced."""
        try:
            self.path.replace(self.final)
        except OSError as error:
            raise writing_error(error, self.final) from None

    def _is_other_version(self, path: Path) -> bool:
        return _is_part_of(self.final, path) and path != self.path

    def _read_back(self, stream: BinaryIO) -> None:
        """Hash what an earlier run left."""
        stream.seek(0)
        while block := stream.read(_BLOCK):
            self._digest.update(block)
            self.size += len(block)


def has_part(final: Path) -> bool:
    """Return whether a part of a file lies beside its place."""
    return final.parent.is_dir() and any(_is_part_of(final, path) for path in final.parent.iterdir())


def _is_part_of(final: Path, path: Path) -> bool:
    return re.fullmatch(rf"{re.escape(final.name)}\.[0-9a-f]{{12}}{re.escape(PartFile.ENDING)}", path.name) is not None


def writing_error(error: OSError, path: Path) -> DownloadError:
    """Return the error of a file that cannot be written, with what to do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        what = "the disk is full; what has arrived is kept. Make room and run it again: it continues."
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        what = "this place is not writable. Change its permissions, or set STMDIT_HOME to another folder."
    else:
        what = f"{error.strerror or type(error).__name__}. Set STMDIT_HOME to another folder, or mend this one."
    return DownloadError(f"{path} cannot be written: {what}")


TIMEOUT_S = 30.0
PAUSES_S = (1.0, 2.0, 4.0)  # between the attempts, of which there is one more
_UNPACKED = {"Accept-Encoding": "identity"}
_WEB_HEADERS = {"User-Agent": "napari-stmdit", **_UNPACKED}
_TRANSIENT = (408, 429, 500, 502, 503, 504)
T = TypeVar("T")


class DownloadCancelledError(DownloadError):
    """Download stopped by the user; what has arrived is continued next time."""


class _BrokenTransfer(Exception):
    """Response that ended early, or was not the requested part."""


@dataclass(frozen=True)
class RemoteFile:
    """A file on the hub or on a web server.

    Attributes
    ----------
    name, size
        Relative to the entry's sub-folder; bytes.
    url
        Its address; on the hub, at one commit.
    sha256
        Of its content, where the hub knows it (large files); else None.
    version
        Changes with the content.
    revision
        The commit that a branch or tag stands for at present; None on a web server.
    """

    name: str
    url: str
    size: int
    sha256: str | None
    version: str
    revision: str | None


def look_up(
    entry: Entry,
    name: str,
    revision: str | None,
    *,
    endpoint: str | None = None,
    token: str | None = None,
    cancel: CancelToken | None = None,
) -> RemoteFile:
    """Look up one file, without its bytes; a DownloadError says why it cannot be had and what to do."""
    if entry.fetch == "web":
        return _look_up_on_web(entry, name, cancel)
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    place = {"subfolder": entry.subfolder or None, "endpoint": endpoint}
    try:
        url = hf_hub_url(entry.source, name, revision=revision, **place)
        found = _retrying(lambda: get_hf_file_metadata(url, token=token, timeout=TIMEOUT_S), cancel)
    except HFValidationError:
        raise DownloadError(f"{entry.source!r} is no repository id (owner/name).") from None
    except OfflineModeIsEnabled:
        raise offline_error(entry) from None
    except HfHubHTTPError as error:
        raise _refusal(error, entry, name, revision) from None
    except _transport_errors() as error:
        raise DownloadError(
            f"the hub cannot be reached for {name} of {entry.source} ({first_line(error)[:120]}). Check the connection and any proxy, "
            f"then run it again; or bring the files: `stmdit download {entry.name} --from FOLDER`."
        ) from None
    if found.size is None or not found.commit_hash or not found.etag:
        raise DownloadError(
            f"the answer for {name} of {entry.source} states no size or version: it does not come from a hub. Check "
            "HF_ENDPOINT and any proxy."
        )
    pinned = hf_hub_url(entry.source, name, revision=found.commit_hash, **place)
    sha256 = found.etag if re.fullmatch(r"[0-9a-f]{64}", found.etag) else None
    return RemoteFile(name, pinned, found.size, sha256, f"{found.etag} {found.size}", found.commit_hash)


MIRROR = "STMDIT_MIRROR"
"""Environment variable: an address from which web servers are mirrored, each in a folder of its host's name."""


def web_address(entry: Entry, name: str) -> str:
    """Return the address of a file on a web server, or in the mirror of it that the environment names."""
    address = "/".join(part.strip("/") for part in (entry.source, entry.subfolder, name) if part)
    mirror = os.environ.get(MIRROR, "").strip().rstrip("/")
    return f"{mirror}/{address.removeprefix('https://')}" if mirror else address


def _look_up_on_web(entry: Entry, name: str, cancel: CancelToken | None) -> RemoteFile:
    from huggingface_hub import get_session, hf_raise_for_status
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    url = web_address(entry, name)

    def ask() -> Any:
        response = get_session().head(url, headers=_WEB_HEADERS, timeout=TIMEOUT_S, follow_redirects=True)
        hf_raise_for_status(response)
        return response.headers

    try:
        found = _retrying(ask, cancel)
    except OfflineModeIsEnabled:
        raise offline_error(entry) from None
    except HfHubHTTPError as error:
        raise _web_refusal(error, entry, url) from None
    except _transport_errors() + (ValueError,) as error:  # a ValueError: no address at all, as in a mistyped mirror
        raise DownloadError(
            f"{url} cannot be reached ({first_line(error)[:120]}). Check the connection and any proxy, then run it again; {_by_hand(entry)}"
        ) from None
    size = str(found.get("Content-Length", ""))
    if not size.isdigit():
        raise DownloadError(
            f"the answer for {url} states no size: it does not come from the server of the data. Check any proxy; {_by_hand(entry)}"
        )
    sha256 = entry.sha256.get(name)
    version = sha256 or f"{found.get('ETag') or found.get('Last-Modified')} {size}"
    return RemoteFile(name, url, int(size), sha256, version, None)


def fetch(
    remote: RemoteFile,
    part: PartFile,
    entry: Entry,
    *,
    token: str | None = None,
    cancel: CancelToken | None = None,
    on_size: Callable[[int], None] = lambda size: None,
) -> None:
    """Append the missing bytes of a file to its temporary file; after a broken connection it goes on where it was.

    Raises
    ------
    DownloadError
        The connection broke too often; the message says how much arrived.
    DownloadCancelledError
        A stop was asked for.
    """
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import build_hf_headers

    # a token is for the hub alone; the client drops it when it is led to another host
    headers = _WEB_HEADERS if entry.fetch == "web" else {**build_hf_headers(token=token), **_UNPACKED}
    on_size(part.size)
    try:
        _retrying(lambda: _append(remote, part, headers, cancel, on_size), cancel)
    except HfHubHTTPError as error:
        if entry.fetch == "web":
            raise _web_refusal(error, entry, remote.url) from None
        raise _refusal(error, entry, remote.name, remote.revision) from None
    except _transport_errors() as error:
        raise DownloadError(
            f"the connection broke: {part.size:,} of {remote.size:,} bytes of {remote.name} have arrived ({first_line(error)[:120]}). "
            f"They are kept: run `stmdit download {entry.name}` again and it continues."
        ) from None


def offline_error(entry: Entry) -> DownloadError:
    """Return the error of a download while offline."""
    return DownloadError(
        f"{entry.name} is not on this computer, and offline mode (--offline, STMDIT_OFFLINE or HF_HUB_OFFLINE) forbids to "
        f"fetch it. Switch that off, or bring the files: `stmdit download {entry.name} --from FOLDER`."
    )


def check_cancelled(cancel: CancelToken | None) -> None:
    """Raise DownloadCancelledError once a stop was asked for."""
    if cancel is not None and cancel.cancelled:
        raise DownloadCancelledError("stopped; what has arrived is kept, and the next download continues from there.")


def _append(
    remote: RemoteFile,
    part: PartFile,
    headers: dict[str, str],
    cancel: CancelToken | None,
    on_size: Callable[[int], None],
) -> None:
    from huggingface_hub import get_session, hf_raise_for_status

    if part.size == remote.size:
        return
    if part.size > remote.size:
        part.restart()
    if part.size:
        headers = {**headers, "Range": f"bytes={part.size}-"}
    # offline mode is honoured by the request hook of this client
    with get_session().stream("GET", remote.url, headers=headers, timeout=TIMEOUT_S, follow_redirects=True) as response:
        if response.status_code == 416:
            part.restart()
            raise _BrokenTransfer("the server has no such range")
        hf_raise_for_status(response)
        if part.size and not _goes_on(response, part.size):
            part.restart()
            if response.status_code != 200:
                raise _BrokenTransfer("the server sent another range than asked for")
        for block in response.iter_bytes():
            check_cancelled(cancel)
            if part.size + len(block) > remote.size:
                part.restart()
                raise _BrokenTransfer("the server sent more than it stated")
            part.write(block)
            on_size(part.size)
    if part.size < remote.size:
        raise _BrokenTransfer("the transfer ended early")


def _goes_on(response: Any, start: int) -> bool:
    stated = str(response.headers.get("Content-Range", ""))
    return response.status_code == 206 and stated.startswith(f"bytes {start}-")


def _retrying(action: Callable[[], T], cancel: CancelToken | None) -> T:
    """Try again after broken connections and an overloaded server."""
    from huggingface_hub.errors import HfHubHTTPError

    for pause in PAUSES_S:
        check_cancelled(cancel)
        try:
            return action()
        except HfHubHTTPError as error:
            if error.response.status_code not in _TRANSIENT:
                raise
        except _transport_errors():
            pass
        _wait(pause, cancel)
    return action()


def _wait(seconds: float, cancel: CancelToken | None) -> None:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        check_cancelled(cancel)
        time.sleep(min(0.1, left))


def _transport_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions of the hub client's HTTP library; which library that is depends on the client's version."""
    from huggingface_hub.errors import HfHubHTTPError

    return (HfHubHTTPError.__bases__[0], _BrokenTransfer)


def _refusal(error: Any, entry: Entry, name: str, revision: str | None) -> DownloadError:
    from huggingface_hub.errors import GatedRepoError, RemoteEntryNotFoundError, RevisionNotFoundError

    where = "/".join(part for part in (entry.source, entry.subfolder, name) if part)
    status = error.response.status_code
    if isinstance(error, GatedRepoError) or (entry.gated and status in (401, 403)):
        page = entry.terms or f"https://huggingface.co/{entry.source}"
        return DownloadError(
            f"{entry.source} is gated: accept its terms at {page}, then log in with `hf auth login` (or set HF_TOKEN) and "
            "run it again."
        )
    if isinstance(error, RevisionNotFoundError):
        return DownloadError(f"{entry.source} has no revision {revision or 'main'!r}, which {name} was asked of.")
    if isinstance(error, RemoteEntryNotFoundError):
        return DownloadError(
            f"there is no file {where} at revision {revision or 'main'!r}: its owner may have moved it."
        )
    if status in (401, 403, 404):
        return DownloadError(
            f"there is no repository {entry.source} for this account (asked for {where}, revision {revision or 'main'!r}, "
            f"status {status}). If it is private, log in with `hf auth login` (or set HF_TOKEN)."
        )
    return DownloadError(f"the hub refused {where} with status {status}. Run it again later.")


def _web_refusal(error: Any, entry: Entry, url: str) -> DownloadError:
    status = error.response.status_code
    if status in (404, 410):
        return DownloadError(
            f"there is no file {url}: its owner may have moved it. Look at {entry.terms}; {_by_hand(entry)}"
        )
    return DownloadError(f"the server refused {url} with status {status}. Run it again later; {_by_hand(entry)}")


def _by_hand(entry: Entry) -> str:
    return f"or bring the files: `stmdit download {entry.name} --from FOLDER`."
