"""Results that were read back from a store: the same patches, the same places, the same exports as the run's own."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from standins import NoiseModel, card_for, make_section

from napari_stmdit.errors import StoreError
from napari_stmdit.intent import Request
from napari_stmdit.progress import CancelToken
from napari_stmdit.regions import SpotList
from napari_stmdit.synthesis.result import export_result, finished, patch_table
from napari_stmdit.synthesis.session import synthesize
from napari_stmdit.synthesis.stored import stored_results
from napari_stmdit.tissue.open import open_section
from napari_stmdit.tissue.store import write_result
from napari_stmdit.tissue.store_entries import PATCHES, read_result, read_stored_patches


@pytest.fixture(scope="module")
def section():
    return make_section(rows=8, columns=8)


@pytest.fixture(scope="module")
def model(section):
    """Patches of 160 um on spots 100 um apart: neighbours overlap."""
    return NoiseModel(card_for(tuple(section.spots.genes.symbols.tolist()), patch_px=160, patch_mpp=1.0))


@pytest.fixture(scope="module")
def request_(section):
    return Request(region=SpotList(ids=tuple(section.spots.ids[10:16].tolist())), seed=5)


@pytest.fixture(scope="module", params=["memory", "disk"])
def saved(request, section, model, request_, tmp_path_factory):
    """A run, in memory and on disk, and what its store gives back."""
    place = tmp_path_factory.mktemp("saved")
    folder = place / "run" if request.param == "disk" else None
    result = synthesize(section, request_, model, folder=folder)
    pixels = np.asarray(result.patches)
    result.save(place / "out.zarr")
    (stored,) = stored_results(open_section(place / "out.zarr"))
    return result, pixels, stored


def test_patches_come_back_as_they_were_made(saved):
    result, pixels, stored = saved
    again, fresh = finished(stored), finished(result)
    assert again.source == fresh.source == "as made"
    for k, patch in enumerate(again.patches):
        np.testing.assert_array_equal(again.pixels(k), pixels[k])
        own = result.plan.patches[result.done[k]]
        assert (patch.spot_id, patch.row, patch.seed) == (own.spot_id, own.row, own.seed)
        assert patch.canvas_box == own.canvas_box
        assert patch.source_box == pytest.approx(own.source_box)


def test_the_store_stays_a_spatialdata_store(saved, tmp_path):
    """SpatialData passes the patches over; what it writes anew lacks them, and then they are cut from the image, which is said."""
    from spatialdata import read_zarr

    _, pixels, stored = saved
    sdata = read_zarr(stored.store)
    assert not any(PATCHES in name for _, name, _ in sdata.gen_elements())
    sdata.write(tmp_path / "anew.zarr")
    (again,) = stored_results(open_section(tmp_path / "anew.zarr"))
    cut = finished(again)
    assert cut.source == "cut from the blended canvas"
    y0, x0, y1, x1 = cut.patches[2].canvas_box
    np.testing.assert_array_equal(cut.pixels(2), np.asarray(stored.rgba)[y0:y1, x0:x1, :3])
    assert (cut.pixels(2) != pixels[2]).any()  # it overlaps its neighbours
    side = pixels.shape[1]
    middle = slice(side // 2 - 4, side // 2 + 4)
    np.testing.assert_array_equal(cut.pixels(2)[middle, middle], pixels[2][middle, middle])
    assert patch_table(finished(again)).pixels.unique().tolist() == ["cut from the blended canvas"]


@pytest.mark.parametrize("kind", ["ome-zarr", "ome-tiff", "patches"])
def test_a_stored_result_is_exported_as_the_run_was(saved, tmp_path, kind):
    result, pixels, stored = saved
    ours, theirs = (export_result(one, tmp_path / name, kind) for one, name in ((result, "run"), (stored, "stored")))
    if kind == "patches":
        tables = [pd.read_parquet(path / "patches.parquet") for path in (ours, theirs)]
        assert tables[0].drop(columns="section").equals(tables[1].drop(columns="section"))
        for file in tables[0].file:
            assert (ours / file).read_bytes() == (theirs / file).read_bytes()
        records = [json.loads((path / "provenance.json").read_text()) for path in (ours, theirs)]
        assert records[0] == records[1]
    elif kind == "ome-tiff":
        import tifffile

        np.testing.assert_array_equal(tifffile.imread(ours), tifffile.imread(theirs))
    else:
        import zarr

        groups = [zarr.open_group(path, mode="r") for path in (ours, theirs)]
        first = [next(g[name] for name in sorted(g.array_keys()))[:] for g in groups]
        np.testing.assert_array_equal(*first)
        scales = [group.attrs["ome"]["multiscales"][0]["datasets"] for group in groups]
        assert scales[0] == scales[1]


def remove(store, element):
    from spatialdata import read_zarr

    sdata = read_zarr(store)
    del sdata.images[element]
    sdata.delete_element_from_disk(element)


def test_patches_of_another_result_are_not_taken_for_its_own(saved, tmp_path):
    """A name that is used again: the patches of the element that was removed do not come with it."""
    result, _, stored = saved
    store = tmp_path / "out.zarr"
    shutil.copytree(stored.store, store)
    rgba, affine, record = read_result(store, stored.element)
    assert read_stored_patches(store, stored.element, record) is not None
    assert read_stored_patches(store, stored.element, {**record, "created": "another time"}) is None
    remove(store, stored.element)
    other = {**record, "created": "later"}
    write_result(store, np.asarray(rgba), affine, result.section, stored.element, other)
    assert read_stored_patches(store, stored.element, other) is None
    remove(store, stored.element)
    mine = np.asarray(stored.patches)
    write_result(store, np.asarray(rgba), affine, result.section, stored.element, other, mine)
    np.testing.assert_array_equal(np.asarray(read_stored_patches(store, stored.element, other)), mine)


def test_a_write_that_fails_leaves_no_patches(saved, tmp_path, monkeypatch):
    result, pixels, stored = saved
    store = tmp_path / "out.zarr"
    shutil.copytree(stored.store, store)

    def broken(_):
        raise OSError("No space left on device")

    monkeypatch.setattr("napari_stmdit.tissue.store._consolidate", broken)
    with pytest.raises(StoreError, match="No space left"):
        write_result(store, np.asarray(stored.rgba), stored.pixel_to_fullres, result.section, "b", {}, pixels)
    assert [path.name for path in (store / PATCHES).iterdir() if path.is_dir()] == [stored.element]


def test_the_folder_of_the_run_is_not_needed_afterwards(section, model, request_, tmp_path):
    result = synthesize(section, request_, model, folder=tmp_path / "run")
    pixels = np.asarray(result.patches)
    result.save(tmp_path / "out.zarr")
    result.canvas.discard()
    (stored,) = stored_results(open_section(tmp_path / "out.zarr"))
    np.testing.assert_array_equal(np.asarray(stored.patches), pixels)


def test_a_stopped_run_keeps_what_is_done(section, model, request_, tmp_path):
    cancel = CancelToken()

    def stop(progress):
        if progress.patches_done >= 2:
            cancel.cancel()

    result = synthesize(section, request_, model, batch=1, cancel=cancel, on_progress=stop, folder=tmp_path / "run")
    assert 0 < len(result.done) < len(result.plan)
    result.save(tmp_path / "out.zarr")
    (stored,) = stored_results(open_section(tmp_path / "out.zarr"))
    again = finished(stored)
    assert len(again) == len(result.done) and again.source == "as made"
    np.testing.assert_array_equal(again.pixels(1), np.asarray(result.patches)[1])


def test_a_scale_that_the_user_gave_is_kept(section, model, request_, tmp_path):
    """A store that says nothing of the scale, or something else: what the result was made with counts."""
    result = synthesize(section, request_, model)
    result.save(tmp_path / "out.zarr")
    (stored,) = stored_results(open_section(tmp_path / "out.zarr", mpp=0.6))
    again = finished(stored)
    assert again.section.calibration.mpp == section.calibration.mpp
    np.testing.assert_allclose(patch_table(finished(stored)).y_um, patch_table(finished(result)).y_um)


def test_a_record_that_does_not_fit_is_refused(saved):
    from dataclasses import replace

    _, _, stored = saved
    for broken in (
        {"patches": {**stored.provenance["patches"], "spots": ["nobody"] * 6}},
        {"patches": {**stored.provenance["patches"], "seeds": []}},
        {"checkpoint": {}},
        {"section": {}},
    ):
        with pytest.raises(StoreError, match="does not fit its section"):
            finished(replace(stored, provenance={**stored.provenance, **broken}))


# --- seamless tissue


def test_patches_are_cut_from_seamless_tissue_where_it_is_whole(section, model, request_, tmp_path):
    """A canvas with a hole: spots whose patch is not wholly filled are left out and counted."""
    result = synthesize(section, request_, model)
    rgba = np.random.default_rng(0).integers(0, 255, result.rgba.shape, dtype=np.uint8)
    rgba[..., 3] = 255
    record = {
        **dict(result.provenance),
        "request": {**result.provenance["request"], "mode": "continuous"},
        "continuous": {"tiles_yx_fullres": [[0, 0, 1, 1]]},
    }
    del record["patches"]
    spots = {patch.spot_id: patch for patch in result.plan.patches}
    hurt = list(spots)[0]
    y0, x0, y1, x1 = spots[hurt].canvas_box
    rgba[y0 + 2, x0 + 3, 3] = 0
    write_result(tmp_path / "out.zarr", rgba, result.plan.frame.affine, section, None, record)
    (stored,) = stored_results(open_section(tmp_path / "out.zarr"))
    again = finished(stored)
    assert again.source == "cut from the seamless canvas"
    found = {patch.spot_id: patch for patch in again.patches}
    whole = {
        spot
        for spot, patch in spots.items()
        if rgba[patch.canvas_box[0] : patch.canvas_box[2], patch.canvas_box[1] : patch.canvas_box[3], 3].all()
    }
    assert hurt not in whole and whole
    assert set(found) & set(spots) == whole
    for k, patch in enumerate(again.patches):
        if patch.spot_id in spots:
            own = spots[patch.spot_id]
            assert patch.canvas_box == own.canvas_box and patch.source_box == pytest.approx(own.source_box)
        y0, x0, y1, x1 = patch.canvas_box
        np.testing.assert_array_equal(again.pixels(k), rgba[y0:y1, x0:x1, :3])
    assert again.left_out >= 1
    path = export_result(stored, tmp_path / "patches", "patches")
    assert len(pd.read_csv(path / "patches.csv")) == len(again)
