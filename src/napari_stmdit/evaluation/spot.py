"""One spot in numbers: the real crop, the baseline and the edited patch side by side, with units."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .image import blank_fraction, count_nuclei, eosin_density, haematoxylin_density

COUNTED_AT_MPP = 0.7
"""Scale at which nuclei are counted with the default spread; at others it is scaled to the same microns."""


@dataclass(frozen=True)
class SpotMeasures:
    """What was read off one patch.

    Attributes
    ----------
    haematoxylin, eosin
        Mean optical density, natural logarithm; the same units as `napari_stmdit.evaluation.image.stain_density`.
    nuclei_per_mm2
        Nuclei per square millimetre.
    blank
        Share of empty pixels, 0 to 1.
    """

    haematoxylin: float
    eosin: float
    nuclei_per_mm2: float
    blank: float


@dataclass(frozen=True)
class MeasureRow:
    """One measure of a comparison: its name, unit, digits after the point, and value by column."""

    name: str
    unit: str
    digits: int
    values: Mapping[str, float]

    def difference(self, minuend: str, subtrahend: str) -> float | None:
        """Return one column minus another; None where one is missing."""
        if minuend not in self.values or subtrahend not in self.values:
            return None
        return self.values[minuend] - self.values[subtrahend]


_ROWS = (
    ("haematoxylin", "Haematoxylin", "OD (ln)", 3),
    ("eosin", "Eosin", "OD (ln)", 3),
    ("nuclei_per_mm2", "Nuclei", "per mm²", 0),
    ("blank", "Blank area", "share", 3),
)


def measure_spot(pixels: NDArray[np.uint8], patch_um: float) -> SpotMeasures:
    """Measure one patch.

    Parameters
    ----------
    pixels
        (h, w, 3) uint8.
    patch_um
        Its side in microns.
    """
    mpp = patch_um / pixels.shape[1]
    scale = COUNTED_AT_MPP / mpp
    spread, distance = (2.0, 4) if abs(scale - 1) < 0.05 else (2.0 * scale, max(1, round(4 * scale)))
    area = pixels.shape[0] * pixels.shape[1] * (mpp / 1000) ** 2
    return SpotMeasures(
        haematoxylin_density(pixels),
        eosin_density(pixels),
        count_nuclei(pixels, spread, distance) / area,
        blank_fraction(pixels),
    )


def compare_spot(patches: Mapping[str, NDArray[np.uint8]], patch_um: float) -> tuple[MeasureRow, ...]:
    """Measure patches of one spot and set them beside each other; columns are named by the keys of ``patches``."""
    found = {column: measure_spot(pixels, patch_um) for column, pixels in patches.items()}
    return tuple(
        MeasureRow(name, unit, digits, {column: float(getattr(m, key)) for column, m in found.items()})
        for key, name, unit, digits in _ROWS
    )
