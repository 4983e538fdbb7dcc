"""From values to the colours of the spots."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .state import ColourScale
from .values import DIVERGING

COLORMAPS = ("viridis", "magma", "inferno", "plasma", "gray_r")
"""Perceptually uniform; the first is the default. All can be read with the common colour vision deficiencies."""
RING = (0.10, 0.18, 0.30, 0.9)
"""Outline of a spot without a value: dark blue, seen on pink tissue and on bright glass."""
SELECTED = (0.0, 0.90, 1.0, 1.0)
"""Outline of a selected spot: cyan, the hue that an H&E stain has least of."""
PAINTED = (1.0, 0.62, 0.0, 1.0)
"""Outline of a spot that the chosen edit changes: orange, told from cyan by everyone."""
UNKNOWN = (0.6, 0.6, 0.6, 0.5)
"""A spot whose value is missing."""
FACE_ALPHA = 0.85
_CHANGE = ((0.02, 0.19, 0.58), (0.35, 0.60, 0.90), (0.96, 0.96, 0.96), (0.98, 0.62, 0.22), (0.55, 0.22, 0.0))
"""Blue for less, white for no change, orange for more: both sides darken alike, and no one confuses the two hues."""
_CATEGORIES = (
    *("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000"),  # Okabe and Ito
    *("#882255", "#44AA99", "#999933", "#332288", "#DDCC77", "#AA4499", "#88CCEE", "#117733"),  # Tol, muted
)


@dataclass(frozen=True)
class SpotLook:
    """Colours (n, 4) of faces and borders, 0 to 1, and border widths (n,) relative to the diameter."""

    face: NDArray[np.float32]
    border: NDArray[np.float32]
    width: NDArray[np.float32]


def colormap_of(name: str) -> Any:
    """Return a napari colour map; the diverging one of changes is ours."""
    from napari.utils.colormaps import Colormap, ensure_colormap

    if name == DIVERGING:
        return Colormap(np.array([(*colour, 1.0) for colour in _CHANGE]), name=DIVERGING, display_name="blue to orange")
    return ensure_colormap(name)


def category_colours(count: int) -> NDArray[np.float32]:
    """Return (count, 4) colours that can be told apart with colour vision deficiencies; after sixteen they begin again."""
    rgb = [[int(code[k : k + 2], 16) / 255 for k in (1, 3, 5)] for code in _CATEGORIES]
    return np.array([[*rgb[k % len(rgb)], 1.0] for k in range(count)], dtype=np.float32).reshape(count, 4)


def face_of(values: NDArray[Any] | None, scale: ColourScale, hollow: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return the colour of each spot's value, (n, 4)."""
    face = np.zeros((len(hollow), 4), dtype=np.float32)
    if values is None:
        return face
    face[:] = UNKNOWN
    alpha: Any = FACE_ALPHA
    if scale.categories:
        colours = {name: colour for name, colour, _ in scale.categories} | {"": UNKNOWN}
        face[:] = np.array([colours.get(name, UNKNOWN) for name in values.tolist()], dtype=np.float32).reshape(-1, 4)
        known = values != ""
    else:
        low, high = scale.limits
        known = np.isfinite(values)
        share = np.clip((values[known] - low) / max(high - low, 1e-9), 0, 1)
        face[known] = np.asarray(colormap_of(scale.colormap).map(share), dtype=np.float32)
        if scale.colormap == DIVERGING:  # where nothing changes the tissue is seen
            alpha = FACE_ALPHA * np.clip(0.15 + 2 * np.abs(2 * share - 1), 0, 1)
    face[known, 3] = alpha
    face[hollow, 3] = 0
    return face


def look_of(
    values: NDArray[Any] | None,
    scale: ColourScale,
    selected: NDArray[np.bool_],
    hollow: NDArray[np.bool_],
    painted: NDArray[np.bool_] | None = None,
) -> SpotLook:
    """Return how spots are drawn.

    Parameters
    ----------
    values
        (n,) numbers or names of categories, or None for rings alone.
    scale
        What their colours mean.
    selected
        (n,) spots with the selection's outline.
    hollow
        (n,) spots drawn as rings in the colour of their value, so that what was synthesized under them is seen.
    painted
        (n,) spots that the chosen edit changes.
    """
    face = face_of(values, scale, hollow)
    border = np.tile(np.array(RING, dtype=np.float32), (len(selected), 1))
    width = np.full(len(selected), 0.07, dtype=np.float32)
    if values is not None:
        border[:, :3] = face[:, :3]
        border[:, 3] = 1.0
    if painted is not None:
        border[painted], width[painted] = PAINTED, 0.10
    border[selected], width[selected] = SELECTED, 0.14
    return SpotLook(face, border, width)
