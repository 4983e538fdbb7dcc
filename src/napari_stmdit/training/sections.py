"""The sections of a training: opened as a config names them, all of them before anything is refused."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from math import ceil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import RequestError, SectionError, StmditError
from ..expression.genes import match_genes
from ..intent import CheckpointCard
from ..tissue.excluded import exclude_file
from ..tissue.images import open_image
from ..tissue.open import synthesis_fault
from ..tissue.sample import open_sample_section
from ..types import Calibration, Genes, Section, SlideImage, SpotTable
from .config import WHOLE, FolderSource, Part, SampleSource, Source, TableSource, TrainingConfig, load_config
from .data import CropSampler, TrainingSection, load_training_section
from .start import open_start


def open_sampler(config: TrainingConfig) -> CropSampler:
    """Open the training sections (never the held-out ones) for drawing crops; errors as for `open_sections`."""
    return CropSampler(open_sections(config, "train"), config.augmentation)


def open_sections(config: TrainingConfig, what: str) -> list[TrainingSection]:
    """Open the sections ``train`` or ``held_out`` of a config; those to train on with their pixels in a file that processes share.

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
        shared = match_genes(card.genes, section.spots.genes).shared
        needed = ceil(card.minimum_gene_fraction * len(card.genes))
        if shared < needed:
            faults.append(
                f"it has {shared} of the {len(card.genes)} genes of checkpoint {card.name!r}, at least {needed} are needed; start from a "
                "checkpoint of this species and panel, or set allow_gene_mismatch: true to count missing genes as their training mean"
            )
    return faults


def sections_of_config(path: str | Path, which: str) -> tuple[Section, ...]:
    """Open the sections ``held_out`` or ``train`` of a config file; raises SectionError where there are none or one cannot be opened."""
    config = load_config(Path(path))
    sources = config.held_out if which == "held_out" else config.train
    if not sources:
        raise SectionError(f"{path} names no section under {which!r}; add one, or give sections by their paths")
    return tuple(open_source(source, config) for source in sources)


def open_source(source: Source, config: TrainingConfig) -> Section:
    """Open one section of a training config; raises SectionError where a file is missing or does not hold what its kind needs."""
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
    """Cut a section down to a part of its image; raises SectionError where that holds fewer than three spots."""
    if part == WHOLE or section.image is None:
        return section
    image, spots = section.image, section.spots
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
    return replace(section, spots=kept, image=image, excluded=None)  # what was left out lies in the whole's pixels


_kept: dict[FolderSource, Section] | None = None
"""Whole sections that were opened, while `kept_open` is."""


@contextmanager
def kept_open() -> Iterator[None]:
    """While open, this process opens each section once: stages follow each other, and their files stay as they are."""
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


def read_table_section(
    name: str, counts: Path, spots: Path, image: Path, *, pitch_um: float, spot_um: float
) -> Section:
    """Read a section of the Spatial Transcriptomics kind: the spots that are in both tables, scaled by their square lattice.

    Parameters
    ----------
    name
        Name of the section.
    counts
        Tab-separated, optionally gzipped: a row for each spot, named ``<x>x<y>`` after its array position; a column for each gene.
    spots
        Tab-separated with columns x, y (array position) and pixel_x, pixel_y (pixels of the image).
    image
        RGB slide image.
    pitch_um, spot_um
        Distance between neighbouring array positions, and diameter of a spot, in microns.

    Raises
    ------
    SectionError
        A file or a column is missing, or the tables share fewer than three spots.
    """
    import pandas as pd
    from scipy.sparse import csr_matrix

    for path in (counts, spots, image):
        if not path.is_file():
            raise SectionError(f"Section {name}: {path} is not a file; correct the path in the training config.")
    table = pd.read_csv(counts, sep="\t", index_col=0)
    places = pd.read_csv(spots, sep="\t")
    missing = {"x", "y", "pixel_x", "pixel_y"} - set(places.columns)
    if missing:
        raise SectionError(
            f"Section {name}: {spots} lacks the columns {sorted(missing)}; it has {list(places.columns)}."
        )
    places.index = pd.Index([f"{int(x)}x{int(y)}" for x, y in zip(places["x"], places["y"], strict=True)])
    shared = [spot for spot in table.index if spot in places.index]
    if len(shared) < 3:
        raise SectionError(
            f"Section {name}: only {len(shared)} spots stand in both {counts} and {spots}; at least 3 are needed. "
            "Row names of the counts must be <x>x<y>."
        )
    places = places.loc[shared]
    array_rc = places[["y", "x"]].to_numpy(dtype=np.int64)
    yx = places[["pixel_y", "pixel_x"]].to_numpy(dtype=np.float64)
    mpp = fit_square_lattice(array_rc, yx, pitch_um)
    spot_table = SpotTable(
        ids=np.array(shared, dtype=np.str_),
        yx=yx,
        diameter=spot_um / mpp,
        counts=csr_matrix(table.loc[shared].to_numpy(dtype=np.float32)),
        genes=Genes(np.array(table.columns, dtype=np.str_)),
        array_rc=array_rc,
    )
    detail = f"{mpp:.4f} um per pixel, from the square lattice of {len(shared)} spots at {pitch_um:g} um"
    return Section(
        name=name,
        path=counts,
        kind="spatialdata",  # the nearest of the kinds: an image with spots, and no folder of 10x
        spots=spot_table,
        image=open_image(image),
        calibration=Calibration(mpp, "lattice", detail),
        coordinate_systems={"global": np.eye(3)},
    )


def fit_square_lattice(array_rc: NDArray[np.int64], yx: NDArray[np.float64], pitch_um: float) -> float:
    """Return microns per pixel, pitch / sqrt(|det A|), with A the least squares affine map from array (row, column) to pixels.

    Rotation, offset and slightly different scales of the two axes do no harm; raises SectionError where the spots lie on one line.
    """
    design = np.column_stack([array_rc, np.ones(len(array_rc))])
    if np.linalg.matrix_rank(design) < 3:
        raise SectionError(
            "The spots lie on one line of the array: microns per pixel cannot be fitted; state the scale."
        )
    affine, *_ = np.linalg.lstsq(design, yx, rcond=None)
    return float(pitch_um / np.sqrt(abs(np.linalg.det(affine[:2]))))
