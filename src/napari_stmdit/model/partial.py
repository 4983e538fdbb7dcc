"""A file that is under way: bytes arrive under a temporary name and are hashed; its own name it gets when it is whole and right."""

from __future__ import annotations

import errno
import hashlib
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Self

from ..errors import CheckpointError

_BLOCK = 1 << 20


class PartFile:
    """A temporary file beside its final place. What it holds is kept when it is closed early, and is continued later.

    Parameters
    ----------
    final
        Where the file belongs.
    version
        What is being fetched: a part of another version is never continued, and is removed.

    Raises
    ------
    CheckpointError
        From every method: the disk is full or the place is not writable.
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
            ):  # a full disk was told when the bytes were written; `settle` comes before a name is given
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
        """Bring everything to the disk."""
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
        """Give the file its own name, at once; a file that was there is replaced."""
        try:
            self.path.replace(self.final)
        except OSError as error:
            raise writing_error(error, self.final) from None

    def _is_other_version(self, path: Path) -> bool:
        mine = re.fullmatch(rf"{re.escape(self.final.name)}\.[0-9a-f]{{12}}{re.escape(self.ENDING)}", path.name)
        return mine is not None and path != self.path

    def _read_back(self, stream: BinaryIO) -> None:
        """Hash what an earlier run left, so that the hash is that of the whole file."""
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
