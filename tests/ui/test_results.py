"""Queue, results and close-ups with napari's viewer model: no Qt, no screen."""

from dataclasses import replace

import numpy as np
import pytest
from models_for_ui import ByHand, Tinted
from napari.components import ViewerModel
from presenting import EDIT, presenter_with, run
from standins import NoiseModel, card_for
from tiny import TINY_GENES

from napari_stmdit.edits import KnockOut, Swap, Towards
from napari_stmdit.regions import AllSpots
from napari_stmdit.ui import layers
from napari_stmdit.ui.presenter import Presenter
from napari_stmdit.ui.state import RunStatus

# --- queue


def test_pressing_run_amid_a_run_queues_it(presenter, by_hand):
    presenter.select(presenter.state.section.spots.ids[:3].tolist())
    for seed in (1, 2, 3):
        presenter.state.request = presenter.state.request.model_copy(update={"seed": seed})
        presenter.runs.run()
    assert presenter.state.status is RunStatus.RUNNING
    assert [q.title for q in presenter.state.queue] == ["3 patches, seed 2", "3 patches, seed 3"]
    presenter.state.request = presenter.state.request.model_copy(update={"seed": 99})  # what is queued is frozen
    presenter.queue.remove(presenter.state.queue[0].number)
    assert [q.title for q in presenter.state.queue] == ["3 patches, seed 3"]
    by_hand.finish()
    assert not presenter.state.queue
    assert presenter.state.status is RunStatus.RUNNING
    by_hand.finish()
    assert presenter.state.status is RunStatus.DONE
    assert [e.request.seed for e in presenter.state.results] == [1, 3]


def test_a_stopped_run_holds_the_queue_until_the_user_goes_on(presenter, by_hand):
    presenter.select(presenter.state.section.spots.ids[:9].tolist())
    presenter.state.batch = 4
    presenter.runs.run()
    presenter.runs.run()
    while presenter.state.progress is None or not presenter.state.progress.patches_done:
        by_hand.step()
    presenter.stop()
    by_hand.finish()
    assert presenter.state.status is RunStatus.STOPPED
    assert presenter.state.queue_held
    assert "1 queued" in presenter.state.message.text
    assert presenter.state.message.offers == ("go_on",)
    presenter.queue.resume()
    assert presenter.state.status is RunStatus.RUNNING
    by_hand.finish()
    assert presenter.state.status is RunStatus.DONE


def test_what_is_queued_goes_with_its_section(presenter, by_hand, tiny_folder):
    from napari_stmdit.tissue.open import open_section

    presenter.select_all()
    presenter.runs.run()
    presenter.runs.run()
    presenter.show(open_section(tiny_folder))
    assert not presenter.state.queue
    assert not presenter.state.status.busy


def test_samples_become_results_with_seeds_of_their_own(presenter, by_hand):
    presenter.select(presenter.state.section.spots.ids[:2].tolist())
    presenter.state.samples = 3
    presenter.runs.preview()
    assert presenter.state.estimate.patches == 6
    presenter.runs.run()
    while presenter.state.status.busy:
        by_hand.finish()
    seeds = [e.request.seed for e in presenter.state.results]
    assert len(set(seeds)) == 3 and seeds[0] == 0
    assert not np.array_equal(presenter.state.results[0].result.rgba, presenter.state.results[1].result.rgba)


def test_the_live_look_is_a_layer_in_place_that_goes(presenter, viewer, by_hand, monkeypatch):
    monkeypatch.setattr("napari_stmdit.ui.runs.REFRESH_S", 0.0)
    presenter.runs.live_preview, presenter.state.batch = True, 4
    presenter.select(presenter.state.section.spots.ids[:6].tolist())
    presenter.runs.run()
    seen = []
    while by_hand.step():
        found = [x for x in viewer.layers if layers.role_of(x) == "preview"]
        if found:
            side = presenter.state.checkpoint.card.patch_px
            middle = found[0].data_to_world(((side - 1) / 2, (side - 1) / 2))
            at = np.asarray(presenter.view.spots.world_to_data(middle))
            distance = np.abs(presenter.state.section.spots.yx - at).max(axis=1)
            assert distance.min() <= 0.51  # the middle of the patch is a spot's centre, but for the canvas grid
            seen.append(int(distance.argmin()))
    assert set(seen) == {0, 4}  # the first patch of each batch of four
    assert [layers.role_of(x) for x in viewer.layers] == ["slide", "result", "spots"]
    assert presenter.state.results[0].result.rgba[..., 3].any()


def test_what_fails_after_a_run_does_not_hold_the_queue(presenter, by_hand):
    def fails(number):
        raise KeyError("as napari does amid drawing")

    presenter.select(presenter.state.section.spots.ids[:3].tolist())
    presenter.runs.submit(presenter.runs.request(), fails)
    presenter.runs.run()
    with pytest.raises(KeyError):
        by_hand.finish()
    assert presenter.state.status is RunStatus.RUNNING and not presenter.state.queue
    by_hand.finish()
    assert presenter.state.status is RunStatus.DONE and len(presenter.state.results) == 2


# --- results


def test_renaming_keeps_saying_that_it_is_synthetic(presenter, by_hand):
    number = run(presenter, by_hand)
    presenter.results.rename(number, "tumour")
    assert presenter.state.results[0].name == "tumour (synthetic)" == presenter.results.layer(number).name
    presenter.results.layer(number).name = "by napari"  # a name is no identity
    assert presenter.state.results[0].name == "by napari (synthetic)" == presenter.results.layer(number).name
    presenter.results.delete(number)
    assert not presenter.state.results


def test_a_copy_by_napari_is_no_layer_of_ours_and_still_says_that_it_is_synthetic(presenter, viewer, by_hand):
    from napari.layers._layer_actions import _duplicate_layer, _split_rgb

    number = run(presenter, by_hand)
    own = [presenter.view.slide, presenter.results.layer(number), presenter.view.spots]
    for layer in own:
        viewer.layers.selection = {layer}
        _duplicate_layer(viewer.layers)
    assert [layers.role_of(x) for x in viewer.layers] == ["slide", None, "result", None, "spots", None]
    copy = viewer.layers[3]
    copy.name = "mine"
    assert copy.name == "mine (synthetic)"
    viewer.layers.selection.active = own[1]
    _split_rgb(viewer.layers)
    assert not presenter.state.results
    assert [layers.role_of(x) for x in viewer.layers if layers.role_of(x)] == ["slide", "spots"]


def test_copies_that_were_there_before_the_dock_are_not_taken_for_the_section(tiny_section, by_hand):
    from napari.layers._layer_actions import _duplicate_layer

    viewer = ViewerModel()
    for data in layers.section_layers(tiny_section):
        viewer.layers.selection = {viewer.add_layer(layers.make(data))}
        _duplicate_layer(viewer.layers)
    made = Presenter(viewer, by_hand)
    made.adopt()
    assert [layers.role_of(x) for x in viewer.layers] == ["slide", None, "spots", None]
    assert (made.view.slide, made.view.spots) == (viewer.layers[0], viewer.layers[2])


def test_run_again_gives_the_same_pixels(presenter, by_hand):
    number = run(presenter, by_hand, edits=(EDIT, KnockOut(genes=("KRT8",), strength=0.3)), seed=12)
    presenter.state.request = presenter.state.request.model_copy(update={"seed": 1, "edits": ()})
    assert presenter.runs.run_again(number)
    by_hand.finish()
    first, second = presenter.state.results
    np.testing.assert_array_equal(first.result.rgba, second.result.rgba)
    assert first.request == second.request
    presenter.reuse(number)
    assert presenter.state.request.seed == 12
    assert presenter.state.selected == first.spots


def test_settings_of_another_section_come_without_its_spots(presenter, by_hand, tiny_section):
    ids = tiny_section.spots.ids.tolist()
    edits = (
        KnockOut(genes=("KRT8",), spots={ids[0]: 0.5}, strength=0.3),
        Swap(group_a=(ids[0],), group_b=(ids[1],), name="swapped"),
        Towards(target_spots=(ids[4],), genes=("ERBB2",)),
    )
    number = run(presenter, by_hand, edits=edits, seed=12, morphology=ids[2])
    shifted = replace(tiny_section.spots, yx=tiny_section.spots.yx + 3)  # the same ids elsewhere
    presenter.show(replace(tiny_section, name="other", path=None, spots=shifted))
    presenter.select(ids[7:9])
    presenter.reuse(number)
    request = presenter.state.request
    assert request.seed == 12 and request.edits == (KnockOut(genes=("KRT8",), strength=0.3),)
    assert request.morphology == "own" and request.region == AllSpots()
    assert presenter.state.selected == tuple(ids[7:9]) and not presenter.state.painted
    text = presenter.state.message.text
    assert f"It was made from {tiny_section.name}: its spots are not taken, nor what names them: swapped;" in text


def test_a_stored_result_keeps_its_name(presenter, by_hand, tmp_path):
    from napari_stmdit.synthesis.stored import stored_results
    from napari_stmdit.tissue.open import open_section

    store = tmp_path / "out.zarr"
    names = []
    for name in ("my favourite", ""):
        number = run(presenter, by_hand, edits=(EDIT,))
        presenter.results.rename(number, name)
        names.append(presenter.results.entry(number).name)
        presenter.results.save(number, str(store))
        by_hand.finish()
    presenter.state.results[1].result.save(store)  # as a script does, which gives no name
    found = stored_results(open_section(store))
    assert [layers.stored_layer(one)[1]["name"] for one in found] == [
        *names,
        "more ERBB2, 3 spots (synthetic, stmdit_3)",
    ]
    assert names[0] == "my favourite (synthetic)"
    bare = replace(found[0], provenance={**found[0].provenance, "name": "photograph"})
    assert layers.stored_layer(bare)[1]["name"] == "photograph (synthetic)"
    nothing = replace(found[0], provenance={})
    assert layers.stored_layer(nothing)[1]["name"] == "synthetic (stmdit_1)"


def test_run_again_with_another_checkpoint_is_refused(presenter, by_hand, card):
    number = run(presenter, by_hand)
    other = NoiseModel(card)
    other.provenance = {**other.provenance, "sha256": "1" * 64}
    presenter.use_model(other)
    assert not presenter.runs.run_again(number)
    assert "load that one first" in presenter.state.message.text


@pytest.mark.parametrize(("kind", "made"), [("ome-zarr", "x.zarr"), ("ome-tiff", "x.ome.tif"), ("patches", "x")])
def test_exports_say_where_they_went(presenter, by_hand, tmp_path, kind, made):
    number = run(presenter, by_hand)
    presenter.results.export(number, str(tmp_path / "x"), kind)
    by_hand.finish()
    assert (tmp_path / made).exists()
    assert made in presenter.state.results[0].saved
    presenter.results.export(number, str(tmp_path / "x"), kind)
    by_hand.finish()
    assert "already there" in presenter.state.message.text


def test_a_save_that_fails_is_told_though_another_one_follows(presenter, by_hand, tmp_path):
    one, two = run(presenter, by_hand), run(presenter, by_hand, seed=2)
    (tmp_path / "file").write_text("no folder")
    presenter.results.save(one, str(tmp_path / "file" / "out.zarr"))
    presenter.results.save(two, str(tmp_path / "out.zarr"))
    presenter.results.save(one, str(tmp_path / "out.zarr"))
    assert presenter.state.busy == "Saving the result"
    for _ in range(3):
        by_hand.finish()
    assert presenter.state.busy == ""
    first, second = (presenter.results.entry(number) for number in (one, two))
    assert second.saved.endswith("as stmdit_1") and first.saved.endswith("as stmdit_2")
    assert presenter.state.message.kind == "error"
    assert f"{first.name} was not saved" in presenter.state.message.text and "stmdit_2" in presenter.state.message.text
    presenter.results.save(two, str(tmp_path / "more.zarr"))
    by_hand.finish()
    assert presenter.state.message.kind == "info"


def test_closing_the_dock_amid_saves_loses_none(presenter, by_hand, tmp_path):
    from napari_stmdit.tissue.store_entries import list_results

    numbers = run(presenter, by_hand), run(presenter, by_hand, seed=2)
    before = len(by_hand.open)
    for number in numbers:
        presenter.results.save(number, str(tmp_path / "out.zarr"))
    presenter.close()
    for number in range(before, len(by_hand.open)):
        by_hand.finish(number)
    assert list_results(tmp_path / "out.zarr") == ("stmdit_1", "stmdit_2")


def test_a_large_stored_result_is_drawn_from_its_halvings(tiny_section, tmp_path):
    from napari_stmdit.synthesis.stored import stored_results
    from napari_stmdit.tissue.open import open_section
    from napari_stmdit.tissue.store import write_result
    from napari_stmdit.ui.compare import ClippedLayer

    rgba = np.random.default_rng(0).integers(1, 255, (2300, 1101, 4), dtype=np.uint8)
    write_result(tmp_path / "o.zarr", rgba, np.eye(3), tiny_section, None, {})
    (stored,) = stored_results(open_section(tmp_path / "o.zarr"))
    shown = layers.stored_layer(stored)
    assert all(own is level for own, level in zip(shown[0], stored.levels, strict=True))  # nothing is read, nor copied
    layer = layers.make(shown)
    assert layer.multiscale
    assert [level.shape for level in layer.data] == [(2300, 1101, 4), (1150, 550, 4), (575, 275, 4), (287, 137, 4)]
    read = []
    for keep in ("right", "left"):
        curtain = ClippedLayer(layer, keep)
        for shown in curtain._shown:
            shown.own = Watched(shown.own, read)
        curtain.move(400)
        whole = np.asarray(layer.data[0])
        hidden, seen = (slice(0, 400), slice(400, None))[:: 1 if keep == "right" else -1]
        assert not whole[:, hidden, 3].any()
        np.testing.assert_array_equal(whole[:, seen], rgba[:, seen])
        np.testing.assert_array_equal(whole[..., :3], rgba[..., :3])
        read.clear()
        curtain.move(10)
        assert all(n <= 1150 * 550 * 4 for n in read)  # what is on show, not the whole
        curtain.restore()
        assert [level.shape for level in layer.data] == [level.shape for level in stored.levels]


class Watched:
    """An array that notes how much of it is read."""

    def __init__(self, own, read):
        self.own, self.read = own, read
        self.shape, self.dtype, self.ndim = own.shape, own.dtype, own.ndim

    def __getitem__(self, key):
        found = np.asarray(self.own[key])
        self.read.append(found.size)
        return found


def test_images_that_are_no_results_are_told_and_the_others_listed(presenter, by_hand, tmp_path):
    from napari.utils.notifications import notification_manager
    from spatialdata import read_zarr
    from spatialdata.models import Image2DModel

    from napari_stmdit.tissue.open import open_section
    from napari_stmdit.ui import manifest

    presenter.results.save(run(presenter, by_hand), str(tmp_path / "out.zarr"))
    by_hand.finish()
    sdata = read_zarr(tmp_path / "out.zarr")
    sdata["stmdit_mine"] = Image2DModel.parse(np.zeros((4, 20, 20), np.uint8), dims=("c", "y", "x"))
    sdata.write_element("stmdit_mine")
    viewer = ViewerModel()
    again = Presenter(viewer, by_hand)
    again.load_model = lambda choice: None
    again.show(open_section(tmp_path / "out.zarr"))
    by_hand.finish_all()
    assert len(again.state.results) == 1
    assert again.state.message.kind == "warning" and "stmdit_mine is left out" in again.state.message.text
    assert len(manifest.read_section(str(tmp_path / "out.zarr"))) == 3
    assert "stmdit_mine is left out" in notification_manager.records[-1].message


def test_a_saved_result_is_reopened_with_its_request(presenter, by_hand, tmp_path, card):
    number = run(presenter, by_hand, edits=(EDIT,), seed=5)
    before = presenter.state.results[0]
    presenter.results.save(number, str(tmp_path / "out.zarr"))
    by_hand.finish()

    from napari_stmdit.tissue.open import open_section

    viewer = ViewerModel()
    again = Presenter(viewer, by_hand)
    again.show(open_section(tmp_path / "out.zarr"))
    again.use_model(Tinted(card))
    by_hand.finish_all()
    (entry,) = again.state.results
    assert entry.request == before.request and entry.result is None
    assert entry.spots == before.spots
    assert "stmdit_1" in entry.saved
    layer = again.results.layer(entry.number)
    np.testing.assert_array_equal(np.asarray(layer.data), before.result.rgba)
    assert [layers.role_of(x) for x in viewer.layers] == ["slide", "stored", "spots"]
    again.reuse(entry.number)
    assert again.state.request.seed == 5 and again.state.selected == before.spots
    again.compare.start("fade", entry.number)
    again.compare.move(0.5)
    assert layer.opacity == 0.5
    again.compare.stop()
    again.results.delete(entry.number)
    assert not again.state.results


def test_a_stored_result_that_a_reader_brought_is_listed_once(presenter, by_hand, tmp_path):
    from napari_stmdit.ui import manifest

    number = run(presenter, by_hand)
    presenter.results.save(number, str(tmp_path / "out.zarr"))
    by_hand.finish()
    viewer = ViewerModel()
    again = Presenter(viewer, by_hand)
    for data in manifest.read_section(str(tmp_path / "out.zarr")):
        viewer.add_layer(layers.make(data))
    assert [layers.role_of(x) for x in viewer.layers] == ["slide", "stored", "spots"]
    assert len(again.state.results) == 1


# --- a section whose spots the user removed


def other_than(section):
    return replace(section, name="another", path=None)


def test_nothing_of_a_section_without_spots_lies_over_the_next(presenter, viewer, by_hand, tiny_section):
    number = run(presenter, by_hand)
    left = [x for x in viewer.layers if layers.role_of(x) != "spots"]
    viewer.layers.remove(presenter.view.spots)
    assert presenter.view is None and not any(layer.visible for layer in left)
    presenter.show(other_than(tiny_section))
    assert sorted(layers.role_of(x) for x in viewer.layers) == ["result", "slide", "spots"]
    assert presenter.view.slide.visible
    assert [entry.visible for entry in presenter.state.results] == [False]
    presenter.show(replace(tiny_section))
    presenter.results.show(number, True)  # as after another section
    assert presenter.results.entry(number).visible and len(presenter.state.results) == 1
    assert sorted(layers.role_of(x) for x in viewer.layers) == ["result", "slide", "spots"]


def test_stored_results_are_read_again_with_a_section_whose_spots_were_removed(presenter, by_hand, tmp_path, card):
    from napari_stmdit.tissue.open import open_section

    store = tmp_path / "out.zarr"
    presenter.results.save(run(presenter, by_hand), str(store))
    by_hand.finish()
    viewer = ViewerModel()
    again = presenter_with(viewer, open_section(store), card, by_hand)
    by_hand.finish_all()
    assert len(again.state.results) == 1
    viewer.layers.remove(again.view.spots)
    again.show(open_section(store))
    by_hand.finish_all()
    assert [entry.visible for entry in again.state.results] == [True]
    assert [layers.role_of(x) for x in viewer.layers] == ["slide", "stored", "spots"]


@pytest.mark.parametrize("how", ["clear", "remove_selected"])
def test_all_layers_may_be_removed_at_once(presenter, viewer, by_hand, tiny_section, how):
    run(presenter, by_hand)
    viewer.layers.select_all()
    getattr(viewer.layers, how)()
    assert not len(viewer.layers) and presenter.view is None and not presenter.state.results
    presenter.show(other_than(tiny_section))
    assert [layers.role_of(x) for x in viewer.layers] == ["slide", "spots"]


# --- one spot


def test_the_close_up_shows_real_baseline_and_edited_of_one_spot(presenter, by_hand):
    run(presenter, by_hand)
    run(presenter, by_hand, edits=(EDIT,))
    ids = presenter.state.section.spots.ids.tolist()
    presenter.state.hovered = ids[1]
    presenter.close_ups.look()
    by_hand.finish()
    found = presenter.state.close_up
    assert found.spot == ids[1]
    assert list(found.patches) == ["real", "baseline", "edited"]
    base, edited = (e.result for e in presenter.state.results)
    np.testing.assert_array_equal(found.patches["baseline"], base.patches[1])
    np.testing.assert_array_equal(found.patches["edited"], edited.patches[1])
    presenter.state.hovered = None
    presenter.select([ids[20]])
    presenter.close_ups.look()
    by_hand.finish()
    assert presenter.state.close_up.spot == ids[20]
    assert list(presenter.state.close_up.patches) == ["real"]
    assert "Not synthesized" in presenter.state.close_up.words


def test_the_mouse_points_at_spots(presenter, viewer):
    spots = presenter.state.section.spots

    class Event:
        position = viewer.layers[-1].data_to_world(spots.yx[4])

    viewer.mouse_move_callbacks[-1](viewer, Event)
    assert presenter.state.hovered == spots.ids[4]
    Event.position = viewer.layers[-1].data_to_world(spots.yx[4] + spots.diameter)
    viewer.mouse_move_callbacks[-1](viewer, Event)
    assert presenter.state.hovered is None


# --- sheets


def test_sheets_wait_their_turn_and_can_be_stopped(presenter, by_hand):
    ids = presenter.state.section.spots.ids.tolist()
    presenter.select(ids[:9])
    presenter.sheets.dose_strip(ids[0])
    assert "switched on" in presenter.state.message.text
    presenter.state.request = presenter.state.request.model_copy(update={"edits": (EDIT,)})
    presenter.runs.run()
    presenter.sheets.dose_strip(ids[0])
    assert [q.title for q in presenter.state.queue] == ["Dose strip, more ERBB2: 7 images"]
    by_hand.finish()
    assert presenter.sheets.busy
    by_hand.finish()
    assert presenter.state.status is RunStatus.DONE
    assert len(presenter.state.sheet.cells) == 7
    presenter.sheets.guidance_grid(ids[3])
    while presenter.state.sheet is None or len(presenter.state.sheet.cells) < 2:
        by_hand.step()
    presenter.stop()
    by_hand.finish()
    assert presenter.state.status is RunStatus.STOPPED
    assert len(presenter.state.sheet.cells) == 2
    assert presenter.state.sheet.spot == ids[3]


# --- files of results that were read back, and data sets


@pytest.fixture(scope="module")
def store_of_two(tiny_folder, tmp_path_factory):
    """A store with a baseline and its edit. Do not write in it."""
    from napari_stmdit.tissue.open import open_section

    path, viewer, by_hand = tmp_path_factory.mktemp("two") / "out.zarr", ViewerModel(), ByHand()
    section = open_section(tiny_folder)
    presenter = presenter_with(viewer, section, card_for(TINY_GENES, patch_px=64, patch_mpp=0.7), by_hand)
    for edits in ((), (EDIT,)):
        presenter.results.save(run(presenter, by_hand, edits=edits), str(path))
        by_hand.finish()
    return path


@pytest.fixture
def read_back(presenter, by_hand, store_of_two, card):
    """A baseline and its edit, out of a store; the two entries of a viewer that made them, too."""
    for edits in ((), (EDIT,)):
        run(presenter, by_hand, edits=edits)
    from napari_stmdit.tissue.open import open_section

    viewer = ViewerModel()  # a presenter holds it weakly
    again = Presenter(viewer, by_hand)
    again.show(open_section(store_of_two))
    again.use_model(Tinted(card))
    by_hand.finish_all()
    yield again, presenter.state.results


def test_no_lazy_layer_of_ours_turns_on_the_cache_of_all_of_dask(presenter, viewer, by_hand, read_back):
    number = run(presenter, by_hand)
    presenter.compare.start("grid", number)
    others = [presenter._viewer(), read_back[0]._viewer()]
    images = [x for one in others for x in one.layers if type(x).__name__ == "Image"]
    assert {layers.role_of(x) for x in images} >= {"slide", "context", "stored"}
    for layer in images:
        with layer.dask_optimized_slicing() as found:
            assert found is None or found[1] is None, layer.name


@pytest.mark.parametrize(("kind", "made"), [("ome-tiff", "x.ome.tif"), ("patches", "x")])
def test_a_result_that_was_read_back_is_exported(read_back, by_hand, tmp_path, kind, made):
    again, fresh = read_back
    entry = again.state.results[1]
    assert entry.result is None
    again.results.export(entry.number, str(tmp_path / "x"), kind)
    by_hand.finish()
    assert made in again.state.results[1].saved, again.state.message.text
    if kind == "patches":
        import pandas as pd
        from PIL import Image

        table = pd.read_csv(tmp_path / made / "patches.csv")
        assert set(table.pixels) == {"as made"}
        for row, pixels in zip(table.itertuples(), fresh[1].result.patches, strict=True):
            np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / made / row.file)), pixels)


def test_a_close_up_of_a_stored_result_shows_the_patch_as_it_was_made(read_back, by_hand):
    again, fresh = read_back
    spot = fresh[0].spots[1]
    again.state.chosen_result = again.state.results[1].number
    again.state.hovered = spot
    again.close_ups.look()
    by_hand.finish()
    found = again.state.close_up.patches
    np.testing.assert_array_equal(found["baseline"], fresh[0].result.patches[1])
    np.testing.assert_array_equal(found["edited"], fresh[1].result.patches[1])


@pytest.mark.parametrize("stored", [False, True])
def test_a_data_set_is_written_with_the_baseline(presenter, read_back, by_hand, tmp_path, stored):
    import anndata

    desk = read_back[0] if stored else presenter
    edited = desk.state.results[1]
    desk.data_sets.export(edited.number, str(tmp_path / "data"))
    assert "being written" in desk.state.exporting
    by_hand.finish()
    assert desk.state.exporting == "" and "The data set was written: 9 images" in desk.state.message.text
    obs = anndata.read_zarr(tmp_path / "data" / "anndata" / "dataset.zarr").obs
    names = ["stmdit_1", "stmdit_2"] if stored else ["run_1", "run_2"]
    assert obs.run.dropna().unique().tolist() == names
    mine = obs[obs.run == names[1]]
    assert mine.baseline_id.tolist() == [f"{names[0]}/{spot}" for spot in edited.spots]
    desk.data_sets.export(edited.number, str(tmp_path / "data"))
    by_hand.finish()
    assert "was there already" in desk.state.message.text


def test_a_data_set_is_stopped_and_goes_on(presenter, by_hand, tmp_path):
    number = run(presenter, by_hand, count=20)
    presenter.data_sets.export(number, str(tmp_path / "data"))
    by_hand.step()
    by_hand.step()
    assert "16 of 40 images" in presenter.state.exporting
    presenter.data_sets.export(number, str(tmp_path / "other"))
    assert "Stop that first" in presenter.state.message.text
    presenter.data_sets.stop()
    by_hand.finish()
    assert "Stopped" in presenter.state.message.text and not (tmp_path / "data").exists()
    presenter.data_sets.export(number, str(tmp_path / "data"))
    by_hand.finish()
    assert "was written: 40 images" in presenter.state.message.text
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine").touch()
    presenter.data_sets.export(number, str(tmp_path / "taken"))
    by_hand.finish()
    assert "nothing is overwritten" in presenter.state.message.text and presenter.state.exporting == ""
