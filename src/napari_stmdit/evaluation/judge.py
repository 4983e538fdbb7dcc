"""What is measured of patches beside the real ones of their spots; the patches themselves need not be kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .features import FeatureSpace
from .image import high_frequency
from .paired import COSINE, LPIPS, PSNR, SSIM, Lpips, embedding_cosine, peak_signal_to_noise, structural_similarity
from .spot import measure_spot

STATISTICS = {
    "haematoxylin": "haematoxylin density",
    "eosin": "eosin density",
    "nuclei": "nuclei per mm²",
    "blank": "blank area (share)",
    "high_frequency": "high frequency (grey levels)",
}
"""What is read off every patch: key and name with unit, in the order of the columns."""
SHOWN = 10
"""Spots whose patches are shown."""


@dataclass(frozen=True)
class Seen:
    """What was measured of one set of patches, one for each spot.

    Attributes
    ----------
    features
        Name of a space -> (n, d).
    statistics
        (n, 5), in the order of `STATISTICS`.
    paired
        Key of a measure -> (n,) likeness to the real patch of the spot.
    change
        (n,) mean change of a pixel, in grey levels, from a baseline with the same noise; None where there is none.
    """

    features: dict[str, NDArray[np.float64]]
    statistics: NDArray[np.float64]
    paired: dict[str, NDArray[np.float64]]
    change: NDArray[np.float64] | None = None


@dataclass
class CaseValues:
    """One case: what it is, what was measured of its patches seed by seed, and the patches that are shown.

    ``synthetic`` is False for real patches that stand beside the cases. ``shown`` are (m, side, side, 3) uint8 of the first seed.
    """

    key: str
    words: str
    synthetic: bool = True
    seen: list[Seen] = field(default_factory=list)
    shown: NDArray[np.uint8] | None = None

    @property
    def statistics(self) -> NDArray[np.float64]:
        """(n, 5) mean of the seeds."""
        return np.asarray(np.mean([seen.statistics for seen in self.seen], axis=0))


class Judge:
    """Measures patches against the real ones of the same spots.

    Parameters
    ----------
    real
        (n, side, side, 3) uint8.
    patch_um
        Their side in microns.
    spaces
        Feature spaces; the first is also where the embedding cosine is taken.
    lpips
        LPIPS, where it is to be had.
    """

    def __init__(
        self, real: NDArray[np.uint8], patch_um: float, spaces: Sequence[FeatureSpace], lpips: Lpips | None = None
    ) -> None:
        self.crops, self.patch_um, self.spaces, self._lpips = real, patch_um, tuple(spaces), lpips
        self.shown = np.unique(np.linspace(0, len(real) - 1, min(SHOWN, len(real))).round().astype(np.int64))
        features = {space.name: space.features(real) for space in self.spaces}
        self.real = CaseValues("real", "real patches of the spots", synthetic=False, shown=real[self.shown])
        self.real.seen.append(Seen(features, statistics_of(real, patch_um), {}))

    def look(self, patches: NDArray[np.uint8], baseline: NDArray[np.uint8] | None = None) -> Seen:
        """Measure one patch for each spot; ``baseline`` are the same spots' patches that a change is counted from."""
        features = {space.name: space.features(patches) for space in self.spaces}
        first, target = self.spaces[0].name, self.real.seen[0].features
        paired = {
            SSIM.key: structural_similarity(patches, self.crops),
            PSNR.key: peak_signal_to_noise(patches, self.crops),
            COSINE.key: embedding_cosine(features[first], target[first], target[first]),
        }
        if self._lpips is not None:
            paired[LPIPS.key] = self._lpips(patches, self.crops)
        change = None
        if baseline is not None:
            change = np.abs(patches.astype(np.int16) - baseline).mean(axis=(1, 2, 3), dtype=np.float64)
        return Seen(features, statistics_of(patches, self.patch_um), paired, change)


def statistics_of(patches: NDArray[np.uint8], patch_um: float) -> NDArray[np.float64]:
    """Return what `STATISTICS` names of (n, side, side, 3) patches, (n, 5)."""
    rows = []
    for patch in patches:
        found = measure_spot(patch, patch_um)
        rows.append((found.haematoxylin, found.eosin, found.nuclei_per_mm2, found.blank, high_frequency(patch)))
    return np.array(rows, dtype=np.float64).reshape(len(patches), len(STATISTICS))
