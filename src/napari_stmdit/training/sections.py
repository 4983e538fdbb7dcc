"""Sections of a training, all opened before anything is refused."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from math import ceil
from pathlib import Path

import numpy as np

from ..errors import RequestError, SectionError, StmditError
from ..expression.genes import match_genes
from ..intent import CheckpointCard
from ..tissue.excluded import exclude, exclude_file
from ..tissue.open import open_sample_section, synthesis_fault
from ..tissue.st_array import read_table_section
from ..types import Section, SlideImage
from .config import WHOLE, FolderSource, Part, SampleSource, Source, TableSource, TrainingConfig, load_config
from .data import CropSampler, TrainingSection, load_training_section
from .start import open_start


def open_sampler(config: TrainingConfig) -> CropSampler:
    """Open a sampler of the training sections (never the held-out ones); errors as for `open_sections`."""
    return CropSampler(open_sections(config, "train"), config.augmentation)


def open_sections(config: TrainingConfig, what: str) -> list[TrainingSection]:
    """Open the sections ``train`` or ``held_out`` of a config; pixels to train on lie in a file that processes share.

    Raises RequestError, which names every fault with its place, where sections cannot be opened or used.
    """
    opened = source_sections(config, what)
    store: Path | None = config.output / "pixels" if what == "train" else None
    return [load_training_section(section, config.patch_mpp, store) for section in opened]


def source_sections(config: TrainingConfig, what: str) -> list[Section]:
    """Open the sections ``train`` or ``held_out`` of a config, their slides still lazy; errors as for `open_sections`."""
    sources: Sequence[Source] = getattr(config, what)
    card = None if config.start is None or config.expression.anew else open_start(config).card
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
    """Return the reasons why a section cannot be trained on; with a ``card``, by that checkpoint's encoders."""
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
        shared = match_genes(card.genes, section.spots.genes).shared
        needed = ceil(card.minimum_gene_fraction * len(card.genes))
        if shared < needed:
            faults.append(
                f"it has {shared} of the {len(card.genes)} genes of checkpoint {card.name!r}, at least {needed} are needed; start from a "
                "checkpoint of this species and panel, or set allow_gene_mismatch: true to count missing genes as their training mean"
            )
    return faults


def sections_of_config(path: str | Path, which: str) -> tuple[Section, ...]:
    """Open the sections ``held_out`` or ``train`` of a config file; raises SectionError where there are none or one fails to open."""
    config = load_config(Path(path))
    sources = config.held_out if which == "held_out" else config.train
    if not sources:
        raise SectionError(f"{path} names no section under {which!r}; add one, or give sections by their paths")
    return tuple(open_source(source, config) for source in sources)


def open_source(source: Source, config: TrainingConfig) -> Section:
    """Open one section of a training config; raises SectionError where a file is missing or has the wrong content."""
    if isinstance(source, TableSource):
        table = read_table_section(
            source.name,
            config.source_path(source.counts),
            config.source_path(source.spots),
            config.source_path(source.image),
            pitch_um=source.pitch_um,
            spot_um=source.spot_um,
        )
        if source.exclude is not None:
            table = exclude_file(table, config.source_path(source.exclude), source.exclude_classes)
        return part_of(table, source.part)
    section = open_sample_section() if isinstance(source, SampleSource) else _open_folder(source, config)
    section = replace(section, name=source.name)  # folders of several samples are often all called "outs"
    return section if isinstance(source, SampleSource) else part_of(section, source.part)


def part_of(section: Section, part: Part) -> Section:
    """Crop a section to a part of its image; raises SectionError where that holds fewer than three spots."""
    if part == WHOLE or section.image is None:
        return section
    image, spots = section.image, section.whole.spots
    height, width = image.shape
    y0, x0, y1, x1 = (round(share * side) for share, side in zip(part, (height, width) * 2, strict=True))
    corner, end = np.array([y0, x0]) * image.pixel_size, np.array([y1, x1]) * image.pixel_size
    rows = np.flatnonzero(((spots.yx >= corner) & (spots.yx < end)).all(axis=1))
    if len(rows) < 3:
        raise SectionError(
            f"Section {section.name}: its part {list(part)} holds {len(rows)} spots; at least 3 are needed."
        )
    kept = replace(
        spots,
        ids=spots.ids[rows],
        yx=spots.yx[rows] - corner,
        counts=spots.counts[rows],
        array_rc=None if spots.array_rc is None else spots.array_rc[rows],
        obs={name: values[rows] for name, values in spots.obs.items()},
    )
    pixels = image.levels[0][y0:y1, x0:x1]
    image = SlideImage((pixels,), image.pixel_size, f"{image.source}, a part")
    cropped = replace(section.whole, spots=kept, image=image)
    if section.excluded is None:
        return cropped
    inside = set(kept.ids.tolist())
    regions = {name: [spot for spot in ids if spot in inside] for name, ids in section.excluded.regions.items()}
    return exclude(cropped, regions)


_kept: dict[FolderSource, Section] | None = None
"""Whole sections by source, inside `kept_open`."""


@contextmanager
def kept_open() -> Iterator[None]:
    """Open each section once inside this context: stages follow each other, and their files stay as they are."""
    global _kept
    _kept = {}
    try:
        yield
    finally:
        _kept = None


def _open_folder(source: FolderSource, config: TrainingConfig) -> Section:
    whole = source.model_copy(update={"part": WHOLE, "name": ""})
    section = (_kept or {}).get(whole)
    if section is None:
        section = source.absolute(config.root).open()
        if _kept is not None:
            _kept[whole] = section
    return section
