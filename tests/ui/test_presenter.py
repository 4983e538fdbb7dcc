"""The presenter with napari's viewer model: no Qt, no screen."""

import gc
import sys
import weakref
from dataclasses import replace

import numpy as np
import pytest
from models_for_ui import ByHand, FailingModel
from mouse import drag
from napari.components import ViewerModel
from standins import CropModel

from napari_stmdit.errors import SectionError
from napari_stmdit.intent import Guidance, hash_genes
from napari_stmdit.progress import CancelToken
from napari_stmdit.tissue.open import SectionSource
from napari_stmdit.types import Outlines
from napari_stmdit.ui import jobs, layers
from napari_stmdit.ui.jobs import start_inline
from napari_stmdit.ui.presenter import Presenter, presenter_of
from napari_stmdit.ui.state import Colouring, ModelChoice, RunStatus


@pytest.fixture
def presenter(viewer, tiny_section, crop_model, by_hand):
    made = Presenter(viewer, by_hand)
    made.show(tiny_section)
    made.use_model(crop_model)
    return made


def selected(presenter, count=10):
    ids = presenter.state.section.spots.ids[:count].tolist()
    presenter.select(ids)
    return ids


@pytest.fixture
def of_cells(tiny_section):
    """A section of pseudo-spots: with clusters of the pipeline, and a square outline around each spot's middle."""
    spots = tiny_section.spots
    corners = np.array([(-2, -2), (-2, 2), (2, 2), (2, -2)], dtype=np.float32)
    start = spots.yx[:, None] + corners
    outlines = np.stack([start, np.roll(start, -1, axis=1)], axis=2).reshape(-1, 2, 2).astype(np.float32)
    clusters = np.where(np.arange(len(spots)) % 2, "1", "2").astype(np.str_)
    return replace(
        tiny_section, spots=replace(spots, obs={"graphclust": clusters}), outlines=Outlines(lambda: outlines)
    )


def test_other_plugins_are_served_once_nothing_is_waited_for(viewer, tiny_section, crop_model):
    begun = []
    made = Presenter(viewer, lambda job, token, handlers: begun.append(job.title))
    made.show(tiny_section)
    assert "Loading the checkpoint" in begun and "Linking with SpatialData" not in begun
    made.state.status = RunStatus.RUNNING  # the imports would hold it up
    made.use_model(crop_model)
    assert "Linking with SpatialData" not in begun
    made.state.status = RunStatus.DONE
    assert begun.count("Linking with SpatialData") == 1


@pytest.mark.parametrize(("system", "searched"), [("Linux", False), ("Windows", True)])
def test_a_layer_is_removed_without_a_search_through_all_objects(viewer, monkeypatch, system, searched):
    """Napari searches for garbage in what is not frozen; on Windows its drivers need that."""
    monkeypatch.setattr("platform.system", lambda: system)
    layer, frozen = viewer.add_image(np.zeros((4, 4))), []
    viewer.layers.events.removed.connect(lambda event: frozen.append(gc.get_freeze_count() > 1000))
    layers.remove(viewer, layer)
    assert frozen == [not searched] and gc.get_freeze_count() == 0 and layer not in viewer.layers
    layers.remove(viewer, layer)  # it is gone already


def test_genes_of_another_species_are_said_before_anything_is_selected(presenter, crop_model):
    assert not presenter.section_fault() and not presenter.state.selected
    genes = tuple(f"OTHER{k}" for k in range(20))
    other = crop_model.card.model_copy(update={"genes": genes, "gene_hash": hash_genes(genes)})
    presenter.use_model(type(crop_model)(other))
    assert "shares 0 of the 20 genes" in presenter.section_fault() and "'demo_colon'" in presenter.section_fault()
    presenter.state.request = presenter.state.request.model_copy(update={"allow_gene_mismatch": True})
    assert not presenter.section_fault()


def test_the_example_draws_its_section_while_the_checkpoint_is_loaded(viewer):
    begun = []
    Presenter(viewer, lambda job, token, handlers: begun.append(job.title)).example.show()
    assert begun == ["Opening the sample section", "Loading the checkpoint"]


def test_what_cannot_be_imported_ahead_is_told_when_a_checkpoint_is_loaded(monkeypatch):
    monkeypatch.setitem(sys.modules, "napari_stmdit.model", None)
    assert list(jobs.importing().guarded(CancelToken())) == [None]


def test_clusters_of_the_pipeline_are_what_spots_are_first_coloured_by(presenter, of_cells, tiny_section):
    state = presenter.state
    assert state.colouring == Colouring()  # the tiny section has none
    presenter.show(of_cells)
    assert state.colouring.obs == "graphclust"
    assert [name for name, _, _ in state.colour_scale.categories] == ["1", "2"]
    # a choice of the user's is kept, and nothing is left of clusters that the next section does not have
    presenter.colour(Colouring(gene="ERBB2"))
    presenter.show(replace(of_cells))
    assert state.colouring == Colouring(gene="ERBB2")
    presenter.colour(Colouring(obs="graphclust"))
    presenter.show(tiny_section)
    assert state.colouring.obs is None and not state.colour_scale.fault


def test_outlines_of_cells_are_one_hidden_layer_that_goes_with_its_section(
    viewer, presenter, of_cells, tiny_section, by_hand
):
    presenter.show(of_cells)
    slide, outlines, spots = viewer.layers
    assert [layers.role_of(layer) for layer in viewer.layers] == ["slide", "outlines", "spots"]
    assert not outlines.visible and slide.visible and viewer.layers.selection.active is spots
    outlines.visible = True
    by_hand.finish()
    picture = np.asarray(outlines.data[0] if outlines.multiscale else outlines.data)[..., 3]
    assert picture.shape == slide.data[0].shape[:2] and picture.sum() == 255 * 16 * len(of_cells.spots)
    y, x = np.floor(of_cells.spots.yx[3]).astype(int)
    assert picture[y - 2 : y + 3, x - 2 : x + 3].sum() == 255 * 16 and picture[y, x] == 0
    np.testing.assert_allclose(outlines.affine.affine_matrix, slide.affine.affine_matrix)
    presenter.show(tiny_section)
    assert [layers.role_of(layer) for layer in viewer.layers] == ["slide", "spots"]


def test_outlines_are_read_on_a_thread_when_they_are_first_shown(viewer, of_cells, tiny_section):
    """Those of a large section take seconds, which nobody who does not look at them waits for."""
    hand, asked = ByHand(), []
    made = Presenter(viewer, hand)
    pieces = of_cells.outlines.pieces
    section = replace(of_cells, outlines=Outlines(lambda: (asked.append(1), pieces)[1]))
    made.show(section)
    outlines = viewer.layers[1]
    before, busy = len(hand.open), made.state.busy
    assert not outlines.visible and not np.asarray(outlines.data).any()
    outlines.visible = True
    outlines.visible = False
    outlines.visible = True
    assert len(hand.open) == before + 1 and not asked  # the thread's, not ours
    assert "being read" in made.state.message.text and made.state.busy == busy  # Run is not kept waiting
    hand.finish()
    assert asked == [1] and np.asarray(outlines.data).any() and not made.state.message.text

    def damaged():
        raise SectionError("the file of outlines is damaged")

    made.show(replace(section, outlines=Outlines(damaged)))
    viewer.layers[1].visible = True
    hand.finish()
    assert made.state.message.kind == "error" and "outlines is damaged" in made.state.message.text
    before = len(hand.open)
    viewer.layers[1].visible = False
    viewer.layers[1].visible = True
    assert len(hand.open) == before + 1  # it is tried again
    made.show(tiny_section)
    hand.finish(before)  # of a section that is closed
    assert "damaged" not in made.state.message.text


def test_outlines_may_be_removed_and_the_section_stays(viewer, presenter, of_cells):
    presenter.show(of_cells)
    viewer.layers.remove(viewer.layers[1])
    assert presenter.state.section is of_cells and presenter.view.outlines is None


def test_two_viewers_share_nothing():
    one, two = ViewerModel(), ViewerModel()
    assert presenter_of(one) is presenter_of(one)
    assert presenter_of(one) is not presenter_of(two)
    assert presenter_of(one).state is not presenter_of(two).state


def test_the_state_goes_with_its_viewer(tiny_section):
    viewer = ViewerModel()
    presenter_of(viewer).show(tiny_section)
    gone = weakref.ref(presenter_of(viewer))
    del viewer
    gc.collect()
    assert gone() is None


def test_layers_of_a_section(presenter, viewer, tiny_section):
    slide, spots = viewer.layers
    mpp = tiny_section.calibration.mpp
    assert [layers.role_of(x) for x in viewer.layers] == ["slide", "spots"]
    for layer in viewer.layers:
        assert tuple(str(u) for u in layer.units) == ("micrometer", "micrometer")
        assert layer.axis_labels == ("y", "x")
    # the centre of pixel (0, 0) lies half a pixel from the slide's corner, where the spots' positions are measured from
    np.testing.assert_allclose(slide.data_to_world((0, 0)), (mpp / 2, mpp / 2))
    np.testing.assert_allclose(spots.data_to_world((0, 0)), (0, 0))
    # napari draws points with size times scale; the affine has no say in it
    np.testing.assert_allclose(spots.size * spots.scale[-1], tiny_section.spots.diameter * mpp)
    assert viewer.layers.selection.active is spots


def test_an_uncalibrated_section_has_no_units(tiny_section):
    from dataclasses import replace

    from napari_stmdit.types import Calibration

    section = replace(tiny_section, calibration=Calibration(None, "unknown", "not known"))
    for _, state, _ in layers.section_layers(section):
        assert "units" not in state


def test_a_section_added_by_a_reader_is_taken_up(viewer, tiny_section, by_hand):
    presenter = Presenter(viewer, by_hand)
    for data in layers.section_layers(tiny_section):
        viewer.add_layer(layers.make(data))
    assert presenter.state.section is tiny_section
    assert len(viewer.layers) == 2


def test_a_section_that_is_there_before_the_dock_is_taken_up(viewer, tiny_section, by_hand):
    for data in layers.section_layers(tiny_section):
        viewer.add_layer(layers.make(data))
    presenter = Presenter(viewer, by_hand)
    presenter.adopt()
    assert presenter.state.section is tiny_section
    assert len(viewer.layers) == 2


def test_opening_by_a_worker(viewer, tiny_folder, by_hand):
    presenter = Presenter(viewer, by_hand)
    presenter.open(SectionSource(path=str(tiny_folder)))
    assert presenter.state.busy
    assert presenter.state.section is None
    by_hand.finish(0)
    assert presenter.state.section is not None
    assert presenter.state.section.name == "tiny_section"


def test_what_cannot_be_opened_is_said(viewer, tmp_path, by_hand):
    presenter = Presenter(viewer, by_hand)
    presenter.open(SectionSource(path=str(tmp_path / "nowhere")))
    by_hand.finish()
    assert presenter.state.message.kind == "error"
    assert "nowhere" in presenter.state.message.text
    assert not presenter.state.busy


def test_a_run_adds_one_registered_layer(presenter, viewer, tiny_section, by_hand):
    ids = selected(presenter)
    presenter.runs.run()
    assert presenter.state.status is RunStatus.RUNNING
    by_hand.finish()
    assert presenter.state.status is RunStatus.DONE
    results = [x for x in viewer.layers if layers.role_of(x) == "result"]
    assert len(results) == 1
    layer = results[0]
    assert "synthetic" in layer.name
    assert layers.ours(layer)["provenance"]["patches"]["spots"] == ids
    assert layer.axis_labels == ("y", "x")
    assert tuple(str(u) for u in layer.units) == ("micrometer", "micrometer")
    # the real crops were returned: under each selected spot the layer shows the slide's own pixels
    slide = tiny_section.image.levels[0].compute()
    for yx in tiny_section.spots.yx[:10]:
        world = viewer.layers[-1].data_to_world(yx)
        there = np.rint(layer.world_to_data(world)).astype(int)
        real = np.rint(viewer.layers[0].world_to_data(world)).astype(int)
        drawn = layer.data[tuple(there)]
        assert drawn[3] == 255
        assert np.abs(drawn[:3].astype(int) - slide[tuple(real)]).max() < 8
    assert viewer.layers.selection.active is viewer.layers[-1]
    assert [layers.role_of(x) for x in viewer.layers] == ["slide", "result", "spots"]


def test_names_are_unique_and_identity_is_not_the_name(presenter, viewer, by_hand):
    selected(presenter, 2)
    for _ in range(2):
        presenter.runs.run()
        by_hand.finish()
    first, second = (x for x in viewer.layers if layers.role_of(x) == "result")
    assert first.name != second.name
    first.name = "mine now"
    presenter.results.show(1, False)
    assert not first.visible
    assert [entry.visible for entry in presenter.state.results] == [False, True]


def test_faults_stand_beside_their_fields(presenter):
    selected(presenter)
    presenter.state.request = presenter.state.request.model_copy(update={"morphology": "no such spot"})
    presenter.runs.preview()
    assert "no such spot" in presenter.state.faults["morphology"]
    presenter.runs.run()
    assert presenter.state.status is RunStatus.FAILED
    assert "no such spot" in presenter.state.message.text


def test_run_says_what_is_missing(viewer, tiny_section, crop_model, by_hand):
    presenter = Presenter(viewer, by_hand)
    presenter.runs.run()
    assert "Open a section" in presenter.state.message.text
    presenter.show(tiny_section)
    presenter.use_model(crop_model)
    presenter.runs.run()
    assert "Select spots" in presenter.state.message.text


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to allocate"
        ),
        ValueError("odd shape"),
    ],
)
def test_a_failure_in_the_sampler_reaches_the_user(presenter, viewer, card, by_hand, error):
    presenter.use_model(FailingModel(card, error, good_batches=1))
    selected(presenter, 6)
    presenter.state.batch = 4
    presenter.runs.run()
    by_hand.finish()
    assert presenter.state.status is RunStatus.FAILED
    text = presenter.state.message.text
    assert presenter.state.message.kind == "error"
    assert "4 of 6 patches are finished and kept" in text
    if isinstance(error, RuntimeError):
        assert "too little memory even for one patch at a time" in text
    assert presenter.state.results[0].result.done == (0, 1, 2, 3)
    presenter.use_model(CropModel(card))
    presenter.runs.run()
    by_hand.finish()
    assert presenter.state.status is RunStatus.DONE


def test_stop_ends_within_one_step_and_keeps_what_is_done(presenter, by_hand):
    selected(presenter, 10)
    presenter.state.batch = 4
    presenter.runs.run()
    while presenter.state.progress is None or presenter.state.progress.patches_done < 4:
        by_hand.step()
    presenter.runs.stop()
    assert presenter.state.status is RunStatus.STOPPING
    assert not by_hand.step()
    assert presenter.state.status is RunStatus.STOPPED
    assert len(presenter.state.results[0].result.done) == 4
    assert "4 of 10" in presenter.state.message.text


def test_what_a_stale_run_still_says_is_dropped(presenter, viewer, tiny_section, by_hand):
    selected(presenter, 10)
    presenter.state.batch = 4
    presenter.runs.run()
    for _ in range(6):
        by_hand.step()
    stale = len(by_hand.open) - 1
    presenter.runs.abandon()
    kept = presenter.state.results[0].result
    assert len(kept.done) == 4
    before = kept.rgba.copy()
    presenter.select(tiny_section.spots.ids[20:22].tolist())
    presenter.runs.run()
    by_hand.step(stale)
    by_hand.finish(-1)
    by_hand.finish(stale)
    assert presenter.state.status is RunStatus.DONE
    np.testing.assert_array_equal(kept.rgba, before)
    assert [len(e.result.done) for e in presenter.state.results] == [4, 2]


def test_a_removed_layer_ends_its_run(presenter, viewer, by_hand):
    selected(presenter, 10)
    presenter.runs.run()
    for _ in range(6):
        by_hand.step()
    viewer.layers.remove(next(x for x in viewer.layers if layers.role_of(x) == "result"))
    assert presenter.state.status is RunStatus.STOPPED
    by_hand.finish()
    assert not presenter.state.results
    assert [layers.role_of(x) for x in viewer.layers] == ["slide", "spots"]


def test_clearing_the_viewer_amid_a_run(presenter, viewer, by_hand):
    selected(presenter, 10)
    presenter.runs.run()
    for _ in range(6):
        by_hand.step()
    viewer.layers.clear()
    assert presenter.state.section is None
    by_hand.finish()
    assert len(viewer.layers) == 0


def test_the_screen_is_refreshed_every_two_seconds_at_most(presenter, by_hand, monkeypatch):
    from napari_stmdit.ui import runs

    clock = iter(np.arange(1, 1000) * 0.05)
    monkeypatch.setattr(runs.time, "perf_counter", lambda: float(next(clock)))
    presenter.state.batch = 1
    selected(presenter, 20)
    presenter.runs.run()
    while (layer := presenter.results.layer(1)) is None:
        by_hand.step()
    drawn = []
    layer.events.set_data.connect(lambda event: drawn.append(1))
    steps = 0
    while by_hand.step():
        steps += 1
    seconds = steps * 0.15  # the clock is asked at most three times in a step
    assert 1 <= len(drawn) <= seconds / runs.REFRESH_S + 2


def test_selection_is_kept_as_ids_in_the_table_order(presenter, tiny_section):
    ids = tiny_section.spots.ids.tolist()
    presenter.select([ids[5], ids[2]])
    assert presenter.state.selected == (ids[2], ids[5])
    presenter.select([ids[9]], "add")
    presenter.select([ids[2]], "subtract")
    presenter.select([ids[5], ids[7]], "toggle")
    assert presenter.state.selected == (ids[7], ids[9])
    assert presenter.view.spots.selected_data == {7, 9}
    presenter.invert_selection()
    assert len(presenter.state.selected) == len(ids) - 2
    presenter.select_all()
    assert presenter.state.selected == tuple(ids)


def test_a_click_selects_the_spot_under_it_and_nothing_beside_it(presenter, tiny_section):
    spots = tiny_section.spots
    presenter.click(spots.yx[3] + 0.3 * spots.diameter, None)
    assert presenter.state.selected == (spots.ids[3],)
    presenter.click(spots.yx[3] + 0.6 * spots.diameter, None)
    assert presenter.state.selected == (spots.ids[3],)
    presenter.click(spots.yx[4], "toggle")
    presenter.click(spots.yx[3], "toggle")
    assert presenter.state.selected == (spots.ids[4],)


def test_a_ring_that_crosses_itself(presenter, tiny_section):
    spots = tiny_section.spots
    top, left = spots.yx.min(axis=0) - 30
    bottom, right = spots.yx.max(axis=0) + 30
    bow = np.array([(top, left), (bottom, right), (top, right), (bottom, left)])
    presenter.ring(bow, None)
    assert 0 < len(presenter.state.selected) < len(spots)
    inside = np.abs(spots.yx[:, 0] - (top + bottom) / 2) / (bottom - top) < np.abs(
        spots.yx[:, 1] - (left + right) / 2
    ) / (right - left)
    assert set(presenter.state.selected) == set(spots.ids[inside].tolist())


def test_a_tiny_lasso_is_a_click(presenter, tiny_section):
    spots = tiny_section.spots
    ring = spots.yx[8] + np.array([(0, 0), (3, 0), (3, 3), (0, 3)])
    presenter.ring(ring, None)
    assert presenter.state.selected == (spots.ids[8],)
    presenter.ring(spots.yx[9][None], "add")
    assert presenter.state.selected == (spots.ids[8], spots.ids[9])


def square(viewer, presenter, centre, half):
    """A ring around a place, in the world, as a lasso draws it."""
    ring = centre + half * np.array([(-1, -1), (-1, 1), (1, 1), (1, -1)])
    return [presenter.view.spots.data_to_world(vertex) for vertex in ring]


def test_the_lasso_chooses_and_adds_no_layer(presenter, viewer, tiny_section):
    presenter.use_tool("lasso")
    assert presenter.state.tool == "lasso" and str(viewer.cursor.style) == "cross"
    spots = tiny_section.spots
    centre = spots.yx[12]
    drag(viewer, square(viewer, presenter, centre, 2.2 * spots.diameter))
    near = np.abs(spots.yx - centre).max(axis=1) < 2.2 * spots.diameter
    assert set(presenter.state.selected) == set(spots.ids[near].tolist())
    assert [layers.role_of(x) for x in viewer.layers] == ["slide", "spots"]
    presenter.use_tool("click")
    assert str(viewer.cursor.style) == "standard"


def test_a_tool_stays_in_hand_whatever_layer_is_active(presenter, viewer, tiny_section):
    spots = tiny_section.spots
    mine = viewer.add_shapes(name="mine")
    mine.mode = "add_rectangle"
    for active in (*viewer.layers, None):
        presenter.select(())
        presenter.use_tool("lasso")
        viewer.layers.selection.active = active
        assert presenter.state.tool == "lasso" and str(viewer.cursor.style) == "cross"
        drag(viewer, square(viewer, presenter, spots.yx[12], 0.8 * spots.diameter))
        assert presenter.state.selected == (spots.ids[12],)
        assert mine.mode == "add_rectangle" and len(mine.data) == 0  # what the user draws on is given back
        presenter.use_tool("click")
        drag(viewer, [presenter.view.spots.data_to_world(spots.yx[3])])
        assert presenter.state.selected == (
            spots.ids[12 if active is mine else 3],
        )  # a click on one's own shapes is theirs


def test_a_lasso_follows_a_moved_section(presenter, viewer, tiny_section):
    spots = tiny_section.spots
    for layer in viewer.layers:
        layer.translate = (500, -300)
    presenter.use_tool("lasso")
    drag(viewer, square(viewer, presenter, spots.yx[12], 0.8 * spots.diameter))
    assert presenter.state.selected == (spots.ids[12],)


def test_colouring_by_gene(presenter, tiny_section):
    presenter.colour(Colouring("ERBB2"))
    faces = presenter.view.spots.face_color
    assert len(np.unique(faces.round(3), axis=0)) > 5
    scale = presenter.state.colour_scale
    assert scale.gene == "ERBB2"
    assert scale.limits[1] > 0
    presenter.colour(Colouring("Erbb2"))
    assert "ERBB2" in presenter.state.colour_scale.fault
    assert np.all(presenter.view.spots.face_color[:, 3] == 0)


def test_a_synthesized_spot_becomes_a_ring(presenter, by_hand):
    presenter.colour(Colouring("ERBB2"))
    selected(presenter, 3)
    presenter.runs.run()
    by_hand.finish()
    alpha = presenter.view.spots.face_color[:, 3]
    assert np.all(alpha[:3] == 0)
    assert np.all(alpha[3:] > 0.5)
    presenter.results.show(1, False)
    assert np.all(presenter.view.spots.face_color[:, 3] > 0.5)


def test_a_new_section_takes_the_place_of_the_old(presenter, viewer, tiny_folder, by_hand):
    from napari_stmdit.tissue.open import open_section

    selected(presenter, 2)
    presenter.runs.run()
    by_hand.finish()
    other = replace(open_section(tiny_folder), path=tiny_folder.with_name("other"))
    presenter.show(other)
    assert presenter.state.section is other
    assert presenter.state.selected == ()
    assert [layers.role_of(x) for x in viewer.layers].count("spots") == 1
    assert not presenter.results.layer(1).visible  # kept, but not over another tissue
    assert len(presenter.state.results) == 1


def test_a_section_that_is_opened_again_by_a_link_is_the_same_one(presenter, tiny_folder, tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(tiny_folder)
    asked = []
    monkeypatch.setattr(type(presenter.state), "replacing", lambda _, same: asked.append(same))
    presenter._replace(tmp_path / "link", lambda: None)
    presenter._replace(tmp_path, lambda: None)
    assert asked == [True, False]


def test_the_form_goes_into_the_run(presenter, by_hand):
    selected(presenter, 2)
    presenter.state.request = presenter.state.request.model_copy(
        update={"guidance": Guidance(expression=4.0), "steps": 3, "seed": 7, "morphology": "mean"}
    )
    presenter.runs.run()
    plan = presenter.runs.plan
    assert (plan.guidance.expression, plan.guidance.morphology) == (4.0, 1.5)
    assert (plan.steps, plan.request.seed, plan.request.morphology) == (3, 7, "mean")


def test_saving_a_result(presenter, tmp_path, by_hand):
    selected(presenter, 2)
    presenter.runs.run()
    by_hand.finish()
    presenter.results.save(1, str(tmp_path / "out.zarr"))
    by_hand.finish()
    assert presenter.state.message.kind == "info", presenter.state.message.text
    assert "stmdit_1" in presenter.state.results[0].saved
    assert (tmp_path / "out.zarr").is_dir()


def test_a_checkpoint_that_is_not_there_is_said(viewer, by_hand, tmp_path):
    presenter = Presenter(viewer, by_hand)
    presenter.load_model(ModelChoice(str(tmp_path / "none")))
    by_hand.finish()
    assert presenter.state.message.kind == "error"
    assert presenter.state.checkpoint is None


def test_compare_gives_everything_back(presenter, viewer, by_hand, monkeypatch):
    from napari_stmdit.ui.compare import grid_of

    selected(presenter, 3)
    presenter.runs.run()
    by_hand.finish()
    other = viewer.add_image(np.zeros((4, 4)), name="mine")
    grid = grid_of(viewer)
    grid.stride, grid.shape = 3, (2, 2)
    before = [(x.name, x.visible) for x in viewer.layers]
    monkeypatch.setattr("napari_stmdit.ui.compare.canvas_size_of", lambda viewer: np.array([600.0, 800.0]))
    presenter.compare.start("grid")
    assert presenter.state.comparison is not None
    assert not other.visible
    cells = {layers.role_of(x): grid.position(i, viewer.layers) for i, x in enumerate(viewer.layers) if x.visible}
    assert cells["slide"] == cells["spots"] == (0, 0)
    assert cells["result"] == cells["context"] == (0, 1)
    presenter.compare.stop()
    assert [(x.name, x.visible) for x in viewer.layers] == before
    assert (grid.stride, grid.shape, grid.enabled) == (3, (2, 2), False)


def test_removing_the_compared_result_ends_the_comparison(presenter, viewer, by_hand):
    selected(presenter, 3)
    presenter.runs.run()
    by_hand.finish()
    presenter.compare.start("grid")
    viewer.layers.remove(presenter.results.layer(1))
    assert presenter.state.comparison is None
    assert [layers.role_of(x) for x in viewer.layers] == ["slide", "spots"]


def test_inline_start_for_scripts(viewer, tiny_section, crop_model):
    presenter = Presenter(viewer, start_inline)
    presenter.use_model(crop_model)
    presenter.show(tiny_section)
    selected(presenter, 2)
    presenter.runs.run()
    assert presenter.state.status is RunStatus.DONE


def test_the_example_leaves_a_section_alone_that_the_user_opened_meanwhile(viewer, tiny_section, by_hand, crop_model):
    made = Presenter(viewer, by_hand)
    made.example.show()
    made.show(tiny_section)
    made.use_model(crop_model)
    begun = len(by_hand.open)
    made.state.busy = "a job"
    made.state.busy = ""
    assert len(by_hand.open) == begun
    assert not made.state.request.edits and made.state.section is tiny_section
