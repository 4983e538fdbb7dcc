"""The job file of a cohort: sections times edits, checked as a whole before anything runs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError, model_validator

from ..errors import RequestError, StmditError
from ..files import BadFile, user_path
from ..synthesis.requests import faults_from, read_edits, read_plain
from ..tissue.geometry import polygons_from_geojson
from ..tissue.open import SectionSource
from ..tissue.spaceranger import section_name
from ..types import Edit, Intent, PredictedUnits, Region, Request, Weight

_NAME = re.compile(r"[0-9A-Za-z_.-]{1,100}")
_OWN_FIELDS = {"section": "sections", "checkpoint": "checkpoint", "edits": "edits"}

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class SectionEntry(Intent):
    """One section of a cohort; relative paths start at the job file.

    ``region`` is a region as a request has it, or the path of a GeoJSON file; without one the request's counts. The fields from
    ``grid_pitch`` on are for plain H&E images, as `napari_stmdit.open_section` takes them.
    """

    path: str
    name: str | None = None
    fullres: str | None = None
    mpp: Positive | None = None
    grid_pitch: Positive | None = None
    tissue_fraction: Weight | None = None
    predicted_expression: str | None = None
    predicted_units: PredictedUnits | None = None
    region: Region | str | None = None


class JobFile(Intent):
    """Contents of a job file.

    ``edits`` gives every virtual change a name, under which its result stands in the store of each section: a list of edits, empty for
    the expression as measured, or the path of an edits file. ``request`` holds what all jobs share.
    """

    output: str
    sections: Annotated[tuple[SectionEntry, ...], Field(min_length=1)]
    checkpoint: str = "demo"
    edits: Annotated[dict[str, tuple[Edit, ...] | str], Field(min_length=1)] = {"measured": ()}
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
        return self.place.store.with_name(f"{self.place.store.name}.{self.edit}.unfinished")


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
    try:
        wanted = JobFile.model_validate(content)
    except ValidationError as error:
        raise RequestError(faults_from(error, str(path))) from None
    root = Path(path).expanduser().absolute().parent
    faults: list[tuple[str, str]] = []
    places = _places(wanted, root, faults)
    regions = [_region(entry, number, root, faults) for number, entry in enumerate(wanted.sections)]
    edits = {name: _edits(name, found, root, faults) for name, found in wanted.edits.items()}
    if faults:
        raise RequestError(faults)
    return tuple(_jobs(wanted, places, regions, edits, root))


def _jobs(
    wanted: JobFile,
    places: list[Place],
    regions: list[Region | None],
    edits: dict[str, tuple[Edit, ...]],
    root: Path,
) -> Iterator[Job]:
    checkpoint = wanted.checkpoint
    # a folder called like a checkpoint need not be one: `stmdit demo --output demo` leaves such a folder
    if (root / checkpoint / "stmdit.json").is_file():
        checkpoint = str(root / checkpoint)
    for place, region in zip(places, regions, strict=True):
        for name, changes in edits.items():
            update = {"section": str(place.source.path), "checkpoint": checkpoint, "edits": changes}
            request = wanted.request.model_copy(update=update | ({} if region is None else {"region": region}))
            yield Job(place, name, request)


def _places(wanted: JobFile, root: Path, faults: list[tuple[str, str]]) -> list[Place]:
    output = _path(wanted.output, root, "output", faults)
    places = []
    seen: dict[str, int] = {}
    for number, entry in enumerate(wanted.sections):
        where = f"sections.{number}"
        path = _path(entry.path, root, f"{where}.path", faults)
        if path != root and not path.exists():
            faults.append((f"{where}.path", f"there is no file or folder {path}"))
        name = entry.name or section_name(path)
        if not _NAME.fullmatch(name):
            faults.append((f"{where}.name", f"{name!r} holds other characters than letters, digits, and _ . -"))
        twin = seen.setdefault(name.lower(), number)
        if twin != number:
            faults.append(
                (f"{where}.name", f"{name!r} is also the name of sections.{twin}; give each section a name of its own")
            )
        fullres = entry.fullres
        if fullres is not None and (root / fullres).is_file():
            fullres = str(root / fullres)
        table = entry.predicted_expression
        source = SectionSource(
            path,
            fullres,
            entry.mpp,
            entry.grid_pitch,
            entry.tissue_fraction,
            None if table is None else _path(table, root, f"{where}.predicted_expression", faults),
            entry.predicted_units,
        )
        places.append(Place(name, source, output / f"{name}.zarr"))
    return places


def _region(entry: SectionEntry, number: int, root: Path, faults: list[tuple[str, str]]) -> Region | None:
    if not isinstance(entry.region, str):
        return entry.region
    try:
        return polygons_from_geojson(root / entry.region)
    except StmditError as error:
        faults.append((f"sections.{number}.region", str(error)))
        return None


def _edits(name: str, found: tuple[Edit, ...] | str, root: Path, faults: list[tuple[str, str]]) -> tuple[Edit, ...]:
    if not _NAME.fullmatch(name):
        faults.append((f"edits.{name}", "its name holds other characters than letters, digits, and _ . -"))
    if not isinstance(found, str):
        return found
    try:
        return read_edits(root / found)
    except RequestError as error:
        faults += [(f"edits.{name}: {place}", message) for place, message in error.faults]
        return ()


def _path(given: str, root: Path, place: str, faults: list[tuple[str, str]]) -> Path:
    try:
        return root / user_path(given)
    except BadFile as error:
        faults.append((place, str(error)))
        return root
