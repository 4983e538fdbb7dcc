"""Spots that are evaluated on, and what is measured of H&E patches: stain, nuclei, blank area, sharpness, and likeness to the real patch."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from ..expression.regression import evenly_spaced
from ..intent import CheckpointCard
from ..progress import finish
from ..synthesis.canvas import boxes_around
from ..synthesis.counterfactual import MAP_BATCH
from ..synthesis.models import PatchModel
from ..tissue.crops import read_patches
from ..types import Section
from .spaces import FeatureSpace

STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
"""Optical density of haematoxylin, eosin and a residual in red, green and blue.

Ruifrok & Johnston 2001, "Quantification of histochemical staining by color deconvolution", Anal. Quant. Cytol. Histol. 23:291-299.
"""
NUCLEUS_DENSITY = 0.8
"""Threshold of smoothed haematoxylin density above which a local maximum counts as a nucleus."""
NUCLEUS_MPP = 0.7
"""Scale of nucleus counts with the default smoothing; other scales use the same smoothing in microns."""
BLANK_LEVEL = 215.0
"""Mean of red, green and blue above which a pixel is empty glass or a fat vacuole."""
STATISTICS = {
    "haematoxylin": "haematoxylin density",
    "eosin": "eosin density",
    "nuclei": "nuclei per mm²",
    "blank": "blank area (share)",
    "high_frequency": "high frequency (grey levels)",
}
"""Measures of every patch: key and name with unit, in the order of the columns."""
MAX_SHOWN = 10
"""Maximum number of spots whose patches are shown."""
MAX_PSNR = 100.0
"""Decibels of identical patches, whose ratio is infinite."""
LPIPS_BACKBONE = "alexnet-owt-7be5be79.pth"

Array = NDArray[np.float64]
Patches = NDArray[np.uint8]


# ------------------------------------------------------------------------------------------------- one patch


def stain_density(pixels: Patches) -> NDArray[np.float32]:
    """Unmix (..., 3) uint8 RGB into (..., 3) optical densities of haematoxylin, eosin and the residual.

    Density is -ln((value + 1) / 256), so that black stays finite and white is zero.
    """
    unit = STAINS / np.linalg.norm(STAINS, axis=1, keepdims=True)
    density = -np.log((pixels.astype(np.float32) + 1) / 256)
    return np.asarray(density @ np.linalg.inv(unit).astype(np.float32), dtype=np.float32)


def haematoxylin_density(pixels: Patches) -> float:
    """Return the mean haematoxylin density of a (h, w, 3) patch."""
    return float(stain_density(pixels)[..., 0].mean())


def eosin_density(pixels: Patches) -> float:
    """Return the mean eosin density of a (h, w, 3) patch."""
    return float(stain_density(pixels)[..., 1].mean())


def count_nuclei(pixels: Patches, mpp: float) -> int:
    """Count local maxima of smoothed haematoxylin density in a (h, w, 3) patch of ``mpp`` microns per pixel.

    A crude count: touching nuclei of one density are one, a large nucleus with clumped chromatin may be two.
    """
    return len(nuclei_places(pixels, mpp))


def nuclei_places(pixels: Patches, mpp: float) -> NDArray[np.int64]:
    """Return the (n, 2) positions (y, x) of the nuclei that `count_nuclei` counts."""
    from skimage.feature import peak_local_max

    spread_px, distance_px = nucleus_pixels(mpp)
    smooth = gaussian_filter(stain_density(pixels)[..., 0], spread_px)
    found = peak_local_max(smooth, min_distance=distance_px, threshold_abs=NUCLEUS_DENSITY, exclude_border=False)
    return np.asarray(found, dtype=np.int64)


def blank_fraction(pixels: Patches) -> float:
    """Return the share of pixels whose mean of the three channels is above `BLANK_LEVEL`."""
    return float((pixels.mean(axis=-1) > BLANK_LEVEL).mean())


def high_frequency(pixels: Patches) -> float:
    """Return the standard deviation, in grey levels, of the channel mean minus its Gaussian blur of one pixel."""
    grey = pixels.astype(np.float32).mean(axis=-1)
    return float((grey - gaussian_filter(grey, 1.0)).std())


# ------------------------------------------------------------------------------------------------- stacks of patches


@dataclass(frozen=True)
class PatchStatistics:
    """Measures of n patches, each (n,): stain densities, number of nuclei, share of blank pixels, and high frequency."""

    haematoxylin: Array
    eosin: Array
    nuclei: Array
    blank: Array
    high_frequency: Array


def measure(patches: Patches, mpp: float) -> PatchStatistics:
    """Measure patches (n, h, w, 3) of ``mpp`` microns per pixel."""
    of_each = (haematoxylin_density, eosin_density, partial(count_nuclei, mpp=mpp), blank_fraction, high_frequency)
    return PatchStatistics(*(np.array([of(patch) for patch in patches], dtype=np.float64) for of in of_each))


def statistics_of(patches: Patches, patch_um: float) -> Array:
    """Return the `STATISTICS` of (n, side, side, 3) patches, (n, 5)."""
    rows = [(*measure_spot(patch, patch_um).values, high_frequency(patch)) for patch in patches]
    return np.array(rows, dtype=np.float64).reshape(len(patches), len(STATISTICS))


@dataclass(frozen=True)
class PatchValues:
    """Measures of one set of patches, one for each of n spots.

    Attributes
    ----------
    features
        Name of a feature space -> (n, d).
    statistics
        (n, 5), in the order of `STATISTICS`.
    paired
        Key of a measure -> (n,) likeness to the real patch of the spot.
    change
        (n,) mean change of a pixel, in grey levels, from a baseline with the same noise; None where there is none.
    """

    features: dict[str, Array]
    statistics: Array
    paired: dict[str, Array]
    change: Array | None = None

    def only(self, keep: NDArray[np.bool_]) -> PatchValues:
        """Return the values of some of the spots."""
        return PatchValues(
            {name: values[keep] for name, values in self.features.items()},
            self.statistics[keep],
            {name: values[keep] for name, values in self.paired.items()},
            None if self.change is None else self.change[keep],
        )


@dataclass
class CaseValues:
    """Case with the values of its patches by seed, and patches to show.

    ``synthetic`` is False for real patches beside the cases. ``shown`` are (m, side, side, 3) uint8 of the first seed.
    """

    key: str
    description: str
    synthetic: bool = True
    per_seed: list[PatchValues] = field(default_factory=list)
    shown: Patches | None = None

    @property
    def kind(self) -> str:
        """Label of its patches."""
        return "synthetic" if self.synthetic else "real"

    @property
    def statistics(self) -> Array:
        """(n, 5) mean of the seeds."""
        return np.asarray(np.mean([one.statistics for one in self.per_seed], axis=0))


class PatchMetrics:
    """Metrics of patches against the real ones of the same spots.

    Parameters
    ----------
    real
        (n, side, side, 3) uint8.
    patch_um
        Their side in microns.
    spaces
        Feature spaces; the embedding cosine is taken in the first.
    lpips
        LPIPS, if available.
    """

    def __init__(
        self, real: Patches, patch_um: float, spaces: Sequence[FeatureSpace], lpips: Lpips | None = None
    ) -> None:
        self.crops, self.patch_um, self.spaces, self._lpips = real, patch_um, tuple(spaces), lpips
        self.shown = evenly_spaced(len(real), MAX_SHOWN)
        features = {space.name: space.features(real) for space in self.spaces}
        values = PatchValues(features, statistics_of(real, patch_um), {})
        self.real = CaseValues("real", "real patches of the spots", False, [values], real[self.shown])

    def measure(self, patches: Patches, baseline: Patches | None = None) -> PatchValues:
        """Measure one patch for each spot; changes are relative to ``baseline`` patches of the same spots."""
        features = {space.name: space.features(patches) for space in self.spaces}
        first, target = self.spaces[0].name, self.real.per_seed[0].features
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
        return PatchValues(features, statistics_of(patches, self.patch_um), paired, change)


# ------------------------------------------------------------------------------------------------- one spot


@dataclass(frozen=True)
class SpotMeasures:
    """Measures of one patch: stain densities (natural logarithm), nuclei per square millimetre, and share of blank pixels."""

    haematoxylin: float
    eosin: float
    nuclei_per_mm2: float
    blank: float

    @property
    def values(self) -> tuple[float, float, float, float]:
        """The measures in their order."""
        return self.haematoxylin, self.eosin, self.nuclei_per_mm2, self.blank


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


def nucleus_pixels(mpp: float) -> tuple[float, int]:
    """Return the smoothing and the smallest distance of nuclei in pixels, the same in microns at every scale."""
    scale = NUCLEUS_MPP / mpp
    return (2.0, 4) if abs(scale - 1) < 0.05 else (2.0 * scale, max(1, round(4 * scale)))


def measure_spot(pixels: Patches, patch_um: float) -> SpotMeasures:
    """Measure one (h, w, 3) patch whose side is ``patch_um`` microns."""
    mpp = patch_um / pixels.shape[1]
    mm2 = pixels.shape[0] * pixels.shape[1] * (mpp / 1000) ** 2
    density = stain_density(pixels)
    return SpotMeasures(
        float(density[..., 0].mean()),
        float(density[..., 1].mean()),
        count_nuclei(pixels, mpp) / mm2,
        blank_fraction(pixels),
    )


def compare_spot(patches: Mapping[str, Patches], patch_um: float) -> tuple[MeasureRow, ...]:
    """Measure patches of one spot side by side; columns are named by the keys of ``patches``."""
    rows = (
        ("Haematoxylin", "OD (ln)", 3),
        ("Eosin", "OD (ln)", 3),
        ("Nuclei", "per mm²", 0),
        ("Blank area", "share", 3),
    )
    found = {column: measure_spot(pixels, patch_um).values for column, pixels in patches.items()}
    return tuple(
        MeasureRow(*row, {column: values[k] for column, values in found.items()}) for k, row in enumerate(rows)
    )


# ------------------------------------------------------------------------------------------------- pairs of patches


@dataclass(frozen=True)
class PairedMeasure:
    """Paired metric: its key, its name with unit, and whether higher is better."""

    key: str
    name: str
    more_is_better: bool = True

    def best(self, values: Array) -> Array:
        """Return the best (n,) of k seeds' values (n, k); it grows with k, even for noise, so compare equal k only."""
        return np.asarray(values.max(axis=1) if self.more_is_better else values.min(axis=1))


SSIM = PairedMeasure("ssim", "SSIM")
PSNR = PairedMeasure("psnr", "PSNR (dB)")
LPIPS = PairedMeasure("lpips", "LPIPS (AlexNet)", more_is_better=False)
COSINE = PairedMeasure("cosine", "embedding cosine")
MEASURES = (SSIM, PSNR, LPIPS, COSINE)


def structural_similarity(made: Patches, real: Patches) -> Array:
    """Return SSIM (Wang et al. 2004, IEEE Trans. Image Process. 13:600-612) of n pairs of (n, h, w, 3) patches, (n,)."""
    from skimage.metrics import structural_similarity as ssim

    return np.array([ssim(a, b, channel_axis=-1, data_range=255) for a, b in zip(made, real, strict=True)])


def peak_signal_to_noise(made: Patches, real: Patches) -> Array:
    """Return the peak signal-to-noise ratio of n pairs of patches in decibels, (n,), at most `MAX_PSNR`."""
    error = ((made.astype(np.float64) - real) ** 2).mean(axis=(1, 2, 3))
    with np.errstate(divide="ignore"):
        return np.asarray(np.minimum(MAX_PSNR, 10 * np.log10(255.0**2 / error)))


def embedding_cosine(made: Array, real: Array, reference: Array) -> Array:
    """Return the cosine between the features of n pairs (n, d), each feature standardised by the reference set (m, d); (n,)."""
    # most features are positive: without standardising, their common mean dominates the angle and all patches look alike
    mean, spread = reference.mean(axis=0), reference.std(axis=0) + 1e-6
    a, b = (made - mean) / spread, (real - mean) / spread
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.asarray((a * b).sum(axis=1) / np.maximum(norms, 1e-12))


class Lpips:
    """Learned perceptual distance (Zhang et al. 2018, arXiv 1801.03924), if the package and its backbone are installed.

    Raises
    ------
    LookupError
        They are not; the message says what to do. Nothing is downloaded.
    """

    def __init__(self) -> None:
        import torch

        try:
            import lpips
        except ImportError:
            raise LookupError('LPIPS is not installed: pip install "napari-stmdit[metrics]"') from None
        except RuntimeError as error:  # a torchvision that was built for another torch
            raise LookupError(f"LPIPS cannot be used ({error}); install a torchvision that fits torch") from None
        backbone = Path(torch.hub.get_dir()) / "checkpoints" / LPIPS_BACKBONE
        if not backbone.is_file():
            raise LookupError(
                f"the weights of LPIPS's backbone are not in {backbone.parent}; fetch them once with: "
                "python -c \"import lpips; lpips.LPIPS(net='alex')\""
            )
        self._network: Any = lpips.LPIPS(net="alex", verbose=False).eval()

    def __call__(self, made: NDArray[np.uint8], real: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Return the distances (n,) of n pairs of (n, h, w, 3) patches."""
        import torch

        def tensor(patch: NDArray[np.uint8]) -> Any:
            return torch.from_numpy(np.ascontiguousarray(patch)).permute(2, 0, 1).float()[None] / 127.5 - 1

        with torch.inference_mode():
            return np.array(
                [float(self._network(tensor(a), tensor(b))) for a, b in zip(made, real, strict=True)], dtype=np.float64
            )


def find_lpips() -> tuple[Lpips | None, str]:
    """Return LPIPS where it needs no download, else None and the reason."""
    try:
        return Lpips(), ""
    except LookupError as reason:
        return None, f"LPIPS was not measured: {reason}"


class SpotSet:
    """Spots of a section with their encodings by a checkpoint, read or computed at first use.

    Parameters
    ----------
    section
        A calibrated section with a full-resolution image.
    rows
        (n,) rows of its table.
    checkpoint
        The checkpoint, or a stand-in.
    """

    def __init__(self, section: Section, rows: NDArray[np.int64], checkpoint: PatchModel) -> None:
        self.section, self.rows, self.checkpoint = section, rows, checkpoint

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of the spots."""
        return tuple(self.section.spots.ids[self.rows].tolist())

    @cached_property
    def crops(self) -> NDArray[np.uint8]:
        """(n, side, side, 3) uint8 real patches at the checkpoint's own scale."""
        return crops_at(self.section, self.section.spots.yx[self.rows], self.checkpoint.card)

    @cached_property
    def real(self) -> PatchStatistics:
        """Measures of the real patches."""
        return self.measured(self.crops)

    def measured(self, patches: Patches) -> PatchStatistics:
        """Return the measures of patches at the checkpoint's scale."""
        return measure(patches, self.checkpoint.card.patch_mpp)

    @cached_property
    def expression(self) -> NDArray[np.float32]:
        """(n, d) or (n, tokens, d) encoded expression."""
        spots = self.section.spots
        return self.checkpoint.encode_expression(
            spots.counts[self.rows], spots.genes, self.ids, spots.relative_depth[self.rows]
        )

    @cached_property
    def morphology(self) -> NDArray[np.float32]:
        """(n, tokens, d) encoded morphology of the real patches."""
        return finish(self.encoding_steps())

    def encoding_steps(self) -> Generator[str, None, NDArray[np.float32]]:
        """Return the encoded morphology, and keep it; before each batch of spots, a sentence says how far it is."""
        if "morphology" not in vars(self):
            parts = []
            for start in range(0, len(self), MAP_BATCH):
                yield f"Reading the tissue of this section: {start} of {len(self)} spots"
                own = slice(start, start + MAP_BATCH)
                parts.append(self.checkpoint.encode_morphology(self.crops[own], self.ids[own]))
            vars(self)["morphology"] = np.concatenate(parts)
        return self.morphology

    def shifted(self, max_px: float, seed: int = 0) -> NDArray[np.uint8]:
        """Return real patches shifted by up to ``max_px`` full-resolution pixels along each axis."""
        places = self.section.spots.yx[self.rows]
        rng = np.random.default_rng(seed)
        return crops_at(self.section, places + rng.uniform(-max_px, max_px, places.shape), self.checkpoint.card)


def crops_at(section: Section, yx: NDArray[np.float64], card: CheckpointCard) -> NDArray[np.uint8]:
    """Read (n, side, side, 3) patches at a checkpoint's scale around positions (n, 2) in full-resolution pixels."""
    boxes = [b.source for b in boxes_around(yx, card.patch_px, card.patch_mpp / section.mpp)]
    return read_patches(section.slide, boxes, card.patch_px)


def reconstruct(checkpoint: Any, crops: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Reconstruct real crops by a checkpoint's autoencoder: its limit of sharpness."""
    from ..model.autoencoder import decode_latents, encode_latents

    vae = checkpoint.pipeline.vae
    batches = (crops[start : start + 8] for start in range(0, len(crops), 8))
    return np.concatenate([decode_latents(vae, encode_latents(vae, batch)) for batch in batches])
