"""Cohorts: jobs of a file, checked together first, then run one by one in this process or on a cluster."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from ..assemble import Checkpoint, load_checkpoint
from ..errors import ClusterGoneError, RequestError, StmditError, StoreError, SynthesisStoppedError, first_line
from ..files import BadFile, user_path
from ..frozen import Frozen
from ..intent import Request
from ..progress import BATCH, CancelToken, Progress, Stopwatch
from ..regions import Region
from ..synthesis.identity import identity_of, recorded_differences
from ..synthesis.models import KnownModel
from ..synthesis.plan import plan as make_plan
from ..synthesis.requests import (
    EditFile,
    edit_file_from,
    faults_from,
    read_edit_file,
    read_plain,
    with_edits,
    with_files,
)
from ..synthesis.result import Result
from ..synthesis.session import synthesize
from ..tissue.geometry import polygons_from_geojson
from ..tissue.open import SectionSource
from ..tissue.public import missing_section, named_section
from ..tissue.remote import url_of
from ..tissue.spaceranger import section_name
from ..tissue.spatialdata_store import RESULT_PREFIX, is_spatialdata
from ..tissue.store import check_writable
from ..tissue.store_entries import element_name, list_results, read_result
from ..types import Section
from .cluster import remote_checkpoint, synthesize_shared

_NAME = re.compile(r"[0-9A-Za-z_.-]{1,100}")
_OWN_FIELDS = {"section": "sections", "exclude": "sections", "checkpoint": "checkpoint", "edits": "edits"}
_MEASURED: dict[str, Any] = {"measured": []}

Filled = Annotated[str, Field(min_length=1)]


class SectionEntry(SectionSource):
    """Section of a cohort; relative paths start at the job file.

    ``region``: a region as in a request, or a GeoJSON file; by default the request's.
    """

    name: Filled | None = None
    region: Region | Filled | None = None


class JobFile(Frozen):
    """Contents of a job file.

    ``edits``: name of a result -> contents or path of an edit file; an empty list for the measured expression. ``request``: what all jobs
    share; every edit may name its programs and profiles.
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
    """Section of a cohort: ``name``, source, and the store of its results."""

    name: str
    source: SectionSource
    store: Path


@dataclass(frozen=True)
class Job:
    """Run of a cohort: ``request`` on the section at ``place``, with a result called ``edit``."""

    place: Place
    edit: str
    request: Request

    @property
    def name(self) -> str:
        """Name in a table."""
        return f"{self.place.name} / {self.edit}"

    @property
    def folder(self) -> Path:
        """Folder of the unfinished run."""
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
    # valid parts are read even if others are not, so that all faults are reported at once
    entries = _entries(content.get("sections"))
    places = _places(entries, content.get("output"), root, faults)
    regions = [_region(entry, number, root, faults) for number, entry in entries.items()]
    edits = _all_edits(content.get("edits", _MEASURED), root, faults)
    _check_folders(places, list(edits), faults)
    if faults or wanted is None:
        raise RequestError(faults)
    return tuple(_jobs(wanted, places, regions, edits, root))


def _entries(sections: Any) -> dict[int, SectionEntry]:
    found = {}
    for number, entry in enumerate(sections if isinstance(sections, list) else []):
        with suppress(ValidationError):  # reported by the validation of the whole
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
            update = {"section": url_of(place.source.path) or str(place.source.path), "checkpoint": checkpoint}
            request = wanted.request.model_copy(update=update | ({} if region is None else {"region": region}))
            yield Job(place, name, with_edits(request, file))


def _places(entries: dict[int, SectionEntry], output: Any, root: Path, faults: list[tuple[str, str]]) -> list[Place]:
    stores = _path(output, root, "output", faults) if isinstance(output, str) and output else root
    places = []
    seen: dict[str, int] = {}
    for number, entry in entries.items():
        where = f"sections.{number}"
        public, url = named_section(Path(entry.path)), url_of(entry.path)
        path = Path(entry.path) if url else public or _path(entry.path, root, f"{where}.path", faults)
        if public is not None and not public.is_dir():
            faults.append((f"{where}.path", str(missing_section(public.name))))
        elif url is None and path != root and not path.exists():
            faults.append((f"{where}.path", f"there is no file or folder {path}"))
        name = section_name(path) if entry.name is None else entry.name
        if not _NAME.fullmatch(name):
            faults.append((f"{where}.name", f"{name!r} holds other characters than letters, digits, and _ . -"))
        twin = seen.setdefault(name.lower(), number)
        if twin != number:
            faults.append(
                (f"{where}.name", f"{name!r} is also the name of sections.{twin}; give each section a name of its own")
            )
        update: dict[str, Any] = {"path": url or path}
        if entry.fullres is not None:
            slide = _path(entry.fullres, root, f"{where}.fullres", faults)
            if slide.is_file():
                update["fullres"] = slide
            elif path.is_dir() and not is_spatialdata(path) and not (path / entry.fullres).is_file():
                faults.append((f"{where}.fullres", f"there is no file {slide}, nor {path / entry.fullres}"))
        for field in ("predicted_expression", "exclude"):
            if (given := getattr(entry, field)) is not None:
                update[field] = _path(given, root, f"{where}.{field}", faults)
                if update[field] != root and not update[field].is_file():
                    faults.append((f"{where}.{field}", f"there is no file {update[field]}"))
        if entry.factors is not None:  # a file, and what of it is meant
            update["factors"] = root / Path(entry.factors).expanduser()
            file = Path(str(update["factors"]).partition("::")[0])
            if not file.exists():
                faults.append((f"{where}.factors", f"there is no file {file}"))
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
        if not isinstance(name, str):  # reported by the validation of the whole
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
    """Refuse names that would give two unfinished jobs the same folder."""
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


# Running jobs: what is done stays done, and one bad section stops no other.


OnProgress = Callable[[Progress], None]
State = Literal["done", "there already", "incomplete", "stopped", "failed", "not begun"]


@dataclass(frozen=True)
class Outcome:
    """Outcome of a job.

    Attributes
    ----------
    state
        ``done``, ``there already`` (earlier batch), ``incomplete`` (patches failed, others kept), ``stopped`` (a part kept), ``failed``, or
        ``not begun``.
    element
        Name of the result in the section's store; None where there is none.
    patches, planned
        Number of finished and of planned patches.
    message
        Why it failed, or a note.
    """

    job: Job
    state: State
    element: str | None = None
    patches: int = 0
    planned: int = 0
    seconds: float = 0.0
    message: str = ""

    @property
    def facts(self) -> dict[str, Any]:
        """Outcome in JSON types."""
        return {
            "section": self.job.place.name,
            "edit": self.job.edit,
            "state": self.state,
            "output": str(self.job.place.store),
            "element": self.element,
            "patches": self.patches,
            "planned": self.planned,
            "seconds": round(self.seconds, 3),
            "message": self.message,
        }


class LocalRunner:
    """Runner in this process, which loads a checkpoint once."""

    def __init__(self, device: str = "auto", dtype: str = "auto", batch: int = BATCH) -> None:
        self._device, self._dtype, self._batch = device, dtype, batch
        self._loaded: tuple[str, Checkpoint] | None = None

    def checkpoint(self, name: str, cancel: CancelToken | None = None) -> Checkpoint:
        """Return a checkpoint; once it is being loaded, nothing stops that."""
        if self._loaded is None or self._loaded[0] != name:
            self._loaded = name, load_checkpoint(name, device=self._device, dtype=self._dtype)
        return self._loaded[1]

    def synthesize(self, job: Job, section: Section, cancel: CancelToken, on_progress: OnProgress | None) -> Result:
        """Compute a job, going on where its folder has a part of it."""
        return synthesize(
            section,
            job.request,
            self.checkpoint(job.request.checkpoint),
            batch=self._batch,
            cancel=cancel,
            on_progress=on_progress,
            folder=job.folder,
            resume=True,
        )


class ClusterRunner:
    """Runner on the workers of a dask cluster (`cluster.connect`)."""

    def __init__(self, client: Any, device: str = "auto", dtype: str = "auto", batch: int = BATCH) -> None:
        self._client, self._device, self._dtype, self._batch = client, device, dtype, batch

    def checkpoint(self, name: str, cancel: CancelToken | None = None) -> KnownModel:
        """Return the facts of a checkpoint."""
        return remote_checkpoint(self._client, name, self._device, self._dtype, cancel)

    def synthesize(self, job: Job, section: Section, cancel: CancelToken, on_progress: OnProgress | None) -> Result:
        """Compute a job, going on where its folder has a part of it."""
        return synthesize_shared(
            self._client,
            job.place.source,
            section,
            job.request,
            folder=job.folder,
            batch=self._batch,
            device=self._device,
            dtype=self._dtype,
            cancel=cancel,
            on_progress=on_progress,
            resume=True,
        )


Runner = LocalRunner | ClusterRunner


def run_batch(
    jobs: Sequence[Job],
    runner: Runner,
    *,
    cancel: CancelToken | None = None,
    on_outcome: Callable[[Outcome], None] | None = None,
    on_progress: Callable[[Job, Progress], None] | None = None,
) -> list[Outcome]:
    """Compute jobs one after the other, section by section.

    Run again, it skips results that the stores hold and goes on where a job was stopped. A failed job stops no other, but for one whose
    cluster has gone: each further one would only wait for it, too.

    Parameters
    ----------
    jobs
        From `read_jobs`.
    runner
        `LocalRunner` or `ClusterRunner`.
    cancel
        Once set, the present job stops and keeps what is done, and no other begins.
    on_outcome, on_progress
        Called after every job and on the way.

    Raises
    ------
    CheckpointError
        The checkpoint cannot be loaded.
    ClusterGoneError, SynthesisStoppedError
        There is no worker to load it, or a stop was asked for before one had.
    """
    cancel = cancel or CancelToken()
    outcomes: list[Outcome] = []
    names = dict.fromkeys(job.request.checkpoint for job in jobs)
    models = {name: runner.checkpoint(name, cancel) for name in names}
    section, place, gone = None, None, ""
    for job in jobs:
        if job.place != place:
            section, place = None, job.place
        watch = Stopwatch()
        try:
            if cancel.cancelled or gone:
                outcome = Outcome(job, "not begun", message=gone)
            else:
                section = job.place.source.open() if section is None else section
                outcome = _already_there(job, section, models[job.request.checkpoint]) or _compute(
                    job, section, runner, cancel, None if on_progress is None else partial(on_progress, job)
                )
        except Exception as error:  # whatever it is, it is this job's: the others go on
            if os.environ.get("STMDIT_DEBUG"):
                raise
            state: State = "stopped" if isinstance(error, SynthesisStoppedError) else "failed"
            outcome = Outcome(job, state, seconds=watch.seconds, message=_reason(error))
            gone = "the cluster has gone" if isinstance(error, ClusterGoneError) else gone
        outcomes.append(outcome)
        if on_outcome is not None:
            on_outcome(outcome)
    return outcomes


def _reason(error: Exception) -> str:
    if isinstance(error, ClusterGoneError):
        return f"{error}\nNo further job was begun; run the batch again to go on"
    if isinstance(error, StmditError):
        return str(error)
    if isinstance(error, OSError):
        return f"the disk or the network failed: {error}; what was computed is kept, run the batch again to go on"
    return (
        f"unexpected {type(error).__name__}: {first_line(error)}. This is a fault of napari-stmdit; please report it. STMDIT_DEBUG=1 "
        "ends the batch there and shows where it happened"
    )


def _compute(
    job: Job,
    section: Section,
    runner: Runner,
    cancel: CancelToken,
    on_progress: OnProgress | None,
) -> Outcome:
    watch = Stopwatch()
    store = job.place.store
    check_writable(store, section)
    _check_name(job)
    result = runner.synthesize(job, section, cancel, on_progress)
    made, planned = len(result.done), len(result.plan)
    if made + len(result.failed) < planned:
        kept = f"{made} of {planned} patches are kept; run the batch again to go on"
        return Outcome(job, "stopped", None, made, planned, watch.seconds, kept)
    if made < planned:  # in the store, where nothing is overwritten, they could not be made good
        reasons = "; ".join(dict.fromkeys(result.failed.values()))
        kept = f"{planned - made} of {planned} patches failed ({reasons}); the others are kept in {job.folder}"
        again = "run the batch again to compute what is missing; to use another --dtype remove that folder first"
        return Outcome(job, "incomplete", None, made, planned, watch.seconds, f"{kept}; {again}")
    element = result.save(store, job.edit)
    if result.canvas is not None:
        result.canvas.discard()
    return Outcome(job, "done", element, made, planned, watch.seconds)


def _check_name(job: Job) -> None:
    """Refuse early a name that differs from a stored one by case alone, as saving would."""
    store, name = job.place.store, element_name(job.edit)
    taken = next((one for one in (list_results(store) if store.exists() else ()) if one.lower() == name.lower()), None)
    if taken is not None:
        raise StoreError(f"{store} already holds {taken}; results are never overwritten: give the edit another name")


def _already_there(job: Job, section: Section, model: KnownModel) -> Outcome | None:
    """Return the outcome of a job whose result is in the store; None where there is none.

    Raises StoreError where the store has a result of that name of another request or of other inputs.
    """
    store, element = job.place.store, element_name(job.edit)
    if not store.exists() or element not in list_results(store):
        return None
    _, _, record = read_result(store, element)
    found = recorded_differences(record, identity_of(make_plan(section, job.request, model), section, model))
    if found:
        raise StoreError(
            f"{store} already holds {element}, which was made of another request or of other inputs:\n  "
            + "\n  ".join(found[:5])
            + "\nResults are never overwritten: give the edit another name, or the batch another output"
        )
    patches = record.get("patches", record.get("continuous", {}))
    planned = int(patches.get("planned", patches.get("tiles_planned", 0)))
    made = len(patches.get("spots", patches.get("tiles_yx_fullres", [])))
    if made >= planned:
        return Outcome(job, "there already", element, made, planned)
    # earlier versions saved results that lacked the patches that had failed
    lacking = (
        f"{planned - made} of {planned} patches are missing in it; to compute it whole, give the edit another name"
    )
    return Outcome(job, "incomplete", element, made, planned, message=lacking)


def exit_code(outcomes: Sequence[Outcome]) -> int:
    """Return 0 where all is done, 1 where a job failed or lacks patches, or the cluster has gone, 130 where the batch was stopped."""
    if any(o.state == "stopped" or (o.state == "not begun" and not o.message) for o in outcomes):
        return 130
    return 1 if {outcome.state for outcome in outcomes} & {"failed", "incomplete"} else 0


def table(outcomes: Sequence[Outcome]) -> str:
    """Return the outcomes as a table in text."""
    rows = [("section", "edit", "state", "patches", "seconds", "result")]
    for outcome in outcomes:
        where = f"{outcome.job.place.store.name}/{outcome.element}" if outcome.element else "-"
        patches = f"{outcome.patches}/{outcome.planned}" if outcome.planned else "-"
        rows.append((outcome.job.place.name, outcome.job.edit, outcome.state, patches, f"{outcome.seconds:.1f}", where))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    notes = [f"{o.job.name}: {o.message}" for o in outcomes if o.message and o.state != "not begun"]
    return "\n".join([*lines, *notes]) + "\n"
