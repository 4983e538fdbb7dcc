"""Where an edit changes tissue, as a feature space sees it: crops at the edit, around it and beyond its reach."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .features import FeatureSpace


def feature_locality(
    real: NDArray[np.uint8],
    edited: NDArray[np.uint8],
    middle: tuple[int, int],
    side: int,
    areas: Mapping[str, NDArray[np.bool_]],
    spaces: Sequence[FeatureSpace],
    reference: NDArray[np.uint8],
) -> dict[str, Any]:
    """Compare crops of two (h, w, 3) pictures in feature spaces.

    Parameters
    ----------
    real, edited
        The slide, and the slide with the edit.
    middle
        (y, x) of the edit's middle, in pixels; the crop there is the one inside. The others lie on a grid of half a side around it.
    side
        Of a crop, in pixels.
    areas
        (h, w) bool each, ``around`` and ``outside``: crops that lie wholly in one.
    spaces
        Feature spaces.
    reference
        (n, side, side, 3) real crops, whose spread is the unit of a feature.

    Returns
    -------
    dict
        ``features``: for each space the change ``inside``, the mean ``around``, the largest ``outside``, all in spreads (root mean
        square over features), and the ``ratio`` of inside to around; null where there is no such crop, or nothing changes around.
        ``ratio_features``: that of the first space.
    """
    inside = _kept_in(np.array(middle) - side // 2, np.array(real.shape[:2]) - side)
    corners = {"inside": [inside], **{name: _crops_in(mask, inside, side) for name, mask in areas.items()}}
    found: dict[str, Any] = {}
    for space in spaces:
        spread = space.features(reference).std(axis=0)
        unit = np.where(
            spread > 1e-9 * max(float(spread.max()), 1e-30), spread, np.inf
        )  # what never varies says nothing
        parts = {}
        for name, own in corners.items():
            before, after = (
                space.features(np.stack([picture[y : y + side, x : x + side] for y, x in own]))
                if own
                else np.empty((0, len(unit)))
                for picture in (real, edited)
            )
            parts[name] = np.sqrt((((after - before) / unit) ** 2).mean(axis=1))
        means = {name: float(parts[name].mean()) if len(parts[name]) else None for name in ("inside", "around")}
        found[space.name] = {
            **{name: None if value is None else round(value, 5) for name, value in means.items()},
            "outside": round(float(parts["outside"].max()), 5) if len(parts["outside"]) else None,
            "ratio": round(means["inside"] / means["around"], 2) if means["inside"] and means["around"] else None,
        }
    return {"features": found, "ratio_features": next(iter(found.values()))["ratio"]}


def _crops_in(mask: NDArray[np.bool_], first: tuple[int, int], side: int) -> list[tuple[int, int]]:
    """Return corners (y, x) of the crops that lie wholly in a mask, on the grid of half a side that ``first`` lies on."""
    rows, columns = (
        range(at % (side // 2), size - side + 1, side // 2) for at, size in zip(first, mask.shape, strict=True)
    )
    return [(y, x) for y in rows for x in columns if mask[y : y + side, x : x + side].all()]


def _kept_in(corner: NDArray[np.int64], most: NDArray[np.int64]) -> tuple[int, int]:
    y, x = np.clip(corner, 0, np.maximum(most, 0)).tolist()
    return y, x
