"""Patches of a lazy slide image, resampled to a checkpoint's scale."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from ..errors import SectionError, StmditError
from ..storage.fingerprint import PerObject
from ..types import SlideImage

WHITE = (255, 255, 255)
EXACT = 1e-5
"""Distance to a pixel's border, in pixels, that changes no grey level: 255 times it is far below rounding."""


def read_patches(
    image: SlideImage, boxes: Sequence[tuple[float, float, float, float]], patch_px: int
) -> NDArray[np.uint8]:
    """Read boxes of a slide image, resampled to square patches.

    An output pixel is the mean of the image over its area. Between pixel borders the image is a continuous piecewise quadratic that keeps the mean
    of every pixel. So boxes on pixel borders give exact box means (at equal scale the very pixels), others have sub-pixel accuracy, and
    enlarging is smooth. Only the chunks under the boxes are read, from the coarsest level that is still finer than the patch.

    Parameters
    ----------
    image
        The slide.
    boxes
        (y0, x0, y1, x1) in full-resolution pixels, fractional, measured from the slide's corner.
    patch_px
        Side of a patch in its own pixels.

    Returns
    -------
    ndarray
        (n, patch_px, patch_px, 3) uint8. Outside the slide it has the slide's glass colour (`background_colour`).
    """
    if not boxes:
        return np.zeros((0, patch_px, patch_px, 3), dtype=np.uint8)
    factors = level_factors(image)
    windows = [_Window.of(image, factors, box, patch_px) for box in boxes]
    with readable(image):
        blocks = computed(*(window.block(image) for window in windows))
    background = background_colour(image) if any(window.reaches_outside for window in windows) else WHITE
    return np.stack([window.resample(block, background) for window, block in zip(windows, blocks, strict=True)])


def computed(*lazy: Any) -> tuple[Any, ...]:
    """Return the values of dask arrays, computed apart from the cache that a viewer may keep."""
    import dask

    # napari turns on a cache for all of dask while it draws a lazy layer; two threads in it lose each other's tasks (KeyError)
    found: tuple[Any, ...] = dask.compute(*lazy, callbacks=())
    return found


@contextmanager
def readable(image: SlideImage) -> Iterator[None]:
    """Convert the errors of stores and codecs on damaged pixels into ours."""
    try:
        yield
    except (StmditError, MemoryError):
        raise
    except Exception as error:
        raise SectionError(f"{image.source} cannot be read, the file may be damaged or cut short: {error}") from error


def chunks_under(
    image: SlideImage, boxes: Sequence[tuple[float, float, float, float]], patch_px: int
) -> tuple[list[tuple[int, int, int]], bool]:
    """Return the chunks that `read_patches` reads for boxes, as sorted (level, row, column), and whether a box reaches off the slide."""
    factors = level_factors(image)
    borders = [[np.cumsum(sizes) for sizes in level.chunks[:2]] for level in image.levels]
    found: set[tuple[int, int, int]] = set()
    outside = False
    for box in boxes:
        window = _Window.of(image, factors, box, patch_px)
        outside = outside or window.reaches_outside
        if any(low >= high for low, high in zip(window.low, window.high, strict=True)):
            continue
        rows, columns = (
            range(int(np.searchsorted(ends, low, "right")), int(np.searchsorted(ends, high - 1, "right")) + 1)
            for ends, low, high in zip(borders[window.level], window.low, window.high, strict=True)
        )
        found.update((window.level, row, column) for row in rows for column in columns)
    return sorted(found), outside


def level_factors(image: SlideImage) -> list[tuple[float, float]]:
    """Return the pixels of level 0 that a pixel of each level spans, along y and x.

    Where the sizes allow a whole factor it is taken instead of their ratio: a level whose size is not divisible loses or completes its
    last row, so the ratio would stretch it by up to one of its pixels.
    """
    return [(_factor(image, i, 0), _factor(image, i, 1)) for i in range(len(image.levels))]


def _factor(image: SlideImage, level: int, axis: int) -> float:
    full, own = image.levels[0].shape[axis], image.levels[level].shape[axis]
    ratio = full / own
    whole = max(1, round(ratio))
    return float(whole) if own in (full // whole, -(-full // whole)) else float(ratio)


def background_colour(image: SlideImage) -> tuple[int, int, int]:
    """Return the colour of bare glass: the median of the bright and nearly grey pixels of the coarsest level.

    White where less than one pixel in a hundred is such, as on a slide full of tissue.
    """
    return _colours.get(image, lambda: _background_colour(image.levels[-1]))


_colours = PerObject()
"""Glass colour by image object: dask names arrays by where they are stored, and another slide may be stored there later."""


def _background_colour(array: Any) -> tuple[int, int, int]:
    stride = max(1, max(array.shape[:2]) // 1024)
    pixels = np.asarray(computed(array[::stride, ::stride])[0]).reshape(-1, 3)
    low, high = pixels.min(axis=1), pixels.max(axis=1)
    glass = pixels[(low > 190) & (high - low < 40)]
    if len(glass) < 0.01 * len(pixels):
        return WHITE
    r, g, b = np.median(glass, axis=0).astype(int).tolist()
    return r, g, b


class _Window:
    """Box on one level: the pixels to read, and the weights that make a patch of them."""

    def __init__(self, level: int, shape: tuple[int, int], edges: tuple[NDArray[np.float64], NDArray[np.float64]]):
        self.level = level
        self.edges = edges
        # one pixel more on each side: the value at a border depends on both of its pixels
        self.start = tuple(int(np.floor(e[0])) - 1 for e in edges)
        self.stop = tuple(int(np.ceil(e[-1])) + 1 for e in edges)
        self.low = tuple(min(max(s, 0), n) for s, n in zip(self.start, shape, strict=True))
        self.high = tuple(min(max(s, 0), n) for s, n in zip(self.stop, shape, strict=True))

    @classmethod
    def of(
        cls,
        image: SlideImage,
        factors: list[tuple[float, float]],
        box: tuple[float, float, float, float],
        patch_px: int,
    ) -> _Window:
        y0, x0, y1, x1 = (value / image.pixel_size for value in box)
        finest_step = min((y1 - y0), (x1 - x0)) / patch_px * (1 + 1e-9)  # rounding must not choose a finer level
        level = max(i for i, factor in enumerate(factors) if i == 0 or max(factor) <= finest_step)
        fy, fx = factors[level]
        share = np.arange(patch_px + 1) / patch_px
        edges = ((y0 + (y1 - y0) * share) / fy, (x0 + (x1 - x0) * share) / fx)
        height, width = image.levels[level].shape[:2]
        return cls(level, (int(height), int(width)), edges)

    @property
    def reaches_outside(self) -> bool:
        return self.low != self.start or self.high != self.stop

    def block(self, image: SlideImage) -> Any:
        """Return the part of the level under the window, lazy."""
        return image.levels[self.level][self.low[0] : self.high[0], self.low[1] : self.high[1]]

    def resample(self, block: NDArray[np.uint8], background: tuple[int, int, int]) -> NDArray[np.uint8]:
        pixels = np.asarray(block)
        if self.reaches_outside:
            pixels = self._padded(pixels, background)
        if (y := _first_pixel(self.edges[0])) is not None and (x := _first_pixel(self.edges[1])) is not None:
            y, x = y - self.start[0], x - self.start[1]
            return pixels[y : y + len(self.edges[0]) - 1, x : x + len(self.edges[1]) - 1].astype(np.uint8)
        # sparse: few pixels of the block contribute to one of the patch
        rows, columns = (
            csr_matrix(area_weights(edges - start, stop - start))
            for edges, start, stop in zip(self.edges, self.start, self.stop, strict=True)
        )
        height, width = rows.shape[0], pixels.shape[1]
        tall = (rows @ pixels.reshape(len(pixels), -1).astype(np.float32)).reshape(height, width, 3)
        wide = columns @ np.ascontiguousarray(tall.transpose(1, 0, 2)).reshape(width, -1)
        patch = wide.reshape(columns.shape[0], height, 3).transpose(1, 0, 2)
        result: NDArray[np.uint8] = np.clip(np.rint(patch), 0, 255).astype(np.uint8)
        return result

    def _padded(self, pixels: NDArray[np.uint8], background: tuple[int, int, int]) -> NDArray[np.uint8]:
        size = tuple(b - a for a, b in zip(self.start, self.stop, strict=True))
        whole = np.empty((*size, 3), dtype=pixels.dtype)
        whole[:] = background
        y, x = (low - start for low, start in zip(self.low, self.start, strict=True))
        y, x = min(y, size[0]), min(x, size[1])  # a box that lies outside altogether
        whole[y : y + pixels.shape[0], x : x + pixels.shape[1]] = pixels
        return whole


def _first_pixel(edges: NDArray[np.float64]) -> int | None:
    """Return the pixel that edges start at, if they are the borders of successive pixels; else None."""
    # such a patch is copied: at equal scale it has the very pixels of the slide
    first = round(float(edges[0]))
    return first if np.abs(edges - (first + np.arange(len(edges)))).max() < EXACT else None


def area_weights(edges: NDArray[np.float64], n: int) -> NDArray[np.float32]:
    """Return the (p, n) weights that take n pixels to p area means along one axis.

    The cumulative sum of the pixels is exact at pixel borders; between two borders it is a cubic whose slope at a border is the mean of the two
    adjoining pixels (Catmull-Rom). Its difference between two edges is the integral of the image between them.

    Parameters
    ----------
    edges
        (p + 1,) ascending borders of the output pixels in input pixels; the first at 1 or more.
    n
        Number of input pixels: one more than the last border, rounded up. It is a parameter, as subtracting a window's start rounds
        the borders.
    """
    whole = np.minimum(np.floor(edges).astype(int), n - 2)
    t = edges - whole
    sums = (np.arange(n)[None, :] < whole[:, None]).astype(np.float64)  # running sum at the border below each edge
    h01, h10, h11 = t * t * (3 - 2 * t), t * (1 - t) ** 2, t * t * (t - 1)
    at = np.arange(len(edges))
    sums[at, whole - 1] += h10 / 2
    sums[at, whole] += h01 + (h10 + h11) / 2
    sums[at, whole + 1] += h11 / 2
    weights: NDArray[np.float32] = (np.diff(sums, axis=0) / np.diff(edges)[:, None]).astype(np.float32)
    return weights
