"""All stages of a training, or one of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, get_args

from ..errors import RequestError
from .config import TrainingConfig, load_config

Stage = Literal["autoencoder", "latents", "diffusion", "export"]


def train(config_path: Path, stage: str | None = None, *, root: Path | None = None, output: Path | None = None) -> Path:
    """Train by a config, continuing what was begun, and return the last stage's file or folder.

    Parameters
    ----------
    config_path
        Training config in YAML.
    stage
        ``autoencoder``, ``latents``, ``diffusion`` or ``export``; None runs them in this order.
    root, output
        Folder of the data and folder of the work files, in place of the config's.

    Raises
    ------
    RequestError
        The config or the stage is not valid.
    """
    config = load_config(config_path, root, output)
    if stage is not None and stage not in get_args(Stage):
        raise RequestError([("stage", f"{stage!r} is unknown; choose {', '.join(get_args(Stage))}")])
    stages: tuple[str, ...] = get_args(Stage) if stage is None else (stage,)
    result = config.output
    for name in stages:
        result = run_stage(config, name)
    return result


def run_stage(config: TrainingConfig, stage: str) -> Path:
    """Run one stage and return what it wrote."""
    if stage == "autoencoder":
        from .autoencoder import train_autoencoder

        return train_autoencoder(config)
    if stage == "latents":
        from .latents import make_cache

        return make_cache(config)
    if stage == "diffusion":
        from .diffusion import train_diffusion

        return train_diffusion(config)
    from .export import export_checkpoint

    if int(os.environ.get("RANK", 0)) > 0:
        return config.output  # of several launched processes, the first writes
    return export_checkpoint(config)
