"""Requests and edits from files: YAML in, values out, every fault with its place."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, ValidationError

from ..edits import Edit
from ..errors import GeneError, RequestError
from ..expression.profiles import read_profile
from ..expression.programs import read_gmt
from ..files import BadFile, read_yaml, user_path
from ..frozen import Frozen, Weight
from ..intent import Request, SpotProfile
from ..storage.atomic import write_text
from ..text import shown


class EditFile(Frozen):
    """Content of an edit file: edits, and the user's programs and profiles that they name."""

    edits: tuple[Edit, ...] = ()
    programs: dict[str, Annotated[dict[str, Weight], Field(min_length=1)]] = {}
    profiles: dict[str, SpotProfile] = {}


def read_edit_file(path: str | Path) -> EditFile:
    """Read an edit file: a list of edits, or a mapping with ``edits`` and, optionally, ``programs`` and ``profiles``.

    ``programs`` maps names to ``{gene: weight}`` or to lists of genes, or is one or several names of GMT files; ``profiles`` maps names to
    profiles or to the names of their files. File names are relative to the edit file. From a whole request, as in a result's provenance, the
    edits and what they name are taken.

    Raises
    ------
    RequestError
        With every fault of the file, and of the files it names, each with its place.
    """
    return edit_file_from(read_plain(path), _folder(path), str(path))


def edit_file_from(content: Any, folder: Path, place: str) -> EditFile:
    """Build the content of an edit file from plain values; see `read_edit_file`.

    Parameters
    ----------
    content
        Content of a YAML file, or a part of it.
    folder
        Base of relative file names.
    place
        Its name in messages.

    Raises
    ------
    RequestError
        With every fault and its place.
    """
    if isinstance(content, list):
        content = {"edits": content}
    if isinstance(content, dict) and set(content) <= set(Request.model_fields):  # a whole request, as results keep it
        content = {name: value for name, value in as_recorded(content).items() if name in EditFile.model_fields}
    if not isinstance(content, dict) or "edits" not in content:
        raise RequestError([(place, "expected a list of edits, each with an 'operation', or a mapping with 'edits'")])
    faults: list[tuple[str, str]] = []
    content = with_files(content, folder, place, faults)
    try:
        file = EditFile.model_validate(content)
    except ValidationError as error:
        faults += [(where.replace(": edits.", ": ", 1), text) for where, text in faults_from(error, place)]
    if faults:
        raise RequestError(faults)
    return file


def with_edits(request: Request, file: EditFile) -> Request:
    """Replace a request's edits by those of a file; of two programs or profiles with one name the file's counts."""
    update = {
        "edits": file.edits,
        "programs": {**request.programs, **file.programs},
        "profiles": {**request.profiles, **file.profiles},
    }
    return request.model_copy(update=update)


def write_edit_file(file: EditFile, path: str | Path) -> None:
    """Write an edit file that `read_edit_file` and ``stmdit synthesize --edits`` read; it refers to no other file."""
    content: dict[str, Any] = {
        "edits": [
            {"operation": edit.operation, **edit.model_dump(mode="json", exclude_defaults=True), **_stated(edit)}
            for edit in file.edits
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
    """Return edits with the programs and profiles of a request that they name."""
    programs = {name for edit in edits for name in edit.programs}
    profiles = {getattr(edit, "target_profile", None) for edit in edits}
    return EditFile(
        edits=edits,
        programs={name: genes for name, genes in request.programs.items() if name in programs},
        profiles={name: profile for name, profile in request.profiles.items() if name in profiles},
    )


def read_request(path: str | Path) -> Request:
    """Read a whole request from a YAML or JSON file; its programs and profiles may be files, as in `read_edit_file`.

    Raises
    ------
    RequestError
        With every fault of the file, and of the files it names, each with its place.
    """
    content = read_plain(path)
    if not isinstance(content, dict):
        raise RequestError([(str(path), "expected a mapping with the fields of a request")])
    faults: list[tuple[str, str]] = []
    content = with_files(as_recorded(content), _folder(path), str(path), faults)
    try:
        request = make_request(content, str(path))
    except RequestError as error:
        faults += error.faults
    if faults:
        raise RequestError(faults)
    return request


def merge(file: str | Path | None, options: Mapping[str, Any], edits: str | Path | None = None) -> Request:
    """Combine a request file, options that override it, and an edit file.

    Parameters
    ----------
    file
        A request file, see `read_request`; None for an empty one.
    options
        Fields of a request, without those that are None, and without the scales of ``guidance`` that are None.
    edits
        An edit file, see `read_edit_file`.

    Raises
    ------
    RequestError
        With every fault and its place.
    """
    content = {} if file is None else read_request(file).model_dump(exclude_unset=True)
    given = {name: value for name, value in options.items() if value is not None}
    scales = {name: value for name, value in given.pop("guidance", {}).items() if value is not None}
    request = make_request({**content, **given, "guidance": {**content.get("guidance", {}), **scales}}, "options")
    return request if edits is None else with_edits(request, read_edit_file(edits))


def as_recorded(content: dict[Any, Any]) -> dict[Any, Any]:
    """Add to a recorded request what earlier versions meant: nothing followed its edits.

    A record states every field of an edit, which nobody does by hand; so it is distinguished from a file that leaves ``follow`` open and
    takes the present default.
    """
    edits = content.get("edits")
    if not isinstance(edits, list | tuple):
        return content
    return {**content, "edits": [_recorded_edit(edit) for edit in edits]}


def _recorded_edit(edit: Any) -> Any:
    recorded = isinstance(edit, dict) and {"name", "genes", "programs", "spots", "strength", "enabled"} <= set(edit)
    of_genes = recorded and edit.get("operation") in ("scale", "add", "set_quantile", "knock_out")
    return {**edit, "follow": "none"} if of_genes and "follow" not in edit else edit


def _stated(edit: Edit) -> dict[str, Any]:
    """Return an edit's fields for an edit file, including defaults that may change later."""
    follow = getattr(edit, "follow", None)
    return {} if follow is None else {"follow": follow}


def with_files(content: dict[Any, Any], folder: Path, place: str, faults: list[tuple[str, str]]) -> dict[Any, Any]:
    """Read the files that ``programs`` and ``profiles`` name into plain values; their faults are added to ``faults``.

    Values that are no file name are kept for the model to validate; unreadable files are left out.
    """
    content = dict(content)
    for name, read in (("programs", _programs), ("profiles", _profiles)):
        if content.get(name, {}) is None:  # the key with nothing behind it
            content[name] = {}
        elif name in content:
            content[name] = read(content[name], folder, place, faults)
    if isinstance(content.get("edits"), list | tuple):
        content["edits"] = [_with_table(edit, folder) for edit in content["edits"]]
    if isinstance(content.get("exclude"), str) and content["exclude"]:
        content["exclude"] = str((folder / Path(content["exclude"]).expanduser()).resolve())
    return content


def _with_table(edit: Any, folder: Path) -> Any:
    """Resolve the path of an edit's table, named relative to its file."""
    if not isinstance(edit, dict) or edit.get("operation") != "table" or not isinstance(edit.get("table"), str):
        return edit
    path = Path(edit["table"]).expanduser()
    return edit if path.is_absolute() or not edit["table"] else {**edit, "table": str((folder / path).resolve())}


def _programs(given: Any, folder: Path, place: str, faults: list[tuple[str, str]]) -> Any:
    if isinstance(given, dict):
        return {name: dict.fromkeys(genes, 1.0) if _are_texts(genes) else genes for name, genes in given.items()}
    names = [given] if isinstance(given, str) else given
    if not _are_texts(names):
        faults.append(
            (f"{place}: programs", f"expected names with their genes, or names of GMT files (got {shown(given)})")
        )
        return {}
    programs: dict[str, Any] = {}
    for name in names:
        try:
            found = read_gmt(folder / user_path(name)).programs
        except (GeneError, BadFile) as error:
            faults.append((f"{place}: programs", str(error)))
            continue
        both = [one for one in found if programs.get(one, found[one]) != found[one]]
        if both:
            faults.append((f"{place}: programs", f"{name} gives {both[0]!r} other genes than a file before it"))
        programs.update(found)
    return programs


def _profiles(given: Any, folder: Path, place: str, faults: list[tuple[str, str]]) -> Any:
    if not isinstance(given, dict):
        return given
    profiles = {}
    for name, profile in given.items():
        try:
            profiles[name] = read_profile(folder / user_path(profile)) if isinstance(profile, str) else profile
        except (GeneError, BadFile) as error:
            faults.append((f"{place}: profiles.{name}", str(error)))
    return profiles


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(part, str) for part in value)


def _folder(path: str | Path) -> Path:
    return Path(path).expanduser().parent


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
    """Convert pydantic's errors into (place, message) pairs."""
    faults = []
    for item in error.errors(include_url=False):
        where = ".".join(str(part) for part in item["loc"])
        got = "" if item["type"] == "missing" else f" (got {shown(item['input'])})"
        faults.append((f"{place}: {where}" if where else place, item["msg"] + got))
    return faults


def read_plain(path: str | Path) -> Any:
    """Read a YAML or JSON file; raises RequestError where it cannot be read."""
    try:
        return read_yaml(path)
    except BadFile as error:
        raise RequestError([(str(path), f"cannot be read: {error}")]) from None
