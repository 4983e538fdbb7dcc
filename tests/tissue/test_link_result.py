import os

import numpy as np
import pytest
from standins import NoiseModel, card_for, make_section

from napari_stmdit.errors import StoreError
from napari_stmdit.intent import Request
from napari_stmdit.progress import CancelToken
from napari_stmdit.synthesis.session import synthesize
from napari_stmdit.tissue.store import link_result
from napari_stmdit.tissue.store_entries import list_results, read_result

GENES = tuple(f"GENE{k}" for k in range(40))


@pytest.fixture(scope="module")
def section():
    return make_section()


@pytest.fixture
def model():
    return NoiseModel(card_for(GENES, patch_px=160))


def levels_of(store, name):
    from spatialdata import read_zarr

    element = read_zarr(store).images[name]
    return [np.asarray(element[scale]["image"]) for scale in element.children]


def test_a_canvas_on_disk_becomes_the_element_that_one_in_memory_becomes(section, model, tmp_path):
    store = tmp_path / "o.zarr"
    assert synthesize(section, Request(), model).save(store) == "stmdit_1"
    disk = synthesize(section, Request(), model, folder=tmp_path / "run")
    assert disk.save(store) == "stmdit_2"
    disk.canvas.discard()
    assert not (tmp_path / "run").exists()
    one, two = levels_of(store, "stmdit_1"), levels_of(store, "stmdit_2")
    assert len(one) == len(two)
    for ours, theirs in zip(one, two, strict=True):
        assert np.abs(ours.astype(int) - theirs).max() <= 1
    (_, affine, record), (_, expected, _) = read_result(store, "stmdit_2"), read_result(store, "stmdit_1")
    np.testing.assert_array_equal(affine, expected)
    assert record["run_id"] == disk.canvas.run_id


def test_a_new_store_is_made_whole(section, model, tmp_path):
    result = synthesize(section, Request(), model, folder=tmp_path / "run")
    name = result.save(tmp_path / "new.zarr")
    pixels, _, _ = read_result(tmp_path / "new.zarr", name)
    np.testing.assert_array_equal(np.asarray(pixels), np.asarray(result.rgba))
    from napari_stmdit.tissue.open import open_section

    again = open_section(tmp_path / "new.zarr")
    assert len(again.spots) == len(section.spots)


def test_saving_a_run_twice_writes_it_once(section, model, tmp_path):
    """As when the process dies between saving and tidying up, and the run is taken up again."""
    store = tmp_path / "o.zarr"
    result = synthesize(section, Request(), model, folder=tmp_path / "run")
    assert result.save(store) == "stmdit_1"
    assert result.save(store) == "stmdit_1"
    again = synthesize(section, Request(), model, folder=tmp_path / "run", resume=True)
    assert again.save(store) == "stmdit_1"
    assert list_results(store) == ("stmdit_1",)


def test_a_part_that_was_saved_does_not_change_when_the_run_goes_on(section, model, tmp_path):
    store = tmp_path / "o.zarr"
    cancel = CancelToken()
    part = synthesize(
        section, Request(), model, batch=4, folder=tmp_path / "run", cancel=cancel,
        on_progress=lambda p: cancel.cancel() if p.patches_done == 8 else None,
    )  # fmt: skip
    assert part.save(store) == "stmdit_1"
    before = levels_of(store, "stmdit_1")
    whole = synthesize(section, Request(), model, folder=tmp_path / "run", resume=True)
    assert whole.save(store) == "stmdit_2"
    for ours, theirs in zip(before, levels_of(store, "stmdit_1"), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_link_that_cannot_be_made_becomes_a_copy(section, model, tmp_path, monkeypatch):
    result = synthesize(section, Request(), model, folder=tmp_path / "run")
    link = os.link

    def refuse(source, target):
        if "/run/image/" in str(source):
            raise OSError(18, "Invalid cross-device link")
        link(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "link", refuse)
        levels = result.canvas.image_folder
        affine = result.plan.frame.affine
        name = link_result(tmp_path / "o.zarr", levels, affine, section, None, result.provenance)
    pixels, _, _ = read_result(tmp_path / "o.zarr", name)
    np.testing.assert_array_equal(np.asarray(pixels), np.asarray(result.rgba))


def test_an_image_that_is_not_there_leaves_nothing(section, tmp_path):
    with pytest.raises(StoreError, match="cannot be written"):
        link_result(tmp_path / "o.zarr", tmp_path / "nowhere", np.eye(3), section, None, {})
    assert list(tmp_path.iterdir()) == []
