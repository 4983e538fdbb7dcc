"""The brush: how a stroke of the mouse becomes weights of spots. Pure."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from ..types import SpotTable
from .state import Brush

DECIMALS = 4
"""Places kept of a weight, so that what is drawn, written to a file and synthesized is one and the same."""


def falloff(distance: NDArray[np.float64], brush: Brush) -> NDArray[np.float64]:
    """Return the weight at distances from a stroke's path, in radii: 1 within the hard core, then down a cosine to 0 at 1."""
    if brush.softness <= 0:
        return (distance <= 1).astype(np.float64)
    beyond = np.clip((distance - (1 - brush.softness)) / brush.softness, 0, 1)
    return np.where(distance <= 1, 0.5 * (1 + np.cos(np.pi * beyond)), 0.0)


class Stroke:
    """One stroke: the greatest weight that its path gave to each spot, on top of what the edit had before.

    Within a stroke nothing adds up, so that the result does not depend on how often the mouse was asked where it is. A stroke
    over weight w leaves w + (1 - w) * v, an erasing one w * (1 - v), with v the stroke's own weight.

    Parameters
    ----------
    spots
        The section's.
    tree
        k-d tree of their positions in full-resolution pixels.
    brush
        How it paints.
    radius
        In full-resolution pixels.
    before
        Spot id -> weight that the edit has; None stands for weight 1 everywhere.
    """

    def __init__(
        self, spots: SpotTable, tree: object, brush: Brush, radius: float, before: Mapping[str, float] | None
    ) -> None:
        self.spots, self.brush, self.radius = spots, brush, max(radius, 1e-9)
        self._tree = tree
        self._last: NDArray[np.float64] | None = None
        self._painted = np.zeros(len(spots))
        self._ids = spots.ids.tolist()
        if before is None:
            self._before = np.ones(len(spots))
        else:
            self._before = np.array([before.get(spot, 0.0) for spot in self._ids])

    def to(self, yx: NDArray[np.float64]) -> bool:
        """Move the brush to a place; return whether any spot's weight changed."""
        start = yx if self._last is None else self._last
        self._last = yx
        steps = max(1, int(np.ceil(np.linalg.norm(yx - start) / self.radius)))
        path = start + np.linspace(0, 1, steps + 1)[:, None] * (yx - start)
        # a spot within a radius of the path lies within 1.12 radii of one of the places, which are at most a radius apart
        found = self._tree.query_ball_point(path, 1.12 * self.radius)  # type: ignore[attr-defined]
        rows = np.unique(np.concatenate([np.array(near, dtype=np.int64) for near in found]))
        if not rows.size:
            return False
        distance = _to_segment(self.spots.yx[rows], start, yx) / self.radius
        weight = np.maximum(self._painted[rows], self.brush.strength * falloff(distance, self.brush))
        changed = bool((weight > self._painted[rows]).any())
        self._painted[rows] = weight
        return changed

    def weights(self) -> dict[str, float]:
        """Return the edit's weights after the stroke; spots without weight are left out."""
        painted, before = self._painted, self._before
        after = before * (1 - painted) if self.brush.erase else before + (1 - before) * painted
        after = np.round(after, DECIMALS)
        return {self._ids[row]: float(after[row]) for row in np.flatnonzero(after)}


def _to_segment(
    points: NDArray[np.float64], start: NDArray[np.float64], end: NDArray[np.float64]
) -> NDArray[np.float64]:
    along = end - start
    length = float(along @ along)
    share = np.zeros(len(points)) if length == 0 else np.clip((points - start) @ along / length, 0, 1)
    distance: NDArray[np.float64] = np.linalg.norm(points - (start + share[:, None] * along), axis=1)
    return distance
