"""Encoded conditions of many windows, kept for the next step without filling the memory."""

from __future__ import annotations

import tempfile
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST_BYTES = 256 * 2**20
"""More than this goes to a temporary file."""


class EncodedRows:
    """A table of float32 rows that is filled once, in any order, and read many times.

    Rows of more than `MOST_BYTES` together go to a temporary file that has no name: it vanishes with the process, however that ends.

    Parameters
    ----------
    count
        Rows.
    most_bytes
        Largest table that is held in memory.
    """

    def __init__(self, count: int, most_bytes: int = MOST_BYTES) -> None:
        self._count, self._most = count, most_bytes
        self._filled = np.zeros(count, dtype=bool)
        self._shape: tuple[int, ...] | None = None
        self._memory: NDArray[np.float32] | None = None
        self._file: Any = None

    def has(self, first: int, stop: int) -> bool:
        """Whether the rows from ``first`` up to ``stop`` were put."""
        return bool(self._filled[first:stop].all())

    def put(self, first: int, rows: NDArray[np.float32]) -> None:
        """Store rows from ``first`` on."""
        if self._shape is None:
            self._shape = rows.shape[1:]
            size = self._count * self._row_bytes
            if size <= self._most:
                self._memory = np.zeros((self._count, *self._shape), dtype=np.float32)
            else:
                self._file = tempfile.TemporaryFile(prefix="stmdit-")  # closed with the table
        stop = first + len(rows)
        if self._memory is not None:
            self._memory[first:stop] = rows
        else:
            self._file.seek(first * self._row_bytes)
            self._file.write(np.ascontiguousarray(rows, dtype=np.float32).tobytes())
        self._filled[first:stop] = True

    def get(self, first: int, stop: int) -> NDArray[np.float32]:
        """Return the rows from ``first`` up to ``stop``."""
        assert self._shape is not None  # they were put
        if self._memory is not None:
            return self._memory[first:stop]
        self._file.seek(first * self._row_bytes)
        data = bytearray(self._file.read((stop - first) * self._row_bytes))
        return np.frombuffer(data, dtype=np.float32).reshape(stop - first, *self._shape)

    def close(self) -> None:
        """Let go of the rows."""
        self._memory = None
        if self._file is not None:
            self._file.close()

    @property
    def _row_bytes(self) -> int:
        assert self._shape is not None
        return 4 * int(np.prod(self._shape, dtype=np.int64))
