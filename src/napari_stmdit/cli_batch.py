"""The command `stmdit batch`: a cohort from a job file."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .progress import BATCH

if TYPE_CHECKING:
    from .progress import Progress
    from .scale.batch import Outcome
    from .scale.jobs import Job


def batch(
    jobs: Annotated[Path, typer.Argument(help="Job file, YAML: sections, edits, output.")],
    scheduler: Annotated[
        str | None, typer.Option(help="Address of a dask scheduler, whose workers share every run.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes on this computer: one per GPU, or parts of the CPU.")
    ] = None,
    at_once: Annotated[
        int, typer.Option("--batch", min=1, help="Patches denoised together; does not change a result.")
    ] = BATCH,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")
    ] = False,
) -> None:
    """Synthesize many sections and edits; run again, it goes on where it was stopped.

    Exit code 0 where all is done, 1 where a job failed (the others are done), 2 on a bad job file, 130 on interrupt.
    """
    from .cli import _print_json
    from .cli_progress import InterruptCancels, ProgressBar
    from .progress import CancelToken
    from .scale.batch import ClusterRunner, LocalRunner, exit_code, run_batch, table
    from .scale.cluster import check_choice, connect
    from .scale.jobs import read_jobs

    wanted = read_jobs(jobs)
    check_choice(scheduler, workers)
    cancel = CancelToken()
    shared = scheduler is not None or workers is not None
    with (
        InterruptCancels(cancel),
        ProgressBar("synthesizing", hidden=as_json) as bar,
        connect(scheduler, workers, device) if shared else nullcontext() as client,
    ):
        runner: Any = ClusterRunner(client, device, dtype, at_once) if shared else LocalRunner(device, dtype, at_once)
        tell = _Teller(len(wanted), bar, quiet=as_json)
        outcomes = run_batch(wanted, runner, cancel=cancel, on_outcome=tell.outcome, on_progress=tell.progress)
    if as_json:
        _print_json({"jobs": [outcome.facts for outcome in outcomes], "complete": exit_code(outcomes) == 0})
    else:
        sys.stdout.write(table(outcomes))
    if exit_code(outcomes):
        raise typer.Exit(exit_code(outcomes))


class _Teller:
    """Says on stderr how far a batch is."""

    def __init__(self, jobs: int, bar: Any, quiet: bool) -> None:
        self._jobs, self._bar, self._quiet = jobs, bar, quiet
        self._done = 0

    def progress(self, job: Job, progress: Progress) -> None:
        """Show how far the job under way is."""
        self._bar(progress)

    def outcome(self, outcome: Outcome) -> None:
        """Say what came of a job."""
        self._done += 1
        self._bar.restart()
        if not self._quiet:
            sys.stderr.write(f"{self._done}/{self._jobs} {outcome.job.name}: {outcome.state}\n")
            sys.stderr.flush()
