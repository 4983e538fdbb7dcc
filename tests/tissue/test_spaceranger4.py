"""Cells of Space Ranger 4, its clusters, and the versions that misplace spots."""

from __future__ import annotations

import json
import shutil

import h5py
import numpy as np
import pytest
from PIL import Image
from spaceranger_writer import write_counts

from napari_stmdit.errors import SectionError
from napari_stmdit.tissue.open import open_section, synthesis_fault
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
    import pandas as pd
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
