"""Figures with intervals, and claims: whether a true condition beats its controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..expression.regression import centred
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
    """Comparison of a true condition with a control on one measure.

    Attributes
    ----------
    measure
        Name of the measure.
    true, control
        Keys of the cases.
    difference
        True minus control, with the interval of the shared bootstrap samples.
    fidelity
        Whether it is about condition fidelity rather than stain or nuclei.
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
        """The claim in JSON types."""
        names = {"measure": self.measure, "true": self.true, "control": self.control}
        verdict = "beats" if self.holds else "does not"
        return names | {"difference": self.difference.facts, "verdict": verdict, "fidelity": self.fidelity}


@dataclass(frozen=True)
class Measurements:
    """Measurements of one set of n spots.

    Attributes
    ----------
    title
        Name of what was evaluated.
    groups, ids
        (n,) section of each spot, and spot ids.
    real, beside, cases
        Values of the real patches, of other real patches that give a floor, and of the cases.
    compared
        Keys of pairs (true condition, control) to compare; those that were not run are skipped.
    edits
        Keys of pairs (edited, baseline); likewise.
    reader
        Reader of expression off a patch; None where fidelity is not requested.
    intended
        (n, g) change of expression by the edits, for the reader's genes.
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
        """All values that are compared with the real patches."""
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
        """Number of genes of the first point of the curves."""
        return min(FIRST_TOP, self.genes)

    @property
    def above_ceiling(self) -> list[str]:
        """Synthetic cases that read better than the real patches."""
        shares = {key: one.share_of_ceiling for key, one in self.cases.items() if not key.startswith("real")}
        return [key for key, share in shares.items() if share is not None and share.value > 1]


class DistanceFacts(IntervalFacts):
    """JSON of a `Distance`."""

    per_seed: list[float]


@dataclass(frozen=True)
class Distance(Interval):
    """Mean distance over seeds, and that of each seed."""

    per_seed: tuple[float, ...] = ()

    @property
    def facts(self) -> DistanceFacts:
        """The distance in JSON types."""
        return {**super().facts, "per_seed": _rounded(self.per_seed)}


@dataclass(frozen=True)
class Distances:
    """Frechet and kernel distance between a set of patches and the real ones."""

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

    measured: Measurements
    claims: tuple[Claim, ...]
    fidelity: FidelityFigures | None
    statistics: dict[str, dict[str, dict[str, Interval]]]
    distribution: dict[str, SpaceFigures]
    paired: dict[str, dict[str, PairedFigures]]
    edits: dict[str, dict[str, Interval]]

    @property
    def n(self) -> int:
        """Number of spots."""
        return len(self.measured.groups)

    @property
    def seeds(self) -> int:
        """Seeds of each case."""
        return max(len(case.per_seed) for case in self.measured.cases)

    @property
    def descriptions(self) -> dict[str, str]:
        """Description of each case."""
        return {case.key: case.description for case in (*self.measured.cases, *self.measured.beside)}

    @cached_property
    def facts(self) -> dict[str, Any]:
        """Content of ``report.json`` about this set of spots, in JSON types."""
        edits: dict[str, Any] = to_json(self.edits)
        for changes in edits.values():
            for name in STATISTICS:
                changes[name]["unit"] = STATISTICS[name]
        return {
            "title": self.measured.title,
            "spots": self.n,
            "seeds": self.seeds,
            "cases": self.descriptions,
            "fidelity": to_json(self.fidelity),
            "statistics": to_json(self.statistics),
            "distribution": to_json(self.distribution),
            "paired": to_json(self.paired),
            "edits": edits,
            "claims": [claim.facts for claim in self.claims],
            "notes": list(self.measured.notes),
        }


def to_json(value: Any) -> Any:
    """Convert figures to JSON types: dataclasses into objects, intervals into their facts."""
    if isinstance(value, Interval):
        return value.facts
    if is_dataclass(value):
        return {one.name: to_json(getattr(value, one.name)) for one in fields(value)}
    if isinstance(value, Mapping):
        return {key: to_json(one) for key, one in value.items()}
    return value


def figures_of(measured: Measurements, draws: int) -> Figures:
    """Compute every figure of a set of spots, with intervals from ``draws`` shared bootstrap samples."""
    weights = spot_weights(measured.groups, draws)
    fidelity_figures, claims = _fidelity(measured, weights)
    statistics, more = _statistics(measured, weights)
    return Figures(
        measured,
        (*claims, *more),
        fidelity_figures,
        statistics,
        {name: _distribution(measured, name, weights) for name in measured.real.per_seed[0].features},
        {case.key: _paired(case, weights) for case in measured.others},
        {
            f"{edited} - {base}": _edit(measured, edited, base, weights)
            for edited, base in measured.pairs(measured.edits)
        },
    )


def _fidelity(measured: Measurements, weights: Array) -> tuple[FidelityFigures | None, list[Claim]]:
    reader = measured.reader
    if reader is None:
        return None, []
    read = {
        case.key: [reader.predict(one.features[reader.space]) for one in case.per_seed]
        for case in (measured.real, *measured.others)
    }
    found = {key: fidelity(np.mean(each, axis=0), reader.truth, measured.groups, weights) for key, each in read.items()}
    once = np.ones((1, weights.shape[1]))
    cases = {
        key: CaseFidelity(
            Interval.of(one.pearson, one.pearson_draws, one.n),
            Interval.of(one.area, one.area_draws, one.n),
            _rounded([fidelity(each, reader.truth, measured.groups, once).pearson for each in read[key]]),
            None if key == "real" else relative(one, found["real"]),
            [round(float(v), 4) for v in top_n_curve(one.genes)],
        )
        for key, one in found.items()
    }
    claims = []
    for true, control in measured.pairs(measured.compared):
        a, b = found[true], found[control]
        pearson = Interval.of(a.pearson - b.pearson, a.pearson_draws - b.pearson_draws, a.n)
        area = Interval.of(a.area - b.area, a.area_draws - b.area_draws, a.n)
        claims += [Claim("gene-wise Pearson", true, control, pearson, True)]
        claims += [Claim("area under Pearson against top n", true, control, area, True)]
    genes = reader.genes
    return FidelityFigures(reader.description, reader.space, len(genes), list(genes[:20]), cases), claims


def _statistics(
    measured: Measurements, weights: Array
) -> tuple[dict[str, dict[str, dict[str, Interval]]], list[Claim]]:
    real, n = measured.real.statistics, len(measured.groups)
    target = centred(real, measured.groups)
    found = {"real": {name: {"mean": mean_draws(real[:, k], weights)} for k, name in enumerate(STATISTICS)}}
    correlations: dict[str, tuple[Array, Array]] = {}
    for case in measured.others:
        values = case.statistics
        r, draws = correlations[case.key] = correlation_draws(centred(values, measured.groups), target, weights)
        found[case.key] = {
            name: {
                "r": Interval.of(r[k], draws[:, k], n),
                "mean": mean_draws(values[:, k], weights),
                "mean_minus_real": mean_draws(values[:, k] - real[:, k], weights),
            }
            for k, name in enumerate(STATISTICS)
        }
    claims = []
    for true, control in measured.pairs(measured.compared):
        (a, a_draws), (b, b_draws) = correlations[true], correlations[control]
        for k, name in enumerate(STATISTICS):
            if name in CLAIMED_STATISTICS:
                difference = Interval.of(a[k] - b[k], a_draws[:, k] - b_draws[:, k], n)
                claims.append(Claim(f"correlation of {STATISTICS[name]}", true, control, difference, False))
    return found, claims


def _distribution(measured: Measurements, name: str, weights: Array) -> SpaceFigures:
    """Return the distances of all sets of patches to the real ones in one space."""
    real = measured.real.per_seed[0].features[name]
    n = len(real)
    components = max(2, min(MAX_COMPONENTS, n // 3, real.shape[1]))
    frame = Frame.of(real, components)
    mean, spread = real.mean(axis=0), real.std(axis=0) + 1e-6
    target, scaled = frame.project(real), (real - mean) / spread
    rows = [np.repeat(np.arange(n), drawn.astype(int)) for drawn in weights[:FRECHET_DRAWS]]
    found: dict[bool, dict[str, Distances]] = {True: {}, False: {"real, random halves": _halves(target, scaled)}}
    for case in measured.others:
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
    """Return the distances between two random halves of the real patches: the floor, at half the number of patches."""
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


def _edit(measured: Measurements, edited: str, base: str, weights: Array) -> dict[str, Interval]:
    """Return the change by an edit, paired by spot and seed, with common noise."""
    after, before = (next(case for case in measured.cases if case.key == key) for key in (edited, base))
    change = after.statistics - before.statistics
    found = {name: mean_draws(change[:, k], weights) for k, name in enumerate(STATISTICS)}
    pixels = [one.change for one in after.per_seed if one.change is not None]
    if pixels:
        found["pixel_change_grey_levels"] = mean_draws(np.mean(pixels, axis=0), weights)
    reader = measured.reader
    if reader is not None and measured.intended is not None:
        read = [
            reader.predict(a.features[reader.space]) - reader.predict(b.features[reader.space])
            for a, b in zip(after.per_seed, before.per_seed, strict=True)
        ]
        found["read_change_along_edit"] = _along(np.mean(read, axis=0), measured.intended, weights)
    return found


def _along(read: Array, intended: Array, weights: Array) -> Interval:
    """Return the correlation over genes between the mean change read off the patches and that of the edit."""

    def r(share: Array) -> Array:
        a, b = share @ read, share @ intended
        a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
        norm = np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
        return np.asarray((a * b).sum(axis=1) / np.maximum(norm, 1e-12))

    whole = np.full((1, len(read)), 1 / len(read))
    return Interval.of(float(r(whole)[0]), r(weights / weights.sum(axis=1, keepdims=True)), len(read))


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(float(v), 5) for v in values]
