"""Whether edits of real tissue are true: identity, swaps of expression, programs, doses, and what changes where nothing was edited."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from ..encoders.morphology_map import MorphologyMap
from ..encoders.regression import blocks_of, ridge_weights
from ..errors import RequestError
from ..expression.programs import known_programs
from ..progress import CancelToken, Progress, Stopwatch
from ..synthesis.conditions import conditioned_counts
from ..synthesis.counterfactual import content_key, map_of
from ..synthesis.models import Edited, PatchBatch
from ..synthesis.plan import counterfactual_fault, plan
from ..synthesis.presets import resolve_counterfactual_steps
from ..synthesis.result import synthesize
from ..tissue.crops import read_patches
from ..types import AddEdit, KnockOutEdit, Patch, Polygons, Request, Section, TowardsEdit
from .held_out import SpotSet, reconstruct
from .image import measure, nuclei_places
from .resampling import Interval

MEASURES = ("haematoxylin", "nuclei")
MIN_PAIRS = 8
PROGRAM_SPOTS = 24
DOSE_SPOTS = 16
DOSES = (0.25, 0.5, 0.75, 1.0)
DRAWS = 1000
RADIUS_UM, FADE_UM, MARGIN_UM = 200.0, 100.0, 500.0
"""A painted disc for the check of locality: full to the first, fading over the second, looked at up to the third from its middle."""
PENALTIES = np.logspace(-2, 4, 13)


@dataclass
class CounterfactualCheck:
    """A check of edits of real tissue on one section.

    Parameters
    ----------
    section, model
        The section, which was not trained on, and a loaded checkpoint.
    pairs
        Pairs of spots of the swap test.
    seed
        Of the draws.
    steps
        Steps each way; None: the default.
    scale
        Edit scale.
    batch
        Patches computed together.
    cancel
        Asked at every network call.
    """

    section: Section
    model: Any
    pairs: int = 64
    seed: int = 0
    steps: int | None = None
    scale: float = 1.0
    batch: int = 16
    cancel: CancelToken = field(default_factory=CancelToken)
    watch: Stopwatch = field(default_factory=Stopwatch)

    def __post_init__(self) -> None:
        spots, card = self.section.spots, self.model.card
        probe = Request(edits=(KnockOutEdit(genes=(str(spots.genes.symbols[0]),)),))
        if (reason := counterfactual_fault(probe, card)) is not None:
            raise RequestError([("parts", reason)])
        plan(self.section, Request(), card)  # refuses what cannot be synthesized from
        if not MIN_PAIRS <= self.pairs <= len(spots):
            raise RequestError([("pairs", f"{self.pairs} pairs were asked for; expected {MIN_PAIRS} to {len(spots)}")])
        self.rng = np.random.default_rng(self.seed)
        self.all = SpotSet(self.section, np.arange(len(spots)), self.model)
        self.n_steps = resolve_counterfactual_steps(Request(steps=self.steps))
        self.map: MorphologyMap = map_of(self.section, card, self.model)
        self.done, self.total = 0, 6

    def run(self) -> Generator[Progress, None, dict[str, Any] | None]:
        """Yield the progress; return the figures in JSON types, or None where it was cancelled."""
        a, b, s = (self.rng.permutation(len(self.all))[: self.pairs] for _ in range(3))
        found: dict[str, Any] = {"morphology_explained": round(float(self.map.share), 4), "map": self.map.facts()}
        found["steps_each_way"], found["edit_scale"] = self.n_steps, self.scale
        found["identity"] = self._identity(a)
        yield self._progress()
        for name, others in (("swap", b), ("swap_control", s)):
            edited = yield from self._edited(a, self.all.expression[others])
            if edited is None:
                return None
            found[name] = self._swap(edited, a, b)
            yield self._progress()
        programs = yield from self._programs()
        if programs is None:
            return None
        found["programs"] = programs
        dose = yield from self._dose(a[:DOSE_SPOTS], b[:DOSE_SPOTS])
        if dose is None:
            return None
        found["dose"] = dose
        found |= self._locality()
        return None if self.cancel.cancelled else found

    def _progress(self, part: float = 0.0) -> Progress:
        if part == 0.0:
            self.done += 1
        return Progress(min(self.done, self.total), self.total, 0, 1, 1, self.watch.seconds, part=part)

    # --- editing

    def _edited(
        self, rows: NDArray[np.int64], expression: NDArray[np.float32]
    ) -> Generator[Progress, None, NDArray[np.uint8] | None]:
        """Return the crops of some spots edited to other expression, (n, p, p, 3); None where cancelled."""
        spots = self.section.spots
        images = []
        for start in range(0, len(rows), self.batch):
            own = rows[start : start + self.batch]
            before, after = self.all.expression[own], expression[start : start + self.batch]
            morphology = self.all.morphology[own]
            crops = self.all.crops[own]
            depth = spots.relative_depth
            keys = tuple(content_key(c, spots.counts[r], depth[r : r + 1]) for c, r in zip(crops, own, strict=True))
            patches = tuple(
                Patch(k, str(spots.ids[r]), int(r), (0, 0, 0, 0), (0, 0, 0, 0), 0) for k, r in enumerate(own)
            )
            edited = Edited(morphology + self.map.delta(before, after), after, keys, self.scale)
            batch = PatchBatch(
                patches,
                crops,
                morphology,
                before,
                (0,) * len(own),
                self.model.card.guidance,
                self.n_steps,
                edited=edited,
            )
            for step in self.model.denoise(batch):
                if self.cancel.cancelled:
                    return None
                if step.images is not None:
                    images.append(step.images)
            yield self._progress(min((start + len(own)) / len(rows), 0.99))
        return np.concatenate(images)

    # --- identity

    def _identity(self, rows: NDArray[np.int64]) -> dict[str, float]:
        """Measure what no edit does: the change of latents and pixels, and how far the autoencoder alone is from the slide."""
        crops = self.all.crops[rows]
        unchanged = next(iter_result(self._edited(rows[:MIN_PAIRS], self.all.expression[rows[:MIN_PAIRS]])))
        decoded = reconstruct(self.model, crops)
        likeness = float(np.mean([ms_ssim(real, other) for real, other in zip(crops, decoded, strict=True)]))
        grey = float(np.abs(unchanged.astype(int) - crops[:MIN_PAIRS]).max())
        return {"latents": 0.0 if grey == 0 else float("nan"), "pixels": grey, "ms_ssim": round(likeness, 4)}

    # --- swaps

    def _swap(self, images: NDArray[np.uint8], a: NDArray[np.int64], b: NDArray[np.int64]) -> dict[str, Any]:
        """Regress the change of a's image on b's real value, a's real value held fixed; see docs/guides/edited_pictures.md."""
        now, real = measure(images), self.all.real
        found = {}
        for name in MEASURES:
            values = getattr(real, name).astype(np.float64)
            change = getattr(now, name) - values[a]
            design = np.stack([values[b], values[a], np.ones(len(a))], axis=1)
            draws = [self._coefficient(design[k], change[k]) for k in self._draws(len(a))]
            interval = Interval.of(self._coefficient(design, change), draws, len(a))
            found[name] = {
                "coefficient": round(interval.value, 4),
                "low": round(interval.low, 4),
                "high": round(interval.high, 4),
                "ceiling": round(self._ceiling(values), 4),
            }
        return found

    def _draws(self, n: int) -> list[NDArray[np.int64]]:
        rng = np.random.default_rng(self.seed)
        return [rng.integers(0, n, n) for _ in range(DRAWS)]

    @staticmethod
    def _coefficient(design: NDArray[np.float64], change: NDArray[np.float64]) -> float:
        return float(np.linalg.lstsq(design, change, rcond=None)[0][0])

    def _ceiling(self, values: NDArray[np.float64]) -> float:
        """R2 of ridge regression of a measure on the expression encoding, on stripes of the section left out."""
        e = self.all.expression
        x = (e.mean(axis=1) if e.ndim == 3 else e).astype(np.float64)
        x = (x - x.mean(axis=0)) / np.maximum(x.std(axis=0), 1e-9)
        folds = blocks_of(self.section.spots.yx)
        predicted = np.zeros(len(values))
        for fold in np.unique(folds):
            out = folds == fold
            penalty = _best_penalty(x[~out], values[~out], folds[~out])
            predicted[out] = _ridge(x[~out], values[~out], x[out], [penalty])[0]
        return float(1 - ((values - predicted) ** 2).sum() / ((values - values.mean()) ** 2).sum())

    # --- programs

    def _programs(self) -> Generator[Progress, None, dict[str, Any] | None]:
        """Compare the effect of each program, two standard deviations up, with the trend of real tissue."""
        spots = self.section.spots
        levels = np.log1p(1e4 * spots.counts.toarray() / np.maximum(np.asarray(spots.counts.sum(axis=1)), 1))
        real = self.all.real.haematoxylin
        rows = np.argsort(real)[np.linspace(0, len(real) - 1, min(PROGRAM_SPOTS, len(real))).round().astype(int)]
        trends, effects, names = [], [], []
        for name, genes in known_programs({}).items():
            columns = np.flatnonzero(np.isin(spots.genes.symbols, list(genes)))
            if len(columns) < 3:
                continue
            score = levels[:, columns].mean(axis=1)
            delta = float(2 * score.std())
            edit = AddEdit(programs=(name,), log_units=min(delta, 10.0))
            changed = yield from self._edited(rows, self._expression_after((edit,), rows))
            if changed is None:
                return None
            trends.append(float(np.polyfit(score, real, 1)[0]) * delta)
            effects.append(float((measure(changed).haematoxylin - real[rows]).mean()))
            names.append(name)
        yield self._progress()
        if len(names) < 3:
            return {"correlation": None, "slope": None, "low": None, "high": None, "programs": {}}
        real_trend, effect = np.array(trends), np.array(effects)
        draws = [_correlation(real_trend[k], effect[k]) for k in self._draws(len(names))]
        interval = Interval.of(_correlation(real_trend, effect), draws, len(names))
        per = {
            name: {"real_trend": round(t, 4), "effect": round(e, 4)}
            for name, t, e in zip(names, trends, effects, strict=True)
        }
        slope = float(np.polyfit(real_trend, effect, 1)[0])
        return {
            "correlation": round(interval.value, 4),
            "slope": round(slope, 4),
            "low": round(interval.low, 4),
            "high": round(interval.high, 4),
            "programs": per,
        }

    def _expression_after(self, edits: Sequence[Any], rows: NDArray[np.int64]) -> NDArray[np.float32]:
        counts, _ = conditioned_counts(rows, self.section, Request(edits=tuple(edits)), self.model.profiles)
        spots = self.section.spots
        names = tuple(spots.ids[rows].tolist())
        encoded: NDArray[np.float32] = self.model.encode_expression(
            counts, spots.genes, names, spots.relative_depth[rows]
        )
        return encoded

    # --- doses

    def _dose(self, a: NDArray[np.int64], b: NDArray[np.int64]) -> Generator[Progress, None, dict[str, Any] | None]:
        """Move spots step by step to the expression of another: the share at which haematoxylin moves in order."""
        start, goal = self.all.expression[a], self.all.expression[b]
        values = [self.all.real.haematoxylin[a]]
        for dose in DOSES:
            images = yield from self._edited(a, (start + np.float32(dose) * (goal - start)).astype(np.float32))
            if images is None:
                return None
            values.append(measure(images).haematoxylin)
        yield self._progress()
        steps = np.diff(np.stack(values, axis=1), axis=1)
        ordered = (steps >= -1e-3).all(axis=1) | (steps <= 1e-3).all(axis=1)
        return {"monotone": round(float(ordered.mean()), 4), "spots": len(a), "doses": list(DOSES)}

    # --- where

    def _locality(self) -> dict[str, Any]:
        """Paint a disc in continuous mode: what changes in it, around it, and where no window reaches; and new nuclei outside."""
        section, card = self.section, self.model.card
        spots, mpp = section.spots, section.calibration.mpp
        assert mpp is not None and section.image is not None
        middle = spots.yx[np.linalg.norm(spots.yx - np.median(spots.yx, axis=0), axis=1).argmin()]
        away = np.linalg.norm(spots.yx - middle, axis=1) * mpp
        weights = np.clip((RADIUS_UM + FADE_UM - away) / FADE_UM, 0, 1)
        painted = {str(spots.ids[k]): float(weights[k]) for k in np.flatnonzero(weights > 0)}
        order = np.argsort(self.all.real.haematoxylin)
        far = (
            order[: max(len(order) // 10, 1)] if self.all.real.haematoxylin.mean() > 0.5 else order[-len(order) // 10 :]
        )
        edit = TowardsEdit(target_spots=tuple(spots.ids[far].tolist()), spots=painted)
        reach = MARGIN_UM / mpp
        y, x = (float(v) for v in middle)
        ring = ((y - reach, x - reach), (y - reach, x + reach), (y + reach, x + reach), (y + reach, x - reach))
        asked = Request(
            region=Polygons(rings=(ring,)),
            edits=(edit,),
            mode="continuous",
            steps=self.n_steps,
            edit_scale=self.scale,
            counterfactual="on",
        )
        result = synthesize(section, asked, self.model, batch=self.batch, cancel=self.cancel)
        if not result.complete:
            return {}
        frame, side = result.plan.frame, max(result.plan.frame.shape)
        top, left = frame.origin
        size = side * frame.pixel_size
        real = read_patches(section.image, [(top, left, top + size, left + size)], side)[0]
        real = real[: frame.shape[0], : frame.shape[1]]
        shown = result.rgba[..., 3] > 0
        change = np.abs(result.rgba[..., :3].astype(int) - real).max(axis=-1)
        yy, xx = (
            (np.arange(n) + 0.5) * frame.pixel_size + o - m
            for n, o, m in zip(frame.shape, frame.origin, middle, strict=True)
        )
        radius = np.hypot(yy[:, None], xx[None]) * mpp
        reached = (
            RADIUS_UM + FADE_UM + 200.0 + 2 * card.patch_um
        )  # a painted spot's neighbours, and windows that overlap
        inside, around = shown & (radius < RADIUS_UM), shown & (radius > RADIUS_UM + FADE_UM)
        beyond = shown & (radius > reached)
        ratio = float(change[inside].mean() / max(change[around].mean(), 1e-6)) if around.any() else None
        invented = _invented(real, result.rgba[..., :3], card.patch_mpp, inside, around)
        return {
            "locality": {
                "outside_grey_levels": int(change[beyond].max(initial=0)),
                "ratio": None if ratio is None else round(ratio, 3),
                "inside_grey_levels": round(float(change[inside].mean()), 3),
                "around_grey_levels": round(float(change[around].mean()), 3) if around.any() else None,
            },
            "invention": invented,
        }


def _invented(
    real: NDArray[np.uint8],
    edited: NDArray[np.uint8],
    mpp: float,
    inside: NDArray[np.bool_],
    around: NDArray[np.bool_],
) -> dict[str, Any]:
    """Nuclei per square millimetre of the edited picture that the slide has not within 5 um, inside the edit and around it."""
    from scipy.spatial import cKDTree

    old, new = nuclei_places(real), nuclei_places(edited)
    if len(old) and len(new):
        apart, _ = cKDTree(old).query(new)
        new = new[apart * mpp > 5.0]
    found = {}
    for name, mask in (("inside", inside), ("around", around)):
        area = mask.sum() * mpp**2 / 1e6
        count = int(mask[tuple(new.T)].sum()) if len(new) else 0
        found[f"new_nuclei_per_mm2_{name}"] = round(count / area, 1) if area > 0 else None
    return found


def iter_result(work: Generator[Progress, None, NDArray[np.uint8] | None]) -> Generator[NDArray[np.uint8], None, None]:
    """Drive an edit to its end and yield what it returns."""
    while True:
        try:
            next(work)
        except StopIteration as ended:
            assert ended.value is not None
            yield ended.value
            return


def ms_ssim(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Return the multi-scale structural similarity of two (h, w, 3) images, on the mean of their channels.

    Wang, Simoncelli & Bovik 2003, "Multiscale structural similarity for image quality assessment", Asilomar 37:1398-1402; five scales with
    the published weights, Gaussian windows of 1.5 pixels.
    """
    powers = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
    x, y = (image.astype(np.float64).mean(axis=-1) for image in (a, b))
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    value = 1.0
    for scale, power in enumerate(powers):
        mx, my = gaussian_filter(x, 1.5), gaussian_filter(y, 1.5)
        vx = gaussian_filter(x * x, 1.5) - mx**2
        vy = gaussian_filter(y * y, 1.5) - my**2
        vxy = gaussian_filter(x * y, 1.5) - mx * my
        contrast = float(((2 * vxy + c2) / (vx + vy + c2)).mean())
        if scale == len(powers) - 1:
            luminance = float(((2 * mx * my + c1) / (mx**2 + my**2 + c1) * (2 * vxy + c2) / (vx + vy + c2)).mean())
            value *= max(luminance, 0.0) ** power
        else:
            value *= max(contrast, 0.0) ** power
            height, width = (n // 2 * 2 for n in x.shape)
            x, y = (z[:height, :width].reshape(height // 2, 2, width // 2, 2).mean(axis=(1, 3)) for z in (x, y))
    return float(value)


def _correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    return float(np.corrcoef(a, b)[0, 1]) if a.std() > 0 and b.std() > 0 else 0.0


def _ridge(
    x: NDArray[np.float64], y: NDArray[np.float64], to: NDArray[np.float64], penalties: Sequence[float]
) -> list[NDArray[np.float64]]:
    centre, target = x.mean(axis=0), y.mean()
    weights = ridge_weights(x - centre, (y - target)[:, None], penalties)
    return [((to - centre) @ w)[:, 0] + target for w in weights]


def _best_penalty(x: NDArray[np.float64], y: NDArray[np.float64], folds: NDArray[np.int64]) -> float:
    errors = np.zeros(len(PENALTIES))
    for fold in np.unique(folds):
        out = folds == fold
        found = _ridge(x[~out], y[~out], x[out], list(PENALTIES))
        errors += [float(((y[out] - p) ** 2).sum()) for p in found]
    return float(PENALTIES[errors.argmin()])


__all__ = ["CounterfactualCheck", "ms_ssim"]
