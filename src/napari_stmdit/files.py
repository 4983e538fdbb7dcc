"""Safe readers of user input: paths, JSON, YAML and numbers, also from broken or hostile files.

All raise `BadFile`, a ValueError whose message completes a sentence ("FILE cannot be read: ..."); the caller turns it into an error of
ours. Devices, pipes and oversized files are refused.
"""

from __future__ import annotations

import csv
import gzip
import json
import math
import os
from collections.abc import Hashable
from pathlib import Path
from typing import Any, TypeGuard

import yaml

from .text import shorten

MAX_TEXT_MB = 64
"""Maximum size of a JSON file, in megabytes."""
MAX_YAML_MB = 8
"""Maximum size of a YAML file; its parser takes about a second a megabyte."""
_MAX_YAML_NODES = 1_000_000
_MAX_YAML_DEPTH = 100
_MAX_DIGITS = 1000
"""Maximum digits of a YAML number: parsing base 60 (1:59:59) takes time that grows with their square."""
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


class BadFile(ValueError):
    """Error of a path, a file or its text; the message says why."""


class UnsafeFile(BadFile):
    """Error of a file that asks to build an object, which could run code; nothing was built."""


def user_path(path: str | os.PathLike[str]) -> Path:
    """Return a user's path with ``~`` expanded; raises BadFile where it is no valid path."""
    if not isinstance(path, str | os.PathLike):
        raise BadFile(f"got {path!r}, expected a path")
    try:
        expanded = Path(path).expanduser()
        expanded.stat()
    except RuntimeError:
        raise BadFile(f"{path} starts with the home folder of a user that there is not") from None
    except (FileNotFoundError, NotADirectoryError):
        pass
    except ValueError as error:  # a null character
        raise BadFile(f"{str(path)!r} is no path: {error}") from None
    except OSError as error:
        if error.errno is None or "symbolic links" not in os.strerror(
            error.errno
        ):  # a circle of links is a missing file
            raise BadFile(f"{shorten(str(path))} cannot be looked up: {error.strerror}") from None
    return expanded


def is_offline() -> bool:
    """Return whether the environment forbids the network."""
    names = ("STMDIT_OFFLINE", "HF_HUB_OFFLINE")
    return any(os.environ.get(name, "").strip().lower() not in ("", "0", "false", "no", "off") for name in names)


def read_text(path: str | os.PathLike[str], most_mb: float = MAX_TEXT_MB) -> str:
    """Return the UTF-8 text of a file, without a byte order mark; raises BadFile where it cannot be read or is too large."""
    file = user_path(path)
    try:
        if file.exists() and not file.is_file():
            raise BadFile("it is no file")
        size = file.stat().st_size / 1e6
        if size > most_mb:
            raise BadFile(f"it has {size:.0f} megabytes, and more than {most_mb:g} are not expected in such a file")
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadFile(f"it is no UTF-8 text: {error.reason} at byte {error.start}") from None
    except OSError as error:
        raise BadFile(error.strerror or str(error)) from None


def read_json(path: str | os.PathLike[str], most_mb: float = MAX_TEXT_MB) -> Any:
    """Return the value that a JSON file holds; raises BadFile."""
    text = read_text(path, most_mb)
    try:
        return json.loads(text)
    except RecursionError:
        raise BadFile("it is nested too deeply") from None
    except ValueError as error:
        raise BadFile(str(error)) from None


def read_yaml(path: str | os.PathLike[str]) -> Any:
    """Return the value of a YAML file: plain values, no key twice, no aliases that blow up.

    Raises
    ------
    BadFile
        Also for aliases that stand for millions of values ("billion laughs"); `UnsafeFile` for tags that would make objects.
    """
    text = read_text(path, MAX_YAML_MB)
    try:
        loader = _Strict(text)
        root = loader.get_single_node()
        if root is None:
            return None
        _check_nodes(root)
        return loader.construct_document(root)
    except RecursionError:
        raise BadFile("it is nested too deeply") from None
    except yaml.constructor.ConstructorError as error:
        if "constructor for the tag" not in str(error.problem):
            raise BadFile(f"is not valid YAML: {error}") from None
        raise UnsafeFile(f"it asks to build an object: {shorten(str(error.problem), 200)}") from None
    except (yaml.YAMLError, ValueError, OverflowError, TypeError) as error:
        raise error if isinstance(error, BadFile) else BadFile(f"is not valid YAML: {error}") from None


class _Strict(yaml.SafeLoader):
    """Safe loader that refuses a repeated key, of which YAML would silently take the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise BadFile(f"the key {key.value!r} is given twice in one place (line {key.start_mark.line + 1})")
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _check_nodes(root: yaml.Node) -> None:
    """Refuse a document with recursive or exploding aliases, and one nested too deeply."""
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def size(node: yaml.Node, depth: int) -> int:
        if id(node) in open_nodes:
            raise BadFile(f"an alias stands for something that holds itself (line {node.start_mark.line + 1})")
        if depth > _MAX_YAML_DEPTH:
            raise BadFile(f"it is nested more than {_MAX_YAML_DEPTH} deep")
        if isinstance(node, yaml.ScalarNode) and node.tag in _NUMBERS and len(node.value) > _MAX_DIGITS:
            raise BadFile(f"it holds a number of {len(node.value):,} digits (line {node.start_mark.line + 1})")
        if id(node) not in sizes:
            open_nodes.add(id(node))
            parts = node.value if isinstance(node, yaml.CollectionNode) else ()
            inner = [p for part in parts for p in (part if isinstance(part, tuple) else (part,))]
            sizes[id(node)] = 1 + sum(size(part, depth + 1) for part in inner)
            open_nodes.discard(id(node))
            if sizes[id(node)] > _MAX_YAML_NODES:
                raise BadFile(f"its aliases stand for more than {_MAX_YAML_NODES:,} values; write them out")
        return sizes[id(node)]

    size(root, 0)


def is_packed(path: Path) -> bool:
    """Return whether a file is compressed by gzip, whatever it is called."""
    with path.open("rb") as stream:
        return stream.read(2) == b"\x1f\x8b"


def read_header(path: Path) -> tuple[str, list[str]]:
    """Return the separator of a table of text, comma, semicolon or tab, and the cells of its first row that is not blank; also of a packed one.

    Raises
    ------
    OSError, UnicodeDecodeError
        It cannot be read.
    """
    with gzip.open(path, "rt", encoding="utf-8-sig") if is_packed(path) else path.open(encoding="utf-8-sig") as file:
        head = next((line for line in file if line.strip()), "")
    separator = max(",;\t", key=head.count)
    return separator, next(csv.reader([head], delimiter=separator), [])


def is_number(value: object) -> TypeGuard[int | float]:
    """Return whether a value is a finite number, not a bool, within the range of a float."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False
