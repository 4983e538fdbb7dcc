"""Plain slides: the scale is stated or asked for, and the virtual spots lie on tissue alone."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
from PIL import Image
from slides import GLASS, SLIDE_MPP, SLIDE_SIDE, on_tissue, tissue_picture, write_aperio, write_philips, write_pyramid

from napari_stmdit.errors import ScaleError, SectionError
from napari_stmdit.tissue.open import SectionSource, open_section, synthesis_fault
from napari_stmdit.tissue.slide import SPOT_UM, hex_grid
from napari_stmdit.tissue.tissue_mask import find_tissue
from napari_stmdit.types import SlideImage

CM = {"resolution": (20000, 20000), "resolutionunit": "CENTIMETER"}


@pytest.fixture(scope="module")
def picture():
    return tissue_picture()


@pytest.fixture(scope="module")
def pyramid(tmp_path_factory, picture):
    """A pyramidal TIFF that states 0.5 um/px."""
    return write_pyramid(tmp_path_factory.mktemp("slide") / "slide.tif", picture, **CM)


# ------------------------------------------------------------------------------------------------- scale


def test_a_tiff_states_its_scale_in_centimetres(pyramid):
    section = open_section(pyramid)
    assert section.calibration.source == "image" and section.calibration.mpp == pytest.approx(0.5)
    assert "XResolution in centimetres of slide.tif" in section.calibration.detail
    assert (section.kind, section.name) == ("image", "slide")


@pytest.mark.parametrize(("size", "unit", "mpp"), [(0.5, "µm", 0.5), (0.0005, "mm", 0.5), (450.0, "nm", 0.45)])
def test_an_ome_tiff_states_its_scale_with_its_unit(tmp_path, picture, size, unit, mpp):
    metadata = {
        "axes": "YXS",
        "PhysicalSizeX": size,
        "PhysicalSizeXUnit": unit,
        "PhysicalSizeY": size,
        "PhysicalSizeYUnit": unit,
    }
    section = open_section(write_pyramid(tmp_path / "slide.ome.tif", picture, metadata=metadata))
    assert section.calibration.mpp == pytest.approx(mpp)
    assert "PhysicalSizeX of the OME-XML" in section.calibration.detail and section.name == "slide"
    assert [level.shape[0] for level in section.image.levels] == [1600, 800, 400]


def test_an_aperio_slide_states_its_scale(tmp_path, picture):
    section = open_section(write_aperio(tmp_path / "slide.svs", picture))
    assert section.calibration.mpp == pytest.approx(0.499)
    assert "MPP of the Aperio description" in section.calibration.detail
    assert [level.shape[0] for level in section.image.levels] == [1600, 400]  # the thumbnail is no level
    assert len(section.spots) > 20


def test_an_imagej_tiff_states_its_scale_with_its_unit(tmp_path, picture):
    for name, unit, ok in (("a.tif", "um", True), ("b.tif", "\\u00B5m", True), ("c.tif", "pixel", False)):
        tifffile.imwrite(tmp_path / name, picture, imagej=True, resolution=(2.0, 2.0), metadata={"unit": unit})
        if ok:
            calibration = open_section(tmp_path / name).calibration
            assert calibration.mpp == pytest.approx(0.5) and "ImageJ" in calibration.detail
        else:
            with pytest.raises(ScaleError):
                open_section(tmp_path / name)


def test_a_philips_slide_states_its_scale_through_tiffslide(tmp_path, picture, monkeypatch):
    from napari_stmdit.tissue import slide_scale

    pytest.importorskip("tiffslide")
    file = write_philips(tmp_path / "slide.tiff", picture)
    calibration = open_section(file).calibration
    assert calibration.mpp == pytest.approx(0.5) and "DICOM_PIXEL_SPACING" in calibration.detail
    monkeypatch.setattr(slide_scale, "find_spec", lambda name: None)
    with pytest.raises(ScaleError, match=r"pip install 'napari-stmdit\[slides\]'"):
        open_section(file)


def test_the_users_scale_counts_and_what_the_file_says_is_told(pyramid):
    calibration = open_section(pyramid, mpp=0.4).calibration
    assert (calibration.mpp, calibration.source) == (0.4, "override")
    assert "XResolution in centimetres of the file states 0.5" in calibration.detail
    assert "states" not in open_section(pyramid, mpp=0.5).calibration.detail


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "slide.tif does not state how large"),
        ({"resolution": (72, 72), "resolutionunit": "INCH"}, "72 pixels per inch"),
        ({"resolution": (50800, 50800), "resolutionunit": "INCH"}, "50800 pixels per inch"),
        ({"resolution": (20000, 10000), "resolutionunit": "CENTIMETER"}, "not square"),
        ({"resolution": (1, 1), "resolutionunit": "CENTIMETER"}, "no pixel of a slide"),
    ],
)
def test_a_scale_that_is_not_stated_is_asked_for(tmp_path, picture, options, says):
    with pytest.raises(ScaleError, match=says) as raised:
        open_section(write_pyramid(tmp_path / "slide.tif", picture, **options))
    assert "--mpp" in str(raised.value)


def test_fields_that_contradict_each_other_state_no_scale_and_both_are_told(tmp_path, picture):
    about = "Aperio Image Library v12|MPP = 0.25"
    tifffile.imwrite(tmp_path / "slide.svs", picture, tile=(256, 256), photometric="rgb", description=about, **CM)
    physical = {f"PhysicalSize{axis}": 0.25 for axis in "XY"}
    write_pyramid(tmp_path / "slide.ome.tif", picture, metadata={"axes": "YXS", **physical}, **CM)
    for name, field in (("slide.svs", "MPP of the Aperio"), ("slide.ome.tif", "PhysicalSizeX")):
        with pytest.raises(ScaleError, match=f"contradict.*{field}.*0.25 um, XResolution.*0.5 um.*--mpp"):
            open_section(tmp_path / name)
        detail = open_section(tmp_path / name, mpp=0.5).calibration.detail
        assert "0.25" in detail and "contradict" in detail


def test_fields_that_agree_but_for_rounding_state_the_most_specific(tmp_path, picture):
    options = {"resolution": (1e4 / 0.4963, 1e4 / 0.4963), "resolutionunit": "CENTIMETER", "metadata": None}
    about = "Aperio Image Library v12|MPP = 0.50"
    tifffile.imwrite(tmp_path / "slide.svs", picture, tile=(256, 256), photometric="rgb", description=about, **options)
    assert open_section(tmp_path / "slide.svs").calibration.mpp == 0.5


def test_the_scale_is_that_of_the_slides_page_not_of_the_thumbnail_before_it(tmp_path, picture):
    with tifffile.TiffWriter(tmp_path / "slide.tif") as file:
        small = {"resolution": (2500, 2500), "resolutionunit": "CENTIMETER"}
        file.write(picture[::8, ::8], photometric="rgb", metadata=None, **small)
        file.write(picture, photometric="rgb", metadata=None, tile=(256, 256), **CM)
    section = open_section(tmp_path / "slide.tif")
    assert section.calibration.mpp == pytest.approx(0.5) and section.image.shape == (SLIDE_SIDE, SLIDE_SIDE)


@pytest.mark.parametrize("name", ["slide.png", "slide.jpg"])
def test_a_density_for_print_is_no_scale(tmp_path, picture, name):
    Image.fromarray(picture).save(tmp_path / name, dpi=(50800, 50800))
    with pytest.raises(ScaleError, match="--mpp"):
        open_section(tmp_path / name)
    section = open_section(tmp_path / name, mpp=SLIDE_MPP)
    assert section.calibration.source == "override" and len(section.spots) > 20


# ------------------------------------------------------------------------------------------------- grid


def test_the_spots_lie_on_tissue_alone(pyramid):
    section = open_section(pyramid)
    yx, radius = section.spots.yx, SPOT_UM / 2 / SLIDE_MPP
    assert on_tissue(yx).mean() > 0.95
    grid, _ = hex_grid((SLIDE_SIDE, SLIDE_SIDE), 100 / SLIDE_MPP)
    ring = radius * np.array([(np.sin(a), np.cos(a)) for a in np.linspace(0, 2 * np.pi, 12, endpoint=False)])
    whole = np.all([on_tissue(grid + shift) for shift in ring], axis=0)
    bare = ~np.any([on_tissue(grid + 1.5 * shift) for shift in ring], axis=0)
    there = {tuple(place) for place in yx.round(3).tolist()}
    assert all(tuple(place) in there for place in grid[whole].round(3).tolist())
    assert not any(tuple(place) in there for place in grid[bare].round(3).tolist())
    assert section.spots.diameter == pytest.approx(110)
    assert any("virtual grid" in note and "100 um apart" in note for note in section.notes)


def test_the_grid_is_hexagonal_and_of_the_pitch_asked_for(pyramid):
    from scipy.spatial import cKDTree

    for pitch in (50.0, 100.0, 130.0):
        section = open_section(pyramid, grid_pitch=pitch)
        distance, _ = cKDTree(section.spots.yx).query(section.spots.yx, k=7)
        full = np.isclose(distance[:, 6] * SLIDE_MPP, pitch)
        assert full.any(), pitch  # six neighbours at one distance
        np.testing.assert_allclose(distance[:, 1] * SLIDE_MPP, pitch, rtol=1e-9)
        assert (section.spots.array_rc is not None) == (pitch == 100.0)


def test_a_spots_name_and_place_do_not_depend_on_the_mask(pyramid):
    masked, whole = open_section(pyramid).spots, open_section(pyramid, tissue_fraction=0).spots
    place = dict(zip(whole.ids.tolist(), whole.yx.tolist(), strict=True))
    assert len(whole) > 1.5 * len(masked)
    assert all(place[spot] == yx for spot, yx in zip(masked.ids.tolist(), masked.yx.tolist(), strict=True))


def test_a_larger_part_on_tissue_keeps_fewer_spots(pyramid):
    counts = [len(open_section(pyramid, tissue_fraction=share).spots) for share in (0.05, 0.5, 1.0)]
    assert counts[0] > counts[1] > counts[2] > 0


def test_dust_grey_and_holes(picture):
    picture = picture.copy()
    picture[1400:1440, 100:140] = (150, 60, 140)  # 20 um of stain: dust
    picture[40:300, 1200:1560] = (190, 190, 190)  # a grey shadow
    picture[560:600, 560:600] = GLASS  # a hole of 20 um in the tissue
    import dask.array as da

    mask = find_tissue(SlideImage((da.from_array(picture, chunks=512),), 1.0, "made"), SLIDE_MPP)
    at = lambda y, x: mask.mask[int(y / mask.step[0]), int(x / mask.step[1])]  # noqa: E731
    assert not at(1420, 120) and not at(170, 1380) and at(580, 580) and at(400, 600)


def test_a_slide_of_glass_has_no_tissue_and_one_without_glass_is_all_tissue(tmp_path, picture):
    noise = np.random.default_rng(0).integers(-3, 4, (800, 800, 3))
    Image.fromarray((np.array(GLASS) + noise).astype(np.uint8)).save(tmp_path / "glass.png")
    with pytest.raises(SectionError, match="no spot of the grid lies on tissue"):
        open_section(tmp_path / "glass.png", mpp=0.5)
    Image.fromarray(picture[450:850, 450:850]).save(tmp_path / "full.png")
    section = open_section(tmp_path / "full.png", mpp=0.5)
    assert len(section.spots) == len(hex_grid((400, 400), 200)[0])
    assert any("shows no glass" in note for note in section.notes)


def test_a_grid_beyond_all_use_is_refused(pyramid):
    with pytest.raises(SectionError, match="larger grid_pitch"):
        hex_grid((1e6, 1e6), 20.0)
    with pytest.raises(SectionError, match="grid_pitch is -1.*tissue_fraction is 2"):
        open_section(pyramid, grid_pitch=-1, tissue_fraction=2)


def test_opening_reads_a_coarse_level_alone(tmp_path, picture):
    file = write_pyramid(tmp_path / "slide.tif", picture, levels=5, **CM)
    whole = open_section(file)
    with tifffile.TiffFile(file) as tiff:
        places = [
            (offset, count)
            for level in tiff.series[0].levels[:3]
            for offset, count in zip(level.pages[0].dataoffsets, level.pages[0].databytecounts, strict=True)
        ]
    data = bytearray(file.read_bytes())
    for offset, count in places:
        data[offset : offset + count] = b"\xff" * count
    file.write_bytes(data)
    section = open_section(file)  # 4 and 8 um/px are whole, the levels below are not
    np.testing.assert_array_equal(section.spots.yx, whole.spots.yx)
    with pytest.raises(Exception, match="decompress|inflate|zlib|DEFLATE"):
        section.image.levels[0][:8, :8].compute()


# ------------------------------------------------------------------------------------------------- doors


def test_a_plain_slide_can_be_synthesized_from_and_one_too_coarse_cannot(pyramid):
    assert synthesis_fault(open_section(pyramid), 0.688) is None
    fault = synthesis_fault(open_section(pyramid, mpp=1.6), 0.688)
    assert "coarser" in fault and "finer slide image" in fault


def test_options_of_a_slide_are_refused_for_sections_and_fullres_for_slides(pyramid, tiny_folder):
    with pytest.raises(SectionError, match="spots of its own: grid_pitch, predicted_expression"):
        open_section(tiny_folder, grid_pitch=100, predicted_expression="x.h5ad")
    with pytest.raises(SectionError, match="slide image itself"):
        open_section(pyramid, fullres=pyramid)


def test_a_source_opens_the_same_section_from_anywhere(pyramid, monkeypatch):
    monkeypatch.chdir(pyramid.parent)
    source = SectionSource(path=pyramid.name, grid_pitch=80.0).absolute()
    monkeypatch.chdir("/")
    assert source.path == pyramid
    np.testing.assert_array_equal(source.open().spots.yx, open_section(pyramid, grid_pitch=80.0).spots.yx)


def test_compressed_tiles_without_their_codec_name_what_to_install(tmp_path, picture, monkeypatch):
    from napari_stmdit.tissue import images

    pytest.importorskip("imagecodecs")
    tifffile.imwrite(tmp_path / "slide.tif", picture, tile=(256, 256), photometric="rgb", compression="jpeg", **CM)
    monkeypatch.setattr(images, "find_spec", lambda name: None)
    with pytest.raises(SectionError, match=r"pip install 'napari-stmdit\[slides\]'"):
        open_section(tmp_path / "slide.tif")
