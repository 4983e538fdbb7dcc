"""Readers of foreign files that never execute anything in them.

safetensors and JSON cannot carry code. Torch files are pickles, opened with torch's weights-only unpickler, which builds tensors and plain
containers alone; NumPy scalars, which training loops leave behind, are allowed too. YAML goes through the safe loader.
"""

from __future__ import annotations

import io
import pickletools
import struct
import zipfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, first_line
from ..files import MAX_TEXT_MB, BadFile, UnsafeFile, read_json, read_yaml

TORCH_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")
WEIGHT_SUFFIXES = (".safetensors", *TORCH_SUFFIXES)
SETTING_SUFFIXES = (".yaml", ".yml", ".json")

_MAX_OPCODES = 5_000_000
"""Maximum number of opcodes walked in a file; real pickles have a few a tensor."""

# Globals that torch's weights-only unpickler accepts by itself, or that we add; everything else is named to the user.
_INERT = ("torch.", "torch ", "collections OrderedDict", "collections Counter", "numpy", "_codecs encode")


def read_weights(path: str | Path) -> dict[str, Any]:
    """Read a safetensors or torch file, or a sharded ``*.safetensors.index.json``.

    Parameters
    ----------
    path
        ``.safetensors``, ``.safetensors.index.json``, ``.pt``, ``.pth``, ``.ckpt`` or ``.bin``.

    Returns
    -------
    dict
        Tensors by name on the CPU; for a torch file, the container as it was saved (possibly nested).

    Raises
    ------
    CheckpointError
        The file is missing, damaged, of an unknown kind, or would execute code; the message names what it would import.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path} is not a file. Expected weights: {', '.join(WEIGHT_SUFFIXES)}.")
    if path.name.endswith(".safetensors.index.json"):
        return _read_shards(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in TORCH_SUFFIXES:
        return _read_torch(path)
    raise CheckpointError(f"{path.name} is of no known kind. Expected weights: {', '.join(WEIGHT_SUFFIXES)}.")


def read_settings(path: str | Path) -> dict[str, Any]:
    """Read a YAML or JSON mapping; YAML tags (the way YAML carries code) and oversized documents are refused.

    Raises
    ------
    CheckpointError
        The file is missing, not a mapping, damaged, or carries tags.
    """
    path = Path(path)
    if path.suffix not in SETTING_SUFFIXES or not path.is_file():
        raise CheckpointError(f"{path} is not a settings file. Expected an existing {', '.join(SETTING_SUFFIXES)}.")
    try:
        found = read_json(path) if path.suffix == ".json" else read_yaml(path)
    except UnsafeFile as error:
        raise CheckpointError(
            f"{path.name} is refused: {error}. Settings are plain values; nothing was executed. Remove the tag, or ask its author for "
            "a plain file."
        ) from None
    except BadFile as error:
        raise CheckpointError(f"{path.name} is not readable: {first_line(error)[:200]}") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path.name} holds {type(found).__name__}, expected a mapping of settings.")
    return found


def globals_in_pickle(path: str | Path) -> tuple[str, ...]:
    """Name what unpickling a torch file (zip or raw) would import, as ``module name``, without unpickling it."""
    names: dict[str, None] = {}
    for data in _pickles(Path(path)):
        try:
            for name in _globals(data):
                names[name] = None
        except (ValueError, EOFError, IndexError, OverflowError, struct.error):
            continue  # raw tensor data follows the pickles of an old torch file; what was named before stays named
    return tuple(names)


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path.name} is damaged or not a safetensors file ({first_line(error)[:200]}). Copy or download it again."
        ) from None


def _read_shards(index: Path) -> dict[str, Any]:
    places = read_settings(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise CheckpointError(f"{index.name} has no weight_map of tensor names to files.")
    found: dict[str, Any] = {}
    for name in sorted(set(places.values())):
        if Path(name).name != name or not (index.parent / name).is_file():
            raise CheckpointError(f"{index.name} lists the shard {name!r}, which is not beside it. Copy every shard.")
        found |= read_weights(index.parent / name)
    missing = sorted(places.keys() - found.keys())
    if missing:
        raise CheckpointError(f"{index.name} lists {len(missing)} tensors that its shards lack, first {missing[0]}.")
    return found


def _read_torch(path: Path) -> dict[str, Any]:
    import torch

    try:
        _check_members(path)
        with torch.serialization.safe_globals(_numpy_globals()):
            # mapped, not read: the weights then take memory once, and only while they are used
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except CheckpointError:
        raise
    except Exception as error:  # noqa: BLE001 - a damaged pickle can fail with anything; nothing in it has run
        raise _refusal(path, error) from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path.name} holds {type(found).__name__}, expected a dictionary of tensors.")
    return found


def _numpy_globals() -> list[Any]:
    import numpy as np

    multiarray = np._core.multiarray  # type: ignore[attr-defined]
    functions = {"scalar": multiarray.scalar, "_reconstruct": multiarray._reconstruct}
    listed: list[Any] = [np.ndarray, np.dtype]
    for name, function in functions.items():  # files written by NumPy 1 and NumPy 2 name different modules
        listed += [(function, f"numpy.core.multiarray.{name}"), (function, f"numpy._core.multiarray.{name}")]
    plain = (np.bool_, np.number, np.str_, np.bytes_)
    kinds = {np.dtype(code) for code in np.typecodes["All"] if issubclass(np.dtype(code).type, plain)}
    return listed + sorted({type(kind) for kind in kinds}, key=lambda kind: kind.__name__)


def _refusal(path: Path, error: Exception) -> CheckpointError:
    try:
        unsafe = [name for name in globals_in_pickle(path) if not name.startswith(_INERT)]
    except Exception:  # noqa: BLE001 - the file is damaged: then the first error says all
        unsafe = []
    if unsafe:
        return CheckpointError(
            f"{path.name} is refused: reading it would import {', '.join(name.replace(' ', '.') for name in unsafe)}, which "
            "can execute code. Nothing was executed. Ask its author for safetensors, or for a file with tensors only."
        )
    return CheckpointError(
        f"{path.name} is damaged or not a torch file ({first_line(error)[:200]}). Copy or download it again."
    )


def _check_members(path: Path) -> None:
    """Refuse a compressed torch zip: torch itself compresses nothing, and a small file could fill the memory."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    packed = [one for one in members if one.compress_type != zipfile.ZIP_STORED or one.file_size != one.compress_size]
    if packed:
        raise CheckpointError(
            f"{path.name} is refused: {packed[0].filename} in it is compressed, {packed[0].compress_size:,} bytes for "
            f"{packed[0].file_size:,}, and torch writes no such file. Ask its author for the file as torch saved it, or for safetensors."
        )
    _check_pickles(path, sum(one.file_size for one in members if one.filename.endswith(".pkl")))


def _check_pickles(path: Path, size: int) -> None:
    if size > MAX_TEXT_MB * 1e6:
        raise CheckpointError(
            f"{path.name} is refused: its pickles have {size / 1e6:,.0f} megabytes, and more than {MAX_TEXT_MB} are not expected "
            "beside weights. Ask its author for safetensors, or for a file with tensors only."
        )


def _pickles(path: Path) -> Iterator[bytes]:
    most = int(MAX_TEXT_MB * 1e6)
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            yield file.read(most)  # tensors follow the pickles of an old torch file
        return
    with zipfile.ZipFile(path) as archive:
        members = [one for one in archive.infolist() if one.filename.endswith(".pkl")]
        _check_pickles(path, sum(one.file_size for one in members))
        for one in members:
            with archive.open(one) as file:
                yield file.read(most)  # never more than that, whatever the archive states


def _globals(data: bytes) -> Iterator[str]:
    """Walk the opcodes of consecutive pickles; newer ones name a global by two strings pushed before."""
    stream = io.BytesIO(data)  # read on and on: a slice for each pickle would copy the rest each time
    walked = 0
    while stream.tell() < len(data) and walked < _MAX_OPCODES:
        strings: list[str] = []
        memo: dict[int, str | None] = {}
        pushed: str | None = None
        for opcode, argument, _ in islice(pickletools.genops(stream), _MAX_OPCODES - walked):
            walked += 1
            if opcode.name in ("GLOBAL", "INST"):
                yield str(argument)
            elif opcode.name == "STACK_GLOBAL":
                yield " ".join(strings[-2:])
            elif opcode.name == "MEMOIZE":
                memo[len(memo)] = pushed
                continue
            elif opcode.name in ("BINPUT", "LONG_BINPUT", "PUT"):
                memo[int(str(argument))] = pushed
                continue
            if opcode.name in ("BINGET", "LONG_BINGET", "GET"):
                pushed = memo.get(int(str(argument)))
            else:
                pushed = argument if isinstance(argument, str) and "GLOBAL" not in opcode.name else None
            if pushed is not None:
                strings.append(pushed)
            if opcode.name == "STOP":
                break
