"""``stmdit train``: all stages of a training, with a bar that says how long it takes still, stopped so that nothing is lost."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .errors import StmditError

if TYPE_CHECKING:
    from .training.parallel import TrainingProgress

TEMPLATE = Path(__file__).parent / "data" / "finetune.yaml"


def train(
    config: Annotated[Path | None, typer.Argument(help="Training configuration, YAML.")] = None,
    stage: Annotated[
        str | None, typer.Option(help="Only this one: autoencoder, latents, diffusion or export; all by default.")
    ] = None,
    root: Annotated[Path | None, typer.Option(help="Folder of the data, instead of the configuration's.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder of the work files, instead of the configuration's.")
    ] = None,
    template: Annotated[
        bool, typer.Option("--template", help="Print a commented configuration for your own sections.")
    ] = False,
) -> None:
    """Train a checkpoint, from the beginning or from another one; continues where it was stopped.

    Ctrl-C saves what is done and ends with exit code 130. Several GPUs: accelerate launch -m napari_stmdit.cli train CONFIG.
    """
    if template:
        sys.stdout.write(TEMPLATE.read_text(encoding="utf-8"))
        return
    if config is None:
        raise StmditError("give a training configuration; `stmdit train --template` prints one")
    from .cli_progress import InterruptCancels
    from .progress import CancelToken
    from .training.parallel import TrainingStoppedError
    from .training.train import train as run_training

    leads = os.environ.get("RANK", "0") == "0"
    cancel = CancelToken()
    try:
        with TrainingBar(hidden=not leads) as bar, InterruptCancels(cancel, terminated=True):
            made = run_training(config, stage, root=root, output=output, on_progress=bar, cancel=cancel)
    except TrainingStoppedError as stopped:
        sys.stderr.write(f"stmdit: {stopped}\n")
        raise typer.Exit(130) from None
    if leads:
        sys.stdout.write(f"{made}\n")


class TrainingBar:
    """Takes `TrainingProgress` values: a bar where stderr is a terminal, a line now and then where it is a log."""

    LINE_SECONDS = 30.0

    def __init__(self, hidden: bool = False) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        self._hidden, self._lines = hidden, not console.is_terminal
        self._phase, self._first, self._since = "", 0, 0.0
        self._told_at = 0.0
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}{task.fields[loss]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=hidden or self._lines,
        )
        self._task: Any = None

    def __enter__(self) -> TrainingBar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, progress: TrainingProgress) -> None:
        """Show it."""
        loss = "" if progress.loss is None else f", loss {progress.loss:.4f}"
        now = time.monotonic()
        if progress.phase != self._phase:  # the time left is that of this phase, from where it was gone on
            self._phase, self._first, self._since = progress.phase, progress.step, now
            self._told_at = now - self.LINE_SECONDS
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task(progress.phase, total=progress.steps, completed=progress.step, loss=loss)
        self._bar.update(self._task, completed=progress.step, loss=loss)
        if self._lines and not self._hidden and (now - self._told_at >= self.LINE_SECONDS or self._is_last(progress)):
            self._told_at = now
            sys.stderr.write(
                f"{progress.phase}: {progress.step} of {progress.steps}{loss}{self._left(progress, now)}\n"
            )
            sys.stderr.flush()

    @staticmethod
    def _is_last(progress: TrainingProgress) -> bool:
        return progress.step == progress.steps

    def _left(self, progress: TrainingProgress, now: float) -> str:
        done, seconds = progress.step - self._first, now - self._since
        if done <= 0 or self._is_last(progress):
            return ""
        left = seconds / done * (progress.steps - progress.step)
        return f", {left / 60:.0f} min left" if left >= 60 else f", {left:.0f} s left"
