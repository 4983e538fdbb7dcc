"""Tissue profiles of a checkpoint: mean expression of the training spots with the highest score of each region's marker genes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ..expression.normalise import PER
from .data import TrainingSection
from .programs import REGION_MARKERS, counts_of, log_normalise, smooth_counts

MIN_MARKERS = 2
"""Markers that every section must have for a region to get a profile."""
REGION_SHARE = 0.10
"""Share of the training spots, those with the highest margin, that a profile is the mean of."""
RIVAL_SHARE = 0.5
"""Share of the best other region's score that is subtracted: half, as tissues mix within a spot."""


def region_profiles(
    sections: Sequence[TrainingSection],
    genes: tuple[str, ...],
    region_markers: Mapping[str, Sequence[str]] = REGION_MARKERS,
) -> dict[str, tuple[NDArray[np.float32], NDArray[np.float32], float]]:
    """Return mean and spread (g,) of log1p(CP10k) over ``genes``, and mean relative depth, for each tissue region.

    Score of a spot for a region: the mean over the region's markers of the smoothed log1p(CP10k) z-scored within the section, so that
    depth and batch do not decide. A region is the tenth of all training spots with the highest `region_margins`; one with fewer than
    `MIN_MARKERS` markers in some section is left out.
    """
    there = set.intersection(*[set(s.section.spots.genes.symbols.tolist()) for s in sections])
    regions = {name: ms for name, ms in region_markers.items() if len(there & set(ms)) >= MIN_MARKERS}
    if len(regions) < 2:
        return {}
    names = tuple(dict.fromkeys(g for ms in regions.values() for g in ms))
    column = {name: k for k, name in enumerate(names)}
    pooled, scores = [], []
    for section in sections:
        pooled.append(log_normalise(smooth_counts(section, counts_of(section, genes), 100.0)))
        total = np.asarray(section.section.spots.counts.sum(axis=1)).reshape(-1, 1)
        markers = np.log1p(smooth_counts(section, counts_of(section, names) * (PER / np.maximum(total, 1)), 100.0))
        standard = (markers - markers.mean(axis=0)) / (markers.std(axis=0) + 0.05)
        scores.append(np.column_stack([standard[:, [column[m] for m in ms]].mean(axis=1) for ms in regions.values()]))
    values, score = np.concatenate(pooled), np.concatenate(scores)
    depth = np.concatenate([section.section.spots.relative_depth for section in sections])
    profiles = {}
    for region, margin in zip(regions, region_margins(score).T, strict=True):
        chosen = np.argsort(-margin)[: max(2, round(REGION_SHARE * len(margin)))]
        profiles[region] = (values[chosen].mean(axis=0), values[chosen].std(axis=0), float(depth[chosen].mean()))
    return profiles


def region_margins(score: NDArray[np.floating]) -> NDArray[np.floating]:
    """(n, r) marker scores of r >= 2 regions -> (n, r): score_k - `RIVAL_SHARE` * max over the other regions."""
    rivals = [np.delete(score, column, axis=1).max(axis=1) for column in range(score.shape[1])]
    return score - RIVAL_SHARE * np.column_stack(rivals)
