"""Slide of a section: compared with its thumbnail in content and orientation, and recorded in a store that holds a smaller picture.

A slide that is turned or mirrored has the size of the right one, and so has a mask or an overlay: only their pixels tell.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..storage.fingerprint import of_ends
from ..types import Section, SlideImage
from .crops import computed, read_patches, readable


@dataclass(frozen=True)
class Original:
    """Original slide: its file or store, or the reason why it was not found.

    ``image`` is the name of the image in a store, None of a file; ``pixel_size`` is in full-resolution pixels.
    """

    path: Path | None = None
    image: str | None = None
    shape: tuple[int, int] = (0, 0)
    pixel_size: float = 1.0
    fault: str = ""


def record_of(section: Section, store: Path | None) -> dict[str, Any]:
    """Return the record of a section's slide for a store; JSON types only, empty for a slide in memory.

    Parameters
    ----------
    section
        With its slide.
    store
        The .zarr folder that is written, so that the slide is also found when both were moved together.
    """
    image = section.image
    if image is None or (image.file is None and section.store is None):
        return {}
    place = Path(image.file if image.file is not None else section.store.root).absolute()  # type: ignore[union-attr]
    found: dict[str, Any] = {"path": str(place), "shape": list(image.shape), "pixel_size": image.pixel_size}
    if store is not None:
        try:
            found["beside"] = Path(os.path.relpath(place, store.absolute().parent)).as_posix()
        except ValueError:  # another drive
            pass
    if image.file is None:
        return {**found, "image": image.source}
    return {**found, "bytes": place.stat().st_size, "sha256": of_ends(place)}


def find_original(record: object, root: Path) -> Original | None:
    """Find the slide that a store was made from, by path, size and hash; None where the store has no record.

    It is looked for at its old place, and where it would be if it was moved together with the store.
    """
    try:
        kept: Mapping[str, Any] = dict(record)  # type: ignore[call-overload]
        was, height, width = Path(str(kept["path"])), *map(int, kept["shape"])
        name, size = kept.get("image"), float(kept["pixel_size"])
        places = [was, *([root.absolute().parent / str(kept["beside"])] if "beside" in kept else ())]
        places += [root.absolute().parent / was.name, root.absolute() / was.name]
    except (KeyError, TypeError, ValueError):
        return None
    changed = False
    for place in dict.fromkeys(Path(os.path.normpath(one)) for one in places):
        if name is not None and place.is_dir() and place.resolve() != root.resolve():
            return Original(place, str(name), (height, width), size)
        if name is None and place.is_file():
            if place.stat().st_size == kept.get("bytes") and of_ends(place) == kept.get("sha256"):
                return Original(place, None, (height, width), size)
            changed = True
    if changed:
        return Original(fault=f"the slide {was} is no longer the file that this store was made from")
    return Original(fault=f"the slide that this store was made from, {was}, is not there any more")


_WHOLE = (48, 1 / 48)
"""Number of boxes along each axis, and their side as a share of the image's; these cover the image."""
_SPARSE = (16, 0.004)
"""The same for a slide without a coarse level: small boxes, so that few of its tiles are read."""
_MAX_CHUNKS = 2000
"""Maximum number of chunks to read for a comparison."""
ALIKE = 0.8
"""Minimum correlation of a slide with its thumbnail. Right pairs mostly have above 0.99 (0.93 where the thumbnail is tiny), other
orientations and other sections between 0 and 0.8."""
ALIKE_UNASKED = 0.95
"""Minimum for a picture that nobody named: an overlay has the slide's size, and much of its appearance."""
_BETTER = 0.05
_MIN_SPREAD = 1.0
"""Minimum spread in grey levels of a thumbnail that can be compared."""

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
"""Orientations of a slide relative to its thumbnail, and the transformation of the thumbnail to each."""


def unlike(slide: SlideImage, thumbnail: SlideImage, least: float = ALIKE) -> str | None:
    """Return the fault of a slide image against a thumbnail of the section; None where there is none, or nothing can be compared.

    Parameters
    ----------
    slide, thumbnail
        Of the same field of view; their sizes are not compared. The slide's coarsest level is read, or a few hundred small boxes
        where that would be all of it.
    least
        Correlation below which it shows something else.

    Returns
    -------
    str or None
        A clause without a subject.

    Raises
    ------
    SectionError
        The pixels of one of them cannot be read.
    """
    with readable(slide):
        if len(slide.levels[-1].__dask_graph__()) <= _MAX_CHUNKS:
            found, wanted = _box_means(slide, *_WHOLE), _box_means(thumbnail, *_WHOLE)
        else:
            found, wanted = _sparse_box_means(slide, *_SPARSE), _box_means(thumbnail, *_SPARSE)
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


def _box_means(image: SlideImage, places: int, box: float) -> NDArray[np.float64]:
    """Return mean colours of boxes spread over the coarsest level of an image, (places, places, 3)."""
    pixels = np.asarray(computed(image.levels[-1])[0], dtype=np.float64)
    rows, columns = (_overlap(side, places, box) for side in pixels.shape[:2])
    means: NDArray[np.float64] = np.einsum("py,yxc,qx->pqc", rows, pixels, columns, optimize=True)
    return means


def _overlap(side: int, places: int, box: float) -> NDArray[np.float64]:
    """Return the share of each pixel in the mean of each box along an axis, (places, side)."""
    middles = (np.arange(places)[:, None] + 0.5) / places * side
    low, high = middles - box * side / 2, middles + box * side / 2
    at = np.arange(side)[None, :]
    shares: NDArray[np.float64] = np.clip(np.minimum(at + 1, high) - np.maximum(at, low), 0, None) / (high - low)
    return shares


def _sparse_box_means(image: SlideImage, places: int, box: float) -> NDArray[np.float64]:
    """Return the same for an image without a coarse level, read box by box from its finest level."""
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
    """Return Pearson's correlation over places and colours, each colour centred; 0 where one of them is flat."""
    a, b = a - a.mean(axis=(0, 1)), b - b.mean(axis=(0, 1))
    size = float(np.sqrt((a**2).sum() * (b**2).sum()))
    return float((a * b).sum()) / size if size > 1e-6 else 0.0
