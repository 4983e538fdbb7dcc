"""The table: every combination of conditions on all spots of a section that was not trained on."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
from intervals import bootstrap_correlation, correlate, mean_interval, permutation_interval, rounded
from synthesizer import Spots, Synthesizer, crops_at, quarters

from napari_stmdit.evaluation.measures import PatchStatistics, reconstruct
from napari_stmdit.evaluation.spaces import (
    EncoderStatistics,
    FeatureSpace,
    Frame,
    RandomConvolutions,
    frechet_distance,
)
from napari_stmdit.synthesis.conditions import shuffled_rows

CASES = {  # morphology, expression
    "both": ("own", "own"),
    "expression": (None, "own"),
    "morphology": ("own", None),
    "none": (None, None),
    "expression, shuffled": (None, "shuffled"),
    "both, expression shuffled": ("own", "shuffled"),
}
QUANTITIES = ("haematoxylin", "nuclei", "blank")
JITTER_PX = 150
PENALTIES = np.logspace(-1, 4, 16)


def test_spots(maker: Synthesizer, options: argparse.Namespace) -> Spots:
    """Return all spots of the tested section, or so many as the limit says."""
    section = options.open(options.section)
    rows = np.arange(len(section.spots))
    if options.limit and options.limit < len(rows):
        rows = np.sort(np.random.default_rng(0).permutation(len(rows))[: options.limit])
    return Spots(section, rows, maker.checkpoint)


def case_images(maker: Synthesizer, spots: Spots, case: str, seed: int) -> np.ndarray:
    """Synthesize all spots under one combination of conditions."""
    use_morphology, use_expression = CASES[case]
    expression = spots.expression
    if use_expression == "shuffled":
        expression = expression[shuffled_rows(len(expression), 1000 + seed)]
    return maker.images(
        spots.seeds(seed), spots.morphology if use_morphology else None, expression if use_expression else None
    )


def table(maker: Synthesizer, options: argparse.Namespace) -> dict[str, Any]:
    """Return correlations with the real patches, means, and distances, each with its floor, ceiling or control."""
    spots = test_spots(maker, options)
    spaces = distances(maker, options, spots)
    rows: dict[str, Any] = {}
    for case in CASES:
        seeds = range(options.seeds + (case == "expression"))
        stacks = [case_images(maker, spots, case, seed) for seed in seeds]
        rows[case] = figures([spots.measured(stack) for stack in stacks], spots.real)
        rows[case]["frechet"] = {
            name: [round(space(stack), 2) for stack in stacks[: options.seeds]] for name, space in spaces.items()
        }
    rebuilt = reconstruct(maker.checkpoint, spots.crops)
    rows["autoencoder"] = figures([spots.measured(rebuilt)], spots.real)
    rows["autoencoder"]["frechet"] = {name: [round(space(rebuilt), 2)] for name, space in spaces.items()}
    return {
        "section": options.section,
        "spots": len(spots.rows),
        "seeds": options.seeds,
        "real": means([spots.real]),
        "unrelated_95": {
            q: [round(v, 3) for v in permutation_interval(getattr(spots.real, q), getattr(spots.real, q)[::-1])]
            for q in QUANTITIES
        },
        "rows": rows,
        "ridge_from_expression": ridge(maker, options, spots),
        "floors": floors(maker, options, spots, spaces),
    }


def figures(per_seed: list[PatchStatistics], real: PatchStatistics) -> dict[str, Any]:
    """Return correlations of single seeds and of their mean with 95 % bootstrap intervals over spots, and means."""
    out: dict[str, Any] = {"means": means(per_seed)}
    for quantity in QUANTITIES:
        target = getattr(real, quantity)
        values = np.stack([getattr(statistics, quantity) for statistics in per_seed])
        averaged, first = (bootstrap_correlation(v, target) for v in (values.mean(axis=0), values[0]))
        out[quantity] = {
            "r_per_seed": [round(correlate(v, target), 3) for v in values],
            "r_first": rounded(first),
            "r_mean_of_seeds": rounded(averaged),
        }
    return out


def means(per_seed: list[PatchStatistics]) -> dict[str, list[float]]:
    """Return mean and 95 % bootstrap interval over spots of every statistic, seeds averaged first."""
    rng = np.random.default_rng(0)
    out = {}
    for name in vars(per_seed[0]):
        values = np.mean([getattr(statistics, name) for statistics in per_seed], axis=0)
        out[name] = rounded(mean_interval(values, rng), 4)
    return out


def distances(maker: Synthesizer, options: argparse.Namespace, spots: Spots) -> dict[str, Any]:
    """Return, by name of the space, the Frechet distance of a set of patches to the section's real ones."""
    spaces: list[FeatureSpace] = [
        EncoderStatistics(maker.checkpoint.morphology, "the checkpoint's own encoder"),
        RandomConvolutions(),
    ]
    out = {}
    for space in spaces:
        real = space.features(quarters(spots.crops))
        frame = Frame.of(real)
        target = frame.project(real)

        def distance(patches: np.ndarray, space=space, frame=frame, target=target) -> float:
            return frechet_distance(frame.project(space.features(quarters(patches))), target)

        out[space.name] = distance
    return out


def floors(maker: Synthesizer, options: argparse.Namespace, spots: Spots, spaces: dict[str, Any]) -> dict[str, Any]:
    """Return the distances of other real patches, equally many: the section's own places shifted, and a sibling section's."""
    rng, card = np.random.default_rng(0), maker.checkpoint.card
    places = spots.section.spots.yx[spots.rows]
    shifted = crops_at(spots.section, places + rng.uniform(-JITTER_PX, JITTER_PX, places.shape), card)
    sibling = options.open(options.sibling)
    chosen = rng.choice(len(sibling.spots), len(places), replace=len(sibling.spots) < len(places))
    other = crops_at(sibling, sibling.spots.yx[chosen], card)
    return {
        f"real, shifted by up to {JITTER_PX} px": {name: round(space(shifted), 2) for name, space in spaces.items()},
        f"real, {options.sibling}": {name: round(space(other), 2) for name, space in spaces.items()},
    }


def ridge(maker: Synthesizer, options: argparse.Namespace, spots: Spots) -> dict[str, Any]:
    """Return how well ridge regression on the same expression scores predicts the real patch: a ceiling for linear use of them.

    Fitted on the training sections' spots; the penalty is chosen by leaving one of those sections out, never on the tested one.
    """
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import GridSearchCV, LeaveOneGroupOut

    learned = [
        Spots(options.open(name), np.arange(len(options.open(name).spots)), maker.checkpoint)
        for name in options.trained_on
    ]
    x = np.concatenate([s.expression for s in learned])
    groups = np.concatenate([np.full(len(s.rows), k) for k, s in enumerate(learned)])
    split = LeaveOneGroupOut() if len(learned) > 1 else None
    out = {}
    for quantity in QUANTITIES:
        y = np.concatenate([getattr(s.real, quantity) for s in learned])
        search = GridSearchCV(Ridge(), {"alpha": PENALTIES}, cv=split, scoring="r2").fit(x, y, groups=groups)
        fit = bootstrap_correlation(search.predict(spots.expression), getattr(spots.real, quantity))
        out[quantity] = {
            "r": rounded(fit),
            "penalty": float(search.best_params_["alpha"]),
        }
    return out
