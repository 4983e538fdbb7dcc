"""The stages of a training, all or one; and the inputs that their work files depend on, recorded beside them and compared before reuse."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Collection
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal, get_args

from ..errors import CheckpointError, RequestError
from ..progress import CancelToken
from ..storage.atomic import holding
from ..synthesis.identity import differences
from ..tissue.identity import section_identity, whole_slide_hash
from ..types import Section
from .autoencoder import train_autoencoder
from .config import (
    AugmentationSettings,
    AutoencoderSettings,
    ExpressionSettings,
    LatentSettings,
    TrainingConfig,
    load_config,
)
from .diffusion import train_diffusion
from .export import check_target, export_checkpoint
from .latents import make_cache
from .parallel import Control, OnProgress, is_launched, require_extra, run_alone
from .pictures import picture_records
from .sections import source_sections
from .start import apply_start, record_start, starting_folder
from .state import load_record, save_record

log = logging.getLogger(__name__)

FILES = {
    "autoencoder": ("autoencoder.pt", "autoencoder_decoder.pt"),
    "latents": ("latents.pt", "latents_*.pt", "spots_*.pt", "encoders/*"),
}
"""Stage -> work files that later runs continue from."""
_LENGTHS = {"steps", "decoder_steps", "validate_every"}
"""Settings that may change between runs: how long to train and how often to validate."""
_DECODER = {
    *(
        "refine",
        "refined_share",
        "decoder_steps",
        "decoder_rate",
        "adversarial",
        "feature_matching",
        "texture",
        "validate_every",
    )
}
"""Settings that latents do not depend on."""
_LATER = {
    "hed",
    "mpp",
    "encoder_widths",
    "decoder_widths",
    "pictures",
    "always",
    "regions",
    "looks",
    "own_scale",
    "texture",
    "anew",
    "held_out_spots",
}
"""Settings that earlier versions did not have: recorded only where they differ from the behaviour then."""


def record_inputs(config: TrainingConfig, stage: str) -> None:
    """Compare the recorded inputs of the work files with the config, and record those of a stage that begins.

    Raises CheckpointError where work files were made from other sections or settings.
    """
    path = config.output / "inputs.json"
    noted: dict[str, Any] = load_record(path) or {}
    inputs = json.loads(json.dumps(_inputs(config)))
    begun = {name for name, patterns in FILES.items() if any(any(config.output.glob(p)) for p in patterns)}
    for name in begun & set(noted):
        found = differences(noted[name], inputs[name])
        if found:
            more = f" and {len(found) - 3} more" if len(found) > 3 else ""
            raise CheckpointError(
                f"The work files of the stage {name!r} in {config.output} were made from other inputs ({'; '.join(found[:3])}{more}): give "
                "another output folder, or the inputs as they were."
            )
    unknown = sorted(begun - set(noted))
    if unknown:
        log.warning(
            "the work files of %s in %s were begun by a version that did not note what they were made from; they are taken to belong to "
            "this config",
            " and ".join(unknown),
            config.output,
        )
    kept = {
        name: noted.get(name, inputs[name]) if name in begun else inputs[name] for name in {*begun, stage} & set(FILES)
    }
    if kept != noted:
        save_record(path, kept, sort_keys=True)


def _inputs(config: TrainingConfig) -> dict[str, Any]:
    """Return what each stage's files depend on, without the lengths that may change."""
    train, held_out = ([_content(s) for s in source_sections(config, which)] for which in ("train", "held_out"))
    shared = {
        "train": train,
        "patch_mpp": config.patch_mpp,
        "seed": config.seed,
        "augmentation": _known(config.augmentation),
    }
    if config.pictures:
        shared["pictures"] = picture_records(config, "pictures")
    held_out_pictures = (
        {"held_out_pictures": picture_records(config, "held_out_pictures")} if config.held_out_pictures else {}
    )
    return {
        "autoencoder": {
            **shared,
            "autoencoder": _known(config.autoencoder, {*_LENGTHS, "refine", "refined_share"}),
        },
        "latents": {
            **shared,
            **held_out_pictures,
            "held_out": held_out,
            "patch_px": config.patch_px,
            "autoencoder": _known(config.autoencoder, _DECODER),
            "expression": _known(config.expression),
            "latents": _known(config.latents),
            "small_cells": config.diffusion.small_cells,
        },
    }


def _known(
    settings: AugmentationSettings | AutoencoderSettings | ExpressionSettings | LatentSettings,
    without: Collection[str] = (),
) -> dict[str, Any]:
    plain = _LATER - set(settings.model_dump(exclude_defaults=True))
    return settings.model_dump(mode="json", exclude={*without, *plain})


def _content(section: Section) -> dict[str, Any]:
    image = section.image
    slide = {} if image is None else {"slide": whole_slide_hash(image), "pixel_size": image.pixel_size}
    return {**section_identity(section), **slide}


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
        A dependency is not installed, a stage cannot be run, another process works in ``output``, or the checkpoint's place is taken by
        something else.
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
    follows = is_launched() and int(os.environ["RANK"]) != 0  # the leading one of launched processes holds the folder
    with nullcontext() if follows else holding(config.output):
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
    if stage in ("latents", "diffusion") and config.trains_decoder_alone:
        return starting_folder(config) / "transformer"
    if stage == "latents":
        return make_cache(config, control)
    if stage == "diffusion":
        return train_diffusion(config, control)
    run_alone(config, export_checkpoint, config)
    return config.export or config.output / "checkpoint"
