"""``stmdit train``: all stages of a training, stopped so that nothing is lost."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import StmditError
from ._common import InterruptCancels, ProgressBar

if TYPE_CHECKING:
    from ..training.parallel import TrainingProgress

TEMPLATE = Path(__file__).parent.parent / "data" / "finetune.yaml"


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
    from ..progress import CancelToken
    from ..training.parallel import TrainingStoppedError
    from ..training.train import train as run_training

    leads = os.environ.get("RANK", "0") == "0"
    cancel = CancelToken()

    def show(progress: TrainingProgress) -> None:
        loss = "" if progress.loss is None else f", loss {progress.loss:.4f}"
        bar.show(progress.phase, progress.step / progress.steps, f"{progress.step} of {progress.steps}{loss}")

    try:
        with ProgressBar(hidden=not leads, seconds=30.0) as bar, InterruptCancels(cancel, terminated=True):
            made = run_training(config, stage, root=root, output=output, on_progress=show, cancel=cancel)
    except TrainingStoppedError as stopped:
        sys.stderr.write(f"stmdit: {stopped}\n")
        raise typer.Exit(130) from None
    if leads:
        sys.stdout.write(f"{made}\n")
