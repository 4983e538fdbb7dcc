"""Does a patch show the expression it was made from? Gene-wise correlation and the area under correlation against top n genes.

The protocol is that of the STMDiT paper's transcriptomic fidelity: a predictor reads expression off the synthetic patch; its
correlation with the true expression is compared with what the same predictor reads off the real patch, the ceiling.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..encoders.regression import centred
from .resampling import Interval, correlation_draws

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
