"""The training config of an adaptation to one's own tissue, from its request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from ..assemble import checkpoint_folder
from ..downloads.places import PACKAGE_DATA
from ..errors import RequestError, SectionError
from ..expression.programs import bundled_programs
from ..model.folder import CheckpointFolder, read_folder
from ..text import counted
from ..tissue.open import open_section, synthesis_fault
from ..tissue.public import named_section
from ..types import Section
from .adaptation import CORNERS, NOTHING, AdaptRequest, check_name
from .config import WHOLE, Part
from .diffusion import MAX_SPOTS
from .programs import HANDLING_PREFIXES
from .sections import part_of

GENES = 1000
"""Number of genes, where the sections share so many."""
MIN_LEARNED, MIN_HELD_OUT = 3, 8
"""Minimum of spots to train on, and to hold out."""
TISSUES = ("epithelial", "stromal", "smooth_muscle", "adipose", "endothelial", "b_plasma", "t_cell", "myeloid")
"""Bundled programs of tissues found in most organs; each gives a profile."""
MIN_MARKERS = 4
"""Minimum of a program's genes that every section must have."""
MAX_WORKERS, MAX_CROPS = 4, 8000
WORKER_BYTES, MAIN_BYTES = 650 * 2**20, 1900 * 2**20
"""Memory of a training process without its crops, and of the leading one; measured with patches of 256 px."""


@dataclass(frozen=True)
class TrainingPart:
    """Training section: its name in the config, the section, where it was opened from, and the parts to train on."""

    name: str
    section: Section
    source: dict[str, Any]
    parts: tuple[tuple[str, Part], ...]


def build_config(request: AdaptRequest) -> tuple[dict[str, Any], Estimate]:
    """Open the sections of a request; return the content of their training config and what it will take.

    `napari_stmdit.training.adapt` sets the lengths of the stages, by the speed of this computer.

    Raises
    ------
    RequestError
        A section cannot be opened or used, or what is to be held out does not exist; names every fault.
    CheckpointError
        The checkpoint to start from does not exist.
    """
    check_name(request.name)
    opened = _open(request)
    start = read_folder(checkpoint_folder(request.start))
    mpp = _patch_mpp(opened, start)
    learned, held = _hold_out(request, opened)
    _check(learned, MIN_LEARNED, mpp, start.card.patch_px)
    _check(held, MIN_HELD_OUT, mpp, start.card.patch_px)
    symbols = _shared_symbols([one.section for one in (*learned, *held)])
    usable = [name for name in symbols if not name.upper().startswith(HANDLING_PREFIXES)]
    always = sorted({gene for genes in programs_among(symbols).values() for gene in genes})
    genes = min(GENES, len(usable))
    workers = request.workers or min(MAX_WORKERS, psutil.cpu_count() or 1)
    config = {
        "name": request.name,
        "output": ".",
        "start": request.start,
        "seed": request.seed,
        "workers": workers,
        "patch_mpp": mpp,
        "tensorboard": False,
        "checkpoint_seconds": 30.0,
        "train": [_source(one, name, part) for one in learned for name, part in one.parts],
        "held_out": [_source(one, name, part) for one in held for name, part in one.parts],
        "expression": {
            "anew": True,
            "genes": max(genes, len(set(always) & set(usable))),
            "always": [gene for gene in always if gene in set(usable)],
            "regions": _regions(symbols),
            "penalty": 2.0,
            "thinning": 4.0,
        },
        "latents": {"held_out_spots": MAX_SPOTS},
        "diffusion": {
            "small_fraction": 0.5,
            "rate": 7e-4,
            "matrix_rate": 1e-3,
            "share_both": 0.22,
            "share_expression": 0.55,
            "share_morphology": 0.11,
            "expression_noise": 0.35,
            "coarse_weight": 0.15,
            "shifted_share": 0.5,
            "samples": 3,
        },
        "card": _card(request, learned, held),
    }
    if start.path.parent == PACKAGE_DATA:
        config["vae_of"] = start.path.name
    return config, _estimate(learned, held, workers, mpp, start)


def programs_among(symbols: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the bundled programs with the genes that are among ``symbols``, spelled as there: case differs between species."""
    spelling = {symbol.upper(): symbol for symbol in symbols}
    return {
        name: tuple(spelling[gene.upper()] for gene in genes if gene.upper() in spelling)
        for name, genes in bundled_programs().items()
    }


# ------------------------------------------------------------------------------------------------- sections


def _open(request: AdaptRequest) -> list[TrainingPart]:
    faults, found = [], list[TrainingPart]()
    if request.factors and len(request.factors) != len(request.sections):
        said = f"{len(request.factors)} tables for {len(request.sections)} sections; give one for each, in their order"
        raise RequestError([("factors", said)])
    for number, path in enumerate(request.sections):
        fullres, mpp = (request.fullres, request.mpp) if number == 0 else (None, None)
        adjusted: dict[str, Any] = (
            {"orientation": request.orientation, "exclude": request.exclude} if number == 0 else {}
        )
        factors = request.factors[number] if request.factors else None
        try:
            section = open_section(path, fullres=fullres, mpp=mpp, factors=factors, **adjusted)
        except SectionError as error:
            faults.append((f"section {path}", str(error)))
            continue
        folder = named_section(Path(path)) or Path(path).expanduser()
        source = {"kind": "folder", "folder": str(folder.resolve()), "mpp": mpp, **adjusted}
        if factors is not None:
            source["factors"] = str(Path(factors).expanduser().absolute())
        if fullres is not None:
            image = Path(fullres).expanduser()
            source["image"] = str(image.resolve()) if image.is_file() else fullres
        names = [one.name for one in found]
        name = section.name if section.name not in names else f"{section.name}-{number + 1}"
        found.append(TrainingPart(name, section, source, ((name, WHOLE),)))
    if faults:
        raise RequestError(faults)
    return found


def _patch_mpp(opened: Sequence[TrainingPart], start: CheckpointFolder) -> float:
    """Return the scale of a patch: the start's, or that of the coarsest image where that is coarser."""
    scales = [
        one.section.calibration.mpp * one.section.image.pixel_size
        for one in opened
        if one.section.image is not None and one.section.calibration.mpp is not None
    ]
    coarsest = max(scales, default=start.card.patch_mpp)
    return start.card.patch_mpp if coarsest <= start.card.patch_mpp * 1.01 else round(coarsest, 4)


def _hold_out(request: AdaptRequest, opened: Sequence[TrainingPart]) -> tuple[list[TrainingPart], list[TrainingPart]]:
    """Divide the sections into those to train on and those held out."""
    first, wanted = opened[0], request.hold_out
    if wanted == NOTHING:
        return list(opened), []
    if wanted in CORNERS:
        kept, held = corner_parts(first.section, wanted)
        learned = TrainingPart(
            first.name, first.section, first.source, tuple((f"{first.name}-{name}", part) for name, part in kept)
        )
        return [learned, *opened[1:]], [
            TrainingPart(first.name, first.section, first.source, ((f"{first.name}-{wanted}", held),))
        ]
    held_out = [one for one in opened if one.name == wanted]
    if not held_out or len(opened) == 1:
        names = ", ".join(one.name for one in opened)
        raise RequestError(
            [
                (
                    "hold out",
                    f"{wanted!r} is neither a corner ({', '.join(CORNERS)}) nor {NOTHING!r} nor one of several sections ({names}); choose one of these",
                )
            ]
        )
    return [one for one in opened if one is not held_out[0]], held_out


def corner_parts(section: Section, corner: str) -> tuple[tuple[tuple[str, Part], ...], Part]:
    """Divide a section so that a quarter of its spots is held out at a corner.

    Returns
    -------
    tuple
        The parts to train on, by name, and the part held out. They share no pixel.
    """
    assert section.image is not None
    low, right = CORNERS[corner]
    size = np.array(section.image.shape) * section.image.pixel_size
    places = section.spots.yx / size
    y = round(float(np.median(places[:, 0])), 4)
    same_half = (places[:, 0] >= y) == low
    x = round(float(np.median(places[same_half, 1])), 4)
    own, other = ((y, 1.0), (0.0, y)) if low else ((0.0, y), (y, 1.0))
    held, beside = ((x, 1.0), (0.0, x)) if right else ((0.0, x), (x, 1.0))
    halves = {True: "lower", False: "upper"}, {True: "right", False: "left"}
    parts = (
        (halves[0][not low], (other[0], 0.0, other[1], 1.0)),
        (f"{halves[0][low]}-{halves[1][not right]}", (own[0], beside[0], own[1], beside[1])),
    )
    return parts, (own[0], held[0], own[1], held[1])


def _check(used: Sequence[TrainingPart], least: int, mpp: float, patch_px: int) -> None:
    """Raise RequestError where a part holds no patch or too few spots."""
    faults = []
    for one in used:
        unfit = synthesis_fault(one.section, mpp)
        if unfit is not None:
            faults.append((f"section {one.name}", unfit))
            continue
        for name, part in one.parts:
            piece = part_of(one.section, part)
            assert piece.image is not None and piece.calibration.mpp is not None  # synthesis_fault
            side = min(piece.image.shape) * piece.image.pixel_size * piece.calibration.mpp / mpp
            if side < patch_px or len(piece.spots) < least:
                faults.append(
                    (
                        f"section {name}",
                        f"it has {len(piece.spots)} spots and {side:.0f} px along its shorter side, too little for a patch of {patch_px} px and "
                        f"{least} spots; give a larger section, or hold out {NOTHING!r} or another section",
                    )
                )
    if faults:
        raise RequestError(faults)


def _source(one: TrainingPart, name: str, part: Part) -> dict[str, Any]:
    content = {key: value for key, value in one.source.items() if value is not None}
    return {**content, "name": name, **({} if part == WHOLE else {"part": list(part)})}


# ------------------------------------------------------------------------------------------------- genes


def _shared_symbols(sections: Sequence[Section]) -> list[str]:
    return sorted(set.intersection(*[set(section.spots.genes.symbols.tolist()) for section in sections]))


def _regions(symbols: Sequence[str]) -> dict[str, list[str]]:
    """Return marker genes of the tissues that give a profile."""
    spelled = programs_among(symbols)
    return {name: list(spelled[name]) for name in TISSUES if len(spelled.get(name, ())) >= MIN_MARKERS}


# ------------------------------------------------------------------------------------------------- words and sizes


def _card(request: AdaptRequest, learned: Sequence[TrainingPart], held: Sequence[TrainingPart]) -> dict[str, Any]:
    names = ", ".join(name for one in learned for name, _ in one.parts)
    out = ", ".join(name for one in held for name, _ in one.parts) or "nothing"
    few = counted(len({one.name for one in learned}), "section")
    return {
        "training_data": f"Adapted on the user's own computer to {names}; held out and never trained on: {out}.",
        "licence": "The sections are the user's own.",
        "limits": (
            f"It was adapted to {few} in {request.minutes:g} minutes. How well it does on other sections, donors, stains or scales is unknown until it "
            "is evaluated there. Never use it for diagnosis. Its images are synthetic and must be labelled so."
        ),
    }


@dataclass(frozen=True)
class Estimate:
    """Estimate of an adaptation: spots to train on and held out, and bytes of memory and of disk."""

    spots: int
    held_out: int
    workers: int
    memory: int
    disk: int

    @property
    def words(self) -> str:
        """The estimate in a sentence."""
        return (
            f"{self.spots:,} spots to train on, {self.held_out:,} held out; about {self.memory / 2**30:.1f} GB of memory "
            f"in {self.workers} process{'es' if self.workers > 1 else ''}, and {self.disk / 2**30:.1f} GB of disk"
        )


def _estimate(
    learned: Sequence[TrainingPart], held: Sequence[TrainingPart], workers: int, mpp: float, start: CheckpointFolder
) -> Estimate:
    def spots(of: Sequence[TrainingPart]) -> int:
        return sum(len(part_of(one.section, part).spots) for one in of for _, part in one.parts)

    pixels = 0
    for one in learned:
        assert one.section.image is not None and one.section.calibration.mpp is not None
        zoom = one.section.calibration.mpp * one.section.image.pixel_size / mpp
        pixels += round(3 * float(np.prod(one.section.image.shape)) * zoom**2)
    cache = MAX_CROPS * crop_bytes(start.card.patch_px)
    counts, kept = spots(learned), spots(held)
    dense = 4 * (counts + kept) * len(start.card.genes or range(GENES)) * 6  # tables of smoothed and thinned counts
    return Estimate(
        counts, kept, workers, workers * (WORKER_BYTES + cache) + MAIN_BYTES + pixels + dense, pixels + 3 * cache
    )


def crop_bytes(patch_px: int) -> int:
    """Return roughly the bytes of a crop in the cache: latents, and encodings of it and its windows."""
    # float16 latents of 12 channels; float32 morphology of 1 + 25 windows, and of 4 variants of 33 program scores
    return 2 * 12 * (patch_px // 8) ** 2 + 26 * 32 * 4 + 4 * 33 * 4


def check_room(estimate: Estimate, folder: Path) -> Mapping[str, int]:
    """Return free bytes of memory and disk; raises RequestError where either is too little."""
    place = next(one for one in (folder, *folder.parents) if one.is_dir())
    free = {"memory": psutil.virtual_memory().available, "disk": psutil.disk_usage(str(place)).free}
    faults = [
        (what, f"{needed / 2**30:.1f} GB are needed, {free[what] / 2**30:.1f} GB are free; {remedy}")
        for what, needed, remedy in (
            ("memory", estimate.memory, "close other programs"),
            ("disk", estimate.disk, f"make room on the disk of {folder}, or give another folder"),
        )
        if free[what] < needed
    ]
    if faults:
        raise RequestError(faults)
    return free
