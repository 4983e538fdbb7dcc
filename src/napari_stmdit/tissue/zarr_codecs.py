"""Damaged and unsafe stores: readers' errors converted into one of ours, and pickles refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import SectionError, StmditError
from ..files import BadFile, read_json


@contextmanager
def damage_as_section_error(name: object, kind: str) -> Iterator[None]:
    """Convert any error inside into SectionError; errors of ours pass unchanged.

    Parameters
    ----------
    name
        The file or folder, for the message.
    kind
        Its kind, for the message: "SpatialData".
    """
    try:
        yield
    except StmditError:
        raise
    except MemoryError as error:  # of what is large, or of metadata that claim terabytes
        raise SectionError(f"{name} cannot be read as {kind}: it takes more memory than there is ({error})") from error
    except RecursionError:
        raise SectionError(f"{name} cannot be read as {kind}: its metadata are nested too deeply") from None
    except Exception as error:  # HDF5, zarr, anndata, pandas and codecs fail on damaged files with anything
        raise SectionError(
            f"{name} cannot be read as {kind}, it may be damaged, incomplete or of another kind: {str(error) or type(error).__name__}"
        ) from error


# Codecs that a zarr store names: one that unpickles runs whatever the store says, so it is refused before anything
# is decoded.


_METADATA = ("zarr.json", ".zarray", ".zmetadata", "zmetadata")
"""Metadata files of a node, and consolidated ones: readers take the latter without reading the former."""
_CODECS = ("codecs", "filters", "compressor", "compressors")
_NODE = ("zarr.json", ".zarray", ".zgroup", ".zattrs")


def refuse_pickles(root: Path, damaged: bool = False) -> None:
    """Raise SectionError where an array of a store is pickled, by its metadata, or where those cannot be read.

    With ``damaged``, metadata that are no JSON are skipped: no reader can make an array of them.
    """
    for file in _metadata_files(root):
        place = file.relative_to(root)
        try:
            content = read_json(file)
        except BadFile as error:
            if damaged and not _is_json(file):
                continue
            raise SectionError(f"{root} cannot be read as SpatialData: its {place} cannot be read: {error}") from error
        if _names_pickle(content):
            raise SectionError(
                f"{root} is refused: by its {place} an array of it is pickled, and reading it could run code. Nothing was run; write the store "
                "again without the codec 'pickle'"
            )


def _is_json(file: Path) -> bool:
    try:
        json.loads(file.read_bytes())
    except ValueError:
        return False
    return True


def _metadata_files(root: Path) -> Iterator[Path]:
    """Yield the metadata files of every node; other folders, and those of arrays with their chunks, are skipped."""
    waiting, seen = [root], set()
    while waiting:
        folder = waiting.pop()
        real = folder.resolve()
        if real in seen:  # of links in a circle
            continue
        seen.add(real)
        yield from (folder / name for name in _METADATA if (folder / name).is_file())
        if not _is_array(folder):
            waiting += [inner for inner in folder.iterdir() if any((inner / name).is_file() for name in _NODE)]


def _is_array(folder: Path) -> bool:
    if (folder / ".zarray").is_file():
        return True
    try:
        content = read_json(folder / "zarr.json")
    except BadFile:
        return False
    return isinstance(content, dict) and content.get("node_type") == "array"


def _names_pickle(content: Any) -> bool:
    """Return whether a pickle is named among codecs; iterative, as metadata may be nested deeper than the recursion limit."""
    waiting = [(content, False)]
    while waiting:
        node, of_codecs = waiting.pop()
        if isinstance(node, dict):
            if of_codecs and any("pickle" in str(node.get(key)).lower() for key in ("id", "name")):
                return True
            waiting += [(value, of_codecs or key in _CODECS) for key, value in node.items()]
        elif isinstance(node, list):
            waiting += [(value, of_codecs) for value in node]
    return False
