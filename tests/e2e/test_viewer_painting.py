"""Choosing and painting in a real viewer, by mouse and keys; and an edit painted in the dock replayed by the command line."""

import numpy as np
import pytest
from killing import run_alone
from mouse import ALT, CONTROL, SHIFT, Mouse
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QApplication
from viewing import no_leaks, opened, settle, viewer, workbench  # noqa: F401

from napari_stmdit.ui import layers
from napari_stmdit.ui.state import Brush, Colouring, EditDraft, RunStatus

pytestmark = pytest.mark.gui


def centres(bench):
    section = bench.state.section
    return section.spots.yx * section.calibration.mpp


def test_a_rectangle_with_and_without_modifiers(viewer, opened):  # noqa: F811
    state, mouse, world = opened.state, Mouse(viewer), centres(opened)
    ids = state.section.spots.ids
    opened.select.tool.button("rectangle").click()

    def drag(first, last, keys=Qt.KeyboardModifier.NoModifier):
        low, high = np.minimum(world[first], world[last]) - 30, np.maximum(world[first], world[last]) + 30
        mouse.draw([low, low + (high - low) * 0.4, low + (high - low) * 0.8, high], keys)
        return set(ids[((world >= low) & (world <= high)).all(axis=1)].tolist())

    inside = drag(0, 12)
    assert len(inside) >= 6
    assert set(state.selected) == inside
    added = drag(24, 29, SHIFT)
    assert set(state.selected) == inside | added
    gone = drag(0, 1, ALT)
    assert set(state.selected) == (inside | added) - gone
    mouse.draw([world[25] - 30, world[25], world[25] + 30], CONTROL)
    assert ids[25] not in state.selected
    assert [layers.role_of(x) for x in viewer.layers] == ["slide", "spots"]
    assert f"{len(state.selected)} of {len(ids)}" in opened.select.count.text()


def test_a_lasso_that_crosses_itself_takes_both_loops(viewer, opened):  # noqa: F811
    state, mouse, world = opened.state, Mouse(viewer), centres(opened)
    opened.select.tool.button("lasso").click()
    a, b = world[6], world[9]  # an eight around two spots of one row, crossing between them
    angle = np.linspace(0, 2 * np.pi, 120)
    middle, half = (a + b) / 2, np.linalg.norm(b - a) / 2 + 40
    eight = middle + np.column_stack([70 * np.sin(2 * angle), half * np.cos(angle)])
    mouse.draw(eight)
    assert {state.section.spots.ids[6], state.section.spots.ids[9]} <= set(state.selected)


def test_a_brush_stroke_undo_and_redo(viewer, opened):  # noqa: F811
    state, mouse, world = opened.state, Mouse(viewer), centres(opened)
    before = state.section.spots.counts.toarray().copy()
    camera_before = tuple(viewer.scene.camera.center if hasattr(viewer, "scene") else viewer.camera.center)
    opened.edits.form.what.setText("ERBB2")
    opened.edits.form.what.commit()
    assert state.draft.genes == ("ERBB2",)
    opened.presenter.set_brush(Brush(radius_um=60, softness=0.5))
    opened.edits.paint.click()
    assert state.tool == "brush"
    spots = opened.presenter.view.spots
    assert str(viewer.cursor.style) == "circle"
    faces = np.array(spots.face_color)

    mouse.draw(np.linspace(world[10], world[14], 12))
    (edit,) = state.request.edits
    ids = state.section.spots.ids
    assert set(ids[10:15].tolist()) <= set(edit.spots)
    assert all(edit.spots[i] == 1 for i in ids[10:15])  # a soft brush is whole along its middle
    assert len(edit.spots) < len(ids)
    assert state.selected == ()  # a stroke does not choose spots, nor move the camera
    assert tuple(viewer.scene.camera.center if hasattr(viewer, "scene") else viewer.camera.center) == camera_before
    assert state.colouring.show == "change"
    assert not np.allclose(spots.face_color, faces)
    assert spots.features["edits"][12] is not None
    assert "ERBB2" in spots.features["edits"][12]
    said = str(spots.get_status(tuple(world[12]), world=True))
    assert str(ids[12]) in said
    assert "edits: ERBB2" in said
    np.testing.assert_array_equal(state.section.spots.counts.toarray(), before)

    mouse.draw(np.linspace(world[10], world[11], 5), ALT)  # Alt erases
    assert ids[10] not in state.request.edits[0].spots
    assert ids[14] in state.request.edits[0].spots
    mouse.press(Qt.Key.Key_Z, CONTROL)
    assert state.request.edits[0].spots[ids[10]] == 1
    mouse.press(Qt.Key.Key_Z, CONTROL)
    assert state.request.edits == ()
    assert spots.features.columns.tolist()[0] == "spot"
    assert "edits" not in spots.features
    mouse.press(Qt.Key.Key_Z, CONTROL | SHIFT)
    assert state.request.edits[0].spots[ids[10]] == 1
    opened.edits.undo.click()
    assert state.request.edits == ()
    opened.edits.redo.click()
    assert len(state.request.edits) == 1
    mouse.click(world[25])  # a dab of the brush, which chooses nothing
    assert ids[25] in state.request.edits[0].spots
    assert state.selected == ()
    radius = state.brush.radius_um
    mouse.press(Qt.Key.Key_BracketRight, text="]")
    assert state.brush.radius_um > radius
    mouse.press(Qt.Key.Key_1, CONTROL)
    assert state.tool == "click"
    mouse.click(world[3])
    assert state.selected == (ids[3],)


def test_a_stroke_beside_the_tissue_leaves_nothing(viewer, opened):  # noqa: F811
    state, mouse = opened.state, Mouse(viewer)
    opened.presenter.painting.take_draft(EditDraft(genes=("KRT8",)))
    opened.presenter.set_brush(Brush(radius_um=5))
    opened.presenter.use_tool("brush")
    mouse.draw([np.array([2.0, 2.0]), np.array([4.0, 4.0])])
    assert state.request.edits == ()
    assert state.undoable == (False, False)
    assert state.chosen_edit is None


def test_the_list_of_edits_by_its_buttons(opened):  # noqa: F811
    state, panel = opened.state, opened.edits
    opened.reveal(opened.edits)
    opened.presenter.select(state.section.spots.ids[:5].tolist())
    panel.form.what.setText("epithelial, COL1A1")
    panel.form.what.commit()
    panel.to_selected.click()
    opened.presenter.select(())
    panel.spots.click()
    assert set(state.selected) == set(state.section.spots.ids[:5].tolist())
    panel.new.click()
    assert not panel.spots.isEnabled()
    panel.form.what.setText("nothing of this name")
    panel.form.what.commit()
    assert "nothing of this name" in panel.form.faults["what"].plain()
    panel.form.what.setText("CD3D")
    panel.form.what.commit()
    panel.form.operation.setCurrentIndex(panel.form.operation.findData("knock_out"))
    panel.form.operation.activated.emit(panel.form.operation.currentIndex())
    panel.to_all.click()
    first, second = state.request.edits
    assert (first.operation, first.programs, first.genes) == ("add", ("epithelial",), ("COL1A1",))
    assert set(first.spots) == set(state.section.spots.ids[:5].tolist())
    assert (second.operation, second.spots) == ("knock_out", None)
    rows = panel.list.rows
    assert not rows[0].mark.isHidden()  # epithelial has genes that the tiny section lacks
    assert "not in this section" in rows[0].mark.toolTip()
    assert rows[1].mark.isHidden()
    panel.up.click()
    assert [edit.operation for edit in state.request.edits] == ["knock_out", "add"]
    rows[0].eye.setChecked(False)
    for value in (80, 60, 40):
        rows[1].strength.setValue(value)
    assert not state.request.edits[0].enabled
    assert state.request.edits[1].strength == 0.4
    panel.undo.click()  # a slider that was dragged is one step
    assert state.request.edits[1].strength == 1
    rows[1].name.setText("more epithelium")
    rows[1].name.setModified(True)
    rows[1].name.editingFinished.emit()
    assert state.request.edits[1].name == "more epithelium"
    assert state.chosen_edit == 1  # what was undone is what is looked at
    panel.list.picked.emit(0)
    assert state.chosen_edit == 0
    panel.delete.click()
    assert [edit.name for edit in state.request.edits] == ["more epithelium"]
    assert panel.list.rows[0].name.text() == "more epithelium"


def test_a_swap_by_its_form(opened):  # noqa: F811
    presenter, panel, state = opened.presenter, opened.edits, opened.state
    opened.reveal(opened.edits)
    ids = state.section.spots.ids.tolist()
    for name, chosen in (("left", ids[:4]), ("right", ids[10:13])):
        presenter.select(chosen)
        opened.select.names.setCurrentText(name)
        opened.select.keep.click()
    presenter.select(())
    form = panel.form
    form.operation.setCurrentIndex(form.operation.findData("swap"))
    form.operation.activated.emit(form.operation.currentIndex())
    assert panel.to_selected.isHidden()
    panel.to_all.click()
    assert "two groups" in form.faults["target"].plain()
    for field, label in ((form.group_a, "left (4 spots)"), (form.group_b, "right (3 spots)")):
        field.setCurrentIndex(field.findText(label))
        field.activated.emit(field.currentIndex())
    panel.to_all.click()
    (edit,) = state.request.edits
    assert (edit.operation, edit.group_a, edit.group_b) == ("swap", tuple(ids[:4]), tuple(ids[10:13]))
    assert not panel.paint.isEnabled()
    panel.spots.click()
    assert set(state.selected) == {*ids[:4], *ids[10:13]}


def test_keys_are_given_back_when_the_dock_goes(viewer, opened):  # noqa: F811
    from qtpy.QtCore import QEvent

    assert "Ctrl+Z" in {str(key) for key in viewer.keymap}
    viewer.window.remove_dock_widget("all")
    opened.deleteLater()
    QApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete)
    settle(lambda: False, 0.1)
    assert "Ctrl+Z" not in {str(key) for key, action in viewer.keymap.items() if action is not None}


def test_colours_follow_names_and_each_gene_keeps_its_limits(opened):  # noqa: F811
    state, panel = opened.state, opened.colour
    panel.gene.setText("KRT8")
    panel.gene.commit()
    assert state.colouring.gene == "KRT8"
    panel.high.setValue(3.5)
    panel.high.editingFinished.emit()
    assert state.colour_scale.limits[1] == 3.5
    panel.gene.setText("epithelial (program)")
    panel.gene.commit()
    assert (state.colouring.program, state.colouring.gene) == ("epithelial", None)
    assert state.colour_scale.limits[1] != 3.5
    panel.gene.setText("KRT8")
    panel.gene.commit()
    assert state.colour_scale.limits[1] == 3.5
    panel.gene.setText("total counts")
    panel.gene.commit()
    assert state.colouring.obs == "total counts"
    assert panel.show_.isHidden()
    for part in ("rbb", "RBB2"):
        panel.gene.completer.setCompletionPrefix(part)
        assert panel.gene.completer.currentCompletion() == "ERBB2"


def test_an_edit_painted_in_the_dock_replays_from_the_command_line(viewer, workbench, tmp_path):  # noqa: F811
    """The bundled section and checkpoint, two spots, two steps: the same pixels to one grey level."""
    from napari_stmdit.tissue.store_entries import read_result

    bench, state = workbench, workbench.state
    bench.section.sample_button.click()
    assert settle(lambda: state.section is not None and state.checkpoint is not None and not state.busy, 90)
    settle(lambda: False, 0.2)
    mouse, world = Mouse(viewer), centres(bench)
    middle = int(np.argmin(np.linalg.norm(world - world.mean(axis=0), axis=1)))
    bench.presenter.painting.take_draft(EditDraft(operation="towards", target_profile="adipose"))
    bench.presenter.colour(Colouring("ERBB2"))
    bench.presenter.set_brush(Brush(radius_um=160, softness=0.7, strength=0.9))
    bench.presenter.use_tool("brush")
    mouse.draw([world[middle] - 40, world[middle], world[middle] + 40])
    assert state.request.edits[0].spots
    bench.presenter.use_tool("click")
    mouse.click(world[middle])
    near = int(np.argsort(np.linalg.norm(world - world[middle], axis=1))[1])
    mouse.click(world[near], SHIFT)
    assert len(state.selected) == 2
    state.request = state.request.model_copy(update={"steps": 2, "seed": 5, "morphology": "null"})
    bench.run_bar.run.click()
    assert settle(lambda: not state.status.busy, 120)
    assert state.status is RunStatus.DONE, state.message
    drawn = np.array(bench.presenter.results.layer(1).data)
    assert layers.ours(bench.presenter.results.layer(1))["provenance"]["request"]["edits"][0]["spots"]

    edits = tmp_path / "edits.yaml"
    bench.presenter.edit_files.save(str(edits))
    output = tmp_path / "out.zarr"
    command = ["synthesize", str(state.section.path), "--output", str(output)]
    command += ["--edits", str(edits), "--spots", ",".join(state.selected), "--steps", "2", "--seed", "5"]
    done = run_alone([*command, "--morphology", "null", "--device", "cpu"], tmp_path / "log")
    assert done.returncode == 0, done.stderr
    element = done.stdout.strip().splitlines()[0].rpartition("element ")[2]
    replayed, _, provenance = read_result(output, element)
    assert drawn.shape == replayed.shape
    assert np.abs(drawn.astype(int) - np.asarray(replayed).astype(int)).max() <= 1

    unedited = state.request.model_copy(update={"edits": ()})
    state.request = unedited
    bench.run_bar.run.click()
    assert settle(lambda: not state.status.busy and len(state.results) == 2, 120)
    plain = np.array(bench.presenter.results.layer(2).data)
    assert np.abs(drawn.astype(int) - plain.astype(int)).max() > 1  # and the edit does something
