"""Expression read off patches by linear predictors on a feature space, given or fitted to real patches, and their accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import RequestError, first_line
from ..expression.genes import gather_counts, match_genes
from ..expression.normalise import cp10k_log1p, totals_of
from ..expression.regression import FOLDS, blocks_of, centred, ridge_weights
from ..storage.atomic import write_atomically
from ..synthesis.models import PatchModel
from ..types import Section
from .measures import SpotSet
from .spaces import FeatureSpace
from .statistics import Interval, correlation_draws

PENALTIES = np.logspace(0, 5, 11)
"""Ridge penalties to try, for standardised features."""
MIN_TRAINING_SPOTS, MAX_TRAINING_SPOTS = 20, 600
"""Minimum of spots to fit a regression on dozens of features to, and maximum per section, drawn at random."""
FIRST_TOP = 10
"""Number of genes of the first point of `top_n_curve`; means over fewer are mostly noise."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class LinearPredictor:
    """Expression as a linear function of features: ``(features - mean) / scale @ weights + intercept``.

    Attributes
    ----------
    space
        Name of its feature space.
    genes
        (g,) symbols, the most variable first: the order of the area under the curve.
    weights, intercept
        (d, g) and (g,); the result is log(1 + counts per 10,000), or linear in it.
    mean, scale
        (d,) each.
    description
        Its origin, in a sentence.
    """

    space: str
    genes: tuple[str, ...]
    weights: Array = field(repr=False)
    intercept: Array = field(repr=False)
    mean: Array = field(repr=False)
    scale: Array = field(repr=False)
    description: str = ""

    def predict(self, features: Array) -> Array:
        """Return expression (n, g) for features (n, d)."""
        return np.asarray((features - self.mean) / self.scale @ self.weights + self.intercept)

    def only(self, keep: NDArray[np.bool_]) -> LinearPredictor:
        """Return the predictor of a subset of its genes, (g,)."""
        weights, intercept = self.weights[:, keep], self.intercept[keep]
        return replace(self, genes=_chosen(self.genes, keep), weights=weights, intercept=intercept)

    def save(self, path: str | Path) -> None:
        """Write an .npz file that `read_predictor` reads, replacing one of that name."""
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


def _read_npz(path: Path) -> tuple[dict[str, Array], str, list[str]]:
    with np.load(path, allow_pickle=False) as file:
        held = {name: file[name] for name in file.files}
    space, genes = str(held.pop("space", "")), [str(gene) for gene in np.atleast_1d(held.pop("genes", []))]
    return {name: np.asarray(value, dtype=np.float64) for name, value in held.items()}, space, genes


def _read_safetensors(path: Path) -> tuple[dict[str, Array], str, list[str]]:
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        metadata = file.metadata() or {}
        arrays = {name: np.asarray(file.get_tensor(name), dtype=np.float64) for name in file.keys()}
    return arrays, metadata.get("space", ""), [g for g in metadata.get("genes", "").split("\n") if g]


def _faults(arrays: dict[str, Array], space: str, genes: Sequence[str]) -> list[str]:
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


# ------------------------------------------------------------------------------------------------- genes and levels


def log_levels(section: Section, rows: NDArray[np.int64], genes: Sequence[str]) -> Array:
    """Return log(1 + counts per 10,000), totals over all genes of the section, (n, g); genes that the section lacks are 0."""
    counts = section.spots.counts[rows]
    wanted = gather_counts(counts.astype(np.float64), match_genes(tuple(genes), section.spots.genes), tuple(genes))
    return np.asarray(cp10k_log1p(wanted.toarray(), totals_of(counts)[:, None]))


def choose_genes(sections: Sequence[Section], candidates: Sequence[str], count: int) -> tuple[str, ...]:
    """Return the ``count`` most variable genes that all sections have.

    Variance is that of log(1 + counts per 10,000) within sections, greatest first. ``candidates``: empty for all genes of the first section.
    """
    names = tuple(candidates) or tuple(dict.fromkeys(sections[0].spots.genes.symbols.tolist()))
    names = _chosen(names, _in_all(names, sections))
    if not names:
        return ()
    each = [log_levels(section, np.arange(len(section.spots)), names).var(axis=0) for section in sections]
    variance = np.mean(each, axis=0)
    return tuple(names[k] for k in np.argsort(-variance, kind="stable")[:count] if variance[k] > 0)


def _in_all(names: tuple[str, ...], sections: Sequence[Section]) -> NDArray[np.bool_]:
    """Return which of some genes (g,) all sections have."""
    there = np.ones(len(names), dtype=bool)
    for section in sections:
        there &= match_genes(names, section.spots.genes).columns >= 0
    return there


def _chosen(names: Sequence[str], keep: NDArray[np.bool_]) -> tuple[str, ...]:
    return tuple(name for name, yes in zip(names, keep.tolist(), strict=True) if yes)


def fit_ridge(
    features: Array,
    levels: Array,
    sections: NDArray[np.int64],
    folds: NDArray[np.int64],
    genes: Sequence[str],
    space: str,
    description: str,
) -> LinearPredictor:
    """Fit ridge regression from features (n, d) to expression (n, g), both centred within each section (n,).

    ``folds`` (n,) are left out together when the penalty is chosen: sections, or blocks of one.
    """
    x = centred(features, sections)  # stain and depth differ between sections
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
    description = f"{description}; penalty {best:g}"
    return LinearPredictor(space, tuple(genes), weights, levels.mean(axis=0), features.mean(axis=0), scale, description)


# ------------------------------------------------------------------------------------------------- reading the evaluated spots


@dataclass(frozen=True)
class ExpressionReader:
    """Reader of expression off patches of the evaluated spots.

    Attributes
    ----------
    space
        Name of its feature space.
    genes
        (g,) symbols, the most variable first.
    truth
        (n, g) true log(1 + counts per 10,000) of the spots.
    description
        What it is, and what it was fitted to.
    predictors, which
        The predictors, and the index (n,) of the one that reads each spot.
    """

    space: str
    genes: tuple[str, ...]
    truth: Array = field(repr=False)
    description: str
    predictors: tuple[LinearPredictor, ...] = field(repr=False)
    which: NDArray[np.int64] = field(repr=False)

    def predict(self, features: Array) -> Array:
        """Return expression (n, g) for the features (n, d) of one patch for each spot."""
        out = np.empty((len(features), len(self.genes)))
        for number, predictor in enumerate(self.predictors):
            rows = self.which == number
            out[rows] = predictor.predict(features[rows])
        return out


def reader_of_user(
    predictor: LinearPredictor, spaces: Sequence[FeatureSpace], spots: Sequence[SpotSet]
) -> ExpressionReader:
    """Make a reader of a given predictor.

    Raises
    ------
    RequestError
        Its space is not open, or the sections lack most of its genes.
    """
    names = [space.name for space in spaces]
    there = _in_all(predictor.genes, [one.section for one in spots])
    fault = None
    if predictor.space not in names:
        choice = ", ".join(map(repr, names))
        fault = f"it works in the space {predictor.space!r}; open are {choice}: add its --feature-space"
    elif there.sum() < max(2, len(there) / 2):
        fault = f"the sections have {int(there.sum())} of its {len(there)} genes, at least half are needed"
    if fault:
        raise RequestError([("predictor", fault)])
    which = np.zeros(sum(map(len, spots)), dtype=np.int64)
    return _reader(predictor.description, spots, (predictor.only(there),), which)


def reader_from_sections(
    others: Sequence[Section], space: FeatureSpace, spots: Sequence[SpotSet], model: PatchModel, count: int
) -> ExpressionReader:
    """Fit a regression of ``count`` genes to real patches of other sections; the checkpoint gives the scale of patches and its genes.

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
    learn = [SpotSet(section, some_rows(section, MAX_TRAINING_SPOTS), model) for section in others]
    genes = _genes([*others, *(one.section for one in spots)], model, count, len(others))
    x, y, groups = _examples(learn, space, genes)
    folds = groups if len(others) > 1 else blocks_of(learn[0].section.spots.yx[learn[0].rows])
    _enough(len(x))
    names = ", ".join(section.name for section in others)
    description = f"ridge regression on {space.name}, fitted to {len(x)} real patches of other sections ({names})"
    predictor = fit_ridge(x, y, groups, folds, genes, space.name, description)
    return _reader(predictor.description, spots, (predictor,), np.zeros(sum(map(len, spots)), dtype=np.int64))


def reader_across_blocks(
    space: FeatureSpace, spots: Sequence[SpotSet], model: PatchModel, count: int
) -> ExpressionReader:
    """Fit regressions to real patches of the same sections, each spot read by one fitted without its block.

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
        rows = np.union1d(some_rows(one.section, MAX_TRAINING_SPOTS), one.rows)
        blocks = blocks_of(one.section.spots.yx[rows])
        x, y, groups = _examples([SpotSet(one.section, rows, model)], space, genes)
        _enough(len(x) - len(x) // FOLDS)
        learned += len(x)
        own = np.empty(len(one), dtype=np.int64)
        for block in range(FOLDS):
            fit = blocks != block
            own[np.isin(one.rows, rows[~fit])] = len(predictors)
            name = "ridge regression"
            predictors.append(fit_ridge(x[fit], y[fit], groups[fit], blocks[fit], genes, space.name, name))
        which.append(own)
    description = (
        f"ridge regression on {space.name}, cross-validated: fitted to {learned} real patches of the evaluated sections themselves, each "
        f"spot read by a fit that saw no spot of its own fifth of the tissue. No predictor sections were given; a predictor from other "
        "sections would be stricter"
    )
    return _reader(description, spots, tuple(predictors), np.concatenate(which))


def some_rows(section: Section, most: int, seed: int = 0) -> NDArray[np.int64]:
    """Return at most ``most`` rows of a section's spots, drawn at random."""
    count = len(section.spots)
    return np.sort(np.random.default_rng(seed).permutation(count)[:most])


def _content(section: Section) -> tuple[object, ...]:
    """Return the identity of a section by content, whatever its name and place."""
    spots = section.spots
    return (len(spots), spots.ids.tobytes(), spots.yx.tobytes(), float(spots.counts.sum()))


def _genes(sections: Sequence[Section], model: PatchModel, count: int, learn: int) -> tuple[str, ...]:
    """Return genes that all sections have, the most variable in the first ``learn`` of them first."""
    names = tuple(model.card.genes) or tuple(dict.fromkeys(sections[0].spots.genes.symbols.tolist()))
    shared = _chosen(names, _in_all(names, sections))
    genes = choose_genes(sections[:learn], shared, count) if shared else ()
    if not genes:
        raise RequestError([("genes", "the sections and the checkpoint share no gene whose expression varies")])
    return genes


def _examples(
    learn: Sequence[SpotSet], space: FeatureSpace, genes: tuple[str, ...]
) -> tuple[Array, Array, NDArray[np.int64]]:
    """Return features and levels of real patches, and the section of each."""
    x = np.concatenate([space.features(one.crops) for one in learn])
    y = np.concatenate([log_levels(one.section, one.rows, genes) for one in learn])
    return x, y, np.repeat(np.arange(len(learn)), [len(one) for one in learn])


def _enough(count: int) -> None:
    if count < MIN_TRAINING_SPOTS:
        fault = (
            f"{count} spots are too few to learn to read expression from, at least {MIN_TRAINING_SPOTS} are needed; give other sections "
            "with --predictor-sections, or a predictor with --predictor"
        )
        raise RequestError([("predictor", fault)])


def _reader(
    description: str, spots: Sequence[SpotSet], predictors: tuple[LinearPredictor, ...], which: NDArray[np.int64]
) -> ExpressionReader:
    space, genes = predictors[0].space, predictors[0].genes
    truth = np.concatenate([log_levels(one.section, one.rows, genes) for one in spots])
    varies = truth.std(axis=0) > 0  # a gene that never varies here cannot be correlated
    if not varies.any():
        raise RequestError([("genes", "no gene that can be read varies over the evaluated spots")])
    predictors = tuple(one.only(varies) for one in predictors)
    return ExpressionReader(space, predictors[0].genes, truth[:, varies], description, predictors, which)


# ------------------------------------------------------------------------------------------------- how well it is read


@dataclass(frozen=True)
class Fidelity:
    """Fidelity of predicted expression over one set of spots.

    Attributes
    ----------
    genes
        (g,) Pearson correlation of each gene over the spots, sections centred first.
    pearson, area
        Mean of the genes' correlations, and mean height of `top_n_curve`.
    pearson_draws, area_draws
        (draws,) of the bootstrap samples.
    """

    genes: Array
    pearson: float
    area: float
    pearson_draws: Array
    area_draws: Array
    n: int


def top_n_curve(correlations: Array) -> Array:
    """Return the means of the first n correlations (..., g), genes in order of variability, for n from `FIRST_TOP` to g."""
    sums = correlations.cumsum(axis=-1) / np.arange(1, correlations.shape[-1] + 1)
    return np.asarray(sums[..., min(FIRST_TOP, sums.shape[-1]) - 1 :])


def area_under_top_n(correlations: Array) -> Array:
    """Return the mean height of the curve of correlations (..., g), on the scale of a correlation, (...,)."""
    return np.asarray(top_n_curve(correlations).mean(axis=-1))


def fidelity(
    predicted: Array,
    truth: Array,
    groups: NDArray[np.int64],
    weights: Array,
) -> Fidelity:
    """Return the correlation of predicted with true expression (n, g), genes in order of variability, under bootstrap weights (draws, n).

    Each section, ``groups`` (n,), is centred, so that differences between sections do not count as fidelity.
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


def relative(case: Fidelity, ceiling: Fidelity) -> Interval | None:
    """Return a case's area as a share of the ceiling's, with its interval; None where the ceiling is not above 0."""
    if not np.quantile(ceiling.area_draws, 0.025) > 0:
        return None
    return Interval.of(case.area / ceiling.area, case.area_draws / ceiling.area_draws, case.n)
