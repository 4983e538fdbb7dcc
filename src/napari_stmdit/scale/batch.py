"""A cohort, job after job, in this process or on a cluster; what is done stays done, and one bad section stops no other."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from ..assemble import Checkpoint, load_checkpoint
from ..errors import StmditError, StoreError, first_line
from ..progress import BATCH, CancelToken, Progress, Stopwatch
from ..synthesis.identity import identity_of, recorded_differences
from ..synthesis.models import KnownModel
from ..synthesis.plan import plan as make_plan
from ..synthesis.result import Result
from ..synthesis.session import synthesize
from ..tissue.store import check_writable, list_results, read_result
from ..tissue.store_entries import element_name
from ..types import Section
from .cluster import remote_checkpoint, synthesize_shared
from .jobs import Job

OnProgress = Callable[[Progress], None]
State = Literal["done", "there already", "incomplete", "stopped", "failed", "not begun"]


@dataclass(frozen=True)
class Outcome:
    """Outcome of a job.

    Attributes
    ----------
    state
        ``done`` now, ``there already`` from an earlier batch, ``incomplete`` where patches failed and the others are kept, ``stopped``
        with a part kept, ``failed``, or ``not begun``.
    element
        Name of the result in the section's store; None where there is none.
    patches, planned
        Finished patches, and those of the plan.
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


class LocalRunner:
    """Computes jobs in this process; a checkpoint is loaded once."""

    def __init__(self, device: str = "auto", dtype: str = "auto", batch: int = BATCH) -> None:
        self._device, self._dtype, self._batch = device, dtype, batch
        self._loaded: tuple[str, Checkpoint] | None = None

    def checkpoint(self, name: str) -> Checkpoint:
        """Return a checkpoint."""
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
    """Computes jobs on the workers of a dask cluster, whose client `cluster.connect` gives."""

    def __init__(self, client: Any, device: str = "auto", dtype: str = "auto", batch: int = BATCH) -> None:
        self._client, self._device, self._dtype, self._batch = client, device, dtype, batch

    def checkpoint(self, name: str) -> KnownModel:
        """Return what is known of a checkpoint."""
        return remote_checkpoint(self._client, name, self._device, self._dtype)

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
    """Compute jobs one after the other; a section is opened once for all its jobs, which follow each other.

    Run again with the same jobs, it leaves out what the stores hold already and goes on where a job was stopped. A job that fails gets
    an outcome that says why, and the next one begins.

    Parameters
    ----------
    jobs
        From `read_jobs`.
    runner
        What computes.
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
    models = {name: runner.checkpoint(name) for name in dict.fromkeys(job.request.checkpoint for job in jobs)}
    section, place = None, None
    for job in jobs:
        if job.place != place:
            section, place = None, job.place
        watch = Stopwatch()
        try:
            if cancel.cancelled:
                outcome = Outcome(job, "not begun")
            else:
                section = job.place.source.open() if section is None else section
                outcome = _already_there(job, section, models[job.request.checkpoint]) or _compute(
                    job, section, runner, cancel, None if on_progress is None else partial(on_progress, job)
                )
        except Exception as error:  # whatever it is, it is this job's: the others go on
            if os.environ.get("STMDIT_DEBUG"):
                raise
            outcome = Outcome(job, "failed", seconds=watch.seconds, message=_reason(error))
        outcomes.append(outcome)
        if on_outcome is not None:
            on_outcome(outcome)
    return outcomes


def _reason(error: Exception) -> str:
    """Say why a job failed."""
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
    """Refuse before the work what saving would refuse after it: a store does not tell names apart by case."""
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
    found = recorded_differences(record, identity_of(make_plan(section, job.request, model.card), section, model))
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
    """Return 0 where all is done, 1 where a job failed or lacks patches, 130 where the batch was stopped."""
    states = {outcome.state for outcome in outcomes}
    if states & {"stopped", "not begun"}:
        return 130
    return 1 if states & {"failed", "incomplete"} else 0


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
