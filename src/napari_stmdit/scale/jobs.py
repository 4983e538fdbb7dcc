"""The job file of a cohort: sections times edits, checked as a whole before anything runs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator

from ..errors import RequestError, StmditError
from ..files import BadFile, user_path
from ..intent import Intent, Region, Request
from ..synthesis.requests import (
    EditFile,
    edit_file_from,
    faults_from,
    read_edit_file,
    read_plain,
    with_edits,
    with_files,
)
from ..tissue.geometry import polygons_from_geojson
from ..tissue.open import SectionSource
from ..tissue.spaceranger import section_name
from ..tissue.spatialdata_store import RESULT_PREFIX

_NAME = re.compile(r"[0-9A-Za-z_.-]{1,100}")
_OWN_FIELDS = {"section": "sections", "exclude": "sections", "checkpoint": "checkpoint", "edits": "edits"}
_MEASURED: dict[str, Any] = {"measured": []}

Filled = Annotated[str, Field(min_length=1)]


class SectionEntry(SectionSource):
    """One section of a cohort; relative paths start at the job file.

    ``region`` is a region as a request has it, or the path of a GeoJSON file; without one the request's counts.
    """

    name: Filled | None = None
    region: Region | Filled | None = None


class JobFile(Intent):
    """Contents of a job file.

    ``edits`` gives every virtual change a name, under which its result stands in the store of each section: what an edit file
    holds (a list of edits, empty for the expression as measured, or edits with their programs and profiles), or the path of an edit
    file. ``request`` holds what all jobs share; its programs and profiles may be named by every edit.
    """

    output: Filled
    sections: Annotated[tuple[SectionEntry, ...], Field(min_length=1)]
    checkpoint: Filled = "demo"
    edits: Annotated[dict[str, Any], Field(min_length=1)] = _MEASURED
    request: Request = Request()

    @model_validator(mode="after")
    def _fields_in_their_place(self) -> JobFile:
        for field, place in _OWN_FIELDS.items():
            if field in self.request.model_fields_set:
                raise ValueError(f"request.{field} belongs under {place!r}, which holds it for all jobs")
        return self


@dataclass(frozen=True)
class Place:
    """One section of a cohort: ``name``, where it is and how it is opened, and the store that its results go to."""

    name: str
    source: SectionSource
    store: Path


@dataclass(frozen=True)
class Job:
    """One run of a cohort: ``request`` on the section at ``place``, its result called ``edit``."""

    place: Place
    edit: str
    request: Request

    @property
    def name(self) -> str:
        """What to call it in a table."""
        return f"{self.place.name} / {self.edit}"

    @property
    def folder(self) -> Path:
        """Where it is kept while it is unfinished."""
        return self.place.store.with_name(_unfinished(self.place.store.name, self.edit))


def _unfinished(store: str, edit: str) -> str:
    return f"{store}.{edit}.unfinished"


def read_jobs(path: str | Path) -> tuple[Job, ...]:
    """Read a job file: every edit on every section, section by section.

    Raises
    ------
    RequestError
        With every fault of the file, and of the files it names, each with its place.
    """
    content = read_plain(path)
    if not isinstance(content, dict):
        raise RequestError([(str(path), "expected a mapping with 'output' and 'sections'")])
    root = Path(path).expanduser().absolute().parent
    faults: list[tuple[str, str]] = []
    if isinstance(content.get("request"), dict):
        content = {**content, "request": with_files(content["request"], root, f"{path}: request", faults)}
    wanted: JobFile | None = None
    try:
        wanted = JobFile.model_validate(content)
    except ValidationError as error:
        faults += faults_from(error, str(path))
    # what is sound in itself is read also where something else is wrong, so that all faults are told at once
    entries = _entries(content.get("sections"))
    places = _places(entries, content.get("output"), root, faults)
    regions = [_region(entry, number, root, faults) for number, entry in entries.items()]
    edits = _all_edits(content.get("edits", _MEASURED), root, faults)
    _check_folders(places, list(edits), faults)
    if faults or wanted is None:
        raise RequestError(faults)
    return tuple(_jobs(wanted, places, regions, edits, root))


def _entries(sections: Any) -> dict[int, SectionEntry]:
    """The entries that are sound in themselves, by their number."""
    found = {}
    for number, entry in enumerate(sections if isinstance(sections, list) else []):
        with suppress(ValidationError):  # told by the validation of the whole
            found[number] = SectionEntry.model_validate(entry)
    return found


def _jobs(
    wanted: JobFile,
    places: list[Place],
    regions: list[Region | None],
    edits: dict[str, EditFile],
    root: Path,
) -> Iterator[Job]:
    checkpoint = wanted.checkpoint
    # a folder called like a checkpoint need not be one: `stmdit demo --output demo` leaves such a folder
    if (root / checkpoint / "stmdit.json").is_file():
        checkpoint = str(root / checkpoint)
    for place, region in zip(places, regions, strict=True):
        for name, file in edits.items():
            update = {"section": str(place.source.path), "checkpoint": checkpoint}
            request = wanted.request.model_copy(update=update | ({} if region is None else {"region": region}))
            yield Job(place, name, with_edits(request, file))


def _places(entries: dict[int, SectionEntry], output: Any, root: Path, faults: list[tuple[str, str]]) -> list[Place]:
    stores = _path(output, root, "output", faults) if isinstance(output, str) and output else root
    places = []
    seen: dict[str, int] = {}
    for number, entry in entries.items():
        where = f"sections.{number}"
        path = _path(entry.path, root, f"{where}.path", faults)
        if path != root and not path.exists():
            faults.append((f"{where}.path", f"there is no file or folder {path}"))
        name = section_name(path) if entry.name is None else entry.name
        if not _NAME.fullmatch(name):
            faults.append((f"{where}.name", f"{name!r} holds other characters than letters, digits, and _ . -"))
        twin = seen.setdefault(name.lower(), number)
        if twin != number:
            faults.append(
                (f"{where}.name", f"{name!r} is also the name of sections.{twin}; give each section a name of its own")
            )
        update: dict[str, Any] = {"path": path}
        if entry.fullres is not None and (root / entry.fullres).is_file():
            update["fullres"] = root / entry.fullres
        for field in ("predicted_expression", "exclude"):
            if (given := getattr(entry, field)) is not None:
                update[field] = _path(given, root, f"{where}.{field}", faults)
        source = SectionSource(**{field: getattr(entry, field) for field in SectionSource.model_fields} | update)
        places.append(Place(name, source, stores / f"{name}.zarr"))
    return places


def _region(entry: SectionEntry, number: int, root: Path, faults: list[tuple[str, str]]) -> Region | None:
    if not isinstance(entry.region, str):
        return entry.region
    where = f"sections.{number}.region"
    try:
        return polygons_from_geojson(_path(entry.region, root, where, faults))
    except StmditError as error:
        faults.append((where, str(error)))
        return None


def _all_edits(given: Any, root: Path, faults: list[tuple[str, str]]) -> dict[str, EditFile]:
    edits: dict[str, EditFile] = {}
    seen: dict[str, str] = {}
    for name, found in given.items() if isinstance(given, dict) else ():
        if not isinstance(name, str):  # told by the validation of the whole
            continue
        where = f"edits.{name}"
        if not _NAME.fullmatch(name):
            faults.append((where, "its name holds other characters than letters, digits, and _ . -"))
        if name.lower().startswith(RESULT_PREFIX):
            faults.append((where, f"a store puts {RESULT_PREFIX!r} before every name itself; leave it out"))
        twin = seen.setdefault(name.lower(), name)
        if twin != name:
            faults.append((where, f"it differs from {twin!r} in nothing but case, which a store does not tell apart"))
        edits[name] = _edits(found, where, root, faults)
    return edits


def _edits(found: Any, where: str, root: Path, faults: list[tuple[str, str]]) -> EditFile:
    try:
        if not isinstance(found, str):
            return edit_file_from(found, root, where)
        if not found:
            raise RequestError([(where, "the name of its file is empty; give [] for the expression as measured")])
        return read_edit_file(_path(found, root, where, faults))
    except RequestError as error:
        faults += [(place if place.startswith(where) else f"{where}: {place}", said) for place, said in error.faults]
        return EditFile()


def _check_folders(places: list[Place], edits: list[str], faults: list[tuple[str, str]]) -> None:
    """Refuse names with dots that would give two jobs one folder while they are unfinished."""
    seen: dict[str, str] = {}
    for place, edit in product(places, edits):
        name, folder = f"{place.name} / {edit}".lower(), _unfinished(place.store.name, edit)
        twin = seen.setdefault(folder.lower(), name)
        if twin != name:
            faults.append(("sections and edits", f"{twin!r} and {name!r} come to one folder, {folder}; rename one"))


def _path(given: str | Path, root: Path, place: str, faults: list[tuple[str, str]]) -> Path:
    try:
        return root / user_path(given)
    except BadFile as error:
        faults.append((place, str(error)))
        return root
