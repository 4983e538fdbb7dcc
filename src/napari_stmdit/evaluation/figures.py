"""From what was measured to figures with intervals, and to what may be claimed: whether a true condition beats its controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..encoders.regression import centred
from .measures import MEASURES, STATISTICS, CaseValues, best_of_k, mean_of_k
from .reading import ExpressionReader, Fidelity, fidelity, relative, top_n_curve
from .spaces import Frame, frechet_distance, kernel_distance, kernel_distance_draws
from .statistics import Interval, correlation_draws, mean_draws, spot_weights

FRECHET_DRAWS = 200
MOST_COMPONENTS = 32
HALVINGS = 20
CLAIMED_STATISTICS = ("haematoxylin", "eosin", "nuclei", "blank")
FIDELITY_MEASURES = {"gene_pearson": "gene-wise Pearson", "area_under_top_n": "area under Pearson against top n"}


@dataclass(frozen=True)
class Claim:
    """Whether a true condition beats a control on one measure.

    Attributes
    ----------
    measure
        What is compared, in words.
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
        """Say it in words: beats, or does not."""
        d = self.difference
        verb = "beats" if self.holds else "does not beat (is worse than)" if self.reversed else "does not beat"
        return (
            f"{self.measure}: {self.true} {verb} {self.control} (difference {d.value:.3f}, 95 % interval {d.low:.3f} to {d.high:.3f}, "
            f"{d.n} spots)"
        )

    @property
    def facts(self) -> dict[str, Any]:
        """JSON types alone."""
        names = {"measure": self.measure, "true": self.true, "control": self.control}
        verdict = "beats" if self.holds else "does not"
        return names | {"difference": self.difference.facts, "verdict": verdict, "fidelity": self.fidelity}


@dataclass(frozen=True)
class Evidence:
    """All that is known of one set of spots.

    Attributes
    ----------
    title
        What was evaluated, in words.
    groups
        (n,) section of each spot.
    ids
        (n,) spot ids.
    real, beside, cases
        The real patches, other real patches that give a floor, and the cases.
    compared
        Pairs of (true condition, control) to be compared, by key.
    edits
        Pairs of (edited, baseline), by key.
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
    intended: NDArray[np.float64] | None = None
    notes: tuple[str, ...] = field(default=())

    def case(self, key: str) -> CaseValues | None:
        """Return a case by its key; None where it was not run."""
        return next((case for case in self.cases if case.key == key), None)


@dataclass(frozen=True)
class Figures:
    """The figures of one set of spots, JSON types alone, and the claims that follow."""

    evidence: Evidence
    facts: Mapping[str, Any]
    claims: tuple[Claim, ...]


def figures_of(evidence: Evidence, draws: int) -> Figures:
    """Compute every figure of a set of spots, with intervals from ``draws`` bootstrap samples that all figures share."""
    weights = spot_weights(evidence.groups, draws)
    read, claims = _fidelity(evidence, weights)
    stains, more = _statistics(evidence, weights)
    facts = {
        "title": evidence.title,
        "spots": len(evidence.groups),
        "seeds": max(len(case.seen) for case in evidence.cases),
        "cases": {case.key: case.words for case in (*evidence.cases, *evidence.beside)},
        "fidelity": read,
        "statistics": stains,
        "distribution": {name: _distribution(evidence, name, weights) for name in evidence.real.seen[0].features},
        "paired": _paired(evidence, weights),
        "edits": {f"{edited} - {base}": _edit(evidence, edited, base, weights) for edited, base in _both(evidence)},
        "claims": [claim.facts for claim in (*claims, *more)],
        "notes": list(evidence.notes),
    }
    return Figures(evidence, facts, (*claims, *more))


# ------------------------------------------------------------------------------------------------- condition fidelity


def _fidelity(evidence: Evidence, weights: NDArray[np.float64]) -> tuple[dict[str, Any] | None, list[Claim]]:
    reader = evidence.reader
    if reader is None:
        return None, []
    found: dict[str, Fidelity] = {}
    per_seed: dict[str, list[float]] = {}
    for case in (evidence.real, *evidence.beside, *evidence.cases):
        reads = [reader.predict(seen.features[reader.space]) for seen in case.seen]
        found[case.key] = fidelity(np.mean(reads, axis=0), reader.truth, evidence.groups, weights)
        ones = np.ones((1, len(weights[0])))
        per_seed[case.key] = [fidelity(one, reader.truth, evidence.groups, ones).pearson for one in reads]
    ceiling = found["real"]
    facts = {
        "predictor": reader.words,
        "space": reader.space,
        "genes": len(reader.genes),
        "first_genes": list(reader.genes[:20]),
        "cases": {
            key: one.facts
            | {
                "per_seed_gene_pearson": [round(v, 5) for v in per_seed[key]],
                "share_of_ceiling": None if key == "real" else relative(one, ceiling),
                "curve": [round(float(v), 4) for v in top_n_curve(one.genes)],
            }
            for key, one in found.items()
        },
    }
    claims = []
    for true, control in _pairs(evidence):
        a, b = found[true], found[control]
        for key, words in FIDELITY_MEASURES.items():
            p, q = (
                (one.pearson, one.pearson_draws) if key == "gene_pearson" else (one.area, one.area_draws)
                for one in (a, b)
            )
            claims.append(Claim(words, true, control, Interval.of(p[0] - q[0], p[1] - q[1], a.n), True))
    return facts, claims


# ------------------------------------------------------------------------------------------------- stain and nuclei


def _statistics(evidence: Evidence, weights: NDArray[np.float64]) -> tuple[dict[str, Any], list[Claim]]:
    real = evidence.real.statistics
    target = centred(real, evidence.groups)
    n = len(real)
    facts: dict[str, Any] = {
        "real": {name: {"mean": mean_draws(real[:, k], weights).facts} for k, name in enumerate(STATISTICS)}
    }
    draws: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]] = {}
    for case in (*evidence.beside, *evidence.cases):
        values = case.statistics
        r, drawn = draws[case.key] = correlation_draws(centred(values, evidence.groups), target, weights)
        facts[case.key] = {
            name: {
                "r": Interval.of(r[k], drawn[:, k], n).facts,
                "mean": mean_draws(values[:, k], weights).facts,
                "mean_minus_real": mean_draws(values[:, k] - real[:, k], weights).facts,
            }
            for k, name in enumerate(STATISTICS)
        }
    claims = []
    for true, control in _pairs(evidence):
        for k, name in enumerate(STATISTICS):
            if name in CLAIMED_STATISTICS:
                (a, drawn_a), (b, drawn_b) = draws[true], draws[control]
                difference = Interval.of(a[k] - b[k], drawn_a[:, k] - drawn_b[:, k], n)
                claims.append(Claim(f"correlation of {STATISTICS[name]}", true, control, difference, False))
    return facts, claims


def _pairs(evidence: Evidence) -> list[tuple[str, str]]:
    return [pair for pair in evidence.compared if all(evidence.case(key) is not None for key in pair)]


def _both(evidence: Evidence) -> list[tuple[str, str]]:
    return [pair for pair in evidence.edits if all(evidence.case(key) is not None for key in pair)]


# ------------------------------------------------------------------------------------------------- distributions


def _distribution(evidence: Evidence, name: str, weights: NDArray[np.float64]) -> dict[str, Any]:
    """Distances of all sets of patches to the real ones in one space."""
    real = evidence.real.seen[0].features[name]
    n = len(real)
    components = max(2, min(MOST_COMPONENTS, n // 3, real.shape[1]))
    frame = Frame.of(real, components)
    mean, spread = real.mean(axis=0), real.std(axis=0) + 1e-6
    target, scaled = frame.project(real), (real - mean) / spread
    rows = [np.repeat(np.arange(n), drawn.astype(int)) for drawn in weights[:FRECHET_DRAWS]]
    out: dict[str, Any] = {
        "n": n,
        "features": real.shape[1],
        "components": components,
        "cases": {},
        "floors": {"real, random halves": _halves(target, scaled)},
    }
    for case in (*evidence.beside, *evidence.cases):
        each = [frame.project(seen.features[name]) for seen in case.seen]
        plain = [(seen.features[name] - mean) / spread for seen in case.seen]
        frechet = [frechet_distance(one, target) for one in each]
        kernel = [kernel_distance(one, scaled, paired=True) for one in plain]
        drawn = np.mean([[frechet_distance(one[r], target[r]) for r in rows] for one in each], axis=0)
        kid = np.mean([kernel_distance_draws(one, scaled, weights) for one in plain], axis=0)
        entry = {
            "frechet": Interval.about(float(np.mean(frechet)), drawn, n).facts | {"per_seed": _rounded(frechet)},
            "kid": Interval.of(float(np.mean(kernel)), kid, n).facts | {"per_seed": _rounded(kernel)},
        }
        out["cases" if case.synthetic else "floors"][case.key] = entry
    return out


def _halves(target: NDArray[np.float64], scaled: NDArray[np.float64]) -> dict[str, Any]:
    """Distances of one random half of the real patches to the other: the floor, at half the number of patches."""
    rng = np.random.default_rng(0)
    half = len(target) // 2
    frechet, kid = [], []
    for _ in range(HALVINGS):
        order = rng.permutation(len(target))
        first, second = order[:half], order[half : 2 * half]
        frechet.append(frechet_distance(target[first], target[second]))
        kid.append(kernel_distance(scaled[first], scaled[second]))
    return {
        key: {"value": round(float(np.mean(values)), 5), "low": None, "high": None, "n": half}
        for key, values in (("frechet", frechet), ("kid", kid))
    }


# ------------------------------------------------------------------------------------------------- pairs and edits


def _paired(evidence: Evidence, weights: NDArray[np.float64]) -> dict[str, Any]:
    out = {}
    for case in (*evidence.beside, *evidence.cases):
        entry = {}
        for measure in MEASURES:
            if measure.key in case.seen[0].paired:
                values = np.stack([seen.paired[measure.key] for seen in case.seen], axis=1)
                entry[measure.key] = {
                    "mean_of_k": mean_draws(mean_of_k(values), weights).facts,
                    "best_of_k": mean_draws(best_of_k(values, measure.more_is_better), weights).facts,
                    "k": values.shape[1],
                }
        out[case.key] = entry
    return out


def _edit(evidence: Evidence, edited: str, base: str, weights: NDArray[np.float64]) -> dict[str, Any]:
    """What an edit changes, spot by spot and seed by seed, with common noise."""
    after, before = evidence.case(edited), evidence.case(base)
    assert after is not None and before is not None  # _both has looked
    change = after.statistics - before.statistics
    out: dict[str, Any] = {
        name: mean_draws(change[:, k], weights).facts | {"unit": STATISTICS[name]} for k, name in enumerate(STATISTICS)
    }
    pixels = [seen.change for seen in after.seen if seen.change is not None]
    if pixels:
        out["pixel_change_grey_levels"] = mean_draws(np.mean(pixels, axis=0), weights).facts
    reader = evidence.reader
    if reader is not None and evidence.intended is not None:
        read = [
            reader.predict(a.features[reader.space]) - reader.predict(b.features[reader.space])
            for a, b in zip(after.seen, before.seen, strict=True)
        ]
        out["read_change_along_edit"] = _along(np.mean(read, axis=0), evidence.intended, weights)
    return out


def _along(read: NDArray[np.float64], intended: NDArray[np.float64], weights: NDArray[np.float64]) -> dict[str, Any]:
    """Correlation over genes of the mean change that is read off the patches with the mean change that the edit makes."""
    share = weights / weights.sum(axis=1, keepdims=True)
    whole = np.full((1, len(read)), 1 / len(read))

    def r(part: NDArray[np.float64]) -> NDArray[np.float64]:
        a, b = part @ read, part @ intended
        a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
        norm = np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
        return np.asarray((a * b).sum(axis=1) / np.maximum(norm, 1e-12))

    return Interval.of(float(r(whole)[0]), r(share), len(read)).facts


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(float(v), 5) for v in values]
