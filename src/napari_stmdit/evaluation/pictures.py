"""Style, colours and font of pictures, and contact sheets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ..errors import StoreError
from ..storage.atomic import new_file
from ..synthesis.variants import ContactSheet
from ..tissue.export import EDITED_TYPE, NEW, label_of_result, labelled

GAP = 16
INK, QUIET = (30, 30, 34), (95, 95, 105)
LOW, MIDDLE, HIGH = (33, 102, 172), (247, 247, 247), (178, 88, 9)
"""Colours of less (blue), equal, and more (orange), which colour-blind people can tell apart."""


@contextmanager
def own_style(salt: str) -> Iterator[None]:
    """Ignore the user's settings of matplotlib: text stays text, and every picture keeps its own pixels.

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


def diverging(share: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Map values from -1 to 1 to the diverging colour scale."""
    stops = np.array([LOW, MIDDLE, HIGH], dtype=float)
    return np.stack([np.interp(share, (-1, 0, 1), stops[:, k]) for k in range(3)], axis=-1).round().astype(np.uint8)


def font_of(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return the font of labels at a size in pixels."""
    return ImageFont.load_default(size)


LABEL_PX = 26
TITLE_PX = 64


def sheet_picture(sheet: ContactSheet) -> Image.Image:
    """Draw a sheet: the real crop first if there is one, then the labelled synthetic images, and a scale bar."""
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
    with new_file(path) as draft:
        sheet_picture(sheet).save(draft, format="PNG", **labelled(label, stmdit=json.dumps(record)))
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
