"""A result belongs to the section and the element that it was made from, whatever else its store holds."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from standins import NoiseModel
from two_sections import CARD, forget_sections, one_of_two, write_two

from napari_stmdit.dataset.contents import open_results
from napari_stmdit.dataset.export import export_dataset
from napari_stmdit.errors import StoreError
from napari_stmdit.evaluation.results import evaluate_result
from napari_stmdit.intent import Request
from napari_stmdit.synthesis.session import synthesize
from napari_stmdit.synthesis.stored import read_stored, stored_results
from napari_stmdit.tissue.in_memory import link_elements
from napari_stmdit.tissue.open import open_section
from napari_stmdit.tissue.store import check_writable, write_result
from napari_stmdit.tissue.store_entries import list_results


def made(section, **request):
    return synthesize(section, Request(steps=1, **request), NoiseModel(CARD), batch=30)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """A store that holds A and B, with a result of each."""
    store = write_two(tmp_path_factory.mktemp("two") / "two.zarr")
    for name in "AB":
        made(open_section(store / "shapes" / f"{name}_spots")).save(store, name)
    return store


@pytest.fixture
def copied(both, tmp_path):
    """The same without the usual suffix: a store is what it holds, not what it is called."""
    return shutil.copytree(both, tmp_path / "plainname")


def test_a_section_knows_the_elements_it_was_read_from(both):
    section = open_section(both / "shapes" / "B_spots")
    assert section.store is not None
    assert (section.store.root, section.store.spots, section.store.table) == (both, "B_spots", "B_counts")
    assert open_section(both / "tables" / "B_counts").store == section.store


@pytest.mark.parametrize("name", ["A", "B"])
@pytest.mark.parametrize("place", ["shapes/{}_spots", "tables/{}_counts"])
def test_of_two_sections_each_has_its_own_results(both, name, place):
    section = open_section(both / place.format(name))
    (stored,) = stored_results(section)
    assert stored.element == f"stmdit_{name}" and stored.store == both
    found = read_stored(section)
    other = "B" if name == "A" else "A"
    assert set(found.left_out) == {f"stmdit_{other}"} and f"shapes/{other}_spots" in found.notes[0]


def test_a_data_set_of_one_section_holds_that_sections_patches_and_counts(both, tmp_path):
    import anndata

    export_dataset(both / "shapes" / "B_spots", tmp_path / "d", formats=("anndata",))
    table = anndata.read_zarr(tmp_path / "d" / "anndata" / "dataset.zarr")
    assert set(table.obs.run.dropna()) == {"stmdit_B"}
    counts = open_section(both / "shapes" / "B_spots").spots.counts.toarray()
    synthetic = table[(table.obs.run == "stmdit_B").to_numpy()]
    np.testing.assert_array_equal(np.asarray(synthetic.X.todense()), counts)
    with pytest.raises(StoreError, match=r"no run A.*belongs to shapes/A_spots"):
        open_results(both / "shapes" / "B_spots", ("A",))


def test_an_evaluation_takes_its_own_sections_results(copied, tmp_path):
    found = evaluate_result(copied / "shapes" / "A_spots", output=tmp_path, draws=20)
    assert found.total == 1 and set(found.report.facts["results"]) == {"stmdit_A"}


def test_other_plugins_are_given_the_circles_and_the_table_of_this_section(both, copied):
    assert link_elements(open_section(copied / "shapes" / "A_spots")).table == "A_counts"
    section = open_section(both / "shapes" / "B_spots")
    linked = link_elements(section)
    assert (linked.spots, linked.table) == ("B_spots", "B_counts")
    np.testing.assert_array_equal(np.asarray(linked.adata.X.todense()), section.spots.counts.toarray())


@pytest.mark.parametrize("systems", [{"B": np.eye(3)}, {"global": np.eye(3)}])
def test_another_sections_store_is_refused_though_barcodes_and_systems_are_the_same(systems, tmp_path):
    from spatialdata import SpatialData

    from napari_stmdit.tissue.elements import section_elements

    a, b = (replace(one_of_two(name), coordinate_systems=systems) for name in "AB")
    SpatialData(**section_elements(b, {"images": {}})).write(tmp_path / "b.zarr")
    for tried in (lambda: made(a).save(tmp_path / "b.zarr"), lambda: check_writable(tmp_path / "b.zarr", a)):
        with pytest.raises(StoreError, match="holds another section than A"):
            tried()
    assert list_results(tmp_path / "b.zarr") == ()
    assert made(b).save(tmp_path / "b.zarr") == "stmdit_1"
    (stored,) = stored_results(open_section(tmp_path / "b.zarr"))
    assert stored.note == ""


def test_a_result_made_elsewhere_goes_to_the_section_whose_places_it_has(copied):
    assert made(one_of_two("B")).save(copied, "from_memory") == "stmdit_from_memory"
    found = {
        name: [one.element for one in stored_results(open_section(copied / "shapes" / f"{name}_spots"))]
        for name in "AB"
    }
    assert found == {"A": ["stmdit_A"], "B": ["stmdit_B", "stmdit_from_memory"]}


@pytest.mark.parametrize("name", ["A", "B"])
def test_old_records_are_attributed_by_the_places_of_their_patches(copied, name):
    forget_sections(copied)
    found = read_stored(open_section(copied / "shapes" / f"{name}_spots"))
    assert [(one.element, one.note) for one in found.results] == [(f"stmdit_{name}", "")]


def test_an_old_record_that_proves_nothing_is_shown_with_a_note_or_not_at_all(copied, tmp_path):
    from spatialdata import SpatialData

    from napari_stmdit.tissue.elements import section_elements

    b = one_of_two("B")
    rgba, affine = np.full((40, 40, 4), 255, np.uint8), np.diag([4.0, 4.0, 1.0])
    SpatialData(**section_elements(replace(b, coordinate_systems={"global": np.eye(3)}), {"images": {}})).write(
        tmp_path / "alone.zarr"
    )
    write_result(tmp_path / "alone.zarr", rgba, affine, open_section(tmp_path / "alone.zarr"), "sheet", {})
    forget_sections(tmp_path / "alone.zarr")
    (stored,) = stored_results(open_section(tmp_path / "alone.zarr"))
    assert "does not say which section" in stored.note
    write_result(copied, rgba, affine, open_section(copied / "shapes" / "B_spots"), "sheet", {})
    forget_sections(copied)
    for name, wanted in (("A", ["stmdit_A"]), ("B", ["stmdit_B", "stmdit_sheet"])):  # systems of their own tell
        assert [one.element for one in stored_results(open_section(copied / "shapes" / f"{name}_spots"))] == wanted


def test_what_a_store_of_ours_says_of_its_own_section_is_not_said_of_another_in_it(tmp_path):
    from spatialdata import read_zarr

    from napari_stmdit.tissue.elements import section_elements

    a, b = one_of_two("A"), one_of_two("B")
    made(replace(a, calibration=replace(a.calibration, mpp=0.62))).save(tmp_path / "a.zarr")
    sdata = read_zarr(tmp_path / "a.zarr")
    parts = section_elements(b, {"images": {}})
    named = [("B_counts" if kind == "tables" else name, one) for kind in parts for name, one in parts[kind].items()]
    for name, element in named:
        sdata[name] = element
        sdata.write_element(name)
    section_a, section_b = (open_section(tmp_path / "a.zarr" / "shapes" / f"{name}_spots") for name in "AB")
    assert section_a.calibration.mpp == pytest.approx(0.62) and section_a.name == "A"
    assert section_b.calibration.mpp == pytest.approx(0.5, rel=0.01)
    assert stored_results(section_b) == () and len(stored_results(section_a)) == 1
    made(section_b).save(tmp_path / "a.zarr", "b")
    assert [one.element for one in stored_results(section_b)] == ["stmdit_b"]
    assert len(stored_results(section_a)) == 1
