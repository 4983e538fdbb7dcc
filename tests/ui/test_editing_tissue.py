"""Editing real tissue from the workbench: what is asked, shown, compared and measured, with a tiny real checkpoint."""

from dataclasses import replace

import numpy as np
import pytest

from napari_stmdit.edits import Scale
from napari_stmdit.intent import Request
from napari_stmdit.regions import SpotList
from napari_stmdit.synthesis.plan import evaluations, plan
from napari_stmdit.synthesis.variants import guidance_grid
from napari_stmdit.tissue.crops import read_patches
from napari_stmdit.types import PatchResult
from napari_stmdit.ui import layers
from napari_stmdit.ui.jobs import start_inline
from napari_stmdit.ui.looking import change_of, change_picture, halved, limit_of
from napari_stmdit.ui.presenter import Presenter
from napari_stmdit.ui.runs import LivePreview
from napari_stmdit.ui.state import RunStatus
from napari_stmdit.ui.widgets.compare import ComparePanel
from napari_stmdit.ui.widgets.evaluate import SpotPanel
from napari_stmdit.ui.widgets.results import summary
from napari_stmdit.ui.widgets.synthesize import RunBar, SynthesizePanel

GENES = ("ERBB2", "KRT8", "MKI67", "EPCAM")


def edit_of(ids, **changes):
    return Scale(genes=GENES, factor=40.0, spots=dict.fromkeys(ids[12:14], 1.0), **changes)


@pytest.fixture(autouse=True)
def own_noise(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def presenter(viewer, tiny_section, tiny_model):
    made = Presenter(viewer, start_inline)
    made.show(tiny_section)
    made.use_model(tiny_model)
    ids = tiny_section.spots.ids.tolist()
    made.select(ids[10:17])
    made.state.request = Request(steps=3, edits=(edit_of(ids),))
    return made


def run(presenter, **changes):
    presenter.state.request = presenter.state.request.model_copy(update=changes)
    presenter.runs.run()
    assert presenter.state.status is RunStatus.DONE, presenter.state.message
    return presenter.state.results[-1]


def test_the_dock_says_how_far_the_tissue_is_read(presenter, tiny_model, qtbot):
    words, live, bar = [f"Reading the tissue of this section: {n} of 30 spots" for n in (0, 16)], [], RunBar()
    qtbot.addWidget(bar)
    presenter.state.events.live_text.connect(lambda: live.append(presenter.state.live_text), max_args=0)
    tiny_model.morphology_map = None  # else 30 spots are too few to add to the checkpoint's
    presenter.state.live = True
    assert live[:3] == [*words, ""] and live[-1].startswith("Live preview of 2 spots")
    presenter.state.live = False
    tiny_model.fitted.clear()
    told = []
    presenter.state.events.progress.connect(told.append)
    run(presenter)
    reading = [progress for progress in told if progress is not None and progress.doing]
    assert [progress.doing for progress in reading] == words
    bar.show_progress(reading[1], "")
    assert bar.count.text() == words[1]


# --- the choice


def test_the_form_edits_by_default_and_says_why_where_it_cannot(qtbot):
    panel = SynthesizePanel()
    qtbot.addWidget(panel)
    panel.show_editable("there is nothing to change")
    assert panel.tissue.value() == "new"
    assert not panel.tissue.button("edit").isEnabled()
    assert panel.tissue.button("edit").toolTip() == "there is nothing to change"
    assert panel.only_edit.isHidden() and not panel.only_new.isHidden() and panel.chance.isEnabled()
    panel.show_editable("")
    assert panel.tissue.value() == "edit"
    assert not panel.only_edit.isHidden() and panel.only_new.isHidden() and not panel.chance.isHidden()
    assert not panel.chance.isEnabled() and "no chance" in panel.chance.toolTip()
    with qtbot.waitSignal(panel.valueChanged) as changed:
        panel.tissue.button("new").click()
    assert changed.args[0].counterfactual == "off"
    with qtbot.waitSignal(panel.valueChanged) as changed:
        panel.tissue.button("edit").click()
    assert changed.args[0].counterfactual == "on"
    with qtbot.waitSignal(panel.valueChanged) as changed:
        panel.scale.setValue(1.5)
    assert changed.args[0].edit_scale == 1.5
    with qtbot.waitSignal(panel.valueChanged) as changed:
        panel.fresh.setValue(0.4)
    assert changed.args[0].fresh_noise == 0.4
    assert panel.chance.isEnabled() and not panel.chance.isHidden() and not panel.chance.toolTip()
    panel.show_faults({"fresh_noise": "seamless tissue has none"})
    assert panel.faults["fresh_noise"].text() == "seamless tissue has none"
    panel.setValue(Request(counterfactual="off", edit_scale=2.5))
    assert (panel.tissue.value(), panel.value().edit_scale) == ("new", 2.5)
    panel.setValue(Request(counterfactual="on"))
    assert panel.tissue.value() == "edit" and panel.value().counterfactual == "on"


def test_the_reason_is_that_of_the_plan(presenter):
    assert presenter.runs.edit_fault() == "" and presenter.runs.editing
    presenter.state.request = presenter.state.request.model_copy(update={"edits": ()})
    assert "nothing to change" in presenter.runs.edit_fault()
    assert not presenter.runs.editing


def test_settings_of_a_result_come_back(presenter):
    entry = run(presenter, counterfactual="on", edit_scale=1.5)
    presenter.state.request = Request(counterfactual="off")
    presenter.reuse(entry.number)
    assert (presenter.state.request.counterfactual, presenter.state.request.edit_scale) == ("on", 1.5)


def test_one_and_the_same_tissue_is_edited_once_whatever_samples_were_asked_of_new_tissue(presenter):
    presenter.state.samples = 3
    run(presenter)
    assert len(presenter.state.results) == 1


def test_samples_of_an_edit_differ_by_their_fresh_noise(presenter):
    presenter.state.samples = 2
    run(presenter, fresh_noise=0.5)
    entry, other = presenter.state.results
    assert entry.request.seed != other.request.seed
    assert entry.counterfactual and other.counterfactual
    assert (entry.result.patches != other.result.patches).any()
    assert "50 % fresh noise" in summary(entry) and any(
        "50 % of the noise is fresh" in n for n in presenter.state.notes
    )
    assert "(edited real tissue, synthetic, " in entry.name


# --- cost


def test_the_estimate_knows_both_ways_and_what_is_kept(presenter, tiny_section):
    card, ids = presenter.state.checkpoint.card, tiny_section.spots.ids
    request = presenter.runs.request()
    made = plan(tiny_section, request, card)
    assert evaluations(made, ids=ids) == 2 * (3 + 1) * 2  # two spots are touched, one branch
    assert evaluations(made, ids=ids, kept=1.0) == 2 * (3 + 1)
    weighed = plan(tiny_section, request.model_copy(update={"edit_scale": 2.0}), card)
    assert evaluations(weighed, ids=ids) == 2 * (3 + 1) * 3
    run(presenter)
    pace = next(iter(presenter.runs._pace.values()))
    presenter.runs.preview()
    assert presenter.state.estimate.seconds == pytest.approx(pace * 2 * (3 + 1))


# --- comparing


@pytest.mark.parametrize("mode", ["spots", "continuous"])
def test_an_edit_opens_compared_with_the_slide_and_is_named_for_what_it_is(presenter, mode):
    entry = run(presenter, mode=mode)
    comparison = presenter.state.comparison
    assert (comparison.mode, comparison.left, comparison.right) == ("grid", None, entry.number)
    assert "(edited real tissue, synthetic, " in entry.name
    assert "Edited real tissue, synthetic" in summary(entry)
    presenter.results.rename(entry.number, "mine")
    assert presenter.state.results[0].name == "mine (edited real tissue, synthetic)"
    presenter.compare.start("swipe")
    presenter.compare.move(0.3)
    run(presenter, edit_scale=2.0)
    assert presenter.state.comparison.mode == "swipe"  # as the user chose
    assert presenter.state.comparison.position == 0.3  # the eye stays where it is


def test_its_baseline_is_the_slide_and_is_never_run(presenter, qtbot):
    entry = run(presenter)
    run(presenter, counterfactual="off")
    run(presenter, edits=())
    assert presenter.results.baseline(entry.number) is None
    assert not presenter.runs.run_baseline(entry.number)
    presenter.state.chosen_result = entry.number
    presenter.compare_with_baseline("fade")
    assert presenter.state.comparison.left is None
    assert len(presenter.state.results) == 3
    new, plain = presenter.state.results[1:]
    assert presenter.results.baseline(new.number) is plain  # asked for as 'off', and made as 'auto' without edits
    panel = ComparePanel()
    qtbot.addWidget(panel)
    panel.show_results(presenter.state.results, entry.number)
    assert panel.baseline.text() == "Compare with the slide"


# --- the change


def test_the_change_has_units_symmetric_limits_and_hides_what_did_not_change(presenter, viewer, tiny_section):
    entry = run(presenter)
    presenter.changes.show(entry.number, True)
    layer = presenter.changes.layer(entry.number)
    assert presenter.state.changes == {entry.number}
    low, high = layer.contrast_limits
    assert low == -high < 0
    assert "OD" in layer.name and "synthetic" in layer.name
    shown = np.asarray(layer.data)
    for patch in entry.result.plan.patches:
        y0, x0, y1, x1 = patch.canvas_box
        crop = read_patches(tiny_section.image, [patch.source_box], y1 - y0)[0]
        wanted = change_of(entry.result.rgba[y0:y1, x0:x1, :3], crop)
        np.testing.assert_allclose(shown[y0:y1, x0:x1], wanted, atol=0.02)
    result = presenter.results.layer(entry.number)
    np.testing.assert_allclose(layer.data_to_world((0, 0)), result.data_to_world((0, 0)))
    presenter.changes.show(entry.number, False)
    assert not layer.visible and not presenter.state.changes
    presenter.results.delete(entry.number)
    assert layer not in viewer.layers and presenter.changes.layer(entry.number) is None


def test_nothing_is_shown_where_nothing_changed():
    slide = np.random.default_rng(0).integers(0, 255, (40, 40, 3)).astype(np.uint8)
    assert np.isnan(change_of(slide, slide)).all()
    darker = slide.copy()
    darker[:20] = 30
    slide[:20] = 220
    change = change_of(darker, slide)
    assert (change[:20] > 0).all() and np.isnan(change[20:]).all()
    assert np.isnan(halved(change)[10:]).all() and np.isfinite(halved(change)[:10]).all()
    picture = change_picture(change, limit_of(change))
    assert (picture[20:] == 255).all() and (picture[:20, :, 0] > picture[:20, :, 2]).all()  # more is orange


# --- closely


@pytest.mark.parametrize("mode", ["spots", "continuous"])
def test_the_close_up_shows_slide_edited_and_difference_with_numbers(presenter, qtbot, mode):
    run(presenter, mode=mode)
    ids = presenter.state.section.spots.ids.tolist()
    presenter.select([ids[12]])
    presenter.close_ups.look()
    found = presenter.state.close_up
    assert list(found.patches) == ["real", "edited"] and found.change is not None
    panel = SpotPanel()
    qtbot.addWidget(panel)
    panel.show_close_up(found, ids[12])
    assert [head.text() for head in panel.heads] == ["Slide", "Edited", "Difference"]
    texts = panel.texts()
    row = found.rows[0]
    at = texts.index("Haematoxylin, OD (ln)")
    assert texts[at + 1 : at + 3] == [f"{row.values['real']:.3f}", f"{row.values['edited']:.3f}"]
    assert {"Nuclei, per mm²", "Blank area, share"} <= set(texts)
    presenter.select([ids[16]])  # no edit reaches it in spots mode
    presenter.close_ups.look()
    if mode == "spots":
        np.testing.assert_array_equal(
            presenter.state.close_up.patches["edited"], presenter.state.close_up.patches["real"]
        )
        assert (presenter.state.close_up.change == 255).all()


# --- doses


def test_a_dose_strip_begins_with_the_slide_and_abducts_once(presenter):
    editor = presenter.state.checkpoint.editor
    ids = presenter.state.section.spots.ids.tolist()
    presenter.sheets.dose_strip(ids[12])
    sheet = presenter.state.sheet
    assert len(sheet.cells) == 7 and editor.abducted == 1
    np.testing.assert_array_equal(sheet.cells[0].pixels, sheet.real)
    assert np.abs(sheet.cells[-1].pixels.astype(int) - sheet.real).max() > 0
    assert all(cell.provenance["counterfactual"] for cell in sheet.cells)


def test_a_guidance_grid_is_of_new_tissue(presenter):
    card = presenter.state.checkpoint.card
    ids = presenter.state.section.spots.ids.tolist()
    grid = guidance_grid(presenter.runs.request(), ids[12], card.guidance)
    assert {variant.request.counterfactual for variant in grid} == {"off"}
    assert grid[0].request.region == SpotList(ids=(ids[12],))


def test_a_second_strength_only_predicts(presenter):
    run(presenter)
    editor = presenter.state.checkpoint.editor
    before = editor.abducted
    ids = presenter.state.section.spots.ids.tolist()
    run(presenter, edits=(edit_of(ids, strength=0.5),))
    assert before == 2 and editor.abducted == 2


def test_layers_read_back_say_what_they_are(presenter, tmp_path, viewer):
    from napari_stmdit.tissue.open import open_section

    entry = run(presenter)
    presenter.results.save(entry.number, str(tmp_path / "out.zarr"))
    (data,), _ = layers.stored_layers(open_section(tmp_path / "out.zarr"))
    assert data[1]["name"] == entry.name and "(edited real tissue, synthetic, " in entry.name


def test_a_result_of_another_section_is_neither_run_again_nor_laid_over_this_one(presenter, tiny_section, tmp_path):
    entry = run(presenter)
    presenter.compare.stop()
    presenter.show(replace(tiny_section, path=tmp_path / "another"))
    presenter.runs.preview()
    state = presenter.state
    for ask in (
        lambda: presenter.runs.run_again(entry.number),
        lambda: presenter.compare.start("grid", entry.number),
        lambda: presenter.compare.start("swipe", entry.number),
    ):
        state.message = None
        ask()
        assert state.message.text.startswith(f"Open {tiny_section.name} first, as it was then: ")
    assert state.comparison is None and [one.number for one in state.results] == [entry.number]
    scale = replace(tiny_section.calibration, mpp=2 * tiny_section.mpp)
    presenter.show(replace(tiny_section, calibration=scale))
    assert not presenter.runs.run_again(entry.number)
    presenter.show(tiny_section)
    assert presenter.runs.run_again(entry.number)


def test_results_of_a_section_that_is_opened_again_are_its_own(presenter, tiny_section, tmp_path):
    entry = run(presenter)
    presenter.compare.stop()
    presenter.show(replace(tiny_section, path=tmp_path / "another"))
    assert not len(presenter.looking.frames(entry.number))
    again = replace(tiny_section)  # read anew
    presenter.show(again)
    (known,) = presenter.state.results
    assert known.section is again and len(presenter.looking.frames(entry.number))
    assert presenter.results.made(entry.request, presenter.state.checkpoint) is None


def test_no_change_of_another_section_lies_over_this_one(presenter, tiny_section, tmp_path):
    first, second = run(presenter), run(presenter, steps=4)
    presenter.compare.stop()
    presenter.changes.show(first.number, True)
    assert presenter.changes.layer(first.number).visible
    presenter.show(replace(tiny_section, path=tmp_path / "another"))
    assert not presenter.changes.layer(first.number).visible and not presenter.state.changes
    for entry in (first, second):
        presenter.state.message = None
        presenter.changes.show(entry.number, True)
        assert presenter.state.message.text.startswith(f"Open {tiny_section.name} first")
    assert not presenter.state.changes and presenter.changes.layer(second.number) is None
    presenter.changes._made(presenter.results.entry(second.number), [np.ones((4, 4), np.float32)])  # measured meanwhile
    assert presenter.changes.layer(second.number) is None


def test_every_picture_that_is_not_the_slide_says_so_whatever_it_is_called(presenter, viewer):
    presenter.state.live = True
    assert layers.role_of(presenter.live._layer) == "live"
    presenter.live._layer.name = "mine"
    assert presenter.live._layer.name == "mine (edited real tissue, synthetic)"
    entry = run(presenter)
    presenter.compare.stop()
    presenter.changes.show(entry.number, True)
    presenter.changes.layer(entry.number).name = "what changed"
    assert presenter.changes.layer(entry.number).name == "what changed (edited real tissue, synthetic)"
    presenter.results.layer(entry.number).name = "synthetic tumour"
    assert presenter.results.entry(entry.number).name == "synthetic tumour (edited real tissue, synthetic)"


def test_results_stay_where_they_were_when_spots_are_excluded_and_included(presenter, tiny_section):
    shown, hidden = run(presenter), run(presenter, steps=4)
    presenter.compare.stop()
    presenter.changes.show(shown.number, True)
    presenter.results.show(hidden.number, False)
    for step in (lambda: presenter.corrections.exclude("fold"), presenter.corrections.include):
        presenter.select(tiny_section.spots.ids[:2].tolist())
        before = presenter.state.section
        step()
        assert presenter.state.section is not before
        assert [entry.visible for entry in presenter.state.results] == [True, False]
        assert presenter.state.changes == {shown.number}
        assert all(entry.section is presenter.state.section for entry in presenter.state.results)


def test_faults_of_a_result_are_not_those_of_the_form(presenter):
    entry = run(presenter)
    unknown = edit_of(presenter.state.section.spots.ids).model_copy(update={"genes": ("NOPE",)})
    request = entry.request.model_copy(update={"edits": (unknown,)})
    presenter.state.results = (replace(entry, request=request),)
    assert not presenter.runs.run_again(entry.number)
    assert "NOPE" in presenter.state.message.text and not presenter.state.faults


def test_a_run_that_ends_during_a_stroke_moves_nothing_under_the_brush(presenter, viewer):
    presenter.looking.look_at(presenter.view.slide)
    before = (tuple(viewer.camera.center), viewer.camera.zoom)
    presenter.hand.holding = True
    run(presenter)
    assert (tuple(viewer.camera.center), viewer.camera.zoom) == before and presenter.state.comparison is None
    presenter.hand.holding = False
    run(presenter, seed=1)
    assert presenter.state.comparison is not None


def test_a_layer_that_comes_later_takes_no_cell_of_a_comparison(presenter, viewer, tiny_section):
    entry = run(presenter)
    assert presenter.state.comparison.mode == "grid" and viewer.grid.enabled
    preview, count = LivePreview(viewer), len(viewer.layers)
    patch = PatchResult(entry.result.plan.patches[0], np.zeros((64, 64, 3), np.uint8))
    preview.show(patch, entry.result.plan, tiny_section)
    assert len(viewer.layers) == count
    presenter.changes.show(entry.number, True)
    assert presenter.state.comparison is None and not viewer.grid.enabled
    preview.show(patch, entry.result.plan, tiny_section)
    assert [layers.role_of(layer) for layer in viewer.layers].count("preview") == 1


def test_a_run_without_the_slides_layer_says_how_it_ended(presenter, viewer):
    viewer.layers.remove(presenter.view.slide)
    run(presenter)
    assert presenter.state.comparison is None and "patches of edited real tissue in" in presenter.state.message.text


def test_live_says_what_is_wrong_as_the_run_bar_does(presenter):
    presenter.state.live = True
    nobody = Scale(programs=("nobody's program",), factor=2.0, spots=presenter.state.request.edits[0].spots)
    presenter.state.request = presenter.state.request.model_copy(update={"edits": (nobody,)})
    presenter.runs.preview()
    words = " ".join(presenter.state.faults.values())
    assert words and presenter.state.live_text == f"Live stopped: {words}"


def test_live_comes_back_after_a_run_of_other_spots(presenter):
    presenter.state.live = True
    words = presenter.state.live_text
    assert words.startswith("Live preview of 2 spots")
    presenter.select(presenter.state.section.spots.ids[:1].tolist())
    run(presenter)
    assert presenter.state.live_text == words and len(presenter.live.spots) == 2
    presenter.select(presenter.state.section.spots.ids[10:17].tolist())
    run(presenter)
    assert not presenter.state.live_text and not presenter.live.spots  # the result is there


def test_a_result_lies_over_the_slide_when_its_section_is_opened_again(presenter, tiny_section, viewer):
    entry = run(presenter)
    presenter.show(replace(tiny_section, name="another", path=None))
    presenter.show(replace(tiny_section))
    slides = [number for number, layer in enumerate(viewer.layers) if layers.role_of(layer) == "slide"]
    assert len(slides) == 1 and slides[0] < viewer.layers.index(presenter.results.layer(entry.number))
    presenter.results.show(entry.number, True)
    assert presenter.results.layer(entry.number).visible
