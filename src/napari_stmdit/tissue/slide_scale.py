"""Scale that an image file states, and the field. Nothing is inferred from sizes, names or objectives."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ScaleError, SectionError
from ..text import shorten
from ..types import Calibration
from .geometry import Affine, check_mpp, is_plausible_mpp, sides_of_unit
from .images import is_tiff, ome_pixels, slide_series, tiff_file

SQUARE_TO = 0.01
"""Maximum relative difference of a pixel's sides; other slides are refused."""
SAME_TO = 0.02
"""Maximum relative difference of two fields of a file with its scale: numbers are rounded to two digits, 0.25 for 0.2463."""
_CONTRADICTION = "its fields contradict each other: "
_UM_PER = {"m": 1e6, "cm": 1e4, "mm": 1e3, "µm": 1.0, "μm": 1.0, "um": 1.0, "micron": 1.0, "microns": 1.0, "nm": 1e-3}
_CENTIMETRE = 3
"""TIFF's ResolutionUnit of centimetres. Inches are ignored: programs for print fill in 72 or 300, whatever the image shows."""

Stated = tuple[float, float, str]
"""Stated scale: microns per pixel along y and x, and the field."""


def calibrate_slide(path: Path, override: float | None = None) -> tuple[float, Calibration]:
    """Return the microns per pixel of a slide, the user's or else as the file states, and their source.

    Parameters
    ----------
    path
        An image file.
    override
        Microns per pixel, as the user states them.

    Raises
    ------
    ScaleError
        Neither states it, or the file states something that is no scale of a slide.
    SectionError
        The override is no plausible pixel size.
    """
    stated, unusable = stated_mpp(path)
    if override is not None:
        check_mpp(override)
        against = ""
        if unusable.startswith(_CONTRADICTION):
            against = f"; {unusable}"
        elif stated is not None and abs(stated[0] / override - 1) > SQUARE_TO:
            against = f"; {stated[1]} of the file states {stated[0]:.4g}"
        return float(override), Calibration(float(override), "override", f"{override:.4g} um/px, as given{against}")
    if stated is not None:
        return stated[0], Calibration(stated[0], "image", f"{stated[0]:.4g} um/px, {stated[1]} of {path.name}")
    reason = f" ({unusable})" if unusable else ""
    raise ScaleError(
        f"{path.name} does not state how large its pixels are{reason}; give the microns per pixel with --mpp (mpp=...), as the scanner's "
        "export settings have them"
    )


def stated_mpp(path: Path) -> tuple[tuple[float, str] | None, str]:
    """Return (microns per pixel, field) of an image file, or None and a description of what was found instead.

    Of fields that agree the most specific is named. Contradicting fields state no scale: which of them is stale is not known.
    """
    if not is_tiff(path):
        return None, "PNG and JPEG files state none but for printing"
    unusable, stated = "", list[tuple[float, str]]()
    with tiff_file(path) as tiff:
        page = tiff.series[slide_series(tiff, path)].keyframe
        for y, x, name in _statements(tiff, page, path):
            if not (is_plausible_mpp(y) and is_plausible_mpp(x)):
                unusable = unusable or f"{name} gives {x:.4g} x {y:.4g} um, which is no pixel of a slide"
            elif abs(y / x - 1) > SQUARE_TO:
                return None, f"{name} gives pixels of {x:.4g} x {y:.4g} um, which are not square"
            else:
                stated.append(((y + x) / 2, name))
        if not stated:
            return None, unusable or _hint(tiff, page)
    if all(abs(mpp / stated[0][0] - 1) <= SAME_TO for mpp, _ in stated):
        return stated[0], ""
    return None, _CONTRADICTION + ", ".join(f"{name} gives {mpp:.4g} um" for mpp, name in stated)


def _statements(tiff: Any, page: Any, path: Path) -> Iterator[Stated]:
    """Yield the scales that a TIFF states of its slide, the most specific field first."""
    if tiff.ome_metadata:
        yield from _of_ome(tiff.ome_metadata, (int(page.imagelength), int(page.imagewidth)))
    if tiff.is_svs:
        yield from _of_aperio(page.description)
    if tiff.is_imagej:
        unit = str((tiff.imagej_metadata or {}).get("unit", "")).encode().decode("unicode_escape", "ignore")
        yield from _of_resolution(page, _UM_PER.get(unit, None), f"XResolution with ImageJ's unit {shorten(unit)!r}")
    if tiff.is_philips and find_spec("tiffslide") is not None:
        yield from _of_tiffslide(path)
    if page.tags.valueof("ResolutionUnit") == _CENTIMETRE:
        yield from _of_resolution(page, _UM_PER["cm"], "XResolution in centimetres")


def _of_ome(xml: str, size: tuple[int, int]) -> Iterator[Stated]:
    """Yield the physical size of the image of this height and width, or of the only one."""
    images = ome_pixels(xml)
    for pixels in images:
        if len(images) > 1 and (str(pixels.get("SizeY")), str(pixels.get("SizeX"))) != (str(size[0]), str(size[1])):
            continue
        try:
            y, x = (
                float(pixels[f"PhysicalSize{axis}"]) * _UM_PER[str(pixels.get(f"PhysicalSize{axis}Unit", "µm"))]
                for axis in "YX"
            )
        except (KeyError, TypeError, ValueError):
            continue
        yield y, x, "PhysicalSizeX of the OME-XML"


def _of_aperio(description: str) -> Iterator[Stated]:
    from tifffile.tifffile import svs_description_metadata

    try:
        mpp = float(svs_description_metadata(description)["MPP"])
    except (KeyError, TypeError, ValueError):
        return
    yield mpp, mpp, "MPP of the Aperio description"


def _of_resolution(page: Any, um: float | None, name: str) -> Iterator[Stated]:
    """Yield the scale from pixels per unit of ``um`` microns."""
    try:
        (yn, yd), (xn, xd) = page.tags.valueof("YResolution"), page.tags.valueof("XResolution")
        if um is not None:
            yield um * yd / yn, um * xd / xn, name
    except (TypeError, ValueError, ZeroDivisionError):
        return


def _of_tiffslide(path: Path) -> Iterator[Stated]:
    from tiffslide import TiffSlide

    try:
        with TiffSlide(path) as slide:
            found = slide.properties
            yield float(found["tiffslide.mpp-y"]), float(found["tiffslide.mpp-x"]), "DICOM_PIXEL_SPACING of Philips"
    except Exception:  # noqa: BLE001 - of damaged metadata; the scale is then asked for
        return


def _hint(tiff: Any, page: Any) -> str:
    if tiff.is_philips and find_spec("tiffslide") is None:
        return "tiffslide reads what Philips scanners state: pip install 'napari-stmdit[slides]'"
    resolution = page.tags.valueof("XResolution")
    if page.tags.valueof("ResolutionUnit") == 2 and resolution and resolution[1]:
        return f"{resolution[0] / resolution[1]:g} pixels per inch, which is a setting for print, are not taken for a scale"
    return ""


def refuse_stretched(name: str, to_spots: Affine) -> None:
    """Raise SectionError where pixels of an image are not square in the frame of the spots, by the affine ``to_spots``.

    Rotation and reflection keep them square, stretching and shearing do not.
    """
    longer, shorter = sides_of_unit(to_spots)
    if longer > (1 + SQUARE_TO) * shorter:
        raise SectionError(
            f"image {name} is stretched or sheared against the spots: a square of one pixel becomes {longer:.4g} x {shorter:.4g} of their units, by the "
            f"transformation {np.round(to_spots[:2], 4).tolist()} over (y, x, 1), and patches are square; resample the image to square pixels and "
            "correct its transformation"
        )
