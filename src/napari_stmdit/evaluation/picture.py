"""The comparison picture: slide, edit, before and after, over the same window of tissue."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ..storage.atomic import replacing
from ..synthesis.result import Result
from ..tissue.crops import read_patches
from ..types import Section

PANEL = 560
GAP = 16
CAPTION = 74
INK = (30, 30, 34)
VIRIDIS = np.array([[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]], dtype=float)


def comparison_picture(
    section: Section, before: Result, after: Result, weights: dict[str, float], edit: str
) -> Image.Image:
    """Draw slide | edit | synthesized before | synthesized after, registered to each other, spots outlined.

    Parameters
    ----------
    section
        With a full-resolution image and a known scale.
    before, after
        Results of the same plan without and with the edit.
    weights
        Spot id -> weight of the edit, 0 to 1.
    edit
        What the edit does, in a few words.
    """
    window = _window(before)
    assert section.image is not None
    slide = Image.fromarray(read_patches(section.image, [window], PANEL)[0])
    chosen = [patch.spot_id for patch in before.plan.patches]
    kind = "synthetic sample section" if section.synthetic else "slide"
    panels = [
        (_outlined(slide.copy(), section, window, chosen), f"Slide ({kind})", f"{len(chosen)} chosen spots outlined"),
        (_painted(slide, section, window, weights), "Virtual expression edit", edit),
        (
            _outlined(_composite(slide, before, window), section, window, chosen),
            "Synthesized: expression as measured",
            "synthetic image, " + _how(before),
        ),
        (
            _outlined(_composite(slide, after, window), section, window, chosen),
            "Synthesized: expression edited",
            "synthetic image, same noise",
        ),
    ]
    mpp = section.calibration.mpp
    assert mpp is not None
    return _sheet(panels, (window[2] - window[0]) * mpp / PANEL)


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write the picture as a new PNG file with a text chunk that says what it is; raises FileExistsError where one is there."""
    from PIL.PngImagePlugin import PngInfo

    words = PngInfo()
    words.add_text("Description", "Contains synthetic tissue images made by a generative model. Not for diagnosis.")
    with replacing(path, new=True) as draft:
        picture.save(draft, format="PNG", pnginfo=words)


def _how(result: Result) -> str:
    source = {"own": "own morphology", "mean": "mean morphology", "null": "expression alone"}
    return source.get(result.plan.request.morphology, "another spot's morphology")


def _window(result: Result) -> tuple[float, float, float, float]:
    """Square window in full-resolution pixels around a result's canvas."""
    frame = result.plan.frame
    height, width = (n * frame.pixel_size for n in frame.shape)
    side = max(height, width) * 1.04
    y, x = frame.origin[0] + height / 2, frame.origin[1] + width / 2
    return y - side / 2, x - side / 2, y + side / 2, x + side / 2


def _composite(slide: Image.Image, result: Result, window: tuple[float, float, float, float]) -> Image.Image:
    """Lay a result over the paled slide, at its place."""
    pale = Image.blend(slide, Image.new("RGB", slide.size, (255, 255, 255)), 0.72)
    scale = PANEL / (window[2] - window[0])
    frame = result.plan.frame
    height, width = (max(1, round(n * frame.pixel_size * scale)) for n in frame.shape)
    layer = Image.fromarray(result.rgba).resize((width, height), Image.Resampling.BOX)
    at = (round((frame.origin[1] - window[1]) * scale), round((frame.origin[0] - window[0]) * scale))
    pale.paste(layer, at, layer)
    return pale


def _circles(
    section: Section, window: tuple[float, float, float, float], ids: Sequence[str]
) -> list[tuple[float, float, float, float]]:
    scale = PANEL / (window[2] - window[0])
    radius = section.spots.diameter / 2 * scale
    centres = (section.spots.yx[section.spots.rows(list(ids))] - np.array(window[:2])) * scale
    return [(x - radius, y - radius, x + radius, y + radius) for y, x in centres]


def _outlined(
    panel: Image.Image, section: Section, window: tuple[float, float, float, float], ids: Sequence[str]
) -> Image.Image:
    draw = ImageDraw.Draw(panel)
    for circle in _circles(section, window, ids):
        draw.ellipse(circle, outline=(20, 20, 30), width=4)
        x0, y0, x1, y1 = circle
        draw.ellipse((x0 + 1, y0 + 1, x1 - 1, y1 - 1), outline=(255, 233, 70), width=2)
    return panel


def _painted(
    slide: Image.Image, section: Section, window: tuple[float, float, float, float], weights: dict[str, float]
) -> Image.Image:
    panel = Image.blend(slide, Image.new("RGB", slide.size, (255, 255, 255)), 0.6)
    draw = ImageDraw.Draw(panel)
    for circle, weight in zip(_circles(section, window, list(weights)), weights.values(), strict=True):
        draw.ellipse(circle, fill=_colour(weight), outline=(255, 255, 255), width=1)
    left, top, bar = 14, PANEL - 34, 150
    draw.rectangle((left - 6, top - 22, left + bar + 6, top + 26), fill=(255, 255, 255))
    for x in range(bar):
        draw.line((left + x, top, left + x, top + 10), fill=_colour(x / (bar - 1)))
    draw.text((left, top - 20), "weight of the edit", fill=INK, font=font_of(14))
    draw.text((left, top + 10), "0", fill=INK, font=font_of(13))
    draw.text((left + bar - 8, top + 10), "1", fill=INK, font=font_of(13))
    return panel


def _colour(value: float) -> tuple[int, int, int]:
    place = np.clip(value, 0, 1) * (len(VIRIDIS) - 1)
    channels: NDArray[np.float64] = np.array([np.interp(place, range(len(VIRIDIS)), VIRIDIS[:, k]) for k in range(3)])
    red, green, blue = (int(round(c)) for c in channels)
    return red, green, blue


def _sheet(panels: Sequence[tuple[Image.Image, str, str]], um_per_pixel: float) -> Image.Image:
    width = len(panels) * PANEL + (len(panels) + 1) * GAP
    sheet = Image.new("RGB", (width, PANEL + CAPTION + GAP), (255, 255, 255))
    draw = ImageDraw.Draw(sheet)
    for k, (panel, title, words) in enumerate(panels):
        left = GAP + k * (PANEL + GAP)
        _scale_bar(panel, um_per_pixel)
        sheet.paste(panel, (left, GAP))
        draw.text((left, GAP + PANEL + 10), title, fill=INK, font=font_of(23))
        draw.text((left, GAP + PANEL + 40), words, fill=(95, 95, 105), font=font_of(17))
    return sheet


def _scale_bar(panel: Image.Image, um_per_pixel: float) -> None:
    length_um = min((50, 100, 200, 500, 1000), key=lambda um: abs(um / um_per_pixel - PANEL / 5))
    length = length_um / um_per_pixel
    draw = ImageDraw.Draw(panel)
    right, bottom = PANEL - 16, PANEL - 16
    draw.rectangle((right - length - 8, bottom - 32, right + 8, bottom + 8), fill=(255, 255, 255))
    draw.rectangle((right - length, bottom - 5, right, bottom), fill=INK)
    draw.text((right - length / 2, bottom - 28), f"{length_um} um", fill=INK, font=font_of(16), anchor="ma")


def font_of(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return the font that pictures are labelled in, of a size in pixels."""
    return ImageFont.load_default(size)
