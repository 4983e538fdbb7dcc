"""Plots as inline SVG: values with their intervals, and curves. No colour carries meaning alone; every mark has its label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

WIDTH, LABEL, ROW, RIGHT = 860, 220, 24, 230
COLOURS = ("#1f5fa8", "#c2571a", "#2b7a3d", "#8a3a8f", "#7a6a00", "#5a5a5a", "#b0305a", "#137a7f")
REAL = "#5a5a5a"


def forest(rows: Sequence[tuple[str, Mapping[str, Any], bool]], title: str, digits: int = 3) -> str:
    """Draw one line a row: a dot at the value and a bar over its interval.

    Parameters
    ----------
    rows
        (label, facts of an interval, whether it is of real patches).
    title
        Of the plot; what the axis measures, with unit.
    digits
        After the point, of the written values; the axis always reaches 0.
    """
    known = [v for _, facts, _ in rows for v in (facts["value"], facts["low"], facts["high"]) if v is not None]
    low, high = min([0.0, *known]), max([0.0, *known])
    span = (high - low) or 1.0
    low, high = low - 0.04 * span, high + 0.04 * span
    left, right = LABEL, WIDTH - RIGHT

    def x(value: float) -> float:
        return float(left + (value - low) / (high - low) * (right - left))

    height = 30 + ROW * len(rows) + 26
    parts = [_text(0, 16, title, weight="bold")]
    parts += _ticks(low, high, x, 24, height - 22)
    if low < 0 < high:
        parts.append(
            f'<line x1="{x(0):.1f}" x2="{x(0):.1f}" y1="24" y2="{height - 22}" stroke="#444" stroke-width="1"/>'
        )
    for place, (label, facts, real) in enumerate(rows):
        y = 30 + ROW * place + ROW / 2
        colour = REAL if real else COLOURS[0]
        parts.append(_text(left - 8, y + 4, label, anchor="end"))
        if facts["value"] is None:
            parts.append(_text(left + 4, y + 4, "cannot be told"))
            continue
        if facts["low"] is not None:
            a, b = x(facts["low"]), x(facts["high"])
            parts.append(f'<line x1="{a:.1f}" x2="{b:.1f}" y1="{y}" y2="{y}" stroke="{colour}" stroke-width="3"/>')
        shape = f'<rect x="{x(facts["value"]) - 4:.1f}" y="{y - 4}" width="8" height="8" fill="{colour}"/>'
        dot = f'<circle cx="{x(facts["value"]):.1f}" cy="{y}" r="4.5" fill="{colour}"/>'
        parts.append(shape if real else dot)
        parts.append(_text(right + 8, y + 4, written(facts, digits)))
    return _svg(WIDTH, height, title, parts)


def curves(lines: Sequence[tuple[str, Sequence[float], bool]], title: str, first: int, x_label: str) -> str:
    """Draw curves over a shared axis of counts that starts at ``first``; (label, heights, whether of real patches)."""
    height, left, right, top, bottom = 320, 60, WIDTH - 250, 28, 280
    count = max(len(values) for _, values, _ in lines)
    known = np.concatenate([np.asarray(values, dtype=float) for _, values, _ in lines])
    low, high = min(0.0, float(known.min())), max(0.05, float(known.max()))
    span = (high - low) * 1.05

    def x(place: float) -> float:
        return left + (right - left) * place / max(1, count - 1)

    def y(value: float) -> float:
        return bottom - (value - low) / span * (bottom - top)

    parts = [_text(0, 16, title, weight="bold"), _text((left + right) / 2, 312, x_label, anchor="middle")]
    for value in _nice(low, high):
        parts.append(f'<line x1="{left}" x2="{right}" y1="{y(value):.1f}" y2="{y(value):.1f}" stroke="#ddd"/>')
        parts.append(_text(left - 6, y(value) + 4, f"{value:g}", anchor="end"))
    for place in sorted({0, (count - 1) // 2, count - 1}):
        parts.append(_text(x(place), bottom + 16, str(first + place), anchor="middle"))
    heights = sorted(range(len(lines)), key=lambda k: y(lines[k][1][-1]))
    label_y = dict(zip(heights, _apart([y(lines[k][1][-1]) for k in heights], 15, bottom), strict=True))
    for k, (label, values, real) in enumerate(lines):
        colour, dash = (REAL, ' stroke-dasharray="6 4"') if real else (COLOURS[k % len(COLOURS)], "")
        points = " ".join(f"{x(place):.1f},{y(float(v)):.1f}" for place, v in enumerate(values))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')
        end = y(float(values[-1]))
        parts.append(
            f'<line x1="{right}" y1="{end:.1f}" x2="{right + 14}" y2="{label_y[k]:.1f}" stroke="{colour}" stroke-width="1"/>'
        )
        parts.append(_text(right + 18, label_y[k] + 4, label, colour=colour))
    return _svg(WIDTH, height, title, parts)


def written(facts: Mapping[str, Any], digits: int = 3) -> str:
    """Return a value with its interval in words."""
    if facts["value"] is None:
        return "not known"
    text = f"{facts['value']:.{digits}f}"
    return text if facts["low"] is None else f"{text} [{facts['low']:.{digits}f}, {facts['high']:.{digits}f}]"


def _apart(places: list[float], least: float, last: float) -> list[float]:
    """Move ascending places so far apart that their labels can be read, none beyond ``last``."""
    out: list[float] = []
    for place in places:
        out.append(max(place, out[-1] + least) if out else place)
    for k in range(len(out) - 1, -1, -1):
        out[k] = min(out[k], last - least * (len(out) - 1 - k))
    return out


def _ticks(low: float, high: float, x: Any, top: float, bottom: float) -> list[str]:
    parts = []
    for value in _nice(low, high):
        parts.append(f'<line x1="{x(value):.1f}" x2="{x(value):.1f}" y1="{top}" y2="{bottom}" stroke="#e2e2e2"/>')
        parts.append(_text(x(value), bottom + 15, f"{value:g}", anchor="middle", colour="#555"))
    return parts


def _nice(low: float, high: float, count: int = 5) -> list[float]:
    """About so many round values in a range."""
    raw = (high - low) / count
    power = 10 ** np.floor(np.log10(raw))
    step = next(power * f for f in (1, 2, 5, 10) if power * f >= raw)
    first = np.ceil(low / step)
    return [round(float((first + k) * step), 10) for k in range(count + 2) if (first + k) * step <= high]


def _text(x: float, y: float, text: str, anchor: str = "start", weight: str = "normal", colour: str = "#1a1a1a") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}" fill="{colour}">{escape(text)}</text>'


def _svg(width: int, height: float, title: str, parts: Sequence[str]) -> str:
    inside = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height:.0f}" width="{width}" role="img" '
        f'aria-label="{escape(title, quote=True)}" font-family="sans-serif" font-size="12">{inside}</svg>'
    )
