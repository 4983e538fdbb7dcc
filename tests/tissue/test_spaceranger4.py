"""Cells of Space Ranger 4, its clusters, and the versions that misplace spots."""

from __future__ import annotations

import json
import shutil

import h5py
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from napari_stmdit.errors import SectionError
from napari_stmdit.tissue.open import open_section, synthesis_fault
from napari_stmdit.tissue.st_array import write_counts
from napari_stmdit.types import Genes

MPP, SIDE_PX = 0.5, 1000


@pytest.fixture
def segmented(tmp_path):
    """1,500 square cells of 10 um; the last one has counts and no outline."""
    from scipy.sparse import csr_matrix

    folder = tmp_path / "sample" / "outs" / "segmented_outputs"
    (folder / "spatial").mkdir(parents=True)
    rng = np.random.default_rng(0)
    yx = rng.integers(10, SIDE_PX - 10, (1500, 2)).astype(float)
    corners = np.array([(-10, -10), (-10, 10), (10, 10), (10, -10), (-10, -10)])
    features = [
        {
            "type": "Feature",
            "properties": {"cell_id": i},
            "geometry": {"type": "Polygon", "coordinates": [(at[::-1] + corners).tolist()]},
        }
        for i, at in enumerate(yx[:-1])
    ]
    (folder / "cell_segmentations.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    counts = csr_matrix(rng.integers(0, 3, (1500, 4)).astype(np.int32))
    ids = np.array([f"cellid_{i:09d}-1" for i in range(1500)])
    write_counts(folder / "filtered_feature_cell_matrix.h5", ids, counts, Genes(np.array(list("ABCD"))))
    factors = {"microns_per_pixel": MPP, "tissue_hires_scalef": 0.1}
    (folder / "spatial" / "scalefactors_json.json").write_text(json.dumps(factors))
    Image.new("RGB", (SIDE_PX // 10,) * 2, (200, 150, 180)).save(folder / "spatial" / "tissue_hires_image.png")
    Image.new("RGB", (SIDE_PX,) * 2, (200, 150, 180)).save(folder.parent / "scan.png")
    return folder, yx, counts


@pytest.mark.parametrize("above", [0, 1, 2])
def test_cells_are_summed_to_spots_from_any_folder_above(segmented, above):
    folder, yx, counts = segmented
    section = open_section((folder, folder.parent, folder.parent.parent)[above])
    assert section.name == "sample_cells" and section.calibration.mpp == MPP and section.image.pixel_size == 1
    assert synthesis_fault(section, MPP) is None and section.spots.diameter == pytest.approx(110)
    for spot, at in enumerate(section.spots.yx):
        inside = np.flatnonzero(np.hypot(*(yx[:-1] - at).T) * MPP <= 27.5)
        assert section.spots.obs["cells"][spot] == len(inside) >= 3
        np.testing.assert_array_equal(
            section.spots.counts[spot].toarray()[0], np.asarray(counts[inside].sum(axis=0))[0]
        )
    notes = " ".join(section.notes)
    assert "1499 cells of 100 um2 (median) were summed" in notes and "1 cells have no outline" in notes


def test_cells_without_a_scale_are_told_of_cells(segmented):
    (segmented[0] / "spatial" / "scalefactors_json.json").write_text("{}")
    with pytest.raises(SectionError, match="^cells cannot be brought .* states no microns per pixel; give .* --mpp"):
        open_section(segmented[0])


def test_cells_without_counts_or_with_damaged_outlines_are_one_sentence(segmented):
    folder = segmented[0]
    (folder / "cell_segmentations.geojson").write_text('{"features": [{}]}')
    with pytest.raises(SectionError, match="cell_segmentations.geojson cannot be read as outlines of cells"):
        open_section(folder)
    (folder / "filtered_feature_cell_matrix.h5").unlink()
    with pytest.raises(SectionError, match="holds no counts of cells; expected filtered_feature_cell_matrix.h5"):
        open_section(folder)


def test_clusters_of_space_ranger_are_a_column_to_colour_by(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "outs")
    ids = open_section(folder).spots.ids.tolist()
    file = folder / "analysis" / "clustering" / "gene_expression_graphclust" / "clusters.csv"
    file.parent.mkdir(parents=True)
    file.write_text("Barcode,Cluster\n" + "".join(f"{name},{i % 3 + 1}\n" for i, name in enumerate(reversed(ids[1:]))))
    found = dict(zip(ids, open_section(folder).spots.obs["graphclust"].tolist(), strict=True))
    assert found[ids[0]] == "" and found[ids[-1]] == "1" and found[ids[-2]] == "2"
    file.write_text("nothing")
    assert "graphclust" not in open_section(folder).spots.obs


@pytest.mark.parametrize(("version", "told"), [("3.1.1", True), ("3.1.2", False), ("4.0.1", False)])
def test_hd_of_a_version_that_may_misplace_spots_says_so(tmp_path, version, told):
    from scipy.sparse import csr_matrix

    folder = tmp_path / "square_008um"
    (folder / "spatial").mkdir(parents=True)
    rc = np.argwhere(np.ones((30, 30)))
    ids = np.array([f"s_008um_{r:05d}_{c:05d}-1" for r, c in rc])
    columns = ("pxl_row_in_fullres", "pxl_col_in_fullres")
    table = pd.DataFrame({"barcode": ids, "in_tissue": 1, "array_row": rc[:, 0], "array_col": rc[:, 1]})
    table[list(columns)] = (rc + 0.5) * 16.0
    table.to_parquet(folder / "spatial" / "tissue_positions.parquet")
    factors = {"spot_diameter_fullres": 16.0, "bin_size_um": 8.0}
    (folder / "spatial" / "scalefactors_json.json").write_text(json.dumps(factors))
    counts = csr_matrix(np.ones((900, 2), np.int32))
    write_counts(folder / "filtered_feature_bc_matrix.h5", ids, counts, Genes(np.array(["A", "B"])))
    with h5py.File(folder / "filtered_feature_bc_matrix.h5", "r+") as file:
        file.attrs["software_version"] = f"spaceranger-{version}"
    assert any("before 3.1.2" in note for note in open_section(folder).notes) is told


def custom_bins(root, name="custom", bin_um=24.0, first=0, share=1.0):
    """30 x 30 bins of a size of one's own, ``first`` rows and columns into the slide; a share of them with counts."""
    from scipy.sparse import csr_matrix

    folder = root / "binned_outputs" / name
    (folder / "spatial").mkdir(parents=True)
    rc = np.argwhere(np.ones((30, 30))) + first
    ids = np.array([f"s_{bin_um:03.0f}um_{r:05d}_{c:05d}-1" for r, c in rc])
    table = pd.DataFrame({"barcode": ids, "in_tissue": 1, "array_row": rc[:, 0], "array_col": rc[:, 1]})
    table[["pxl_row_in_fullres", "pxl_col_in_fullres"]] = (rc + 0.5) * bin_um / MPP
    table.to_parquet(folder / "spatial" / "tissue_positions.parquet")
    factors = {"spot_diameter_fullres": bin_um / MPP, "bin_size_um": bin_um}
    (folder / "spatial" / "scalefactors_json.json").write_text(json.dumps(factors))
    kept = np.random.default_rng(0).random(900) < share
    counts = csr_matrix(np.ones((int(kept.sum()), 2), np.int32))
    write_counts(folder / "filtered_feature_bc_matrix.h5", ids[kept], counts, Genes(np.array(["A", "B"])))
    return ids, rc


@pytest.mark.parametrize(("name", "first"), [("custom", 0), ("square_024um", 0), ("custom", 420)])
def test_bins_of_a_size_of_ones_own_open_also_far_out_on_a_slide_of_11_mm(tmp_path, name, first):
    custom_bins(tmp_path / "outs", name, first=first)
    for place in (
        tmp_path,
        tmp_path / "outs",
        tmp_path / "outs" / "binned_outputs",
        tmp_path / "outs" / "binned_outputs" / name,
    ):
        section = open_section(place)
        assert section.kind == "visium_hd" and section.calibration.mpp == pytest.approx(MPP)
        assert 35 <= len(section.spots) <= 72  # 720 um x 720 um, one a tenth of a mm along a row
        assert (section.spots.yx * MPP).max() <= (first + 30) * 24 + 50
        near = section.spots.obs["bins"]
        assert near.min() >= 2 and near.max() <= 6  # of 24 um, in a disc of 55 um


def test_shares_in_cells_and_nuclei_come_from_the_mapping_of_barcodes(tmp_path):
    ids, rc = custom_bins(tmp_path, "square_024um")
    left = np.repeat(rc[:, 1] < 15, 4)  # four squares of each bin: to the left all in cells, one of them in a nucleus
    mapping = pd.DataFrame(
        {"square_024um": np.repeat(ids, 4), "in_cell": left, "in_nucleus": left & (np.arange(3600) % 4 == 0)}
    )
    mapping.to_parquet(tmp_path / "barcode_mappings.parquet")
    spots = open_section(tmp_path).spots
    at = spots.yx[:, 1] * MPP
    assert set(spots.obs["in_cell"][at < 300].tolist()) == {1.0} and set(spots.obs["in_cell"][at > 420].tolist()) == {
        0.0
    }
    np.testing.assert_allclose(spots.obs["in_nucleus"], spots.obs["in_cell"] / 4)
    (tmp_path / "barcode_mappings.parquet").write_text("nothing")
    assert "in_cell" not in open_section(tmp_path).spots.obs


def test_clusters_of_bins_and_cells_are_those_of_most_of_a_spot(tmp_path, segmented):
    ids, rc = custom_bins(tmp_path / "hd")
    folder, yx, _ = segmented
    for inside, names, side in (
        (tmp_path / "hd" / "binned_outputs" / "custom", ids, rc[:, 1] < 15),
        (folder, [f"cellid_{i:09d}-1" for i in range(1500)], yx[:, 1] < SIDE_PX / 2),
    ):
        file = inside / "analysis" / "clustering" / "gene_expression_graphclust" / "clusters.csv"
        file.parent.mkdir(parents=True)
        file.write_text(
            "Barcode,Cluster\n"
            + "".join(f"{name},{1 if left else 2}\n" for name, left in zip(names, side, strict=True))
        )
    for section, middle in ((open_section(tmp_path / "hd"), 720), (open_section(folder), SIDE_PX / 2)):
        x, found = section.spots.yx[:, 1], section.spots.obs["graphclust"]
        assert set(found[x < middle - 120]) == {"1"} and set(found[x > middle + 120]) == {"2"}


def test_outlines_of_cells_come_along_to_be_drawn(segmented):
    folder, yx, _ = segmented
    outlines = open_section(folder).outlines.pieces
    assert outlines.shape == (4 * 1499, 2, 2)
    np.testing.assert_allclose(outlines[:4, 0].mean(axis=0), yx[0], atol=0.1)


def test_the_image_scale_that_space_ranger_was_given_is_the_scale(tiny_folder, tmp_path):
    outs = shutil.copytree(tiny_folder, tmp_path / "sample" / "outs")
    factors = outs / "spatial" / "scalefactors_json.json"
    stated = json.loads(factors.read_text())
    factors.write_text(json.dumps({name: value for name, value in stated.items() if name != "microns_per_pixel"}))
    lattice = open_section(outs).calibration
    assert lattice.source == "lattice"
    said = "call SPATIAL_RNA_COUNTER_CS(\n    image_scale = {},\n    custom_bin_size = null,\n)\n"
    (tmp_path / "sample" / "_invocation").write_text(said.format("0.71"))
    found = open_section(outs).calibration
    assert (
        found.mpp == 0.71
        and found.source == "scalefactors"
        and "image_scale that Space Ranger was given" in found.detail
    )
    for no_scale in ("null", "0.5.1", ".", "1e"):
        (tmp_path / "sample" / "_invocation").write_text(said.format(no_scale))
        assert open_section(outs).calibration == lattice


def test_bins_are_shown_with_the_outlines_of_the_cells_beside_them(segmented):
    folder, _, _ = segmented
    root = folder.parent
    custom_bins(root)
    of_bins, of_cells = open_section(root / "binned_outputs"), open_section(folder)
    assert of_bins.kind == "visium_hd" and of_bins.spots.obs["bins"].min() >= 2
    for place in (root, root / "binned_outputs" / "custom"):
        np.testing.assert_array_equal(open_section(place).outlines.pieces, of_cells.outlines.pieces)
    (folder / "cell_segmentations.geojson").write_text('{"features": [{}]}')
    damaged = open_section(root)  # which needs no outline
    assert len(damaged.spots) == len(of_bins.spots)
    with pytest.raises(SectionError, match="cell_segmentations.geojson cannot be read as outlines of cells"):
        damaged.outlines.pieces  # noqa: B018 - it reads the file


def test_outlines_beside_bins_are_read_when_they_are_asked_for_and_once(segmented, monkeypatch):
    import geopandas

    folder, _, _ = segmented
    custom_bins(folder.parent)
    read, asked = geopandas.read_file, []
    monkeypatch.setattr(geopandas, "read_file", lambda *given, **how: (asked.append(given), read(*given, **how))[1])
    section = open_section(folder.parent)
    assert section.outlines is not None and not asked
    assert section.outlines.pieces is section.outlines.pieces and len(asked) == 1


@pytest.mark.parametrize("bin_um", [16.0, 24.0, 28.0, 30.0, 32.0, 34.0, 38.0])
def test_no_disc_inside_the_tissue_is_lost_whatever_the_size_of_the_bins(tmp_path, bin_um):
    custom_bins(tmp_path, f"square_{bin_um:03.0f}um", bin_um)
    spots, side = open_section(tmp_path).spots, 30 * bin_um
    places = {tuple(rc) for rc in spots.array_rc.tolist()}
    inside = ((spots.yx * MPP > 130) & (spots.yx * MPP < side - 130)).all(axis=1)
    assert inside.sum() >= 3
    for row, column in spots.array_rc[inside].tolist():
        around = {(row, column + 2), (row, column - 2), *((row + i, column + j) for i in (-1, 1) for j in (-1, 1))}
        assert around <= places


@pytest.mark.parametrize("bin_um", [40.0, 64.0, 100.0])
def test_bins_as_large_as_spots_are_spots_themselves(tmp_path, bin_um):
    ids, rc = custom_bins(tmp_path, f"square_{bin_um:03.0f}um", bin_um)
    section = open_section(tmp_path)
    assert section.kind == "visium_hd" and section.spots.ids.tolist() == ids.tolist()
    np.testing.assert_allclose(section.spots.yx * MPP, (rc + 0.5) * bin_um)
    assert section.spots.counts.max() == 1 and section.spots.diameter == bin_um / MPP
    assert any(f"bins of {bin_um:g} um are spots as they are" in note for note in section.notes)


def test_bins_without_counts_cover_the_tissue_as_others_do(tmp_path):
    """Filters drop bins with few counts, often most of them; whole discs went with them."""
    custom_bins(tmp_path / "all", "square_008um", 8.0)
    custom_bins(tmp_path / "some", "square_008um", 8.0, share=0.5)
    every, some = (open_section(tmp_path / name) for name in ("all", "some"))
    # the middle one lies at a bin with counts, so the grid may shift
    assert 3 <= len(every.spots) <= len(some.spots) + 1
    assert some.spots.obs["bins"].max() < 30 <= every.spots.obs["bins"].max()
    left = [note for note in some.notes if "left out: " in note and "of which bins cover less than half" in note]
    assert len(left) == 1


def test_links_and_relative_paths_open_what_they_lead_to(segmented, tmp_path, monkeypatch):
    """By its real place: name, slide, outlines and shares are found by the folders above."""
    outs = segmented[0].parent
    ids, _ = custom_bins(outs, "square_024um")
    mapping = {"square_024um": ids, "in_cell": [True] * 900, "in_nucleus": [False] * 900}
    pd.DataFrame(mapping).to_parquet(outs / "barcode_mappings.parquet")
    bins, cells = outs / "binned_outputs" / "square_024um", segmented[0]
    (tmp_path / "bins").symlink_to(bins)
    (tmp_path / "cells").symlink_to(cells)
    of_bins = [(bins, "."), (bins.parent, "square_024um"), (outs, "binned_outputs"), (outs, "."), (tmp_path, "bins")]
    for there, path in of_bins:
        monkeypatch.chdir(there)
        section = open_section(path)
        assert section.name == "sample_square_024um" and section.path == bins and section.outlines is not None
        assert set(section.spots.obs["in_cell"].tolist()) == {1.0}
    for there, path in [(cells, "."), (outs, "segmented_outputs"), (tmp_path, "cells")]:
        monkeypatch.chdir(there)
        section = open_section(path)
        assert section.name == "sample_cells" and section.image.source.endswith("scan.png")
