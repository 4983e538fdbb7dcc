"""Tables of other tools in the dock: unit and matrix are asked for, and the edit is an edit like others."""

import anndata
import numpy as np
import pandas as pd
import pytest
from napari.components import ViewerModel
from qtpy.QtWidgets import QDialogButtonBox, QWidget
from standins import make_section

from napari_stmdit.ui.jobs import start_inline
from napari_stmdit.ui.presenter import Presenter
from napari_stmdit.ui.state import Colouring, EditDraft
from napari_stmdit.ui.widgets.dialogs import TableDialog


@pytest.fixture
def section():
    return make_section()


@pytest.fixture
def presenter(section, monkeypatch):
    viewer = ViewerModel()  # held weakly by its presenter
    made = Presenter(viewer, start_inline)
    monkeypatch.setattr(made, "load_model", lambda choice: None)
    made.show(section)
    yield made
    del viewer


@pytest.fixture
def changes(section, tmp_path):
    path = tmp_path / "changes.csv"
    path.write_text(
        f"spot,{section.spots.genes.symbols[0]}\n" + "".join(f"{spot},2\n" for spot in section.spots.ids[:5])
    )
    return str(path)


def test_unit_and_matrix_are_asked_and_not_guessed(qtbot, tmp_path):
    table = anndata.AnnData(np.ones((2, 2)), pd.DataFrame(index=["a", "b"]), pd.DataFrame(index=["A", "B"]))
    table.layers["predicted"] = np.ones((2, 2))
    table.write_h5ad(tmp_path / "p.h5ad")
    parent = QWidget()
    qtbot.addWidget(parent)
    dialog = TableDialog(parent, str(tmp_path / "p.h5ad"))
    ok = dialog.buttons.button(QDialogButtonBox.StandardButton.Ok)
    assert not ok.isEnabled()
    dialog.unit.setCurrentIndex(dialog.unit.findData("counts"))
    assert not ok.isEnabled()  # X or predicted?
    dialog.layer.setCurrentIndex(dialog.layer.findData("predicted"))
    assert ok.isEnabled() and dialog.value() == ("counts", "predicted", None)
    dialog.baseline.setCurrentIndex(dialog.baseline.findData("X"))
    assert dialog.value() == ("counts", "predicted", "X")
    dialog.unit.setCurrentIndex(dialog.unit.findData("difference"))
    assert dialog.value() == ("difference", "predicted", None)


def test_a_text_table_is_asked_for_its_unit_alone(qtbot, changes):
    parent = QWidget()
    qtbot.addWidget(parent)
    dialog = TableDialog(parent, changes)
    dialog.unit.setCurrentIndex(dialog.unit.findData("difference"))
    assert dialog.buttons.button(QDialogButtonBox.StandardButton.Ok).isEnabled()
    assert dialog.value() == ("difference", None, None)


def test_a_table_becomes_an_edit_that_is_shown_undone_and_saved(presenter, section, changes, tmp_path):
    presenter.select(section.spots.ids[3:8].tolist())
    presenter.edit_files.import_table(changes, "difference", None, None)
    (edit,) = presenter.state.request.edits
    assert edit.name == "all genes from changes.csv" and len(edit.sha256) == 64
    assert set(edit.spots) == set(section.spots.ids[3:8].tolist())
    assert presenter.state.message.text.startswith("changes.csv covers 5 of 30 spots and 1 of 40 genes")
    gene = str(section.spots.genes.symbols[0])
    presenter.colour(Colouring(gene=gene, show="change"))
    values, _ = presenter.view.values.of(presenter.state.colouring, presenter.painting.edited())
    assert np.flatnonzero(values > 1.9).tolist() == [3, 4]
    presenter.edit_files.save(str(tmp_path / "edits.yaml"))
    presenter.painting.undo()
    assert not presenter.state.request.edits
    presenter.edit_files.load(str(tmp_path / "edits.yaml"))
    assert presenter.state.request.edits == (edit,)


def test_the_form_begins_another_edit_and_leaves_the_table_alone(presenter, section, changes):
    presenter.edit_files.import_table(changes, "difference", None, None)
    before = presenter.state.request.edits
    presenter.painting.choose(0)
    presenter.painting.take_draft(EditDraft(genes=(str(section.spots.genes.symbols[1]),)))
    assert presenter.state.request.edits == before and presenter.state.chosen_edit is None


def test_a_table_that_goes_away_leaves_the_viewer_at_work(presenter, section, changes, tmp_path):
    presenter.edit_files.import_table(changes, "difference", None, None)
    (tmp_path / "changes.csv").unlink()
    presenter.colour(Colouring(gene=str(section.spots.genes.symbols[0]), show="change"))
    assert presenter.painting.edited().edits == ()


def test_what_is_wrong_with_a_table_is_told_and_adds_nothing(presenter, tmp_path):
    (tmp_path / "t.csv").write_text("spot,A\nother,1\n")
    presenter.edit_files.import_table(str(tmp_path / "t.csv"), "difference", None, None)
    assert presenter.state.message.kind == "error" and "none of this section's spots" in presenter.state.message.text
    assert not presenter.state.request.edits
