"""Choosing spots: by place, by polygon, and how a new choice joins the old one. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from ..tissue.geometry import spots_in_polygons
from ..types import Polygons, SpotTable
from .state import Combine


class SpotFinder:
    """Finds spots of one table by their place; positions are (y, x) in full-resolution pixels."""

    def __init__(self, spots: SpotTable) -> None:
        from scipy.spatial import cKDTree

        self.spots = spots
        self._tree = cKDTree(spots.yx) if len(spots) else None

    def at(self, yx: Sequence[float]) -> tuple[str, ...]:
        """Return the id of the spot whose disc covers a place; empty where none does."""
        if self._tree is None:
            return ()
        distance, row = self._tree.query(np.asarray(yx, dtype=np.float64))
        return (str(self.spots.ids[row]),) if distance <= self.spots.diameter / 2 else ()

    def within(self, ring: NDArray[np.float64]) -> tuple[str, ...]:
        """Return the ids of the spots whose centres lie in a ring (n, 2); it may cross itself.

        A ring smaller than a spot's radius is what a click leaves behind in lasso mode, and means the spot under it.
        """
        if len(ring) == 0:
            return ()
        if len(ring) < 3 or np.ptp(ring, axis=0).max() < self.spots.diameter / 2:
            return self.at(ring.mean(axis=0))
        rings = (tuple((float(y), float(x)) for y, x in ring),)
        inside = spots_in_polygons(self.spots.yx, Polygons(rings=rings))
        return tuple(self.spots.ids[inside].tolist())


def combine(spots: SpotTable, present: Iterable[str], new: Iterable[str], how: Combine) -> tuple[str, ...]:
    """Join a new choice to the present selection; the result is in the table's order."""
    before, chosen = set(present), set(new)
    kept = {
        "replace": chosen,
        "add": before | chosen,
        "subtract": before - chosen,
        "toggle": before ^ chosen,
    }[how]
    return tuple(spot for spot in spots.ids.tolist() if spot in kept)


def inverted(spots: SpotTable, present: Iterable[str]) -> tuple[str, ...]:
    """Return every spot that is not selected."""
    return combine(spots, spots.ids.tolist(), present, "subtract")
