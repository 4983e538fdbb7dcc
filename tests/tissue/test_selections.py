"""Selections go out in the forms of other tools, and QuPath's annotations come in as selections."""

import csv
import json

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from napari_stmdit.errors import SectionError
from napari_stmdit.tissue.selections import read_annotations, write_selections
from napari_stmdit.types import Genes, SpotTable


@pytest.fixture
def spots():
    """A hexagonal lattice of 8 x 8 spots, 100 px apart, whose ids are not in the order of places."""
    rows, columns = np.divmod(np.arange(64), 8)
    yx = np.stack([rows * 86.6 + 200, columns * 100 + (rows % 2) * 50 + 300], axis=1)
    ids = np.array([f"s{(k * 29) % 64:02d}" for k in range(64)])
    return SpotTable(ids, yx, 55.0, csr_matrix(np.ones((64, 1), np.float32)), Genes(np.array(["A"])))


def feature(ring, **properties):
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [[[x, y] for y, x in part] for part in ring]},
        "properties": properties,
    }


def square(y, x, half):
    return [
        (y - half, x - half),
        (y - half, x + half),
        (y + half, x + half),
        (y + half, x - half),
        (y - half, x - half),
    ]


@pytest.mark.parametrize("seed", range(4))
def test_outlines_hold_the_selected_spots_and_no_other(spots, tmp_path, seed):
    chosen = np.random.default_rng(seed).random(64) < 0.5
    ids = tuple(spots.ids[chosen].tolist())
    write_selections(spots, {"tumour": ids}, tmp_path / "s.geojson")
    assert read_annotations(spots, tmp_path / "s.geojson").selections == {"tumour": ids}


def test_neighbours_share_one_outline(spots, tmp_path):
    write_selections(spots, {"left": spots.ids[spots.yx[:, 1] < 600].tolist()}, tmp_path / "s.geojson")
    (one,) = json.loads((tmp_path / "s.geojson").read_text())["features"]
    assert one["geometry"]["type"] == "Polygon" and one["properties"]["classification"] == {"name": "left"}


def test_classes_of_annotations_become_selections_and_holes_are_kept(spots, tmp_path):
    y, x = spots.yx[27]
    content = [
        feature([square(y, x, 130), square(y, x, 20)], classification={"name": "Tumor"}),
        feature([square(*spots.yx[0], 10)], classification={"name": "Tumor"}),
        feature([square(*spots.yx[63], 10)], name="vessel"),
        feature([square(5000, 5000, 10)], classification={"name": "elsewhere"}),
    ]
    (tmp_path / "a.geojson").write_text(json.dumps(content))
    found = read_annotations(spots, tmp_path / "a.geojson").selections
    assert set(found) == {"Tumor", "vessel"} and found["vessel"] == (spots.ids[63],)
    assert spots.ids[27] not in found["Tumor"] and spots.ids[0] in found["Tumor"] and len(found["Tumor"]) > 4


def test_regions_written_with_y_first_are_noticed(spots, tmp_path):
    ring = [(y, x) for x, y in square(*spots.yx[5], 40)]  # feature() writes its second number first
    (tmp_path / "a.geojson").write_text(json.dumps(feature([ring])))
    with pytest.raises(SectionError, match=r"with x and y changed over they would hold 1"):
        read_annotations(spots, tmp_path / "a.geojson")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "cannot be read as GeoJSON"),
        ("{}", "holds no polygon"),
        ('{"type": "Polygon", "coordinates": [[["a", 1]]]}', "annotation 1 cannot be used"),
    ],
)
def test_what_is_no_geojson_is_refused_in_a_sentence(spots, tmp_path, text, said):
    (tmp_path / "a.geojson").write_text(text)
    with pytest.raises(SectionError, match=said):
        read_annotations(spots, tmp_path / "a.geojson")


def test_loupe_gets_barcodes_and_names(spots, tmp_path):
    write_selections(spots, {"a": ["s01", "s02"], "b": ["s03"]}, tmp_path / "s.csv")
    with (tmp_path / "s.csv").open() as file:
        assert list(csv.reader(file)) == [["Barcode", "selection"], ["s01", "a"], ["s02", "a"], ["s03", "b"]]
    with pytest.raises(SectionError, match="one category a spot"):
        write_selections(spots, {"a": ["s01"], "b": ["s01"]}, tmp_path / "s.csv")


def test_row_numbers_are_those_of_the_table(spots, tmp_path):
    write_selections(spots, {"a": [spots.ids[40], spots.ids[3]]}, tmp_path / "s.txt")
    assert (tmp_path / "s.txt").read_text() == "3\n40\n"
    with pytest.raises(SectionError, match="holds one selection; got 2"):
        write_selections(spots, {"a": ["s01"], "b": ["s02"]}, tmp_path / "s.txt")


@pytest.mark.parametrize(
    ("selections", "name", "said"),
    [
        ({"a": []}, "s.csv", "no spot is selected"),
        ({"a": ["?"]}, "s.csv", "not in this section, such as '\\?'"),
        ({"a": ["s01"]}, "s.shp", r"'.shp'; expected one of .geojson"),
    ],
)
def test_what_cannot_be_written_is_refused(spots, tmp_path, selections, name, said):
    with pytest.raises(SectionError, match=said):
        write_selections(spots, selections, tmp_path / name)
    assert not (tmp_path / name).exists()


def test_regions_that_hold_far_more_with_x_and_y_changed_over_are_said_so(spots, tmp_path):
    wide = SpotTable(spots.ids, spots.yx * (1, 2), spots.diameter, spots.counts, spots.genes)
    few = feature([square(*wide.yx[0], 30)], name="few")
    changed_over = feature([[(x, y) for y, x in square(500, 1000, 290)]], name="many")
    far = feature([square(-500, -500, 30)], name="far")
    (tmp_path / "s.geojson").write_text(json.dumps([few, changed_over, far]))
    read = read_annotations(wide, tmp_path / "s.geojson")
    assert len(read.selections["few"]) == 1
    assert "no spot lies in far" in read.notes[0] and "are the points written as (y, x)?" in read.notes[1]
    (tmp_path / "s.geojson").write_text(json.dumps([few]))
    assert read_annotations(wide, tmp_path / "s.geojson").notes == ()


def test_derived_classes_and_objects_inside_others_are_told_apart(spots, tmp_path):
    inner = feature([square(*spots.yx[5], 10)], classification={"name": "Vessel"})
    content = [
        feature([square(*spots.yx[0], 10)], classification={"names": ["Tumor", "Keep"]}, childObjects=[inner]),
        feature([square(*spots.yx[63], 10)], classification={"names": ["Artefact", "Fold"], "color": [1, 2, 3]}),
    ]
    (tmp_path / "a.geojson").write_text(json.dumps(content))
    found = read_annotations(spots, tmp_path / "a.geojson").selections
    assert found == {"Tumor: Keep": (spots.ids[0],), "Vessel": (spots.ids[5],), "Artefact: Fold": (spots.ids[63],)}
