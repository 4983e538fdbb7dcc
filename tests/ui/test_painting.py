"""Edits, the brush and undo without Qt: with napari's viewer model and a tiny section."""

from dataclasses import replace

import numpy as np
import pytest
from mouse import Press, drag
from napari.components import ViewerModel
from scipy.sparse import csr_matrix
from scipy.spatial import cKDTree
from standins import CropModel, card_for

from napari_stmdit.edits import KnockOut, Swap, Towards
from napari_stmdit.errors import RequestError
from napari_stmdit.types import Genes, SpotTable
from napari_stmdit.ui.jobs import start_inline
from napari_stmdit.ui.painting import History
from napari_stmdit.ui.presenter import Presenter
from napari_stmdit.ui.state import Brush, Colouring, EditDraft
from napari_stmdit.ui.strokes import Stroke, draft_of, falloff, make_edit, parse_names, written


@pytest.fixture
def presenter(tiny_section):
    viewer = ViewerModel()  # held weakly by its presenter
    made = Presenter(viewer, start_inline)
    card = card_for(tuple(tiny_section.spots.genes.symbols.tolist())[:15], patch_px=64, patch_mpp=0.7)
    made.use_model(CropModel(card))
    made.show(tiny_section)
    yield made
    del viewer


@pytest.fixture
def sample_like(tiny_section):
    """The tiny section with a hundred spots and twenty genes, of which the first ten vary together."""
    rng = np.random.default_rng(0)
    yx = np.stack(np.meshgrid(np.arange(10), np.arange(10), indexing="ij"), axis=-1).reshape(-1, 2) * 40.0 + 20
    log = np.full((100, 20), np.log(20.0))
    log[:, :10] += np.cos(yx[:, :1] / 100)
    counts = csr_matrix(rng.poisson(np.exp(log)).astype(np.float32))
    genes = Genes(np.array([f"G{k}" for k in range(20)]))
    spots = SpotTable(np.array([f"p{k}" for k in range(100)]), yx, 30.0, counts, genes)
    return replace(tiny_section, spots=spots)


def place(presenter, row):
    return presenter.state.section.spots.yx[row]


def stroke(presenter, *rows, erase=False):
    presenter.painting.begin_stroke(place(presenter, rows[0]), erase)
    for row in rows[1:]:
        presenter.painting.move_stroke(place(presenter, row))
    presenter.painting.end_stroke()


# ------------------------------------------------------------------------------------------------- pure


def test_the_brush_is_whole_in_its_core_and_nothing_at_its_rim():
    at = np.array([0.0, 0.5, 0.75, 1.0, 1.01])
    np.testing.assert_allclose(falloff(at, Brush(softness=0.5)), [1, 1, 0.5, 0, 0], atol=1e-12)
    np.testing.assert_allclose(falloff(at, Brush(softness=0)), [1, 1, 1, 1, 0])


def test_a_stroke_does_not_depend_on_how_often_the_mouse_is_asked(tiny_section):
    spots = tiny_section.spots
    tree = cKDTree(spots.yx)
    results = []
    for steps in (2, 50):
        one = Stroke(spots, tree, Brush(softness=0.8, strength=0.7), 120.0, {})
        for yx in np.linspace(spots.yx[0], spots.yx[22], steps):
            one.to(yx)
        results.append(one.weights())
    assert results[0].keys() == results[1].keys()
    for spot, weight in results[0].items():
        assert results[1][spot] == pytest.approx(weight, abs=1e-3)
    assert max(results[0].values()) == pytest.approx(0.7)


def test_strokes_build_up_and_erasing_takes_away(tiny_section):
    spots = tiny_section.spots
    tree = cKDTree(spots.yx)

    def once(before, erase=False):
        one = Stroke(spots, tree, Brush(softness=0, strength=0.6, erase=erase), 10.0, before)
        one.to(spots.yx[4])
        return one.weights()

    spot = str(spots.ids[4])
    assert once({}) == {spot: 0.6}
    assert once({spot: 0.6}) == {spot: 0.84}
    assert once({spot: 1.0, "x": 1.0}, erase=True) == {spot: 0.4}
    assert len(once(None)) == len(spots)
    assert once(None, erase=True)[spot] == 0.4


def test_history_merges_a_drag_and_forgets_what_was_undone():
    history = History(0)
    for value in (1, 2, 3):
        history.push(value, merging="slider")
    history.push(4)
    assert (history.undo(), history.undo(), history.undo()) == (3, 0, 0)
    assert history.redo() == 3
    history.push(9, merging="slider")
    assert not history.can_redo
    assert (history.undo(), history.undo()) == (3, 0)


def test_names_are_parsed_as_genes_then_programs(tiny_section):
    genes = tiny_section.spots.genes
    known = ("hypoxia", "ERBB2", "stromal")
    assert parse_names(" KRT8, hypoxia ,", genes, known) == (("KRT8",), ("hypoxia",), "")
    assert parse_names("ERBB2", genes, known) == (("ERBB2",), (), "")  # a gene of this name goes first
    assert parse_names("ERBB2 (program)", genes, known) == ((), ("ERBB2",), "")
    assert "krt8" in parse_names("krt8, KRT8", genes, known)[2]
    assert parse_names(written(("KRT8", "VIM"), ("ERBB2",)), genes, known)[:2] == (("KRT8", "VIM"), ("ERBB2",))


def test_a_form_makes_every_kind_of_edit_and_shows_it_again():
    full = EditDraft(genes=("A",), target_spots=("s",), group_a=("a",), group_b=("b",))
    for operation in ("scale", "add", "set_quantile", "knock_out", "towards", "swap"):
        draft = replace(full, operation=operation)
        edit = make_edit(draft, None)
        assert edit.operation == operation
        assert edit.name
        assert make_edit(draft_of(edit, full), None) == edit
    assert make_edit(replace(full, operation="towards", target_profile="fat"), None).target_spots == ()


@pytest.mark.parametrize(
    ("draft", "field"),
    [
        (EditDraft(), "what"),
        (EditDraft(operation="towards"), "target"),
        (EditDraft(operation="swap", group_a=("a",)), "target"),
        (EditDraft(operation="swap", group_a=("a",), group_b=("a",)), "target"),
        (EditDraft(operation="scale", genes=("A",), factor=-1), "what"),
    ],
)
def test_an_incomplete_form_says_where(draft, field):
    with pytest.raises(RequestError) as caught:
        make_edit(draft, None)
    assert [place for place, _ in caught.value.faults] == [field]


# ------------------------------------------------------------------------------------------------- presenter


def test_a_stroke_makes_an_edit_and_the_next_ones_go_on_with_it(presenter):
    painting, state = presenter.painting, presenter.state
    presenter.set_brush(Brush(radius_um=40))
    painting.take_draft(EditDraft(genes=("ERBB2",)))
    stroke(presenter, 3)
    stroke(presenter, 17)
    (edit,) = state.request.edits
    ids = state.section.spots.ids
    assert set(edit.spots) == {ids[3], ids[17]}
    assert state.colouring.gene == "ERBB2"
    assert state.colouring.show == "change"
    stroke(presenter, 3, erase=True)
    assert set(state.request.edits[0].spots) == {ids[17]}
    painting.undo()
    painting.undo()
    assert set(state.request.edits[0].spots) == {ids[3]}
    painting.choose(None)
    painting.take_draft(EditDraft(genes=("VIM",)))
    stroke(presenter, 8)
    assert state.colouring.gene == "VIM"  # what is painted is what is shown
    assert [set(e.spots) for e in state.request.edits] == [{ids[3]}, {ids[8]}]


def test_the_radius_is_in_microns(presenter):
    presenter.painting.take_draft(EditDraft(genes=("ERBB2",)))
    presenter.set_brush(Brush(radius_um=101, softness=0))  # a spot and its six neighbours, 100 um away
    inner = 12
    stroke(presenter, inner)
    spots = presenter.state.section.spots
    near = np.linalg.norm(spots.yx - spots.yx[inner], axis=1) * 0.7 <= 101
    assert near.sum() == 7
    assert set(presenter.state.request.edits[0].spots) == set(spots.ids[near].tolist())


def test_what_undo_and_redo_change_is_chosen_next(presenter):
    painting, state = presenter.painting, presenter.state
    for gene in ("KRT8", "VIM", "CD3D"):
        painting.choose(None)
        painting.take_draft(EditDraft(genes=(gene,)))
        painting.add(None)
    painting.set_strength(1, 0.5)
    painting.choose(2)
    painting.undo()
    assert state.chosen_edit == 1
    assert state.draft.genes == ("VIM",)
    painting.undo()
    assert (len(state.request.edits), state.chosen_edit) == (2, 1)
    painting.choose(None)
    painting.undo()
    assert state.chosen_edit is None
    painting.redo()
    assert state.chosen_edit == 1  # the edit that came back, on which the brush goes on


def test_where_the_mouse_is_let_go_is_painted_too(presenter):
    presenter.painting.take_draft(EditDraft(genes=("ERBB2",)))
    presenter.set_brush(Brush(radius_um=40))
    assert not presenter.stroke("begin", place(presenter, 3), False)  # the brush is not in hand
    presenter.use_tool("brush")
    assert presenter.stroke("begin", place(presenter, 3), False)
    presenter.stroke("end", place(presenter, 4), False)
    assert set(presenter.state.request.edits[0].spots) == set(presenter.state.section.spots.ids[3:5].tolist())


def test_a_turned_section_is_painted_where_it_is_seen(presenter):
    viewer = presenter._viewer()
    layer = presenter.view.spots
    turn = np.deg2rad(30)
    layer.affine = np.array([[np.cos(turn), -np.sin(turn), 500], [np.sin(turn), np.cos(turn), -80], [0, 0, 1]])
    presenter.painting.take_draft(EditDraft(genes=("ERBB2",)))
    presenter.set_brush(Brush(radius_um=40))
    presenter.use_tool("brush")
    drag(viewer, [layer.data_to_world(place(presenter, 12))])
    assert set(presenter.state.request.edits[0].spots) == {presenter.state.section.spots.ids[12]}


def test_without_a_gene_the_brush_says_what_is_missing(presenter):
    stroke(presenter, 3)
    assert presenter.state.request.edits == ()
    assert "gene or a program" in presenter.state.draft_faults["what"]
    assert presenter.state.message.kind == "warning"


def test_a_swap_is_not_painted(presenter):
    ids = presenter.state.section.spots.ids.tolist()
    draft = EditDraft(operation="swap", group_a=tuple(ids[:3]), group_b=tuple(ids[5:8]))
    presenter.painting.take_draft(draft)
    assert presenter.painting.add(None)
    assert presenter.painting.outlined() == {*ids[:3], *ids[5:8]}
    stroke(presenter, 3)
    assert presenter.state.request.edits[0].spots is None
    assert "cannot be painted" in presenter.state.message.text
    presenter.painting.take_draft(replace(draft, operation="knock_out", genes=("VIM",)))
    assert set(presenter.state.request.edits[0].spots) == {*ids[:3], *ids[5:8]}  # not of all spots, all of a sudden


def test_the_form_changes_the_chosen_edit_and_keeps_its_spots(presenter):
    painting, state = presenter.painting, presenter.state
    ids = state.section.spots.ids[:4].tolist()
    presenter.select(ids)
    painting.take_draft(EditDraft(genes=("KRT8",)))
    painting.add(state.selected)
    painting.set_strength(0, 0.25)
    painting.take_draft(replace(state.draft, operation="scale", factor=5))
    (edit,) = state.request.edits
    assert (edit.operation, edit.factor, edit.strength, set(edit.spots)) == ("scale", 5, 0.25, set(ids))
    assert edit.name == "KRT8 × 5"
    painting.rename(0, "luminal")
    painting.take_draft(replace(state.draft, factor=6))
    assert state.request.edits[0].name == "luminal"
    assert not painting.add(())
    assert "Select spots first" in state.message.text


def test_edits_belong_to_their_section_and_survive_a_corrected_scale(presenter, tiny_section, tiny_folder):
    from napari_stmdit.tissue.open import open_section

    presenter.painting.take_draft(EditDraft(genes=("KRT8",)))
    presenter.painting.add(None)
    presenter.show(open_section(tiny_folder, mpp=0.8))
    assert len(presenter.state.request.edits) == 1
    assert presenter.state.section.calibration.mpp == 0.8
    presenter.show(replace(tiny_section, path=None, name="another"))
    assert presenter.state.request.edits == ()
    assert presenter.state.undoable == (False, False)
    presenter.show(open_section(tiny_folder))
    assert len(presenter.state.request.edits) == 1
    presenter.painting.undo()
    assert presenter.state.request.edits == ()


def test_a_request_from_elsewhere_can_be_undone(presenter):
    edit = KnockOut(genes=("VIM",))
    presenter.state.request = presenter.state.request.model_copy(update={"edits": (edit,)})
    assert presenter.state.undoable == (True, False)
    presenter.painting.undo()
    assert presenter.state.request.edits == ()


def test_what_has_no_effect_is_known_before_a_run(presenter):
    presenter.painting.take_draft(EditDraft(genes=("KRT8", "CD68")))  # the checkpoint reads fifteen genes, CD68 not
    presenter.painting.add(None)
    (reach,) = presenter.painting.reaches()
    assert reach.unread == ("CD68",)
    assert "1 of 2 genes is not read by the checkpoint" in reach.warning


def test_what_varies_with_an_edit_follows_unless_the_form_says_otherwise(presenter, tmp_path):
    painting, state = presenter.painting, presenter.state
    painting.take_draft(EditDraft(genes=("KRT8",)))
    painting.add(None)
    assert painting.edits[0].follow == "section"
    painting.take_draft(replace(state.draft, follow="none"))
    assert painting.edits[0].follow == "none"
    painting.choose(None)
    painting.choose(0)
    assert state.draft.follow == "none"


def test_the_genes_that_move_most_are_listed_and_go_to_a_file(presenter, tmp_path):
    painting = presenter.painting
    assert painting.movers() == ()
    painting.take_draft(EditDraft(genes=("KRT8",), log_units=0.5, follow="none"))
    painting.add(presenter.state.section.spots.ids[:4].tolist())
    (mover,) = painting.movers()
    measured = presenter.view.values.genes(("KRT8",), painting.edited(), "measured", True)[:4].mean()
    assert mover.gene == "KRT8" and mover.before == pytest.approx(measured, abs=1e-5)
    assert mover.after == pytest.approx(mover.before + 0.5, abs=1e-4)
    presenter.edit_files.export_movers(str(tmp_path / "movers.csv"))
    header, line = (tmp_path / "movers.csv").read_text().splitlines()
    assert header.startswith("gene,before") and line.startswith("KRT8,") and line.endswith(",0.5000")


def test_the_change_of_a_gene_that_follows_is_coloured(presenter, sample_like):
    presenter.show(sample_like)
    painting = presenter.painting
    painting.take_draft(EditDraft(genes=("G0",), log_units=0.5))
    painting.add(None)
    colouring = Colouring(gene="G3", show="change")
    values, _ = presenter.view.values.of(colouring, painting.edited())
    assert values.mean() > 0.1
    painting.take_draft(replace(presenter.state.draft, follow="none"))
    values, _ = presenter.view.values.of(colouring, painting.edited())
    assert not values.any()
    assert {mover.gene for mover in painting.movers()} == {"G0"}


def test_files_of_edits_sets_and_profiles(presenter, tmp_path):
    painting, files, state = presenter.painting, presenter.edit_files, presenter.state
    ids = state.section.spots.ids.tolist()
    (tmp_path / "sets.gmt").write_text("mine\tx\tKRT8\tKRT8\tABSENT\n")
    files.import_gmt(str(tmp_path / "sets.gmt"))
    assert "more than once" in state.message.text
    assert "ABSENT" in state.message.text
    presenter.select(ids[:5])
    files.export_profile(str(tmp_path / "five.json"))
    files.import_profile(str(tmp_path / "five.json"))
    assert state.draft.target_profile == "five"
    assert "five" in painting.profile_names()
    painting.add(tuple(ids[6:9]))
    painting.choose(None)
    painting.take_draft(EditDraft(operation="knock_out", programs=("mine",)))
    painting.add(None)
    files.save(str(tmp_path / "edits.yaml"))
    kept = state.request
    state.request = kept.model_copy(update={"edits": (), "programs": {}, "profiles": {}})
    files.load(str(tmp_path / "edits.yaml"))
    assert state.request == kept
    assert isinstance(state.request.edits[0], Towards)
    for bad, do in (("x.yaml", files.load), ("x.gmt", files.import_gmt), ("x.json", files.import_profile)):
        (tmp_path / bad).write_text("nonsense")
        do(str(tmp_path / bad))
        assert state.message.kind == "error"
        assert bad in state.message.text
        assert state.request == kept


def test_an_edit_that_lost_its_profile_does_not_break_the_colours(presenter):
    edit = Towards(target_profile="gone", genes=("KRT8",))
    presenter.state.request = presenter.state.request.model_copy(update={"edits": (edit,)})
    presenter.colour(Colouring("KRT8", show="change"))
    assert presenter.state.colour_scale.fault == ""
    assert presenter.view._values.max() == 0


def write_files(folder):
    (folder / "seven.yaml").write_text(
        "edits:\n- operation: scale\n  factor: 2\n  programs: [P]\nprograms:\n  P: {CD68: 1.0}\n"
    )
    (folder / "sets.gmt").write_text("P\tx\tCD68\n")


@pytest.fixture
def with_program(presenter):
    """An edit of a program P of the user's own, which is KRT8 alone."""
    own = {"P": {"KRT8": 1.0}}
    presenter.state.request = presenter.state.request.model_copy(update={"programs": own})
    presenter.painting.take_draft(EditDraft(programs=("P",), factor=3.0))
    presenter.painting.add(None)
    return presenter


def test_undo_of_a_loaded_file_brings_back_what_the_edits_meant(with_program, tmp_path):
    write_files(tmp_path)
    painting, state = with_program.painting, with_program.state
    before = state.request
    with_program.edit_files.load(str(tmp_path / "seven.yaml"))
    assert state.request.programs["P"] == {"CD68": 1.0}
    after = state.request
    painting.undo()
    assert state.request == before and painting.edited().programs["P"] == {"KRT8": 1.0}
    painting.redo()
    assert state.request == after


def test_gene_sets_from_a_file_do_not_change_what_an_edit_means(with_program, tmp_path):
    write_files(tmp_path)
    painting, state = with_program.painting, with_program.state
    before = state.request
    with_program.edit_files.import_gmt(str(tmp_path / "sets.gmt"))
    assert state.request.programs == {"P": {"KRT8": 1.0}, "P (sets)": {"CD68": 1.0}}
    assert state.message.kind == "warning" and "now 'P (sets)'" in state.message.text
    painting.undo()
    assert state.request == before
    painting.delete(0)
    with_program.edit_files.import_gmt(str(tmp_path / "sets.gmt"))  # nothing uses it any more: yours counts
    assert state.request.programs == {"P": {"CD68": 1.0}}


def test_a_bundled_program_in_use_is_not_replaced_by_a_file(presenter, tmp_path):
    from napari_stmdit.expression.programs import bundled_programs

    name = next(iter(bundled_programs()))
    (tmp_path / "own.gmt").write_text(f"{name}\tx\tKRT8\n")
    presenter.painting.take_draft(EditDraft(programs=(name,)))
    presenter.painting.add(None)
    presenter.edit_files.import_gmt(str(tmp_path / "own.gmt"))
    assert presenter.painting.edited().programs[name] == bundled_programs()[name]
    assert presenter.state.request.programs == {f"{name} (own)": {"KRT8": 1.0}}


def test_a_profile_in_use_is_not_replaced_by_a_file(presenter, tmp_path):
    ids, files, state = presenter.state.section.spots.ids.tolist(), presenter.edit_files, presenter.state
    presenter.select(ids[:5])
    files.export_profile(str(tmp_path / "mean.json"))
    files.import_profile(str(tmp_path / "mean.json"))
    presenter.painting.add(None)
    presenter.painting.choose(None)
    first = state.request.profiles["mean"]
    presenter.select(ids[9:12])
    files.export_profile(str(tmp_path / "mean.json"))
    files.import_profile(str(tmp_path / "mean.json"))
    assert state.request.profiles["mean"] == first and state.draft.target_profile == "mean (file)"
    assert "in use by an edit" in state.message.text


def test_another_sections_programs_do_not_change_what_edits_put_away_mean(
    with_program, tiny_section, tiny_folder, tmp_path
):
    write_files(tmp_path)
    other = replace(tiny_section, name="other", path=tmp_path)
    with_program.show(other)
    with_program.edit_files.load(str(tmp_path / "seven.yaml"))
    with_program.show(tiny_section)
    assert with_program.painting.edited().programs["P"] == {"KRT8": 1.0}
    assert [edit.programs for edit in with_program.painting.edits] == [("P",)]


def test_the_form_of_a_swap_keeps_the_weights_of_its_members(presenter):
    ids = presenter.state.section.spots.ids.tolist()
    weights = {ids[0]: 0.25, ids[3]: 0.5}
    swap = Swap(group_a=ids[:2], group_b=ids[3:5], genes=("KRT8",), spots=weights)
    state = presenter.state
    state.request = state.request.model_copy(update={"edits": (swap,)})
    presenter.painting.choose(0)
    presenter.painting.take_draft(replace(state.draft, genes=("KRT8", "CD68")))
    (edit,) = presenter.painting.edits
    assert edit.spots == weights and edit.genes == ("KRT8", "CD68")
    presenter.painting.take_draft(replace(state.draft, group_b=(*ids[3:5], ids[7])))
    assert presenter.painting.edits[0].spots == {**weights, ids[7]: 1.0}
    presenter.painting.take_draft(replace(state.draft, operation="knock_out"))
    assert presenter.painting.edits[0].spots == {**weights, ids[7]: 1.0}


def test_edits_and_names_come_back_after_the_spots_were_removed(presenter, tiny_section):
    viewer, state = presenter._viewer(), presenter.state
    ids = state.section.spots.ids.tolist()
    presenter.select(ids[:4])
    presenter.choosing.save("four")
    presenter.painting.take_draft(EditDraft(operation="knock_out", genes=("ERBB2",)))
    presenter.painting.add(ids[:4])
    viewer.layers.remove(presenter.view.spots)
    assert state.section is None and not state.request.edits
    assert "edits and named selections are back" in state.message.text
    presenter.show(tiny_section)
    assert len(state.request.edits) == 1 and state.named == {"four": tuple(ids[:4])}
    assert state.selected == ()
    presenter.painting.undo()
    assert state.selected == tuple(ids[:4])  # what closing took away


def test_the_colour_bar_says_what_the_colours_mean_after_every_change(presenter):
    state = presenter.state
    state.draft = EditDraft(genes=("ERBB2",), operation="add", log_units=1.0)
    stroke(presenter, 0)
    presenter.painting.show_change()
    for change in (
        lambda: presenter.painting.set_strength(0, 0.5),
        presenter.painting.undo,
        lambda: presenter.painting.set_enabled(0, False),
    ):
        before = state.colour_scale
        change()
        assert state.colour_scale == presenter.view.scale and state.colour_scale != before


def test_another_tool_ends_the_stroke_and_keeps_it(presenter):
    presenter.state.draft = EditDraft(genes=("ERBB2",))
    presenter.use_tool("brush")
    presenter.stroke("begin", place(presenter, 0), False)
    presenter.use_tool("lasso")
    (edit,) = presenter.state.request.edits
    assert edit.spots and presenter.state.undoable[0]
    presenter.painting.undo()
    assert not presenter.state.request.edits


def test_a_second_quick_dab_paints_too_and_zooms_nowhere(presenter):
    viewer = presenter._viewer()
    presenter.state.draft = EditDraft(genes=("ERBB2",))
    presenter.use_tool("brush")
    world = [presenter.view.spots.data_to_world(place(presenter, row)) for row in (0, 25)]
    held = []
    presenter.state.events.request.connect(lambda: held.append(presenter.hand.holding), max_args=0)
    drag(viewer, [world[0], world[0]])
    assert held[-1] and not presenter.hand.holding
    zoom, press = viewer.camera.zoom, Press()
    press.position = tuple(world[1])
    for callback in viewer.mouse_double_click_callbacks:
        callback(viewer, press)
    (edit,) = presenter.state.request.edits
    assert presenter.state.section.spots.ids[25] in edit.spots and viewer.camera.zoom == zoom
