"""Whether a slide image shows what a thumbnail of the section shows, and lies as it lies there.

A slide that is turned or mirrored has the size of the right one, and so has a mask or an overlay: only their pixels tell.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..types import SlideImage
from .crops import read_patches, readable

_WHOLE = (48, 1 / 48)
"""Places along each axis, and the side of the box at each as a share of the image's: the boxes cover the image."""
_SPARSE = (16, 0.004)
"""Of a slide without a coarse level: small boxes, so that few of its tiles are read."""
_MAX_CHUNKS = 2000
"""More is not read of a slide to compare it."""
ALIKE = 0.8
"""Least correlation of a slide with its thumbnail. Right pairs have above 0.99 as a rule (0.93 where the thumbnail is tiny), other
orientations and other sections between 0 and 0.8."""
ALIKE_UNASKED = 0.95
"""The same for a picture that nobody named: an overlay on the slide has the slide's size, and much of its look."""
_BETTER = 0.05
_MIN_SPREAD = 1.0
"""Grey levels below which a thumbnail shows nothing to compare."""

_Turn = Callable[[NDArray[Any]], NDArray[Any]]
_ORIENTATIONS: tuple[tuple[str, _Turn], ...] = (
    ("", lambda a: a),
    ("turned by 180 degrees", lambda a: a[::-1, ::-1]),
    ("mirrored left to right", lambda a: a[:, ::-1]),
    ("mirrored top to bottom", lambda a: a[::-1]),
    ("turned by 90 degrees clockwise", lambda a: np.rot90(a, -1)),
    ("turned by 90 degrees counterclockwise", lambda a: np.rot90(a)),
    ("mirrored along its diagonal (rows for columns)", lambda a: a.swapaxes(0, 1)),
    ("mirrored along its other diagonal", lambda a: np.rot90(a, 2).swapaxes(0, 1)),
)
"""How a slide may lie against its thumbnail, and what makes the thumbnail lie like it."""


def unlike(slide: SlideImage, thumbnail: SlideImage, least: float = ALIKE) -> str | None:
    """Say what is wrong with a slide image by a thumbnail of the section; None where nothing is, or nothing can be told.

    Parameters
    ----------
    slide, thumbnail
        Of the same field of view; their sizes are not compared. Of the slide its coarsest level is read, or a few hundred small places
        where that would read all of it.
    least
        Correlation below which it shows something else.

    Returns
    -------
    str or None
        A clause without a subject: what it is against the thumbnail.

    Raises
    ------
    SectionError
        Where the pixels of one of them cannot be read.
    """
    with readable(slide):
        if len(slide.levels[-1].__dask_graph__()) <= _MAX_CHUNKS:
            found, wanted = _looks(slide, *_WHOLE), _looks(thumbnail, *_WHOLE)
        else:
            found, wanted = _patches(slide, *_SPARSE), _looks(thumbnail, *_SPARSE)
    if wanted.std(axis=(0, 1)).max() < _MIN_SPREAD:
        return None
    fits = [_correlation(found, turn(wanted)) for _, turn in _ORIENTATIONS]
    best = int(np.argmax(fits))
    name = Path(thumbnail.source).name
    if fits[best] >= ALIKE and fits[best] > fits[0] + _BETTER:
        return f"is {_ORIENTATIONS[best][0]} against {name}"
    if fits[0] < least:
        return f"does not look like {name} (correlation {max(fits[0], 0):.2f}, of the right image nearly 1)"
    return None


def _looks(image: SlideImage, places: int, box: float) -> NDArray[np.float64]:
    """Mean colours of boxes spread over the coarsest level of an image, (places, places, 3)."""
    pixels = np.asarray(image.levels[-1].compute(), dtype=np.float64)
    rows, columns = (_overlap(side, places, box) for side in pixels.shape[:2])
    looks: NDArray[np.float64] = np.einsum("py,yxc,qx->pqc", rows, pixels, columns, optimize=True)
    return looks


def _overlap(side: int, places: int, box: float) -> NDArray[np.float64]:
    """Share of each pixel in the mean of each box along an axis, (places, side)."""
    middles = (np.arange(places)[:, None] + 0.5) / places * side
    low, high = middles - box * side / 2, middles + box * side / 2
    at = np.arange(side)[None, :]
    shares: NDArray[np.float64] = np.clip(np.minimum(at + 1, high) - np.maximum(at, low), 0, None) / (high - low)
    return shares


def _patches(image: SlideImage, places: int, box: float) -> NDArray[np.float64]:
    """The same of an image that has no coarse level, read box by box; of its finest level, as others would be made of all of it."""
    height, width = (side * image.pixel_size for side in image.shape)
    middles = ((np.arange(places) + 0.5) / places).tolist()
    boxes = [
        ((y - box / 2) * height, (x - box / 2) * width, (y + box / 2) * height, (x + box / 2) * width)
        for y in middles
        for x in middles
    ]
    finest = SlideImage(image.levels[:1], image.pixel_size, image.source)
    return read_patches(finest, boxes, 1).reshape(places, places, 3).astype(np.float64)


def _correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Pearson's, over the places and colours, each colour's mean taken off; 0 where one of them is flat."""
    a, b = a - a.mean(axis=(0, 1)), b - b.mean(axis=(0, 1))
    size = float(np.sqrt((a**2).sum() * (b**2).sum()))
    return float((a * b).sum()) / size if size > 1e-6 else 0.0
