"""Checks of edits of real tissue: identity, swaps of expression, programs, doses, and locality of the change."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from copy import copy
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal, TypedDict, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..edits import KnockOut, Towards
from ..encoders.morphology_map import fit_morphology_trend
from ..errors import RequestError
from ..expression.covariation import covariation_of
from ..expression.programs import known_programs
from ..expression.regression import compact_folds, spread_of
from ..intent import Request
from ..progress import Batches, CancelToken, Progress, Stopwatch, finish, mapped
from ..regions import Polygons
from ..storage.fingerprint import of_json
from ..synthesis.conditions import spot_rows
from ..synthesis.continuous import changed_windows, reached_windows
from ..synthesis.counterfactual import Follows, content_key, follow_steps, follows_of, map_key, map_rows, section_map
from ..synthesis.models import Edited, PatchBatch, known_by_spot
from ..synthesis.plan import counterfactual_fault, plan, resolve_sampling
from ..synthesis.session import synthesize
from ..synthesis.windows import rule_of
from ..types import Patch, Plan, Section
from .cases import MIN_SPOTS, EvaluationRequest
from .effects import (
    Agreement,
    EditLocality,
    Monotony,
    NewNuclei,
    PaintedCrop,
    SmoothedLevels,
    agreement,
    ceiling,
    crop_given,
    feature_locality,
    locality,
    monotony,
    ms_ssim,
    new_nuclei,
    painted_crop,
    ridge_change,
    slide_on,
    swap_coefficient,
)
from .measures import PatchStatistics, SpotSet, reconstruct
from .spaces import DEFAULT, FeatureSpace, open_spaces
from .work import Stack, StackFolder

MEASURES = ("haematoxylin", "nuclei")
CHECKS = ("identity", "swaps", "programs", "dose", "where")
PROGRAM_SPOTS, MIN_GENES = 24, 3
"""Maximum of spots to raise a program in, and minimum of its genes that the section needs."""
FOLLOW: tuple[Literal["section", "none"], ...] = ("section", "none")
"""Values of ``follow`` to raise programs with: with the genes that covary, and alone."""
DOSE_SPOTS = 16
DOSES = (0.25, 0.5, 0.75, 1.0)
RADIUS_UM, FADE_UM = 150.0, 50.0
"""Radii of the disc painted to check locality: full weight within the first, fading over the second."""
REACH_UM = 900.0
"""Half side of the picture of the disc: windows of 176 um that read spots 200 um apart reach about 800 um."""

T = TypeVar("T")
Work = Generator[Progress, None, T]
BeforeAfter = dict[str, tuple[PatchStatistics, PatchStatistics]]
"""Measures before and after an edit, by ``swap`` and ``swap_control``."""

# Figures hold JSON types: None for what is not known.


class Identity(TypedDict):
    """Change of latents and pixels of ``n`` unedited crops, and their likeness without the step that restores detail."""

    latents: float | None
    latent_size: float | None
    pixels: int
    ms_ssim: float | None
    autoencoder_ms_ssim: float | None
    n: int


class Swap(TypedDict):
    """`swap_coefficient` of one measure, that of ridge regression on the same pairs, and its maximum over many pairs."""

    coefficient: float | None
    low: float | None
    high: float | None
    n: int
    ridge: float | None
    ceiling: float


class Program(TypedDict):
    """Change of haematoxylin by one program: in real tissue, raised with covarying genes, and alone; and how far encodings move."""

    real_trend: float
    with_others: float
    with_others_encoding: float
    alone: float
    alone_encoding: float


class Programs(Agreement):
    """Agreement over programs raised with covarying genes, that of their own genes alone, and ``each`` program."""

    alone: Agreement
    spots: int
    each: dict[str, Program]


class Dose(Monotony):
    """Monotony of spots over some doses."""

    doses: list[float]


class NewNucleiFigures(NewNuclei):
    """New nuclei, and the unit of their density."""

    unit: str


class CheckFigures(TypedDict, total=False):
    """Figures of a check; parts that were not requested are missing."""

    section: str
    mode: str
    pairs: int
    seed: int
    steps_each_way: int
    morphology_explained: float
    map: dict[str, Any]
    map_statement: str
    map_from: str
    identity: Identity
    swap: dict[str, Swap]
    swap_control: dict[str, Swap]
    programs: Programs
    dose: Dose
    locality: EditLocality
    invention: NewNucleiFigures


class _Cancelled(Exception):
    """The check was asked to stop."""


@dataclass
class CounterfactualCheck:
    """Check of edits of real tissue on one section.

    Parameters
    ----------
    section, model
        A section that was not trained on, and a loaded checkpoint.
    request
        Gives ``pairs``, ``mode``, ``seed``, ``steps`` and ``draws``.
    folder
        Folder of the edited crops, with which a stopped check continues.
    batch
        Patches computed together; does not change the result in float32.
    cancel
        Asked at every network call.
    checks
        The `CHECKS` to make.
    program_spots
        Maximum number of spots to raise each program in.

    Raises
    ------
    RequestError
        The checkpoint cannot edit real tissue, or the section has too few spots.
    """

    section: Section
    model: Any
    request: EvaluationRequest
    folder: Path
    batch: int
    cancel: CancelToken = field(default_factory=CancelToken)
    checks: tuple[str, ...] = CHECKS
    program_spots: int = PROGRAM_SPOTS
    watch: Stopwatch = field(default_factory=Stopwatch)

    def __post_init__(self) -> None:
        spots, card = self.section.spots, self.model.card
        wanted = Request(steps=self.request.steps, allow_gene_mismatch=self.request.allow_gene_mismatch)
        edit = KnockOut(genes=(str(spots.genes.symbols[0]),))
        if (reason := counterfactual_fault(wanted.model_copy(update={"edits": (edit,)}), card)) is not None:
            raise RequestError([("parts", f"counterfactual: {reason}")])
        self.plan: Plan = plan(self.section, wanted, card)  # refuses what cannot be synthesized from
        if len(spots) < MIN_SPOTS:
            raise RequestError(
                [("section", f"{self.section.name} has {len(spots)} spots, at least {MIN_SPOTS} are needed for swaps")]
            )
        self.sampling = resolve_sampling(wanted, card, counterfactual=True)
        self.steps = self.sampling.steps
        self.pairs = min(self.request.pairs, len(spots))
        rng = np.random.default_rng(self.request.seed)
        self.a, self.b, third = (rng.permutation(len(spots))[: self.pairs] for _ in range(3))
        # a control that would be given the very spot it is compared with takes its neighbour's in the draw
        self.third = np.where(third == self.b, np.roll(third, 1), third)
        genes = {
            name: np.isin(spots.genes.symbols, list(own)) for name, own in known_programs(self.request.programs).items()
        }
        self.programs = {name: np.flatnonzero(own) for name, own in genes.items() if own.sum() >= MIN_GENES}
        self.alone = self.a[: max(MIN_SPOTS, self.batch)]
        crops = {
            "identity": len(self.alone),
            "swaps": 2 * self.pairs,
            "programs": 2 * len(self.programs) * self._raised,
            "dose": len(DOSES) * len(self.a[:DOSE_SPOTS]),
            "where": 1,  # the disc
        }
        self.total, self.done = sum(crops[check] for check in self.checks), 0

    @property
    def _raised(self) -> int:
        """Number of spots that each program is raised in."""
        return min(self.program_spots, self.pairs)

    def run(self) -> Work[CheckFigures | None]:
        """Yield the progress; return the figures, None where it was cancelled."""
        yield self._progress()
        self.all = SpotSet(self.section, np.arange(len(self.section.spots)), self.model)
        for words in chain(self.all.encoding_steps(), follow_steps(self.section, self.model.card, self.model)):
            if self.cancel.cancelled:
                return None
            yield replace(self._progress(), doing=words)
        self.follows = follows_of(self.section, self.model.card, self.model)
        self.stacks = StackFolder(self.folder)
        self.folds = compact_folds(self.section.spots.yx.astype(np.float64))
        known = covariation_of(self.section.spots)
        self.scores = None if known is None else known.scores(np.arange(len(self.section.spots)))
        self.without: dict[frozenset[int], Follows] = {}
        self.key = of_json(
            {
                "section": map_key(self.section, self.model.card, self.model),
                "checkpoint": dict(self.model.provenance),
                "steps": self.steps,
            }
        )
        found: CheckFigures = {
            "section": self.section.name,
            "mode": self.request.mode,
            "pairs": self.pairs,
            "seed": self.request.seed,
            "steps_each_way": self.steps,
            "morphology_explained": round(float(self.follows.map.share), 4),
            "map": self.follows.map.facts(),
            "map_statement": self.follows.map.words,
            "map_from": self._map_from,
        }
        try:
            parts = dict(
                zip(CHECKS, (self._identity, self._swaps, self._programs, self._dose, self._where), strict=True)
            )
            for check in self.checks:
                found.update((yield from parts[check]()))
                self._go_on()
        except _Cancelled:
            return None
        return found

    def _go_on(self) -> None:
        if self.cancel.cancelled:
            raise _Cancelled

    def _progress(self, more: int = 0) -> Progress:
        self.done += more
        return Progress(self.done, self.total, 0, self.steps, self.batch, self.watch.seconds)

    # --- editing

    @property
    def _map_from(self) -> str:
        stored = getattr(self.model, "morphology_map", None)
        if stored is None:
            return "the section"
        return "the checkpoint" if self.follows.map is stored else "the checkpoint, fitted further on the section"

    def _follows_without(self, *rows: int) -> Follows:
        """Return how morphology follows, fitted as for a run, but without some spots and the blocks of spots around them.

        What was fitted on a spot knows its morphology, and would flatter edits towards it.
        """
        left_out = frozenset(self.folds[list(rows)].tolist())
        if left_out not in self.without:
            read = map_rows(self.section, self.model)  # as many as a run reads, not more
            kept = read[~np.isin(self.folds[read], list(left_out))]
            yx, morphology = self.section.spots.yx[kept], self.all.morphology[kept]
            own = section_map(self.model, self.all.expression[kept], morphology, yx)
            trend = None if self.scores is None else fit_morphology_trend(self.scores[kept], morphology)
            self.without[left_out] = Follows(own, trend)
        return self.without[left_out]

    def _edited(
        self,
        rows: NDArray[np.int64],
        expression: NDArray[np.float32],
        given: NDArray[np.int64] | None = None,
        along: NDArray[np.float64] | None = None,
    ) -> Work[NDArray[np.uint8]]:
        """Return crops of spots edited to other expression, (n, p, p, 3), that of the rows ``given`` if it is a spot's.

        ``along`` (n, k) is the change of factors where others follow the edit. Finished ones are kept, however it ends.
        """
        side = self.model.card.patch_px
        pairs = zip(rows.tolist(), (rows if given is None else given).tolist(), strict=True)
        before, morphology = self.all.expression[rows], self.all.morphology[rows]
        parts = []
        for k, pair in enumerate(pairs):
            one = slice(k, k + 1)
            step = None if along is None else along[one]
            parts.append(self._follows_without(*pair).moved(morphology[one], before[one], expression[one], step))
        moved = np.concatenate(parts)
        key = of_json({"all": self.key, "edited": content_key(rows, expression, moved)})[:24]
        kept = self.stacks.load(key, len(rows), side)
        images, made = kept.images.copy(), kept.made.copy()

        # no `Session`: what is given here are encodings, mixed or another spot's, and no request can ask for them
        def work(places: range) -> Iterator[Progress]:
            own = slice(places.start, places.stop)
            if not made[own].all():
                for step in self.model.denoise(self._batch(rows[own], expression[own], moved[own])):
                    self._go_on()
                    if step.images is not None:
                        images[own], made[own] = step.images, True
                    yield self._progress()
            yield self._progress(len(places))

        try:
            yield from Batches(self.batch, "patches").each(range(len(rows)), work)
        finally:
            if made.sum() > kept.made.sum():
                self.stacks.save(key, Stack(images, made))
        return images

    def _batch(
        self, rows: NDArray[np.int64], expression: NDArray[np.float32], moved: NDArray[np.float32]
    ) -> PatchBatch:
        spots = self.section.spots
        before, morphology, crops = self.all.expression[rows], self.all.morphology[rows], self.all.crops[rows]
        keys = tuple(
            content_key(crop, spots.counts[row], spots.relative_depth[row : row + 1])
            for crop, row in zip(crops, rows, strict=True)
        )
        none = (0, 0, 0, 0)
        patches = tuple(Patch(k, str(spots.ids[row]), int(row), none, none, 0) for k, row in enumerate(rows))
        edited = Edited(moved, expression, keys)
        seeds = (0,) * len(rows)
        return PatchBatch(patches, crops, morphology, before, seeds, self.sampling, edited=edited)

    # --- identity

    def _identity(self) -> Work[CheckFigures]:
        """Measure what the empty edit changes: latents, pixels, and pixels without the step that restores the slide's detail."""
        rows = self.alone
        unchanged = yield from self._edited(rows, self.all.expression[rows])
        crops = self.all.crops[rows]
        pixels = int(np.abs(unchanged.astype(int) - crops).max())
        yield self._progress()
        if getattr(self.model, "pipeline", None) is None:  # a stand-in
            latents, size, likeness, own = None, None, None, None
        else:
            encoded = self.all.morphology[rows], self.all.expression[rows]
            latents, size, likeness, own = _round_trip(self.model, crops, *encoded, self.steps)
        identity: Identity = {
            "latents": latents,
            "latent_size": size,
            "pixels": pixels,
            "ms_ssim": likeness,
            "autoencoder_ms_ssim": own,
            "n": len(rows),
        }
        return {"identity": identity}

    # --- swaps

    def _swaps(self) -> Work[CheckFigures]:
        """Give spots the expression of others. The control gives a third spot's, and is compared with the second all the same."""
        real, yx = self.all.real, self.section.spots.yx.astype(np.float64)
        measured = yield from (self._painted_regions() if self.request.mode == "continuous" else self._single_patches())
        found: dict[str, dict[str, Swap]] = {part: {} for part in measured}
        for name in MEASURES:
            values = getattr(real, name)
            most = round(ceiling(self.all.expression, values, yx), 4)
            for part, (before, after) in measured.items():
                shown = getattr(after, name) - getattr(before, name)
                told = ridge_change(self.all.expression, values, yx, self.a, self._given[part])
                facts, ridge = (
                    swap_coefficient(
                        change, values[self.a], values[self.b], self.request.draws, self.request.seed
                    ).facts
                    for change in (shown, told)
                )
                found[part][name] = {
                    "coefficient": facts["value"],
                    "low": facts["low"],
                    "high": facts["high"],
                    "n": facts["n"],
                    "ridge": ridge["value"],
                    "ceiling": most,
                }
        return {"swap": found["swap"], "swap_control": found["swap_control"]}

    @property
    def _given(self) -> dict[str, NDArray[np.int64]]:
        """Rows whose expression the spots are given: of the other of each pair, and of a third."""
        return {"swap": self.b, "swap_control": self.third}

    def _single_patches(self) -> Work[BeforeAfter]:
        before = self.all.measured(self.all.crops[self.a])
        found: BeforeAfter = {}
        for part, given in self._given.items():
            edited = yield from self._edited(self.a, self.all.expression[given], given)
            found[part] = before, self.all.measured(edited)
        return found

    def _painted_regions(self) -> Work[BeforeAfter]:
        """Measure crops painted in continuous mode; swap and control of a spot run in turn and share its noise."""
        crops: dict[str, list[PaintedCrop]] = {part: [] for part in self._given}
        for number, row in enumerate(self.a.tolist()):
            for part, given in self._given.items():
                crops[part].append((yield from self._painted_crop(row, int(given[number]))))
        return {
            part: (
                self.all.measured(np.stack([crop.before for crop in own])),
                self.all.measured(np.stack([crop.after for crop in own])),
            )
            for part, own in crops.items()
        }

    def _painted_crop(self, row: int, given: int) -> Work[PaintedCrop]:
        """Return the crop of a spot before and after an edit, cached on disk."""
        card, mismatch = self.model.card, self.request.allow_gene_mismatch
        made = crop_given(self.section, card, row, given, self.steps, allow_gene_mismatch=mismatch)
        rule = rule_of(made, self.model.provenance)
        follows = self._follows_without(row, given)
        moved = content_key(follows.map.weights, follows.map.components)
        key = of_json({"all": self.key, "rule": rule, "painted": [row, given], "map": moved})[:24]
        kept = self.stacks.load(key, 2, card.patch_px)
        if kept.made.all():
            yield self._progress(1)
            return PaintedCrop(*kept.images)
        model = copy(self.model)
        model.fitted = {map_key(self.section, card, model): follows}
        work = painted_crop(made, self.section, model, row, batch=self.batch, cancel=self.cancel)
        crop = yield from mapped(work, lambda _: self._progress())
        if crop is None:
            raise _Cancelled
        self.stacks.save(key, Stack(np.stack([crop.before, crop.after]), np.ones(2, dtype=bool)))
        yield self._progress(1)
        return crop

    # --- programs

    def _programs(self) -> Work[CheckFigures]:
        """Raise programs by two standard deviations, alone and with covarying genes, and compare with the trend of real tissue."""
        spots, real = self.section.spots, self.all.real.haematoxylin
        levels = SmoothedLevels(spots, self.section.mpp)
        order = np.argsort(real)
        # evenly over the range of haematoxylin, without the palest tenth, which is mostly empty
        rows = order[np.linspace(round(0.11 * len(real)), len(real) - 1, self._raised).round().astype(int)]
        each: dict[str, Program] = {}
        for name, columns in self.programs.items():
            score, genes = levels.score(columns), tuple(spots.genes.symbols[columns].tolist())
            by = 2 * float(score.std())
            if by == 0:  # none of its genes varies here
                yield self._progress(2 * self._raised)
                continue
            effects, moved = [], []
            for follow in FOLLOW:
                counts, depth, along = levels.raised(rows, genes, by, follow)
                encoded = self.model.encode_expression(counts, spots.genes, tuple(spots.ids[rows].tolist()), depth)
                moved.append(round(self._spreads(rows, encoded), 4))
                images = yield from self._edited(rows, encoded, along=along)
                effects.append(round(float((self.all.measured(images).haematoxylin - real[rows]).mean()), 5))
            each[name] = {
                "real_trend": round(float(np.polyfit(score, real, 1)[0]) * by, 5),
                "with_others": effects[0],
                "with_others_encoding": moved[0],
                "alone": effects[1],
                "alone_encoding": moved[1],
            }
        trend, both, alone = (
            np.array([one[key] for one in each.values()]) for key in ("real_trend", "with_others", "alone")
        )
        with_others, by_itself = (
            agreement(trend, effect, self.request.draws, self.request.seed) for effect in (both, alone)
        )
        return {"programs": {**with_others, "alone": by_itself, "spots": self._raised, "each": each}}

    def _spreads(self, rows: NDArray[np.int64], encoded: NDArray[np.float32]) -> float:
        """Return how far an edit moves the encodings: root mean square in units of their spread over the section."""
        own = self.all.expression
        moved = (encoded - own[rows]) / spread_of(own)
        return float(np.sqrt((moved.astype(np.float64) ** 2).mean()))

    # --- doses

    def _dose(self) -> Work[CheckFigures]:
        """Move spots step by step to the expression of another, and test whether haematoxylin is monotonic."""
        a, b = self.a[:DOSE_SPOTS], self.b[:DOSE_SPOTS]
        start, goal = self.all.expression[a], self.all.expression[b]
        values = [self.all.real.haematoxylin[a]]
        for dose in DOSES:
            images = yield from self._edited(a, (start + np.float32(dose) * (goal - start)).astype(np.float32), b)
            values.append(self.all.measured(images).haematoxylin)
        return {"dose": {**monotony(np.stack(values, axis=1)), "doses": list(DOSES)}}

    # --- where

    def _where(self) -> Work[CheckFigures]:
        """Paint a disc in continuous mode; measure the change and new nuclei inside, around and beyond all windows."""
        yield self._progress()
        asked, middle = self._painted()
        result = synthesize(self.section, asked, self.model, batch=self.batch, cancel=self.cancel)
        if not result.complete:
            raise _Cancelled
        yield self._progress(1)
        made = result.plan
        size, pixel, corner = made.frame.shape, made.frame.pixel_size, made.frame.origin
        real = slide_on(made, self.section)
        rgba = np.asarray(result.rgba)
        yy, xx = ((np.arange(n) + 0.5) * pixel + o - m for n, o, m in zip(size, corner, middle, strict=True))
        um = np.hypot(yy[:, None], xx[None]) * self.section.mpp
        shown, reach = rgba[..., 3] > 0, _reach(made, self.section, asked)
        inside = shown & (um < RADIUS_UM)
        around = shown & reach & (um > RADIUS_UM + FADE_UM)
        pictures = np.where(shown[..., None], real, 255), np.where(shown[..., None], rgba[..., :3], 255)
        beyond = shown & ~reach
        y, x = (int((m - o) / pixel) for m, o in zip(middle, corner, strict=True))
        areas = {"around": around, "outside": beyond}
        features = feature_locality(
            *pictures, (y, x), self.model.card.patch_px, areas, self._spaces(), self.all.crops[self.a]
        )
        return {
            "locality": {**locality(*pictures, inside, around, beyond), **features},
            "invention": {
                "unit": "nuclei per mm2 that the slide does not have there; outside_nuclei: their number beyond the edit's reach",
                **new_nuclei(*pictures, self.model.card.patch_mpp, inside, around, beyond),
            },
        }

    def _spaces(self) -> tuple[FeatureSpace, ...]:
        """Open the default feature spaces; embeddings from elsewhere cannot encode edited crops."""
        if known_by_spot(self.model.provenance, "morphology"):
            return open_spaces(("random",), self.model)
        return open_spaces(DEFAULT, self.model)

    def _painted(self) -> tuple[Request, NDArray[np.float64]]:
        """Return a request that paints a disc in the middle of the tissue towards its palest or densest tenth, whichever is farther."""
        spots, mpp = self.section.spots, self.section.mpp
        away = np.linalg.norm(spots.yx - np.median(spots.yx, axis=0), axis=1) * mpp
        middle = spots.yx[away.argmin() if away.max() > REACH_UM else away.argmax()]  # of a small section, its rim
        distance = np.linalg.norm(spots.yx - middle, axis=1) * mpp
        weights = np.clip((RADIUS_UM + FADE_UM - distance) / FADE_UM, 0, 1)
        painted = {str(spots.ids[k]): float(weights[k]) for k in np.flatnonzero(weights > 0)}
        real = self.all.real.haematoxylin
        order, tenth = np.argsort(real), max(len(real) // 10, 1)
        here = real[weights > 0].mean()
        ends = order[:tenth], order[-tenth:]
        far = max(ends, key=lambda rows: abs(real[rows].mean() - here))
        edit = Towards(target_spots=tuple(spots.ids[far].tolist()), spots=painted)
        height, width = (n * self.section.slide.pixel_size for n in self.section.slide.shape)
        low = np.maximum(middle - REACH_UM / mpp, 0)
        high = np.minimum(middle + REACH_UM / mpp, (height, width))
        (y0, x0), (y1, x1) = low.tolist(), high.tolist()
        ring = ((y0, x0), (y0, x1), (y1, x1), (y1, x0))
        request = Request(
            region=Polygons(rings=(ring,)),
            edits=(edit,),
            mode="continuous",
            steps=self.steps,
            counterfactual="on",
            allow_gene_mismatch=self.request.allow_gene_mismatch,
        )
        return request, middle


def _reach(made: Plan, section: Section, asked: Request) -> NDArray[np.bool_]:
    """Return the pixels of a canvas within windows that an edit may change, (h, w) bool."""
    windows, rows = made.windows, spot_rows(made)
    assert windows is not None
    touched = np.isin(section.spots.ids[rows], list(asked.edits[0].spots or ()))
    reached = reached_windows(windows, changed_windows(windows, rows, touched))
    found = np.zeros(made.frame.shape, dtype=bool)
    for y, x in windows.corners[reached] + np.array(windows.origin):
        found[max(y, 0) : max(y + windows.side, 0), max(x, 0) : max(x + windows.side, 0)] = True
    return found


def _round_trip(
    model: Any, crops: NDArray[np.uint8], morphology: NDArray[np.float32], expression: NDArray[np.float32], steps: int
) -> tuple[float, float, float, float]:
    """Invert crops to noise and sample back under the same conditions.

    Returns the mean change of the latents, their mean magnitude, and the likeness to the crops of the result and of the autoencoder's
    reconstruction.
    """
    import torch

    from ..editing import conditions_of
    from ..model.autoencoder import decode_latents, encode_latents
    from ..model.counterfactual import abduct, predict

    pipeline = model.pipeline
    with torch.inference_mode():
        latents = encode_latents(pipeline.vae, crops).float().cpu()
        conditions = conditions_of(morphology, expression)
        path = finish(abduct(pipeline.transformer, pipeline.scheduler, latents, conditions, steps=steps))
        # the noise is given, so that every crop is computed although nothing was edited
        change = finish(predict(pipeline.transformer, path, conditions, noise=path.noise))
        back = decode_latents(pipeline.vae, path.latents + change)
    own = reconstruct(model, crops)
    likeness = (np.mean([ms_ssim(x, y) for x, y in zip(crops, images, strict=True)]) for images in (back, own))
    whole, autoencoder = (round(float(value), 4) for value in likeness)
    return round(float(change.abs().mean()), 6), round(float(latents.abs().mean()), 4), whole, autoencoder
