"""Reading expression off a patch: a linear predictor in a named feature space, the user's own or one that is fitted to real patches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..encoders.regression import centred, ridge_weights
from ..errors import RequestError, first_line
from ..expression.genes import gather_counts, match_genes
from ..expression.measured import PER, totals_of
from ..storage.atomic import write_atomically
from ..types import Section

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
