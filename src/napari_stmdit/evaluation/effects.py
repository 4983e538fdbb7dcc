"""Measures of edits of real tissue, and crops painted in continuous mode."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, minimum_filter, uniform_filter
from scipy.sparse import csr_matrix
from scipy.spatial import cKDTree

from ..edits import Add, Towards
from ..encoders.morphology_map import vectors_of
from ..expression.changes import Measured
from ..expression.edits import apply_edits, edited_depths
from ..expression.following import following
from ..expression.regression import PENALTIES, compact_folds, ridge_weights, spread_of
from ..intent import CheckpointCard, Request
from ..progress import CancelToken, Progress
from ..regions import Polygons
from ..synthesis.canvas import MemoryCanvas, boxes_around
from ..synthesis.models import PatchModel
from ..synthesis.plan import plan
from ..synthesis.session import Session
from ..synthesis.windows import CELL
from ..tissue.crops import read_patches
from ..types import Plan, Section, SpotTable
from .measures import nuclei_places, nucleus_pixels, stain_density
from .spaces import FeatureSpace
from .statistics import Interval, resampled

MIN_CHANGE, TOLERANCE = 0.01, 1e-3
"""Haematoxylin density: minimum change of a spot that moved, and step back between doses that counts as rounding."""
SAME_NUCLEUS_UM = 5.0
"""Distance to the nearest nucleus of the slide beyond which a nucleus of an edited picture is new."""
NUCLEUS_REACH = 6
"""Radius that the detection of a nucleus depends on, in standard deviations of the smoothing: four of them, and two to the next nucleus."""
NEIGHBOURS, SMOOTH_UM = 5, 200.0
"""Number of neighbours over which expression is averaged for the trend of the tissue, and Gaussian width."""
_SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)

Array = NDArray[np.float64]

# Figures hold JSON types: None for what is not known.


class Agreement(TypedDict):
    """Correlation with its interval, and slope, over ``n`` programs, between the effect of an edit and the trend of real tissue."""

    correlation: float | None
    slope: float | None
    low: float | None
    high: float | None
    n: int


class Monotony(TypedDict):
    """Share of the spots that ``moved``, out of ``n``, which moved monotonically."""

    monotone: float | None
    moved: int
    n: int


class FeatureChange(TypedDict):
    """Change of crops in a feature space: of the edited one, mean around it, maximum outside, and ratio of inside to around."""

    inside: float | None
    around: float | None
    outside: float | None
    ratio: float | None


class Locality(TypedDict):
    """Mean change of a pixel in the edit and around it, and maximum beyond; the same of haematoxylin density over 16 pixels."""

    inside_grey_levels: float | None
    around_grey_levels: float | None
    ratio: float | None
    inside_haematoxylin: float | None
    around_haematoxylin: float | None
    ratio_haematoxylin: float | None
    outside_grey_levels: int
    outside_pixels: int


class FeatureLocality(TypedDict):
    """`FeatureChange` by feature space; ``ratio_features`` is that of the first."""

    features: dict[str, FeatureChange]
    ratio_features: float | None


class NewNuclei(TypedDict):
    """New nuclei: per square millimetre in the edit and around it, and their number beyond."""

    inside: float | None
    around: float | None
    outside_nuclei: int | None


class EditLocality(Locality, FeatureLocality):
    """Locality of an edit: changes inside, around it and beyond."""


# ------------------------------------------------------------------------------------------------- swaps


def ms_ssim(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Return the multi-scale structural similarity of two (h, w, 3) images, on the mean of their channels.

    Wang, Simoncelli & Bovik 2003, "Multiscale structural similarity for image quality assessment", Asilomar 37:1398-1402; five scales with
    the published weights, Gaussian windows of 1.5 pixels.
    """
    x, y = (image.astype(np.float64).mean(axis=-1) for image in (a, b))
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    value = 1.0
    for scale, power in enumerate(_SCALES):
        mx, my = gaussian_filter(x, 1.5), gaussian_filter(y, 1.5)
        vx, vy = gaussian_filter(x * x, 1.5) - mx**2, gaussian_filter(y * y, 1.5) - my**2
        structure = (2 * (gaussian_filter(x * y, 1.5) - mx * my) + c2) / (vx + vy + c2)
        last = scale == len(_SCALES) - 1
        luminance = (2 * mx * my + c1) / (mx**2 + my**2 + c1) if last else 1.0
        value *= max(float((luminance * structure).mean()), 0.0) ** power
        height, width = (n // 2 * 2 for n in x.shape)
        x, y = (z[:height, :width].reshape(height // 2, 2, width // 2, 2).mean(axis=(1, 3)) for z in (x, y))
    return float(value)


def swap_coefficient(change: Array, own: Array, other: Array, draws: int, seed: int = 0) -> Interval:
    """Regress the change (n,) of spots' images on the real value of other spots, with their own real value as covariate.

    1: an image moves all the way to the other spot's value; 0: it does not move with it. The interval is from bootstrap samples of the pairs.
    """
    design = np.stack([other, own, np.ones(len(own))], axis=1)

    def fit(rows: NDArray[np.int64]) -> float:
        return float(np.linalg.lstsq(design[rows], change[rows], rcond=None)[0][0])

    return resampled(fit, len(own), draws, seed)


def ceiling(expression: NDArray[np.float32], values: Array, yx: Array) -> float:
    """Return the cross-validated R2 of a ridge regression of a measure (n,) on encoded expression.

    Over many pairs it is the maximum of a swap coefficient: the part of the measure that expression predicts. Folds are of neighbours, by
    positions ``yx`` (n, 2); the penalty is chosen inside each fold. Expression is (n, d), or tokens (n, g, d), which are averaged.
    """
    folds, predicted = _predicted_without(expression, values, yx)
    residual_ss, total_ss = 0.0, 0.0
    for fold in np.unique(folds):
        out = folds == fold
        found = predicted(frozenset((int(fold),)), np.flatnonzero(out))
        residual_ss += float(((values[out] - found) ** 2).sum())
        total_ss += float(((values[out] - values[~out].mean()) ** 2).sum())
    return 1 - residual_ss / total_ss if total_ss > 0 else 0.0


def ridge_change(
    expression: NDArray[np.float32], values: Array, yx: Array, rows: NDArray[np.int64], given: NDArray[np.int64]
) -> Array:
    """Return the change (k,) of a measure that ridge regression predicts for spots that get the expression of others.

    ``rows`` and ``given`` (k,) are the spots of each pair; the fit leaves out both and the blocks of neighbours around them. Its swap
    coefficient is what expression allows on these very pairs: that of few pairs may be far from `ceiling`, whose parameters these are.
    """
    folds, predicted = _predicted_without(expression, values, yx)
    pairs = np.stack([rows, given], axis=1)
    return np.array([np.diff(predicted(frozenset(folds[pair].tolist()), pair))[0] for pair in pairs])


def _predicted_without(
    expression: NDArray[np.float32], values: Array, yx: Array
) -> tuple[NDArray[np.int64], Callable[[frozenset[int], NDArray[np.int64]], Array]]:
    """Return folds (n,) of neighbours, and what predicts a measure at some spots from all others but some folds."""
    x = vectors_of(expression).astype(np.float64)
    x = (x - x.mean(axis=0)) / spread_of(x)
    folds = compact_folds(yx, min(16, max(len(yx) // 10, 1)))
    penalties: dict[frozenset[int], float] = {}

    def predicted(without: frozenset[int], rows: NDArray[np.int64]) -> Array:
        kept = ~np.isin(folds, list(without))
        if without not in penalties:  # chosen on what the fit is made of
            penalties[without] = _best_penalty(x[kept], values[kept], folds[kept])
        (found,) = _ridge(x[kept], values[kept], x[rows], [penalties[without]])
        return found

    return folds, predicted


def _best_penalty(x: Array, y: Array, folds: NDArray[np.int64]) -> float:
    errors = np.zeros(len(PENALTIES))
    for fold in np.unique(folds):
        out = folds == fold
        errors += [float(((y[out] - found) ** 2).sum()) for found in _ridge(x[~out], y[~out], x[out], PENALTIES)]
    return float(PENALTIES[errors.argmin()])


def _ridge(x: Array, y: Array, to: Array, penalties: Sequence[float] | Array) -> list[Array]:
    centre, target = x.mean(axis=0), y.mean()
    weights = ridge_weights(x - centre, (y - target)[:, None], np.asarray(penalties) * len(x))
    return [((to - centre) @ w)[:, 0] + target for w in weights]


# ------------------------------------------------------------------------------------------------- programs


class SmoothedLevels:
    """Log expression of a section's spots, averaged over neighbours, for the trend of the tissue; ``mpp`` is that of their positions."""

    def __init__(self, spots: SpotTable, mpp: float) -> None:
        self.spots = spots
        self.measured = Measured.of(spots)
        apart, near = cKDTree(spots.yx).query(spots.yx, k=min(NEIGHBOURS, len(spots)))
        weights = np.exp(-0.5 * (apart * mpp / SMOOTH_UM) ** 2)
        self.near, self.weights = near, weights / weights.sum(axis=1, keepdims=True)

    def score(self, columns: NDArray[np.int64]) -> Array:
        """Return the mean level (n,) of some genes over neighbouring spots."""
        levels = self.measured.levels(columns).mean(axis=1, dtype=np.float64)
        return np.asarray((self.weights * levels[self.near]).sum(axis=1))

    def raised(
        self, rows: NDArray[np.int64], genes: Sequence[str], by: float, follow: Literal["section", "none"]
    ) -> tuple[csr_matrix, NDArray[np.float32], Array | None]:
        """Return counts (rows, g) and depth (rows,) of spots after an edit that raises these genes, and how far it moves factors, (rows, k)."""
        edits = (Add(genes=tuple(genes), log_units=by, follow=follow),)
        counts = apply_edits(rows, self.spots, edits, {}, {})
        along = following(rows, self.spots.ids[rows].tolist(), self.spots, edits, {})
        return counts, edited_depths(rows, self.spots, edits, {}, {}), None if along is None else along.moves()


def agreement(trend: Array, effect: Array, draws: int, seed: int = 0) -> Agreement:
    """Return correlation, with interval, and slope over programs of the effect of an edit on the trend of real tissue."""

    def fit(rows: NDArray[np.int64]) -> float:
        a, b = trend[rows], effect[rows]
        return float(np.corrcoef(a, b)[0, 1]) if np.ptp(a) > 1e-9 and np.ptp(b) > 1e-9 else float("nan")

    n = len(trend)
    if n < 3 or not np.isfinite(fit(np.arange(n))):
        return {"correlation": None, "slope": None, "low": None, "high": None, "n": n}
    facts, slope = resampled(fit, n, draws, seed).facts, round(float(np.polyfit(trend, effect, 1)[0]), 5)
    return {"correlation": facts["value"], "slope": slope, "low": facts["low"], "high": facts["high"], "n": n}


# ------------------------------------------------------------------------------------------------- doses


def monotony(values: Array) -> Monotony:
    """Return the share of spots that move monotonically; those that hardly move are not counted.

    ``values`` (n, doses + 1) are the haematoxylin density of each spot, from the slide to the full dose.
    """
    moved = np.abs(values[:, -1] - values[:, 0]) >= MIN_CHANGE
    steps = np.diff(values[moved], axis=1)
    ordered = (steps >= -TOLERANCE).all(axis=1) | (steps <= TOLERANCE).all(axis=1)
    return {
        "monotone": round(float(ordered.mean()), 4) if moved.any() else None,
        "moved": int(moved.sum()),
        "n": len(values),
    }


# ------------------------------------------------------------------------------------------------- where


def locality(
    real: NDArray[np.uint8],
    edited: NDArray[np.uint8],
    inside: NDArray[np.bool_],
    around: NDArray[np.bool_],
    beyond: NDArray[np.bool_],
) -> Locality:
    """Compare two (h, w, 3) pictures in the edit, around it, and beyond its reach.

    ``ratio`` is the mean change of a pixel inside over that around; ``ratio_haematoxylin`` the same of haematoxylin density over areas of
    16 pixels. Null where there is nothing around, or nothing changes there.
    """
    change = np.abs(edited.astype(np.int64) - real).max(axis=-1)
    stain = np.abs(_stain(edited) - _stain(real))

    def means(of: NDArray[Any]) -> tuple[float | None, float | None, float | None]:
        a, b = (float(of[mask].mean()) if mask.any() else None for mask in (inside, around))
        ratio = round(a / b, 3) if a is not None and b else None
        return None if a is None else round(a, 4), None if b is None else round(b, 4), ratio

    pixels, stains = means(change), means(stain)
    return {
        "inside_grey_levels": pixels[0],
        "around_grey_levels": pixels[1],
        "ratio": pixels[2],
        "inside_haematoxylin": stains[0],
        "around_haematoxylin": stains[1],
        "ratio_haematoxylin": stains[2],
        "outside_grey_levels": int(change[beyond].max(initial=0)),
        "outside_pixels": int(beyond.sum()),
    }


def _stain(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.asarray(uniform_filter(stain_density(pixels)[..., 0], 16))


def new_nuclei(
    real: NDArray[np.uint8],
    edited: NDArray[np.uint8],
    mpp: float,
    inside: NDArray[np.bool_],
    around: NDArray[np.bool_],
    beyond: NDArray[np.bool_],
) -> NewNuclei:
    """Return nuclei of an edited picture that the slide does not have.

    They are per square millimetre in the edit and around it; ``outside_nuclei`` is their number beyond its reach, at least
    a nucleus' reach inside, where the picture is the slide and none may be new.
    """
    reach = round(NUCLEUS_REACH * nucleus_pixels(mpp)[0])
    old, new = nuclei_places(real, mpp), nuclei_places(edited, mpp)
    if len(old) and len(new):
        apart, _ = cKDTree(old).query(new)
        new = new[apart * mpp > SAME_NUCLEUS_UM]

    def density(mask: NDArray[np.bool_]) -> float | None:
        area = float(mask.sum()) * mpp**2 / 1e6
        return round(float(mask[tuple(new.T)].sum()) / area, 1) if area > 0 else None

    far = minimum_filter(beyond, 2 * reach + 1, mode="nearest")
    outside = int(far[tuple(new.T)].sum()) if far.any() else None
    return {"inside": density(inside), "around": density(around), "outside_nuclei": outside}


def feature_locality(
    real: NDArray[np.uint8],
    edited: NDArray[np.uint8],
    middle: tuple[int, int],
    side: int,
    areas: Mapping[str, NDArray[np.bool_]],
    spaces: Sequence[FeatureSpace],
    reference: NDArray[np.uint8],
) -> FeatureLocality:
    """Compare crops of the slide with those of the edited slide, (h, w, 3), in feature spaces.

    Crops have ``side`` pixels: one at the edit's ``middle`` (y, x), the others on a grid of half a side around it, wholly in one of the
    ``areas`` ``around`` and ``outside``, (h, w) bool. Changes are root mean squares over features, in units of a feature's spread over the
    ``reference`` crops (n, side, side, 3): for each space ``inside``, the mean ``around``, the maximum ``outside``, and the ``ratio`` of inside to
    around; null where there is no such crop, or nothing changes around. ``ratio_features`` is that of the first space.
    """
    inside = _kept_in(np.array(middle) - side // 2, np.array(real.shape[:2]) - side)
    corners = {"inside": [inside], **{name: _crops_in(mask, inside, side) for name, mask in areas.items()}}
    found: dict[str, FeatureChange] = {}
    for space in spaces:
        unit = spread_of(space.features(reference), 1e-9)
        parts = {}
        for name, own in corners.items():
            before, after = (
                space.features(np.stack([picture[y : y + side, x : x + side] for y, x in own]))
                if own
                else np.empty((0, len(unit)))
                for picture in (real, edited)
            )
            parts[name] = np.sqrt((((after - before) / unit) ** 2).mean(axis=1))
        here, near = (float(parts[name].mean()) if len(parts[name]) else None for name in ("inside", "around"))
        found[space.name] = {
            "inside": None if here is None else round(here, 5),
            "around": None if near is None else round(near, 5),
            "outside": round(float(parts["outside"].max()), 5) if len(parts["outside"]) else None,
            "ratio": round(here / near, 2) if here and near else None,
        }
    return {"features": found, "ratio_features": next(iter(found.values()))["ratio"]}


def _crops_in(mask: NDArray[np.bool_], first: tuple[int, int], side: int) -> list[tuple[int, int]]:
    """Return corners (y, x) of the crops wholly inside a mask, on the grid of half a side through ``first``."""
    rows, columns = (
        range(at % (side // 2), size - side + 1, side // 2) for at, size in zip(first, mask.shape, strict=True)
    )
    return [(y, x) for y in rows for x in columns if mask[y : y + side, x : x + side].all()]


def _kept_in(corner: NDArray[np.int64], most: NDArray[np.int64]) -> tuple[int, int]:
    y, x = np.clip(corner, 0, np.maximum(most, 0)).tolist()
    return y, x


# ------------------------------------------------------------------------------------------------- painted crops


@dataclass(frozen=True)
class PaintedCrop:
    """Crop of a spot before and after an edit, (side, side, 3) uint8, pixels aligned."""

    before: NDArray[np.uint8] = field(repr=False)
    after: NDArray[np.uint8] = field(repr=False)


def crop_given(
    section: Section, card: CheckpointCard, row: int, other: int, steps: int, *, allow_gene_mismatch: bool = False
) -> Plan:
    """Plan the crop of the spot at ``row`` as a painted region with the expression and depth of the spot at ``other``.

    All spots that the region's windows read get it, so that every window has the same conditions, like a single patch in spots mode. If
    only the one spot were edited, windows over the crop's rim would mix in its neighbours, and the crop would measure the mixing.

    Raises
    ------
    RequestError
        The section or the checkpoint does not allow such an edit.
    """
    ids = section.spots.ids
    (y0, x0, y1, x1), pixel = _crop_box(section, card, row), _pixel(section, card)
    top, left, bottom, right = (v * pixel for v in (y0 - CELL, x0 - CELL, y1 + CELL, x1 + CELL))  # whole cells
    request = Request(
        region=Polygons(rings=(((top, left), (top, right), (bottom, right), (bottom, left)),)),
        edits=(Towards(target_spots=(str(ids[other]),)),),
        mode="continuous",
        steps=steps,
        counterfactual="on",
        allow_gene_mismatch=allow_gene_mismatch,
    )
    return plan(section, request, card)


def painted_crop(
    made: Plan, section: Section, model: PatchModel, row: int, *, batch: int, cancel: CancelToken
) -> Generator[Progress, None, PaintedCrop | None]:
    """Run a plan and cut the crop of the spot at ``row`` out of its canvas; None where it was cancelled.

    A second edit of the same crop finds its inversion in the checkpoint's cache: it depends on slide and measured expression alone.
    """
    canvas = MemoryCanvas(made.frame)
    for event in Session(made, section, model, canvas, batch=batch, cancel=cancel).steps():
        if isinstance(event, Progress):
            yield event
    if len(canvas.finished) < len(made):
        return None
    box = np.array(_crop_box(section, made.card, row))
    corner = np.rint(np.array(made.frame.origin) / made.frame.pixel_size).astype(int)
    low, high = np.maximum(box[:2] - corner, 0), np.minimum(box[2:] - corner, made.frame.shape)
    on_canvas = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    in_crop = tuple(slice(a, b) for a, b in zip(low + corner - box[:2], high + corner - box[:2], strict=True))
    before = read_patches(section.slide, [tuple((box * made.frame.pixel_size).tolist())], made.card.patch_px)[0]
    after = before.copy()
    shown = canvas.rgba[on_canvas][..., 3:] > 0  # nothing is synthesized off the slide
    before[in_crop] = np.where(shown, slide_on(made, section)[on_canvas], before[in_crop])
    after[in_crop] = np.where(shown, canvas.rgba[on_canvas][..., :3], after[in_crop])
    return PaintedCrop(before, after)


def slide_on(made: Plan, section: Section) -> NDArray[np.uint8]:
    """Return the slide on a canvas, (h, w, 3), read tile by tile as the run reads it; one large reading rounds differently."""
    assert made.windows is not None
    height, width = made.frame.shape
    found = np.full((height, width, 3), 255, np.uint8)
    for patch in made.patches:
        y0, x0, y1, x1 = patch.canvas_box
        tile = read_patches(section.slide, [patch.source_box], made.windows.tile)[0]
        own = found[max(y0, 0) : y1, max(x0, 0) : x1]
        own[:] = tile[max(-y0, 0) :, max(-x0, 0) :][: own.shape[0], : own.shape[1]]
    return found


def _crop_box(section: Section, card: CheckpointCard, row: int) -> tuple[int, int, int, int]:
    """Return the box of a spot's crop on the grid of canvas pixels that starts at the slide's corner, (y0, x0, y1, x1)."""
    (box,) = boxes_around(section.spots.yx[[row]], card.patch_px, _pixel(section, card))
    return box.canvas


def _pixel(section: Section, card: CheckpointCard) -> float:
    """Return full-resolution pixels per canvas pixel."""
    return card.patch_mpp / section.mpp
