"""Choosing spots by what they are, and what a colour stands for: no Qt."""

from dataclasses import replace

import numpy as np
import pytest
from napari.components import ViewerModel
from standins import make_section

from napari_stmdit.edits import Add
from napari_stmdit.ui.jobs import start_inline
from napari_stmdit.ui.presenter import Presenter
from napari_stmdit.ui.section_view import grown, neighbours
from napari_stmdit.ui.spot_colours import (
    FACE_ALPHA,
    UNKNOWN,
    Edited,
    SpotValues,
    auto_limits,
    categories_of,
    category_colours,
    face_of,
)
from napari_stmdit.ui.state import Colouring


@pytest.fixture
def section():
    made = make_section(rows=8, columns=8)
    n = len(made.spots)
    obs = {
        "cluster": np.arange(n, dtype=float) % 3,
        "tissue": np.where(made.spots.yx[:, 0] < np.median(made.spots.yx[:, 0]), "tumour", "stroma"),
        "purity": np.linspace(0, 1, n),
        "holes": np.where(np.arange(n) % 5, np.linspace(0, 1, n), np.nan),
    }
    return replace(made, spots=replace(made.spots, obs=obs))


@pytest.fixture
def presenter(section, monkeypatch):
    viewer = ViewerModel()  # held weakly by its presenter
    made = Presenter(viewer, start_inline)
    monkeypatch.setattr(made, "load_model", lambda choice: None)
    made.show(section)
    yield made
    del viewer


def test_growing_and_shrinking_by_rings_on_a_visium_lattice(section):
    spots = section.spots
    near = neighbours(spots)
    inner = next(k for k, (r, c) in enumerate(spots.array_rc.tolist()) if (r, c) == (4, 8))
    one = grown(spots, near, [spots.ids[inner]], 1)
    assert len(one) == 7
    distance = np.linalg.norm(spots.yx[spots.rows(one)] - spots.yx[inner], axis=1) * 0.5
    assert distance.max() == pytest.approx(100, rel=1e-6)
    two = grown(spots, near, [spots.ids[inner]], 2)
    assert len(two) == 19
    assert grown(spots, near, two, -1) == one
    assert grown(spots, near, one, -1) == (spots.ids[inner],)
    everything = spots.ids.tolist()
    assert grown(spots, near, everything, -1) == tuple(everything)  # where the tissue ends nothing is taken away


def test_without_array_positions_neighbours_are_found_by_distance(section):
    spots = section.spots
    by_place = neighbours(replace(spots, array_rc=None))
    assert (by_place != neighbours(spots)).nnz == 0
    grid = np.stack(np.meshgrid(np.arange(5.0), np.arange(5.0)), axis=-1).reshape(-1, 2) * 200
    square = replace(spots, ids=spots.ids[:25], yx=grid, array_rc=None)
    assert neighbours(square).sum(axis=1).max() == 4


def test_by_category_value_and_name(presenter, section):
    state, ids = presenter.state, section.spots.ids
    presenter.colour(Colouring(obs="tissue"))
    presenter.choosing.by_category("tissue", "tumour")
    tumour = set(ids[section.spots.obs["tissue"] == "tumour"].tolist())
    assert set(state.selected) == tumour
    presenter.choosing.save("tumour")
    presenter.choosing.by_category("cluster", "2", "subtract")
    assert set(state.selected) == {i for k, i in enumerate(ids.tolist()) if i in tumour and k % 3 != 2}
    presenter.choosing.by_values(Colouring(obs="purity"), 0.5, np.inf)
    assert set(state.selected) == set(ids[section.spots.obs["purity"] >= 0.5].tolist())
    presenter.choosing.by_values(Colouring("GENE1", log=False), -np.inf, 1e9)
    assert len(state.selected) == len(ids)
    presenter.choosing.by_values(Colouring(obs="holes"), -np.inf, np.inf)
    assert len(state.selected) == np.isfinite(section.spots.obs["holes"]).sum()
    presenter.choosing.recall("tumour")
    assert set(state.selected) == tumour
    presenter.choosing.grow(1)
    assert set(state.selected) > tumour
    presenter.choosing.delete("tumour")
    assert state.named == {}
    presenter.select(())
    presenter.choosing.save("nothing")
    assert state.named == {}
    assert state.message.kind == "warning"


def test_a_large_selection_is_planned_when_there_is_time(presenter, monkeypatch):
    called = []
    monkeypatch.setattr(presenter, "preview_soon", lambda: called.append("soon"))
    monkeypatch.setattr(presenter.runs, "preview", lambda: called.append("now"))
    presenter.select_all()
    assert called == ["now"]
    monkeypatch.setattr("napari_stmdit.ui.presenter.PLANNED_AT_ONCE", 10)
    presenter.select_all()
    assert called == ["now", "soon"]


def test_names_belong_to_their_section(presenter, section, tiny_section):
    presenter.select(section.spots.ids[:3].tolist())
    presenter.choosing.save("three")
    presenter.show(tiny_section)
    assert presenter.state.named == {}
    presenter.show(replace(section))
    assert list(presenter.state.named) == ["three"]


def test_columns_are_categories_or_numbers():
    assert categories_of(np.array(["b", "a", "", "b"])) == ("a", "b")
    assert categories_of(np.array([10.0, 2, 2, 10, 2, 10, np.nan])) == ("2", "10")
    assert categories_of(np.linspace(0, 1, 9)) == ()
    assert categories_of(np.arange(30)) == ()


def test_categories_and_missing_values_have_their_own_colours(section):
    values, scale = SpotValues(section.spots).of(Colouring(obs="tissue"))
    assert [name for name, _, _ in scale.categories] == ["stroma", "tumour"]
    assert sum(count for _, _, count in scale.categories) == len(section.spots)
    hollow = np.zeros(len(values), dtype=bool)
    face = face_of(values, scale, hollow)
    np.testing.assert_allclose(face[values == "tumour"][0], [*category_colours(2)[1][:3], FACE_ALPHA])
    values, scale = SpotValues(section.spots).of(Colouring(obs="holes"))
    face = face_of(values, scale, hollow)
    np.testing.assert_allclose(face[np.isnan(values)], np.broadcast_to(UNKNOWN, (np.isnan(values).sum(), 4)))


def test_a_column_of_texts_that_all_differ_is_no_column_of_categories_and_costs_no_time(section):
    import time

    count = 15_000
    names = np.array([f"cell {k}" for k in range(count)])
    spots = replace(
        section.spots,
        ids=names,
        yx=np.zeros((count, 2)),
        array_rc=None,
        obs={"cell": names, "kind": names[np.arange(count) % 200]},
    )
    values = SpotValues(spots)
    since = time.process_time()  # whatever else the computer does
    found, scale = values.of(Colouring(obs="cell"))
    assert found is None and "15,000 different texts" in scale.fault
    found, scale = values.of(Colouring(obs="kind"))
    face = face_of(found, scale, np.zeros(count, dtype=bool))
    assert time.process_time() - since < 2
    assert len(scale.categories) == 200 and sum(n for _, _, n in scale.categories) == count
    for name, colour, _ in scale.categories[:3]:
        np.testing.assert_allclose(face[found == name][:, :3], np.tile(colour[:3], (count // 200, 1)), rtol=1e-6)


def test_a_program_is_the_weighted_mean_of_the_genes_that_are_there(section):
    values = SpotValues(section.spots)
    programs = {"p": {"GENE1": 1.0, "GENE2": 0.5, "ABSENT": 1.0}}
    of_program, scale = values.of(Colouring(program="p"), Edited((), programs))
    one, two = (values.of(Colouring(gene))[0] for gene in ("GENE1", "GENE2"))
    np.testing.assert_allclose(of_program, (one + 0.5 * two) / 1.5, rtol=1e-5)
    assert "2 of 3 genes" in scale.gene
    assert "no program" in values.of(Colouring(program="q"), Edited((), programs))[1].fault
    assert "none of the" in values.of(Colouring(program="hypoxia"))[1].fault
    assert "no column" in values.of(Colouring(obs="nope"))[1].fault


def test_measured_edited_and_change_are_told_apart(section):
    values = SpotValues(section.spots)
    chosen = section.spots.ids[:4].tolist()
    edited = Edited((Add(genes=("GENE1",), log_units=1.5, spots=dict.fromkeys(chosen, 1.0)),))
    measured = values.of(Colouring("GENE1"), edited)[0]
    after, _ = values.of(Colouring("GENE1", show="edited"), edited)
    change, scale = values.of(Colouring("GENE1", show="change"), edited)
    np.testing.assert_allclose(after - measured, change, atol=1e-4)
    np.testing.assert_allclose(change, [1.5] * 4 + [0] * (len(change) - 4), atol=1e-4)
    assert scale.limits == pytest.approx((-1.5, 1.5), abs=1e-4)  # white is no change
    assert scale.unit == "change of log(1 + counts per 10,000)"


def test_automatic_limits():
    values = np.concatenate([np.full(99, 1.0), [100.0]]).astype(np.float32)
    assert auto_limits(values, "min_max") == (1.0, 100.0)
    assert auto_limits(values)[0] == 0.0
    assert auto_limits(values)[1] < 10
    assert auto_limits(np.zeros(3, dtype=np.float32)) == (0.0, 1.0)
    assert auto_limits(np.array([np.nan], dtype=np.float32)) == (0.0, 1.0)


def test_selections_go_to_a_file_and_annotations_come_in_as_selections(presenter, section, tmp_path):
    spots = section.spots
    presenter.select(spots.ids[:9].tolist())
    presenter.choosing.save("corner")
    presenter.choosing.export(str(tmp_path / "corner.geojson"))
    assert "saved in" in presenter.state.message.text
    presenter.choosing.delete("corner")
    presenter.choosing.load(str(tmp_path / "corner.geojson"))
    assert presenter.state.named == {"corner": tuple(spots.ids[:9].tolist())}
    assert presenter.state.message.text == "Kept as selections: corner (9 spots)."


def test_with_nothing_selected_all_named_selections_are_written(presenter, section, tmp_path):
    for name, part in (("a", slice(0, 4)), ("b", slice(4, 6))):
        presenter.select(section.spots.ids[part].tolist())
        presenter.choosing.save(name)
    presenter.select(())
    presenter.choosing.export(str(tmp_path / "all.csv"))
    rows = (tmp_path / "all.csv").read_text().splitlines()
    assert [row.split(",")[1] for row in rows] == ["selection", "a", "a", "a", "a", "b", "b"]


def test_row_numbers_are_those_of_a_saved_store_which_keeps_excluded_spots(presenter, section, tmp_path):
    from napari_stmdit.tissue.excluded import exclude

    presenter.show(exclude(section, {"fold": section.spots.ids[:3].tolist()}))
    presenter.select(section.spots.ids[[3, 7]].tolist())
    presenter.choosing.export(str(tmp_path / "rows.txt"))
    assert (tmp_path / "rows.txt").read_text().split() == ["3", "7"]


def test_what_cannot_be_written_or_read_is_told(presenter, tmp_path):
    presenter.select(())
    presenter.choosing.export(str(tmp_path / "none.csv"))
    assert presenter.state.message.kind == "error" and "no spot is selected" in presenter.state.message.text
    (tmp_path / "bad.geojson").write_text("{")
    presenter.choosing.load(str(tmp_path / "bad.geojson"))
    assert "cannot be read as GeoJSON" in presenter.state.message.text and not presenter.state.named
