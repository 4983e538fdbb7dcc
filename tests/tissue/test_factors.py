"""Factors of each spot in the place of its counts."""

import anndata
import numpy as np
import pandas as pd
import pytest
from standins import CropModel, card_for

from napari_stmdit.edits import Scale
from napari_stmdit.errors import RequestError, SectionError
from napari_stmdit.intent import Request
from napari_stmdit.regions import SpotList
from napari_stmdit.synthesis.plan import plan
from napari_stmdit.synthesis.session import synthesize
from napari_stmdit.tissue.alignment import check_alignment
from napari_stmdit.tissue.open import SectionSource, open_section

NAMES = ("crypt", "muscle", "follicle")


@pytest.fixture
def made(tiny_section, tmp_path):
    """The values of the tiny section's spots, in another order, as a table and an array in one file and as a table of its own."""
    rng = np.random.default_rng(0)
    ids = tiny_section.spots.ids[::-1].astype(object)
    values = pd.DataFrame(rng.uniform(0, 9, (len(ids), 3)), index=ids, columns=list(NAMES))
    values.to_csv(tmp_path / "types.csv")
    table = anndata.AnnData(obs=pd.DataFrame(index=ids), obsm={"types": values, "nmf": values.to_numpy()})
    table.write_h5ad(tmp_path / "joint.h5ad")
    return tmp_path, values


@pytest.mark.parametrize(
    ("place", "names"),
    [("types.csv", NAMES), ("joint.h5ad::types", NAMES), ("joint.h5ad::nmf", ("nmf_1", "nmf_2", "nmf_3"))],
)
def test_factors_stand_where_counts_do_as_parts_of_ten_thousand(made, tiny_folder, tiny_section, place, names):
    folder, values = made
    section = open_section(tiny_folder, factors=folder / place)
    assert tuple(section.spots.genes.symbols) == names and section.expression.kind == "factors"
    own = values.loc[tiny_section.spots.ids.tolist()].to_numpy()
    np.testing.assert_allclose(section.spots.counts.toarray(), 1e4 * own / own.sum(axis=1, keepdims=True), rtol=1e-5)
    np.testing.assert_array_equal(section.spots.yx, tiny_section.spots.yx)
    assert section.notes[0].startswith(f"no counts were used: factors of each spot take their place, from {place}")
    assert "factors stand in the place of its counts" in check_alignment(section).statement


def test_positions_without_counts_have_factors_for_expression(made, tiny_folder, tmp_path):
    import shutil

    outs = shutil.copytree(tiny_folder, tmp_path / "outs")
    (outs / "filtered_feature_bc_matrix.h5").unlink()
    assert open_section(outs).expression.kind == "none"
    section = open_section(outs, factors=made[0] / "types.csv")
    assert section.expression.kind == "factors" and len(section.spots) == 30
    assert not any("no measured expression" in note for note in section.notes)


def test_they_are_synthesized_from_edited_and_kept_in_a_result(made, tiny_folder, tmp_path):
    section = open_section(tiny_folder, factors=made[0] / "types.csv")
    ids = tuple(section.spots.ids[:2].tolist())
    request = Request(region=SpotList(ids=ids), edits=(Scale(genes=("muscle",), factor=2.0, follow="none"),))
    result = synthesize(section, request, CropModel(card_for(NAMES)))
    assert result.complete
    result.save(tmp_path / "out.zarr")
    again = open_section(tmp_path / "out.zarr")
    assert again.expression == section.expression
    np.testing.assert_allclose(again.spots.counts.toarray(), section.spots.counts.toarray())
    with pytest.raises(RequestError, match="shares 0 of the 3 genes"):
        plan(open_section(tiny_folder), Request(), card_for(NAMES))


def test_what_is_no_part_of_a_whole_is_refused(made, tiny_folder):
    folder, values = made
    (values - 5).to_csv(folder / "scores.csv")
    with pytest.raises(SectionError, match=r"scores.csv holds negative values, down to -.*--expression-embeddings"):
        open_section(tiny_folder, factors=folder / "scores.csv")
    values.iloc[3:].to_csv(folder / "few.csv")
    with pytest.raises(SectionError, match="few.csv has no embedding for 3 of 30 spots"):
        open_section(tiny_folder, factors=folder / "few.csv")


def test_the_place_of_factors_is_told_to_other_processes(tmp_path):
    source = SectionSource(path="outs", factors="joint.h5ad::nmf20").absolute(tmp_path)
    assert str(source.factors) == f"{tmp_path / 'joint.h5ad'}::nmf20"


def test_tables_of_other_separators_are_read_and_what_cannot_be_is_said(made, tiny_folder):
    folder, values = made
    values.to_csv(folder / "semicolons.csv", sep=";")
    plain, other = (open_section(tiny_folder, factors=folder / name) for name in ("types.csv", "semicolons.csv"))
    np.testing.assert_array_equal(plain.spots.counts.toarray(), other.spots.counts.toarray())
    values.to_csv(folder / "commas.csv", sep=";", decimal=",")
    with pytest.raises(SectionError, match="are no numbers; .* with decimal points"):
        open_section(tiny_folder, factors=folder / "commas.csv")
    values.set_axis(["A", "A", "B"], axis=1).to_csv(folder / "twice.csv")
    with pytest.raises(SectionError, match="has the column 'A' more than once"):
        open_section(tiny_folder, factors=folder / "twice.csv")
