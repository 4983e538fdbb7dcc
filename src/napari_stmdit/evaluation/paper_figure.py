"""Figure of a result for a paper: slide, edits, result and difference side by side over one window."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ..edits import Swap
from ..errors import StoreError
from ..expression.changes import active_edits, spot_weights
from ..files import user_path
from ..storage.atomic import new_file
from ..synthesis.result import Finished, Result, finished
from ..synthesis.stored import StoredResult
from ..text import capitalised
from ..tissue.crops import read_patches
from ..tissue.export import Label, label_of_result, labelled
from .measures import stain_density
from .pictures import INK, diverging, own_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MM_PER_INCH = 25.4
MM_PER_POINT = MM_PER_INCH / 72
WIDTHS_MM = (40.0, 400.0)
DPI = (72, 1200)
GAP_MM, EDGE_MM = 3.0, 1.0
MIN_PANEL_MM = 25.0
"""Minimum width of a panel; narrower ones are put into further rows."""
BAR_MM = 0.8
MAX_PX = 3000
"""Maximum side of the window in pixels to read: a printed panel shows no more."""
COARSEST = 1.5
"""Maximum ratio of the slide's pixel size to the result's for the two to be compared."""
SMOOTH_UM = 6.0
"""Standard deviation of the smoothing of the difference: about a nucleus."""
_BARS_UM = (10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
_INK = "#{:02x}{:02x}{:02x}".format(*INK)
_PALE, _FULL = (235, 235, 238), (91, 44, 131)
"""Colours of a spot without edit, and of one that is edited with full weight."""


@dataclass(frozen=True)
class _Panel:
    """Panel: a square picture (n, n, 3) uint8, its caption, and a legend of colours (k, 3) uint8 and labels at fractions of it."""

    pixels: NDArray[np.uint8] = field(repr=False)
    caption: str
    window_um: float
    colours: NDArray[np.uint8] | None = field(default=None, repr=False)
    ticks: Mapping[float, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Window:
    """Square of tissue before and after.

    ``before`` and ``after`` are (n, n, 3) uint8, ``made`` (n, n) masks the pixels of the result; ``corner`` (y, x) and ``side`` are in
    full-resolution pixels.
    """

    before: NDArray[np.uint8]
    after: NDArray[np.uint8]
    made: NDArray[np.bool_]
    corner: tuple[float, float]
    side: float
    pixel_um: float


def write_figure(result: Result | StoredResult, path: str | Path, *, width_mm: float = 180.0, dpi: int = 300) -> Path:
    """Write a result as a figure: slide, edits, result, and difference in haematoxylin, with scale bars and legends.

    The difference is drawn for edited real tissue only: new tissue differs from the slide everywhere. Panels and the file's metadata say
    what is synthetic.

    Parameters
    ----------
    result
        Finished or stopped result with at least one patch, of a run or from a store.
    path
        New file; its ending (.png, .svg or .pdf) decides the format. Text of the latter two stays text.
    width_mm
        Width of the figure, 40 to 400 mm; panels of a narrow one stand in rows.
    dpi
        Pixels per inch of its pictures, 72 to 1200.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    StoreError
        The result is empty, its slide is missing or coarser than the result, the ending, width or dpi is not allowed, or the path is taken
        or cannot be written.
    """
    file = user_path(path)
    ending = file.suffix.lower()
    if ending not in _WRITERS:
        raise StoreError(f"got a figure ending in {file.suffix or 'nothing'!r}; expected one of {', '.join(_WRITERS)}")
    for name, value, (low, high), unit in (("width", width_mm, WIDTHS_MM, " mm"), ("dpi", dpi, DPI, "")):
        if not low <= value <= high:
            raise StoreError(f"the {name} of a figure is {value:g}{unit}; expected {low:g} to {high:g}{unit}")
    made = finished(result)
    if not made.done:
        raise StoreError("the result holds no finished patch; there is nothing to draw")
    label = label_of_result(made.provenance)
    content = _content(_panels(made, label, round(width_mm / MM_PER_INCH * dpi)), width_mm, dpi, label, ending)
    with new_file(file) as draft:
        draft.write_bytes(content)
    return file


def _panels(made: Finished, label: Label, px: int) -> list[_Panel]:
    """Return the panels that exist of slide, edit, result and difference; the edit is drawn ``px`` pixels wide."""
    window = window_of(made)
    window_um = window.pixel_um * len(window.before)
    slide = "Synthetic slide" if made.section.synthetic else "Slide"
    panels = [_Panel(window.before, f"{slide}: {made.section.name}", window_um)]
    ramp = np.linspace(0, 1, 200, dtype=np.float32)
    if edits := active_edits(made.request.edits):
        names = "; ".join(edit.name or edit.operation.replace("_", " ") for edit in edits)
        caption = f"Edit: {names}. Weight of the edit at each spot"
        colours = (_PALE + ramp[:, None] * np.subtract(_FULL, _PALE)).round().astype(np.uint8)
        picture = _edit_map(made, window, min(MAX_PX, px))
        panels.append(_Panel(picture, caption, window_um, colours, {0.0: "0", 1.0: "1"}))
    kind = f"{capitalised(label.title)}. Not for diagnosis"
    panels.append(_Panel(window.after, kind, window_um))
    if made.provenance.get("counterfactual"):
        change = _change(window)
        limit = max(0.1, float(np.ceil(10 * np.percentile(np.abs(change[window.made]), 99)) / 10))
        picture = np.where(window.made[..., None], diverging(change / limit), np.uint8(225))
        caption = "Difference: haematoxylin density (ln), result minus slide; grey: not synthesized"
        ticks = {0.0: f"\N{MINUS SIGN}{limit:g}", 0.5: "0", 1.0: f"+{limit:g}"}
        panels.append(_Panel(picture, caption, window_um, diverging(2 * ramp - 1), ticks))
    return panels


def _content(panels: Sequence[_Panel], width_mm: float, dpi: int, label: Label, ending: str) -> bytes:
    from matplotlib.figure import Figure  # slow to import

    with own_style("napari-stmdit"):
        figure = Figure(dpi=dpi)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.axis("off")
        size = np.array([width_mm, _draw(axes, panels, width_mm, dpi)])
        if ending == ".png":  # whole pixels, and a little more lest they are rounded down
            size = (np.round(size / MM_PER_INCH * dpi) + 0.01) / dpi * MM_PER_INCH
        figure.set_size_inches(*(size / MM_PER_INCH))
        axes.set(xlim=(0, size[0]), ylim=(size[1], 0))
        return _WRITERS[ending](figure, label)


def _png(figure: Figure, label: Label) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas, file = FigureCanvasAgg(figure), BytesIO()
    canvas.draw()
    sheet = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    sheet.save(file, format="PNG", dpi=(figure.dpi, figure.dpi), **labelled(label))
    return file.getvalue()


def _svg(figure: Figure, label: Label) -> bytes:
    file = BytesIO()
    figure.savefig(file, format="svg", metadata={"Title": label.title, "Date": None})
    # matplotlib writes no digital source type; the packet's processing instructions may not stand there
    packet = "\n".join(line for line in label.xmp.decode().splitlines() if not line.startswith("<?"))
    text = file.getvalue().decode()
    text = text.replace("</title>", f"</title>\n <desc>{escape(label.statement)}</desc>", 1)
    return text.replace("</metadata>", f"{packet}\n </metadata>", 1).encode()


def _pdf(figure: Figure, label: Label) -> bytes:
    file = BytesIO()
    said = {"Title": label.title, "Subject": label.statement, "Keywords": label.source, "CreationDate": None}
    figure.savefig(file, format="pdf", metadata=said)
    return file.getvalue()


_WRITERS = {".png": _png, ".svg": _svg, ".pdf": _pdf}


def _draw(axes: Axes, panels: Sequence[_Panel], width_mm: float, dpi: int) -> float:
    pixel = MM_PER_INCH / dpi
    columns = min(len(panels), max(1, int((width_mm - 2 * EDGE_MM + GAP_MM) / (MIN_PANEL_MM + GAP_MM))))
    rows = math.ceil(len(panels) / columns)
    columns = math.ceil(len(panels) / rows)
    px = int((width_mm - 2 * EDGE_MM - (columns - 1) * GAP_MM) / columns / pixel)
    side = px * pixel
    points = 5.0 if side < 35 else 7.0
    em = points * MM_PER_POINT
    top = lowest = EDGE_MM
    for k, panel in enumerate(panels):
        if k and k % columns == 0:
            top = lowest + GAP_MM
        # whole pixels, so that those of a picture are those of the page
        left, top = (round(mm / pixel) * pixel for mm in (EDGE_MM + k % columns * (side + GAP_MM), top))
        shown = Image.fromarray(panel.pixels).resize((px, px), Image.Resampling.LANCZOS)
        _picture(axes, left, top, side, side, np.asarray(shown))
        _scale_bar(axes, left, top, side, panel.window_um / side, points)
        baseline = top + side + 1.4 * em
        _text(axes, left, baseline, "abcd"[k], points + 1, fontweight="bold")
        lines = _wrapped(panel.caption, points, side - 3.5)
        for row, line in enumerate(lines):
            _text(axes, left + 3.5, baseline + 1.25 * em * row, line, points)
        bottom = baseline + 1.25 * em * (len(lines) - 1) + 0.4 * em
        if panel.colours is not None:
            _legend(axes, left, bottom + 0.6, side, panel.colours, panel.ticks, points)
            bottom += 3.0 + 1.2 * em
        lowest = max(lowest, bottom)
    return lowest + EDGE_MM


def _picture(axes: Axes, left: float, top: float, width: float, height: float, pixels: NDArray[np.uint8]) -> None:
    extent = (left, left + width, top + height, top)
    axes.imshow(pixels, extent=extent, aspect="auto", interpolation="none", clip_on=False)


def _bar(axes: Axes, left: float, top: float, width: float, height: float, colour: str) -> None:
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle((left, top), width, height, facecolor=colour, linewidth=0, clip_on=False, zorder=2))


def _text(axes: Axes, left: float, baseline: float, text: str, points: float, **options: Any) -> None:
    axes.text(left, baseline, text, fontsize=points, color=_INK, parse_math=False, **options)


def _text_width(text: str, points: float) -> float:
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    width, _, _ = text_to_path.get_text_width_height_descent(text, FontProperties(size=points), ismath=False)
    return float(width) * MM_PER_POINT


def _wrapped(text: str, points: float, width: float) -> list[str]:
    """Wrap a text to lines of at most ``width`` mm, at words, or inside a word that is wider alone."""
    lines: list[str] = []
    for word in text.split():
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and _text_width(joined, points) <= width:
            lines[-1] = joined
            continue
        while len(word) > 1 and _text_width(word, points) > width:
            fitting = (n for n in range(len(word) - 1, 1, -1) if _text_width(word[:n], points) <= width)
            first = next(fitting, 1)
            lines.append(word[:first])
            word = word[first:]
        lines.append(word)
    return lines


def window_of(made: Finished) -> Window:
    """Return the square around the result with a tenth more on each side; raises StoreError where the slide is coarser than the result."""
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
    step = max(1, math.ceil(side / MAX_PX))
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
    return Window(before, after, there, (y0, x0), reach, step * frame.pixel_size * mpp)


def _made_box(canvas: Any, shape: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return corner (y, x) and size of the part of a canvas that has pixels, approximate where it is large."""
    step = max(1, math.ceil(max(shape) / MAX_PX))
    there = np.asarray(canvas[::step, ::step, 3]) > 0
    spans = [np.flatnonzero(there.any(axis=axis)) for axis in (1, 0)]
    if not all(len(span) for span in spans):
        raise StoreError("the result holds no pixel; there is nothing to draw")
    low = [int(span[0]) * step for span in spans]
    high = [min((int(span[-1]) + 1) * step, n) for span, n in zip(spans, shape, strict=True)]
    return (low[0], low[1]), (high[0] - low[0], high[1] - low[1])


def _change(window: Window) -> NDArray[np.float32]:
    from scipy.ndimage import gaussian_filter

    change = stain_density(window.after)[..., 0] - stain_density(window.before)[..., 0]
    return np.asarray(gaussian_filter(change, SMOOTH_UM / window.pixel_um), dtype=np.float32)


def _edit_map(made: Finished, window: Window, px: int) -> NDArray[np.uint8]:
    """Draw spots as discs over the pale slide, the darker the stronger an edit acts."""
    spots = made.section.spots
    ids = spots.ids.tolist()
    weights = np.zeros(len(ids))
    for edit in active_edits(made.request.edits):
        own = spot_weights(edit, ids)
        if isinstance(edit, Swap):
            own = np.where(np.isin(spots.ids, [*edit.group_a, *edit.group_b]), own, 0)
        weights = np.maximum(weights, own)
    pale = 255 - (255 - window.before.astype(np.float32)) * 0.35
    picture = Image.fromarray(pale.astype(np.uint8)).resize((px, px), Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(picture)
    per_px = px / window.side
    radius = max(1.5, spots.diameter / 2 * per_px)
    edge = max(1, round(radius / 12))
    for (y, x), weight in zip(((spots.yx - window.corner) * per_px).tolist(), weights.tolist(), strict=True):
        colour = tuple(round(low + weight * (high - low)) for low, high in zip(_PALE, _FULL, strict=True))
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour, outline=(150, 150, 158), width=edge)
    return np.asarray(picture)


def _scale_bar(axes: Axes, left: float, top: float, side: float, um_per_mm: float, points: float) -> None:
    length_um = min(_BARS_UM, key=lambda um: abs(um / um_per_mm - side / 4))
    length, text, high = length_um / um_per_mm, f"{length_um} µm", 1.4 * points * MM_PER_POINT
    wide = max(length, _text_width(text, points))
    middle, bottom = left + side - 1.5 - wide / 2, top + side - 1.5
    _bar(axes, middle - wide / 2 - 0.8, bottom - BAR_MM - high, wide + 1.6, high + BAR_MM + 0.8, "white")
    _bar(axes, middle - length / 2, bottom - BAR_MM, length, BAR_MM, _INK)
    _text(axes, middle, bottom - BAR_MM - 0.6, text, points, horizontalalignment="center")


def _legend(
    axes: Axes,
    left: float,
    top: float,
    side: float,
    colours: NDArray[np.uint8],
    ticks: Mapping[float, str],
    points: float,
) -> None:
    width = side * 0.6
    start = left + side * 0.2
    _picture(axes, start, top, width, 2.0, colours[None])
    for share, text in ticks.items():
        place = (start + share * width, top + 2.4 + 0.9 * points * MM_PER_POINT)
        _text(axes, *place, text, max(5.0, points - 1), horizontalalignment="center")
