"""Choosing spots: by place, by polygon, and how a new choice joins the old one. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from ..intent import Polygons
from ..tissue.geometry import spots_in_polygons
from ..types import SpotTable
from .state import Combine


class SpotFinder:
    """Finds spots of one table by their place; positions are (y, x) in full-resolution pixels."""

    def __init__(self, spots: SpotTable) -> None:
        from scipy.spatial import cKDTree

        self.spots = spots
        self.tree = cKDTree(spots.yx) if len(spots) else None

    def at(self, yx: Sequence[float]) -> tuple[str, ...]:
        """Return the id of the spot whose disc covers a place; empty where none does."""
        if self.tree is None:
            return ()
        distance, row = self.tree.query(np.asarray(yx, dtype=np.float64))
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


def neighbours(spots: SpotTable) -> csr_matrix:
    """Return which spots are neighbours, (n, n) sparse bool.

    On a Visium lattice, six by array row and column (two columns on in the row, one column on in the rows above and below), so
    that a hole is a hole; elsewhere the spots within 1.3 times the median distance to the nearest spot: six on a hexagonal
    lattice, four on a square one.
    """
    from scipy.spatial import cKDTree

    if len(spots) < 2:
        return csr_matrix((len(spots), len(spots)), dtype=bool)
    if spots.array_rc is not None and _is_hexagonal(spots.array_rc):
        place = {(r, c): k for k, (r, c) in enumerate(spots.array_rc.tolist())}
        steps = ((0, 2), (0, -2), (1, 1), (1, -1), (-1, 1), (-1, -1))
        pairs = [(k, place[to]) for (r, c), k in place.items() for y, x in steps if (to := (r + y, c + x)) in place]
        a, b = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    else:
        tree = cKDTree(spots.yx)
        pitch = float(np.median(tree.query(spots.yx, k=2)[0][:, 1]))
        one, two = tree.query_pairs(1.3 * pitch, output_type="ndarray").T
        a, b = np.concatenate([one, two]), np.concatenate([two, one])
    return csr_matrix((np.ones(len(a), dtype=bool), (a, b)), shape=(len(spots), len(spots)))


def _is_hexagonal(array_rc: NDArray[np.int64]) -> bool:
    """Whether array rows and columns are those of a Visium lattice: their sum is even everywhere, and rows interleave."""
    even = (array_rc.sum(axis=1) % 2 == 0).all()
    return bool(even and len(np.unique(array_rc[:, 1] % 2)) == 2 and len(np.unique(array_rc, axis=0)) == len(array_rc))


def grown(spots: SpotTable, near: csr_matrix, ids: Iterable[str], rings: int) -> tuple[str, ...]:
    """Return a choice grown by rings of neighbours, or shrunk by so many where ``rings`` is negative.

    Shrinking takes away what has a neighbour outside; where the tissue ends there is none, and nothing is taken away there.
    """
    known = set(ids)
    inside = np.array([spot in known for spot in spots.ids.tolist()], dtype=bool)
    for _ in range(abs(rings)):
        inside = inside | (near @ inside) if rings > 0 else inside & ~(near @ ~inside)
    return tuple(spots.ids[inside].tolist())


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
