"""What can be read off an H&E patch: stain densities, nuclei, blank area, sharpness. Pure functions on uint8 pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
"""Optical density of haematoxylin, eosin and a residual in red, green and blue.

Ruifrok & Johnston 2001, "Quantification of histochemical staining by color deconvolution", Anal. Quant. Cytol. Histol. 23:291-299.
"""

NUCLEUS_DENSITY = 0.8
"""Haematoxylin density, smoothed over a nucleus, above which a local maximum counts as one."""
BLANK_LEVEL = 215.0
"""Mean of red, green and blue above which a pixel is empty glass or a fat vacuole."""


@dataclass(frozen=True)
class PatchStatistics:
    """What was read off a stack of n patches, each (n,).

    Attributes
    ----------
    haematoxylin, eosin
        Mean optical density of the stain (natural logarithm).
    nuclei
        Number of local maxima of smoothed haematoxylin density.
    blank
        Fraction of empty pixels.
    high_frequency
        Standard deviation, in grey levels, of what a Gaussian of one pixel removes.
    """

    haematoxylin: NDArray[np.float64]
    eosin: NDArray[np.float64]
    nuclei: NDArray[np.float64]
    blank: NDArray[np.float64]
    high_frequency: NDArray[np.float64]


def stain_density(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Unmix (..., 3) uint8 RGB into (..., 3) optical densities of haematoxylin, eosin and the residual.

    Density is -ln((value + 1) / 256), so that black stays finite and white is zero.
    """
    unit = STAINS / np.linalg.norm(STAINS, axis=1, keepdims=True)
    density = -np.log((pixels.astype(np.float32) + 1) / 256)
    return np.asarray(density @ np.linalg.inv(unit).astype(np.float32), dtype=np.float32)


def haematoxylin_density(pixels: NDArray[np.uint8]) -> float:
    """Mean haematoxylin density of a (h, w, 3) patch."""
    return float(stain_density(pixels)[..., 0].mean())


def eosin_density(pixels: NDArray[np.uint8]) -> float:
    """Mean eosin density of a (h, w, 3) patch."""
    return float(stain_density(pixels)[..., 1].mean())


def count_nuclei(pixels: NDArray[np.uint8], spread_px: float = 2.0, distance_px: int = 4) -> int:
    """Count local maxima of smoothed haematoxylin density in a (h, w, 3) patch at about 0.7 um per pixel.

    A crude count: touching nuclei of one density are one, a large nucleus with clumped chromatin may be two.
    """
    return len(nuclei_places(pixels, spread_px, distance_px))


def nuclei_places(pixels: NDArray[np.uint8], spread_px: float = 2.0, distance_px: int = 4) -> NDArray[np.int64]:
    """Return the (n, 2) places (y, x) of what `count_nuclei` counts."""
    from scipy.ndimage import gaussian_filter
    from skimage.feature import peak_local_max

    smooth = gaussian_filter(stain_density(pixels)[..., 0], spread_px)
    found = peak_local_max(smooth, min_distance=distance_px, threshold_abs=NUCLEUS_DENSITY, exclude_border=False)
    return np.asarray(found, dtype=np.int64)


def blank_fraction(pixels: NDArray[np.uint8]) -> float:
    """Fraction of pixels whose mean of the three channels lies above `BLANK_LEVEL`."""
    return float((pixels.mean(axis=-1) > BLANK_LEVEL).mean())


def high_frequency(pixels: NDArray[np.uint8]) -> float:
    """Standard deviation, in grey levels, of what a Gaussian of one pixel removes from the mean of the channels."""
    from scipy.ndimage import gaussian_filter

    grey = pixels.astype(np.float32).mean(axis=-1)
    return float((grey - gaussian_filter(grey, 1.0)).std())


def measure(patches: NDArray[np.uint8]) -> PatchStatistics:
    """Measure a stack of patches (n, h, w, 3) uint8."""
    return PatchStatistics(
        haematoxylin=np.array([haematoxylin_density(p) for p in patches]),
        eosin=np.array([eosin_density(p) for p in patches]),
        nuclei=np.array([count_nuclei(p) for p in patches], dtype=np.float64),
        blank=np.array([blank_fraction(p) for p in patches]),
        high_frequency=np.array([high_frequency(p) for p in patches]),
    )
