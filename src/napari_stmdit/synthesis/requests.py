"""Requests and edits from files: YAML in, values out, every fault with its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ..errors import RequestError
from ..files import BadFile, read_yaml
from ..types import Edit, Request

_EDITS: TypeAdapter[tuple[Edit, ...]] = TypeAdapter(tuple[Edit, ...])


def read_edits(path: str | Path) -> tuple[Edit, ...]:
    """Read edits from a YAML file: a list of edits, or a mapping with the list under ``edits``.

    Raises
    ------
    RequestError
        With every fault of the file and its place.
    """
    content = read_plain(path)
    if isinstance(content, dict) and set(content) == {"edits"}:
        content = content["edits"]
    if not isinstance(content, list):
        raise RequestError([(str(path), "expected a list of edits, each with an 'operation'")])
    try:
        return _EDITS.validate_python(content)
    except ValidationError as error:
        raise RequestError(faults_from(error, str(path))) from None


def read_request(path: str | Path) -> Request:
    """Read a whole request from a YAML or JSON file.

    Raises
    ------
    RequestError
        With every fault of the file and its place.
    """
    content = read_plain(path)
    if not isinstance(content, dict):
        raise RequestError([(str(path), "expected a mapping with the fields of a request")])
    return make_request(content, str(path))


def make_request(content: dict[str, Any], place: str = "request") -> Request:
    """Build a request from plain values.

    Raises
    ------
    RequestError
        With every fault and its place.
    """
    try:
        return Request.model_validate(content)
    except ValidationError as error:
        raise RequestError(faults_from(error, place)) from None


def faults_from(error: ValidationError, place: str) -> list[tuple[str, str]]:
    """Turn pydantic's findings into (place, message) pairs."""
    faults = []
    for item in error.errors(include_url=False):
        where = ".".join(str(part) for part in item["loc"])
        got = "" if item["type"] == "missing" else f" (got {_short(item['input'])})"
        faults.append((f"{place}: {where}" if where else place, item["msg"] + got))
    return faults


def _short(value: Any, most: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= most else text[:most] + "..."


def read_plain(path: str | Path) -> Any:
    """Return what a YAML or JSON file holds; raises RequestError where it cannot be read."""
    try:
        return read_yaml(path)
    except BadFile as error:
        raise RequestError([(str(path), f"cannot be read: {error}")]) from None
