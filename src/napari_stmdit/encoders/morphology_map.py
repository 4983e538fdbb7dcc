"""Map from expression to morphology: ridge regression over the spots of a section, or of training.

Only its differences are used, m' = m + f(e') - f(e): what expression does not explain of a spot's morphology stays. Penalty, components
and explained variance are found on tissue left out.

Beside it the trend of morphology along the factors that the expression of one section varies by. The map reads single spots, whose noise
shrinks it; the trend is for edits whose direction is known from smoothed expression, and is not shrunk.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import CheckpointError, SectionError
from ..expression.regression import PENALTIES, centred, compact_folds, ridge_weights, spread_of
from .tensors import read_arrays, read_config, write_encoder

MIN_SPOTS = 100
"""Minimum number of spots of a fit: with fewer, explained variance cannot be told from chance."""
MAX_COMPONENTS = 64
"""Maximum number of predicted principal components of morphology."""


@dataclass(frozen=True)
class MorphologyMap:
    """A linear map from expression (d,) to morphology (t, dm), for differences.

    Attributes
    ----------
    shape
        (t, dm) of a morphology.
    weights
        (d, k) from expression to the components that it explains.
    components
        (k, t * dm) those components; k = 0: morphology stays.
    r2
        (r,) share of variance explained of each number of a single vector, or of each principal component of tokens, the largest first; on
        tissue left out.
    share
        Share of all variance of morphology explained, on tissue left out.
    penalties
        (k,) ridge penalties of the components.
    spots
        Number of spots that it was fitted to, the last time.
    """

    shape: tuple[int, int]
    weights: NDArray[np.float32] = field(repr=False)
    components: NDArray[np.float32] = field(repr=False)
    r2: NDArray[np.float32] = field(repr=False)
    share: float
    penalties: NDArray[np.float32] = field(repr=False)
    spots: int

    @property
    def follows(self) -> bool:
        """Whether morphology moves at all with expression."""
        return len(self.components) > 0

    @property
    def words(self) -> str:
        """Sentence to print with every result."""
        if self.spots < MIN_SPOTS:
            return (
                f"Morphology stays as measured: {self.spots} spots are too few to tell what expression explains of it "
                f"(at least {MIN_SPOTS})."
            )
        if not self.follows:
            return f"Morphology stays as measured: expression explains nothing of it ({self.spots} spots, cross-validated)."
        return (
            f"Morphology follows expression, which explains {100 * self.share:.0f} % of its variance ({self.spots} spots, "
            "cross-validated); the rest stays as measured."
        )

    def delta(self, e_from: NDArray[np.float32], e_to: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the change of morphology, (n, t, dm), from one expression (n, d) or (n, g, d) to another; 0 where they are equal.

        Raises SectionError where they are of another width than the map.
        """
        difference = vectors_of(np.asarray(e_to)) - vectors_of(np.asarray(e_from))
        if difference.shape[1] != len(self.weights):
            raise SectionError(
                f"the map from expression to morphology is for {len(self.weights)} numbers a spot, got {difference.shape[1]}"
            )
        moved = difference @ self.weights @ self.components
        return np.asarray(moved.reshape(len(difference), *self.shape), dtype=np.float32)

    def fitted_further(
        self, expression: NDArray[np.float32], morphology: NDArray[np.float32], yx: NDArray[np.float64]
    ) -> MorphologyMap:
        """Return this map with a ridge regression of what it leaves unexplained in one section added to it.

        That is a regression shrunk towards this map instead of towards 0. One penalty is chosen by cross-validation; the map itself is
        returned where that adds nothing, or there are too few spots. Parameters are those of `fit_morphology_map`.
        """
        e, m = _checked(expression, morphology)
        if len(e) < MIN_SPOTS:
            return self
        x, y = e - e.mean(axis=0), m.reshape(len(m), -1)
        left = y - self.delta(np.zeros_like(expression), expression).reshape(y.shape)
        y, left = y - y.mean(axis=0), left - left.mean(axis=0)
        unit = spread_of(x)
        x /= unit
        basis, scores = _components(left, m.shape[1])
        whole, folds = y @ basis.T, compact_folds(yx)
        blind = np.zeros(scores.shape[1])  # squared errors on tissue left out: of the mean,
        missed = np.zeros((len(PENALTIES) + 1, scores.shape[1]))  # with each penalty, and at last of this map
        for fold in np.unique(folds):
            out = folds == fold
            centre, target = x[~out].mean(axis=0), scores[~out].mean(axis=0)
            blind += ((whole[out] - whole[~out].mean(axis=0)) ** 2).sum(axis=0)
            missed[-1] += ((scores[out] - target) ** 2).sum(axis=0)
            penalties = PENALTIES * int((~out).sum())
            for row, weights in enumerate(ridge_weights(x[~out] - centre, scores[~out] - target, penalties)):
                missed[row] += ((scores[out] - target - (x[out] - centre) @ weights) ** 2).sum(axis=0)
        best = int(missed.sum(axis=1).argmin())
        if best == len(PENALTIES):
            return self
        (slopes,) = ridge_weights(x, scores, PENALTIES[[best]] * len(x))
        weights = np.concatenate([self.weights, slopes / unit[:, None]], axis=1)
        components = np.concatenate([self.components, basis])
        penalties = np.append(self.penalties, np.full(len(basis), PENALTIES[best]))
        r2 = 1 - missed[best] / np.maximum(blind, 1e-30)
        beyond = max(float((left**2).sum() - (scores**2).sum()), 0.0)  # of components that are not predicted
        share = float(blind.sum() - missed[best].sum()) / max(float(blind.sum()) + beyond, 1e-30)
        w, c, r, p = (np.asarray(array, dtype=np.float32) for array in (weights, components, r2, penalties))
        return MorphologyMap(self.shape, w, c, r, share, p, len(e))

    def facts(self) -> dict[str, object]:
        """Return the map's statistics for a checkpoint's card and a result's provenance, in JSON types."""
        return {
            "share": round(float(self.share), 4),
            "r2": [round(float(value), 4) for value in self.r2],
            "components": len(self.components),
            "spots": self.spots,
        }

    def save(self, folder: Path) -> None:
        """Write ``config.json`` and ``model.safetensors``, a part of a checkpoint folder."""
        config = {
            "_class_name": type(self).__name__,
            "shape": list(self.shape),
            "share": float(self.share),
            "spots": self.spots,
        }
        write_encoder(folder, config, {name: getattr(self, name) for name in _ARRAYS})

    @classmethod
    def load(cls, folder: Path) -> MorphologyMap:
        """Read a map; raises CheckpointError where its folder is incomplete or its parts do not fit each other."""
        config, arrays = read_config(folder), read_arrays(folder, _ARRAYS)
        try:
            tokens, width = (int(value) for value in config["shape"])
            found = cls((tokens, width), share=float(config["share"]), spots=int(config["spots"]), **arrays)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{folder}/config.json is not that of a morphology map: {error!r}") from None
        count = found.components.shape[0]
        shapes = (found.weights.shape[1:], found.components.shape, found.penalties.shape)
        finite = all(np.isfinite(array).all() for array in arrays.values())
        if shapes != ((count,), (count, tokens * width), (count,)) or not finite:
            raise CheckpointError(
                f"{folder}: the arrays do not fit each other or are not finite; copy the folder again"
            )
        return found


@dataclass(frozen=True)
class MorphologyTrend:
    """Change of a section's morphology (t, dm) with k factors of its smoothed expression, over all its spots or some.

    Attributes
    ----------
    loadings
        (k, t * dm) change with each factor by one standard deviation.
    low, high
        (t * dm,) range over the spots.
    spots
        Number of spots that it was computed from.
    """

    loadings: NDArray[np.float32] = field(repr=False)
    low: NDArray[np.float32] = field(repr=False)
    high: NDArray[np.float32] = field(repr=False)
    spots: int

    @property
    def words(self) -> str:
        """Sentence to print with every result."""
        return (
            f"Morphology moves as it varies with the edited genes over {self.spots} spots of this section, inside the range seen there; "
            "the rest stays as measured."
        )

    def facts(self) -> dict[str, int]:
        """Return its sizes for a result's record."""
        return {"factors": len(self.loadings), "spots": self.spots}

    def moved(self, morphology: NDArray[np.float32], factors: NDArray[np.float64]) -> NDArray[np.float32]:
        """Return morphology (n, t, dm) after a change of the factors (n, k), held inside the range; unchanged where that is 0."""
        before = morphology.reshape(len(morphology), -1)
        after = before + np.asarray(factors @ self.loadings, dtype=np.float32)
        held = np.clip(after, np.minimum(before, self.low), np.maximum(before, self.high))
        return np.asarray(held.reshape(morphology.shape), dtype=np.float32)


def fit_morphology_trend(scores: NDArray[np.float64], morphology: NDArray[np.float32]) -> MorphologyTrend | None:
    """Return the trend of morphology (n, t, dm) along uncorrelated factors of expression (n, k); None below `MIN_SPOTS` spots."""
    if len(scores) < MIN_SPOTS:
        return None
    m, centred_scores = morphology.reshape(len(morphology), -1).astype(np.float64), scores - scores.mean(axis=0)
    loadings = centred_scores.T @ (m - m.mean(axis=0)) / np.maximum((centred_scores**2).sum(axis=0), 1e-12)[:, None]
    low, high = m.min(axis=0).astype(np.float32), m.max(axis=0).astype(np.float32)
    return MorphologyTrend(loadings.astype(np.float32), low, high, len(m))


_ARRAYS = ("weights", "components", "r2", "penalties")


def fit_morphology_map(
    expression: NDArray[np.float32],
    morphology: NDArray[np.float32],
    folds: ArrayLike | None = None,
    sections: ArrayLike | None = None,
    *,
    yx: NDArray[np.float64] | None = None,
) -> MorphologyMap:
    """Fit the map to the spots of one or several sections.

    Everything is centred within each section, as stain and depth differ between them. The penalty of each principal component of
    morphology, and which components are kept, are chosen by cross-validation; what the map explains is measured in a second one
    around that choice. Deterministic.

    Parameters
    ----------
    expression
        (n, d); of tokens (n, g, d) the mean over g is taken.
    morphology
        (n, t, dm), or (n, dm).
    folds
        (n,) what is left out together. None: ``sections`` where there are three or more, else blocks of neighbours by ``yx``.
    sections
        (n,) number of the section of each spot; None: all are of one.
    yx
        (n, 2) positions of the spots.

    Raises
    ------
    SectionError
        Shapes do not fit, values are not finite, or nothing says what to leave out together.
    """
    e, m = _checked(expression, morphology)
    shape = (m.shape[1], m.shape[2])
    groups = np.zeros(len(e), dtype=np.int64) if sections is None else np.asarray(sections, dtype=np.int64)
    if len(e) < MIN_SPOTS:
        return _still(e.shape[1], shape, np.zeros(0), 0.0, len(e))
    left_out = _folds(folds, groups, yx, len(e))
    x, y = centred(e, groups), centred(m.reshape(len(m), -1), groups)
    unit = spread_of(x)
    x /= unit  # what never varies says nothing
    basis, scores = _components(y, m.shape[1])
    names = np.unique(left_out)
    # squared error of the mean on tissue left out, and what the map saves of it, fold by fold
    total_ss, gained = np.zeros((2, len(names), scores.shape[1]))
    for place, fold in enumerate(names):
        out = left_out == fold
        chosen = _choose(x[~out], scores[~out], left_out[~out])
        weights = _weights(x[~out], scores[~out], chosen)
        centre, target = x[~out].mean(axis=0), scores[~out].mean(axis=0)
        own = scores[out] - target
        total_ss[place] = (own**2).sum(axis=0)
        gained[place] = (own**2 - (own - (x[out] - centre) @ weights) ** 2).sum(axis=0)
    each = gained / np.maximum(total_ss, 1e-30)
    sure = each.mean(axis=0) > each.std(axis=0, ddof=1) / np.sqrt(len(names))  # else it may be chance
    total_ss, gained = total_ss.sum(axis=0), gained.sum(axis=0)
    r2 = gained / np.maximum(total_ss, 1e-30)
    beyond = max(float((y**2).sum() - (scores**2).sum()), 0.0)  # of components that are not predicted
    chosen = _choose(x, scores, left_out)
    kept = np.isfinite(chosen) & (gained > 0) & sure
    share = float(gained[kept].sum() / max(float(total_ss.sum()) + beyond, 1e-30))
    if not kept.any():
        return _still(e.shape[1], shape, r2, share, len(e))
    slopes = _weights(x, scores, chosen)[:, kept] / unit[:, None]
    arrays = (slopes, basis[kept], r2, chosen[kept])
    weights32, components, r2_32, penalties = (np.asarray(array, dtype=np.float32) for array in arrays)
    return MorphologyMap(shape, weights32, components, r2_32, share, penalties, len(e))


def vectors_of(expression: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return vectors (n, d) of expression (n, d), or of tokens (n, g, d), whose mean is taken."""
    return expression.mean(axis=1) if expression.ndim == 3 else expression


def _checked(
    expression: NDArray[np.float32], morphology: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if expression.ndim not in (2, 3) or morphology.ndim not in (2, 3) or len(expression) != len(morphology):
        raise SectionError(
            f"expression {expression.shape} and morphology {morphology.shape} do not fit: expected (n, d) or (n, tokens, d) each, of "
            "the same n spots"
        )
    e = np.asarray(vectors_of(expression), dtype=np.float64)
    m: NDArray[np.float64] = np.asarray(morphology, dtype=np.float64)
    if not (np.isfinite(e).all() and np.isfinite(m).all()):
        raise SectionError("expression or morphology holds numbers that are not finite; no map can be fitted to them")
    return e, m[:, None] if m.ndim == 2 else m


def _folds(
    folds: ArrayLike | None, groups: NDArray[np.int64], yx: NDArray[np.float64] | None, count: int
) -> NDArray[np.int64]:
    if folds is not None:
        found = np.asarray(folds, dtype=np.int64)
    elif len(np.unique(groups)) > 2:
        found = groups
    elif yx is not None:
        found = np.zeros(count, dtype=np.int64)
        for group in np.unique(groups):
            found[groups == group] = compact_folds(np.asarray(yx)[groups == group])
    else:
        raise SectionError(
            "positions of the spots are needed, or what is to be left out together when the map is checked"
        )
    if len(found) != count or len(groups) != count:
        raise SectionError(f"folds and sections are of {len(found)} and {len(groups)} spots, expected {count}")
    if len(np.unique(found)) < 3:
        raise SectionError(
            f"{len(np.unique(found))} folds are too few to choose a map and to check it; at least 3 are needed"
        )
    return found


def _still(width: int, shape: tuple[int, int], r2: ArrayLike, share: float, spots: int) -> MorphologyMap:
    none = np.zeros((width, 0), dtype=np.float32), np.zeros((0, shape[0] * shape[1]), dtype=np.float32)
    return MorphologyMap(shape, *none, np.asarray(r2, dtype=np.float32), share, np.zeros(0, dtype=np.float32), spots)


def _components(y: NDArray[np.float64], tokens: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the targets of centred y (n, f): a basis (r, f) and scores (n, r).

    A single short vector is predicted number by number: principal components would mix what expression explains with the rest.
    """
    if tokens == 1 and y.shape[1] <= MAX_COMPONENTS:
        return np.eye(y.shape[1]), y
    return _principal(y)


def _principal(y: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return principal components (r, f) of centred y (n, f), each with its largest entry positive, and scores (n, r)."""
    if y.shape[1] <= len(y):
        values, vectors = np.linalg.eigh(y.T @ y)
        basis = vectors.T[::-1]
    else:  # tokens are wide: by the products of spots
        values, vectors = np.linalg.eigh(y @ y.T)
        norms = np.sqrt(np.maximum(values[::-1], 1e-30))
        basis = (vectors.T[::-1] @ y) / norms[:, None]
    kept = min(int((values[::-1] > 1e-10 * max(float(values[-1]), 1e-30)).sum()), MAX_COMPONENTS)
    basis = basis[:kept]
    signs = np.sign(basis[np.arange(kept), np.abs(basis).argmax(axis=1)])
    basis = basis * signs[:, None]
    return basis, y @ basis.T


def _choose(x: NDArray[np.float64], scores: NDArray[np.float64], folds: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the penalty (r,) of each component; infinite where none beats the mean on folds left out."""
    names = np.unique(folds)
    errors = np.zeros((len(names), len(PENALTIES), scores.shape[1]))
    for place, fold in enumerate(names):
        out = folds == fold
        centre, target = x[~out].mean(axis=0), scores[~out].mean(axis=0)
        total_ss = np.maximum(((scores[out] - target) ** 2).sum(axis=0), 1e-30)
        penalties = PENALTIES * int((~out).sum())
        # errors relative to those of the mean, so that no section counts more than another
        for row, weights in enumerate(ridge_weights(x[~out] - centre, scores[~out] - target, penalties)):
            errors[place, row] = ((scores[out] - target - (x[out] - centre) @ weights) ** 2).sum(axis=0) / total_ss
    mean, spread = errors.mean(axis=0), errors.std(axis=0, ddof=1) / np.sqrt(len(names))
    best, each = mean.argmin(axis=0), np.arange(scores.shape[1])
    # the smallest penalty within one standard error of the best: a penalty shrinks the effects that are wanted
    near = mean <= mean[best, each] + spread[best, each]
    return np.where(mean[best, each] < 1, PENALTIES[near.argmax(axis=0)], np.inf)


def _weights(
    x: NDArray[np.float64], scores: NDArray[np.float64], penalties: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return weights (d, r), each component by its own penalty; 0 where that is infinite."""
    weights = np.zeros((x.shape[1], scores.shape[1]))
    used = np.unique(penalties[np.isfinite(penalties)])
    solved = ridge_weights(x - x.mean(axis=0), scores - scores.mean(axis=0), used * len(x))
    for penalty, found in zip(used, solved, strict=True):
        own = penalties == penalty
        weights[:, own] = found[:, own]
    return weights
