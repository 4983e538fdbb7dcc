"""The checkpoint that a training goes on from: its autoencoder and its encoders stay, its transformer is trained further."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from ..assemble import Checkpoint, list_checkpoints, load_checkpoint
from ..encoders.linear_programs import LinearProgramEncoder
from ..encoders.small_conv import SmallConvEncoder
from ..errors import CheckpointError
from ..model.autoencoder import StmditAutoencoder
from .config import TrainingConfig

Encoder = TypeVar("Encoder", LinearProgramEncoder, SmallConvEncoder)


def starting_folder(config: TrainingConfig) -> Path:
    """Return the folder of the checkpoint to start from.

    Raises
    ------
    CheckpointError
        It is neither a known name nor a folder.
    """
    assert config.start is not None
    known = {entry.name: entry.path for entry in list_checkpoints()}
    folder = known.get(config.start, Path(config.start))
    if not folder.is_dir():
        raise CheckpointError(
            f"'start' names the checkpoint {config.start!r}, which is neither a folder nor one of {', '.join(known)}."
        )
    return folder


def starting_checkpoint(config: TrainingConfig) -> Checkpoint:
    """Load the checkpoint to start from, in float32 on the CPU."""
    return load_checkpoint(starting_folder(config), device="cpu", dtype="float32")


def starting_autoencoder(config: TrainingConfig) -> StmditAutoencoder:
    """Return its autoencoder; raises CheckpointError where it is of another kind than the bundled one."""
    vae = starting_checkpoint(config).pipeline.vae
    if not isinstance(vae, StmditAutoencoder):
        raise CheckpointError(_other(config, "autoencoder", vae, StmditAutoencoder))
    model: StmditAutoencoder = vae.eval()
    return model


def starting_encoder(config: TrainingConfig, what: str, kind: type[Encoder]) -> Encoder:
    """Return its encoder of ``expression`` or ``morphology``; raises CheckpointError where it is no ``kind``."""
    encoder = getattr(starting_checkpoint(config), what)
    encoder = getattr(encoder, "encoder", encoder)  # behind a cache
    if not isinstance(encoder, kind):
        raise CheckpointError(_other(config, f"{what} encoder", encoder, kind))
    return encoder


def starting_weights(config: TrainingConfig) -> dict[str, Tensor]:
    """Return the weights of its transformer."""
    weights: dict[str, Tensor] = starting_checkpoint(config).pipeline.transformer.state_dict()
    return weights


def _other(config: TrainingConfig, part: str, got: Any, expected: type) -> str:
    return (
        f"The {part} of {config.start!r} is a {type(got).__name__}; training goes on from a {expected.__name__} only. "
        "Start from the bundled checkpoint, or from one that was trained here."
    )
