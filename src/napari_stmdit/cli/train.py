"""``stmdit train``: all stages of a training, stopped so that nothing is lost."""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import StmditError
from ._common import InterruptCancels, ProgressBar

if TYPE_CHECKING:
    from ..training.adaptation import AdaptProgress
    from ..training.parallel import TrainingProgress

adapt_option = partial(typer.Option, rich_help_panel="A checkpoint of your own tissue")
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
    section: Annotated[
        list[str] | None,
        adapt_option(help="Section to make a checkpoint of, without a configuration; may be given several times."),
    ] = None,
    fullres: Annotated[str | None, adapt_option(help="Slide image of the first section.")] = None,
    mpp: Annotated[
        float | None, adapt_option(help="Microns per pixel of the first section's slide; overrides the file's.")
    ] = None,
    factors: Annotated[
        list[str] | None,
        adapt_option(
            help="Values of each spot in the place of counts, FILE.h5ad::NAME of its obsm or a .csv; one for each section, in their order."
        ),
    ] = None,
    exclude: Annotated[
        Path | None,
        adapt_option(help="GeoJSON polygons over the first section's slide: spots inside are used for nothing."),
    ] = None,
    orientation: Annotated[
        str, adapt_option(help="How the first section's spots are laid over its slide, as `stmdit inspect` names it.")
    ] = "as-given",
    minutes: Annotated[float, adapt_option(help="Time for all of it.")] = 30.0,
    hold_out: Annotated[
        str,
        adapt_option(
            help="What is evaluated on and never trained on: lower-right or another corner of the first section, the name of a section, or none, where "
            "the time of the evaluation goes to the training."
        ),
    ] = "lower-right",
    name: Annotated[str | None, adapt_option(help="Name of the checkpoint; by default of the first section.")] = None,
    start: Annotated[str, adapt_option(help="Checkpoint to start from.")] = "demo",
    seed: Annotated[int, adapt_option(help="Seed of all that is drawn.")] = 0,
    workers: Annotated[
        int | None, adapt_option(min=1, help="Processes that learn on a CPU; by default its cores, at most 4.")
    ] = None,
) -> None:
    """Train a checkpoint: on your own sections in a given time (--section), or by a configuration; continues where it was stopped.

    Ctrl-C saves what is done and ends with exit code 130. Several GPUs: accelerate launch -m napari_stmdit.cli train CONFIG.
    """
    if template:
        sys.stdout.write(TEMPLATE.read_text(encoding="utf-8"))
        return
    if section:
        if config is not None or stage is not None or root is not None:
            raise StmditError("got --section and a configuration, --stage or --root; give one or the other")
        how: dict[str, Any] = {
            "minutes": minutes,
            "fullres": fullres,
            "mpp": mpp,
            "hold_out": hold_out,
            "name": name,
            "start": start,
            "factors": factors or (),
            "exclude": exclude,
            "orientation": orientation,
            "seed": seed,
            "workers": workers,
        }
        _adapt(section, output, how)
        return
    if config is None:
        raise StmditError(
            "give your section with --section, or a training configuration; `stmdit train --template` prints one"
        )
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


def _adapt(sections: list[str], output: Path | None, how: dict[str, Any]) -> None:
    """Make a checkpoint of one's own tissue, and print its figures, its folder and how it is used."""
    from ..progress import CancelToken
    from ..training.adapt import adapt
    from ..training.adaptation import STAGES
    from ..training.parallel import TrainingStoppedError

    cancel = CancelToken()

    def show(at: AdaptProgress) -> None:
        left = "" if at.remaining_s is None else f"; {at.remaining_s / 60:.0f} min left in all"
        bar.show(STAGES[at.stage], at.fraction, f"{at.words}{left}".removeprefix("; "))

    def say(sentence: str) -> None:
        sys.stderr.write(f"{sentence}\n")
        sys.stderr.flush()

    try:
        with ProgressBar(seconds=30.0, left=False) as bar, InterruptCancels(cancel, terminated=True):
            made = adapt(sections, output=output, on_progress=show, on_note=say, cancel=cancel, **how)
    except TrainingStoppedError as stopped:
        sys.stderr.write(f"stmdit: {stopped}\n")
        raise typer.Exit(130) from None
    sys.stdout.write(
        f"{made.words}\n{made.folder}\nUse it by its name: stmdit synthesize SECTION --checkpoint {made.name}\n"
    )
