"""Inputs that the work files of a training depend on: recorded beside them, and compared with the config before reuse."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection
from typing import Any

from ..errors import CheckpointError
from ..synthesis.identity import differences
from ..tissue.identity import section_identity, whole_slide_hash
from ..types import Section
from .config import AugmentationSettings, AutoencoderSettings, ExpressionSettings, LatentSettings, TrainingConfig
from .pictures import picture_records
from .sections import source_sections
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
    *("refine", "refined_share", "decoder_steps", "decoder_rate", "adversarial", "feature_matching", "validate_every")
}
"""Settings that latents do not depend on."""
_LATER = {"hed", "mpp", "encoder_widths", "decoder_widths", "pictures", "always", "regions", "anew", "held_out_spots"}
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
