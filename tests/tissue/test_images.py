"""Slide images: lazy, whatever the file; refused with a reason where they are no H&E picture."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
from PIL import Image

from napari_stmdit.errors import SectionError
from napari_stmdit.tissue.images import image_size, open_image


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (700, 1301, 3), dtype=np.uint8)


def test_a_png_is_lazy_and_halved_by_area_mean(tmp_path, picture):
    Image.fromarray(picture).save(tmp_path / "slide.png")
    image = open_image(tmp_path / "slide.png", 2.5)
    assert image.pixel_size == 2.5 and image.shape == (700, 1301)
    assert [level.shape for level in image.levels] == [(700, 1301, 3), (350, 651, 3), (175, 326, 3)]
    np.testing.assert_array_equal(image.levels[0].compute(), picture)
    mean = picture[:, :1300].reshape(350, 2, 650, 2, 3).mean((1, 3))
    assert np.abs(image.levels[1][:, :650].compute() - mean).max() <= 0.5


def test_opening_does_not_decode(tmp_path, picture):
    file = tmp_path / "slide.jpg"
    Image.fromarray(picture).save(file)
    file.write_bytes(file.read_bytes()[:5000])  # the header is there, the pixels are not
    image = open_image(file)
    with pytest.raises(SectionError, match="cut short"):
        image.levels[0][:10, :10].compute()


def test_a_slide_is_decoded_only_once(tmp_path, picture):
    Image.fromarray(picture).save(tmp_path / "slide.png")
    image = open_image(tmp_path / "slide.png")
    first = image.levels[0][:10, :10].compute()
    (tmp_path / "slide.png").unlink()
    np.testing.assert_array_equal(image.levels[0][:10, :10].compute(), first)
    assert image.levels[2].compute().shape == (175, 326, 3)


def test_a_slide_can_be_sent_to_another_process(tmp_path, picture):
    import pickle

    Image.fromarray(picture).save(tmp_path / "slide.png")
    image = pickle.loads(pickle.dumps(open_image(tmp_path / "slide.png")))
    np.testing.assert_array_equal(image.levels[0].compute(), picture)
    assert image.levels[2].compute().shape == (175, 326, 3)


def test_a_slide_larger_than_pillows_limit_opens(tmp_path, picture, monkeypatch):
    Image.fromarray(picture).save(tmp_path / "slide.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert image_size(tmp_path / "slide.png") == (700, 1301)
    assert open_image(tmp_path / "slide.png").levels[0].compute().shape == (700, 1301, 3)
    assert Image.MAX_IMAGE_PIXELS == 1000


def test_transparency_is_laid_over_white(tmp_path, picture):
    rgba = np.dstack([picture, np.zeros(picture.shape[:2], np.uint8)])
    rgba[100:200, :, 3] = 255
    Image.fromarray(rgba).save(tmp_path / "slide.png")
    pixels = open_image(tmp_path / "slide.png").levels[0].compute()
    assert (pixels[:100] == 255).all()
    np.testing.assert_array_equal(pixels[100:200], picture[100:200])


@pytest.mark.parametrize("compression", [None, "jpeg", "zlib"])
def test_a_tiled_tiff_is_read_tile_by_tile(tmp_path, picture, compression):
    if compression == "jpeg":
        pytest.importorskip("imagecodecs")
    smooth = np.repeat(np.repeat(picture[::50, ::50], 50, 0), 50, 1)
    with tifffile.TiffWriter(tmp_path / "slide.tif") as tiff:
        options = {"tile": (256, 256), "photometric": "rgb", "compression": compression}
        tiff.write(smooth, subifds=1, **options)
        tiff.write(smooth[::2, ::2], subfiletype=1, **options)
    image = open_image(tmp_path / "slide.tif")
    assert image.levels[0].chunksize[:2] == (256, 256)
    assert image.levels[1].shape == smooth[::2, ::2].shape
    assert np.abs(image.levels[0].compute().astype(int) - smooth).mean() < (2 if compression == "jpeg" else 1e-9)


def test_a_compressed_tiff_without_its_codec_is_refused_at_once(tmp_path, picture, monkeypatch):
    from napari_stmdit.tissue import images

    pytest.importorskip("imagecodecs")
    tifffile.imwrite(tmp_path / "slide.tif", picture, tile=(256, 256), photometric="rgb", compression="jpeg")
    monkeypatch.setattr(images, "find_spec", lambda name: None)
    with pytest.raises(SectionError, match="pip install imagecodecs"):
        open_image(tmp_path / "slide.tif")


def test_a_planar_and_an_untiled_tiff(tmp_path, picture):
    tifffile.imwrite(tmp_path / "planar.tif", np.moveaxis(picture, 2, 0), photometric="rgb", planarconfig="separate")
    tifffile.imwrite(tmp_path / "strips.tif", picture, photometric="rgb", rowsperstrip=64)
    for name in ("planar.tif", "strips.tif"):
        assert image_size(tmp_path / name) == (700, 1301)
        np.testing.assert_array_equal(open_image(tmp_path / name).levels[0].compute(), picture)


def test_grey_and_16_bit_images_are_refused_by_name(tmp_path, picture):
    Image.fromarray(picture[..., 0]).save(tmp_path / "grey.png")
    Image.fromarray(picture[..., 0].astype(np.uint16)).save(tmp_path / "deep.png")
    tifffile.imwrite(tmp_path / "deep.tif", picture.astype(np.uint16), photometric="rgb")
    tifffile.imwrite(tmp_path / "grey.tif", picture[..., 0])
    for name in ("grey.png", "deep.png", "deep.tif", "grey.tif"):
        with pytest.raises(SectionError, match=f"{name}.*8-bit colour image"):
            open_image(tmp_path / name)


# ------------------------------------------------------------------------------------------------- colours of a TIFF


def smooth(picture: np.ndarray) -> np.ndarray:
    return np.repeat(np.repeat(picture[::50, ::50], 50, 0), 50, 1)


@pytest.mark.parametrize("tiled", [True, False])
@pytest.mark.parametrize("kind", ["unassalpha", "assocalpha", "unspecified"])
def test_a_fourth_sample_is_what_the_file_says_of_it(tmp_path, picture, kind, tiled):
    alpha = np.full(picture.shape[:2], 255, np.uint8)
    alpha[:, 300:] = 100
    stored = picture if kind != "assocalpha" else (picture.astype(int) * alpha[..., None] // 255).astype(np.uint8)
    options = {"tile": (256, 256)} if tiled else {}
    tifffile.imwrite(
        tmp_path / "slide.tif", np.dstack([stored, alpha]), photometric="rgb", extrasamples=[kind], **options
    )
    shown = open_image(tmp_path / "slide.tif").levels[0].compute()
    over_white = picture * (alpha[..., None] / 255) + 255 - alpha[..., None]
    expected = picture if kind == "unspecified" else over_white
    assert np.abs(shown - expected).max() <= 1.01  # of the multiplied colours the fraction was lost


def test_a_fourth_sample_that_is_no_alpha_does_not_blank_the_slide(tmp_path, picture):
    four = np.dstack([picture, np.zeros(picture.shape[:2], np.uint8)])
    tifffile.imwrite(tmp_path / "slide.tif", four, photometric="rgb", extrasamples=["unspecified"])
    np.testing.assert_array_equal(open_image(tmp_path / "slide.tif").levels[0].compute(), picture)


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("tiled", [True, False])
def test_ycbcr_that_is_not_jpeg_becomes_rgb_by_the_files_coefficients(tmp_path, picture, tiled, planar):
    options = {"tile": (256, 256)} if tiled else {}
    stored = np.asarray(Image.fromarray(picture).convert("YCbCr"))
    array = stored if planar == "contig" else np.moveaxis(stored, 2, 0)
    tifffile.imwrite(tmp_path / "slide.tif", array, photometric="ycbcr", planarconfig=planar, **options)
    shown = open_image(tmp_path / "slide.tif").levels[0].compute().astype(int)
    assert np.abs(shown - np.asarray(Image.fromarray(stored, "YCbCr").convert("RGB"))).max() <= 1
    # luma of recommendation 709
    y = picture @ (0.2126, 0.7152, 0.0722)
    other = np.stack([y, (picture[..., 2] - y) / 1.8556 + 128, (picture[..., 0] - y) / 1.5748 + 128], axis=-1)
    tag = (529, "2I", 3, (2126, 10000, 7152, 10000, 722, 10000), True)
    options |= {"photometric": "ycbcr", "extratags": [tag]}
    tifffile.imwrite(tmp_path / "hd.tif", np.rint(other).clip(0, 255).astype(np.uint8), **options)
    assert np.abs(open_image(tmp_path / "hd.tif").levels[0].compute().astype(int) - picture).max() <= 2


def test_ycbcr_of_jpeg_is_turned_once(tmp_path, picture):
    pytest.importorskip("imagecodecs")
    options = {"tile": (256, 256), "photometric": "ycbcr", "compression": "jpeg"}
    tifffile.imwrite(tmp_path / "slide.tif", np.asarray(Image.fromarray(smooth(picture)).convert("YCbCr")), **options)
    assert np.abs(open_image(tmp_path / "slide.tif").levels[0].compute().astype(int) - smooth(picture)).mean() < 4


@pytest.mark.parametrize("stated", ["ycbcr", "rgb"])
def test_the_jpeg_2000_of_aperio_that_is_ycbcr_becomes_rgb_whatever_the_file_says(tmp_path, picture, stated):
    pytest.importorskip("imagecodecs")
    samples = np.asarray(Image.fromarray(smooth(picture)).convert("YCbCr"))
    options = {"tile": (256, 256), "compression": 33003, "compressionargs": {"level": 0}}
    tifffile.imwrite(tmp_path / "slide.svs", samples, photometric=stated, **options)
    assert np.abs(open_image(tmp_path / "slide.svs").levels[0].compute().astype(int) - smooth(picture)).max() <= 3


@pytest.mark.parametrize(
    ("photometric", "count", "says"),
    [
        ("separated", 4, "inks for print"),
        ("cielab", 3, "CIELab"),
        ("icclab", 3, "ICCLab"),
        ("minisblack", 3, "grey .MinIsBlack., in 3 channels that are not called red"),
        ("minisblack", 4, "grey .MinIsBlack., in 4 channels"),
    ],
)
@pytest.mark.parametrize("tiled", [True, False])
def test_other_colours_are_refused_by_their_name(tmp_path, picture, photometric, count, says, tiled):
    array = np.dstack([picture, picture])[..., :count]
    options = {"tile": (256, 256)} if tiled else {}
    file = tmp_path / "slide.tif"
    tifffile.imwrite(file, array, photometric=photometric, planarconfig="contig", **options)
    with pytest.raises(SectionError, match=f"slide.tif.*{says}.*export the slide as RGB"):
        open_image(file)


def test_samples_of_fewer_than_eight_bits_are_refused(tmp_path, picture):
    tifffile.imwrite(tmp_path / "slide.tif", picture, photometric="rgb")
    with tifffile.TiffFile(tmp_path / "slide.tif", mode="r+") as file:
        file.pages.first.tags["BitsPerSample"].overwrite((4, 4, 4))
    with pytest.raises(SectionError, match="4 bits a sample"):
        open_image(tmp_path / "slide.tif")


@pytest.mark.parametrize("names", [["DAPI", "CD3", "PanCK"], ["DAPI", "CD3", "PanCK", "CD20"], None])
def test_channels_of_a_stain_are_no_colours(tmp_path, picture, names):
    planes = np.stack([picture[..., k % 3] for k in range(len(names or "rgb"))])
    metadata = {"axes": "CYX"} | ({"Channel": {"Name": names}} if names else {})
    tifffile.imwrite(tmp_path / "scan.ome.tif", planes, photometric="minisblack", metadata=metadata)
    with pytest.raises(SectionError, match="DAPI, CD3, PanCK.*not red, green and blue" if names else "grey"):
        open_image(tmp_path / "scan.ome.tif")


def test_channels_that_are_called_red_green_and_blue_are_put_in_that_order(tmp_path, picture):
    metadata = {"axes": "CYX", "Channel": {"Name": ["Blue", "Red", "Green"]}}
    tifffile.imwrite(
        tmp_path / "scan.ome.tif",
        np.moveaxis(picture[..., [2, 0, 1]], 2, 0),
        photometric="minisblack",
        metadata=metadata,
    )
    np.testing.assert_array_equal(open_image(tmp_path / "scan.ome.tif").levels[0].compute(), picture)


def test_several_colour_images_in_one_series_are_refused(tmp_path, picture):
    two = np.stack([picture, picture])
    tifffile.imwrite(tmp_path / "two.ome.tif", two, photometric="rgb", metadata={"axes": "CYXS"})
    with pytest.raises(SectionError, match="several images"):
        open_image(tmp_path / "two.ome.tif")


def test_a_png_of_16_bits_in_colour_is_refused_as_a_tiff_is(tmp_path, picture):
    imagecodecs = pytest.importorskip("imagecodecs")
    for name, array in (("rgb.png", picture), ("rgba.png", np.dstack([picture, picture[..., 0]]))):
        (tmp_path / name).write_bytes(imagecodecs.png_encode(array.astype(np.uint16) * 16))
        with pytest.raises(SectionError, match=f"{name} is a 16-bit image"):
            open_image(tmp_path / name)


def test_inks_in_a_jpeg_are_refused_as_in_a_tiff(tmp_path, picture):
    Image.fromarray(picture).convert("CMYK").save(tmp_path / "slide.jpg")
    with pytest.raises(SectionError, match="inks for print"):
        open_image(tmp_path / "slide.jpg")


def test_a_tiff_is_read_as_such_whatever_it_is_called(tmp_path, picture):
    tifffile.imwrite(tmp_path / "slide.png", picture, photometric="rgb")
    np.testing.assert_array_equal(open_image(tmp_path / "slide.png").levels[0].compute(), picture)
    tifffile.imwrite(tmp_path / "deep.png", picture.astype(np.uint16), photometric="rgb")
    with pytest.raises(SectionError, match="uint16"):
        open_image(tmp_path / "deep.png")


# ------------------------------------------------------------------------------------------------- pages of a TIFF


@pytest.mark.parametrize("order", [1, -1])
def test_the_largest_page_is_the_slide_and_thumbnails_and_coarser_copies_are_not(tmp_path, picture, order):
    pages = [picture, picture[::2, ::2], picture[::10, ::10], picture[:100, :100]]
    with tifffile.TiffWriter(tmp_path / "slide.qptiff") as file:
        for page in pages[::order]:
            file.write(page, photometric="rgb", metadata=None, tile=(256, 256))
    assert image_size(tmp_path / "slide.qptiff") == (700, 1301)
    np.testing.assert_array_equal(open_image(tmp_path / "slide.qptiff").levels[0].compute(), picture)


def test_two_images_that_may_both_be_the_slide_are_refused(tmp_path, picture):
    with tifffile.TiffWriter(tmp_path / "slide.tif") as file:
        file.write(picture, photometric="rgb", metadata=None)
        file.write(picture[:500], photometric="rgb", metadata=None)
    for read in (open_image, image_size):
        with pytest.raises(SectionError, match="several images .700 x 1301, 500 x 1301 pixels."):
            read(tmp_path / "slide.tif")


def test_what_is_no_image_is_refused(tmp_path):
    for name in ("broken.png", "broken.jpg", "broken.tif"):
        (tmp_path / name).write_bytes(b"not an image at all")
        with pytest.raises(SectionError, match="cannot be read"):
            open_image(tmp_path / name)
    with pytest.raises(SectionError, match="there is no image file"):
        open_image(tmp_path / "missing.png")
    (tmp_path / "slide.vsi").write_bytes(b"")
    with pytest.raises(SectionError, match="expected .jpg"):
        open_image(tmp_path / "slide.vsi")
