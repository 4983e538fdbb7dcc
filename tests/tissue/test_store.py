"""Results are written once, whole, registered and never over anything."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil

import numpy as np
import pytest

from napari_stmdit.errors import StoreError
from napari_stmdit.tissue import geometry
from napari_stmdit.tissue.open import open_section, synthesis_fault
from napari_stmdit.tissue.store import write_result
from napari_stmdit.tissue.store_entries import list_results, read_result

AFFINE = np.array([[1 / 0.7, 0, 61.23456789], [0, 1 / 0.7, 45.987654321], [0, 0, 1]])


@pytest.fixture(scope="module")
def rgba() -> np.ndarray:
    pixels = np.random.default_rng(0).integers(0, 256, (210, 331, 4), dtype=np.uint8)
    pixels[:100, :, 3] = 0
    return pixels


@pytest.fixture
def store(tiny_section, rgba, tmp_path):
    write_result(tmp_path / "out.zarr", rgba, AFFINE, tiny_section, None, {"seed": 3, "request": {"steps": [1, 2]}})
    return tmp_path / "out.zarr"


def leftovers(path) -> list[str]:
    return [name for name in os.listdir(path.parent) if name != path.name]


def test_pixels_affine_and_provenance_come_back(store, rgba):
    pixels, affine, provenance = read_result(store, "stmdit_1")
    np.testing.assert_array_equal(np.asarray(pixels), rgba)
    np.testing.assert_allclose(affine, AFFINE, atol=1e-9, rtol=0)
    assert provenance == {"seed": 3, "request": {"steps": [1, 2]}}
    assert list_results(store) == ("stmdit_1",)
    assert leftovers(store) == []


def test_the_element_is_as_the_contract_says(store, tiny_section):
    from spatialdata import read_zarr
    from spatialdata.transformations import get_transformation

    sdata = read_zarr(store)
    element = sdata.images["stmdit_1"]
    level = element["scale0"]["image"]
    assert level.dims == ("c", "y", "x") and level.coords["c"].values.tolist() == ["r", "g", "b", "a"]
    assert "scale1" in element.children
    assert json.loads(json.dumps(sdata.attrs["stmdit"]["stmdit_1"]))["seed"] == 3
    found = get_transformation(element, get_all=True)
    assert set(found) == set(tiny_section.coordinate_systems)
    for name, affine in tiny_section.coordinate_systems.items():
        matrix = found[name].to_affine_matrix(("y", "x"), ("y", "x"))
        np.testing.assert_allclose(matrix, affine @ AFFINE, atol=1e-9)


def test_coarser_levels_weigh_colour_with_alpha(tiny_section, tmp_path):
    from spatialdata import read_zarr

    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[::2] = (200, 100, 50, 255)  # every other row; between them nothing, which is black
    write_result(tmp_path / "o.zarr", pixels, AFFINE, tiny_section, None, {})
    level = read_zarr(tmp_path / "o.zarr").images["stmdit_1"]["scale1"]["image"].values
    assert (level[:3].reshape(3, -1).T == (200, 100, 50)).all() and (level[3] == 128).all()


def test_the_store_stands_alone(store, tiny_section):
    section = open_section(store)
    assert section.name == "tiny_section" and section.calibration.mpp == tiny_section.calibration.mpp
    np.testing.assert_array_equal(section.spots.yx, tiny_section.spots.yx)
    assert section.spots.ids.tolist() == tiny_section.spots.ids.tolist()
    assert (section.spots.counts != tiny_section.spots.counts).nnz == 0
    assert section.spots.genes.symbols.tolist() == tiny_section.spots.genes.symbols.tolist()
    assert section.spots.diameter == pytest.approx(tiny_section.spots.diameter)
    np.testing.assert_array_equal(section.image.levels[0].compute(), tiny_section.image.levels[0].compute())
    assert any("results in this store: stmdit_1" in note for note in section.notes)


@pytest.mark.parametrize("source", ["folder", "zarr"])
def test_round_trip_to_the_layer_is_below_a_hundredth_of_a_pixel(source, tiny_folder, tiny_zarr, rgba, tmp_path):
    section = open_section(tiny_folder if source == "folder" else tiny_zarr)
    before = geometry.napari_affine(AFFINE, section.calibration.mpp)
    write_result(tmp_path / "o.zarr", rgba, AFFINE, section, None, {})
    again = open_section(tmp_path / "o.zarr")
    _, affine, _ = read_result(tmp_path / "o.zarr", "stmdit_1")
    after = geometry.napari_affine(affine, again.calibration.mpp)
    corners = [(0, 0), (rgba.shape[0], 0), (0, rgba.shape[1]), rgba.shape[:2]]
    off = np.abs(geometry.apply(after, corners) - geometry.apply(before, corners)).max()
    assert off / section.calibration.mpp < 0.01
    np.testing.assert_allclose(again.spots.yx, section.spots.yx, atol=0.01)


@pytest.mark.parametrize(("largest", "factor"), [(4000, 1), (300, 3)])
def test_a_coarse_or_reduced_slide_is_stored_at_its_own_scale(
    largest, factor, tiny_section, rgba, tmp_path, monkeypatch
):
    monkeypatch.setattr("napari_stmdit.tissue.elements.MAX_SLIDE_PX", largest)
    image = dataclasses.replace(tiny_section.image, levels=tiny_section.image.levels[:1], pixel_size=2.5)
    write_result(tmp_path / "o.zarr", rgba, AFFINE, dataclasses.replace(tiny_section, image=image), None, {})
    assert open_section(tmp_path / "o.zarr").image.pixel_size == pytest.approx(2.5 * factor)


def test_results_are_numbered_named_and_never_overwritten(store, tiny_section, rgba):
    assert write_result(store, rgba, AFFINE, tiny_section, None, {}) == "stmdit_2"
    assert write_result(store, rgba[:50], AFFINE, tiny_section, "tumour.A", {"note": "n"}) == "stmdit_tumour.A"
    assert write_result(store, rgba, AFFINE, open_section(store), "10", {}) == "stmdit_10"
    assert list_results(store) == ("stmdit_1", "stmdit_2", "stmdit_10", "stmdit_tumour.A")
    for taken in ("1", "TUMOUR.a", "stmdit_2"):
        with pytest.raises(StoreError, match="never overwritten"):
            write_result(store, rgba, AFFINE, tiny_section, taken, {})
    with pytest.raises(StoreError, match="other characters"):
        write_result(store, rgba, AFFINE, tiny_section, "a/b", {})
    assert read_result(store, "stmdit_1")[2]["seed"] == 3
    assert read_result(store, "stmdit_tumour.A")[2] == {"note": "n"}
    assert leftovers(store) == []


def test_a_result_goes_into_the_users_own_store(tiny_zarr, rgba, tmp_path):
    import shutil

    from spatialdata import read_zarr

    path = shutil.copytree(tiny_zarr, tmp_path / "own.zarr")
    section = open_section(path)
    assert write_result(path, rgba, AFFINE, section, None, {"a": 1}) == "stmdit_1"
    sdata = read_zarr(path)
    assert set(sdata.images) == {"slide", "stmdit_1"} and set(sdata.tables) == {"table"}
    np.testing.assert_array_equal(np.asarray(read_result(path, "stmdit_1")[0]), rgba)
    again = open_section(path)
    assert again.image.source == "slide" and len(again.spots) == 30


def test_another_sections_store_is_left_alone(store, tiny_section, tiny_zarr, rgba):
    spots = dataclasses.replace(tiny_section.spots, yx=tiny_section.spots.yx + 5)
    other = dataclasses.replace(tiny_section, spots=spots, name="other")
    with pytest.raises(StoreError, match="another section"):
        write_result(store, rgba, AFFINE, other, None, {})
    renamed = dataclasses.replace(
        tiny_section, spots=dataclasses.replace(tiny_section.spots, ids=np.char.add("x", tiny_section.spots.ids))
    )
    with pytest.raises(StoreError, match="another section"):
        write_result(tiny_zarr, rgba, AFFINE, renamed, None, {})
    assert list_results(tiny_zarr) == ()


def test_what_is_no_store_is_left_alone(tiny_section, rgba, tmp_path):
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter.txt").write_text("dear")
    with pytest.raises(StoreError, match="no SpatialData"):
        write_result(folder, rgba, AFFINE, tiny_section, None, {})
    with pytest.raises(StoreError, match="no SpatialData"):
        write_result(folder / "chapter.txt", rgba, AFFINE, tiny_section, None, {})
    assert (folder / "chapter.txt").read_text() == "dear"


@pytest.mark.parametrize("new", [True, False])
def test_what_reads_back_differently_is_refused_and_not_kept(new, tiny_section, rgba, tmp_path, monkeypatch):
    from napari_stmdit.tissue import store as module

    path, write = tmp_path / "out.zarr", module._write
    if not new:
        write_result(path, rgba, AFFINE, tiny_section, None, {})

    def faulty(scratch, *rest):
        """A disk that loses one bit of one pixel."""
        write(scratch, *rest)
        image = max((scratch / "images").glob("stmdit_*"))
        import zarr

        levels = zarr.open_group(image, mode="r+")
        levels[min(levels.array_keys())][1, 150, 20] = rgba[150, 20, 1] ^ 1

    monkeypatch.setattr(module, "_write", faulty)
    with pytest.raises(StoreError, match="reads back differently"):
        write_result(path, rgba, AFFINE, tiny_section, None, {})
    assert path.exists() is not new
    assert new or list_results(path) == ("stmdit_1",)
    assert [name for name in os.listdir(tmp_path) if name.startswith(".")] == []


def test_a_failed_write_leaves_the_store_as_it_was(store, tiny_section, rgba):
    (store / "stmdit_patches").write_text("in the way")
    before = (store / "zarr.json").read_bytes()
    with pytest.raises(StoreError, match="nothing was changed"):
        write_result(store, rgba, AFFINE, tiny_section, None, {}, np.zeros((2, 8, 8, 3), np.uint8))
    assert json.loads((store / "zarr.json").read_bytes()) == json.loads(before)
    assert sorted(os.listdir(store / "images")) == ["stmdit_1", "tiny_section_slide", "zarr.json"]
    assert list_results(store) == ("stmdit_1",)
    assert leftovers(store) == []


def test_a_name_that_a_broken_image_has_is_not_given_again(store, tiny_section, rgba):
    (store / "images" / "stmdit_2").mkdir()  # what a crash of another program might have left
    (store / "images" / "stmdit_2" / "rest").write_text("")
    assert write_result(store, rgba, AFFINE, tiny_section, None, {}) == "stmdit_3"
    with pytest.raises(StoreError, match="never overwritten"):
        write_result(store, rgba, AFFINE, tiny_section, "2", {})
    assert (store / "images" / "stmdit_2" / "rest").exists()
    with pytest.raises(StoreError, match="stmdit_2 .* cannot be read"):
        read_result(store, "stmdit_2")


def test_a_failed_first_write_leaves_nothing(tiny_section, rgba, tmp_path):
    class Broken:
        shape, ndim, dtype, name = (64, 64, 3), 3, np.dtype(np.uint8), "broken"

        def __getitem__(self, key):
            raise OSError("the disk is gone")

    import dask.array as da

    meta = np.empty((0, 0, 0), np.uint8)
    level = da.from_array(Broken(), chunks=64, name="broken", asarray=False, meta=meta)
    image = dataclasses.replace(tiny_section.image, levels=(level,))
    with pytest.raises(StoreError, match="the disk is gone"):
        write_result(tmp_path / "o.zarr", rgba, AFFINE, dataclasses.replace(tiny_section, image=image), None, {})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("pixels", "affine", "provenance", "says"),
    [
        (np.zeros((5, 5, 3), np.uint8), AFFINE, {}, r"\(h, w, 4\) uint8"),
        (np.zeros((5, 5, 4), np.float32), AFFINE, {}, r"\(h, w, 4\) uint8"),
        (np.zeros((0, 5, 4), np.uint8), AFFINE, {}, r"\(h, w, 4\) uint8"),
        (np.zeros((5, 5, 4), np.uint8), np.eye(2), {}, r"\(3, 3\) matrix"),
        (np.zeros((5, 5, 4), np.uint8), AFFINE * np.nan, {}, r"\(3, 3\) matrix"),
        (np.zeros((5, 5, 4), np.uint8), AFFINE, {"model": object()}, "JSON cannot"),
    ],
)
def test_what_is_no_result_is_refused(pixels, affine, provenance, says, tiny_section, tmp_path):
    with pytest.raises(StoreError, match=says):
        write_result(tmp_path / "o.zarr", pixels, affine, tiny_section, None, provenance)
    assert os.listdir(tmp_path) == []


def test_missing_results_are_named(store, tmp_path):
    with pytest.raises(StoreError, match="its results: stmdit_1"):
        read_result(store, "stmdit_7")
    with pytest.raises(StoreError, match="there is no store"):
        list_results(tmp_path / "nothing.zarr")


def test_a_synthetic_section_stays_so_without_a_stated_slide(tiny_section, rgba, tmp_path):
    made = dataclasses.replace(tiny_section, synthetic=True, notes=("synthetic: dice", "found by size"), image=None)
    write_result(tmp_path / "o.zarr", rgba, AFFINE, made, None, {})
    again = open_section(tmp_path / "o.zarr")
    assert again.synthetic and again.image is None
    assert again.notes[:2] == ("synthetic: dice", "of the original section: found by size")


def test_images_that_are_no_results_are_named_and_hide_none_of_the_others(store, tiny_section, rgba):
    import zarr
    from spatialdata import read_zarr
    from spatialdata.models import Image2DModel

    from napari_stmdit.synthesis.stored import read_stored

    write_result(store, rgba, AFFINE, tiny_section, "broken", {})
    write_result(store, rgba, AFFINE, tiny_section, "forgotten", {})
    sdata = read_zarr(store)
    for name, channels, kind in (("stmdit_mine", 4, np.uint8), ("stmdit_grey", 1, np.float32)):
        sdata[name] = Image2DModel.parse(np.zeros((channels, 20, 20), kind), dims=("c", "y", "x"))
        sdata.write_element(name)
    root = zarr.open_group(store, mode="r+", use_consolidated=False)
    attrs = dict(root.attrs)
    attrs["stmdit"]["stmdit_forgotten"] = {"registration": {"pixel_to_fullres_yx": "nonsense"}}
    attrs["stmdit"]["stmdit_grey"] = attrs["stmdit"]["stmdit_1"]
    root.attrs.put(attrs)
    zarr.consolidate_metadata(root.store)
    (store / "images" / "stmdit_broken" / "zarr.json").write_text("{ cut of")
    found = read_stored(open_section(store))
    assert [one.element for one in found.results] == ["stmdit_1"]
    assert set(found.left_out) == {"stmdit_mine", "stmdit_grey", "stmdit_broken", "stmdit_forgotten"}
    np.testing.assert_array_equal(np.asarray(found.results[0].rgba), rgba)
    assert len(found.notes) == 4


def test_a_stored_result_comes_with_its_halvings(tiny_section, tmp_path):
    from napari_stmdit.synthesis.stored import stored_results

    pixels = np.full((2300, 900, 4), 255, np.uint8)
    write_result(tmp_path / "o.zarr", pixels, AFFINE, tiny_section, None, {})
    (stored,) = stored_results(open_section(tmp_path / "o.zarr"))
    assert [level.shape[:2] for level in stored.levels] == [(2300, 900), (1150, 450), (575, 225), (287, 112)]
    assert stored.levels[0] is stored.rgba


# --- the slide that a store was made from


@pytest.fixture
def small_slide(monkeypatch):
    """Stores keep a smaller picture of the slide than the slide itself."""
    monkeypatch.setattr("napari_stmdit.tissue.elements.MAX_SLIDE_PX", 300)


def kept(tmp_path, tiny_folder, rgba, name="out.zarr"):
    """A folder with a section and, beside it, a store that was made from it."""
    shutil.copytree(tiny_folder, tmp_path / "study" / "section")
    section = open_section(tmp_path / "study" / "section")
    write_result(tmp_path / "study" / name, rgba, AFFINE, section, None, {})
    return section, tmp_path / "study" / name


def test_a_store_is_continued_from_the_slide_it_was_made_from(tmp_path, tiny_folder, rgba, small_slide):
    section, path = kept(tmp_path, tiny_folder, rgba)
    again = open_section(path)
    assert again.image.pixel_size == 1 and again.image.file == section.image.file
    np.testing.assert_array_equal(np.asarray(again.image.levels[0]), np.asarray(section.image.levels[0]))
    assert synthesis_fault(again, 0.7) is None
    assert any("which this store was made from" in note for note in again.notes)


def test_a_store_that_was_moved_with_its_slide_finds_it(tmp_path, tiny_folder, rgba, small_slide):
    section, _ = kept(tmp_path, tiny_folder, rgba)
    os.rename(tmp_path / "study", tmp_path / "elsewhere")
    again = open_section(tmp_path / "elsewhere" / "out.zarr")
    assert again.image.file == tmp_path / "elsewhere" / "section" / section.image.file.name


@pytest.mark.parametrize("how", ["gone", "changed"])
def test_a_slide_that_is_gone_or_another_is_said_and_not_used(tmp_path, tiny_folder, rgba, small_slide, how):
    section, path = kept(tmp_path, tiny_folder, rgba)
    slide = section.image.file
    if how == "gone":
        slide.rename(tmp_path / "away.png")
    else:
        content = slide.read_bytes()
        slide.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # of the same size
    again = open_section(path)
    assert again.image.pixel_size > 1
    words = "is not there any more" if how == "gone" else "is no longer the file"
    assert words in synthesis_fault(again, 0.7) and "--fullres" in synthesis_fault(again, 0.7)
    assert any(words in note and str(slide) in note for note in again.notes)
    if how == "gone":
        assert open_section(path, fullres=tmp_path / "away.png").image.pixel_size == 1


def test_the_slide_of_a_store_may_lie_in_another_store(tmp_path, tiny_zarr, rgba, small_slide):
    section = open_section(tiny_zarr)
    write_result(tmp_path / "out.zarr", rgba, AFFINE, section, None, {})
    again = open_section(tmp_path / "out.zarr")
    assert again.image.pixel_size == section.image.pixel_size
    np.testing.assert_array_equal(np.asarray(again.image.levels[0]), np.asarray(section.image.levels[0]))


@pytest.mark.parametrize("record", [3, {"path": 4}, {"path": "x", "shape": [1], "pixel_size": 1}, {}])
def test_a_damaged_record_of_a_slide_is_passed_over(tmp_path, record):
    from napari_stmdit.tissue.original_slide import find_original

    assert find_original(record, tmp_path) is None
