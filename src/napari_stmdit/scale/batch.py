"""A cohort: job after job, in this process or on a cluster; what is done stays done, and one bad section stops no other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, Protocol

from ..assemble import Checkpoint, load_checkpoint
from ..errors import StmditError, StoreError
from ..progress import BATCH, CancelToken, Progress, Stopwatch
from ..synthesis.identity import differences
from ..synthesis.result import Result, synthesize
from ..tissue.store import check_writable, list_results, read_result
from ..types import Request, Section
from .jobs import Job, Place

State = Literal["done", "there already", "stopped", "failed", "not begun"]


@dataclass(frozen=True)
class Outcome:
    """What came of a job.

    Attributes
    ----------
    job
        The job.
    state
        ``done`` now, ``there already`` from an earlier batch, ``stopped`` with a part kept, ``failed``, or ``not begun``.
    element
        Name of the result in the section's store; None where there is none.
    patches, planned
        Finished patches, and those of the plan.
    seconds
        What it took.
    message
        Why it failed; what the user should know.
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
        """The outcome in JSON types."""
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


class Runner(Protocol):
    """Who computes the jobs of a batch: this process, or a cluster."""

    def checkpoint_sha256(self, name: str) -> str:
        """Return the hash of a checkpoint."""

    def synthesize(
        self,
        place: Place,
        section: Section,
        request: Request,
        folder: Path,
        cancel: CancelToken,
        on_progress: Callable[[Progress], None] | None,
    ) -> Result:
        """Compute a request, going on where ``folder`` has a part of it."""


class LocalRunner:
    """Computes in this process; a checkpoint is loaded once."""

    def __init__(self, device: str = "auto", dtype: str = "auto", batch: int = BATCH) -> None:
        self._device, self._dtype, self._batch = device, dtype, batch
        self._loaded: tuple[str, Checkpoint] | None = None

    def checkpoint_sha256(self, name: str) -> str:
        """Return the hash of a checkpoint."""
        return str(self._checkpoint(name).provenance["sha256"])

    def synthesize(
        self,
        place: Place,
        section: Section,
        request: Request,
        folder: Path,
        cancel: CancelToken,
        on_progress: Callable[[Progress], None] | None,
    ) -> Result:
        """Compute a request, going on where ``folder`` has a part of it."""
        return synthesize(
            section,
            request,
            self._checkpoint(request.checkpoint),
            batch=self._batch,
            cancel=cancel,
            on_progress=on_progress,
            folder=folder,
            resume=True,
        )

    def _checkpoint(self, name: str) -> Checkpoint:
        if self._loaded is None or self._loaded[0] != name:
            self._loaded = name, load_checkpoint(name, device=self._device, dtype=self._dtype)
        return self._loaded[1]


class ClusterRunner:
    """Computes on the workers of a dask cluster, whose client `cluster.connect` gives."""

    def __init__(self, client: Any, device: str = "auto", dtype: str = "auto", batch: int = BATCH) -> None:
        self._client, self._device, self._dtype, self._batch = client, device, dtype, batch

    def checkpoint_sha256(self, name: str) -> str:
        """Return the hash of a checkpoint."""
        from .cluster import remote_checkpoint

        return str(remote_checkpoint(self._client, name, self._device, self._dtype).provenance["sha256"])

    def synthesize(
        self,
        place: Place,
        section: Section,
        request: Request,
        folder: Path,
        cancel: CancelToken,
        on_progress: Callable[[Progress], None] | None,
    ) -> Result:
        """Compute a request, going on where ``folder`` has a part of it."""
        from .cluster import synthesize_shared

        return synthesize_shared(
            self._client,
            place.source,
            section,
            request,
            folder=folder,
            batch=self._batch,
            device=self._device,
            dtype=self._dtype,
            cancel=cancel,
            on_progress=on_progress,
            resume=True,
        )


def run_batch(
    jobs: Sequence[Job],
    runner: Runner,
    *,
    cancel: CancelToken | None = None,
    on_outcome: Callable[[Outcome], None] | None = None,
    on_progress: Callable[[Job, Progress], None] | None = None,
) -> list[Outcome]:
    """Compute jobs one after the other; a section is opened once for all its jobs.

    Run again with the same jobs, it leaves out what the stores hold already and goes on where a job was stopped. A job that
    fails is told of in its outcome, and the next one begins.

    Parameters
    ----------
    jobs
        From `read_jobs`.
    runner
        Who computes.
    cancel
        Once set, the job under way stops and keeps what is done, and no other begins.
    on_outcome, on_progress
        Called after every job and on the way.

    Raises
    ------
    CheckpointError
        Where the checkpoint cannot be loaded, which no job could do without.
    """
    cancel = cancel or CancelToken()
    outcomes: list[Outcome] = []
    hashes = {name: runner.checkpoint_sha256(name) for name in dict.fromkeys(job.request.checkpoint for job in jobs)}
    for place, group in groupby(jobs, key=lambda job: job.place):
        for outcome in _section_outcomes(place, list(group), runner, hashes, cancel, on_progress):
            outcomes.append(outcome)
            if on_outcome is not None:
                on_outcome(outcome)
    return outcomes


def _section_outcomes(
    place: Place,
    jobs: list[Job],
    runner: Runner,
    hashes: dict[str, str],
    cancel: CancelToken,
    on_progress: Callable[[Job, Progress], None] | None,
) -> Iterator[Outcome]:
    section: Section | None = None
    for job in jobs:
        if cancel.cancelled:
            yield Outcome(job, "not begun")
            continue
        watch = Stopwatch()
        try:
            there = _already_there(job, hashes[job.request.checkpoint])
            if there is not None:
                yield there
                continue
            if section is None:
                section = place.source.open()
            yield _compute(job, section, runner, cancel, on_progress)
        except StmditError as error:
            yield Outcome(job, "failed", seconds=watch.seconds, message=str(error))


def _compute(
    job: Job,
    section: Section,
    runner: Runner,
    cancel: CancelToken,
    on_progress: Callable[[Job, Progress], None] | None,
) -> Outcome:
    watch = Stopwatch()
    store = job.place.store
    check_writable(store, section)
    told = None if on_progress is None else lambda progress: on_progress(job, progress)
    result = runner.synthesize(job.place, section, job.request, job.folder, cancel, told)
    made, planned = len(result.done), len(result.plan)
    if made + len(result.failed) < planned:
        kept = f"{made} of {planned} patches are kept; run the batch again to go on"
        return Outcome(job, "stopped", None, made, planned, watch.seconds, kept)
    element = result.save(store, job.edit)
    if result.canvas is not None:
        result.canvas.discard()
    return Outcome(job, "done", element, made, planned, watch.seconds, "; ".join(result.failed.values()))


def _already_there(job: Job, sha256: str) -> Outcome | None:
    """Return the outcome of a job whose result is in the store; None where there is none.

    Raises
    ------
    StoreError
        Where the store has a result of that name that was asked for otherwise.
    """
    store, element = job.place.store, f"stmdit_{job.edit}"
    if not store.exists() or element not in list_results(store):
        return None
    _, _, record = read_result(store, element)
    wanted = _intent(job.request.model_dump(mode="json"))
    kept = dict(dict(record.get("section") or {}).get("expression") or {})
    if kept.get("kind") == "none" and "expression" not in job.request.model_fields_set:
        wanted["expression"] = "null"  # as the plan of a plain slide resolves it
    found = differences(
        {"request": _intent(record.get("request")), "sha256": dict(record.get("checkpoint", {})).get("sha256")},
        {"request": wanted, "sha256": sha256},
    )
    if found:
        raise StoreError(
            f"{store} already holds {element}, which was made of another request:\n  "
            + "\n  ".join(found[:5])
            + "\nResults are never overwritten: give the edit another name, or the batch another output"
        )
    patches = record.get("patches", record.get("continuous", {}))
    planned = int(patches.get("planned", patches.get("tiles_planned", 0)))
    made = len(patches.get("spots", patches.get("tiles_yx_fullres", [])))
    return Outcome(job, "there already", element, made, planned)


def _intent(request: Any) -> dict[str, Any]:
    """A request without the places of its files, which may differ from one computer to the next."""
    return {k: v for k, v in dict(request or {}).items() if k not in ("section", "checkpoint")}


def exit_code(outcomes: Sequence[Outcome]) -> int:
    """Return 0 where all is done, 1 where a job failed, 130 where the batch was stopped."""
    states = {outcome.state for outcome in outcomes}
    if states & {"stopped", "not begun"}:
        return 130
    return 1 if "failed" in states else 0


def table(outcomes: Sequence[Outcome]) -> str:
    """Return the outcomes as a table in text."""
    rows = [("section", "edit", "state", "patches", "seconds", "result")]
    for outcome in outcomes:
        where = f"{outcome.job.place.store.name}/{outcome.element}" if outcome.element else "-"
        patches = f"{outcome.patches}/{outcome.planned}" if outcome.planned else "-"
        rows.append((outcome.job.place.name, outcome.job.edit, outcome.state, patches, f"{outcome.seconds:.1f}", where))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    notes = [f"{o.job.name}: {o.message}" for o in outcomes if o.message]
    return "\n".join([*lines, *notes]) + "\n"
