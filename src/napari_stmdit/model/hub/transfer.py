"""Transfer of one file of a hub repository: metadata, and bytes into a temporary file, hashed on the way."""

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

from ...errors import CheckpointError, first_line
from ...progress import CancelToken
from .references import Reference

_BLOCK = 1 << 20


class PartFile:
    """A temporary file beside its final place. It is kept when closed early, and continued later.

    Every method raises CheckpointError where the disk is full or the place is not writable.

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
        mine = re.fullmatch(rf"{re.escape(self.final.name)}\.[0-9a-f]{{12}}{re.escape(self.ENDING)}", path.name)
        return mine is not None and path != self.path

    def _read_back(self, stream: BinaryIO) -> None:
        """Hash what an earlier run left."""
        stream.seek(0)
        while block := stream.read(_BLOCK):
            self._digest.update(block)
            self.size += len(block)


def writing_error(error: OSError, path: Path) -> CheckpointError:
    """Say what keeps a file from being written, and what to do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        what = "the disk is full; what has arrived is kept. Make room and run it again: it continues."
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        what = "this place is not writable. Change its permissions, or set STMDIT_HOME to another folder."
    else:
        what = f"{error.strerror or type(error).__name__}. Set STMDIT_HOME to another folder, or mend this one."
    return CheckpointError(f"{path} cannot be written: {what}")


TIMEOUT_S = 30.0
PAUSES_S = (1.0, 2.0, 4.0)  # between the attempts, of which there is one more
_TRANSIENT = (408, 429, 500, 502, 503, 504)
T = TypeVar("T")


class DownloadCancelledError(CheckpointError):
    """Download stopped by the user; what has arrived is continued next time."""


class _BrokenTransfer(Exception):
    """Response that ended early, or was not the requested part."""


@dataclass(frozen=True)
class RemoteFile:
    """A file on the hub.

    Attributes
    ----------
    name, size
        Relative to the entry's sub-folder; bytes.
    url
        Its address at one commit.
    sha256
        Of its content, where the hub knows it (large files); else None.
    version
        Changes with the content.
    revision
        The commit that a branch or tag stands for at present.
    """

    name: str
    url: str
    size: int
    sha256: str | None
    version: str
    revision: str


def look_up(
    reference: Reference,
    name: str,
    revision: str | None,
    *,
    endpoint: str | None = None,
    token: str | None = None,
    cancel: CancelToken | None = None,
) -> RemoteFile:
    """Ask the hub for one file, without its bytes; a CheckpointError says why it cannot be had and what to do."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    place = {"subfolder": reference.subfolder or None, "endpoint": endpoint}
    try:
        url = hf_hub_url(reference.source, name, revision=revision, **place)
        found = _retrying(lambda: get_hf_file_metadata(url, token=token, timeout=TIMEOUT_S), cancel)
    except HFValidationError:
        raise CheckpointError(f"{reference.source!r} is no repository id (owner/name).") from None
    except OfflineModeIsEnabled:
        raise offline_error(reference) from None
    except HfHubHTTPError as error:
        raise _refusal(error, reference, name, revision) from None
    except _transport_errors() as error:
        raise CheckpointError(
            f"the hub cannot be reached for {name} of {reference.source} ({first_line(error)[:120]}). Check the connection and any proxy, "
            f"then run it again; or bring the files: `stmdit download {reference.name} --from FOLDER`."
        ) from None
    if found.size is None or not found.commit_hash or not found.etag:
        raise CheckpointError(
            f"the answer for {name} of {reference.source} states no size or version: it does not come from a hub. Check "
            "HF_ENDPOINT and any proxy."
        )
    pinned = hf_hub_url(reference.source, name, revision=found.commit_hash, **place)
    sha256 = found.etag if re.fullmatch(r"[0-9a-f]{64}", found.etag) else None
    return RemoteFile(name, pinned, found.size, sha256, f"{found.etag} {found.size}", found.commit_hash)


def fetch(
    remote: RemoteFile,
    part: PartFile,
    reference: Reference,
    *,
    token: str | None = None,
    cancel: CancelToken | None = None,
    on_size: Callable[[int], None] = lambda size: None,
) -> None:
    """Append the missing bytes of a file to its temporary file; after a broken connection it goes on where it was.

    Raises
    ------
    CheckpointError
        The connection broke too often; the message says how much arrived.
    DownloadCancelledError
        A stop was asked for.
    """
    from huggingface_hub.errors import HfHubHTTPError

    on_size(part.size)
    try:
        _retrying(lambda: _append(remote, part, token, cancel, on_size), cancel)
    except HfHubHTTPError as error:
        raise _refusal(error, reference, remote.name, remote.revision) from None
    except _transport_errors() as error:
        raise CheckpointError(
            f"the connection broke: {part.size:,} of {remote.size:,} bytes of {remote.name} have arrived ({first_line(error)[:120]}). "
            f"They are kept: run `stmdit download {reference.name}` again and it continues."
        ) from None


def offline_error(reference: Reference) -> CheckpointError:
    """Return the error of a download while offline."""
    return CheckpointError(
        f"{reference.name} is not on this computer, and offline mode (--offline, STMDIT_OFFLINE or HF_HUB_OFFLINE) forbids to "
        f"fetch it. Switch that off, or bring the files: `stmdit download {reference.name} --from FOLDER`."
    )


def check_cancelled(cancel: CancelToken | None) -> None:
    """Raise DownloadCancelledError once a stop was asked for."""
    if cancel is not None and cancel.cancelled:
        raise DownloadCancelledError("stopped; what has arrived is kept, and the next download continues from there.")


def _append(
    remote: RemoteFile,
    part: PartFile,
    token: str | None,
    cancel: CancelToken | None,
    on_size: Callable[[int], None],
) -> None:
    from huggingface_hub import get_session, hf_raise_for_status
    from huggingface_hub.utils import build_hf_headers

    if part.size == remote.size:
        return
    if part.size > remote.size:
        part.restart()
    # the client drops the token when it is led to another host, and offline mode is honoured by its request hook
    headers = {**build_hf_headers(token=token), "Accept-Encoding": "identity"}
    if part.size:
        headers["Range"] = f"bytes={part.size}-"
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


def _refusal(error: Any, reference: Reference, name: str, revision: str | None) -> CheckpointError:
    from huggingface_hub.errors import GatedRepoError, RemoteEntryNotFoundError, RevisionNotFoundError

    where = "/".join(part for part in (reference.source, reference.subfolder, name) if part)
    status = error.response.status_code
    if isinstance(error, GatedRepoError) or (reference.gated and status in (401, 403)):
        page = reference.terms or f"https://huggingface.co/{reference.source}"
        return CheckpointError(
            f"{reference.source} is gated: accept its terms at {page}, then log in with `hf auth login` (or set HF_TOKEN) and "
            "run it again."
        )
    if isinstance(error, RevisionNotFoundError):
        return CheckpointError(f"{reference.source} has no revision {revision or 'main'!r}, which {name} was asked of.")
    if isinstance(error, RemoteEntryNotFoundError):
        return CheckpointError(
            f"there is no file {where} at revision {revision or 'main'!r}: its owner may have moved it."
        )
    if status in (401, 403, 404):
        return CheckpointError(
            f"there is no repository {reference.source} for this account (asked for {where}, revision {revision or 'main'!r}, "
            f"status {status}). If it is private, log in with `hf auth login` (or set HF_TOKEN)."
        )
    return CheckpointError(f"the hub refused {where} with status {status}. Run it again later.")
