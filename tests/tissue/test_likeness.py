"""A slide is held against the section's thumbnails: turned, mirrored, foreign or painted on, it is not taken without a word."""

from __future__ import annotations

import json
import shutil

import dask.array as da
import numpy as np
import pytest
import tifffile
from PIL import Image
from tiny import TINY_SIDE_PX, analytic_image

from napari_stmdit.errors import SectionError
from napari_stmdit.tissue import original_slide
from napari_stmdit.tissue.open import open_section
from napari_stmdit.tissue.original_slide import ALIKE_UNASKED, unlike
from napari_stmdit.types import SlideImage

TURNS = {
    "turned by 180 degrees": lambda a: a[::-1, ::-1],
    "mirrored left to right": lambda a: a[:, ::-1],
    "mirrored top to bottom": lambda a: a[::-1],
    "turned by 90 degrees clockwise": lambda a: np.rot90(a, -1),
    "turned by 90 degrees counterclockwise": lambda a: np.rot90(a),
    r"mirrored along its diagonal \(rows for columns\)": lambda a: a.swapaxes(0, 1),
    "mirrored along its other diagonal": lambda a: np.rot90(a, 2).swapaxes(0, 1),
}
PICTURE = analytic_image()
WIDE = PICTURE[:430]


def image_of(array: np.ndarray, pixel_size: float = 1.0, chunk: int = 256) -> SlideImage:
    return SlideImage(
        (da.from_array(np.ascontiguousarray(array), chunks=(chunk, chunk, 3)),), pixel_size, "x/slide.png"
    )


def small(array: np.ndarray, side: int = 60) -> np.ndarray:
    size = (side * array.shape[1] // max(array.shape[:2]), side * array.shape[0] // max(array.shape[:2]))
    return np.asarray(Image.fromarray(np.ascontiguousarray(array)).resize(size, Image.Resampling.BOX))


@pytest.fixture
def outs(tmp_path, tiny_folder):
    """A copy of the tiny section, without its slide."""
    folder = tmp_path / "outs"
    shutil.copytree(tiny_folder, folder)
    (folder / "slide.png").unlink()
    return folder


def widen(outs) -> None:
    """Make it a section whose slide is twice as wide as high."""
    file = outs / "spatial/scalefactors_json.json"
    factors = {"tissue_hires_scalef": 0.5, "tissue_lowres_scalef": 0.25}
    file.write_text(json.dumps(json.loads(file.read_text()) | factors))
    for name, by in (("hires", 2), ("lowres", 4)):
        size = (TINY_SIDE_PX // by, 430 // by)
        Image.fromarray(WIDE).resize(size).save(outs / f"spatial/tissue_{name}_image.png")


def save(array: np.ndarray, file) -> None:
    Image.fromarray(np.ascontiguousarray(array)).save(file)


# ------------------------------------------------------------------------------------------------- the comparison


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("said", TURNS)
def test_each_orientation_is_recognized_and_named(said, sparse, monkeypatch):
    if sparse:
        monkeypatch.setattr(original_slide, "_MAX_CHUNKS", 0)
    for picture in (PICTURE, WIDE):
        fault = unlike(image_of(TURNS[said](picture)), image_of(small(picture), 5.0))
        assert fault == f"is {said} against slide.png".replace("\\", "")


@pytest.mark.parametrize("sparse", [False, True])
def test_the_right_slide_passes_whatever_its_brightness_and_sharpness(sparse, monkeypatch):
    if sparse:
        monkeypatch.setattr(original_slide, "_MAX_CHUNKS", 0)
    thumbnail = image_of(small(PICTURE, 150), 860 / 150)
    blurred = np.asarray(Image.fromarray(PICTURE).resize((215, 215)).resize((860, 860)))
    darker = (PICTURE * 0.7 + 20).astype(np.uint8)
    for picture in (PICTURE, blurred, darker):
        assert unlike(image_of(picture), thumbnail, ALIKE_UNASKED) is None


def test_a_black_box_on_the_slide_does_not_make_it_another():
    boxed = PICTURE.copy()
    boxed[200:300, 200:300] = 0
    assert unlike(image_of(boxed), image_of(small(PICTURE))) is None


def test_a_mask_noise_and_a_white_slide_do_not_look_like_it():
    noise = np.random.default_rng(0).integers(0, 256, PICTURE.shape, dtype=np.uint8)
    mask = np.zeros_like(PICTURE)
    mask[200:600, 300:700] = 255
    for picture in (noise, mask, np.full_like(PICTURE, 255)):
        assert "does not look like" in unlike(image_of(picture), image_of(small(PICTURE)))


def test_a_thumbnail_that_shows_nothing_tells_nothing():
    assert unlike(image_of(PICTURE), image_of(np.full((60, 60, 3), 200, np.uint8))) is None


def test_of_a_large_slide_without_coarse_levels_few_tiles_are_read(monkeypatch):
    read = []

    def tile(block_info):
        read.append(block_info[None]["chunk-location"])
        return np.full((64, 64, 3), 128, np.uint8)

    side = 100 * 64
    level = da.map_blocks(
        tile, chunks=((64,) * 100, (64,) * 100, (3,)), dtype=np.uint8, meta=np.empty((0, 0, 0), np.uint8)
    )
    assert unlike(SlideImage((level,), 1.0, "x/slide.tif"), image_of(small(PICTURE), side / 60)) is not None
    assert 0 < len(set(read)) < 0.2 * 100**2


# ------------------------------------------------------------------------------------------------- at the section


@pytest.mark.parametrize("said", TURNS)
def test_a_slide_that_is_given_turned_or_mirrored_is_refused_by_the_name_of_its_orientation(outs, said):
    save(TURNS[said](PICTURE), outs / "slide.png")
    with pytest.raises(
        SectionError, match=f"slide.png is {said} against tissue_lowres_image.png.*Space Ranger was run"
    ):
        open_section(outs, fullres="slide.png")


@pytest.mark.parametrize("said", [name for name in TURNS if "90" in name or "diagonal" in name])
def test_a_slide_that_lies_on_its_side_is_refused_by_the_name_of_its_orientation(outs, said):
    widen(outs)
    save(TURNS[said](WIDE), outs / "slide.png")
    with pytest.raises(SectionError, match=f"slide.png is {said} against"):
        open_section(outs, fullres="slide.png")


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
@pytest.mark.parametrize("thumbnails", ["both", "hires", "lowres"])
def test_the_right_slide_is_taken_given_or_found(outs, suffix, thumbnails):
    for name in {"both": (), "hires": ("lowres",), "lowres": ("hires",)}[thumbnails]:
        (outs / f"spatial/tissue_{name}_image.png").unlink()
    save(PICTURE, outs / f"slide.{suffix}")
    for fullres in (None, f"slide.{suffix}"):
        section = open_section(outs, fullres=fullres)
        assert section.image.source.endswith(f"slide.{suffix}") and section.image.shape == PICTURE.shape[:2]


def test_without_thumbnails_nothing_is_compared(outs):
    for name in ("hires", "lowres"):
        (outs / f"spatial/tissue_{name}_image.png").unlink()
    save(PICTURE[::-1], outs / "slide.png")
    assert open_section(outs, fullres="slide.png").image is not None


@pytest.mark.parametrize("said", TURNS)
def test_a_slide_that_is_found_turned_or_mirrored_is_a_note_and_not_used(outs, said):
    save(TURNS[said](PICTURE), outs / "mine.png")
    section = open_section(outs)
    assert section.image.source.endswith("tissue_hires_image.png")
    assert any("mine.png has the size" in n and said.replace("\\", "") in n and "not used" in n for n in section.notes)


def overlay() -> np.ndarray:
    """The slide with clusters drawn on its spots."""
    y, x = np.mgrid[:TINY_SIDE_PX, :TINY_SIDE_PX]
    spots = (y % 120 - 60) ** 2 + (x % 120 - 60) ** 2 < 40**2
    painted = PICTURE.copy()
    painted[spots] = np.array([(230, 60, 40), (40, 90, 200)], np.uint8)[(y // 120 + x // 120)[spots] % 2]
    return painted


def test_an_overlay_of_the_slides_size_is_not_taken_for_it(outs):
    save(overlay(), outs / "clusters.png")
    section = open_section(outs)
    assert section.image.source.endswith("tissue_hires_image.png")
    assert any("clusters.png" in note and "does not look like" in note for note in section.notes)


def test_a_file_of_the_slides_size_that_cannot_be_used_is_a_note(outs):
    Image.fromarray(PICTURE[..., 0]).save(outs / "tissue_mask.png")
    tifffile.imwrite(outs / "stains.tif", PICTURE.astype(np.uint16), photometric="rgb")
    save(PICTURE, outs / "cut.jpg")
    (outs / "cut.jpg").write_bytes((outs / "cut.jpg").read_bytes()[:9000])
    section = open_section(outs)
    assert section.image.source.endswith("tissue_hires_image.png")
    for name in ("tissue_mask.png", "stains.tif", "cut.jpg"):
        assert any("left out" in note and name in note for note in section.notes)
    save(PICTURE, outs / "the slide.png")  # and beside them the right one is found
    assert open_section(outs).image.source.endswith("the slide.png")


# ------------------------------------------------------------------------------------------------- its scale


def with_scale(outs, mpp: float, side: int = TINY_SIDE_PX) -> None:
    physical = {f"PhysicalSize{axis}": mpp for axis in "XY"}
    array = np.asarray(Image.fromarray(PICTURE).resize((side, side)))
    tifffile.imwrite(outs / "slide.ome.tif", array, photometric="rgb", metadata={"axes": "YXS", **physical})


def test_a_finer_slide_than_the_positions_is_refused_by_the_scale_it_states(outs):
    for name in ("hires", "lowres"):
        (outs / f"spatial/tissue_{name}_image.png").unlink()
    with_scale(outs, 0.35, 2 * TINY_SIDE_PX)
    with pytest.raises(SectionError, match="states 0.35 um/px .PhysicalSizeX.*0.7 um/px.*of another size.*--mpp"):
        open_section(outs, fullres="slide.ome.tif")
    section = open_section(outs, fullres="slide.ome.tif", mpp=0.7)
    assert any("slide.ome.tif states 0.35 um/px" in note for note in section.notes)


def test_a_stale_scale_of_a_slide_that_fits_is_told_and_does_not_count(outs):
    with_scale(outs, 0.35)
    for fullres in (None, "slide.ome.tif"):
        section = open_section(outs, fullres=fullres)
        assert section.calibration.mpp == pytest.approx(0.7)
        assert any("states 0.35 um/px" in note and "0.7 um/px is used" in note for note in section.notes)
    with_scale(outs, 0.7)
    assert not any("states" in note for note in open_section(outs).notes)
