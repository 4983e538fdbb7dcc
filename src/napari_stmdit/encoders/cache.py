"""Interfaces of encoders, numpy in, numpy out; and a cache of embeddings: in memory, and on disk if wanted, one checked ``.npy`` file each."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import re
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import StoreError
from ..storage.atomic import remove_left_drafts, replacing
from ..types import Genes

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix


class ExpressionEncoder(Protocol):
    """Encoder from counts to expression conditions."""

    def encode(self, counts: csr_matrix, genes: Genes, depth: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """Encode counts (n, g), whose columns are ``genes``, as (n, d) or (n, tokens, d) float32.

        ``depth`` (n,) is that of the spots relative to their section, `SpotTable.relative_depth`; an encoder may ignore it.
        """


class MorphologyEncoder(Protocol):
    """Encoder from patches of tissue to morphology conditions."""

    def encode(self, patches: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Encode patches (n, side, side, 3) uint8 as (n, tokens, d) float32."""


log = logging.getLogger(__name__)

_DIGEST = hashlib.sha256().digest_size
_KEPT_SHARE = 0.9
"""Share of the limit that is kept after tidying up: a full folder is not listed at every write."""
_OURS = re.compile(r"[0-9a-f]+\.npy")
"""Pattern of cache files; any other file in the folder is left alone."""


class CacheFolder:
    """A bounded folder of arrays by key.

    A file is a ``.npy`` file followed by the SHA-256 of its bytes; NumPy reads it as it is. A file that does not fit its hash is
    deleted and counts as absent. Files appear whole, also for other processes.

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
        """Mark an array as used now, by its modification time: many systems keep no access time."""
        try:
            os.utime(self._file(key))
        except OSError:
            pass  # gone, or of another user: then it is not ours to keep

    def write(self, key: str, value: NDArray[np.float32]) -> None:
        """Write an array; one that cannot be written (a full disk) is not kept."""
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
        """Delete incomplete files, then the least recently used until ``needed`` bytes fit; return the bytes left."""
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
            if total + needed <= _KEPT_SHARE * self.limit_bytes:
                break
            file.unlink(missing_ok=True)
            total -= size
        return total


Vector = NDArray[np.float32]
Encoder = TypeVar("Encoder")


class EmbeddingCache:
    """The most recently used embeddings by key, as many as fit. Safe to use from several threads.

    Parameters
    ----------
    limit_bytes
        Most bytes of embeddings in memory; the least recently used go first.
    folder
        Where embeddings are kept between sessions, or None. Several processes may share it.
    folder_limit_bytes
        Most bytes of files there.

    Raises
    ------
    StoreError
        The folder cannot be made or written.
    """

    def __init__(self, limit_bytes: int, folder: str | Path | None = None, folder_limit_bytes: int = 2**30) -> None:
        self.limit_bytes = limit_bytes
        self.nbytes = 0
        self._entries: OrderedDict[str, Vector] = OrderedDict()
        self._lock = Lock()
        self._folder = None if folder is None else CacheFolder(Path(folder), folder_limit_bytes)

    def __len__(self) -> int:
        """Return the number of embeddings in memory."""
        return len(self._entries)

    def __contains__(self, key: str) -> bool:
        """Return whether an embedding is in memory."""
        return key in self._entries

    def get(self, key: str) -> Vector | None:
        """Return an embedding, read-only, or None; from the disk where it is not in memory."""
        with self._lock:
            found = self._entries.get(key)
            if found is not None:
                self._entries.move_to_end(key)
        if self._folder is None:
            return found
        if found is not None:
            self._folder.touch(key)
            return found
        found = self._folder.read(key)
        if found is not None:
            self._remember(key, found)
        return found

    def put(self, key: str, value: Vector) -> None:
        """Keep a copy of an embedding under a key of hexadecimal digits. One larger than the limit is not kept in memory."""
        self._remember(key, value.copy())
        if self._folder is not None:
            self._folder.write(key, value)

    def clear(self) -> None:
        """Clear the memory; the folder stays."""
        with self._lock:
            self._entries.clear()
            self.nbytes = 0

    def _remember(self, key: str, value: Vector) -> None:
        value.setflags(write=False)
        if value.nbytes > self.limit_bytes:
            return
        with self._lock:
            old = self._entries.pop(key, None)
            self.nbytes += value.nbytes - (0 if old is None else old.nbytes)
            self._entries[key] = value
            while self.nbytes > self.limit_bytes:
                _, dropped = self._entries.popitem(last=False)
                self.nbytes -= dropped.nbytes


class _Cached(Generic[Encoder]):
    """An encoder that computes each item once.

    Parameters
    ----------
    encoder
        Must encode each item independently of the batch.
    cache
        May be shared with other encoders.
    key
        Identity of this encoder: hash of its weights and config, and its precision.
    """

    def __init__(self, encoder: Encoder, cache: EmbeddingCache, key: str) -> None:
        self.encoder = encoder
        self.cache = cache
        self.key = key
        self._lock = Lock()  # a second thread that wants the same items waits for them instead of computing them, too

    def _rows(self, keys: Sequence[str], compute: Callable[[list[int]], Vector]) -> Vector:
        """Look up rows, compute the missing ones in one call, each once, and return all in order."""
        rows = {key: row for row, key in enumerate(keys)}
        with self._lock:
            found = {key: value for key in rows if (value := self.cache.get(key)) is not None}
            missing = [key for key in rows if key not in found]
            if missing or not keys:
                computed = compute([rows[key] for key in missing])
                if not keys:
                    return computed  # of no rows; only the encoder knows the shape
                for key, value in zip(missing, computed, strict=True):
                    self.cache.put(key, value)
                    found[key] = value
        return np.stack([found[key] for key in keys])


class CachedMorphology(_Cached[MorphologyEncoder]):
    """A `MorphologyEncoder` that computes each patch once."""

    def encode(self, patches: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Encode patches (n, side, side, 3) uint8 as (n, tokens, d) float32; those not in the cache in one call."""
        base = _digest(b"morphology", self.key.encode(), repr((patches.dtype.str, patches.shape[1:])).encode())
        keys = [_digest(base.encode(), np.ascontiguousarray(patch).tobytes()) for patch in patches]
        return self._rows(keys, lambda rows: self.encoder.encode(patches[rows]))


class CachedExpression(_Cached[ExpressionEncoder]):
    """An `ExpressionEncoder` that computes each row of counts once."""

    def encode(self, counts: csr_matrix, genes: Genes, depth: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """Encode counts (n, g), whose columns are ``genes``, as (n, d) or (n, tokens, d); those not in the cache in one call.

        With an encoder that ``uses_depth``, a row is known by its relative ``depth`` (n,), too.
        """
        if not getattr(self.encoder, "uses_depth", False):
            depth = None
        table = counts.tocsr(copy=True)
        table.sum_duplicates()  # sorts the columns, too: what is equal is written equally
        table.eliminate_zeros()
        names = [genes.symbols.tolist(), None if genes.ids is None else genes.ids.tolist()]
        base = _digest(b"expression", self.key.encode(), repr(names).encode()).encode()
        keys = []
        for row in range(table.shape[0]):
            part = slice(table.indptr[row], table.indptr[row + 1])
            columns, values = table.indices[part].astype("<i8"), table.data[part].astype("<f8")
            own = () if depth is None else (depth[row : row + 1].astype("<f4").tobytes(),)
            keys.append(_digest(base, columns.tobytes(), values.tobytes(), *own))
        return self._rows(
            keys, lambda rows: self.encoder.encode(counts[rows], genes, None if depth is None else depth[rows])
        )


def _digest(*parts: bytes) -> str:
    """Return the SHA-256 of parts, each with its length."""
    total = hashlib.sha256()
    for part in parts:
        total.update(f"{len(part)}:".encode())
        total.update(part)
    return total.hexdigest()


def cache_folder(name: str) -> Path:
    """Return a folder of the user's caches: ``embeddings`` of patches, or ``noise`` that crops were taken to."""
    from platformdirs import user_cache_path

    return user_cache_path("napari-stmdit", appauthor=False) / name


def user_cache(name: str, limit_bytes: int, folder_limit_bytes: int) -> EmbeddingCache:
    """Return a cache in memory and in the user's `cache_folder`; a home that cannot be written is no reason not to run."""
    try:
        return EmbeddingCache(limit_bytes, cache_folder(name), folder_limit_bytes)
    except StoreError:
        return EmbeddingCache(limit_bytes)
