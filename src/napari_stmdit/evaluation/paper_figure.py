"""A result as a figure for a paper: the slide, where the edits act, the result and what differs, side by side over one window."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ..errors import StoreError
from ..expression.changes import active_edits, spot_weights
from ..files import user_path
from ..intent import SwapEdit
from ..storage.atomic import replacing
from ..synthesis.result import Finished, Result, finished
from ..synthesis.stored import StoredResult
from ..tissue.crops import read_patches
from ..tissue.export import Label, label_of_result
from .drawing import MM_PER_INCH, MM_PER_POINT, Bar, Item, Page, Picture, Words, as_pdf, as_png, as_svg, wrapped
from .measures import stain_density
from .pictures import INK, SMOOTH_UM, diverging

WIDTHS_MM = (40.0, 400.0)
DPI = (72, 1200)
GAP_MM, EDGE_MM = 3.0, 1.0
BAR_MM = 0.8
MOST_PX = 3000
"""Longest side of the window in pixels that are read: a printed panel shows no more."""
COARSEST = 1.5
"""How many times coarser than the result the slide may be for the two to be compared."""
_WRITERS = {".png": as_png, ".svg": as_svg, ".pdf": as_pdf}
_BARS_UM = (10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
_PALE, _FULL = (235, 235, 238), (91, 44, 131)
"""Colours of a spot that no edit acts on, and of one that an edit acts on with its full weight."""


@dataclass(frozen=True)
class _Window:
    """A square of tissue.

    ``before`` and ``after`` are (n, n, 3) uint8, ``made`` (n, n) is where the result has pixels; ``corner`` (y, x) and ``side`` are in
    full-resolution pixels.
    """

    before: NDArray[np.uint8]
    after: NDArray[np.uint8]
    made: NDArray[np.bool_]
    corner: tuple[float, float]
    side: float
    pixel_um: float


def write_figure(result: Result | StoredResult, path: str | Path, *, width_mm: float = 180.0, dpi: int = 300) -> Path:
    """Write a result as a figure: slide, where the edits act, result, and what differs in haematoxylin, with scale bars and legends.

    The difference is drawn of edited real tissue alone: new tissue differs from the slide everywhere. A panel says what it shows, and
    that it is synthetic; the file says so in its metadata, too.

    Parameters
    ----------
    result
        Finished or stopped, of a run or read back from a store; at least one patch.
    path
        Where to; must not exist. Its ending says how: .png, .svg or .pdf. Text of the latter two stays text.
    width_mm
        Width of the figure, 40 to 400 mm.
    dpi
        Pixels per inch of its pictures, 72 to 1200.

    Returns
    -------
    Path
        What was written.

    Raises
    ------
    StoreError
        The result is empty, its slide is missing or coarser than the result, the ending, width or dpi is not allowed, or the path is taken
        or cannot be written.
    """
    file = user_path(path)
    write = _WRITERS.get(file.suffix.lower())
    if write is None:
        raise StoreError(f"got a figure ending in {file.suffix or 'nothing'!r}; expected one of {', '.join(_WRITERS)}")
    for name, value, (low, high), unit in (("width", width_mm, WIDTHS_MM, " mm"), ("dpi", dpi, DPI, "")):
        if not low <= value <= high:
            raise StoreError(f"the {name} of a figure is {value:g}{unit}; expected {low:g} to {high:g}{unit}")
    made = finished(result)
    if not made.done:
        raise StoreError("the result holds no finished patch; there is nothing to draw")
    label = label_of_result(made.provenance)
    content = write(_page(made, width_mm, dpi, label), dpi, label)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file, new=True) as draft:
            draft.write_bytes(content)
    except FileExistsError:
        raise StoreError(f"{file} is already there; nothing is overwritten, give another name") from None
    except OSError as error:
        raise StoreError(f"{file} cannot be written: {error}") from error
    return file


def _page(made: Finished, width_mm: float, dpi: int, label: Label) -> Page:
    window = _window(made)
    edited = bool(made.provenance.get("counterfactual"))
    edits = active_edits(made.request.edits)
    slide = "Synthetic slide" if made.section.synthetic else "Slide"
    panels: list[tuple[NDArray[np.uint8], str, Mapping[float, str]]] = [
        (window.before, f"{slide}: {made.section.name}", {})
    ]
    if edits:
        names = "; ".join(edit.name or edit.operation.replace("_", " ") for edit in edits)
        panels.append(
            (
                _edit_map(made, window, _pixels(width_mm, dpi)),
                f"Edit: {names}. Weight of the edit at each spot",
                {0.0: "0", 1.0: "1"},
            )
        )
    kind = f"{label.title[0].upper()}{label.title[1:]}. Not for diagnosis"
    panels.append((window.after, kind, {}))
    limit = 0.0
    if edited:
        change = _change(window)
        limit = max(0.1, float(np.ceil(10 * np.percentile(np.abs(change[window.made]), 99)) / 10))
        difference = np.where(window.made[..., None], diverging(change / limit), np.uint8(225))
        scale = {0.0: f"-{limit:g}", 0.5: "0", 1.0: f"+{limit:g}"}
        panels.append(
            (difference, "Difference: haematoxylin density (ln), result minus slide; grey: not synthesized", scale)
        )
    side = (width_mm - 2 * EDGE_MM - (len(panels) - 1) * GAP_MM) / len(panels)
    points = 5.0 if side < 35 else 7.0
    px = round(side / MM_PER_INCH * dpi)
    items: list[Item] = []
    lowest = 0.0
    for k, (pixels, caption, ticks) in enumerate(panels):
        left, top = EDGE_MM + k * (side + GAP_MM), EDGE_MM
        shown = Image.fromarray(pixels)
        shown = shown if shown.size == (px, px) else shown.resize((px, px), Image.Resampling.LANCZOS)
        items.append(Picture((left, top, side, side), np.asarray(shown)))
        items += _scale_bar(left, top, side, window, points)
        y = top + side + 1.4 * points * MM_PER_POINT
        if ticks:
            items += _legend(left, top + side + 1, side, ticks, points, weight=len(ticks) == 2)
            y += 1.0 + 2.6 + 1.2 * points * MM_PER_POINT
        items.append(Words((left, y), "abcd"[k], points + 1, INK, bold=True))
        for line in wrapped(caption, points, side - 3.5):
            items.append(Words((left + 3.5, y), line, points, INK))
            y += 1.25 * points * MM_PER_POINT
        lowest = max(lowest, y)
    return Page((width_mm, lowest + EDGE_MM), items)


def _pixels(width_mm: float, dpi: int) -> int:
    """Side of the map of edits in pixels: no finer than the figure."""
    return min(MOST_PX, max(200, round(width_mm / 3 / MM_PER_INCH * dpi)))


def _window(made: Finished) -> _Window:
    """Return the square around what was made, with a tenth more on each side."""
    section, frame, canvas = made.section, made.frame, made.rgba
    mpp = section.mpp
    slide = section.slide
    if slide.pixel_size > COARSEST * frame.pixel_size:
        raise StoreError(
            f"the slide at hand is {slide.pixel_size / frame.pixel_size:.1f} times coarser than the result, so that the two cannot be compared; "
            "open the section with its full-resolution image (--fullres IMAGE, fullres=IMAGE)"
        )
    corner, size = _made_box(canvas, frame.shape)
    side = math.ceil(1.2 * max(size))
    step = max(1, math.ceil(side / MOST_PX))
    count = math.ceil(side / step)
    first = [
        start - (count * step - n) // 2 for start, n in zip(corner, size, strict=True)
    ]  # of the window, on the canvas
    y0, x0 = (o + place * frame.pixel_size for o, place in zip(frame.origin, first, strict=True))
    reach = count * step * frame.pixel_size
    before: NDArray[np.uint8] = read_patches(slide, [(y0, x0, y0 + reach, x0 + reach)], count)[0]
    after, there = before.copy(), np.zeros((count, count), dtype=bool)
    # the pixels of the canvas in the middle of the window's own
    at = [np.arange(count) * step + step // 2 + place for place in first]
    inside = [(places >= 0) & (places < n) for places, n in zip(at, frame.shape, strict=True)]
    low = [int(places[where][0]) for places, where in zip(at, inside, strict=True)]
    high = [int(places[where][-1]) + 1 for places, where in zip(at, inside, strict=True)]
    rgba = np.asarray(canvas[low[0] : high[0] : step, low[1] : high[1] : step])
    here = np.ix_(*inside)
    there[here] = rgba[..., 3] > 0
    after[there] = rgba[..., :3][rgba[..., 3] > 0]
    return _Window(before, after, there, (y0, x0), reach, step * frame.pixel_size * mpp)


def _made_box(canvas: Any, shape: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Corner (y, x) and size of the part of a canvas that has pixels, to a few pixels where it is large."""
    step = max(1, math.ceil(max(shape) / MOST_PX))
    there = np.asarray(canvas[::step, ::step, 3]) > 0
    spans = [np.flatnonzero(there.any(axis=axis)) for axis in (1, 0)]
    if not all(len(span) for span in spans):
        raise StoreError("the result holds no pixel; there is nothing to draw")
    low = [int(span[0]) * step for span in spans]
    high = [min((int(span[-1]) + 1) * step, n) for span, n in zip(spans, shape, strict=True)]
    return (low[0], low[1]), (high[0] - low[0], high[1] - low[1])


def _change(window: _Window) -> NDArray[np.float32]:
    from scipy.ndimage import gaussian_filter

    change = stain_density(window.after)[..., 0] - stain_density(window.before)[..., 0]
    return np.asarray(gaussian_filter(change, SMOOTH_UM / window.pixel_um), dtype=np.float32)


def _edit_map(made: Finished, window: _Window, px: int) -> NDArray[np.uint8]:
    """Spots as discs, the stronger an edit acts on one the darker, over the pale slide."""
    spots = made.section.spots
    ids = spots.ids.tolist()
    weights = np.zeros(len(ids))
    for edit in active_edits(made.request.edits):
        own = spot_weights(edit, ids)
        if isinstance(edit, SwapEdit):
            own = np.where(np.isin(spots.ids, [*edit.group_a, *edit.group_b]), own, 0)
        weights = np.maximum(weights, own)
    pale = 255 - (255 - window.before.astype(np.float32)) * 0.35
    picture = Image.fromarray(pale.astype(np.uint8)).resize((px, px), Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(picture)
    per_px = px / window.side
    radius = max(1.5, spots.diameter / 2 * per_px)
    for (y, x), weight in zip(((spots.yx - window.corner) * per_px).tolist(), weights.tolist(), strict=True):
        colour = tuple(round(low + weight * (high - low)) for low, high in zip(_PALE, _FULL, strict=True))
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour, outline=(150, 150, 158))
    return np.asarray(picture)


def _scale_bar(left: float, top: float, side: float, window: _Window, points: float) -> list[Item]:
    um_per_mm = window.pixel_um * window.before.shape[0] / side
    length_um = min(_BARS_UM, key=lambda um: abs(um / um_per_mm - side / 4))
    length, high = length_um / um_per_mm, 1.4 * points * MM_PER_POINT
    right, bottom = left + side - 1.5, top + side - 1.5
    return [
        Bar((right - length - 0.8, bottom - BAR_MM - high, length + 1.6, high + BAR_MM + 0.8), (255, 255, 255)),
        Bar((right - length, bottom - BAR_MM, length, BAR_MM), INK),
        Words((right - length / 2, bottom - BAR_MM - 0.6), f"{length_um} µm", points, anchor="middle"),
    ]


def _legend(
    left: float, top: float, side: float, ticks: Mapping[float, str], points: float, weight: bool
) -> list[Item]:
    ramp = np.linspace(0, 1, 200, dtype=np.float32)
    colours = np.array([_PALE, _FULL], dtype=float)
    row = (
        np.stack([np.interp(ramp, (0, 1), colours[:, k]) for k in range(3)], axis=-1).round()
        if weight
        else diverging(2 * ramp - 1)
    )
    width = side * 0.6
    start = left + side * 0.2
    items: list[Item] = [Picture((start, top, width, 2.0), np.asarray(row, dtype=np.uint8)[None].repeat(8, axis=0))]
    for share, text in ticks.items():
        items.append(
            Words((start + share * width, top + 2.4 + 0.9 * points * MM_PER_POINT), text, points - 1, anchor="middle")
        )
    return items
