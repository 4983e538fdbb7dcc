"""Random crops on tissue, and the weights of the spots that give their expression."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import SectionError
from ..storage.atomic import write_atomically
from ..storage.fingerprint import of_json
from ..tissue.identity import whole_slide_hash
from ..types import Section
from .config import AugmentationSettings, ExpressionSettings

SAME_SCALE = 0.01
"""Maximum relative difference of scales at which a section is cropped without resampling."""


@dataclass(frozen=True)
class TrainingSection:
    """Section at the scale of a patch: pixels (H, W, 3) uint8, spot centres yx (n, 2) in them, and microns per pixel.

    ``excluded`` (m, 2) are the centres of the spots that the section excludes.
    """

    section: Section
    pixels: NDArray[np.uint8]
    yx: NDArray[np.float64]
    mpp: float
    excluded: NDArray[np.float64]

    @property
    def name(self) -> str:
        """Name of the section."""
        return self.section.name

    def uses(self, centre: NDArray[np.float64]) -> bool:
        """Return whether the spot nearest to a place is not an excluded one."""
        if not len(self.excluded):
            return True
        kept, excluded = (np.square(yx - centre).sum(axis=1).min() for yx in (self.yx, self.excluded))
        return bool(kept <= excluded)


def load_training_section(section: Section, patch_mpp: float, store: Path | None = None) -> TrainingSection:
    """Load a section's image at ``patch_mpp``; scales that agree to 1 % are not resampled.

    With a ``store`` folder all processes map the pixels from a file there. Its name holds a hash of slide and scale; files of other
    slides or scales under the section's name are removed.
    """
    mpp = section.calibration.mpp
    if section.image is None or mpp is None:
        raise SectionError(f"Section {section.name} has no slide image of known scale; training needs one.")
    image_mpp, pixel_size = mpp * section.image.pixel_size, section.image.pixel_size
    zoom = image_mpp / patch_mpp
    if abs(zoom - 1) <= SAME_SCALE:
        zoom = 1.0
    path = None
    if store is not None:
        content = of_json([whole_slide_hash(section.image), zoom])
        path = store / f"{section.name}-{content[:12]}.npy"
    if path is None or not path.is_file():
        pixels = _resample(np.ascontiguousarray(np.asarray(section.image.levels[0])), zoom)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, lambda file: np.save(file, pixels))
            _remove_others(path, section.name)
    if path is not None:
        pixels = np.load(path, mmap_mode="r")
    whole = section.whole.spots
    excluded = whole.yx[~np.isin(whole.ids, section.spots.ids)]
    yx, off = (places / pixel_size * zoom for places in (section.spots.yx, excluded))
    return TrainingSection(replace(section, image=None), pixels, yx, image_mpp / zoom, off)


def _remove_others(path: Path, name: str) -> None:
    """Remove a section's pixel files of other slides or scales, left by earlier runs."""
    for file in path.parent.glob("*.npy"):
        if file != path and re.fullmatch(rf"{re.escape(name)}(-[0-9a-f]{{12}})?\.npy", file.name):
            with suppress(OSError):  # another process may still map it
                file.unlink()


def _resample(pixels: NDArray[np.uint8], zoom: float) -> NDArray[np.uint8]:
    """Resize by ``zoom``: area means when shrinking, bicubic when enlarging."""
    if zoom == 1:
        return pixels
    from PIL import Image

    size = (round(pixels.shape[1] * zoom), round(pixels.shape[0] * zoom))
    kind = Image.Resampling.BOX if zoom < 1 else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(pixels).resize(size, kind))


@dataclass(frozen=True)
class Crop:
    """Augmented crop: index of its section, centre (y, x) and (side, side, 3) uint8 pixels."""

    section: int
    centre: NDArray[np.float64]
    pixels: NDArray[np.uint8]


class CropSampler:
    """Sampler of crops within ``reach_um`` of a spot along each axis, none of them centred on an excluded one; sections in proportion to their spots."""

    def __init__(
        self, sections: Sequence[TrainingSection], augmentation: AugmentationSettings, reach_um: float = 103.0
    ) -> None:
        self.sections = list(sections)
        self.augmentation = augmentation
        self.reach_um = reach_um
        spots = np.array([len(s.yx) for s in self.sections], dtype=float)
        self._weights = spots / spots.sum()

    def draw(self, rng: np.random.Generator, side: int, blank: float = 0.15) -> Crop:
        """Draw a crop of ``side`` pixels; only the share ``blank`` of nearly empty ones is kept."""
        while True:
            index = int(rng.choice(len(self.sections), p=self._weights))
            section = self.sections[index]
            reach = self.reach_um / section.mpp
            centre = section.yx[rng.integers(len(section.yx))] + rng.uniform(-reach, reach, 2)
            if not section.uses(centre):
                continue
            pixels, centre = cut(section.pixels, centre, side)
            if pixels[::8, ::8].mean(axis=2).std() > 6 or rng.random() < blank:
                break
        if self.augmentation.geometry:
            pixels = turn(pixels, int(rng.integers(8)))
        if self.augmentation.stain > 0:
            pixels = vary_stain(pixels, rng, self.augmentation.stain)
        return Crop(index, centre, np.ascontiguousarray(pixels))

    def batch(self, rng: np.random.Generator, count: int, side: int) -> NDArray[np.uint8]:
        """Draw (count, side, side, 3) uint8 crops."""
        return np.stack([self.draw(rng, side).pixels for _ in range(count)])


def cut(
    pixels: NDArray[np.uint8], centre: NDArray[np.float64], side: int
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Cut a square around a centre (y, x), moved inside the image if needed; return it with its true centre."""
    corner = [
        int(np.clip(round(c - side / 2), 0, size - side)) for c, size in zip(centre, pixels.shape[:2], strict=True)
    ]
    y, x = corner
    return pixels[y : y + side, x : x + side], np.array(corner, dtype=np.float64) + side / 2


def turn(pixels: NDArray[np.uint8], symmetry: int) -> NDArray[np.uint8]:
    """Apply one of the eight symmetries of the square."""
    turned = np.rot90(pixels, symmetry % 4)
    return turned[:, ::-1] if symmetry >= 4 else turned


def vary_stain(pixels: NDArray[np.uint8], rng: np.random.Generator, spread: float) -> NDArray[np.uint8]:
    """Multiply the optical density by a gain near one: shared by the channels, and half as strongly each on its own."""
    gains = np.exp(spread * rng.standard_normal() + 0.5 * spread * rng.standard_normal(3))
    levels = -np.log((np.arange(256) + 1) / 256)
    table = np.clip(256 * np.exp(-levels[:, None] * gains) - 1, 0, 255).round().astype(np.uint8)
    return np.stack([table[:, c][pixels[..., c]] for c in range(3)], axis=-1)


def neighbour_weights(
    yx: NDArray[np.float64], centre: NDArray[np.float64], mpp: float, spread_um: float
) -> NDArray[np.float64]:
    """Return (n,) Gaussian weights of the spots by their distance to a place; they add up to 1."""
    squared = np.square((yx - centre) * mpp).sum(axis=1)
    weights = np.exp(-(squared - squared.min()) / (2 * spread_um**2))
    return np.asarray(weights / weights.sum(), dtype=np.float64)


def crop_weights(
    section: TrainingSection, centre: NDArray[np.float64], settings: ExpressionSettings, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Return (n,) weights of a section's spots for a crop.

    A share ``plain_fraction`` of the crops takes the nearest spot alone, as inference does; the others interpolate (`neighbour_weights`).
    """
    if rng.random() < settings.plain_fraction:
        weights = np.zeros(len(section.yx))
        weights[np.square(section.yx - centre).sum(axis=1).argmin()] = 1.0
        return weights
    return neighbour_weights(section.yx, centre, section.mpp, settings.neighbour_um)
