"""Reading expression off a patch: a linear predictor in a named feature space, the user's own or one that is fitted to real patches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..encoders.regression import FOLDS, blocks_of, centred, ridge_weights
from ..errors import RequestError, first_line
from ..expression.changes import PER, totals_of
from ..expression.genes import gather_counts, match_genes
from ..storage.atomic import write_atomically
from ..synthesis.models import PatchModel
from ..types import Section
from .held_out import SpotSet
from .spaces import FeatureSpace
from .statistics import Interval, correlation_draws

PENALTIES = np.logspace(0, 5, 11)
"""Ridge penalties that are tried, for standardised features."""
FEWEST_SPOTS = 20
"""With fewer spots to learn from, a regression on dozens of features says nothing."""


@dataclass(frozen=True)
class LinearPredictor:
    """Expression as a linear function of features: ``(features - mean) / scale @ weights + intercept``.

    Attributes
    ----------
    space
        Name of the feature space it works in.
    genes
        (g,) symbols, the most variable first: the order in which genes are added for the area under the curve.
    weights, intercept
        (d, g) and (g,); the result is log(1 + counts per 10,000), or anything that grows with it in a straight line.
    mean, scale
        (d,) each.
    words
        Where it comes from, in a sentence.
    """

    space: str
    genes: tuple[str, ...]
    weights: NDArray[np.float64] = field(repr=False)
    intercept: NDArray[np.float64] = field(repr=False)
    mean: NDArray[np.float64] = field(repr=False)
    scale: NDArray[np.float64] = field(repr=False)
    words: str = ""

    def predict(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n, d) features -> (n, g) expression."""
        return np.asarray((features - self.mean) / self.scale @ self.weights + self.intercept)

    def save(self, path: str | Path) -> None:
        """Write an .npz file that `read_predictor` reads; one of that name is replaced, as NumPy does."""
        path = Path(path)
        arrays = {name: getattr(self, name) for name in ("weights", "intercept", "mean", "scale")}
        names = {"space": np.array(self.space), "genes": np.array(self.genes)}
        write_atomically(
            path if path.suffix == ".npz" else path.with_name(f"{path.name}.npz"),
            lambda file: np.savez(file, allow_pickle=False, **names, **arrays),
        )


def read_predictor(path: str | Path) -> LinearPredictor:
    """Read a predictor: .npz with arrays, or .safetensors with ``space`` and ``genes`` (one a line) in its metadata.

    Arrays: ``weights`` (d, g), ``intercept`` (g,) and, where features were standardised, ``mean`` and ``scale`` (d,); in .npz also
    ``space`` (a text) and ``genes`` (g,) texts. Nothing is unpickled.

    Raises
    ------
    RequestError
        With every fault of the file.
    """
    path = Path(path).expanduser()
    try:
        arrays, space, genes = _read_safetensors(path) if path.suffix == ".safetensors" else _read_npz(path)
    except Exception as error:  # noqa: BLE001 - zip, npy and safetensors each have errors of their own for damaged files
        raise RequestError(
            [(f"predictor {path}", f"cannot be read: {first_line(error)}; expected .npz or .safetensors")]
        ) from None
    faults = _faults(arrays, space, genes)
    if faults:
        raise RequestError([(f"predictor {path}", fault) for fault in faults])
    weights = arrays["weights"]
    return LinearPredictor(
        str(space),
        tuple(genes),
        weights,
        arrays.get("intercept", np.zeros(weights.shape[1])),
        arrays.get("mean", np.zeros(len(weights))),
        arrays.get("scale", np.ones(len(weights))),
        f"the predictor in {path.name}, as given",
    )


def _read_npz(path: Path) -> tuple[dict[str, NDArray[np.float64]], str, list[str]]:
    with np.load(path, allow_pickle=False) as file:
        held = {name: file[name] for name in file.files}
    space, genes = str(held.pop("space", "")), [str(gene) for gene in np.atleast_1d(held.pop("genes", []))]
    return {name: np.asarray(value, dtype=np.float64) for name, value in held.items()}, space, genes


def _read_safetensors(path: Path) -> tuple[dict[str, NDArray[np.float64]], str, list[str]]:
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        metadata = file.metadata() or {}
        arrays = {name: np.asarray(file.get_tensor(name), dtype=np.float64) for name in file.keys()}
    return arrays, metadata.get("space", ""), [g for g in metadata.get("genes", "").split("\n") if g]


def _faults(arrays: dict[str, NDArray[np.float64]], space: str, genes: Sequence[str]) -> list[str]:
    weights = arrays.get("weights")
    if weights is None or weights.ndim != 2:
        return ["it lacks 'weights', an array (features, genes)"]
    faults = [] if space else ["it does not say its feature space ('space')"]
    if len(genes) != weights.shape[1]:
        faults.append(f"it names {len(genes)} genes, its weights are for {weights.shape[1]}")
    if len(set(genes)) != len(genes):
        faults.append("it names a gene twice")
    shapes = {"intercept": weights.shape[1], "mean": len(weights), "scale": len(weights)}
    for name, length in shapes.items():
        if name in arrays and arrays[name].shape != (length,):
            faults.append(f"'{name}' has shape {arrays[name].shape}, expected ({length},)")
    faults += [f"'{name}' holds numbers that are not finite" for name, a in arrays.items() if not np.isfinite(a).all()]
    if "scale" in arrays and (arrays["scale"] == 0).any():
        faults.append("'scale' holds zeros")
    return faults


# ------------------------------------------------------------------------------------------------- expression and folds


def log_levels(section: Section, rows: NDArray[np.int64], genes: Sequence[str]) -> NDArray[np.float64]:
    """Return log(1 + counts per 10,000), totals over all genes of the section, (n, g); genes that the section lacks are 0."""
    spots = section.spots
    match = match_genes(tuple(genes), spots.genes)
    counts = spots.counts[rows].astype(np.float64)
    wanted = gather_counts(counts, match, tuple(genes)).toarray()
    return np.asarray(np.log1p(wanted * (PER / totals_of(spots.counts[rows])[:, None])))


def choose_genes(sections: Sequence[Section], candidates: Sequence[str], count: int) -> tuple[str, ...]:
    """Return the most variable genes that all sections have: variance of log(1 + counts per 10,000) within sections, greatest first.

    Parameters
    ----------
    sections
        Where variability is measured: those that a predictor is fitted to.
    candidates
        Genes to choose from; empty for all of the first section.
    count
        How many.
    """
    names = tuple(candidates) or tuple(dict.fromkeys(sections[0].spots.genes.symbols.tolist()))
    there = np.ones(len(names), dtype=bool)
    for section in sections:
        there &= match_genes(names, section.spots.genes).columns >= 0
    names = tuple(name for name, here in zip(names, there.tolist(), strict=True) if here)
    if not names:
        return ()
    variance = np.mean(
        [log_levels(section, np.arange(len(section.spots)), names).var(axis=0) for section in sections], axis=0
    )
    best = np.argsort(-variance, kind="stable")[:count]
    return tuple(names[k] for k in best if variance[k] > 0)


def fit_ridge(
    features: NDArray[np.float64],
    levels: NDArray[np.float64],
    sections: NDArray[np.int64],
    folds: NDArray[np.int64],
    genes: Sequence[str],
    space: str,
    words: str,
) -> LinearPredictor:
    """Fit ridge regression from features to expression, both centred within each section, as stain and depth differ between them.

    Parameters
    ----------
    features, levels
        (n, d) and (n, g).
    sections
        (n,) section of each row.
    folds
        (n,) what is left out together when the penalty is chosen: sections, or blocks of one.
    genes, space, words
        Of the predictor.
    """
    x = centred(features, sections)
    scale = x.std(axis=0) + 1e-9
    x, y = x / scale, centred(levels, sections)
    errors = np.zeros(len(PENALTIES))
    for fold in np.unique(folds):
        out = folds == fold
        centre, target = x[~out].mean(axis=0), y[~out].mean(axis=0)
        solved = ridge_weights(x[~out] - centre, y[~out] - target, PENALTIES)
        errors += [((y[out] - target - (x[out] - centre) @ weights) ** 2).sum() for weights in solved]
    best = float(PENALTIES[errors.argmin()])
    (weights,) = ridge_weights(x - x.mean(axis=0), y - y.mean(axis=0), [best])
    told = f"{words}; penalty {best:g}"
    return LinearPredictor(space, tuple(genes), weights, levels.mean(axis=0), features.mean(axis=0), scale, told)


# What reads expression off the patches of an evaluation: the user's predictor, or a regression that never saw the
# spots it reads.


MOST_SPOTS = 600
"""Spots of a section that a regression is fitted to, at most; drawn at random where there are more."""


@dataclass(frozen=True)
class ExpressionReader:
    """Reads expression off patches of the evaluated spots.

    Attributes
    ----------
    space
        Name of the feature space it reads in.
    genes
        (g,) symbols, the most variable first.
    truth
        (n, g) true log(1 + counts per 10,000) of the spots.
    words
        What it is, and what it was fitted to.
    predictors, which
        The predictors, and for each spot, (n,), which of them reads it.
    """

    space: str
    genes: tuple[str, ...]
    truth: NDArray[np.float64] = field(repr=False)
    words: str
    predictors: tuple[LinearPredictor, ...] = field(repr=False)
    which: NDArray[np.int64] = field(repr=False)

    def predict(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n, d) features of one patch for each spot -> (n, g)."""
        out = np.empty((len(features), len(self.genes)))
        for number, predictor in enumerate(self.predictors):
            rows = self.which == number
            out[rows] = predictor.predict(features[rows])
        return out


def reader_of_user(
    predictor: LinearPredictor, spaces: Sequence[FeatureSpace], spots: Sequence[SpotSet]
) -> ExpressionReader:
    """Use a predictor as given.

    Raises
    ------
    RequestError
        Its space is not among those that are open, or the sections lack most of its genes.
    """
    names = [space.name for space in spaces]
    if predictor.space not in names:
        raise RequestError(
            [
                (
                    "predictor",
                    f"it works in the space {predictor.space!r}; open are {', '.join(map(repr, names))}: add its --feature-space",
                )
            ]
        )
    there = np.ones(len(predictor.genes), dtype=bool)
    for one in spots:
        there &= match_genes(predictor.genes, one.section.spots.genes).columns >= 0
    if there.sum() < max(2, len(there) / 2):
        raise RequestError(
            [("predictor", f"the sections have {int(there.sum())} of its {len(there)} genes, at least half are needed")]
        )
    genes = tuple(gene for gene, here in zip(predictor.genes, there.tolist(), strict=True) if here)
    part = LinearPredictor(
        predictor.space,
        genes,
        predictor.weights[:, there],
        predictor.intercept[there],
        predictor.mean,
        predictor.scale,
        predictor.words,
    )
    return _reader(part.words, part.space, genes, spots, (part,), np.zeros(sum(map(len, spots)), dtype=np.int64))


def reader_from_sections(
    others: Sequence[Section], space: FeatureSpace, spots: Sequence[SpotSet], model: PatchModel, count: int
) -> ExpressionReader:
    """Fit a regression to real patches of other sections.

    Parameters
    ----------
    others
        The sections to learn from.
    space
        Feature space.
    spots
        The evaluated spots.
    model
        The checkpoint, for the scale of patches and its genes.
    count
        Genes to read.

    Raises
    ------
    RequestError
        One of them is evaluated itself, or there are too few spots or shared genes.
    """
    evaluated = {_content(one.section): one.section.name for one in spots}
    twice = [section.name for section in others if _content(section) in evaluated]
    if twice:
        raise RequestError(
            [("predictor sections", f"{', '.join(twice)} is evaluated itself; a predictor must not have seen it")]
        )
    learn = [SpotSet(section, some_rows(section, MOST_SPOTS), model) for section in others]
    genes = _genes([*others, *(one.section for one in spots)], model, count, len(others))
    x, y, groups = _examples(learn, space, genes)
    folds = groups if len(others) > 1 else blocks_of(learn[0].section.spots.yx[learn[0].rows])
    _enough(len(x))
    names = ", ".join(section.name for section in others)
    words = f"ridge regression on {space.name}, fitted to {len(x)} real patches of other sections ({names})"
    predictor = fit_ridge(x, y, groups, folds, genes, space.name, words)
    which = np.zeros(sum(map(len, spots)), dtype=np.int64)
    return _reader(predictor.words, space.name, genes, spots, (predictor,), which)


def reader_across_blocks(
    space: FeatureSpace, spots: Sequence[SpotSet], model: PatchModel, count: int
) -> ExpressionReader:
    """Fit regressions to real patches of the same sections, each spot being read by one that saw no spot of its block.

    Raises
    ------
    RequestError
        There are too few spots or genes.
    """
    sections = [one.section for one in spots]
    genes = _genes(sections, model, count, len(sections))
    predictors: list[LinearPredictor] = []
    which = []
    learned = 0
    for one in spots:
        rows = np.union1d(some_rows(one.section, MOST_SPOTS), one.rows)
        blocks = blocks_of(one.section.spots.yx[rows])
        x, y, groups = _examples([SpotSet(one.section, rows, model)], space, genes)
        _enough(len(x) - len(x) // FOLDS)
        learned += len(x)
        own = np.empty(len(one), dtype=np.int64)
        for block in range(FOLDS):
            seen = blocks != block
            own[np.isin(one.rows, rows[~seen])] = len(predictors)
            predictors.append(
                fit_ridge(x[seen], y[seen], groups[seen], blocks[seen], genes, space.name, "ridge regression")
            )
        which.append(own)
    words = (
        f"ridge regression on {space.name}, cross-validated: fitted to {learned} real patches of the evaluated sections themselves, each "
        f"spot read by a fit that saw no spot of its own fifth of the tissue. No predictor sections were given; a predictor from other "
        "sections would be a stricter judge"
    )
    return _reader(words, space.name, genes, spots, tuple(predictors), np.concatenate(which))


def some_rows(section: Section, most: int, seed: int = 0) -> NDArray[np.int64]:
    """Return rows of a section's spots, at most so many, drawn at random."""
    count = len(section.spots)
    return np.sort(np.random.default_rng(seed).permutation(count)[:most])


def _content(section: Section) -> tuple[object, ...]:
    """What tells sections apart, whatever they are called and wherever they lie."""
    spots = section.spots
    return (len(spots), spots.ids.tobytes(), spots.yx.tobytes(), float(spots.counts.sum()))


def _genes(sections: Sequence[Section], model: PatchModel, count: int, learn: int) -> tuple[str, ...]:
    """Genes that all sections have, the most variable in the first ``learn`` of them first."""
    candidates = tuple(model.card.genes)
    names = candidates or tuple(dict.fromkeys(sections[0].spots.genes.symbols.tolist()))
    there = np.ones(len(names), dtype=bool)
    for section in sections:
        there &= match_genes(names, section.spots.genes).columns >= 0
    shared = [name for name, here in zip(names, there.tolist(), strict=True) if here]
    genes = choose_genes(sections[:learn], shared, count) if shared else ()
    if not genes:
        raise RequestError([("genes", "the sections and the checkpoint share no gene whose expression varies")])
    return genes


def _examples(
    learn: Sequence[SpotSet], space: FeatureSpace, genes: tuple[str, ...]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Features and levels of real patches, and the section of each."""
    x = np.concatenate([space.features(one.crops) for one in learn])
    y = np.concatenate([log_levels(one.section, one.rows, genes) for one in learn])
    return x, y, np.repeat(np.arange(len(learn)), [len(one) for one in learn])


def _enough(count: int) -> None:
    if count < FEWEST_SPOTS:
        raise RequestError(
            [
                (
                    "predictor",
                    f"{count} spots are too few to learn to read expression from, at least {FEWEST_SPOTS} are needed; give other sections "
                    "with --predictor-sections, or a predictor with --predictor",
                )
            ]
        )


def _reader(
    words: str,
    space: str,
    genes: tuple[str, ...],
    spots: Sequence[SpotSet],
    predictors: tuple[LinearPredictor, ...],
    which: NDArray[np.int64],
) -> ExpressionReader:
    truth = np.concatenate([log_levels(one.section, one.rows, genes) for one in spots])
    varies = truth.std(axis=0) > 0
    if not varies.any():
        raise RequestError([("genes", "no gene that can be read varies over the evaluated spots")])
    if not varies.all():  # a gene that never varies here cannot be correlated
        genes = tuple(gene for gene, yes in zip(genes, varies.tolist(), strict=True) if yes)
        predictors = tuple(_narrowed(one, varies) for one in predictors)
        truth = truth[:, varies]
    return ExpressionReader(space, genes, truth, words, predictors, which)


def _narrowed(one: LinearPredictor, keep: NDArray[np.bool_]) -> LinearPredictor:
    genes = tuple(gene for gene, yes in zip(one.genes, keep.tolist(), strict=True) if yes)
    return LinearPredictor(one.space, genes, one.weights[:, keep], one.intercept[keep], one.mean, one.scale, one.words)


# Does a patch show the expression it was made from? Gene-wise correlation and the area under correlation against
# top n genes.


FIRST_TOP = 10
"""Genes of the first point of the curve; means over fewer are mostly noise."""


@dataclass(frozen=True)
class Fidelity:
    """How well predicted expression follows the true one, over one set of spots.

    Attributes
    ----------
    genes
        (g,) Pearson correlation of each gene over the spots, sections centred first.
    pearson, area
        Mean of the genes' correlations, and the mean height of the curve of `top_n_curve`.
    pearson_draws, area_draws
        (draws,) of the bootstrap samples.
    """

    genes: NDArray[np.float64]
    pearson: float
    area: float
    pearson_draws: NDArray[np.float64]
    area_draws: NDArray[np.float64]
    n: int

    @property
    def facts(self) -> dict[str, Any]:
        """JSON types alone."""
        return {
            "gene_pearson": Interval.of(self.pearson, self.pearson_draws, self.n).facts,
            "area_under_top_n": Interval.of(self.area, self.area_draws, self.n).facts,
        }


def top_n_curve(correlations: NDArray[np.float64]) -> NDArray[np.float64]:
    """(..., g) correlations, genes in order of variability -> (..., points): mean of the first n, for n from `FIRST_TOP` to g."""
    sums = correlations.cumsum(axis=-1) / np.arange(1, correlations.shape[-1] + 1)
    return np.asarray(sums[..., min(FIRST_TOP, sums.shape[-1]) - 1 :])


def area_under_top_n(correlations: NDArray[np.float64]) -> NDArray[np.float64]:
    """(..., g) -> (...,): mean height of the curve, so that it stays on the scale of a correlation."""
    return np.asarray(top_n_curve(correlations).mean(axis=-1))


def fidelity(
    predicted: NDArray[np.float64],
    truth: NDArray[np.float64],
    groups: NDArray[np.int64],
    weights: NDArray[np.float64],
) -> Fidelity:
    """Correlate predicted with true expression.

    Parameters
    ----------
    predicted, truth
        (n, g), genes in order of variability.
    groups
        (n,) section of each spot; each is centred, so that differences between sections do not pass for fidelity.
    weights
        (draws, n) of the bootstrap.
    """
    whole, draws = correlation_draws(centred(predicted, groups), centred(truth, groups), weights)
    return Fidelity(
        whole,
        float(whole.mean()),
        float(area_under_top_n(whole)),
        draws.mean(axis=1),
        area_under_top_n(draws),
        len(truth),
    )


def relative(case: Fidelity, ceiling: Fidelity) -> dict[str, Any] | None:
    """Return a case's area as a share of the ceiling's, with its interval; None where the ceiling itself is not above 0."""
    if not np.quantile(ceiling.area_draws, 0.025) > 0:
        return None
    return Interval.of(case.area / ceiling.area, case.area_draws / ceiling.area_draws, case.n).facts
