"""A page of pictures, bars and text, in millimetres, written as PNG, SVG or PDF; all say what they show."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from io import BytesIO
from typing import Literal
from xml.sax.saxutils import escape

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ..tissue.export import Label, labelled
from .pictures import font_of

MM_PER_INCH = 25.4
MM_PER_POINT = MM_PER_INCH / 72
Colour = tuple[int, int, int]
_MEASURED_PX = 100
_FONTS = {False: "Helvetica", True: "Helvetica-Bold"}


@dataclass(frozen=True)
class Picture:
    """(h, w, 3) uint8 pixels in a box (left, top, width, height), in mm."""

    box: tuple[float, float, float, float]
    pixels: NDArray[np.uint8] = field(repr=False)


@dataclass(frozen=True)
class Bar:
    """A filled rectangle (left, top, width, height), in mm."""

    box: tuple[float, float, float, float]
    colour: Colour


@dataclass(frozen=True)
class Words:
    """A line of text whose baseline is at (left, baseline), in mm, of a size in points; its start or its middle is there."""

    at: tuple[float, float]
    text: str
    size: float = 7.0
    colour: Colour = (30, 30, 34)
    bold: bool = False
    anchor: Literal["start", "middle"] = "start"

    @property
    def left(self) -> float:
        """Where the line starts."""
        return self.at[0] - (width_of(self.text, self.size) / 2 if self.anchor == "middle" else 0)


Item = Picture | Bar | Words


@dataclass(frozen=True)
class Page:
    """What is drawn, in its order, on a white page of a width and height in mm."""

    size: tuple[float, float]
    items: Sequence[Item] = field(repr=False)


@cache
def width_of(text: str, size: float) -> float:
    """Return about how wide a line of text is, in mm."""
    return float(font_of(_MEASURED_PX).getlength(text)) / _MEASURED_PX * size * MM_PER_POINT


def wrapped(text: str, size: float, width: float) -> list[str]:
    """Break a text into lines no wider than ``width``, in mm; a word that is wider alone stays whole."""
    lines: list[str] = []
    for word in text.split():
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and width_of(joined, size) <= width:
            lines[-1] = joined
        else:
            lines.append(word)
    return lines


def as_png(page: Page, dpi: float, label: Label) -> bytes:
    """Return the page as a PNG file."""
    per_mm = dpi / MM_PER_INCH
    sheet = Image.new("RGB", (round(page.size[0] * per_mm), round(page.size[1] * per_mm)), "white")
    draw = ImageDraw.Draw(sheet)
    for item in page.items:
        match item:
            case Picture(box=(left, top, width, height), pixels=pixels):
                size = (max(1, round(width * per_mm)), max(1, round(height * per_mm)))
                shown = Image.fromarray(pixels)
                shown = shown if shown.size == size else shown.resize(size, Image.Resampling.LANCZOS)
                sheet.paste(shown, (round(left * per_mm), round(top * per_mm)))
            case Bar(box=(left, top, width, height), colour=colour):
                corners = [round(v * per_mm) for v in (left, top, left + width, top + height)]
                draw.rectangle(
                    (*corners[:2], max(corners[2] - 1, corners[0]), max(corners[3] - 1, corners[1])), fill=colour
                )
            case Words(at=(_, baseline), text=text, size=points, colour=colour, bold=bold):
                # the font has no micro sign
                font = font_of(max(1, round(points * MM_PER_POINT * per_mm)))
                place, stroke = (
                    (item.left * per_mm, baseline * per_mm),
                    0.03 * points * MM_PER_POINT * per_mm if bold else 0,
                )
                draw.text(
                    place,
                    text.replace("µ", "u"),
                    fill=colour,
                    font=font,
                    anchor="ls",
                    stroke_width=stroke,
                    stroke_fill=colour,
                )
    file = BytesIO()
    sheet.save(file, format="PNG", dpi=(dpi, dpi), **labelled(label))
    return file.getvalue()


def as_svg(page: Page, dpi: float, label: Label) -> bytes:
    """Return the page as an SVG file whose pictures are embedded and whose text stays text."""
    width, height = page.size
    parts = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}mm" height="{height:g}mm" viewBox="0 0 {width:g} {height:g}">',
        f"<title>{escape(label.title)}</title>",
        f"<desc>{escape(label.statement)}</desc>",
        f"<metadata>{_packet(label)}</metadata>",
        f'<rect width="{width:g}" height="{height:g}" fill="white"/>',
    ]
    for item in page.items:
        match item:
            case Picture(box=(left, top, wide, high), pixels=pixels):
                file = BytesIO()
                Image.fromarray(pixels).save(file, format="PNG")
                data = base64.b64encode(file.getvalue()).decode()
                parts.append(
                    f'<image x="{left:.3f}" y="{top:.3f}" width="{wide:.3f}" height="{high:.3f}" preserveAspectRatio="none" '
                    f'href="data:image/png;base64,{data}"/>'
                )
            case Bar(box=(left, top, wide, high), colour=colour):
                parts.append(
                    f'<rect x="{left:.3f}" y="{top:.3f}" width="{wide:.3f}" height="{high:.3f}" fill="{_hex(colour)}"/>'
                )
            case Words(at=(x, y), text=text, size=size, colour=colour, bold=bold, anchor=anchor):
                weight = ' font-weight="bold"' if bold else ""
                parts.append(
                    f'<text x="{x:.3f}" y="{y:.3f}" font-family="Helvetica, Arial, sans-serif" font-size="{size * MM_PER_POINT:.3f}" '
                    f'text-anchor="{anchor}" fill="{_hex(colour)}"{weight}>{escape(text)}</text>'
                )
    return "\n".join([*parts, "</svg>\n"]).encode()


def as_pdf(page: Page, dpi: float, label: Label) -> bytes:
    """Return the page as a PDF file of one page, whose text stays text."""
    per_mm, height = 1 / MM_PER_POINT, page.size[1]
    content: list[str] = []
    images: list[NDArray[np.uint8]] = []
    for item in page.items:
        match item:
            case Picture(box=(left, top, wide, high), pixels=pixels):
                box = [v * per_mm for v in (wide, high, left, height - top - high)]
                content.append(f"q {box[0]:.3f} 0 0 {box[1]:.3f} {box[2]:.3f} {box[3]:.3f} cm /I{len(images)} Do Q")
                images.append(pixels)
            case Bar(box=(left, top, wide, high), colour=colour):
                box = [v * per_mm for v in (left, height - top - high, wide, high)]
                content.append(f"{_ink(colour)} {' '.join(f'{v:.3f}' for v in box)} re f")
            case Words(at=(_, baseline), text=text, size=size, colour=colour, bold=bold):
                x, y = item.left * per_mm, (height - baseline) * per_mm
                content.append(
                    f"BT {_ink(colour)} /{'B' if bold else 'R'} {size:g} Tf {x:.3f} {y:.3f} Td ({_pdf_text(text)}) Tj ET"
                )
    first = 7
    names = " ".join(f"/I{k} {first + k} 0 R" for k in range(len(images)))
    paper = " ".join(f"{v * per_mm:.3f}" for v in page.size)
    title, statement = (f"({_pdf_text(text)})" for text in (label.title, label.statement))
    stream = "\n".join(content).encode("cp1252", "replace")
    packet = label.xmp if label.source else b""
    objects = [
        (f"<< /Type /Catalog /Pages 2 0 R{' /Metadata 6 0 R' if packet else ''} >>", None),
        ("<< /Type /Pages /Kids [3 0 R] /Count 1 >>", None),
        (
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 {paper}] /Contents 5 0 R /Resources << /Font << /R {_font(False)} /B {_font(True)} >> "
            f"/XObject << {names} >> >> >>",
            None,
        ),
        (f"<< /Title {title} /Subject {statement} /Producer (napari-stmdit) >>", None),
        ("<< /Filter /FlateDecode", zlib.compress(stream)),
        ("<< /Type /Metadata /Subtype /XML", packet),
        *(
            (
                f"<< /Type /XObject /Subtype /Image /Width {pixels.shape[1]} /Height {pixels.shape[0]} /ColorSpace /DeviceRGB "
                "/BitsPerComponent 8 /Filter /FlateDecode",
                zlib.compress(np.ascontiguousarray(pixels).tobytes()),
            )
            for pixels in images
        ),
    ]
    file = bytearray(b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n")
    places = []
    for number, (head, data) in enumerate(objects, start=1):
        places.append(len(file))
        file += f"{number} 0 obj\n{head}".encode("cp1252", "replace")
        if data is not None:
            file += f" /Length {len(data)} >>\nstream\n".encode() + data + b"\nendstream"
        file += b"\nendobj\n"
    start = len(file)
    file += f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n".encode()
    file += b"".join(f"{place:010d} 00000 n \n".encode() for place in places)
    file += f"trailer\n<< /Size {len(objects) + 1} /Root 1 0 R /Info 4 0 R >>\nstartxref\n{start}\n%%EOF\n".encode()
    return bytes(file)


def _font(bold: bool) -> str:
    return f"<< /Type /Font /Subtype /Type1 /BaseFont /{_FONTS[bold]} /Encoding /WinAnsiEncoding >>"


def _packet(label: Label) -> str:
    """Return the XMP packet without its processing instructions, which may not stand there."""
    return (
        "\n".join(line for line in label.xmp.decode().splitlines() if not line.startswith("<?")) if label.source else ""
    )


def _hex(colour: Colour) -> str:
    return "#" + "".join(f"{v:02x}" for v in colour)


def _ink(colour: Colour) -> str:
    return " ".join(f"{v / 255:.3f}" for v in colour) + " rg"


def _pdf_text(text: str) -> str:
    plain = text.replace("→", "to").encode("cp1252", "replace").decode("cp1252")
    return plain.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)")
