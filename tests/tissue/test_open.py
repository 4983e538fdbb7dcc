"""Every layout comes in through one door, real data included; nothing is guessed."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.io import mmwrite
from tiny import TINY_GENES, TINY_MPP, TINY_SIDE_PX, analytic_image, tiny_arrays

from napari_stmdit.errors import SectionError
from napari_stmdit.tissue.open import open_section, synthesis_fault
from napari_stmdit.tissue.st_array import write_spaceranger_folder
from napari_stmdit.types import Genes

PATCH_MPP = 0.688


@pytest.fixture
def folder(tiny_folder, tmp_path) -> Path:
    """A copy of the tiny section to change."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "run" / "outs"))


# ---------------------------------------------------------------------------------------------- the tiny section


def test_a_written_folder_opens_as_it_was(tiny_section):
    arrays = tiny_arrays()
    spots = tiny_section.spots
    assert spots.ids.tolist() == arrays["ids"].tolist()
    np.testing.assert_array_equal(spots.yx, arrays["yx"])
    np.testing.assert_array_equal(spots.array_rc, arrays["array_rc"])
    assert (spots.counts != arrays["counts"]).nnz == 0
    assert spots.genes.symbols.tolist() == list(TINY_GENES)
    assert spots.diameter == arrays["diameter"]
    assert tiny_section.calibration.mpp == TINY_MPP and tiny_section.calibration.source == "scalefactors"
    assert tiny_section.image.pixel_size == 1 and tiny_section.image.shape == (TINY_SIDE_PX, TINY_SIDE_PX)
    np.testing.assert_array_equal(tiny_section.image.levels[0].compute(), analytic_image())
    assert set(tiny_section.coordinate_systems) == {
        "tiny_section",
        "tiny_section_downscaled_hires",
        "tiny_section_downscaled_lowres",
    }
    assert not tiny_section.synthetic
    assert synthesis_fault(tiny_section, PATCH_MPP) is None


def test_the_folder_above_outs_opens_too_and_gives_the_name(folder):
    assert open_section(folder.parent).name == "run"
    assert open_section(folder).name == "run"


def test_version_1_positions_have_no_header(folder):
    table = pd.read_csv(folder / "spatial" / "tissue_positions.csv")
    (folder / "spatial" / "tissue_positions.csv").unlink()
    table.to_csv(folder / "spatial" / "tissue_positions_list.csv", header=False, index=False)
    np.testing.assert_allclose(open_section(folder).spots.yx, tiny_arrays()["yx"], rtol=1e-12)


@pytest.mark.parametrize("packed", [True, False])
def test_a_matrix_market_folder_gives_the_same_counts(folder, packed):
    arrays = tiny_arrays()
    (folder / "filtered_feature_bc_matrix.h5").unlink()
    matrix = folder / "filtered_feature_bc_matrix"
    matrix.mkdir()
    suffix, opener = (".gz", gzip.open) if packed else ("", open)
    with opener(matrix / f"matrix.mtx{suffix}", "wb") as file:
        mmwrite(file, arrays["counts"].T.tocoo())
    features = [f"ENSG{i:011d}\t{name}\tGene Expression" for i, name in enumerate(TINY_GENES)]
    for name, lines in (("barcodes", arrays["ids"]), ("features", features)):
        with opener(matrix / f"{name}.tsv{suffix}", "wb") as file:
            file.write("\n".join(lines).encode())
    spots = open_section(folder).spots
    assert (spots.counts != arrays["counts"]).nnz == 0
    assert spots.genes.ids[3] == "ENSG00000000003" and spots.genes.symbols[3] == "ERBB2"


def test_only_spots_on_tissue_with_counts_are_kept_and_the_rest_is_told(folder):
    file = folder / "spatial" / "tissue_positions.csv"
    table = pd.read_csv(file)
    table.loc[0, "in_tissue"] = 0
    table.loc[len(table)] = ["EXTRA-1", 1, 7, 7, 10.0, 10.0]
    table.to_csv(file, index=False)
    section = open_section(folder)
    assert len(section.spots) == 29 and "SPOT00-1" not in section.spots.ids and "EXTRA-1" not in section.spots.ids
    assert any("1 positions on tissue have no counts" in note for note in section.notes)
    assert any("1 barcodes of the counts are not on tissue" in note for note in section.notes)


def test_without_a_stated_scale_the_lattice_is_fitted(folder):
    file = folder / "spatial" / "scalefactors_json.json"
    factors = json.loads(file.read_text())
    del factors["microns_per_pixel"]
    file.write_text(json.dumps(factors))
    calibration = open_section(folder).calibration
    assert calibration.source == "lattice" and calibration.mpp == pytest.approx(TINY_MPP, rel=1e-9)
    assert open_section(folder, mpp=0.5).calibration.mpp == 0.5


# ---------------------------------------------------------------------------------------------- the slide


def test_without_the_slide_it_opens_on_the_hires_image_and_is_refused_for_synthesis(folder):
    (folder / "slide.png").unlink()
    section = open_section(folder)
    assert section.image.pixel_size == pytest.approx(2.0) and section.image.source.endswith("tissue_hires_image.png")
    fault = synthesis_fault(section, PATCH_MPP)
    assert "--fullres" in fault and "fullres_image_file" in fault and "tissue_hires_image.png" in fault


def test_without_any_image_it_still_opens(folder):
    (folder / "slide.png").unlink()
    for file in (folder / "spatial").glob("*.png"):
        file.unlink()
    section = open_section(folder)
    assert section.image is None and len(section.spots) == 30
    assert "no slide image" in synthesis_fault(section, PATCH_MPP)


def test_an_image_just_fine_enough_is_taken(tiny_section):
    assert synthesis_fault(tiny_section, TINY_MPP / 1.5 * 1.001) is None
    assert "coarser" in synthesis_fault(tiny_section, TINY_MPP / 1.5 * 0.999)


def test_a_slide_beside_outs_is_found_by_its_size(folder):
    shutil.move(folder / "slide.png", folder.parent / "scan.png")
    Image.new("RGB", (500, 400)).save(folder.parent / "other.png")
    section = open_section(folder)
    assert section.image.source.endswith("scan.png")
    assert any("found by its size: scan.png" in note for note in section.notes)


def test_two_images_that_fit_are_not_chosen_between(folder):
    shutil.copy(folder / "slide.png", folder / "again.png")
    section = open_section(folder)
    assert section.image.pixel_size > 1
    assert any("again.png, slide.png" in note and "--fullres" in note for note in section.notes)
    assert open_section(folder, fullres="again.png").image.source.endswith("again.png")


def test_fullres_is_looked_for_in_the_working_directory_then_in_the_section(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert open_section(folder, fullres="slide.png").image.source == str(folder / "slide.png")
    shutil.copy(folder / "slide.png", tmp_path / "mine.png")
    assert open_section(folder, fullres="mine.png").image.source == str(tmp_path / "mine.png")
    shutil.copy(folder / "slide.png", tmp_path / "slide.png")  # the same picture in both places: nothing to ask
    assert open_section(folder, fullres="slide.png").image.pixel_size == 1


def test_two_different_images_of_the_same_name_are_refused(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(255 - analytic_image()).save(tmp_path / "slide.png")
    with pytest.raises(SectionError, match="they differ"):
        open_section(folder, fullres="slide.png")
    with pytest.raises(SectionError, match="is neither"):
        open_section(folder, fullres="nowhere.png")


def test_an_image_of_another_size_is_refused(folder, tmp_path):
    Image.new("RGB", (TINY_SIDE_PX, TINY_SIDE_PX // 2)).save(tmp_path / "half.png")
    with pytest.raises(SectionError, match="430 x 860 pixels.*860 x 860"):
        open_section(folder, fullres=tmp_path / "half.png")


# ---------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("spatial/scalefactors_json.json", "scalefactors_json.json is missing"),
        ("spatial/tissue_positions.csv", "holds no positions"),
    ],
)
def test_a_missing_file_is_named(folder, name, message):
    (folder / name).unlink()
    with pytest.raises(SectionError, match=message):
        open_section(folder)


def test_positions_and_slide_without_counts_open_and_say_so(folder):
    """What Space Ranger and GEO leave where counts lie elsewhere: morphology alone decides, and everybody is told."""
    from standins import card_for

    from napari_stmdit import Request
    from napari_stmdit.errors import RequestError
    from napari_stmdit.synthesis.plan import plan

    counts = (folder / "filtered_feature_bc_matrix.h5").rename(folder / "other_matrix.h5")
    with pytest.raises(
        SectionError, match="holds no counts"
    ):  # something like counts is there: it may be what was meant
        open_section(folder)
    counts.unlink()
    positions = folder / "spatial" / "tissue_positions.csv"
    table = pd.read_csv(positions)
    table.loc[0, "in_tissue"] = 0
    table.to_csv(positions, index=False)
    section = open_section(folder)
    assert section.spots.ids.tolist() == tiny_arrays()["ids"].tolist()[1:] and section.spots.counts.shape == (29, 0)
    np.testing.assert_allclose(section.spots.yx, tiny_arrays()["yx"][1:], rtol=1e-12)
    assert section.calibration.mpp == TINY_MPP and section.image.pixel_size == 1
    assert section.expression.kind == "none" and section.notes[0] == section.expression.statement
    assert "holds no counts (filtered_feature_bc_matrix.h5" in section.notes[1]
    assert synthesis_fault(section, PATCH_MPP) is None
    made = plan(section, Request(), card_for(TINY_GENES))
    assert made.request.expression == "null" and len(made) == 29
    with pytest.raises(RequestError, match="this section has no expression: use null, or put its counts beside"):
        plan(section, Request(expression="own"), card_for(TINY_GENES))
    table.assign(in_tissue=0).to_csv(positions, index=False)
    with pytest.raises(SectionError, match="none of the 30 positions of .* lies on tissue"):
        open_section(folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("section.cloupe", "Loupe files"),
        ("section.zip", "unpack"),
        ("filtered_feature_bc_matrix.h5", "the folder that it lies in"),
        ("slide.mrxs", "format of scanners is not read"),
        ("what.ever", "give a folder"),
    ],
)
def test_files_are_refused_with_what_to_give_instead(tmp_path, name, message):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(SectionError, match=message):
        open_section(tmp_path / name)


def test_other_paths_are_refused(tmp_path):
    with pytest.raises(SectionError, match="there is no file or folder"):
        open_section(tmp_path / "nothing")
    with pytest.raises(SectionError, match="no tissue section"):
        open_section(tmp_path)


def test_barcodes_that_do_not_meet_are_refused(folder):
    file = folder / "spatial" / "tissue_positions.csv"
    file.write_text(file.read_text().replace("SPOT", "OTHER"))
    with pytest.raises(SectionError, match="'SPOT00-1'.*'OTHER00-1'"):
        open_section(folder)


def test_a_damaged_counts_file_is_refused(folder):
    (folder / "filtered_feature_bc_matrix.h5").write_bytes(b"\x89HDF\r\n\x1a\nbroken")
    with pytest.raises(SectionError, match="cannot be read"):
        open_section(folder)


def test_a_section_without_a_scale_asks_for_it(tmp_path):
    arrays = tiny_arrays()
    arrays["array_rc"] = np.argwhere(np.ones((5, 6)))
    write_spaceranger_folder(
        tmp_path / "square", image=analytic_image(), genes=Genes(np.array(TINY_GENES)), mpp=None, **arrays
    )
    section = open_section(tmp_path / "square")
    assert "--mpp" in synthesis_fault(section, PATCH_MPP)
    assert synthesis_fault(open_section(tmp_path / "square", mpp=0.7), PATCH_MPP) is None


def test_a_synthetic_folder_says_so(tmp_path):
    write_spaceranger_folder(
        tmp_path / "made",
        image=analytic_image(),
        genes=Genes(np.array(TINY_GENES)),
        mpp=0.7,
        synthetic_note="waves and dice",
        **tiny_arrays(),
    )
    section = open_section(tmp_path / "made")
    assert section.synthetic and section.notes[0] == "synthetic: waves and dice"
    with pytest.raises(SectionError, match="nothing is overwritten"):
        write_spaceranger_folder(
            tmp_path / "made", image=analytic_image(), genes=Genes(np.array(TINY_GENES)), mpp=0.7, **tiny_arrays()
        )


# ---------------------------------------------------------------------------------------------- real data


def test_c3_takes_its_stated_scale_not_the_pitch_of_visium(shared_data):
    section = open_section(shared_data / "her2st_C3_spaceranger2", fullres="C3_image.jpg")
    assert len(section.spots) == 180 and section.spots.counts.shape[1] == 15821
    assert section.calibration.mpp == pytest.approx(0.6873763713984568) and section.calibration.source == "scalefactors"
    assert section.image.shape == (9936, 9270)
    assert synthesis_fault(section, PATCH_MPP) is None
    assert open_section(shared_data / "her2st_C3_spaceranger2").image.source.endswith("C3_image.jpg")


def test_b4_opens_from_version_1(shared_data):
    section = open_section(shared_data / "her2st_B4_spaceranger1")
    assert len(section.spots) == 283 and section.calibration.mpp == pytest.approx(0.68775, abs=1e-4)
    assert section.image.shape == (9923, 9272)


@pytest.mark.parametrize("layout", ["outs_spaceranger1", "outs_spaceranger2"])
def test_the_mouse_crop_opens_in_both_layouts(shared_data, layout):
    section = open_section(shared_data / "visium_mouse_brain_crop" / layout)
    assert section.calibration.mpp == pytest.approx(0.724, rel=0.01) and section.calibration.source == "lattice"
    assert len(section.spots) == 49 and section.image.shape == (1717, 950)
    assert "Actb" in section.spots.genes.symbols or section.spots.genes.ids[0].startswith("ENSMUSG")


def test_visium_v4_opens_and_is_refused_for_its_missing_image(shared_data):
    section = open_section(shared_data / "visium_v4_no_fullres" / "outs")
    assert len(section.spots) == 2898 and section.image.pixel_size == pytest.approx(5)
    assert section.image.levels[0].compute().shape == (600, 600, 3)
    fault = synthesis_fault(section, PATCH_MPP)
    assert "full-resolution image is missing" in fault and "fullres_image_file" in fault


# ---------------------------------------------------------------------------------------------- what contradicts itself


def move_rows(folder, by, header=False, rounded=False):
    """Write a list of positions for older tools beside the table, moved."""
    table = pd.read_csv(folder / "spatial" / "tissue_positions.csv")
    table["pxl_row_in_fullres"] += by
    table = table.round() if rounded else table
    table.to_csv(folder / "spatial" / "tissue_positions_list.csv", header=header, index=False)


def test_two_positions_files_that_differ_are_refused(folder):
    move_rows(folder, 200)
    with pytest.raises(
        SectionError,
        match=r"tissue_positions.csv and tissue_positions_list.csv.*30 of 30 spots differ in them, by up to 200 px",
    ):
        open_section(folder)


def test_two_positions_files_that_agree_but_for_rounding_open(folder):
    move_rows(folder, 0, rounded=True)
    np.testing.assert_array_equal(open_section(folder).spots.yx, tiny_arrays()["yx"])


def test_a_second_positions_file_that_cannot_be_read_says_nothing(folder):
    (folder / "spatial" / "tissue_positions_list.csv").write_text("see the other one")
    assert len(open_section(folder).spots) == 30


@pytest.mark.parametrize("quote", ["", '"'])
def test_numbers_that_pandas_wrote_above_the_positions_are_no_spot(folder, quote):
    file = folder / "spatial" / "tissue_positions.csv"
    rows = file.read_text().split("\n", 1)[1]
    file.unlink()
    header = ",".join(f"{quote}{i}{quote}" for i in range(6))
    (folder / "spatial" / "tissue_positions_list.csv").write_text(f"{header}\n{rows}")
    factors = json.loads((folder / "spatial" / "scalefactors_json.json").read_text())
    del factors["microns_per_pixel"]
    (folder / "spatial" / "scalefactors_json.json").write_text(json.dumps(factors))
    section = open_section(folder)
    assert section.calibration.mpp == pytest.approx(TINY_MPP) and len(section.spots) == 30
    assert not any("no counts" in note for note in section.notes)


def test_scale_factors_that_r_wrote_as_arrays_of_one_number_are_those_numbers(folder):
    file = folder / "spatial" / "scalefactors_json.json"
    file.write_text(json.dumps({name: [value] for name, value in json.loads(file.read_text()).items()}))
    section = open_section(folder)
    assert section.calibration.mpp == TINY_MPP and section.calibration.source == "scalefactors"
    assert section.spots.diameter == tiny_arrays()["diameter"]


def test_the_matrix_of_two_libraries_is_not_laid_on_the_positions_of_one(folder):
    from scipy.sparse import vstack

    from napari_stmdit.tissue.st_array import write_counts

    arrays = tiny_arrays()
    rng = np.random.default_rng(5)
    stems = ["".join(rng.choice(list("ACGT"), 16)) for _ in arrays["ids"]]
    table = pd.read_csv(folder / "spatial" / "tissue_positions.csv")
    table["barcode"] = [f"{stem}-1" for stem in stems]
    table.to_csv(folder / "spatial" / "tissue_positions.csv", index=False)
    both = np.array([f"{stem}-{k}" for k in (1, 2) for stem in stems])
    genes = Genes(np.array(TINY_GENES))
    write_counts(
        folder / "filtered_feature_bc_matrix.h5", both, vstack([3 * arrays["counts"], arrays["counts"]], "csr"), genes
    )
    with pytest.raises(SectionError, match="several libraries"):
        open_section(folder)
    table["barcode"] = [f"{stem}-2" for stem in stems]
    table.to_csv(folder / "spatial" / "tissue_positions.csv", index=False)
    assert (open_section(folder).spots.counts != arrays["counts"]).nnz == 0


def test_small_integers_are_widened_before_they_are_added_up(folder):
    import h5py

    with h5py.File(folder / "filtered_feature_bc_matrix.h5", "r+") as file:
        data, indices = file["matrix/data"][:], file["matrix/indices"][:]
        data[:2], indices[1] = 100, indices[0]  # one gene of one spot in two entries, 200 together
        for name, values in (("data", data.astype(np.int8)), ("indices", indices)):
            del file["matrix"][name]
            file["matrix"][name] = values
    counts = open_section(folder).spots.counts
    assert counts[0, indices[0]] == 200 and counts.has_canonical_format
