"""The picture of an edit: this tissue before, after, and where it changed, over the same window."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ..errors import StoreError
from ..storage.atomic import replacing
from ..synthesis.result import Result
from ..synthesis.variants import ContactSheet
from ..tissue.crops import read_patches
from ..tissue.export import EDITED_TYPE, NEW, Label, label_of_result, labelled
from ..types import Section
from .measures import stain_density

PANEL = 560
GAP = 16
CAPTION = 74
INK, QUIET = (30, 30, 34), (95, 95, 105)
RIM = (20, 20, 20)
LOW, MIDDLE, HIGH = (33, 102, 172), (247, 247, 247), (178, 88, 9)
"""Blue: less; orange: more. Colour-blind people can tell them apart."""
SMOOTH_UM = 6.0
"""Standard deviation of the smoothing of the change map: about a nucleus."""


@contextmanager
def own_style(salt: str) -> Iterator[None]:
    """Let matplotlib draw the same whatever its user has set: text stays text, and every picture keeps its own pixels.

    Names inside an SVG follow from its content and the ``salt``.
    """
    from matplotlib import rc_context, rcdefaults, rcParams  # slow to import

    with rc_context():
        rcdefaults()
        rcParams.update(
            {"svg.fonttype": "none", "pdf.fonttype": 42, "image.composite_image": False, "text.parse_math": False}
        )
        rcParams.update({"svg.hashsalt": salt, "font.size": 9, "font.family": "sans-serif"})
        yield


@dataclass(frozen=True)
class EditShown:
    """A square window of tissue before and after an edit.

    Attributes
    ----------
    before, after
        (n, n, 3) uint8: the slide, and the slide with the edited region in its place.
    made
        (n, n) bool: where the result has pixels.
    radius_um
        (n, n) distance from the centre of the brush.
    pixel_um
        Side of a pixel.
    brush_um
        Radii where the brush begins to fade, and where it ends.
    blend_um
        How far beyond the brush spots and windows carry a change.
    label
        What the picture is.
    """

    before: NDArray[np.uint8] = field(repr=False)
    after: NDArray[np.uint8] = field(repr=False)
    made: NDArray[np.bool_] = field(repr=False)
    radius_um: NDArray[np.float64] = field(repr=False)
    pixel_um: float
    brush_um: tuple[float, float]
    blend_um: float
    label: Label


def shown(section: Section, result: Result, centre: NDArray[np.float64], full_um: float, end_um: float) -> EditShown:
    """Read the slide around a brush at ``centre`` (y, x in full-resolution pixels) and lay the result over it."""
    assert section.image is not None and section.calibration.mpp is not None
    frame = result.plan.frame
    pixel_um = frame.pixel_size * section.calibration.mpp
    size = 2 * round(1.9 * end_um / pixel_um)
    corner = np.rint((centre - np.array(frame.origin)) / frame.pixel_size).astype(int) - size // 2
    y0, x0 = np.array(frame.origin) + corner * frame.pixel_size
    reach = size * frame.pixel_size
    before: NDArray[np.uint8] = read_patches(section.image, [(y0, x0, y0 + reach, x0 + reach)], size)[0]
    after, made = before.copy(), np.zeros((size, size), dtype=bool)
    low, high = np.maximum(corner, 0), np.minimum(corner + size, frame.shape)
    part = np.asarray(result.rgba[low[0] : high[0], low[1] : high[1]])
    here = tuple(slice(a, b) for a, b in zip(low - corner, high - corner, strict=True))
    made[here] = part[..., 3] > 0
    after[made] = part[..., :3][part[..., 3] > 0]
    away = (np.arange(size) + 0.5 - size / 2) * pixel_um
    radius = np.hypot(away[:, None], away[None])
    label = label_of_result(result.provenance)
    return EditShown(before, after, made, radius, pixel_um, (full_um, end_um), result.plan.card.patch_um / 2, label)


def edit_picture(window: EditShown, edit: str) -> Image.Image:
    """Draw this tissue before | after | change of haematoxylin density, with the brush outlined; ``edit`` says what was painted."""
    change = haematoxylin_change(window)
    limit = max(0.1, float(np.ceil(10 * np.percentile(np.abs(change), 99.5)) / 10))
    span = f"{window.brush_um[0] * 2:.0f} to {window.brush_um[1] * 2:.0f} um"
    panels = [
        (Image.fromarray(window.before), "This tissue", "slide; dashed: the brush, full weight to its end"),
        (Image.fromarray(window.after), f"This tissue, {edit}", window.label.title + ", not for diagnosis"),
        (
            Image.fromarray(diverging(change / limit)),
            "What changed",
            f"haematoxylin density, after minus before; brush {span}",
        ),
    ]
    sheet = Image.new("RGB", (len(panels) * (PANEL + GAP) + GAP, PANEL + CAPTION + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for k, (image, title, caption) in enumerate(panels):
        left, panel = GAP + k * (PANEL + GAP), image.resize((PANEL, PANEL), Image.Resampling.LANCZOS)
        um = window.pixel_um * image.width / PANEL
        for radius in window.brush_um:
            _dashed(panel, radius / um)
        _scale_bar(panel, um)
        if k == len(panels) - 1:
            _legend(panel, limit)
        sheet.paste(panel, (left, GAP))
        draw.text((left, GAP + PANEL + 10), title, fill=INK, font=font_of(23))
        draw.text((left, GAP + PANEL + 40), caption, fill=QUIET, font=font_of(17))
    return sheet


def haematoxylin_change(window: EditShown) -> NDArray[np.float32]:
    """Return the change (n, n) of haematoxylin's optical density, smoothed over a nucleus."""
    from scipy.ndimage import gaussian_filter

    change = stain_density(window.after)[..., 0] - stain_density(window.before)[..., 0]
    return np.asarray(gaussian_filter(change, SMOOTH_UM / window.pixel_um), dtype=np.float32)


def save_picture(picture: Image.Image, path: Path, label: Label) -> None:
    """Write the picture as a new PNG file that says what it is; raises FileExistsError where one is there."""
    with replacing(path, new=True) as draft:
        picture.save(draft, format="PNG", **labelled(label))


def diverging(share: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Colour values from -1 to 1 by the diverging scale."""
    stops = np.array([LOW, MIDDLE, HIGH], dtype=float)
    return np.stack([np.interp(share, (-1, 0, 1), stops[:, k]) for k in range(3)], axis=-1).round().astype(np.uint8)


def _dashed(panel: Image.Image, radius: float) -> None:
    draw, middle = ImageDraw.Draw(panel), PANEL / 2
    box = (middle - radius, middle - radius, middle + radius, middle + radius)
    for start in range(0, 360, 12):
        draw.arc(box, start, start + 7, fill=RIM, width=5)
        draw.arc(box, start + 0.6, start + 6.4, fill=(255, 233, 70), width=2)


def _legend(panel: Image.Image, limit: float) -> None:
    draw = ImageDraw.Draw(panel)
    left, top, bar = 22, PANEL - 36, 170
    draw.rectangle((left - 12, top - 24, left + bar + 12, top + 30), fill="white")
    ramp = diverging(np.linspace(-1, 1, bar, dtype=np.float32)[None].repeat(12, axis=0))
    panel.paste(Image.fromarray(ramp), (left, top))
    draw.text((left, top - 20), "optical density (ln)", fill=INK, font=font_of(14))
    for share, label in ((0, f"-{limit:g}"), (0.5, "0"), (1, f"+{limit:g}")):
        draw.text((left + share * bar, top + 13), label, fill=INK, font=font_of(13), anchor="ma")


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


# A contact sheet as one labelled picture.


LABEL_PX = 26
TITLE_PX = 64


def sheet_picture(sheet: ContactSheet) -> Image.Image:
    """Draw a sheet: the real crop first where there is one, then the synthetic images with their labels, and a scale bar."""
    images = [(cell.label, Image.fromarray(cell.pixels)) for cell in sheet.cells]
    if sheet.real is not None:
        real = Image.fromarray(sheet.real)
    elif images:
        real = Image.new("RGB", images[0][1].size, "white")
    else:
        raise StoreError("the contact sheet is still empty; let it finish an image first")
    side = real.width
    rows = max(1, -(-len(images) // sheet.columns))
    width = (sheet.columns + 1) * (side + GAP) + GAP
    picture = Image.new("RGB", (width, TITLE_PX + rows * (side + LABEL_PX + GAP) + GAP), "white")
    draw = ImageDraw.Draw(picture)
    draw.text((GAP, 12), f"{sheet.title}: spot {sheet.spot}", fill=INK, font=font_of(20))
    edited = any(cell.provenance.get("counterfactual") for cell in sheet.cells)
    what = "Edited real tissue, synthetic." if edited else "Synthetic images, common noise."
    draw.text((GAP, 38), f"{what} Not for diagnosis.", fill=QUIET, font=font_of(14))
    if sheet.real is not None:
        _put(picture, real, "slide (real crop)" if not _made(sheet) else "slide (synthetic section)", GAP, TITLE_PX)
    for k, (label, image) in enumerate(images):
        row, column = divmod(k, sheet.columns)
        _put(picture, image, label, GAP + (column + 1) * (side + GAP), TITLE_PX + row * (side + LABEL_PX + GAP))
    _bar(draw, sheet.patch_um / side, GAP, TITLE_PX + side - 12)
    return picture


def save_sheet(sheet: ContactSheet, path: str | Path) -> Path:
    """Write a sheet as PNG with the provenance of every image in its text; never overwrites.

    Raises
    ------
    StoreError
        The file is there already or cannot be written, or the sheet is empty.
    """
    path = Path(path).expanduser()
    path = path if path.suffix.lower() == ".png" else path.with_suffix(".png")
    record = {"title": sheet.title, "spot": sheet.spot, "cells": [[c.label, dict(c.provenance)] for c in sheet.cells]}
    made = [label_of_result(cell.provenance) for cell in sheet.cells]
    label = next((each for each in made if each.source == EDITED_TYPE), NEW)
    try:
        with replacing(path, new=True) as draft:
            sheet_picture(sheet).save(draft, format="PNG", **labelled(label, stmdit=json.dumps(record)))
    except FileExistsError:
        raise StoreError(f"{path} is already there; nothing is overwritten, give another name") from None
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error}") from error
    return path


def _made(sheet: ContactSheet) -> bool:
    return bool(sheet.cells and sheet.cells[0].provenance["section"]["synthetic"])


def _put(picture: Image.Image, image: Image.Image, label: str, left: int, top: int) -> None:
    picture.paste(image, (left, top))
    ImageDraw.Draw(picture).text((left, top + image.height + 5), label, fill=INK, font=font_of(14))


def _bar(draw: ImageDraw.ImageDraw, um_per_pixel: float, left: int, bottom: int) -> None:
    length = 50 / um_per_pixel
    draw.rectangle((left + 6, bottom - 22, left + length + 14, bottom + 8), fill="white")
    draw.rectangle((left + 10, bottom, left + 10 + length, bottom + 3), fill=INK)
    draw.text((left + 10, bottom - 20), "50 um", fill=INK, font=font_of(13))
