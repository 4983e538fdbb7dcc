"""Visium HD in a SpatialData store, as spatialdata-io writes it: bins as squares or circles, cells and nuclei as polygons."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix, random

from napari_stmdit.errors import SectionError
from napari_stmdit.tissue.geometry import fit_lattice
from napari_stmdit.tissue.identity import attribute, find_section
from napari_stmdit.tissue.open import open_section, synthesis_fault
from napari_stmdit.tissue.spatialdata_store import read_store
from napari_stmdit.tissue.store import write_result
from napari_stmdit.tissue.store_entries import read_image

MPP, SIDE = 0.5, 70
KINDS = ["Gene Expression"] * 4 + ["Antibody Capture", "CRISPR Guide Capture"]


def squares(yx, half):
    import shapely

    return [shapely.box(x - half, y - half, x + half, y + half) for y, x in yx]


def element(name, yx, side_px, ids, circles=False):
    import geopandas as gpd
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import Identity

    to = {"HD": Identity()}
    if circles:
        return ShapesModel.parse(yx[:, ::-1], geometry=0, radius=side_px / 2, index=pd.Index(ids), transformations=to)
    return ShapesModel.parse(gpd.GeoDataFrame(geometry=squares(yx, side_px / 2), index=ids), transformations=to)


def table(name, ids, counts, instances, rc=None):
    from spatialdata.models import TableModel

    obs = pd.DataFrame({"in_tissue": 1, "cell_id": instances, "region": pd.Categorical([name] * len(ids))}, index=ids)
    if rc is not None:
        obs["array_row"], obs["array_col"] = rc.T
    var = pd.DataFrame({"feature_types": KINDS, "gene_ids": [f"ENSG{i}" for i in range(6)]}, index=list("ABCDEF"))
    made = anndata.AnnData(counts, obs=obs, var=var)
    return TableModel.parse(made, region=name, region_key="region", instance_key="cell_id")


def bins(um, circles=False):
    rc = np.argwhere(np.ones((int(SIDE * 8 / um),) * 2))
    yx = (rc + 0.5) * um / MPP
    counts = random(
        len(rc), 6, 0.5, random_state=0, data_rvs=lambda n: np.arange(n) % 7 + 1, format="csr", dtype=np.float32
    )
    name, ids = f"HD_square_{um:03d}um", [f"s_{um:03d}um_{r:05d}_{c:05d}-1" for r, c in rc]
    where = np.arange(len(rc))
    return (
        yx,
        counts,
        {name: element(name, yx, um / MPP, where, circles)},
        {f"square_{um:03d}um": table(name, ids, counts, where, rc)},
    )


def cells():
    rng = np.random.default_rng(0)
    yx = rng.uniform(0, SIDE * 8 / MPP, (400, 2))
    counts = csr_matrix(rng.integers(0, 3, (400, 6)).astype(np.float32))
    ids = [f"cellid_{i:09d}-1" for i in range(400)]
    name = "HD_cell_segmentations"
    return yx, counts, {name: element(name, yx, 20, ids)}, {"cell_segmentations": table(name, ids, counts, ids)}


def store(path, *parts):
    from spatialdata import SpatialData
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import Identity

    side = int(SIDE * 8 / MPP)
    image = Image2DModel.parse(
        np.full((3, side, side), 200, np.uint8), dims=("c", "y", "x"), transformations={"HD": Identity()}
    )
    shapes = {k: v for part in parts for k, v in part[2].items()}
    tables = {k: v for part in parts for k, v in part[3].items()}
    SpatialData(images={"HD_full_image": image}, shapes=shapes, tables=tables).write(path)
    return path


def summed(section, yx, counts):
    """The counts of the genes, by hand, of what lies within 27.5 um of each spot; and how many that are."""
    near = [np.flatnonzero(np.hypot(*(yx - at).T) * MPP <= 27.5) for at in section.spots.yx]
    return np.stack([np.asarray(counts[i][:, :4].sum(axis=0)).ravel() for i in near]), [len(i) for i in near]


@pytest.mark.parametrize("circles", [False, True])
def test_bins_are_summed_as_those_of_a_folder_and_antibodies_are_no_genes(tmp_path, circles):
    eight = bins(8, circles)
    section = open_section(store(tmp_path / "s.zarr", bins(16, circles), eight, cells()))
    spots = section.spots
    assert section.kind == "visium_hd" and section.calibration.source == "lattice"
    assert section.calibration.mpp == pytest.approx(MPP) and fit_lattice(spots.array_rc, spots.yx) == pytest.approx(MPP)
    assert spots.diameter == pytest.approx(55 / MPP) and 20 <= len(spots) <= 42
    assert spots.genes.symbols.tolist() == list("ABCD") and spots.genes.ids.tolist() == [f"ENSG{i}" for i in range(4)]
    expected, members = summed(section, *eight[:2])
    np.testing.assert_array_equal(spots.counts.toarray(), expected)
    assert spots.obs["bins"].tolist() == members
    notes = " ".join(section.notes)
    assert "2 features of the table are no genes" in notes and "HD_square_008um is used, not" in notes
    assert section.image.pixel_size == 1 and synthesis_fault(section, MPP) is None and section.store is None


def test_a_set_is_chosen_by_its_path_and_cells_ask_for_a_scale(tmp_path):
    coarse, single = bins(16), cells()
    path = store(tmp_path / "s.zarr", coarse, single)
    section = open_section(path / "shapes" / "HD_square_016um")
    np.testing.assert_array_equal(section.spots.counts.toarray(), summed(section, *coarse[:2])[0])
    with pytest.raises(SectionError, match="--mpp"):
        open_section(path / "tables" / "cell_segmentations")
    section = open_section(path / "shapes" / "HD_cell_segmentations", mpp=MPP)
    expected, members = summed(section, *single[:2])
    np.testing.assert_array_equal(section.spots.counts.toarray(), expected)
    assert section.spots.obs["cells"].tolist() == members and min(members) >= 3
    assert any("400 cells of 100 um2 (median) were summed" in note for note in section.notes)


def test_a_store_of_cells_alone_opens_and_its_result_is_saved(tmp_path):
    from standins import CropModel, card_for

    from napari_stmdit import Request, synthesize
    from napari_stmdit.regions import SampleOfSpots

    section = open_section(store(tmp_path / "s.zarr", cells()), mpp=MPP)
    result = synthesize(section, Request(region=SampleOfSpots(count=2), steps=1), CropModel(card_for(("A", "B"))))
    result.save(tmp_path / "out.zarr")
    again = open_section(tmp_path / "out.zarr")
    assert (
        again.spots.ids.tolist() == section.spots.ids.tolist() and (again.spots.counts != section.spots.counts).nnz == 0
    )


def test_shares_that_are_true_or_false_are_numbers_and_bins_without_a_cluster_do_not_vote(tmp_path):
    eight = bins(8)
    obs = eight[3]["square_008um"].obs
    left = eight[0][:, 1] * MPP < 280
    obs["in_cell"], obs["in_nucleus"] = left, np.where(left, "yes", "no")
    obs["graphclust"] = np.where(eight[0][:, 0] * MPP < 400, np.nan, 2.0)
    spots = open_section(store(tmp_path / "s.zarr", eight)).spots
    near = [np.hypot(*(eight[0] - at).T) * MPP <= 27.5 for at in spots.yx]
    np.testing.assert_allclose(spots.obs["in_cell"], [left[i].mean() for i in near])
    assert "in_nucleus" not in spots.obs
    with_one = [bool((eight[0][i, 0] * MPP >= 400).any()) for i in near]
    assert spots.obs["graphclust"].tolist() == ["2" if has else "" for has in with_one] and len(set(with_one)) == 2


@pytest.mark.parametrize("radius", [False, True])
@pytest.mark.parametrize("unit", [1.0, MPP / 1000])
def test_visium_spots_as_polygons_are_spots(tmp_path, radius, unit):
    """On a slide that is turned by 7 degrees, in pixels and in millimetres; spatialdata's to_polygons keeps the radius."""
    import geopandas as gpd
    import shapely
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import Scale

    rc = np.argwhere(np.add.outer(np.arange(5), np.arange(10)) % 2 == 0)
    turn = np.array([[np.cos(0.12), -np.sin(0.12)], [np.sin(0.12), np.cos(0.12)]])
    yx = (rc * (100 * 3**0.5 / 2, 50) @ turn + (10, 60)) / MPP * unit
    shapes = gpd.GeoDataFrame(geometry=[shapely.Point(x, y).buffer(27.5 / MPP * unit) for y, x in yx])
    if radius:
        shapes["radius"] = 27.5 / MPP * unit
    made = ShapesModel.parse(shapes, transformations={"HD": Scale([1 / unit, 1 / unit], axes=("y", "x"))})
    counts = csr_matrix(np.arange(6 * len(rc)).reshape(-1, 6) % 9).astype(np.float32)
    ids = [f"spot{i}" for i in range(len(rc))]
    path = store(
        tmp_path / "s.zarr",
        (yx, counts, {"polygons": made}, {"t": table("polygons", ids, counts, np.arange(len(rc)), rc)}),
    )
    section = open_section(path)
    assert section.kind == "spatialdata" and section.calibration.mpp == pytest.approx(MPP) and section.outlines is None
    assert section.spots.ids.tolist() == ids and section.spots.diameter == pytest.approx(110, rel=0.01)
    np.testing.assert_allclose(section.spots.yx, yx / unit)
    write_result(path, np.zeros((200, 200, 4), np.uint8), np.eye(3), section, None, {})
    sdata = read_store(path)
    assert find_section(section, sdata) == section.store
    assert attribute(read_image(sdata, path, "stmdit_1"), section, sdata).mine


def test_squares_without_a_row_of_counts_cover_the_tissue_and_what_is_left_out_is_told(tmp_path):
    every = bins(8)
    kept = np.random.default_rng(0).random(SIDE**2) < 0.5
    fewer = every[3]["square_008um"][kept].copy()
    some = open_section(store(tmp_path / "some.zarr", (*every[:3], {"square_008um": fewer})))
    full = open_section(store(tmp_path / "full.zarr", every))
    assert len(some.spots) >= 0.9 * len(full.spots)
    np.testing.assert_array_equal(
        some.spots.counts.toarray(), summed(some, every[0][kept], every[1][kept])[0], strict=False
    )
    shapes = {"HD_square_008um": every[2]["HD_square_008um"][kept]}
    none = open_section(store(tmp_path / "none.zarr", (*every[:2], shapes, {"square_008um": fewer})))
    assert len(none.spots) < len(some.spots)  # nothing says that there was tissue
    assert any("left out: " in note and "of which bins cover less than half" in note for note in none.notes)


@pytest.mark.parametrize("circles", [False, True])
def test_bins_of_a_store_that_are_as_large_as_spots_are_spots(tmp_path, circles):
    large = bins(56, circles)
    path = store(tmp_path / "s.zarr", large)
    section = open_section(path)
    assert section.kind == "visium_hd" and section.calibration.mpp == pytest.approx(MPP) and section.outlines is None
    np.testing.assert_allclose(section.spots.yx, large[0])
    np.testing.assert_array_equal(section.spots.counts.toarray(), large[1][:, :4].toarray())
    for place in (path, tmp_path / "new.zarr"):
        write_result(place, np.zeros((200, 200, 4), np.uint8), np.eye(3), section, None, {})
        again = open_section(place)
        assert again.spots.ids.tolist() == section.spots.ids.tolist() and len(set(again.notes)) == len(again.notes)
        sdata = read_store(place)
        assert attribute(read_image(sdata, place, "stmdit_1"), again, sdata).mine


def test_a_table_that_states_two_sizes_of_its_bins_is_refused(tmp_path):
    eight = bins(8)
    eight[3]["square_008um"].uns["spatial"] = {"HD": {"scalefactors": {"bin_size_um": 16.0}}}
    with pytest.raises(SectionError, match="8 um by its barcodes or the table's name, 16 um by bin_size_um"):
        open_section(store(tmp_path / "s.zarr", eight))


def test_a_table_that_annotates_the_labels_of_bins_is_read_by_their_squares(tmp_path):
    """As spatialdata_io.visium_hd(annotate_table_by_labels=True) writes it: ids of labels start at 1, those of squares at 0."""
    from spatialdata import rasterize_bins, rasterize_bins_link_table_to_labels, read_zarr

    eight = bins(8)
    path = store(tmp_path / "s.zarr", eight, cells())
    sdata, name = read_zarr(path), "HD_square_008um"
    how = {"col_key": "array_col", "row_key": "array_row", "return_region_as_labels": True}
    sdata[f"{name}_labels"] = rasterize_bins(sdata, name, "square_008um", **how)
    rasterize_bins_link_table_to_labels(sdata, "square_008um", f"{name}_labels")
    sdata.write(tmp_path / "labels.zarr")
    section = open_section(tmp_path / "labels.zarr")
    np.testing.assert_array_equal(section.spots.counts.toarray(), summed(section, *eight[:2])[0])
    assert section.spots.yx.tolist() == open_section(path).spots.yx.tolist()
    del sdata.shapes[name]
    told = "tables/square_008um annotates the labels HD_square_008um_labels, which are not read"
    assert told in open_section(sdata, mpp=MPP).notes
    del sdata.shapes["HD_cell_segmentations"]
    with pytest.raises(SectionError, match=told):
        open_section(sdata)


def test_sets_of_bins_that_are_not_of_one_section_are_asked_for(tmp_path):
    from spatialdata.transformations import Identity, Translation, set_transformation

    eight, coarse = bins(8), bins(16)
    ((name, squares),) = coarse[2].items()
    for number, (system, to) in enumerate([("other", Identity()), ("HD", Translation([3000, 0], axes=("y", "x")))]):
        set_transformation(squares, {system: to}, set_all=True)
        path = store(tmp_path / f"{number}.zarr", eight, coarse)
        with pytest.raises(SectionError, match="several sets of spots: .*HD_square_008um .*HD_square_016um"):
            open_section(path)
        assert len(open_section(path / "shapes" / "HD_square_008um").spots) > 20


def test_bins_beside_visium_spots_are_named_in_a_note(tmp_path):
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import Identity

    rc = np.argwhere(np.add.outer(np.arange(5), np.arange(10)) % 2 == 0)
    yx = (rc + 0.5) * (100 * 3**0.5 / 2, 50) / MPP
    spots = ShapesModel.parse(yx[:, ::-1], geometry=0, radius=27.5 / MPP, transformations={"HD": Identity()})
    ids, counts = [f"spot{i}" for i in range(25)], csr_matrix(np.ones((25, 6), np.float32))
    visium = (yx, counts, {"visium": spots}, {"t": table("visium", ids, counts, np.arange(25), rc)})
    section = open_section(store(tmp_path / "s.zarr", visium, bins(8)))
    assert section.spots.ids.tolist() == ids and "visium is used, not HD_square_008um" in section.notes
