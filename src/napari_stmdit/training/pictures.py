"""Images without expression: crops of slides and tiles at many scales and in many stains.

An autoencoder and a transformer's morphology condition need no expression, and so can use far more tissue than has been sequenced.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ..errors import RequestError, SectionError, StmditError
from ..evaluation.effects import ms_ssim
from ..evaluation.measures import STAINS, high_frequency
from ..model.autoencoder import StmditAutoencoder
from ..storage.atomic import write_atomically
from ..storage.fingerprint import of_file, of_json
from ..tissue.identity import whole_slide_hash
from ..tissue.images import open_image
from .config import AugmentationSettings, ImageSource, Picture, TilesSource, TrainingConfig
from .data import Crop, turn

MAX_ENLARGEMENT = 1.4
"""Maximum enlargement of a picture's pixels: more would teach blur."""
TEXTURE = 6.0
"""Standard deviation of grey levels below which a crop is nearly empty."""
BLANK = 0.05
"""Share of nearly empty crops that is kept."""
CROPS = 6
"""Number of crops of each held-out picture that the autoencoder is validated on."""
_UNIT = STAINS / np.linalg.norm(STAINS, axis=1, keepdims=True)


class Pool(Protocol):
    """Source of crops."""

    def draw(self, rng: np.random.Generator) -> tuple[NDArray[np.uint8], float]:
        """Return pixels (h, w, 3) to cut from, and their microns per pixel."""


@dataclass(frozen=True)
class SlidePool:
    """One slide, or a part of it: ``pixels`` (h, w, 3) at ``mpp`` microns per pixel."""

    pixels: NDArray[np.uint8]
    mpp: float

    def draw(self, rng: np.random.Generator) -> tuple[NDArray[np.uint8], float]:
        """Return the whole slide."""
        return self.pixels, self.mpp


@dataclass(frozen=True)
class TilePool:
    """Tiles of several slides: (file, microns per pixel) pairs by slide; slides are equally frequent."""

    slides: tuple[tuple[tuple[Path, float], ...], ...]

    def draw(self, rng: np.random.Generator) -> tuple[NDArray[np.uint8], float]:
        """Return a decoded tile."""
        tiles = self.slides[rng.integers(len(self.slides))]
        file, mpp = tiles[rng.integers(len(tiles))]
        with Image.open(file) as picture:
            return np.asarray(picture.convert("RGB")), mpp


class PictureSampler:
    """Sampler of crops of pictures at random places, scales and stains.

    Parameters
    ----------
    pools, weights
        Sources and their relative frequencies.
    augmentation
        Augmentation of crops; its ``mpp`` is the range of scales.
    mpp
        Scale of the crops where no range is given.
    """

    def __init__(
        self, pools: Sequence[Pool], weights: Sequence[float], augmentation: AugmentationSettings, mpp: float
    ) -> None:
        self.pools, self.augmentation = list(pools), augmentation
        self.scales = augmentation.mpp or (mpp, mpp)
        self._weights = np.array(weights) / np.sum(weights)

    def draw(self, rng: np.random.Generator, side: int) -> Crop:
        """Draw a crop of ``side`` pixels; its centre is in pixels of the picture."""
        while True:
            index = int(rng.choice(len(self.pools), p=self._weights))
            picture, mpp = self.pools[index].draw(rng)
            step = self._step(rng, mpp, min(picture.shape[:2]) / side)
            corner = rng.uniform(0, np.array(picture.shape[:2]) - side * step)
            pixels = cut_at_scale(picture, corner, side, step)
            if pixels[::4, ::4].mean(axis=2).std() > TEXTURE or rng.random() < BLANK:
                break
        if self.augmentation.geometry:
            pixels = turn(pixels, int(rng.integers(8)))
        if self.augmentation.stain > 0 or self.augmentation.hed > 0:
            pixels = vary_stains(pixels, rng, self.augmentation.stain, self.augmentation.hed)
        return Crop(index, corner + side * step / 2, np.ascontiguousarray(pixels))

    def _step(self, rng: np.random.Generator, mpp: float, largest: float) -> float:
        """Return the number of picture pixels that a crop pixel spans."""
        low, high = self.scales
        own = low <= mpp <= high and rng.random() < self.augmentation.own_scale
        wanted = mpp if own else float(np.exp(rng.uniform(np.log(low), np.log(high))))
        step = max(wanted / mpp, 1 / MAX_ENLARGEMENT)
        return 1.0 if abs(step - 1) <= 0.01 and largest >= 1 else min(step, largest)

    def batch(self, rng: np.random.Generator, count: int, side: int) -> NDArray[np.uint8]:
        """Draw (count, side, side, 3) uint8 crops."""
        return np.stack([self.draw(rng, side).pixels for _ in range(count)])


def cut_at_scale(pixels: NDArray[np.uint8], corner: NDArray[np.float64], side: int, step: float) -> NDArray[np.uint8]:
    """Cut a (side, side, 3) square at a corner (y, x) of a picture; a pixel of it spans ``step`` of the picture's."""
    y, x = corner
    if step == 1:
        return pixels[int(y) : int(y) + side, int(x) : int(x) + side]
    reach = side * step
    top, left = int(y), int(x)
    part = pixels[top : int(np.ceil(y + reach)) + 1, left : int(np.ceil(x + reach)) + 1]
    height, width = part.shape[:2]
    box = (x - left, y - top, min(x - left + reach, width), min(y - top + reach, height))
    return np.asarray(Image.fromarray(part).resize((side, side), Image.Resampling.BICUBIC, box=box))


def vary_stains(pixels: NDArray[np.uint8], rng: np.random.Generator, spread: float, hed: float) -> NDArray[np.uint8]:
    """Multiply the optical density by a gain near one, and haematoxylin, eosin and the residual each by its own.

    Tellez et al. 2018, IEEE Trans. Med. Imaging 37:2126-2136; without its offsets, so that glass stays glass.
    """
    gains = np.exp(spread * rng.standard_normal() + hed * rng.standard_normal(3))
    mixing = (np.linalg.inv(_UNIT) * gains) @ _UNIT
    density = _DENSITY[pixels] @ mixing.astype(np.float32)
    varied: NDArray[np.uint8] = np.clip(np.rint(256 * np.exp(-density) - 1), 0, 255).astype(np.uint8)
    return varied


_DENSITY = -np.log((np.arange(256, dtype=np.float32) + 1) / 256)
"""Optical density of each grey level."""


# ------------------------------------------------------------------------------------------------- opening


def open_pictures(config: TrainingConfig, names: Sequence[str] = ()) -> PictureSampler:
    """Open the pictures of a config, or those of ``names``; slides lie in files that processes share.

    Raises
    ------
    RequestError
        Pictures cannot be opened or used; names every fault with its place.
    """
    sources = [source for source in config.pictures if not names or source.name in names]
    pools = _open(config, sources, "pictures")
    return PictureSampler(pools, [source.weight for source in sources], config.augmentation, config.patch_mpp)


def held_out_crops(config: TrainingConfig, each: int) -> dict[str, NDArray[np.uint8]]:
    """Return up to ``each`` crops (n, side, side, 3) with tissue of each held-out picture, at the scale of a patch, always the same.

    Errors as for `open_pictures`.
    """
    pools = _open(config, config.held_out_pictures, "held_out_pictures")
    still = AugmentationSettings(stain=0, geometry=False)
    found = {}
    for source, pool in zip(config.held_out_pictures, pools, strict=True):
        sampler = PictureSampler([pool], [1.0], still, config.patch_mpp)
        found[source.name] = sampler.batch(np.random.default_rng(config.seed), each, config.patch_px)
    return found


def picture_records(config: TrainingConfig, which: str) -> list[dict[str, Any]]:
    """Return records of a config's pictures by their content; errors as for `open_pictures`."""
    records = []
    for source in getattr(config, which):
        facts = source.model_dump(mode="json", exclude={"image", "folder", "table"})
        if isinstance(source, ImageSource):
            facts["slide"] = whole_slide_hash(open_image(config.source_path(source.image)))
        else:
            facts["table"] = of_file(config.source_path(source.table))
        records.append(facts)
    return records


def _open(config: TrainingConfig, sources: Sequence[Picture], what: str) -> list[Pool]:
    pools: list[Pool] = []
    faults: list[tuple[str, str]] = []
    for number, source in enumerate(sources):
        try:
            pools.append(
                _open_image(source, config) if isinstance(source, ImageSource) else _open_tiles(source, config)
            )
        except StmditError as error:
            faults.append((f"{what}[{number}] ({source.name})", str(error)))
    if faults:
        raise RequestError(faults)
    return pools


def _open_image(source: ImageSource, config: TrainingConfig) -> SlidePool:
    slide = open_image(config.source_path(source.image))
    height, width = slide.shape
    top, left, bottom, right = source.part
    y0, y1, x0, x1 = (round(share * n) for share, n in ((top, height), (bottom, height), (left, width), (right, width)))
    smallest = round(config.patch_px * (config.augmentation.mpp or (config.patch_mpp,))[-1] / source.mpp)
    if min(y1 - y0, x1 - x0) < smallest:
        raise SectionError(
            f"its part is {x1 - x0} x {y1 - y0} px, smaller than the {smallest} px that a patch takes; give a larger part, or smaller scales"
        )
    path = config.output / "pixels" / f"{source.name}-{of_json([whole_slide_hash(slide), source.part])[:12]}.npy"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.ascontiguousarray(np.asarray(slide.levels[0][y0:y1, x0:x1]))
        write_atomically(path, lambda file: np.save(file, pixels))
    return SlidePool(np.load(path, mmap_mode="r"), source.mpp)


def _open_tiles(source: TilesSource, config: TrainingConfig) -> TilePool:
    table, folder = config.source_path(source.table), config.source_path(source.folder)
    if not table.is_file():
        raise SectionError(f"{table} is not a file; correct the path in the training config")
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    missing = {"file", "mpp", source.slide} - set(rows[0] if rows else ())
    if missing:
        raise SectionError(f"{table} lacks the columns {sorted(missing)}; name the one of the slides with 'slide'")
    slides: dict[str, list[tuple[Path, float]]] = {}
    for row in rows:
        slides.setdefault(row[source.slide], []).append((folder / row["file"], float(row["mpp"])))
    unknown = sorted({*source.only, *source.without} - set(slides))
    if unknown:
        raise SectionError(f"{table} has no slides {', '.join(unknown)}; it has {', '.join(sorted(slides))}")
    chosen = [name for name in slides if name not in source.without and (not source.only or name in source.only)]
    gone = [file for name in chosen for file, _ in slides[name] if not file.is_file()]
    if gone:
        raise SectionError(
            f"{len(gone)} of the tiles in {table} are not there, the first is {gone[0]}; correct 'folder'"
        )
    if not chosen:
        raise SectionError(f"no slide of {table} is left; name fewer under 'without'")
    return TilePool(tuple(tuple(slides[name]) for name in chosen))


# ------------------------------------------------------------------------------------------------- validation


class HeldOutImages:
    """Validation crops of each held-out picture, always the same ones."""

    def __init__(self, config: TrainingConfig) -> None:
        self.every = config.autoencoder.validate_every
        self.crops = held_out_crops(config, CROPS)

    def due(self, step: int) -> bool:
        """Return whether a validation is due after a number of steps."""
        return bool(self.crops) and step % self.every == 0

    def figures(self, model: StmditAutoencoder) -> dict[str, dict[str, float]]:
        """Return for each picture MS-SSIM, high-frequency energy relative to the real one, and largest shift of a mean colour in grey levels."""
        return {name: _compare(crops, _reconstruct(model, crops)) for name, crops in self.crops.items()}


@torch.inference_mode()
def _reconstruct(model: StmditAutoencoder, crops: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Encode and decode (n, h, w, 3) uint8 crops."""
    device = next(model.parameters()).device
    images = torch.from_numpy(crops).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
    made = model.decode_latents(model.encode_latents(images))
    pixels: NDArray[np.uint8] = ((made + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return pixels


def _compare(crops: NDArray[np.uint8], made: NDArray[np.uint8]) -> dict[str, float]:
    """Compare (n, h, w, 3) reconstructions with the originals."""
    sharp, real = (np.mean([high_frequency(image) for image in images]) for images in (made, crops))
    shift = np.abs(made.mean(axis=(1, 2)) - crops.mean(axis=(1, 2))).max(axis=1)
    likeness = np.mean([ms_ssim(a, b) for a, b in zip(crops, made, strict=True)])
    return {
        "ms_ssim": round(float(likeness), 4),
        "high_frequency": round(float(sharp / real), 4),
        "colour": round(float(shift.mean()), 2),
    }
