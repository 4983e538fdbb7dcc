"""What reads expression off the patches of an evaluation: the user's predictor, or a regression that never saw the spots it reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..encoders.regression import FOLDS, blocks_of
from ..errors import RequestError
from ..expression.genes import match_genes
from ..synthesis.models import PatchModel
from ..types import Section
from .features import FeatureSpace
from .held_out import SpotSet
from .predictor import FEWEST_SPOTS, LinearPredictor, choose_genes, fit_ridge, log_levels

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
