"""Opening the sections of a training, all of them before anything is refused."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from pathlib import Path

from ..errors import RequestError, StmditError
from ..expression.genes import match_genes
from ..tissue.open import synthesis_fault
from ..types import CheckpointCard, Section
from .config import Source, TrainingConfig
from .data import CropSampler, TrainingSection, load_training_section
from .sections import open_source
from .start import open_start


def open_sampler(config: TrainingConfig) -> CropSampler:
    """Open the training sections (never the held-out ones) for drawing crops; errors as for `open_sections`."""
    return CropSampler(open_sections(config, "train"), config.augmentation)


def open_sections(config: TrainingConfig, what: str) -> list[TrainingSection]:
    """Open the sections ``train`` or ``held_out`` of a config; those to train on with their pixels in a file that processes share.

    Raises
    ------
    RequestError
        Sections cannot be opened or used; names every fault with its place.
    """
    opened = source_sections(config, what)
    store: Path | None = config.output / "pixels" if what == "train" else None
    return [load_training_section(section, config.patch_mpp, store) for section in opened]


def source_sections(config: TrainingConfig, what: str) -> list[Section]:
    """Open the sections ``train`` or ``held_out`` of a config, their slides still lazy; errors as for `open_sections`."""
    sources: Sequence[Source] = getattr(config, what)
    card = None if config.start is None else open_start(config).card
    opened: list[Section] = []
    faults: list[tuple[str, str]] = []
    for number, source in enumerate(sources):
        try:
            section = open_source(source, config)
            found = section_faults(section, config, card)
        except StmditError as error:
            found = [str(error)]
        else:
            opened.append(section)
        faults += [(f"{what}[{number}] ({source.name})", fault) for fault in found]
    if faults:
        raise RequestError(faults)
    return opened


def section_faults(section: Section, config: TrainingConfig, card: CheckpointCard | None) -> list[str]:
    """Say why a section cannot be trained on, with the encoders of a checkpoint where a ``card`` is given."""
    faults = []
    unfit = synthesis_fault(section, config.patch_mpp)
    if unfit is not None:
        faults.append(unfit)
    elif section.image is not None and section.calibration.mpp is not None:
        zoom = section.calibration.mpp * section.image.pixel_size / config.patch_mpp
        height, width = (round(side * zoom) for side in section.image.shape)
        if min(height, width) < config.patch_px:
            faults.append(
                f"its image is {width} x {height} px at the scale of a patch, smaller than {config.patch_px} px"
            )
    if card is not None and card.genes and not config.allow_gene_mismatch:
        shared, needed = match_genes(card.genes, section.spots.genes).shared, needed_genes(card)
        if shared < needed:
            faults.append(
                f"it has {shared} of the {len(card.genes)} genes of checkpoint {card.name!r}, at least {needed} are needed; start from a "
                "checkpoint of this species and panel, or set allow_gene_mismatch: true to count missing genes as their training mean"
            )
    return faults


def needed_genes(card: CheckpointCard) -> int:
    """Return how many of a checkpoint's genes a section must have."""
    return ceil(card.minimum_gene_fraction * len(card.genes))
