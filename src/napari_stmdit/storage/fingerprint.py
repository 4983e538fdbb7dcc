"""Fingerprints: SHA-256 of the content of arrays, values, files and folders.

Whatever is resumed, cached or compared is identified by these, never by name, path, shape or modification time; the latter only saves a
second read within one process.
"""

from __future__ import annotations

import hashlib
import json
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

import numpy as np

Value = TypeVar("Value")

_SETTLED_NS = 2_000_000_000
"""Minimum age, in ns, of a file whose hash is kept: a younger one may change again within the clock's step."""
END_BYTES = 2**26
_known_files: dict[Path, tuple[tuple[int, ...], str]] = {}
_lock = Lock()


def of_parts(parts: Iterable[str | bytes]) -> str:
    """Return the SHA-256 of texts or bytes, each preceded by its length."""
    total = hashlib.sha256()
    for part in parts:
        content = part.encode() if isinstance(part, str) else part
        total.update(f"{len(content)}:".encode())
        total.update(content)
    return total.hexdigest()


def of_arrays(*arrays: Any) -> str:
    """Return the SHA-256 of arrays: their types, shapes and values; text as UTF-8, whatever its width in memory."""
    total = hashlib.sha256()
    for array in arrays:
        found = np.asarray(array)
        if found.dtype.kind in "UO":
            text = of_parts(str(value) for value in found.ravel().tolist())
            total.update(f"text {found.shape} {text}\n".encode())
            continue
        plain = np.ascontiguousarray(found, dtype=found.dtype.newbyteorder("<"))
        total.update(f"{plain.dtype.str} {plain.shape}\n".encode())
        total.update(plain.reshape(-1).view(np.uint8).data)
    return total.hexdigest()


def of_json(value: Any) -> str:
    """Return the SHA-256 of a value in JSON types; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def of_file(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes; within a process a file is read again only if it has changed."""
    place = Path(path).resolve()
    state = place.stat()
    seen = (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
    with _lock:
        known = _known_files.get(place)
    if known is not None and known[0] == seen:
        return known[1]
    began = time.time_ns()
    with place.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if began - max(state.st_mtime_ns, state.st_ctime_ns) > _SETTLED_NS:
        with _lock:
            _known_files[place] = seen, digest
    return digest


def of_ends(path: str | Path) -> str:
    """Return the SHA-256 of a file's size and its first and last `END_BYTES`: of a smaller file that is all of it.

    Tells a slide of gigabytes from others within a second.
    """
    place = Path(path)
    size = place.stat().st_size
    total = hashlib.sha256(f"{size}:".encode())
    with place.open("rb") as stream:
        total.update(stream.read(END_BYTES))
        stream.seek(max(stream.tell(), size - END_BYTES))
        total.update(stream.read())
    return total.hexdigest()


def of_files(files: Mapping[str, Path]) -> str:
    """Return the SHA-256 of files by the names that they go under: of the sorted names and the files' own hashes."""
    total = hashlib.sha256()
    for name in sorted(files, key=lambda name: name.split("/")):
        total.update(f"{name}\n{of_file(files[name])}\n".encode())
    return total.hexdigest()


def of_folder(path: str | Path) -> str:
    """Return the SHA-256 of a folder: of the names and SHA-256s of its files, hidden ones left out.

    It does not depend on where the folder lies.
    """
    root = Path(path)
    files = {file.relative_to(root): file for file in root.rglob("*") if file.is_file()}
    return of_files(
        {name.as_posix(): file for name, file in files.items() if not any(part.startswith(".") for part in name.parts)}
    )


class PerObject:
    """Cache by object identity, for as long as the object lives."""

    def __init__(self) -> None:
        self._found: dict[int, tuple[weakref.ref[Any], Any]] = {}

    def get(self, thing: Any, make: Callable[[], Value]) -> Value:
        """Return the cached value of an object; ``make`` is called the first time."""
        key = id(thing)
        known = self._found.get(key)
        if known is not None and known[0]() is thing:
            value: Value = known[1]
            return value
        value = make()
        self._found[key] = weakref.ref(thing, lambda _: self._found.pop(key, None)), value
        return value
