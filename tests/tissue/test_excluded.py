"""Spots under folds and pen are left out of everything, at one place, and are kept aside with the section."""

import json

import numpy as np
import pytest
from standins import CropModel, card_for
from tiny import TINY_GENES

from napari_stmdit.edits import Add
from napari_stmdit.errors import RequestError, SectionError
from napari_stmdit.evaluation.evaluate import open_sections
from napari_stmdit.expression.profiles import measure_profile
from napari_stmdit.intent import Request
from napari_stmdit.regions import Polygons, SpotList
from napari_stmdit.synthesis.plan import plan
from napari_stmdit.synthesis.requests import read_request
from napari_stmdit.synthesis.session import synthesize
from napari_stmdit.tissue.excluded import exclude, without_excluded
from napari_stmdit.tissue.open import open_section
from napari_stmdit.tissue.selections import write_selections


@pytest.fixture
def tiny_card():
    return card_for(TINY_GENES)


@pytest.fixture
def regions(tiny_section, tmp_path):
    """A file with a fold of four spots and pen over two."""
    ids = tiny_section.spots.ids.tolist()
    write_selections(tiny_section.spots, {"fold": ids[:4], "pen": ids[10:12]}, tmp_path / "regions.geojson")
    return tmp_path / "regions.geojson"


def test_spots_in_the_regions_of_a_file_are_left_out_and_kept_aside(tiny_section, tiny_folder, regions):
    section = open_section(tiny_folder, exclude=regions)
    ids = tiny_section.spots.ids.tolist()
    assert section.spots.ids.tolist() == [*ids[4:10], *ids[12:]]
    assert section.notes[-1] == "6 of 30 spots are excluded (fold 4, pen 2) and used for nothing"
    assert section.excluded.regions == {"fold": tuple(ids[:4]), "pen": tuple(ids[10:12])}
    assert section.whole.spots.ids.tolist() == ids and section.whole.notes == tiny_section.notes
    np.testing.assert_array_equal(section.spots.counts.toarray()[0], tiny_section.spots.counts.toarray()[4])


def test_a_class_alone_is_left_out(tiny_folder, regions):
    assert len(open_section(tiny_folder, exclude=regions, exclude_classes=("pen",)).spots) == 28
    with pytest.raises(SectionError, match=r"no spot lies in regions of the class blur .* are fold and pen|fold, pen"):
        open_section(tiny_folder, exclude=regions, exclude_classes=("blur",))


def test_excluding_again_adds_and_too_much_is_refused(tiny_section):
    ids = tiny_section.spots.ids.tolist()
    once = exclude(tiny_section, {"fold": ids[:2]})
    twice = exclude(once, {"fold": ids[2:3], "pen": ids[5:6]})
    assert (
        len(twice.spots) == 26
        and twice.excluded.regions["fold"] == tuple(ids[:3])
        and len(twice.notes) == len(once.notes)
    )
    with pytest.raises(SectionError, match="at least 3 must be left"):
        exclude(tiny_section, {"all": ids[:28]})
    with pytest.raises(SectionError, match="not in tiny_section, such as 'nobody'"):
        exclude(tiny_section, {"fold": ["nobody"]})


def test_what_is_measured_of_a_section_is_measured_without_them(tiny_section):
    ids = tiny_section.spots.ids.tolist()
    section = exclude(tiny_section, {"fold": ids[:4]})
    whole = measure_profile(tiny_section.spots, ids[4:]).values
    assert measure_profile(section.spots, section.spots.ids.tolist()).values == whole
    with pytest.raises(Exception, match=ids[0]):
        measure_profile(section.spots, ids[:1])


def test_a_run_leaves_them_out_with_a_note(tiny_section, tiny_card):
    ids = tiny_section.spots.ids.tolist()
    section = exclude(tiny_section, {"fold": ids[:4]})
    edit = Add(genes=(TINY_GENES[0],), log_units=1.0, spots={ids[3]: 1.0, ids[4]: 0.5})
    request = Request(region=SpotList(ids=tuple(ids[2:8])), edits=(edit,), counterfactual="off")
    made = plan(section, request, tiny_card)
    assert [patch.spot_id for patch in made.patches] == ids[4:8]
    assert made.request.edits[0].spots == {ids[4]: 0.5}
    assert any("4 of 30 spots are excluded (fold 4)" in note for note in made.notes)
    everything = Polygons(rings=(((-1e4, -1e4), (-1e4, 1e5), (1e5, 1e5), (1e5, -1e4)),))
    assert len(plan(section, Request(region=everything), tiny_card)) == 26
    with pytest.raises(RequestError, match=r"region.ids: all 3 spots are excluded from this section; choose others"):
        plan(section, Request(region=SpotList(ids=tuple(ids[:3]))), tiny_card)
    with pytest.raises(RequestError, match="morphology: spot .* is excluded"):
        plan(section, Request(morphology=ids[0]), tiny_card)


def test_a_request_that_names_a_file_is_not_planned_without_it(tiny_section, tiny_folder, tiny_card, regions, tmp_path):
    (tmp_path / "request.yaml").write_text("exclude: regions.geojson\nregion: {kind: all}\n")
    request = read_request(tmp_path / "request.yaml")
    assert request.exclude == str(regions)
    with pytest.raises(RequestError, match="open the section with it"):
        plan(tiny_section, request, tiny_card)
    assert len(plan(open_section(tiny_folder, exclude=regions), request, tiny_card)) == 24
    result = synthesize(tiny_section, request, CropModel(tiny_card))
    assert len(result.done) == 24 and "6 of 30 spots are excluded" in " ".join(result.provenance["notes"])


def test_an_evaluation_is_opened_without_them(tiny_folder, regions):
    (section,) = open_sections(tiny_folder, exclude=regions)
    assert len(section.spots) == 24
    with pytest.raises(RequestError, match="--exclude and --orientation are for a single section"):
        open_sections([tiny_folder, tiny_folder], exclude=regions)


def test_a_request_without_such_spots_stays_as_it_is(tiny_section):
    ids = tiny_section.spots.ids.tolist()
    request = Request(region=SpotList(ids=tuple(ids[10:12])))
    assert without_excluded(exclude(tiny_section, {"fold": ids[:4]}), request) is request
    assert without_excluded(tiny_section, request) is request


def test_a_store_keeps_them_aside_and_takes_results_of_the_whole(tiny_section, tiny_card, tmp_path):
    from napari_stmdit.tissue.store import write_result
    from napari_stmdit.tissue.store_entries import list_results

    ids = tiny_section.spots.ids.tolist()
    section = exclude(tiny_section, {"fold": ids[:4]})
    rgba = np.full((8, 8, 4), 255, np.uint8)
    write_result(tmp_path / "OUT.zarr", rgba, np.eye(3), section, "one", {})
    again = open_section(tmp_path / "OUT.zarr")
    assert (
        again.excluded.regions == {"fold": tuple(ids[:4])} and len(again.spots) == 26 and len(again.whole.spots) == 30
    )
    write_result(tmp_path / "OUT.zarr", rgba, np.eye(3), tiny_section, "two", {})
    write_result(tmp_path / "OUT.zarr", rgba, np.eye(3), again, "three", {})
    assert len(list_results(tmp_path / "OUT.zarr")) == 3


def test_a_store_whose_record_of_them_is_none_is_refused(tiny_section, tmp_path):
    from napari_stmdit.tissue.store import write_result

    write_result(tmp_path / "OUT.zarr", np.full((8, 8, 4), 255, np.uint8), np.eye(3), tiny_section, "one", {})
    meta = json.loads((tmp_path / "OUT.zarr" / "zarr.json").read_text())
    meta["attributes"]["stmdit_section"]["excluded"] = {"fold": "s1"}
    meta.pop("consolidated_metadata", None)
    (tmp_path / "OUT.zarr" / "zarr.json").write_text(json.dumps(meta))
    with pytest.raises(SectionError, match="expected regions with the ids of their spots"):
        open_section(tmp_path / "OUT.zarr")


def test_a_region_without_a_spot_is_told_where_all_are_meant(tiny_section, tiny_folder, regions):
    import json

    content = json.loads(regions.read_text())
    far = [[[x + 1e5, y] for x, y in [(0, 0), (0, 9), (9, 9), (0, 0)]]]
    blur = {"type": "Feature", "properties": {"name": "blur"}, "geometry": {"type": "Polygon", "coordinates": far}}
    content["features"].append(blur)
    regions.write_text(json.dumps(content))
    assert any("no spot lies in blur" in note for note in open_section(tiny_folder, exclude=regions).notes)
    one = open_section(tiny_folder, exclude=regions, exclude_classes=("pen",))
    assert not any("blur" in note for note in one.notes)
