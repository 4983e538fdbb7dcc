"""Figures with intervals of what was measured, and claims: whether a true condition beats its controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..encoders.regression import centred
from ..text import counted
from .measures import MEASURES, STATISTICS, CaseValues
from .reading import FIRST_TOP, ExpressionReader, fidelity, relative, top_n_curve
from .spaces import Frame, frechet_distance, kernel_distance, kernel_distance_draws
from .statistics import Interval, IntervalFacts, correlation_draws, mean_draws, spot_weights

FRECHET_DRAWS = 200
MAX_COMPONENTS = 32
HALVINGS = 20
CLAIMED_STATISTICS = ("haematoxylin", "eosin", "nuclei", "blank")

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Claim:
    """Whether a true condition beats a control on one measure.

    Attributes
    ----------
    measure
        Name of the measure.
    true, control
        Keys of the cases.
    difference
        True minus control, its interval from the same bootstrap samples of spots.
    fidelity
        Whether it is about condition fidelity rather than about stain or nuclei.
    """

    measure: str
    true: str
    control: str
    difference: Interval
    fidelity: bool

    @property
    def holds(self) -> bool:
        """Whether the whole interval lies above 0."""
        return bool(self.difference.low > 0)

    @property
    def reversed(self) -> bool:
        """Whether the whole interval lies below 0: the control is better."""
        return bool(self.difference.high < 0)

    @property
    def sentence(self) -> str:
        """The claim as a sentence: beats, or does not."""
        d = self.difference
        verb = "beats" if self.holds else "does not beat (is worse than)" if self.reversed else "does not beat"
        interval = f", 95 % interval {d.low:.3f} to {d.high:.3f}" if d.n > 1 else ""
        n = counted(d.n, "spot")
        return f"{self.measure}: {self.true} {verb} {self.control} (difference {d.value:.3f}{interval}, {n})"

    @property
    def facts(self) -> dict[str, Any]:
        """JSON types alone."""
        names = {"measure": self.measure, "true": self.true, "control": self.control}
        verdict = "beats" if self.holds else "does not"
        return names | {"difference": self.difference.facts, "verdict": verdict, "fidelity": self.fidelity}


@dataclass(frozen=True)
class Evidence:
    """What was measured of one set of n spots.

    Attributes
    ----------
    title
        What was evaluated.
    groups, ids
        (n,) section of each spot, and spot ids.
    real, beside, cases
        The real patches, other real patches that give a floor, and the cases.
    compared
        Pairs of (true condition, control) to be compared, by key; those that were not run are skipped.
    edits
        Pairs of (edited, baseline), by key; likewise.
    reader
        What reads expression off a patch; None where fidelity is not asked for.
    intended
        (n, g) change of expression that the edits make, for the reader's genes.
    notes
        Sentences that belong to it.
    """

    title: str
    groups: NDArray[np.int64]
    ids: tuple[str, ...]
    real: CaseValues
    beside: tuple[CaseValues, ...]
    cases: tuple[CaseValues, ...]
    compared: Sequence[tuple[str, str]]
    edits: Sequence[tuple[str, str]] = ()
    reader: ExpressionReader | None = None
    intended: Array | None = None
    notes: tuple[str, ...] = ()

    @property
    def others(self) -> tuple[CaseValues, ...]:
        """Everything that is compared with the real patches."""
        return *self.beside, *self.cases

    def pairs(self, wanted: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
        """Return the pairs of which both cases were run."""
        run = {case.key for case in self.cases}
        return [pair for pair in wanted if run.issuperset(pair)]


@dataclass(frozen=True)
class CaseFidelity:
    """Expression read off the patches of one case; ``curve`` is `top_n_curve`, ``share_of_ceiling`` None for real patches."""

    gene_pearson: Interval
    area_under_top_n: Interval
    per_seed_gene_pearson: list[float]
    share_of_ceiling: Interval | None
    curve: list[float]


@dataclass(frozen=True)
class FidelityFigures:
    """Condition fidelity of all cases; ``genes`` is their number, the most variable first."""

    predictor: str
    space: str
    genes: int
    first_genes: list[str]
    cases: dict[str, CaseFidelity]

    @property
    def first_n(self) -> int:
        """Genes of the first point of the curves."""
        return min(FIRST_TOP, self.genes)

    @property
    def above_ceiling(self) -> list[str]:
        """Synthetic cases of which more can be read than of the real patches."""
        shares = {key: one.share_of_ceiling for key, one in self.cases.items() if not key.startswith("real")}
        return [key for key, share in shares.items() if share is not None and share.value > 1]


class DistanceFacts(IntervalFacts):
    """JSON of a `Distance`."""

    per_seed: list[float]


@dataclass(frozen=True)
class Distance(Interval):
    """A distance, the mean over seeds, and that of each seed."""

    per_seed: tuple[float, ...] = ()

    @property
    def facts(self) -> DistanceFacts:
        """JSON types alone."""
        return {**super().facts, "per_seed": _rounded(self.per_seed)}


@dataclass(frozen=True)
class Distances:
    """Frechet and kernel distance of a set of patches to the real ones."""

    frechet: Interval
    kid: Interval


@dataclass(frozen=True)
class SpaceFigures:
    """Distances in one feature space, of n patches a set; floors are those of real patches."""

    n: int
    features: int
    components: int
    cases: dict[str, Distances]
    floors: dict[str, Distances]


@dataclass(frozen=True)
class PairedFigures:
    """Likeness to the real patch of the spot: the mean and the best of ``k`` seeds."""

    mean_of_k: Interval
    best_of_k: Interval
    k: int


@dataclass(frozen=True)
class Figures:
    """The figures of one set of spots, and the claims that follow.

    ``statistics`` are by case, key of `STATISTICS`, and ``r``, ``mean`` or ``mean_minus_real``; ``distribution`` by feature space;
    ``paired`` by case and key of a measure; ``edits`` by pair of cases and what changes.
    """

    evidence: Evidence
    claims: tuple[Claim, ...]
    fidelity: FidelityFigures | None
    statistics: dict[str, dict[str, dict[str, Interval]]]
    distribution: dict[str, SpaceFigures]
    paired: dict[str, dict[str, PairedFigures]]
    edits: dict[str, dict[str, Interval]]

    @property
    def n(self) -> int:
        """Number of spots."""
        return len(self.evidence.groups)

    @property
    def seeds(self) -> int:
        """Seeds of each case."""
        return max(len(case.per_seed) for case in self.evidence.cases)

    @property
    def descriptions(self) -> dict[str, str]:
        """What each case is."""
        return {case.key: case.description for case in (*self.evidence.cases, *self.evidence.beside)}

    @cached_property
    def facts(self) -> dict[str, Any]:
        """JSON types alone: what ``report.json`` holds of this set of spots."""
        edits: dict[str, Any] = to_json(self.edits)
        for changes in edits.values():
            for name in STATISTICS:
                changes[name]["unit"] = STATISTICS[name]
        return {
            "title": self.evidence.title,
            "spots": self.n,
            "seeds": self.seeds,
            "cases": self.descriptions,
            "fidelity": to_json(self.fidelity),
            "statistics": to_json(self.statistics),
            "distribution": to_json(self.distribution),
            "paired": to_json(self.paired),
            "edits": edits,
            "claims": [claim.facts for claim in self.claims],
            "notes": list(self.evidence.notes),
        }


def to_json(value: Any) -> Any:
    """Turn figures into JSON types: dataclasses into objects, intervals into their facts."""
    if isinstance(value, Interval):
        return value.facts
    if is_dataclass(value):
        return {one.name: to_json(getattr(value, one.name)) for one in fields(value)}
    if isinstance(value, Mapping):
        return {key: to_json(one) for key, one in value.items()}
    return value


def figures_of(evidence: Evidence, draws: int) -> Figures:
    """Compute every figure of a set of spots, with intervals from ``draws`` bootstrap samples that all figures share."""
    weights = spot_weights(evidence.groups, draws)
    fidelity_figures, claims = _fidelity(evidence, weights)
    statistics, more = _statistics(evidence, weights)
    return Figures(
        evidence,
        (*claims, *more),
        fidelity_figures,
        statistics,
        {name: _distribution(evidence, name, weights) for name in evidence.real.per_seed[0].features},
        {case.key: _paired(case, weights) for case in evidence.others},
        {
            f"{edited} - {base}": _edit(evidence, edited, base, weights)
            for edited, base in evidence.pairs(evidence.edits)
        },
    )


def _fidelity(evidence: Evidence, weights: Array) -> tuple[FidelityFigures | None, list[Claim]]:
    reader = evidence.reader
    if reader is None:
        return None, []
    read = {
        case.key: [reader.predict(one.features[reader.space]) for one in case.per_seed]
        for case in (evidence.real, *evidence.others)
    }
    found = {key: fidelity(np.mean(each, axis=0), reader.truth, evidence.groups, weights) for key, each in read.items()}
    once = np.ones((1, weights.shape[1]))
    cases = {
        key: CaseFidelity(
            Interval.of(one.pearson, one.pearson_draws, one.n),
            Interval.of(one.area, one.area_draws, one.n),
            _rounded([fidelity(each, reader.truth, evidence.groups, once).pearson for each in read[key]]),
            None if key == "real" else relative(one, found["real"]),
            [round(float(v), 4) for v in top_n_curve(one.genes)],
        )
        for key, one in found.items()
    }
    claims = []
    for true, control in evidence.pairs(evidence.compared):
        a, b = found[true], found[control]
        pearson = Interval.of(a.pearson - b.pearson, a.pearson_draws - b.pearson_draws, a.n)
        area = Interval.of(a.area - b.area, a.area_draws - b.area_draws, a.n)
        claims += [Claim("gene-wise Pearson", true, control, pearson, True)]
        claims += [Claim("area under Pearson against top n", true, control, area, True)]
    genes = reader.genes
    return FidelityFigures(reader.description, reader.space, len(genes), list(genes[:20]), cases), claims


def _statistics(evidence: Evidence, weights: Array) -> tuple[dict[str, dict[str, dict[str, Interval]]], list[Claim]]:
    real, n = evidence.real.statistics, len(evidence.groups)
    target = centred(real, evidence.groups)
    found = {"real": {name: {"mean": mean_draws(real[:, k], weights)} for k, name in enumerate(STATISTICS)}}
    correlations: dict[str, tuple[Array, Array]] = {}
    for case in evidence.others:
        values = case.statistics
        r, draws = correlations[case.key] = correlation_draws(centred(values, evidence.groups), target, weights)
        found[case.key] = {
            name: {
                "r": Interval.of(r[k], draws[:, k], n),
                "mean": mean_draws(values[:, k], weights),
                "mean_minus_real": mean_draws(values[:, k] - real[:, k], weights),
            }
            for k, name in enumerate(STATISTICS)
        }
    claims = []
    for true, control in evidence.pairs(evidence.compared):
        (a, a_draws), (b, b_draws) = correlations[true], correlations[control]
        for k, name in enumerate(STATISTICS):
            if name in CLAIMED_STATISTICS:
                difference = Interval.of(a[k] - b[k], a_draws[:, k] - b_draws[:, k], n)
                claims.append(Claim(f"correlation of {STATISTICS[name]}", true, control, difference, False))
    return found, claims


def _distribution(evidence: Evidence, name: str, weights: Array) -> SpaceFigures:
    """Return distances of all sets of patches to the real ones in one space."""
    real = evidence.real.per_seed[0].features[name]
    n = len(real)
    components = max(2, min(MAX_COMPONENTS, n // 3, real.shape[1]))
    frame = Frame.of(real, components)
    mean, spread = real.mean(axis=0), real.std(axis=0) + 1e-6
    target, scaled = frame.project(real), (real - mean) / spread
    rows = [np.repeat(np.arange(n), drawn.astype(int)) for drawn in weights[:FRECHET_DRAWS]]
    found: dict[bool, dict[str, Distances]] = {True: {}, False: {"real, random halves": _halves(target, scaled)}}
    for case in evidence.others:
        projected = [frame.project(one.features[name]) for one in case.per_seed]
        standard = [(one.features[name] - mean) / spread for one in case.per_seed]
        frechet = tuple(frechet_distance(one, target) for one in projected)
        kernel = tuple(kernel_distance(one, scaled, paired=True) for one in standard)
        drawn = np.mean([[frechet_distance(one[r], target[r]) for r in rows] for one in projected], axis=0)
        kid = np.mean([kernel_distance_draws(one, scaled, weights) for one in standard], axis=0)
        about, of = Interval.about(float(np.mean(frechet)), drawn, n), Interval.of(float(np.mean(kernel)), kid, n)
        found[case.synthetic][case.key] = Distances(
            Distance(about.value, about.low, about.high, n, frechet), Distance(of.value, of.low, of.high, n, kernel)
        )
    return SpaceFigures(n, real.shape[1], components, found[True], found[False])


def _halves(target: Array, scaled: Array) -> Distances:
    """Return distances of one random half of the real patches to the other: the floor, at half the number of patches."""
    rng = np.random.default_rng(0)
    half = len(target) // 2
    frechet, kid = [], []
    for _ in range(HALVINGS):
        order = rng.permutation(len(target))
        first, second = order[:half], order[half : 2 * half]
        frechet.append(frechet_distance(target[first], target[second]))
        kid.append(kernel_distance(scaled[first], scaled[second]))
    return Distances(*(Interval(float(np.mean(values)), np.nan, np.nan, half) for values in (frechet, kid)))


def _paired(case: CaseValues, weights: Array) -> dict[str, PairedFigures]:
    found = {}
    for measure in MEASURES:
        if measure.key in case.per_seed[0].paired:
            values = np.stack([one.paired[measure.key] for one in case.per_seed], axis=1)
            mean, best = (mean_draws(each, weights) for each in (values.mean(axis=1), measure.best(values)))
            found[measure.key] = PairedFigures(mean, best, values.shape[1])
    return found


def _edit(evidence: Evidence, edited: str, base: str, weights: Array) -> dict[str, Interval]:
    """Return what an edit changes, spot by spot and seed by seed, with common noise."""
    after, before = (next(case for case in evidence.cases if case.key == key) for key in (edited, base))
    change = after.statistics - before.statistics
    found = {name: mean_draws(change[:, k], weights) for k, name in enumerate(STATISTICS)}
    pixels = [one.change for one in after.per_seed if one.change is not None]
    if pixels:
        found["pixel_change_grey_levels"] = mean_draws(np.mean(pixels, axis=0), weights)
    reader = evidence.reader
    if reader is not None and evidence.intended is not None:
        read = [
            reader.predict(a.features[reader.space]) - reader.predict(b.features[reader.space])
            for a, b in zip(after.per_seed, before.per_seed, strict=True)
        ]
        found["read_change_along_edit"] = _along(np.mean(read, axis=0), evidence.intended, weights)
    return found


def _along(read: Array, intended: Array, weights: Array) -> Interval:
    """Correlate, over genes, the mean change that is read off the patches with the mean change that the edit makes."""

    def r(share: Array) -> Array:
        a, b = share @ read, share @ intended
        a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
        norm = np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
        return np.asarray((a * b).sum(axis=1) / np.maximum(norm, 1e-12))

    whole = np.full((1, len(read)), 1 / len(read))
    return Interval.of(float(r(whole)[0]), r(weights / weights.sum(axis=1, keepdims=True)), len(read))


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(float(v), 5) for v in values]
