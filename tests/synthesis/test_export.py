"""Results in files: what is written reads back with other programs' readers, in place, in scale and with its provenance."""

import json

import numpy as np
import pandas as pd
import pytest
from standins import CropModel, card_for, make_section

from napari_stmdit.errors import StoreError
from napari_stmdit.intent import Request
from napari_stmdit.progress import CancelToken
from napari_stmdit.regions import SpotList
from napari_stmdit.synthesis.result import export_result, finished, patch_table
from napari_stmdit.synthesis.session import synthesize


@pytest.fixture(scope="module")
def result():
    section = make_section(mpp=0.5, rows=8, columns=8)
    model = CropModel(card_for(tuple(section.spots.genes.symbols.tolist()), patch_px=64, patch_mpp=1.0))
    ids = section.spots.ids.tolist()
    return synthesize(section, Request(region=SpotList(ids=(ids[0], ids[1], ids[-1])), seed=5), model)


def test_ome_zarr_lies_in_place(result, tmp_path):
    from ome_zarr.io import parse_url
    from ome_zarr.reader import Reader

    path = export_result(result, tmp_path / "out", "ome-zarr")
    assert path.name == "out.zarr"
    (node,) = list(Reader(parse_url(path))())
    levels = [np.asarray(level) for level in node.data]
    np.testing.assert_array_equal(np.moveaxis(levels[0], 0, -1), result.rgba)
    assert len(levels) >= 2 and levels[1].shape[1] == result.rgba.shape[0] // 2
    frame, mpp = result.plan.frame, result.section.calibration.mpp
    for k, (scale, shift) in enumerate(node.metadata["coordinateTransformations"]):
        pixel = frame.pixel_size * mpp * 2**k
        assert scale["scale"] == pytest.approx([1, pixel, pixel])
        # the centre of the first pixel, in microns from the slide's corner
        centre = [origin * mpp + pixel / 2 for origin in frame.origin]
        assert shift["translation"] == pytest.approx([0, *centre])
    assert [axis.get("unit") for axis in node.metadata["axes"]] == [None, "micrometer", "micrometer"]
    import zarr

    kept = zarr.open_group(path, mode="r").attrs["stmdit"]
    assert kept == json.loads(json.dumps(dict(result.provenance)))
    assert kept["synthetic"] is True


def test_a_result_exports_itself(result, tmp_path):
    assert result.export(tmp_path / "out", "patches").is_dir()
    assert len(list((tmp_path / "out").rglob("*.png"))) == 3


def test_a_layer_lies_on_its_section(result):
    """The centre of a pixel, as napari places it, lies where the canvas says, in microns from the slide's corner."""
    from napari.layers import Layer

    layer = Layer.create(*result.to_layer())
    assert layer.data is result.rgba and layer.rgb and [str(unit) for unit in layer.units] == ["micrometer"] * 2
    assert "synthetic" in layer.name.lower() and layer.metadata["provenance"]["synthetic"] is True
    frame, mpp = result.plan.frame, result.section.mpp
    expected = [(origin + (at + 0.5) * frame.pixel_size) * mpp for origin, at in zip(frame.origin, (3, 5), strict=True)]
    np.testing.assert_allclose(layer.data_to_world((3, 5)), expected)


def test_ome_tiff_has_its_size_and_provenance(result, tmp_path):
    import tifffile

    ome_types = pytest.importorskip("ome_types")
    pytest.importorskip("lxml", reason="ome-types validates with lxml, which is not installed")

    path = export_result(result, tmp_path / "out", "ome-tiff", name="mine")
    assert path.name == "out.ome.tif"
    with tifffile.TiffFile(path) as tif:
        series = tif.series[0]
        clear = result.rgba[..., 3] == 0
        np.testing.assert_array_equal(series.asarray()[~clear], result.rgba[~clear])
        # QuPath drops alpha: where nothing was made it must not see black
        assert (series.asarray()[clear] == (255, 255, 255, 0)).all() and clear.any()
        assert (series.levels[1].asarray()[..., :3][series.levels[1].asarray()[..., 3] == 0] == 255).all()
        page = tif.pages[0]
        assert (page.photometric.name, page.planarconfig.name, page.samplesperpixel) == ("RGB", "CONTIG", 4)
        assert len(series.levels) >= 2
        assert series.levels[1].shape[0] == result.rgba.shape[0] // 2
        assert tif.pages[0].extrasamples == (2,)  # alpha, not premultiplied
        image = ome_types.from_xml(tif.ome_metadata, validate=True).images[0]
        notes = ome_types.from_xml(tif.ome_metadata).structured_annotations
    mpp = result.plan.card.patch_mpp
    assert image.name == "mine"
    assert image.pixels.physical_size_x == pytest.approx(mpp)
    assert image.pixels.physical_size_x_unit.value == "µm"
    assert (
        image.pixels.physical_size_y == image.pixels.physical_size_x and image.pixels.physical_size_y_unit.value == "µm"
    )
    assert image.pixels.type.value == "uint8" and [c.samples_per_pixel for c in image.pixels.channels] == [4]
    plane = image.pixels.planes[0]
    corner = np.array(result.plan.frame.origin) * result.section.calibration.mpp
    assert (plane.position_y, plane.position_x) == pytest.approx(tuple(corner))
    assert "Not for diagnosis" in image.description
    kept = dict(notes.map_annotations[0].value.items()) if hasattr(notes, "map_annotations") else dict(notes[0].value)
    assert json.loads(kept["provenance"]) == json.loads(json.dumps(dict(result.provenance)))


def test_patches_with_their_table(result, tmp_path):
    from PIL import Image

    path = export_result(result, tmp_path / "out", "patches")
    for table in (pd.read_csv(path / "patches.csv", dtype={"seed": str}), pd.read_parquet(path / "patches.parquet")):
        assert table.spot.tolist() == [result.plan.patches[k].spot_id for k in result.done]
        assert table.seed.tolist() == [str(result.plan.patches[k].seed) for k in result.done]
        assert table.synthetic.all()
        for row, pixels in zip(table.itertuples(), result.patches, strict=True):
            with Image.open(path / row.file) as image:
                np.testing.assert_array_equal(np.asarray(image), pixels)
                assert "Not for diagnosis" in image.text["Description"]
                assert image.info["dpi"][0] == pytest.approx(25400 / result.plan.card.patch_mpp, rel=1e-3)
        spot = result.section.spots
        rows = spot.rows(table.spot.tolist())
        np.testing.assert_allclose(table[["y_um", "x_um"]], spot.yx[rows] * result.section.calibration.mpp)
    assert json.loads((path / "provenance.json").read_text())["request"]["seed"] == 5


@pytest.mark.parametrize("kind", ["ome-zarr", "ome-tiff", "patches"])
def test_nothing_is_overwritten_and_nothing_is_left_behind(result, tmp_path, kind, monkeypatch):
    path = export_result(result, tmp_path / "out", kind)
    with pytest.raises(StoreError, match="already there"):
        export_result(result, path, kind)
    before = sorted(p.name for p in tmp_path.iterdir())

    def full(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr("napari_stmdit.storage.atomic.sync", full)
    with pytest.raises(StoreError, match="No space left"):
        export_result(result, tmp_path / "other", kind)
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_names_that_a_disk_takes_for_the_same_are_told_apart():
    from napari_stmdit.tissue.export import _file_names

    assert _file_names(["a", "A", "x/y", "x_y", ""]) == [
        "patches/a.png",
        "patches/A_2.png",
        "patches/x_y.png",
        "patches/x_y_2.png",
        "patches/patch.png",
    ]


def test_an_empty_result_is_refused(tmp_path):
    section = make_section()
    model = CropModel(card_for(tuple(section.spots.genes.symbols.tolist()), patch_px=32, patch_mpp=1.0))
    cancel = CancelToken()
    cancel.cancel()
    empty = synthesize(section, Request(), model, cancel=cancel)
    with pytest.raises(StoreError, match="no finished patch"):
        export_result(empty, tmp_path / "out", "ome-tiff")
    assert patch_table(finished(empty)).empty
