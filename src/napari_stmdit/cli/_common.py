"""Shared parts of the commands: options, JSON on stdout, progress on stderr, and Ctrl-C."""

from __future__ import annotations

import json
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import StmditError

if TYPE_CHECKING:
    from rich.console import Console

    from ..progress import CancelToken, Progress

section_option = partial(typer.Option, rich_help_panel="Section")
request_option = partial(typer.Option, rich_help_panel="Request")
sampling_option = partial(typer.Option, rich_help_panel="Sampling")
machine_option = partial(typer.Option, rich_help_panel="Checkpoint and computer")
output_option = partial(typer.Option, rich_help_panel="Output")

Results = Annotated[Path, typer.Argument(help="SpatialData store with results, as stmdit synthesize writes it.")]
Json = Annotated[bool, output_option("--json", help="Print one JSON object on stdout and nothing else there.")]
Mpp = Annotated[float | None, section_option(help="Microns per full-resolution pixel; overrides the file's.")]
Factors = Annotated[
    str | None,
    section_option(
        help="Values of each spot in the place of counts, for a checkpoint trained with such: FILE.h5ad::NAME of its obsm, or a .csv."
    ),
]
Exclude = Annotated[
    Path | None,
    section_option(help="GeoJSON polygons (x, y) in full-resolution pixels: spots inside are used for nothing."),
]
ExcludeClass = Annotated[
    list[str] | None, section_option(help="A class of --exclude that is meant; several may be given; all by default.")
]
Orientation = Annotated[
    str, section_option(help="How the spots are laid over the slide: as-given, or what `stmdit inspect SECTION` names.")
]
Seed = Annotated[int | None, sampling_option(help="Seed of the noise.")]
GuidanceExpression = Annotated[float | None, sampling_option(help="Guidance scale of expression.")]
GuidanceMorphology = Annotated[float | None, sampling_option(help="Guidance scale of morphology.")]
Batch = Annotated[
    int, machine_option("--batch", min=1, help="Patches denoised together; does not change the result in float32.")
]
Device = Annotated[str, machine_option(help="auto, cpu, cuda, cuda:N or mps.")]
DType = Annotated[str, machine_option(help="auto, float32, bfloat16 or float16.")]
Scheduler = Annotated[str | None, machine_option(help="Address of a dask scheduler, whose workers share the run.")]
Workers = Annotated[
    int | None,
    machine_option(min=1, help="Processes on this computer that share the run: one per GPU, or parts of the CPU."),
]
AllowGeneMismatch = Annotated[
    bool, request_option("--allow-gene-mismatch", help="Go on where too few genes are shared.")
]
OldOutput = Annotated[Path | None, typer.Argument(hidden=True)]
"""Output as the second argument, as earlier versions took it."""


def one_output(option: Path | None, argument: Path | None) -> Path:
    """Return the output, given as an option or, as in earlier versions, as an argument."""
    if option is None and argument is None:
        raise StmditError("--output is missing; say with it what to make")
    if option is not None and argument is not None:
        raise StmditError(f"got --output {option} and {argument}; leave the second one out")
    return Path(option or argument or "")


def print_json(value: Any) -> None:
    """Print a value as JSON on stdout."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def console() -> Console:
    """Return a console for tables, wide enough for them where there is no terminal."""
    from rich.console import Console

    made = Console(highlight=False, markup=False)
    if not made.is_terminal:
        made.width = 160
    return made


class ProgressBar:
    """Progress on stderr: a bar on a terminal, a line now and then in a log.

    Parameters
    ----------
    title
        Name of the work.
    hidden
        Whether to show nothing, as in processes beside the leading one.
    seconds
        Time between two lines of a log.
    left
        Whether to estimate the remaining time; False where the text states it.
    """

    def __init__(self, title: str = "", hidden: bool = False, seconds: float = 10.0, left: bool = True) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        err = Console(stderr=True)
        self.title, self._seconds, self._guesses = title, seconds, left
        self._lines = not hidden and not err.is_terminal
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[text]}"),
            *([TimeRemainingColumn()] if left else []),
            console=err,
            transient=True,
            disable=hidden or self._lines,
        )
        self._task: Any = None
        self._shown = ""
        self._start, self._since, self._said, self._said_at = 0.0, 0.0, "", 0.0

    def __enter__(self) -> ProgressBar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, progress: Progress) -> None:
        """Show the number of finished patches, or what is done before."""
        text = progress.doing or f"{progress.patches_done}/{progress.patches_total} patches"
        self.show(self.title, progress.fraction, text)

    def show(self, title: str, fraction: float, text: str) -> None:
        """Show the finished fraction, 0 to 1, and a text; another title begins a new bar."""
        now = time.monotonic()
        if title != self._shown or self._task is None:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task(title, total=1.0, completed=fraction, text=text)  # type: ignore[arg-type] # any number
            self._shown, self._start, self._since = title, fraction, now
            self._said, self._said_at = text, now - self._seconds  # nothing is done yet, so nothing is said
        self._bar.update(self._task, completed=fraction, text=text)
        if self._lines and text != self._said and (now - self._said_at >= self._seconds or fraction >= 1):
            self._said, self._said_at = text, now
            sys.stderr.write(f"{title}: {text}{self._left(fraction, now)}\n")
            sys.stderr.flush()

    def _left(self, fraction: float, now: float) -> str:
        done, seconds = fraction - self._start, now - self._since
        if done <= 0 or fraction >= 1 or not self._guesses:
            return ""
        left = seconds / done * (1 - fraction)
        return f", {left / 60:.0f} min left" if left >= 60 else f", {left:.0f} s left"


class InterruptCancels:
    """Context in which the first Ctrl-C asks the run to stop and keep finished work; a second one interrupts at once.

    Parameters
    ----------
    cancel
        The flag of the run.
    terminated
        Whether SIGTERM (a cluster's time limit, a shutdown) does the same.
    """

    def __init__(self, cancel: CancelToken, terminated: bool = False) -> None:
        self._cancel, self._terminated = cancel, terminated

    def __enter__(self) -> None:
        self._before = signal.signal(signal.SIGINT, self._stop)
        if self._terminated:
            self._before_term = signal.signal(signal.SIGTERM, lambda *_: self._cancel.cancel())

    def _stop(self, *_: object) -> None:
        self._cancel.cancel()
        signal.signal(signal.SIGINT, self._before)

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)
        if self._terminated:
            signal.signal(signal.SIGTERM, self._before_term)
