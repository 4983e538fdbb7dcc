"""A result as a figure for a paper: true to its size, with scale, legend and what is synthetic, in three formats."""

import re
import xml.etree.ElementTree as ET
import zlib
from dataclasses import replace

import numpy as np
import pytest
from checkpoints import write_tiny_checkpoint
from PIL import Image
from standins import CropModel, card_for
from tiny import TINY_GENES, TINY_MPP

from napari_stmdit.errors import StoreError
from napari_stmdit.evaluation.drawing import wrapped
from napari_stmdit.evaluation.paper_figure import _window, write_figure
from napari_stmdit.intent import Request, ScaleEdit, SpotList
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
    edit = ScaleEdit(name="more", genes=TINY_GENES[:4], factor=40.0, spots=dict.fromkeys(ids[12:14], 1.0))
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
    assert root.get("width") == "180mm"
    window, panel = _window(finished(edited)), next(root.iter(f"{SVG}image"))
    um_per_mm = window.pixel_um * len(window.before) / float(panel.get("width"))
    bars = [float(bar.get("width")) for bar in root.iter(f"{SVG}rect") if bar.get("fill") == "#1e1e22"]
    assert bars == pytest.approx([100 / um_per_mm] * 4, abs=2e-3)
    assert root.find(f"{SVG}metadata") is not None and "Not for diagnosis" in root.find(f"{SVG}desc").text


def test_a_pdf_is_whole_and_its_text_is_text(edited, tmp_path):
    data = write_figure(edited, tmp_path / "figure.pdf", width_mm=90, dpi=100).read_bytes()
    start = int(re.search(rb"startxref\n(\d+)\n%%EOF\n$", data)[1])
    assert data[start : start + 4] == b"xref"
    places = [int(place) for place in re.findall(rb"(\d{10}) 00000 n ", data[start:])]
    assert len(places) > 6
    for number, place in enumerate(places, start=1):
        assert data[place:].startswith(f"{number} 0 obj".encode())
    for stream in re.finditer(rb"/Length (\d+) >>\nstream\n", data):
        assert data[stream.end() + int(stream[1]) :].startswith(b"\nendstream")
    content = re.search(rb"5 0 obj\n<< /Filter /FlateDecode /Length (\d+) >>\nstream\n", data)
    page = zlib.decompress(data[content.end() : content.end() + int(content[1])]).decode("cp1252")
    assert "(Slide: tiny_section) Tj" in page and "µm) Tj" in page
    assert b"compositeWithTrainedAlgorithmicMedia" in data and f"[0 0 {90 / 25.4 * 72:.3f} ".encode() in data


def test_panels_show_the_same_window_and_the_result_lies_in_its_place(edited, tmp_path):
    window = _window(finished(edited))
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
    assert done.exit_code == 0 and (tmp_path / "f.pdf").read_bytes().startswith(b"%PDF-1.4")


def test_text_is_broken_at_words():
    assert wrapped("one two three", 7, 1000) == ["one two three"]
    assert wrapped("one two three", 7, 6) == ["one", "two", "three"]
