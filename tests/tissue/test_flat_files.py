"""Flat files with a prefix, as GEO keeps them: one sample opens, of several one is asked for."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.io import mmwrite
from tiny import TINY_GENES, TINY_MPP, tiny_arrays

from napari_stmdit.errors import SectionError
from napari_stmdit.tissue.open import SectionSource, open_section, synthesis_fault


def pack(source: Path, target: Path) -> None:
    target.write_bytes(gzip.compress(source.read_bytes()))


def lay_flat(tiny_folder: Path, place: Path, prefix: str, market: bool = True) -> Path:
    """The tiny section as a series of GEO has it."""
    spatial = tiny_folder / "spatial"
    table = pd.read_csv(spatial / "tissue_positions.csv")
    with gzip.open(place / f"{prefix}_tissue_positions_list.csv.gz", "wt") as file:
        table.to_csv(file, header=False, index=False)
    pack(spatial / "scalefactors_json.json", place / f"{prefix}_scalefactors_json.json.gz")
    for kind in ("hires", "lowres"):
        pack(spatial / f"tissue_{kind}_image.png", place / f"{prefix}_tissue_{kind}_image.png.gz")
    if not market:
        shutil.copy(tiny_folder / "filtered_feature_bc_matrix.h5", place / f"{prefix}_filtered_feature_bc_matrix.h5")
        return place
    arrays = tiny_arrays()
    with gzip.open(place / f"{prefix}_matrix.mtx.gz", "wb") as file:
        mmwrite(file, arrays["counts"].T.tocoo())
    features = [f"ENSG{i:011d}\t{name}\tGene Expression" for i, name in enumerate(TINY_GENES)]
    for name, lines in (("barcodes", arrays["ids"]), ("features", features)):
        (place / f"{prefix}_{name}.tsv.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    return place


@pytest.mark.parametrize("market", [True, False])
def test_one_sample_in_a_folder_opens_as_its_space_ranger_folder(tiny_folder, tmp_path, market):
    lay_flat(tiny_folder, tmp_path, "GSM5833537_KP_1", market)
    (tmp_path / "GSE193460_family.soft").write_text("about the series")
    shutil.copy(tiny_folder / "slide.png", tmp_path / "GSM5833537_KP_1_slide.png")
    section, expected = open_section(tmp_path), open_section(tiny_folder)
    assert section.name == "GSM5833537_KP_1" and section.path == tmp_path
    np.testing.assert_allclose(section.spots.yx, expected.spots.yx)
    assert section.spots.ids.tolist() == expected.spots.ids.tolist()
    assert (section.spots.counts != expected.spots.counts).nnz == 0
    assert section.spots.genes.symbols.tolist() == list(TINY_GENES)
    assert section.calibration.mpp == TINY_MPP and section.image.pixel_size == 1
    assert section.image.source.endswith("GSM5833537_KP_1_slide.png") and synthesis_fault(section, TINY_MPP) is None
    assert set(section.coordinate_systems) >= {"GSM5833537_KP_1", "GSM5833537_KP_1_downscaled_hires"}


def test_of_several_samples_one_is_asked_for_and_opened_by_its_prefix(tiny_folder, tmp_path):
    for prefix in ("GSM1_A", "GSM2_B"):
        lay_flat(tiny_folder, tmp_path, prefix)
    with pytest.raises(SectionError, match="files of 2 samples .*GSM1_A, GSM2_B.* choose one by its prefix, .*GSM1_A"):
        open_section(tmp_path)
    section = open_section(tmp_path / "GSM2_B")
    assert section.name == "GSM2_B" and len(section.spots) == 30 and section.image.pixel_size == pytest.approx(2.0)
    assert "--fullres" in synthesis_fault(section, TINY_MPP / 2)
    assert (
        SectionSource.given(str(tmp_path / "GSM2_B")).absolute().open().spots.ids.tolist() == section.spots.ids.tolist()
    )
    with pytest.raises(SectionError, match="there is no file or folder"):
        open_section(tmp_path / "GSM3_C")


def test_a_sample_without_counts_and_one_that_is_damaged_say_so_by_their_own_names(tiny_folder, tmp_path):
    lay_flat(tiny_folder, tmp_path, "GSM1_A")
    for name in ("matrix.mtx", "barcodes.tsv", "features.tsv"):
        (tmp_path / f"GSM1_A_{name}.gz").unlink()
    section = open_section(tmp_path)
    assert section.expression.kind == "none" and any("GSM1_A holds no counts" in note for note in section.notes)
    positions = tmp_path / "GSM1_A_tissue_positions_list.csv.gz"
    positions.write_bytes(positions.read_bytes()[:100])
    with pytest.raises(SectionError, match="GSM1_A_tissue_positions_list.csv.gz cannot be unpacked"):
        open_section(tmp_path)
    positions.write_bytes(gzip.compress(b"nothing"))
    with pytest.raises(SectionError, match="GSM1_A/spatial/tissue_positions_list.csv cannot be read as a positions"):
        open_section(tmp_path)


@pytest.mark.parametrize("name", ["GSM1_a_filtered_feature_bc_matrix.h5", "GSM1_A_filtered_gene_bc_matrices_h5.h5"])
def test_counts_under_another_name_are_named_and_not_overlooked(tiny_folder, tmp_path, name):
    lay_flat(tiny_folder, tmp_path, "GSM1_A")
    for own in ("matrix.mtx", "barcodes.tsv", "features.tsv"):
        (tmp_path / f"GSM1_A_{own}.gz").unlink()
    (tmp_path / name).write_bytes(b"counts")
    with pytest.raises(
        SectionError, match=f"has no counts under the name of GSM1_A.*, but {name}; if that are its counts"
    ):
        open_section(tmp_path)


def test_a_mark_of_unicode_before_the_first_spot_is_none_of_it(tiny_folder, tmp_path):
    lay_flat(tiny_folder, tmp_path, "GSM1_A")
    plain = open_section(tmp_path)
    for own in ("barcodes.tsv", "features.tsv"):
        file = tmp_path / f"GSM1_A_{own}.gz"
        file.write_bytes(gzip.compress(b"\xef\xbb\xbf" + gzip.decompress(file.read_bytes())))
    marked = open_section(tmp_path)
    assert marked.spots.ids.tolist() == plain.spots.ids.tolist()
    assert marked.spots.genes.symbols.tolist() == plain.spots.genes.symbols.tolist()
    assert marked.spots.genes.ids.tolist() == plain.spots.genes.ids.tolist()
