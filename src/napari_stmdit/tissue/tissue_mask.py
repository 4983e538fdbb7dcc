"""Tissue mask of a slide, from a coarse level of its image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..types import SlideImage
from .crops import computed, level_factors, readable

MASK_UM = 8.0
"""Approximate pixel size of the mask: seven span a spot."""
SMOOTH_UM = 10.0
"""Sigma of the smoothing before the threshold: about a nucleus, so that cells and the space between them are one."""
MIN_UM2 = 40_000.0
"""Minimum area of a piece, 200 x 200 um; smaller ones are dust, and smaller holes are tissue."""
DENSITY_WITHIN = (0.05, 0.15)
"""Bounds of Otsu's threshold, in optical density (log10) over the glass: it also splits a slide of glass alone, or of tissue alone."""
MIN_SATURATION = 0.05
"""Minimum saturation of stain; shadows, bubbles and the edge of the coverslip are grey."""
GLASS_FROM = 180
"""Minimum grey level of glass in any channel; an image whose brightest tenth is darker is full of tissue."""


@dataclass(frozen=True)
class TissueMask:
    """Tissue on a slide.

    Attributes
    ----------
    mask
        (h, w) bool.
    step
        (y, x) full-resolution pixels that a pixel of the mask spans.
    rule
        Description of the method, in a sentence.
    """

    mask: NDArray[np.bool_]
    step: tuple[float, float]
    rule: str

    def fraction(self, yx: NDArray[np.float64], radius: float) -> NDArray[np.float64]:
        """Return the share of tissue, (n,), in a disc around each of (n, 2) places, in full-resolution pixels."""
        return disc_means(self.mask, self.step, yx, radius)


def disc_means(
    picture: NDArray[Any], step: tuple[float, float], yx: NDArray[np.float64], radius: float
) -> NDArray[np.float64]:
    """Return the mean of a picture (h, w) over a disc around each of (n, 2) places, (n,); it is 0 beyond its edges.

    ``step`` is the full-resolution pixels that one of its pixels spans; places and radius are in those.
    """
    side = np.linspace(-1, 1, 9)
    disc = np.stack(np.meshgrid(side, side, indexing="ij"), axis=-1).reshape(-1, 2)
    disc = disc[(disc**2).sum(axis=1) <= 1] * radius
    total = np.zeros(len(yx))
    for offset in disc:
        at = np.floor((yx + offset) / step).astype(np.int64)
        inside = ((at >= 0) & (at < picture.shape)).all(axis=1)
        total[inside] += picture[at[inside, 0], at[inside, 1]]
    return total / len(disc)


def find_tissue(image: SlideImage, mpp: float) -> TissueMask:
    """Find the tissue: where the slide is denser than its glass, by Otsu's threshold, and not grey.

    Optical density is the mean over the channels of log10(glass / pixel), of the smoothed picture; the glass is the median of the
    brightest tenth of the slide. Pieces and holes below `MIN_UM2` are dropped and filled.

    Parameters
    ----------
    image
        The slide; one coarse level of it is read, or the finest one in parts where it has no other.
    mpp
        Microns per full-resolution pixel.

    Raises
    ------
    SectionError
        The image cannot be read.
    """
    from dask_image.ndfilters import gaussian_filter
    from skimage.filters import threshold_otsu

    coarse, step = coarse_picture(image, mpp)
    um = step[0] * mpp
    with readable(
        image
    ):  # averaged and smoothed chunk by chunk: of a slide without a pyramid no second picture is held
        sigma = SMOOTH_UM / um
        reach = min(4.0, (min(coarse.shape[:2]) - 1) / sigma)  # the filter must not be wider than the picture
        rgb = np.asarray(computed(gaussian_filter(coarse, (sigma, sigma, 0), truncate=reach))[0])
    density, glass = optical_density(rgb)
    if glass.min() < GLASS_FROM:
        return TissueMask(np.ones(density.shape, dtype=bool), step, "the image shows no glass; all of it counts")
    low, high = DENSITY_WITHIN
    found = float(threshold_otsu(density)) if np.ptp(density) > 0 else high
    threshold = float(np.clip(found, low, high))
    highest = rgb.max(axis=2)
    saturation = (highest - rgb.min(axis=2)) / np.maximum(highest, 1.0)
    mask = (density > threshold) & (saturation > MIN_SATURATION)
    smallest = MIN_UM2 / (step[0] * step[1] * mpp**2)
    mask = _large(mask, smallest)
    mask = ~_large(~mask, smallest)
    rule = f"denser than the glass by {threshold:.2f} (Otsu {found:.2f}, held within {low:g} and {high:g}), at {um:.3g} um/px"
    return TissueMask(mask, step, rule)


def optical_density(rgb: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the optical density (h, w) of a picture (h, w, 3) over its glass, and the glass (3,): the median of its brightest tenth."""
    brightness = rgb.mean(axis=2)
    glass = np.maximum(np.median(rgb[brightness >= np.quantile(brightness, 0.9)], axis=0), 1.0)
    return np.log10(glass / np.maximum(rgb, 1.0)).mean(axis=2), glass


def coarse_picture(image: SlideImage, mpp: float) -> tuple[Any, tuple[float, float]]:
    """Return the slide at about `MASK_UM`, lazy (h, w, 3) float32, and full-resolution pixels per pixel of it along y and x."""
    import dask.array as da

    factors = level_factors(image)
    um = [max(factor) * image.pixel_size * mpp for factor in factors]
    level = max((i for i, size in enumerate(um) if size <= MASK_UM), default=0)
    array = image.levels[level]
    by = max(1, min(round(MASK_UM / um[level]), *array.shape[:2]))
    if by > 1:
        side = max(1, 2048 // by) * by  # whole blocks in every chunk, of some megabytes
        array = da.coarsen(np.mean, array.rechunk((side, side, 3)), {0: by, 1: by}, trim_excess=True)
    fy, fx = (float(factor) * by * image.pixel_size for factor in factors[level])
    # the filter takes what it needs of neighbouring chunks, which must not be smaller than that
    return array.astype(np.float32).rechunk((512, 512, 3)), (fy, fx)


def _large(mask: NDArray[np.bool_], smallest: float) -> NDArray[np.bool_]:
    """Keep the connected pieces (by sides) of at least ``smallest`` pixels."""
    from dask_image.ndmeasure import label

    pieces = np.asarray(label(mask)[0])
    keep = np.bincount(pieces.ravel()) >= smallest
    keep[0] = False
    kept: NDArray[np.bool_] = keep[pieces]
    return kept
