"""Rules for pictures of an H&E stain, and conversion of their samples to red, green and blue.

Accepted are eight bits a sample, and three samples that a file calls red, green and blue. Stains, inks, lightness and differences of colour
have the same shape, and would silently pass for colour.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

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
