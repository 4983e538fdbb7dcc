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
