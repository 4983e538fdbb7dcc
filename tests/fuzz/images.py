"""Slide images that are broken or odd; the tiny slide is 860 x 860 pixels."""

from __future__ import annotations

import io
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import tifffile
from fuzz.harness import (
    Refused,
    Scene,
    Works,
    both,
    cases,
    link,
    nothing,
    remove,
    request_error,
    section_error,
    setting,
    truncate,
    write,
)
from PIL import Image
from tiny import TINY_SIDE_PX, analytic_image

SLIDE = "slide.png"
HIRES, LOWRES = "spatial/tissue_hires_image.png", "spatial/tissue_lowres_image.png"
PICTURE = analytic_image()
GIVEN = setting(fullres=SLIDE)


def saved(name: str, mode: str, convert: Callable[[Image.Image], Image.Image] | None = None, **options: Any):
    """Give the slide as another kind of picture."""

    def apply(scene: Scene) -> None:
        (scene.section / SLIDE).unlink()
        picture = Image.fromarray(PICTURE)
        picture = convert(picture) if convert else picture.convert(mode)
        picture.save(scene.section / name, **options)
        scene.fullres = name

    return apply


def tiff(array: np.ndarray, after: Callable[[bytes], bytes] = lambda data: data, **options: Any):
    """Give the slide as a TIFF."""

    def apply(scene: Scene) -> None:
        (scene.section / SLIDE).unlink()
        memory = io.BytesIO()
        tifffile.imwrite(memory, array, **options)
        (scene.section / "slide.tif").write_bytes(after(memory.getvalue()))
        scene.fullres = "slide.tif"

    return apply


def png_header(width: int, height: int) -> bytes:
    """A PNG that says it is so large and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


def tiff_header(width: int, height: int) -> bytes:
    memory = io.BytesIO()
    tifffile.imwrite(memory, np.zeros((64, 64, 3), np.uint8), photometric="rgb", metadata=None)
    data = bytearray(memory.getvalue())
    (start,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, start)
    for k in range(count):
        at = start + 2 + 12 * k
        (tag,) = struct.unpack_from("<H", data, at)
        if tag in (256, 257, 278):
            struct.pack_into("<HHII", data, at, tag, 4, 1, width if tag == 256 else height)
    return bytes(data)


def _fifo(scene: Scene) -> None:
    (scene.section / SLIDE).unlink()
    os.mkfifo(scene.section / SLIDE)
    scene.fullres = SLIDE


def _rotated(scene: Scene) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    (scene.section / SLIDE).unlink()
    Image.fromarray(PICTURE).save(scene.section / "slide.jpg", exif=exif, quality=95)
    scene.fullres = "slide.jpg"


def _landscape(swapped: bool):
    """A slide of 860 x 600 pixels with positions that fit it, or with y and x swapped in the positions."""

    def apply(scene: Scene) -> None:
        import json

        import pandas as pd

        wide = PICTURE[:430]
        Image.fromarray(wide).save(scene.section / SLIDE)
        for name, factor in ((HIRES, 0.5), (LOWRES, 0.25)):
            Image.fromarray(wide).resize((int(860 * factor), int(430 * factor))).save(scene.section / name)
        file = scene.section / "spatial/scalefactors_json.json"
        file.write_text(
            json.dumps(json.loads(file.read_text()) | {"tissue_hires_scalef": 0.5, "tissue_lowres_scalef": 0.25})
        )
        table = pd.read_csv(scene.section / "spatial/tissue_positions.csv")
        table = table[table["pxl_row_in_fullres"] < 430]
        if swapped:
            y, x = table["pxl_row_in_fullres"].copy(), table["pxl_col_in_fullres"].copy()
            table["pxl_row_in_fullres"], table["pxl_col_in_fullres"] = x, y
        table.to_csv(scene.section / "spatial/tissue_positions.csv", index=False)

    return apply


def _copies(scene: Scene) -> None:
    shutil.copy(scene.section / SLIDE, scene.section / "again.png")


def sized(height: int, width: int):
    def apply(scene: Scene) -> None:
        Image.new("RGB", (width, height)).save(scene.section / SLIDE)
        scene.fullres = SLIDE

    return apply


def turned(turn: Callable[[np.ndarray], np.ndarray], named: bool = True, name: str = SLIDE):
    """Give the slide, or let it be found, as it lies on the microscope."""

    def apply(scene: Scene) -> None:
        Image.fromarray(np.ascontiguousarray(turn(PICTURE))).save(scene.section / SLIDE)
        if named:
            scene.fullres = SLIDE

    return apply


def beside(name: str, array: np.ndarray, **options: Any):
    """Put another picture of the slide's size in its place; nobody names it."""

    def apply(scene: Scene) -> None:
        (scene.section / SLIDE).unlink()
        if name.endswith(".tif"):
            tifffile.imwrite(scene.section / name, array, **options)
        else:
            Image.fromarray(array).save(scene.section / name)

    return apply


def pages(*arrays: np.ndarray, **options: Any):
    """Give a TIFF of several pages."""

    def apply(scene: Scene) -> None:
        (scene.section / SLIDE).unlink()
        with tifffile.TiffWriter(scene.section / "slide.tif") as file:
            for array in arrays:
                file.write(array, photometric="rgb", metadata=None, **options)
        scene.fullres = "slide.tif"

    return apply


def deep_png(shift: int) -> bytes:
    """The slide as a PNG of 16 bits a sample."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + row.tobytes() for row in (PICTURE.astype(">u2") << shift).astype(">u2"))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", TINY_SIDE_PX, TINY_SIDE_PX, 16, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows, 1)) + chunk(b"IEND", b"")


def scaled(mpp: float, size: int = TINY_SIDE_PX):
    """Give an OME-TIFF that states a scale."""
    physical = {f"PhysicalSize{axis}": mpp for axis in "XY"}
    array = np.asarray(Image.fromarray(PICTURE).resize((size, size)))

    def apply(scene: Scene) -> None:
        (scene.section / SLIDE).unlink()
        tifffile.imwrite(scene.section / "s.ome.tif", array, photometric="rgb", metadata={"axes": "YXS", **physical})
        scene.fullres = "s.ome.tif"

    return apply


def stains(names: list[str]):
    """Give planes of fluorescence as an OME-TIFF."""
    planes = np.stack([PICTURE[..., k % 3] for k in range(len(names))])

    def apply(scene: Scene) -> None:
        (scene.section / SLIDE).unlink()
        metadata = {"axes": "CYX", "Channel": {"Name": names}}
        tifffile.imwrite(scene.section / "scan.ome.tif", planes, photometric="minisblack", metadata=metadata)
        scene.fullres = "scan.ome.tif"

    return apply


FOUR = np.dstack([PICTURE, np.full((TINY_SIDE_PX, TINY_SIDE_PX), 255, np.uint8)])
EMPTY = np.dstack([PICTURE, np.zeros((TINY_SIDE_PX, TINY_SIDE_PX), np.uint8)])
NOISE = np.random.default_rng(0).integers(0, 256, PICTURE.shape, dtype=np.uint8)
OVERLAY = PICTURE.copy()
OVERLAY[:, 100:300] = OVERLAY[500:600] = (230, 60, 40)
THUMBNAIL_NAME = "against tissue_lowres_image.png"
COLOUR = "8-bit colour image"
CUT = section_error("cut short")
UNREADABLE = section_error("cannot be read as an image")
NO_TIFF = Refused("SectionError", ["slide.tif"])
ASKS = request_error("--fullres")
FINE = Works(["1 of 30 spots", "mean 1"])
SIZE = section_error("uncropped and unscaled")

CASES = cases(
    "images",
    "outs",
    [
        ("as it is", nothing, FINE),
        ("missing", remove(SLIDE), ASKS),
        ("missing and named", both(remove(SLIDE), GIVEN), section_error("is neither")),
        ("empty", both(write(SLIDE, b""), GIVEN), UNREADABLE),
        ("empty and not named", write(SLIDE, b""), ASKS),
        ("text", both(write(SLIDE, "a picture says more"), GIVEN), UNREADABLE),
        *((f"PNG cut to {share:.0%}", both(truncate(SLIDE, share), GIVEN), CUT) for share in (0.02, 0.3, 0.9)),
        (
            "PNG with a damaged middle",
            lambda s: (
                write(SLIDE, (d := (s.section / SLIDE).read_bytes())[:2000] + b"\xaa" * 500 + d[2500:])(s),
                setting(fullres=SLIDE)(s),
            ),
            CUT,
        ),
        *(
            (f"JPEG cut to {share:.0%}", both(saved("slide.jpg", "RGB"), truncate("slide.jpg", share)), CUT)
            for share in (0.3, 0.8)
        ),
        (
            "JPEG cut in its header",
            both(
                saved("slide.jpg", "RGB"),
                lambda s: (s.section / "slide.jpg").write_bytes((s.section / "slide.jpg").read_bytes()[:30]),
            ),
            UNREADABLE,
        ),
        ("JPEG", saved("slide.jpg", "RGB", quality=95), FINE),
        (
            "JPEG named .png",
            lambda s: (Image.fromarray(PICTURE).save(s.section / SLIDE, "JPEG"), setting(fullres=SLIDE)(s)),
            FINE,
        ),
        (
            "PNG named .tif",
            lambda s: ((s.section / SLIDE).rename(s.section / "slide.tif"), setting(fullres="slide.tif")(s)),
            section_error("cannot be read as TIFF"),
        ),
        ("grey", saved("grey.png", "L"), section_error("grey.png", COLOUR)),
        ("grey with alpha", saved("grey.png", "LA"), section_error("grey.png", COLOUR)),
        ("black and white", saved("bw.png", "1"), section_error("bw.png", COLOUR)),
        (
            "16-bit grey",
            saved("deep.png", "", lambda p: Image.fromarray(PICTURE[..., 0].astype(np.uint16))),
            section_error("deep.png", COLOUR),
        ),
        ("palette", saved("palette.png", "P"), FINE),
        ("palette with transparency", saved("palette.png", "P", transparency=3), FINE),
        ("RGBA", saved("rgba.png", "RGBA"), FINE),
        (
            "RGBA, all transparent",
            saved("rgba.png", "", lambda p: Image.fromarray(np.dstack([PICTURE, 0 * PICTURE[..., 0]]))),
            section_error("does not look like tissue_lowres_image.png"),
        ),
        (
            "RGBA, all transparent, and no thumbnails to compare",
            both(
                saved("rgba.png", "", lambda p: Image.fromarray(np.dstack([PICTURE, 0 * PICTURE[..., 0]]))),
                remove(HIRES, LOWRES),
            ),
            Works("mean 255"),
        ),
        ("CMYK JPEG", saved("cmyk.jpg", "CMYK", quality=95), section_error("cmyk.jpg", "inks for print", COLOUR)),
        ("YCbCr TIFF", saved("ycbcr.tif", "YCbCr"), FINE),
        ("floating-point TIFF", saved("float.tif", "F"), section_error("float.tif", COLOUR)),
        ("JPEG that says it is turned", _rotated, FINE),
        ("a GIF", saved("slide.gif", "P"), section_error("no image that can be read")),
        (
            "an SVG",
            both(write("slide.svg", "<svg/>"), setting(fullres="slide.svg")),
            section_error("no image that can be read"),
        ),
        (
            "a PDF",
            both(write("slide.pdf", "%PDF-1.4"), setting(fullres="slide.pdf")),
            section_error("no image that can be read"),
        ),
        ("one pixel", sized(1, 1), SIZE),
        ("one row", sized(1, 860), SIZE),
        (
            "one pixel, and no thumbnails to compare",
            both(sized(1, 1), remove(HIRES, LOWRES)),
            section_error("1 x 1 pixels, but spots lie between"),
        ),
        ("half the size", sized(430, 430), SIZE),
        ("a row too few", sized(855, 860), SIZE),
        ("a slide that is wide", _landscape(False), Works("1 of 1")),
        (
            "a slide that is wide and positions with y and x swapped",
            _landscape(True),
            Works("7 spots lie off the slide image"),
        ),
        ("a PNG that says it has 20,000 x 20,000 pixels", both(write(SLIDE, png_header(20_000, 20_000)), GIVEN), SIZE),
        (
            "the same without thumbnails",
            both(write(SLIDE, png_header(20_000, 20_000)), GIVEN, remove(HIRES, LOWRES)),
            CUT,
        ),
        (
            "a PNG that says it has 2 billion x 2 billion pixels",
            both(write(SLIDE, png_header(2**31 - 1, 2**31 - 1)), GIVEN, remove(HIRES, LOWRES)),
            section_error("tiled TIFF"),
        ),
        (
            "a PNG of zero pixels",
            both(write(SLIDE, png_header(0, 0)), GIVEN, remove(HIRES, LOWRES)),
            section_error(SLIDE),
        ),
        ("two images that fit", _copies, ASKS),
        ("two images that fit, one named", both(_copies, GIVEN), FINE),
        (
            "a folder of that name",
            lambda s: (remove(SLIDE)(s), (s.section / SLIDE).mkdir(), setting(fullres=SLIDE)(s)),
            section_error("is neither"),
        ),
        (
            "a link to the slide",
            lambda s: (
                (s.section / SLIDE).rename(s.root / "far.png"),
                (s.section / SLIDE).symlink_to(s.root / "far.png"),
            ),
            FINE,
        ),
        ("a link to itself", both(link(SLIDE, SLIDE), GIVEN), section_error("is neither")),
        ("a link to nothing", both(link(SLIDE, "nowhere.png"), GIVEN), section_error("is neither")),
        ("a link to a device", both(link(SLIDE, "/dev/zero"), GIVEN), section_error("is neither")),
        ("a pipe that nobody writes", _fifo, section_error("is neither")),
        (
            "a path out of the section that is not there",
            setting(fullres="../../no-such-slide.png"),
            section_error("is neither"),
        ),
        (
            "a path out of the section that is there",
            lambda s: ((s.section / SLIDE).rename(s.root / "x.png"), setting(fullres="../x.png")(s)),
            FINE,
        ),
        ("an address", setting(fullres="https://example.org/slide.tif"), section_error("is neither")),
        ("a name with a NUL", setting(fullres="slide\0.png"), section_error("null byte")),
        ("a name of 5000 letters", setting(fullres="s" * 5000 + ".png"), section_error("File name too long")),
        ("an empty name", setting(fullres=""), section_error("a path is empty")),
        ("home of nobody", setting(fullres="~nosuchuser/slide.png"), section_error("~nosuchuser")),
        ("the section itself", setting(fullres=lambda s: s.section), section_error("there is no image file")),
        ("hires image missing", remove(HIRES), FINE),
        ("hires image broken", truncate(HIRES, 0.01), FINE),
        ("hires image is text", write(HIRES, "no"), FINE),
        ("both thumbnails broken", both(write(HIRES, "no"), write(LOWRES, "no")), ASKS),
        ("both thumbnails broken and the slide named", both(write(HIRES, "no"), write(LOWRES, "no"), GIVEN), FINE),
        ("no image at all", remove(SLIDE, HIRES, LOWRES), ASKS),
        ("hires image of one pixel", lambda s: Image.new("RGB", (1, 1)).save(s.section / HIRES), ASKS),
        ("TIFF", tiff(PICTURE, photometric="rgb"), FINE),
        ("tiled TIFF", tiff(PICTURE, photometric="rgb", tile=(256, 256)), FINE),
        ("BigTIFF", tiff(PICTURE, photometric="rgb", bigtiff=True), FINE),
        ("big-endian TIFF", tiff(PICTURE, photometric="rgb", byteorder=">"), FINE),
        ("planar TIFF", tiff(np.moveaxis(PICTURE, 2, 0), photometric="rgb", planarconfig="separate"), FINE),
        ("16-bit TIFF", tiff(PICTURE.astype(np.uint16) * 256, photometric="rgb"), section_error(COLOUR)),
        ("signed TIFF", tiff(PICTURE.astype(np.int16), photometric="rgb"), section_error(COLOUR)),
        (
            "float TIFF with nan",
            tiff(np.full((860, 860, 3), np.nan, np.float32), photometric="rgb"),
            section_error(COLOUR),
        ),
        ("grey TIFF", tiff(PICTURE[..., 0]), section_error(COLOUR)),
        (
            "TIFF of five channels",
            tiff(np.dstack([PICTURE, PICTURE[..., :2]]), photometric="rgb"),
            section_error(COLOUR),
        ),
        ("TIFF of two channels", tiff(PICTURE[..., :2], photometric="minisblack"), SIZE),
        (
            "RGBA TIFF",
            tiff(
                np.dstack([PICTURE, np.full((860, 860), 255, np.uint8)]), photometric="rgb", extrasamples=["unassalpha"]
            ),
            FINE,
        ),
        ("TIFF with a z axis", tiff(np.stack([PICTURE, PICTURE]), photometric="rgb"), section_error(COLOUR)),
        ("palette TIFF", saved("palette.tif", "P"), section_error("palette.tif", COLOUR)),
        ("empty TIFF", tiff(PICTURE, lambda d: b"", photometric="rgb"), NO_TIFF),
        ("TIFF header alone", tiff(PICTURE, lambda d: d[:8], photometric="rgb"), NO_TIFF),
        *(
            (
                f"TIFF cut to {share:.0%}",
                tiff(PICTURE, lambda d, k=share: d[: int(k * len(d))], photometric="rgb"),
                NO_TIFF,
            )
            for share in (0.001, 0.5, 0.95)
        ),
        *(
            (
                f"tiled TIFF cut to {share:.0%}",
                tiff(PICTURE, lambda d, k=share: d[: int(k * len(d))], photometric="rgb", tile=(256, 256)),
                NO_TIFF,
            )
            for share in (0.01, 0.1)
        ),
        (
            "tiled deflated TIFF, damaged",
            tiff(
                PICTURE,
                lambda d: d[:3000] + b"\xaa" * (len(d) - 3000),
                photometric="rgb",
                tile=(256, 256),
                compression="zlib",
            ),
            NO_TIFF,
        ),
        (
            "deflated TIFF, damaged",
            tiff(PICTURE, lambda d: d[:3000] + b"\xaa" * (len(d) - 3000), photometric="rgb", compression="zlib"),
            NO_TIFF,
        ),
        ("TIFF whose directories go in a circle", tiff(PICTURE, lambda d: d, photometric="rgb", metadata=None), FINE),
        (
            "TIFF that says it has a million x a million pixels",
            both(tiff(PICTURE, lambda d: tiff_header(10**6, 10**6)), remove(HIRES, LOWRES)),
            NO_TIFF,
        ),
        (
            "TIFF that says it has zero pixels",
            both(tiff(PICTURE, lambda d: tiff_header(0, 0)), remove(HIRES, LOWRES)),
            NO_TIFF,
        ),
        (
            "TIFF that says it has 40,000 x 40,000 pixels",
            both(tiff(PICTURE, lambda d: tiff_header(40_000, 40_000)), remove(HIRES, LOWRES)),
            NO_TIFF,
        ),
        ("PNG of 16 bits in colour", both(write(SLIDE, deep_png(8)), GIVEN), section_error("16-bit", COLOUR)),
        ("PNG of 16 bits that hold 12", both(write(SLIDE, deep_png(4)), GIVEN), section_error("16-bit", COLOUR)),
        ("PNG of 16 bits that is found", write(SLIDE, deep_png(8)), ASKS),
        (
            "TIFF named .png",
            lambda s: (
                tifffile.imwrite(s.section / SLIDE, PICTURE, photometric="rgb"),
                setting(fullres=SLIDE)(s),
            ),
            FINE,
        ),
        ("CMYK TIFF", tiff(FOUR, photometric="separated"), section_error("inks for print", COLOUR)),
        ("CIELab TIFF", tiff(PICTURE, photometric="cielab"), section_error("CIELab", COLOUR)),
        ("ICCLab TIFF", tiff(PICTURE, photometric="icclab"), section_error("ICCLab", COLOUR)),
        ("TIFF of a camera's mosaic", tiff(PICTURE[..., 0], photometric="cfa"), section_error(COLOUR)),
        (
            "grey samples that are three",
            tiff(PICTURE, photometric="minisblack", planarconfig="contig"),
            section_error("grey (MinIsBlack), in 3 channels", COLOUR),
        ),
        (
            "grey samples that are four",
            tiff(FOUR, photometric="minisblack", planarconfig="contig"),
            section_error("grey (MinIsBlack), in 4 channels", COLOUR),
        ),
        ("a fourth sample that is no alpha", tiff(EMPTY, photometric="rgb", extrasamples=["unspecified"]), FINE),
        ("colours multiplied by alpha", tiff(FOUR, photometric="rgb", extrasamples=["assocalpha"]), FINE),
        (
            "colours multiplied by an alpha of zero",
            both(tiff(EMPTY * 0, photometric="rgb", extrasamples=["assocalpha"]), remove(HIRES, LOWRES)),
            Works("mean 255"),
        ),
        (
            "deflated YCbCr with its planes apart",
            tiff(
                np.moveaxis(np.asarray(Image.fromarray(PICTURE).convert("YCbCr")), 2, 0),
                photometric="ycbcr",
                planarconfig="separate",
                compression="zlib",
            ),
            FINE,
        ),
        (
            "YCbCr whose coefficients are none",
            tiff(PICTURE, photometric="ycbcr", extratags=[(529, "2I", 3, (0, 1, 0, 1, 0, 1), True)]),
            section_error("coefficients", COLOUR),
        ),
        (
            "YCbCr of television's range",
            tiff(
                PICTURE,
                photometric="ycbcr",
                extratags=[(532, "2I", 6, (16, 1, 235, 1, 128, 1, 240, 1, 128, 1, 240, 1), True)],
            ),
            section_error("ReferenceBlackWhite", COLOUR),
        ),
        ("three stains", stains(["DAPI", "CD3", "PanCK"]), section_error("DAPI, CD3, PanCK", COLOUR)),
        ("four stains", stains(["DAPI", "CD3", "PanCK", "CD20"]), section_error("CD20", COLOUR)),
        ("two stains", stains(["DAPI", "PanCK"]), section_error(COLOUR)),
        ("planes called red, green and blue", stains(["Red", "Green", "Blue"]), FINE),
        (
            "two colour images in one series",
            tiff(np.stack([PICTURE, PICTURE]), photometric="rgb", ome=True, metadata={"axes": "CYXS"}),
            section_error("several images", COLOUR),
        ),
        ("a thumbnail before the slide", pages(PICTURE[::8, ::8], PICTURE), FINE),
        ("a label after the slide", pages(PICTURE, NOISE[:100, :200]), FINE),
        ("coarser copies after the slide", pages(PICTURE, PICTURE[::2, ::2], PICTURE[::4, ::4], tile=(64, 64)), FINE),
        ("another scan after the slide", pages(PICTURE, NOISE[:700]), section_error("holds several images")),
        (
            "the slide turned by 180 degrees",
            turned(lambda a: a[::-1, ::-1]),
            section_error("turned by 180", THUMBNAIL_NAME),
        ),
        ("the slide turned to the right", turned(lambda a: np.rot90(a, -1)), section_error("90 degrees clockwise")),
        ("the slide turned to the left", turned(lambda a: np.rot90(a)), section_error("90 degrees counterclockwise")),
        ("the slide mirrored", turned(lambda a: a[:, ::-1]), section_error("mirrored left to right", THUMBNAIL_NAME)),
        ("the slide upside down", turned(lambda a: a[::-1]), section_error("mirrored top to bottom")),
        ("rows for columns", turned(lambda a: a.swapaxes(0, 1)), section_error("rows for columns")),
        ("the slide mirrored, and found", turned(lambda a: a[:, ::-1], named=False), ASKS),
        (
            "the slide mirrored, and no thumbnails to compare",
            both(turned(lambda a: a[:, ::-1]), remove(HIRES, LOWRES)),
            Works("1 of 30 spots"),
        ),
        ("another picture of its size", turned(lambda a: NOISE), section_error("does not look like")),
        ("another picture of its size, and found", turned(lambda a: NOISE, named=False), ASKS),
        ("a mask in its place", beside("tissue_mask.png", PICTURE[..., 0]), ASKS),
        (
            "a mask beside it",
            lambda s: Image.fromarray(PICTURE[..., 0]).save(s.section / "tissue_mask.png"),
            Works(["mean 1", "left out", "tissue_mask.png", "found by its size: slide.png"]),
        ),
        (
            "an overlay beside it",
            lambda s: Image.fromarray(OVERLAY).save(s.section / "overlay.png"),
            Works(["mean 1", "overlay.png has the size", "found by its size: slide.png"]),
        ),
        (
            "a finer slide, and no thumbnails to compare",
            both(scaled(0.35, 2 * TINY_SIDE_PX), remove(HIRES, LOWRES)),
            section_error("states 0.35 um/px", "of another size", "--mpp"),
        ),
        (
            "a scale in the slide's file that is stale",
            scaled(0.35),
            Works(["states 0.35 um/px", "0.7 um/px is used"]),
        ),
        (
            "TIFF with an OME description that is no XML",
            tiff(PICTURE, photometric="rgb", description="<OME", metadata=None),
            FINE,
        ),
    ],
)
assert TINY_SIDE_PX == 860
