"""Requests and edits from files: YAML in, values out, every fault with its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from ..errors import GeneError, RequestError
from ..expression.gmt import read_gmt
from ..expression.profiles import read_profile
from ..files import BadFile, read_yaml
from ..storage.atomic import write_text
from ..types import Edit, Intent, Request, SpotProfile, Weight


class EditFile(Intent):
    """Edits with the user's own programs and profiles that they name: what an edit file holds."""

    edits: tuple[Edit, ...] = ()
    programs: dict[str, dict[str, Weight]] = {}
    profiles: dict[str, SpotProfile] = {}


def read_edit_file(path: str | Path) -> EditFile:
    """Read an edit file: a list of edits, or a mapping with ``edits`` and, where wanted, ``programs`` and ``profiles``.

    ``programs`` maps names to ``{gene: weight}`` or to lists of genes, and may instead be the name of a GMT file or a list of
    such names; ``profiles`` maps names to profiles or to the names of their files. File names are relative to the edit file.
    Of a whole request, as a result's provenance has it, the edits and what they name are taken.

    Raises
    ------
    RequestError
        With every fault of the file and its place.
    """
    content = read_plain(path)
    if isinstance(content, list):
        content = {"edits": content}
    if isinstance(content, dict) and set(content) <= set(Request.model_fields):  # a whole request, as results keep it
        content = {name: value for name, value in content.items() if name in EditFile.model_fields}
    if not isinstance(content, dict) or "edits" not in content:
        raise RequestError(
            [(str(path), "expected a list of edits, each with an 'operation', or a mapping with 'edits'")]
        )
    folder = Path(path).parent
    try:
        content = {
            **content,
            "programs": _programs(content.get("programs") or {}, folder),
            "profiles": _profiles(content.get("profiles") or {}, folder),
        }
        return EditFile(**content)
    except GeneError as error:
        raise RequestError([(str(path), str(error))]) from None
    except ValidationError as error:
        raise RequestError(
            [(where.replace(": edits.", ": ", 1), text) for where, text in faults_from(error, str(path))]
        ) from None


def read_edits(path: str | Path) -> tuple[Edit, ...]:
    """Return the edits alone of an edit file; see `read_edit_file`."""
    return read_edit_file(path).edits


def write_edit_file(file: EditFile, path: str | Path) -> None:
    """Write an edit file that `read_edit_file` and ``stmdit synthesize --edits`` read; it refers to no other file."""
    content: dict[str, Any] = {
        "edits": [
            {"operation": edit.operation, **edit.model_dump(mode="json", exclude_defaults=True)} for edit in file.edits
        ]
    }
    if file.programs:
        content["programs"] = file.programs
    if file.profiles:
        content["profiles"] = {name: profile.model_dump(mode="json") for name, profile in file.profiles.items()}
    text = "# Virtual expression edits of napari-stmdit: replay with  stmdit synthesize SECTION --edits THIS_FILE ...\n"
    text += yaml.dump(
        content, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper), sort_keys=False, allow_unicode=True
    )
    try:
        write_text(Path(path), text)
    except OSError as error:
        raise RequestError([(str(path), f"cannot be written: {error}")]) from None


def used_by(edits: tuple[Edit, ...], request: Request) -> EditFile:
    """Return edits with those of a request's programs and profiles that they name."""
    programs = {name for edit in edits for name in edit.programs}
    profiles = {getattr(edit, "target_profile", None) for edit in edits}
    return EditFile(
        edits=edits,
        programs={name: genes for name, genes in request.programs.items() if name in programs},
        profiles={name: profile for name, profile in request.profiles.items() if name in profiles},
    )


def _programs(given: Any, folder: Path) -> dict[str, Any]:
    if isinstance(given, dict):
        return {name: dict.fromkeys(genes, 1.0) if isinstance(genes, list) else genes for name, genes in given.items()}
    programs: dict[str, Any] = {}
    for name in [given] if isinstance(given, str) else given:
        programs.update(read_gmt(folder / str(name)).programs)
    return programs


def _profiles(given: Any, folder: Path) -> Any:
    if not isinstance(given, dict):
        return given
    return {
        name: read_profile(folder / profile).model_dump() if isinstance(profile, str) else profile
        for name, profile in given.items()
    }


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
