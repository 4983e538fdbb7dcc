"""HD bins come in as pseudo-spots: every bin of a disc once, and nothing from between the discs."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.sparse import csr_matrix, random

from napari_stmdit.errors import SectionError
from napari_stmdit.tissue.geometry import fit_lattice
from napari_stmdit.tissue.open import open_section, synthesis_fault
from napari_stmdit.tissue.st_array import write_counts
from napari_stmdit.types import Genes

MPP, BIN_UM, SIDE = 0.5, 8.0, 70


@pytest.fixture(scope="module")
def hd_folder(tmp_path_factory):
    """A made Visium HD section of 70 x 70 bins of 8 um, 560 um wide; a corner of it is off tissue."""
    root = tmp_path_factory.mktemp("hd") / "sample"
    folder = root / "binned_outputs" / "square_008um"
    (folder / "spatial").mkdir(parents=True)
    rc = np.argwhere(np.ones((SIDE, SIDE)))
    yx = (rc + 0.5) * BIN_UM / MPP
    ids = np.array([f"s_008um_{r:05d}_{c:05d}-1" for r, c in rc])
    on_tissue = ~((rc[:, 0] < 20) & (rc[:, 1] < 20))
    pd.DataFrame(
        {
            "barcode": ids,
            "in_tissue": on_tissue.astype(int),
            "array_row": rc[:, 0],
            "array_col": rc[:, 1],
            "pxl_row_in_fullres": yx[:, 0],
            "pxl_col_in_fullres": yx[:, 1],
        }
    ).to_parquet(folder / "spatial" / "tissue_positions.parquet")
    counts = csr_matrix(random(len(rc), 5, 0.3, random_state=0, data_rvs=lambda n: np.arange(n) % 7 + 1)).astype(
        np.int32
    )
    write_counts(folder / "filtered_feature_bc_matrix.h5", ids, counts, Genes(np.array(list("ABCDE"))))
    factors = {"spot_diameter_fullres": 16.0, "bin_size_um": BIN_UM, "tissue_hires_scalef": 0.1}
    (folder / "spatial" / "scalefactors_json.json").write_text(json.dumps(factors))
    side_px = int(SIDE * BIN_UM / MPP)
    Image.new("RGB", (side_px // 10, side_px // 10)).save(folder / "spatial" / "tissue_hires_image.png")
    Image.new("RGB", (side_px, side_px), (200, 150, 180)).save(root / "scan.png")
    return root, rc, yx, on_tissue, counts


def test_pseudo_spots_lie_on_a_visium_lattice_and_sum_their_bins(hd_folder):
    root, _, yx, on_tissue, counts = hd_folder
    section = open_section(root)
    spots = section.spots
    assert section.kind == "visium_hd" and section.calibration.source == "lattice"
    assert section.calibration.mpp == pytest.approx(MPP)
    assert fit_lattice(spots.array_rc, spots.yx) == pytest.approx(MPP)
    assert spots.diameter == pytest.approx(55 / MPP)
    assert 15 <= len(spots) <= 36
    for spot in range(len(spots)):
        inside = np.flatnonzero(on_tissue & (np.hypot(*(yx - spots.yx[spot]).T) * MPP <= 27.5))
        assert spots.obs["bins"][spot] == len(inside) and len(inside) * 64 >= 0.5 * np.pi * 27.5**2
        np.testing.assert_array_equal(spots.counts[spot].toarray(), counts[inside].sum(axis=0))
    assert any("pseudo-spots: discs of 55 um on a hexagonal grid of 100 um" in note for note in section.notes)


def test_no_disc_lies_where_there_is_no_tissue(hd_folder):
    section = open_section(hd_folder[0] / "binned_outputs" / "square_008um")
    off = (section.spots.yx * MPP < 20 * BIN_UM - 27.5).all(axis=1)
    assert not off.any()


@pytest.mark.parametrize("place", ["", "outs"])
@pytest.mark.parametrize("inner", ["binned_outputs/square_008um", "square_008um"])
def test_the_microscope_image_above_the_bins_or_above_outs_is_found(hd_folder, tmp_path, place, inner):
    import shutil

    outs = tmp_path / "sample" / place
    shutil.copytree(hd_folder[0] / "binned_outputs" / "square_008um", outs / inner)
    shutil.copy(hd_folder[0] / "scan.png", tmp_path / "sample" / "scan.png")
    for path in (outs, outs / inner):
        section = open_section(path)
        assert section.image.source.endswith("scan.png") and section.image.pixel_size == 1
        assert synthesis_fault(section, 0.5) is None
    (outs / "link.png").symlink_to(tmp_path / "sample" / "scan.png")
    assert open_section(outs).image.pixel_size == 1


def test_of_several_bin_sizes_8_um_is_taken_and_told(hd_folder, tmp_path):
    import shutil

    root = shutil.copytree(hd_folder[0], tmp_path / "two")
    shutil.copytree(root / "binned_outputs" / "square_008um", root / "binned_outputs" / "square_016um")
    section = open_section(root)
    assert section.name == "two_square_008um"
    assert any("not those of square_016um" in note for note in section.notes)


def test_without_a_scale_bins_cannot_be_brought_together(hd_folder, tmp_path):
    import shutil

    folder = shutil.copytree(hd_folder[0] / "binned_outputs" / "square_008um", tmp_path / "square_008um")
    table = pd.read_parquet(folder / "spatial" / "tissue_positions.parquet")
    table["array_row"] = 0
    table.to_parquet(folder / "spatial" / "tissue_positions.parquet")
    with pytest.raises(SectionError, match="--mpp"):
        open_section(folder)
    assert len(open_section(folder, mpp=MPP).spots) > 15


@pytest.mark.parametrize("inner", ["", "binned_outputs", "binned_outputs/square_002um"])
def test_the_shared_layout_without_counts_opens(shared_data, inner):
    section = open_section(shared_data / "visium_hd_layout" / inner)
    assert section.kind == "visium_hd" and len(section.spots) > 0
    assert section.calibration.mpp == pytest.approx(0.2738, abs=1e-4)
    assert section.image.levels[0].compute().ndim == 3
    assert "single count" in synthesis_fault(section, 0.688)


def test_outs_with_a_spatial_folder_of_images_beside_binned_outputs_opens(hd_folder, tmp_path):
    """As Space Ranger 3 and 4 write it."""
    import shutil

    outs = tmp_path / "sample" / "outs"
    shutil.copytree(hd_folder[0] / "binned_outputs", outs / "binned_outputs")
    (outs / "spatial").mkdir()
    Image.new("RGB", (50, 50)).save(outs / "spatial" / "tissue_hires_image.png")
    for path in (outs, outs.parent):
        section = open_section(path)
        assert section.kind == "visium_hd" and section.name == "sample_square_008um"
        assert section.spots.diameter == pytest.approx(55 / MPP)


def test_bins_whose_positions_were_made_csv_are_still_bins(hd_folder, tmp_path):
    import shutil

    folder = shutil.copytree(hd_folder[0] / "binned_outputs" / "square_008um", tmp_path / "square_008um")
    parquet = folder / "spatial" / "tissue_positions.parquet"
    pd.read_parquet(parquet).to_csv(folder / "spatial" / "tissue_positions.csv", index=False)
    parquet.unlink()
    assert open_section(folder).kind == "visium_hd"
    other = folder.rename(tmp_path / "mine")
    with pytest.raises(SectionError, match="bins of Visium HD"):
        open_section(other)


def test_a_visium_section_with_its_positions_in_a_parquet_file_holds_spots(tiny_folder, tmp_path):
    import shutil

    outs = shutil.copytree(tiny_folder, tmp_path / "outs")
    csv = next(outs.glob("spatial/tissue_positions*.csv"))
    pd.read_csv(csv).to_parquet(outs / "spatial" / "tissue_positions.parquet")
    csv.unlink()
    section = open_section(outs)
    assert section.kind == "spaceranger" and section.spots.ids.tolist() == open_section(tiny_folder).spots.ids.tolist()


def test_bins_are_known_by_their_barcodes_and_two_sizes_are_refused(hd_folder, tmp_path):
    import shutil

    folder = shutil.copytree(hd_folder[0] / "binned_outputs" / "square_008um", tmp_path / "mine")
    factors = folder / "spatial" / "scalefactors_json.json"
    stated = json.loads(factors.read_text())
    factors.write_text(json.dumps({name: value for name, value in stated.items() if name != "bin_size_um"}))
    assert open_section(folder).calibration.mpp == pytest.approx(MPP)
    factors.write_text(json.dumps({**stated, "bin_size_um": 16.0}))
    with pytest.raises(SectionError, match="16 um by bin_size_um of its scalefactors, 8 um by its barcodes"):
        open_section(folder)
    factors.write_text(json.dumps(stated))
    with pytest.raises(SectionError, match="8 um by its barcodes, 16 um by its name"):
        open_section(folder.rename(tmp_path / "square_016um"))


def test_outs_without_bins_and_cells_says_what_is_missing(tmp_path):
    (tmp_path / "outs" / "spatial").mkdir(parents=True)
    (tmp_path / "outs" / "feature_slice.h5").write_bytes(b"")
    for path in (tmp_path, tmp_path / "outs"):
        with pytest.raises(SectionError, match="binned_outputs, or segmented_outputs, is missing"):
            open_section(path)


def test_sums_of_bins_do_not_wrap_around(hd_folder):
    from napari_stmdit.tissue.pseudo_spots import aggregate
    from napari_stmdit.types import Calibration, SpotTable

    _, rc, yx, _, _ = hd_folder
    scale = Calibration(MPP, "override", "")

    def bins(count, kind):
        counts = csr_matrix(np.full((len(rc), 1), count, dtype=kind))
        return SpotTable(np.arange(len(rc)).astype(str), yx, 16.0, counts, Genes(np.array(["A"])))

    spots, _ = aggregate(bins(100_000_000 // 5, np.int32), scale, BIN_UM)
    assert spots.counts.data.min() == spots.obs["bins"].min() * 20_000_000 > 0
    spots, _ = aggregate(bins(1, np.int32), scale, BIN_UM)
    assert spots.counts.dtype == np.int32
    with pytest.raises(SectionError, match="a sum is a count of"):
        aggregate(bins(1_000_000_000, np.int32), scale, BIN_UM)
