"""A result as a figure for a paper: true to its size, with scale, legend and what is synthetic, in three formats."""

import base64
import re
import xml.etree.ElementTree as ET
import zlib
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from checkpoints import write_tiny_checkpoint
from PIL import Image
from standins import CropModel, card_for
from tiny import TINY_GENES, TINY_MPP

from napari_stmdit.edits import Scale
from napari_stmdit.errors import StoreError
from napari_stmdit.evaluation.paper_figure import (
    MM_PER_INCH,
    Window,
    _change,
    _text_width,
    _wrapped,
    window_of,
    write_figure,
)
from napari_stmdit.evaluation.pictures import diverging
from napari_stmdit.intent import Request
from napari_stmdit.regions import SpotList
from napari_stmdit.synthesis.result import finished
from napari_stmdit.synthesis.session import synthesize
from napari_stmdit.synthesis.stored import stored_results
from napari_stmdit.tissue.crops import read_patches
from napari_stmdit.tissue.open import open_section

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def edited(tiny_folder, tmp_path_factory):
    """Two spots of the tiny section edited, by a tiny checkpoint."""
    from napari_stmdit.assemble import load_checkpoint

    section = open_section(tiny_folder)
    ids = section.spots.ids.tolist()
    model = load_checkpoint(
        write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny", TINY_GENES), "cpu", "float32"
    )
    edit = Scale(name="more", genes=TINY_GENES[:4], factor=40.0, spots=dict.fromkeys(ids[12:14], 1.0))
    return synthesize(section, Request(region=SpotList(ids=tuple(ids[10:19])), steps=2, edits=(edit,)), model)


@pytest.fixture
def new(tiny_section):
    """New tissue that is the slide's own."""
    return synthesize(tiny_section, Request(), CropModel(card_for(TINY_GENES, patch_mpp=TINY_MPP)))


def test_a_png_has_the_size_that_was_asked_for_and_says_what_it_is(edited, tmp_path):
    path = write_figure(edited, tmp_path / "figure.png", width_mm=100, dpi=150)
    with Image.open(path) as image:
        assert image.width == round(100 / 25.4 * 150) and image.info["dpi"] == pytest.approx((150, 150), abs=0.1)
        assert "compositeWithTrainedAlgorithmicMedia" in image.info["XML:com.adobe.xmp"]
        assert "Not for diagnosis" in image.info["Description"]


def test_an_svg_keeps_its_text_and_its_panels(edited, tmp_path):
    root = ET.parse(write_figure(edited, tmp_path / "figure.svg", width_mm=180, dpi=100)).getroot()
    texts = " ".join(text.text for text in root.iter(f"{SVG}text"))
    for said in (
        "Slide: tiny_section",
        "Edit: more.",
        "Edited real tissue, synthetic.",
        "Difference: haematoxylin",
        "100 µm",
    ):
        assert said in texts
    assert len(list(root.iter(f"{SVG}image"))) == 4 + 2  # panels and legends
    mm = MM_PER_INCH / 72
    assert root.get("width").endswith("pt") and float(root.get("width")[:-2]) * mm == pytest.approx(180, abs=1e-3)
    window, panel = window_of(finished(edited)), next(root.iter(f"{SVG}image"))
    um_per_mm = window.pixel_um * len(window.before) / (panel_pixels(panel).shape[1] / 100 * MM_PER_INCH)
    bars = [path for path in root.iter(f"{SVG}path") if "fill: #1e1e22" in (path.get("style") or "")]
    spans = [[float(x) for x in re.findall(r"[ML] (\S+)", bar.get("d"))] for bar in bars]
    assert [(max(xs) - min(xs)) * mm for xs in spans] == pytest.approx([100 / um_per_mm] * 4, abs=2e-3)
    assert "Not for diagnosis" in root.find(f"{SVG}desc").text
    assert root.find(f"{SVG}title").text == "edited real tissue, synthetic"
    assert "compositeWithTrainedAlgorithmicMedia" in "".join(root.find(f"{SVG}metadata").itertext())


def panel_pixels(image):
    """The pixels that an SVG file holds of a picture."""
    data = image.get("{http://www.w3.org/1999/xlink}href").partition(",")[2]
    with Image.open(BytesIO(base64.b64decode(data))) as picture:
        return np.asarray(picture.convert("RGB"))


def test_a_pdf_is_whole_and_its_text_is_text(edited, tmp_path):
    data = write_figure(edited, tmp_path / "figure.pdf", width_mm=90, dpi=100).read_bytes()
    start = int(re.search(rb"startxref\n(\d+)\n%%EOF\n$", data)[1])
    assert data[start : start + 4] == b"xref"
    said = {key.decode(): text for key, text in re.findall(rb"/(Title|Subject|Keywords) \(((?:[^()\\]|\\.)*)\)", data)}
    assert said["Title"] == b"edited real tissue, synthetic" and b"Not for diagnosis" in said["Subject"]
    assert said["Keywords"].endswith(b"/compositeWithTrainedAlgorithmicMedia")
    streams = [zlib.decompress(one) for one in re.findall(rb"/FlateDecode.{0,99}?stream\n(.*?)\nendstream", data, re.S)]
    content = next(one for one in streams if b" Tf" in one)
    # letters, of one byte or two, stand apart where they are kerned
    drawn = b"".join(re.findall(rb"\(((?:[^()\\]|\\.)*)\)", content)).replace(b"\x00", b"").decode("latin-1")
    assert "Slide:tiny_section" in drawn.replace(" ", "") and "100 µm" in drawn
    assert b"/FontFile2" in data and b"/ToUnicode" in data and b"/Type3" not in data and data.count(b"/Image") >= 6
    box = [float(v) for v in re.search(rb"/MediaBox \[ ?([^\]]+)\]", data)[1].split()]
    assert box[2] == pytest.approx(90 / MM_PER_INCH * 72, abs=1e-2)


def test_vector_files_hold_the_pixels_that_the_raster_file_shows(edited, tmp_path):
    """Nothing is resampled on its way into a file: a panel in the SVG file is, pixel by pixel, that of the PNG file."""
    root = ET.parse(write_figure(edited, tmp_path / "figure.svg", width_mm=101, dpi=97)).getroot()
    with Image.open(write_figure(edited, tmp_path / "figure.png", width_mm=101, dpi=97)) as image:
        sheet = np.asarray(image)
    panel = panel_pixels(next(root.iter(f"{SVG}image")))
    count, edge = len(panel), round(1.0 / MM_PER_INCH * 97)
    shown = sheet[edge : edge + count, edge : edge + count]
    half = count // 2  # the scale bar is in the other half
    np.testing.assert_array_equal(shown[:half], panel[:half])


def test_a_figure_neither_keeps_nor_takes_settings_of_matplotlib(edited, tmp_path):
    import matplotlib

    plain = write_figure(edited, tmp_path / "a.svg", width_mm=60, dpi=72).read_bytes()
    with matplotlib.rc_context({"savefig.bbox": "tight", "figure.facecolor": "black", "font.size": 30.0}):
        before = dict(matplotlib.rcParams)
        assert write_figure(edited, tmp_path / "b.svg", width_mm=60, dpi=72).read_bytes() == plain
        assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("width", [40, 60, 85, 130, 180])
def test_no_label_reaches_beyond_the_page_or_over_another(edited, tmp_path, width):
    named = replace(edited.section, name="V1_Breast_Cancer_Block_A_Section_1_of_a_long_series $a$")
    root = ET.parse(write_figure(replace(edited, section=named), tmp_path / "f.svg", width_mm=width)).getroot()
    mm = MM_PER_INCH / 72
    boxes = []
    for text in root.iter(f"{SVG}text"):
        points = float(re.search(r"([\d.]+)px", text.get("style"))[1])
        x, y = (float(text.get(axis)) * mm for axis in "xy")
        wide, high = _text_width(text.text, points), 0.7 * points * mm
        left = x - wide / 2 if "middle" in text.get("style") else x
        boxes.append((left, y - high, left + wide, y))
    assert len(boxes) > 12 and all(box[0] >= 0.5 and box[2] <= width - 0.4 for box in boxes)
    for k, (left, top, right, bottom) in enumerate(boxes):
        for other in boxes[:k]:
            assert right <= other[0] or other[2] <= left or bottom <= other[1] or other[3] <= top


def test_panels_show_the_same_window_and_the_result_lies_in_its_place(edited, tmp_path):
    window = window_of(finished(edited))
    count = len(window.before)
    (y, x), side = window.corner, window.side
    np.testing.assert_array_equal(
        window.before, read_patches(edited.section.image, [(y, x, y + side, x + side)], count)[0]
    )
    assert window.pixel_um == pytest.approx(side / count * edited.section.mpp)
    np.testing.assert_array_equal(window.after[~window.made], window.before[~window.made])
    # a pixel of the canvas is where its place in full-resolution pixels says
    frame = edited.plan.frame
    shift = np.rint((np.array(frame.origin) - window.corner) / frame.pixel_size).astype(int)
    ys, xs = np.nonzero(edited.rgba[..., 3])
    np.testing.assert_array_equal(window.after[ys + shift[0], xs + shift[1]], edited.rgba[ys, xs, :3])
    assert window.made.sum() == len(ys)


def test_less_haematoxylin_is_blue_and_no_change_is_pale():
    before = np.full((200, 200, 3), (120, 80, 150), np.uint8)
    after = before.copy()
    after[70:130, 70:130] = (230, 200, 230)
    change = _change(Window(before, after, np.ones((200, 200), bool), (0.0, 0.0), 200.0, 2.0))
    assert change[100, 100] < -0.1 and change[5, 5] == 0
    red, _, blue = diverging(change / 0.1)[100, 100].astype(int)
    assert blue - red > 60 and np.ptp(diverging(change)[5, 5].astype(int)) <= 2


def test_new_tissue_has_no_difference(new, tmp_path):
    root = ET.parse(write_figure(new, tmp_path / "figure.svg")).getroot()
    texts = " ".join(text.text for text in root.iter(f"{SVG}text"))
    assert "Difference" not in texts and "Edit" not in texts and "Synthetic. Not for diagnosis" in texts


def test_what_cannot_be_drawn_is_refused_in_a_sentence(edited, tmp_path):
    for path, options, said in (
        ("f.tif", {}, r"ending in '.tif'; expected one of .png, .svg, .pdf"),
        ("f.png", {"dpi": 10}, "the dpi of a figure is 10; expected 72 to 1200"),
        ("f.png", {"width_mm": 900}, "the width of a figure is 900 mm; expected 40 to 400 mm"),
    ):
        with pytest.raises(StoreError, match=said):
            write_figure(edited, tmp_path / path, **options)
    coarse = replace(edited.section, image=replace(edited.section.image, pixel_size=4.0))
    with pytest.raises(StoreError, match="times coarser than the result"):
        write_figure(replace(edited, section=coarse), tmp_path / "f.png")
    write_figure(edited, tmp_path / "f.png", width_mm=60, dpi=72)
    with pytest.raises(StoreError, match="already there; nothing is overwritten"):
        write_figure(edited, tmp_path / "f.png")


def test_a_stored_result_is_drawn_by_the_command(edited, tmp_path):
    from typer.testing import CliRunner

    from napari_stmdit.cli import app

    edited.save(tmp_path / "OUT.zarr", "one")
    edited.save(tmp_path / "OUT.zarr", "two")
    assert len(stored_results(open_section(tmp_path / "OUT.zarr"))) == 2
    run = CliRunner().invoke
    refused = run(app, ["figure", str(tmp_path / "OUT.zarr"), "--output", str(tmp_path / "f.pdf")])
    assert isinstance(refused.exception, StoreError | Exception) and "choose one with --run" in str(refused.exception)
    done = run(
        app,
        ["figure", str(tmp_path / "OUT.zarr"), "--output", str(tmp_path / "f.pdf"), "--run", "one", "--width", "85"],
    )
    assert done.exit_code == 0 and (tmp_path / "f.pdf").read_bytes().startswith(b"%PDF-1.")


def test_text_is_broken_at_words():
    assert _wrapped("one two three", 7, 1000) == ["one two three"]
    assert _wrapped("one two three", 7, 7.5) == ["one", "two", "three"]
    broken = _wrapped("an unbreakable_word", 7, 10)
    assert "".join(broken) == "anunbreakable_word" and all(_text_width(line, 7) <= 10 for line in broken)
