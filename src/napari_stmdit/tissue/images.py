"""Slide images from files: tiled TIFF is read lazily, everything else decoded once, when its first pixel is asked for; and what an image of an H&E stain is."""

from __future__ import annotations

import filecmp
import re
import struct
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import SectionError
from ..files import BadFile, user_path
from ..types import SlideImage

EXPECTED = "an 8-bit colour image (red, green and blue) of an H&E stain"
_NUMBER = re.compile(r"^(c|ch|channel)?[ _:-]*\d+([ _:-]\d+)*$", re.IGNORECASE)
_COLOURS = (("r", "red"), ("g", "green"), ("b", "blue"), ("a", "alpha"))

_RGB, _YCBCR = 2, 6
_KINDS = {
    0: "grey (MinIsWhite)",
    1: "grey (MinIsBlack)",
    3: "a palette",
    4: "a mask of transparency",
    5: "inks for print (CMYK, Separated), whose colours depend on the printer",
    _YCBCR: "YCbCr",
    8: "CIELab",
    9: "ICCLab",
    10: "ITULab",
    32803: "the raw mosaic of a camera (CFA)",
}
"""PhotometricInterpretation of TIFF -> description."""
_JPEG = (6, 7, 33007, 34892)
"""Compression schemes whose decoder converts YCbCr to RGB."""
_AS_STORED = (1, 5, 8, 32773, 32946, 34925, 50000)
"""Compression schemes that return samples as stored."""
APERIO_YCBCR = 33003
"""JPEG 2000 of Aperio with YCbCr samples, whatever the file says; no decoder converts them."""
_REC_601 = (0.299, 0.587, 0.114)
_FULL_RANGE = (0.0, 255.0, 128.0, 255.0, 128.0, 255.0)


@dataclass(frozen=True)
class Samples:
    """Conversion of a picture's samples to RGB.

    Attributes
    ----------
    order
        Indices of the samples red, green and blue (and alpha, if any), or Y, Cb and Cr.
    alpha
        Whether colours are premultiplied (``associated``) or not (``straight``); None without alpha.
    luma
        Weights of red, green and blue in Y, where the samples are YCbCr; else None.
    """

    order: tuple[int, ...] = (0, 1, 2)
    alpha: Literal["straight", "associated"] | None = None
    luma: tuple[float, float, float] | None = None


def samples_of_channels(names: Sequence[str], count: int) -> Samples | str:
    """Return how named channels become RGB, or why they are no colours, in words.

    Parameters
    ----------
    names
        Names in the file's order; empty, or plain numbers, where it has none.
    count
        Number of channels.
    """
    named = _named(names)
    if not named:
        return Samples() if count == 3 else f"it has {count} channels without names"
    lower = [name.strip().lower() for name in names]
    order = tuple(next((i for i, name in enumerate(lower) if name in words), -1) for words in _COLOURS)
    if -1 in order[:3] or len(lower) != count or count != 3 + (order[3] >= 0):
        return f"its channels are {', '.join(named[:8])}, not red, green and blue"
    return Samples(order, "straight") if order[3] >= 0 else Samples(order[:3])


def _named(names: Sequence[str]) -> list[str]:
    """Return the meaningful names: not "2", "channel_2" or "Channel:0:2"."""
    return [name.strip() for name in names if name.strip() and not _NUMBER.match(name.strip())]


def samples_of_page(page: Any, names: Sequence[str], count: int) -> Samples | str:
    """Return how the samples or channels of a TIFF become RGB, or why they are no colours, in words.

    Parameters
    ----------
    page
        A page of tifffile.
    names
        Names of separate channels, if the file has any.
    count
        Number of samples or channels.
    """
    photometric, compression = int(page.photometric), int(page.compression)
    if int(page.bitspersample) != 8:
        return f"it has {page.bitspersample} bits a sample"
    extra = [int(kind) for kind in page.extrasamples]
    if photometric <= 1 and _named(names):  # grey pages that are planes of one picture
        return samples_of_channels(names, count)
    if compression == APERIO_YCBCR:
        photometric = _YCBCR
    if photometric == _YCBCR:
        return _ycbcr(page, compression, count)
    if photometric != _RGB:
        several = f", in {count} channels that are not called red, green and blue" if photometric <= 1 < count else ""
        return f"it holds {_KINDS.get(photometric, f'colours of another kind ({photometric})')}{several}"
    if count == 4 and int(page.samplesperpixel) == 4:
        # anything but alpha (a mask, infrared, nothing) is not part of the picture
        if extra[:1] == [1]:
            return Samples((0, 1, 2, 3), "associated")
        return Samples((0, 1, 2, 3), "straight") if extra[:1] == [2] else Samples()
    return Samples() if count == 3 else f"it has {count} samples"


def _ycbcr(page: Any, compression: int, count: int) -> Samples | str:
    if count != 3:
        return f"it holds YCbCr with {count} samples"
    if compression in _JPEG and int(page.planarconfig) == 1:
        return Samples()
    if compression not in (*_AS_STORED, APERIO_YCBCR) or bool(page.is_subsampled):
        return "it holds YCbCr in a form that is not read"
    luma = _numbers(page.tags.valueof("YCbCrCoefficients"), _REC_601)
    if luma is None or len(luma) != 3 or not 0 < luma[1] or abs(sum(luma) - 1) > 0.01:
        return "it holds YCbCr whose coefficients are none"
    if _numbers(page.tags.valueof("ReferenceBlackWhite"), _FULL_RANGE) != _FULL_RANGE:
        return "it holds YCbCr with another range than 0 to 255 (ReferenceBlackWhite)"
    return Samples(luma=(luma[0], luma[1], luma[2]))


def _numbers(value: Any, default: tuple[float, ...]) -> tuple[float, ...] | None:
    """Return the values of a tag of rationals, which tifffile gives as numerators and denominators in a row."""
    if value is None:
        return default
    flat = [float(v) for v in np.ravel(value)]
    if len(flat) != 2 * len(default):
        return tuple(flat) if len(flat) == len(default) else None
    if any(v == 0 for v in flat[1::2]):
        return None
    return tuple(n / d for n, d in zip(flat[::2], flat[1::2], strict=True))


def as_rgb(array: Any, axes: str, samples: Samples) -> Any:
    """Convert a numpy or dask array of uint8 samples to (y, x, 3) uint8; transparency is laid over white.

    Parameters
    ----------
    array
        Array whose axes, but Y, X and one of S and C, have the length 1.
    axes
        A letter each, as tifffile names them.
    samples
        Meaning of the samples.
    """
    sample = sample_axis(axes, array.shape)
    keep = [i for i, axis in enumerate(axes) if axis in "YX" or i == sample]
    letters = ["S" if i == sample else axes[i] for i in keep]
    array = array.reshape([array.shape[i] for i in keep])
    array = array.transpose([letters.index("Y"), letters.index("X"), letters.index("S")])
    if samples.order != tuple(range(array.shape[2])):
        array = array[..., list(samples.order)]
    if samples.luma is not None:
        return _from_ycbcr(array, samples.luma)
    if samples.alpha is None:
        return array
    alpha = array[..., 3:].astype(np.uint16)
    if samples.alpha == "associated":
        return np.minimum(array[..., :3] + (255 - alpha), 255).astype(np.uint8)
    return ((array[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def sample_axis(axes: str, shape: Sequence[int]) -> int | None:
    """Return the axis of the samples: S or C, whichever is longer than 1; None where neither or both are."""
    places = [i for i, axis in enumerate(axes) if axis in "SC" and shape[i] != 1]
    return places[0] if len(places) == 1 else None


def _from_ycbcr(array: Any, luma: tuple[float, float, float]) -> Any:
    red, green, blue = luma
    y, cb, cr = (array[..., k].astype(np.float32) - (128.0 if k else 0.0) for k in range(3))
    r = y + (2 - 2 * red) * cr
    b = y + (2 - 2 * blue) * cb
    g = (y - red * r - blue * b) / green
    rgb = np.stack([r, g, b], axis=-1)
    return np.clip(np.rint(rgb), 0, 255).astype(np.uint8)


TIFF_SUFFIXES = (".tif", ".tiff", ".btf", ".svs", ".ndpi", ".scn", ".qptiff")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", *TIFF_SUFFIXES)
_TIFF_MARKS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_BESIDE_A_SLIDE = ("Thumbnail", "Label", "Macro", "Map")
"""tifffile's names of the other images in scanners' files."""
_CHUNK = 1024
MIN_LEVEL_PX = 512
"""Longer side of an image down to which coarser levels are made."""
_MAX_PIXELS_DECODED = 2_500_000_000
"""Maximum size of an image that is decoded whole, 7.5 GB as RGB; a larger one must be tiled."""

_pillow_limit = threading.Lock()


def open_image(path: Path, pixel_size: float = 1.0) -> SlideImage:
    """Open an image file as a lazy multiscale slide.

    Parameters
    ----------
    path
        JPEG, PNG or TIFF (tiled TIFF and whole-slide formats based on it are read tile by tile).
    pixel_size
        Full-resolution pixels per pixel of the file.

    Raises
    ------
    SectionError
        It cannot be read, or is no 8-bit colour image.
    """
    if not path.is_file():
        raise SectionError(f"there is no image file {path}")
    _check_suffix(path)
    if is_tiff(path):
        levels = _open_tiff(path)
    else:
        levels = pyramid(_Decoded(_image_shape(path), partial(_decode, path)))
    return SlideImage(tuple(levels), pixel_size, str(path), path)


def overview(image: SlideImage) -> SlideImage:
    """Return a slide for an overview: a JPEG decoded at an eighth of its size only; others as they are.

    Raises
    ------
    SectionError
        A JPEG cannot be decoded.
    """
    path = Path(image.source)
    if is_tiff(path):
        return image
    with open_picture(path) as picture:
        if picture.format != "JPEG":
            return image
    pixels = _decode(path, 8)
    return SlideImage((_lazy(_Decoded(pixels.shape[:2], lambda: pixels)),), 8.0 * image.pixel_size, image.source)


def resolve_fullres(fullres: str | Path, section: Path) -> Path:
    """Find the full-resolution image in the working directory or in the section's folder.

    Raises
    ------
    SectionError
        It is in neither, or two different files could be meant.
    """
    try:
        given = user_path(fullres)
    except BadFile as error:
        raise SectionError(f"--fullres {fullres!r} cannot be opened: {error}") from error
    if given.is_absolute():
        if not given.is_file():
            raise SectionError(f"there is no image file {given}")
        return given
    here, there = Path.cwd() / given, section / given
    if here.is_file() and there.is_file():
        if not here.samefile(there) and not filecmp.cmp(here, there, shallow=False):
            raise SectionError(
                f"--fullres {fullres} may mean {here} or {there}, and they differ; give the absolute path of the right one"
            )
        return there
    if here.is_file():
        return here
    if there.is_file():
        return there
    raise SectionError(f"--fullres {fullres} is neither {here} nor {there}; give the path of the image")


def image_size(path: Path) -> tuple[int, int]:
    """Return height and width of an image file without decoding it."""
    _check_suffix(path)
    if is_tiff(path):
        with tiff_file(path) as tiff:
            series = tiff.series[slide_series(tiff, path)]
            height, width = (int(series.shape[series.axes.index(axis)]) for axis in "YX")
        return height, width
    with open_picture(path) as picture:
        return int(picture.height), int(picture.width)


def is_tiff(path: Path) -> bool:
    """Return whether a file is TIFF, by its name or its first bytes."""
    if path.suffix.lower() in TIFF_SUFFIXES:
        return True
    try:
        with path.open("rb") as file:
            return file.read(4) in _TIFF_MARKS
    except OSError:
        return False


def _check_suffix(path: Path) -> None:
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        raise SectionError(f"{path} is no image that can be read; expected {', '.join(IMAGE_SUFFIXES)}")


class _Decoded:
    """Array that is computed once, at its first indexing; has what dask needs of an array."""

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
    """Return dask arrays of an image and its halvings by area mean, down to about 512 pixels."""
    levels = [_lazy(source)]
    while max(source.shape[:2]) > MIN_LEVEL_PX:
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
def open_picture(path: Path) -> Iterator[Any]:
    """Open with Pillow, with our limit in place of its limit against decompression bombs, which real slides exceed."""
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
    with open_picture(path) as picture:
        mode, height, width, kind = picture.mode, picture.height, picture.width, picture.format
    fault = None
    if kind == "PNG" and _png_bits(path) == 16:
        fault = "a 16-bit image"
    elif mode == "CMYK":
        fault = "a picture in inks for print (CMYK), whose colours depend on the printer"
    elif mode not in ("RGB", "RGBA", "P"):
        fault = f"a grey or 16-bit image, or one in other colours (mode {mode})"
    if fault is not None:
        raise SectionError(f"{path} is {fault}; expected {EXPECTED}: export the slide as RGB")
    _check_decodable(path, height, width)
    return height, width


def _png_bits(path: Path) -> int:
    """Return the bits a sample by the header; the reader silently keeps the upper eight."""
    with path.open("rb") as file:
        return file.read(25)[24]


def _decode(path: Path, coarser: int = 1) -> NDArray[np.uint8]:
    """Return the pixels of a file; of a JPEG also at a half, a quarter or an eighth of its size."""
    from PIL import Image

    with open_picture(path) as picture:
        try:
            if coarser > 1:
                picture.draft("RGB", (picture.width // coarser, picture.height // coarser))
            if picture.mode == "RGBA" or "transparency" in picture.info:
                picture = picture.convert("RGBA")
                glass = Image.new("RGBA", picture.size, (255, 255, 255, 255))
                picture = Image.alpha_composite(glass, picture)
            return np.asarray(picture.convert("RGB"))
        except (OSError, SyntaxError, ValueError) as error:
            raise SectionError(f"{path} cannot be decoded, the file may be cut short: {error}") from error


def _check_decodable(path: Path, height: int, width: int) -> None:
    if height * width > _MAX_PIXELS_DECODED:
        raise SectionError(
            f"{path} has {height} x {width} pixels and can only be read as a whole; convert it to a tiled TIFF, which is read "
            "in parts"
        )


# ------------------------------------------------------------------------------------------------- TIFF


@contextmanager
def tiff_file(path: Path) -> Iterator[Any]:
    """Open a TIFF; damaged directories raise SectionError."""
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


@dataclass(frozen=True)
class _Layout:
    """Location of the slide in a TIFF, and meaning of its samples."""

    series: int
    axes: str
    shape: tuple[int, ...]
    samples: Samples
    tiled: bool
    levels: int

    @property
    def size(self) -> tuple[int, int]:
        return int(self.shape[self.axes.index("Y")]), int(self.shape[self.axes.index("X")])


def slide_series(tiff: Any, path: Path) -> int:
    """Return the series of a TIFF that is the slide: the largest, if all others are thumbnails, labels and smaller copies.

    Raises
    ------
    SectionError
        Another image of the file could be the slide as well, or none has Y and X.
    """
    if tiff.is_scn:
        raise SectionError(
            f"{path.name} is a Leica SCN file, which holds several images; export the scan as OME-TIFF or a pyramidal TIFF and give that"
        )
    sizes = {}
    for number, series in enumerate(tiff.series):
        if "Y" in series.axes and "X" in series.axes:
            sizes[number] = tuple(int(series.shape[series.axes.index(axis)]) for axis in "YX")
    if not sizes:
        raise SectionError(f"{path} has the axes {tiff.series[0].axes}; expected an image with Y and X")
    slide = max(sizes, key=lambda number: sizes[number][0] * sizes[number][1])
    rivals = [
        number
        for number, size in sizes.items()
        if number != slide and tiff.series[number].name not in _BESIDE_A_SLIDE and not _smaller_copy(size, sizes[slide])
    ]
    if rivals:
        listed = ", ".join("{} x {}".format(*sizes[number]) for number in sorted([slide, *rivals])[:8])
        raise SectionError(
            f"{path} holds several images ({listed} pixels), and which of them is the slide is not stated; export that one as a TIFF of its own"
        )
    return slide


def _smaller_copy(size: tuple[int, ...], slide: tuple[int, ...]) -> bool:
    """Return whether an image may be a thumbnail or a coarser level: a sixteenth of the slide's area, or half its sides and less."""
    if 16 * size[0] * size[1] <= slide[0] * slide[1]:
        return True
    down, across = (one / whole for one, whole in zip(size, slide, strict=True))
    return max(down, across) < 0.51 and abs(down / across - 1) < 0.02


def _layout(path: Path) -> _Layout:
    """Find the slide in a TIFF and refuse what is no picture of an H&E stain."""
    with tiff_file(path) as tiff:
        number = slide_series(tiff, path)
        series = tiff.series[number]
        axes, shape, page = series.axes, tuple(int(n) for n in series.shape), series.keyframe
        sample = sample_axis(axes, shape)
        holds = f"{path} holds {series.dtype} data with axes {axes} {shape}"
        if any(n != 1 for i, (a, n) in enumerate(zip(axes, shape, strict=True)) if a not in "YX" and i != sample):
            raise SectionError(f"{holds}, which are several images; expected {EXPECTED}")
        if series.dtype != np.uint8 or sample is None:
            raise SectionError(f"{holds}; expected {EXPECTED}")
        samples = samples_of_page(page, _channel_names(tiff, axes[sample], shape[sample]), shape[sample])
        if isinstance(samples, str):
            raise SectionError(f"{holds}: {samples}; expected {EXPECTED}: export the slide as RGB")
        _check_codec(path, int(page.compression))
        return _Layout(number, axes, shape, samples, bool(page.is_tiled), len(series.levels))


def _channel_names(tiff: Any, axis: str, count: int) -> list[str]:
    """Return the names of separate channels from OME-XML or ImageJ's labels; none unless there is one each."""
    if axis != "C":
        return []
    names: Any = []
    if tiff.is_imagej:
        names = (tiff.imagej_metadata or {}).get("Labels", [])
    elif tiff.ome_metadata:
        names = [channel.get("Name", "") for image in ome_pixels(tiff.ome_metadata) for channel in image["channels"]]
    names = [names] if isinstance(names, str) else names
    return [str(name) for name in names[:count]] if len(names) >= count else []


def ome_pixels(xml: str) -> list[dict[str, Any]]:
    """Return the attributes of Pixels of each image in OME-XML, with those of its channels; empty where it is damaged."""
    from tifffile import xml2dict

    try:
        images = xml2dict(xml)["OME"]["Image"]
        found = []
        for image in images if isinstance(images, list) else [images]:
            channels = image["Pixels"].get("Channel", [])
            found.append(dict(image["Pixels"]) | {"channels": channels if isinstance(channels, list) else [channels]})
        return found
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, SyntaxError):  # SyntaxError: damaged XML
        return []


def _open_tiff(path: Path) -> list[Any]:
    layout = _layout(path)
    if not layout.tiled:
        _check_decodable(path, *layout.size)
        return pyramid(_Decoded(layout.size, partial(_read_tiff, path, layout)))
    return with_overview([_tiff_level(path, level, layout) for level in range(layout.levels)])


def _check_codec(path: Path, compression: int) -> None:
    """Refuse a codec that would fail at the first tile; tifffile alone reads plain and deflated data only."""
    if compression not in (1, 8, 32946) and find_spec("imagecodecs") is None:
        raise SectionError(
            f"{path} is a compressed TIFF (scheme {compression}) that needs one more package: pip install imagecodecs, or pip install 'napari-stmdit[slides]'"
        )


def _read_tiff(path: Path, layout: _Layout) -> NDArray[np.uint8]:
    import tifffile

    try:
        stored = tifffile.imread(path, series=layout.series, level=0).reshape(layout.shape)
        return np.ascontiguousarray(as_rgb(stored, layout.axes, layout.samples))
    except (
        ValueError,
        OSError,
        RuntimeError,
        IndexError,
        tifffile.TiffFileError,
    ) as error:  # RuntimeError: damaged codes
        raise SectionError(f"{path} cannot be decoded: {error}") from error


def _tiff_level(path: Path, level: int, layout: _Layout) -> Any:
    import dask.array as da
    import tifffile

    store = tifffile.imread(path, series=layout.series, level=level, aszarr=True)
    return as_rgb(da.from_zarr(store), layout.axes, layout.samples)


def with_overview(levels: list[Any]) -> list[Any]:
    """Add lazy area means, by four, below the file's own levels, so that a whole slide can be drawn."""
    import dask.array as da

    while max(levels[-1].shape[:2]) > 4 * MIN_LEVEL_PX and min(levels[-1].shape[:2]) >= 4:
        last = levels[-1].rechunk({0: 4 * _CHUNK, 1: 4 * _CHUNK, 2: 3})
        mean = da.coarsen(np.mean, last, {0: 4, 1: 4}, trim_excess=True)
        levels.append((mean + 0.5).astype(np.uint8))
    return levels
