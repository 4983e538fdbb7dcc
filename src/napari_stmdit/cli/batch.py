"""``stmdit batch``: a cohort from a job file."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..progress import BATCH
from ._common import Batch, Device, DType, InterruptCancels, Json, ProgressBar, Scheduler, Workers, print_json

if TYPE_CHECKING:
    from ..progress import Progress
    from ..scale.batch import Job, Outcome


def batch(
    jobs: Annotated[Path, typer.Argument(help="Job file, YAML: sections, edits, output.")],
    scheduler: Scheduler = None,
    workers: Workers = None,
    at_once: Batch = BATCH,
    device: Device = "auto",
    dtype: DType = "auto",
    as_json: Json = False,
) -> None:
    """Synthesize many sections and edits; run again, it goes on where it was stopped.

    Exit code 0 where all is done, 1 where a job failed (the others are done), 2 on a bad job file, 130 on interrupt.
    """
    from ..progress import CancelToken
    from ..scale.batch import ClusterRunner, LocalRunner, exit_code, read_jobs, run_batch, table
    from ..scale.cluster import check_choice, connect

    wanted = read_jobs(jobs)
    check_choice(scheduler, workers)
    cancel, number = CancelToken(), count(1)
    shared = scheduler is not None or workers is not None

    def show(job: Job, progress: Progress) -> None:
        bar.title = job.name
        bar(progress)

    def say(outcome: Outcome) -> None:
        if not as_json:
            sys.stderr.write(f"{next(number)}/{len(wanted)} {outcome.job.name}: {outcome.state}\n")
            sys.stderr.flush()

    with (
        InterruptCancels(cancel),
        ProgressBar() as bar,
        connect(scheduler, workers, device) if shared else nullcontext() as client,
    ):
        runner: Any = ClusterRunner(client, device, dtype, at_once) if shared else LocalRunner(device, dtype, at_once)
        outcomes = run_batch(wanted, runner, cancel=cancel, on_outcome=say, on_progress=show)
    code = exit_code(outcomes)
    if as_json:
        print_json({"jobs": [outcome.facts for outcome in outcomes], "complete": code == 0})
    else:
        sys.stdout.write(table(outcomes))
    if code:
        raise typer.Exit(code)
