"""The stages of a training, all or one."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from ..errors import RequestError
from ..progress import CancelToken
from .autoencoder import train_autoencoder
from .config import TrainingConfig, load_config
from .diffusion import train_diffusion
from .export import check_target, export_checkpoint
from .inputs import record_inputs
from .latents import make_cache
from .parallel import Control, OnProgress, require_extra, run_alone
from .start import apply_start, record_start

Stage = Literal["autoencoder", "latents", "diffusion", "export"]


def train(
    config_path: Path,
    stage: str | None = None,
    *,
    root: Path | None = None,
    output: Path | None = None,
    on_progress: OnProgress | None = None,
    cancel: CancelToken | None = None,
) -> Path:
    """Train by a config, continuing what was begun, and return the last stage's file or folder.

    Parameters
    ----------
    config_path
        Training config in YAML.
    stage
        ``autoencoder``, ``latents``, ``diffusion`` or ``export``; None runs them in this order.
    root, output
        Folder of the data and folder of the work files, in place of the config's.
    on_progress
        Called with the progress of a phase.
    cancel
        Once set, the training saves its state after the present step and ends.

    Raises
    ------
    RequestError
        The config or the stage is not valid, or sections cannot be used; names every fault with its place.
    TrainingStoppedError
        It was asked to stop; its state is saved.
    StmditError
        A dependency is not installed, a stage cannot be run, or the checkpoint's place is taken by something else.
    """
    config = load_config(config_path, root, output)
    if stage is not None and stage not in get_args(Stage):
        raise RequestError([("stage", f"{stage!r} is unknown; choose {', '.join(get_args(Stage))}")])
    stages: tuple[str, ...] = get_args(Stage) if stage is None else (stage,)
    if stages != ("export",):
        require_extra()
    if "export" in stages:
        check_target(config)  # now, not after hours of training
    control = Control(on_progress, cancel)
    result = config.output
    for name in stages:
        result = run_stage(config, name, control)
    return result


def run_stage(config: TrainingConfig, stage: str, control: Control | None = None) -> Path:
    """Run one stage and return what it wrote; errors as for `train`."""
    config = apply_start(config)
    control = control or Control()
    if config.start is not None:
        run_alone(config, record_start, config)
    run_alone(config, record_inputs, config, stage)
    if stage == "autoencoder":
        return train_autoencoder(config, control)
    if stage == "latents":
        return make_cache(config, control)
    if stage == "diffusion":
        return train_diffusion(config, control)
    run_alone(config, export_checkpoint, config)
    return config.export or config.output / "checkpoint"
