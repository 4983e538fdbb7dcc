"""Slide images from files: tiled TIFF is read lazily, everything else is decoded once, when its first pixel is asked for."""

from __future__ import annotations

import struct
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import SectionError
from ..types import SlideImage

TIFF_SUFFIXES = (".tif", ".tiff", ".btf", ".svs", ".ndpi", ".scn")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", *TIFF_SUFFIXES)
_CHUNK = 1024
_SMALLEST_LEVEL = 512
_MOST_PIXELS_DECODED = 2_500_000_000
"""7.5 GB as RGB; beyond that an image must be tiled to be read in parts."""

_pillow_limit = threading.Lock()


def open_image(path: Path, pixel_size: float = 1.0) -> SlideImage:
    """Open an image file as a lazy multiscale slide.

    Parameters
    ----------
    path
        JPEG, PNG or TIFF (tiled TIFF and whole-slide formats built on it are read tile by tile).
    pixel_size
        Full-resolution pixels per pixel of the file.

    Raises
    ------
    SectionError
        Where it cannot be read, or is no 8-bit colour image.
    """
    if not path.is_file():
        raise SectionError(f"there is no image file {path}")
    _check_suffix(path)
    if path.suffix.lower() in TIFF_SUFFIXES:
        levels = _open_tiff(path)
    else:
        levels = pyramid(_Decoded(_image_shape(path), partial(_decode, path)))
    return SlideImage(tuple(levels), pixel_size, str(path), path)


def image_size(path: Path) -> tuple[int, int]:
    """Return height and width of an image file without decoding it."""
    _check_suffix(path)
    if path.suffix.lower() in TIFF_SUFFIXES:
        with tiff_file(path) as tiff:
            axes, shape = tiff.series[0].axes, tiff.series[0].shape
        if "Y" not in axes or "X" not in axes:
            raise SectionError(f"{path} has the axes {axes}; expected an image with Y and X")
        return int(shape[axes.index("Y")]), int(shape[axes.index("X")])
    with _pillow(path) as picture:
        return int(picture.height), int(picture.width)


def _check_suffix(path: Path) -> None:
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        raise SectionError(f"{path} is no image that can be read; expected {', '.join(IMAGE_SUFFIXES)}")


class _Decoded:
    """An array that is computed when it is first indexed, once, and then kept; what dask needs of an array."""

    ndim = 3
    dtype = np.dtype(np.uint8)

    def __init__(self, shape: tuple[int, int], make: Callable[[], NDArray[np.uint8]]) -> None:
        self.shape = (*shape, 3)
        self._make = make
        self._array: NDArray[np.uint8] | None = None
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return _Decoded, (self.shape[:2], self._make)  # another process decodes for itself

    @property
    def array(self) -> NDArray[np.uint8]:
        """The whole image."""
        with self._lock:
            if self._array is None:
                self._array = self._make()
            return self._array

    def __getitem__(self, key: Any) -> Any:
        return self.array[key]


def pyramid(source: _Decoded) -> list[Any]:
    """Return dask arrays of an image and of its halves, quarters and so on by area mean, down to about 512 pixels."""
    levels = [_lazy(source)]
    while max(source.shape[:2]) > _SMALLEST_LEVEL:
        source = _halved(source)
        levels.append(_lazy(source))
    return levels


def _halved(parent: _Decoded) -> _Decoded:
    return _Decoded((-(-parent.shape[0] // 2), -(-parent.shape[1] // 2)), partial(_half, parent))


def _half(parent: _Decoded) -> NDArray[np.uint8]:
    from PIL import Image

    return np.asarray(Image.fromarray(parent.array).reduce(2))


def _lazy(source: _Decoded) -> Any:
    import dask.array as da

    name = f"slide-{uuid.uuid4().hex}"  # hashing the content would decode it
    meta = np.empty((0, 0, 0), dtype=np.uint8)
    return da.from_array(source, chunks=(_CHUNK, _CHUNK, 3), name=name, meta=meta, asarray=False, inline_array=True)


# ------------------------------------------------------------------------------------------------- Pillow


@contextmanager
def _pillow(path: Path) -> Iterator[Any]:
    """Open with Pillow. Its limit against decompression bombs is below the size of real slides, so ours stands in for it."""
    from PIL import Image, UnidentifiedImageError

    with _pillow_limit:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            picture = Image.open(path)
        except (OSError, UnidentifiedImageError, SyntaxError) as error:
            raise SectionError(f"{path} cannot be read as an image: {error}") from error
        finally:
            Image.MAX_IMAGE_PIXELS = limit
    with picture:
        yield picture


def _image_shape(path: Path) -> tuple[int, int]:
    with _pillow(path) as picture:
        mode, height, width = picture.mode, picture.height, picture.width
    if mode not in ("RGB", "RGBA", "P", "CMYK", "YCbCr"):
        raise SectionError(
            f"{path} is a grey or 16-bit image (mode {mode}); expected an 8-bit colour image of an H&E stain"
        )
    _check_decodable(path, height, width)
    return height, width


def _decode(path: Path) -> NDArray[np.uint8]:
    from PIL import Image

    with _pillow(path) as picture:
        try:
            if picture.mode == "RGBA" or "transparency" in picture.info:
                picture = picture.convert("RGBA")
                glass = Image.new("RGBA", picture.size, (255, 255, 255, 255))
                picture = Image.alpha_composite(glass, picture)
            return np.asarray(picture.convert("RGB"))
        except (OSError, SyntaxError, ValueError) as error:
            raise SectionError(f"{path} cannot be decoded, the file may be cut short: {error}") from error


def _check_decodable(path: Path, height: int, width: int) -> None:
    if height * width > _MOST_PIXELS_DECODED:
        raise SectionError(
            f"{path} has {height} x {width} pixels and can only be read as a whole; convert it to a tiled TIFF, which is read "
            "in parts"
        )


# ------------------------------------------------------------------------------------------------- TIFF


@contextmanager
def tiff_file(path: Path) -> Iterator[Any]:
    """Open a TIFF; what damaged directories make of it is a SectionError."""
    import tifffile

    try:
        tiff = tifffile.TiffFile(path)
    except (OSError, tifffile.TiffFileError, ValueError, struct.error) as error:
        raise SectionError(f"{path} cannot be read as TIFF: {error}") from error
    with tiff:
        try:
            yield tiff
        except (
            IndexError,
            KeyError,
            ValueError,
            TypeError,
            AttributeError,
            OSError,
            struct.error,
        ) as error:  # of directories that lie
            raise SectionError(f"{path} cannot be read as TIFF, the file may be cut short: {error}") from error


def _open_tiff(path: Path) -> list[Any]:
    with tiff_file(path) as tiff:
        series = tiff.series[0]
        axes, shape, dtype = series.axes, series.shape, series.dtype
        tiled, count = bool(series.pages[0].is_tiled), len(series.levels)
        _check_codec(path, int(series.pages[0].compression))
    sample = next((axes.index(a) for a in "SC" if a in axes), None)
    extra = [n for a, n in zip(axes, shape, strict=True) if a not in "YXSC"]
    if dtype != np.uint8 or sample is None or shape[sample] not in (3, 4) or any(n != 1 for n in extra):
        raise SectionError(
            f"{path} holds {dtype} data with axes {axes} {tuple(shape)}; expected an 8-bit colour image (axes YXS, 3 or 4 "
            "samples) of an H&E stain"
        )
    height, width = shape[axes.index("Y")], shape[axes.index("X")]
    if not tiled:
        _check_decodable(path, height, width)
        return pyramid(_Decoded((height, width), partial(_read_tiff, path, axes)))
    levels = [_tiff_level(path, level, axes) for level in range(count)]
    return with_overview(levels)


def _check_codec(path: Path, compression: int) -> None:
    """Refuse at once what would fail at the first tile; tifffile alone reads plain and deflated data only."""
    if compression not in (1, 8, 32946) and find_spec("imagecodecs") is None:
        raise SectionError(
            f"{path} is a compressed TIFF (scheme {compression}) that needs one more package: pip install imagecodecs, or pip install 'napari-stmdit[slides]'"
        )


def _read_tiff(path: Path, axes: str) -> NDArray[np.uint8]:
    import tifffile

    try:
        return np.ascontiguousarray(as_rgb(tifffile.imread(path, series=0, level=0), axes))
    except (
        ValueError,
        OSError,
        RuntimeError,
        IndexError,
        tifffile.TiffFileError,
    ) as error:  # RuntimeError: damaged codes
        raise SectionError(f"{path} cannot be decoded: {error}") from error


def _tiff_level(path: Path, level: int, axes: str) -> Any:
    import dask.array as da
    import tifffile

    store = tifffile.imread(path, series=0, level=level, aszarr=True)
    return as_rgb(da.from_zarr(store), axes)


def as_rgb(array: Any, axes: str) -> Any:
    """Bring a numpy or dask array to (y, x, 3) uint8; transparency is laid over white."""
    keep = [a for a in axes if a in "YXSC"]
    array = array.reshape([n for a, n in zip(axes, array.shape, strict=True) if a in "YXSC"])
    sample = "S" if "S" in keep else "C"
    array = array.transpose([keep.index("Y"), keep.index("X"), keep.index(sample)])
    if array.shape[2] == 4:
        alpha = array[..., 3:].astype(np.uint16)
        array = ((array[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    return array


def with_overview(levels: list[Any]) -> list[Any]:
    """Add lazy area means, by four, below the file's own levels, so that a whole slide can be drawn."""
    import dask.array as da

    while max(levels[-1].shape[:2]) > 4 * _SMALLEST_LEVEL and min(levels[-1].shape[:2]) >= 4:
        last = levels[-1].rechunk({0: 4 * _CHUNK, 1: 4 * _CHUNK, 2: 3})
        mean = da.coarsen(np.mean, last, {0: 4, 1: 4}, trim_excess=True)
        levels.append((mean + 0.5).astype(np.uint8))
    return levels
