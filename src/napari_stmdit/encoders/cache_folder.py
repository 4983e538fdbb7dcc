"""Embeddings on disk: one checked ``.npy`` file each, the least recently used deleted first."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import re
import tempfile
from contextlib import suppress
from pathlib import Path
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from ..errors import StoreError
from ..storage.atomic import remove_left_drafts, replacing

log = logging.getLogger(__name__)

_DIGEST = hashlib.sha256().digest_size
_KEPT = 0.9
"""Share of the limit that is left after tidying up, so that a full folder is not listed at every write."""
_OURS = re.compile(r"[0-9a-f]+\.npy")
"""Files by their key; whatever else lies in the folder is not ours to delete."""


class CacheFolder:
    """A bounded folder of arrays by key.

    A file is a ``.npy`` file with the SHA-256 of its bytes behind it; NumPy reads it as it is. A file that does not fit its hash is
    deleted and counts as absent. Files are written beside and moved into place, so that another process sees a whole one or none.

    Parameters
    ----------
    path
        Made if it is not there.
    limit_bytes
        Most bytes of files.

    Raises
    ------
    StoreError
        The folder cannot be made or written.
    """

    def __init__(self, path: Path, limit_bytes: int) -> None:
        self.path = path
        self.limit_bytes = limit_bytes
        self._lock = Lock()
        try:
            path.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=path, suffix=".tmp"):
                pass
        except OSError as error:
            raise StoreError(
                f"the folder for embeddings {path} cannot be written: {error}; choose another one"
            ) from error
        self._nbytes = self._tidy()

    def read(self, key: str) -> NDArray[np.float32] | None:
        """Return an array, or None where there is no whole one."""
        file = self._file(key)
        try:
            content = file.read_bytes()
        except OSError:
            return None
        body, digest = content[:-_DIGEST], content[-_DIGEST:]
        try:
            if hashlib.sha256(body).digest() != digest:
                raise ValueError("it does not fit its hash")
            found: NDArray[np.float32] = np.load(io.BytesIO(body), allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            log.warning("%s is damaged (%s) and deleted; its embedding is computed again", file, error)
            file.unlink(missing_ok=True)
            return None
        self.touch(key)
        return found

    def touch(self, key: str) -> None:
        """Mark an array as used now. The time of change serves: many systems do not keep the time of access."""
        try:
            os.utime(self._file(key))
        except OSError:
            pass  # gone, or of another user: then it is not ours to keep

    def write(self, key: str, value: NDArray[np.float32]) -> None:
        """Write an array; where that fails (a full disk), it is not kept, and nothing else happens."""
        buffer = io.BytesIO()
        np.save(buffer, value, allow_pickle=False)
        body = buffer.getvalue()
        size = len(body) + _DIGEST
        if size > self.limit_bytes:
            return
        with self._lock:
            if self._nbytes + size > self.limit_bytes:
                self._nbytes = self._tidy(size)
            try:
                with replacing(self._file(key), durable=False) as draft:
                    draft.write_bytes(body + hashlib.sha256(body).digest())
            except OSError as error:
                log.warning("an embedding could not be kept in %s: %s", self.path, error)
                return
            self._nbytes += size

    def _file(self, key: str) -> Path:
        return self.path / f"{key}.npy"

    def _tidy(self, needed: int = 0) -> int:
        """Delete what broke off in writing, and the least recently used until ``needed`` bytes fit; return what is left."""
        remove_left_drafts(self.path)
        files = []
        for file in self.path.iterdir():
            if _OURS.fullmatch(file.name):
                with suppress(OSError):  # another process was faster
                    state = file.stat()
                    files.append((state.st_mtime_ns, state.st_size, file))
        total = sum(size for _, size, _ in files)
        if total + needed <= self.limit_bytes:
            return total
        for _, size, file in sorted(files):
            if total + needed <= _KEPT * self.limit_bytes:
                break
            file.unlink(missing_ok=True)
            total -= size
        return total
