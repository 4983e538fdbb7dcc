"""Tables of other tools as edits: units are stated, spots and genes matched by name, and nothing is guessed."""

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix
from standins import card_for, make_section

from napari_stmdit.edits import Add, KnockOut, Scale, Table
from napari_stmdit.errors import GeneError, RequestError
from napari_stmdit.expression.changes import Measured
from napari_stmdit.expression.edit_tables import (
    layers_of,
    perturbation_of,
    read_edit_table,
    signed,
    table_fault,
    table_note,
)
from napari_stmdit.expression.edits import apply_edits, edited_levels, faults_of
from napari_stmdit.expression.genes import target_columns
from napari_stmdit.intent import Request
from napari_stmdit.synthesis.plan import plan
from napari_stmdit.synthesis.requests import read_edit_file
from napari_stmdit.types import Genes, SpotTable

GENES = ("A", "B", "C", "D")


@pytest.fixture
def spots():
    rng = np.random.default_rng(0)
    counts = rng.poisson(5, (6, 4)).astype(np.float32) + 1
    yx = np.stack([np.arange(6.0), np.zeros(6)], axis=1)
    return SpotTable(np.array([f"s{k}" for k in range(6)]), yx, 1.0, csr_matrix(counts), Genes(np.array(GENES)))


def log_levels(counts):
    return np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4)


def write_h5ad(path, spots, counts, rows=slice(None), genes=GENES, **layers):
    names = spots.ids[rows]
    table = anndata.AnnData(
        csr_matrix(counts), pd.DataFrame(index=names.astype(str)), pd.DataFrame(index=list(genes)), layers=layers
    )
    table.write_h5ad(path)
    return path


def moved(table, spots, ids, edit=None):
    """The levels that spots go to, all genes of the section."""
    columns, own = target_columns(table.genes, spots.genes)
    counts = spots.counts.toarray()[spots.rows(ids)]
    x = log_levels(counts)[:, columns].astype(np.float32)
    share = (counts[:, columns].sum(axis=1) / counts.sum(axis=1)).astype(np.float32)
    there = np.flatnonzero(np.isin(table.genes, GENES))
    return columns, table.target(x, ids, own, there, share)


def test_counts_and_their_logarithm_say_the_same(spots, tmp_path):
    predicted = np.random.default_rng(1).gamma(2.0, 3.0, (6, 4))
    path = write_h5ad(tmp_path / "p.h5ad", spots, predicted, normalised=log_levels(predicted))
    ids = ("s4", "s1")
    _, of_counts = moved(read_edit_table(Table(table=str(path), unit="counts", layer="X")), spots, ids)
    _, of_logs = moved(read_edit_table(Table(table=str(path), unit="log1p_cp10k", layer="normalised")), spots, ids)
    np.testing.assert_allclose(of_counts, log_levels(predicted)[[4, 1]], rtol=1e-5)
    np.testing.assert_allclose(of_logs, of_counts, rtol=1e-5)


def test_a_table_of_some_genes_is_relative_to_those_genes(spots, tmp_path):
    """The section's own counts of three genes, as a table of those alone, change nothing."""
    counts = spots.counts.toarray()
    path = write_h5ad(tmp_path / "p.h5ad", spots, counts[:, [2, 0, 1]], genes=("C", "A", "B"))
    columns, target = moved(read_edit_table(Table(table=str(path), unit="counts", layer="X")), spots, ("s3",))
    assert sorted(columns.tolist()) == [0, 1, 2]
    np.testing.assert_allclose(target[0], log_levels(counts)[3, columns], rtol=1e-4)


def test_with_a_baseline_spots_move_by_the_difference_and_never_below_zero(spots, tmp_path):
    base, after = np.full((6, 4), 5.0), np.tile([10.0, 5.0, 5.0, 0.0], (6, 1))
    path = write_h5ad(tmp_path / "p.h5ad", spots, after, observed=base)
    edit = Table(table=str(path), unit="counts", layer="X", baseline="observed")
    columns, target = moved(read_edit_table(edit), spots, ("s0",))
    x = log_levels(spots.counts.toarray())[0, columns]
    change = log_levels(after)[0] - log_levels(base)[0]
    np.testing.assert_allclose(target[0], np.maximum(x + change[columns], 0), rtol=1e-4, atol=1e-5)
    assert target[0, columns.tolist().index(3)] < x[columns.tolist().index(3)]


@pytest.mark.parametrize("separator", [",", "\t", ";"])
def test_differences_are_read_from_text_by_their_own_separator(spots, tmp_path, separator):
    path = tmp_path / "changes.txt"
    path.write_text(separator.join(["spot", "B", "E"]) + "\n" + separator.join(["s2", "-0.5", "3"]) + "\n")
    edit = Table(table=str(path), unit="difference")
    assert table_fault(edit, spots) is None
    columns, target = moved(read_edit_table(edit), spots, ("s2",))
    assert columns.tolist() == [1]  # the section has no E
    np.testing.assert_allclose(target[0, 0], log_levels(spots.counts.toarray())[2, 1] - 0.5, rtol=1e-5)
    assert "1 of 6 spots and 1 of 4 genes" in table_note(edit, spots)


def test_the_edit_remembers_the_content_of_its_file(spots, tmp_path):
    path = tmp_path / "changes.csv"
    path.write_text("spot,A\ns0,1\n")
    edit = signed(Table(table=str(path), unit="difference"))
    assert len(edit.sha256) == 64 and signed(edit) == edit
    path.write_text("spot,A\ns0,2.5\n")
    with pytest.raises(GeneError, match="has changed since the edit was made"):
        read_edit_table(edit)


def test_layers_are_listed_and_asked_for(spots, tmp_path):
    path = write_h5ad(tmp_path / "p.h5ad", spots, np.ones((6, 4)), predicted_tempered=np.ones((6, 4)))
    assert layers_of(path) == ("X", "predicted_tempered")
    with pytest.raises(GeneError, match="X, predicted_tempered: say which one is meant"):
        read_edit_table(Table(table=str(path), unit="counts"))
    with pytest.raises(GeneError, match="no layer 'other'; it has X, predicted_tempered"):
        read_edit_table(Table(table=str(path), unit="counts", layer="other"))


@pytest.mark.parametrize(
    ("values", "unit", "said"),
    [
        ([[-1.0, 2.0]], "counts", "holds values from -1 to 2; counts are 0 or more: is another unit meant"),
        ([[30.0, 2.0]], "log1p_cp10k", "log1p_cp10k are 0 to 9.21: is another unit meant"),
        ([[9.0, 9.0]], "log1p_cp10k", "add up to 16,204 counts per 10,000"),
        ([[12.0, 0.0]], "difference", "difference are -9.21 to 9.21"),
        ([[np.nan, 0.0]], "difference", "no finite numbers"),
    ],
)
def test_values_that_cannot_be_in_the_unit_are_refused(spots, tmp_path, values, unit, said):
    path = write_h5ad(tmp_path / "p.h5ad", spots, np.array(values), rows=slice(0, 1), genes=("A", "B"))
    with pytest.raises(GeneError, match=said):
        read_edit_table(Table(table=str(path), unit=unit, layer="X"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("spot,A\nother,1\n", "none of this section's spots: its first is 'other', the section's 's0'"),
        ("spot,Actb\ns0,1\n", "none of this section's genes: its first is 'Actb'"),
        ("spot,A\ns0,1\ns0,2\n", "names the spot 's0' twice"),
        ("spot,A,A\ns0,1,2\n", "names the gene 'A' twice"),
        ("spot,A\ns0,high\n", "the column 'A' does not hold numbers"),
        ("spot,A\n", "is empty"),
        ("", "cannot be read as a table"),
    ],
)
def test_what_is_wrong_with_a_text_table_is_said_in_a_sentence(spots, tmp_path, text, said):
    path = tmp_path / "t.csv"
    path.write_text(text)
    assert said in table_fault(Table(table=str(path), unit="difference"), spots)


def test_a_missing_or_damaged_file_is_a_fault_and_no_traceback(spots, tmp_path):
    assert "there is no file" in table_fault(Table(table=str(tmp_path / "no.h5ad"), unit="counts"), spots)
    path = write_h5ad(tmp_path / "p.h5ad", spots, np.ones((6, 4)))
    path.write_bytes(path.read_bytes()[:600])
    assert "cannot be read as an .h5ad" in table_fault(Table(table=str(path), unit="counts", layer="X"), spots)


def test_an_edit_moves_the_spots_of_its_table_alone_and_in_proportion_to_their_weight(spots, tmp_path):
    path = tmp_path / "changes.csv"
    path.write_text("spot,B\ns0,1.5\ns1,1.5\n")
    edit = Table(table=str(path), unit="difference", spots={"s0": 1.0, "s1": 0.5, "s2": 1.0})
    rows = np.arange(6)
    edited = apply_edits(rows, spots, [edit], {}, {}).toarray()
    measured = spots.counts.toarray()
    totals = measured.sum(axis=1)
    moved = np.log1p(edited[:, 1] / totals * 1e4) - np.log1p(measured[:, 1] / totals * 1e4)
    np.testing.assert_allclose(moved, [1.5, 0.75, 0, 0, 0, 0], atol=1e-4)
    np.testing.assert_array_equal(np.delete(edited, 1, axis=1), np.delete(measured, 1, axis=1))
    view = edited_levels(Measured.of(spots).narrowed(["B"], {}), [edit], {}, {})
    np.testing.assert_allclose(view[:, 0], np.log1p(edited[:, 1] / totals * 1e4), rtol=1e-5)


def test_the_levels_of_a_table_of_some_genes_are_shown_as_they_are_synthesized(spots, tmp_path):
    path = write_h5ad(tmp_path / "p.h5ad", spots, np.tile([30.0, 1.0], (6, 1)), genes=("B", "C"))
    edit = Table(table=str(path), unit="counts", layer="X")
    edited = apply_edits(np.arange(6), spots, [edit], {}, {}).toarray()
    totals = spots.counts.toarray().sum(axis=1)
    view = edited_levels(Measured.of(spots).narrowed(["C"], {}), [edit], {}, {})
    np.testing.assert_allclose(view[:, 0], np.log1p(edited[:, 2] / totals * 1e4), rtol=1e-5)
    shared = spots.counts.toarray()[:, 1:3].sum(axis=1)
    np.testing.assert_allclose(edited[:, 2], shared / 31, rtol=1e-4)


def test_a_plan_states_the_content_of_the_table_and_what_it_covers(spots, tmp_path):
    path = tmp_path / "changes.csv"
    section = make_section()
    text = section.spots.ids[0], section.spots.genes.symbols[0]
    path.write_text(f"spot,{text[1]}\n{text[0]},1\n")
    (tmp_path / "edits.yaml").write_text("- operation: table\n  table: changes.csv\n  unit: difference\n")
    file = read_edit_file(tmp_path / "edits.yaml")
    assert file.edits[0].table == str(path)
    card = card_for(tuple(section.spots.genes.symbols.tolist()))
    made = plan(section, Request(edits=file.edits, allow_gene_mismatch=True), card)
    assert len(made.request.edits[0].sha256) == 64
    assert any("changes.csv covers 1 of" in note for note in made.notes)
    path.write_text(f"spot,{text[1]}\n{text[0]},2\n")
    with pytest.raises(RequestError, match=r"edits\[0\].table.*has changed since"):
        plan(section, made.request, card)


def test_factors_of_genes_are_a_perturbation():
    edits = [Scale(genes=("A", "B"), factor=2), KnockOut(genes=("C",)), Scale(genes=("A",), factor=3)]
    assert perturbation_of(edits, "T cell") == {"T cell": {"A": 6.0, "B": 2.0, "C": 0.0}}
    with pytest.raises(GeneError, match="cannot be written as a factor"):
        perturbation_of([Add(genes=("A",), log_units=1)], "T cell")


def test_levels_normalised_over_more_genes_than_the_table_has_are_taken_as_they_are(spots, tmp_path):
    """As after normalising, logarithm and a choice of variable genes, in this order."""
    counts = spots.counts.toarray()
    path = write_h5ad(tmp_path / "p.h5ad", spots, log_levels(counts)[:, [0, 2]], genes=("A", "C"))
    columns, target = moved(read_edit_table(Table(table=str(path), unit="log1p_cp10k", layer="X")), spots, ("s3",))
    np.testing.assert_allclose(target[0], log_levels(counts)[3, columns], rtol=1e-4)


def test_genes_of_a_table_that_the_section_lacks_change_nothing_else(spots, tmp_path):
    rng = np.random.default_rng(3)
    counts = np.hstack([spots.counts.toarray(), rng.poisson(20, (6, 3))])
    path = write_h5ad(tmp_path / "p.h5ad", spots, counts, genes=(*GENES, "X1", "X2", "X3"))
    _, target = moved(read_edit_table(Table(table=str(path), unit="counts", layer="X")), spots, ("s3",))
    np.testing.assert_allclose(target[0], log_levels(spots.counts.toarray())[3], rtol=1e-4)


@pytest.mark.parametrize("text", ["A\tB\tD\ns2\t0\t0\t5\n", "\tA\tB\tD\ns2\t0\t0\t5\n", "\n\nid,A,B,D\ns2,0,0,5\n"])
def test_a_header_without_a_name_for_the_spots_or_after_blank_lines_is_read_as_it_is_meant(spots, tmp_path, text):
    (tmp_path / "t.tsv").write_text(text)
    table = read_edit_table(Table(table=str(tmp_path / "t.tsv"), unit="difference"))
    assert table.genes == ("A", "B", "D") and table.levels.toarray().tolist() == [[0, 0, 5]]


def test_ids_of_digits_stay_as_they_are_written_and_rows_longer_than_the_header_are_refused(tmp_path):
    (tmp_path / "t.csv").write_text("id,A\n001,1\n")
    assert list(read_edit_table(Table(table=str(tmp_path / "t.csv"), unit="difference")).ids) == ["001"]
    (tmp_path / "long.csv").write_text("id,A,B,C\nx,1,2,3,4,5\n")
    with pytest.raises(GeneError, match="header names 4 columns, and its rows have|cannot be read"):
        read_edit_table(Table(table=str(tmp_path / "long.csv"), unit="difference"))


def test_what_a_table_says_of_its_logarithm_is_heeded(spots, tmp_path):
    counts = spots.counts.toarray()
    table = anndata.AnnData(
        log_levels(counts) / np.log(10), pd.DataFrame(index=spots.ids.astype(str)), pd.DataFrame(index=list(GENES))
    )
    table.uns["log1p"] = {"base": 10.0}
    table.write_h5ad(tmp_path / "p.h5ad")
    with pytest.raises(GeneError, match=r"says of its X that it is log1p .* choose the unit log1p_cp10k"):
        read_edit_table(Table(table=str(tmp_path / "p.h5ad"), unit="counts", layer="X"))
    found = read_edit_table(Table(table=str(tmp_path / "p.h5ad"), unit="log1p_cp10k", layer="X"))
    np.testing.assert_allclose(found.levels.toarray(), log_levels(counts), rtol=1e-5)


def test_genes_that_a_table_lacks_are_a_fault(spots, tmp_path):
    (tmp_path / "t.csv").write_text("id,A\ns1,1\n")
    edit = Table(table=str(tmp_path / "t.csv"), unit="difference", genes=("B",))
    assert faults_of([edit], spots, {}, ()) == [
        ("edits[0].genes", "not in the table: B; name genes that it has, or none for all of them")
    ]


def test_a_factor_is_of_whole_spots_and_of_each_gene_once():
    assert perturbation_of([Scale(genes=("B", "B"), factor=2, spots={"s1": 1.0})], "T") == {"T": {"B": 2.0}}
    with pytest.raises(GeneError, match="weights below 1"):
        perturbation_of([Scale(genes=("A",), factor=2, spots={"s1": 0.5})], "T")


def logged(path, spots, x, base, **layers):
    """A table whose X is a logarithm of this base, as its ``uns`` says."""
    table = anndata.AnnData(
        x, pd.DataFrame(index=spots.ids.astype(str)), pd.DataFrame(index=list(GENES)), layers=layers
    )
    table.uns["log1p"] = {"base": base}
    table.write_h5ad(path)
    return str(path)


def test_a_logarithm_is_heeded_where_x_is_the_baseline_or_a_difference(spots, tmp_path):
    counts = spots.counts.toarray()
    natural = log_levels(counts)
    file = logged(tmp_path / "p.h5ad", spots, natural / np.log(10), 10.0, counts=counts, natural=natural)
    with pytest.raises(GeneError, match="says of its X that it is log1p"):
        read_edit_table(Table(table=file, unit="counts", layer="counts", baseline="X"))
    for layer, baseline in (("natural", "X"), ("X", "natural")):
        with pytest.raises(GeneError, match=r"the base 10.0 .* nothing of the layer 'natural'"):
            read_edit_table(Table(table=file, unit="log1p_cp10k", layer=layer, baseline=baseline))
    ones = logged(tmp_path / "d.h5ad", spots, np.ones((6, 4)), 2.0)
    found = read_edit_table(Table(table=ones, unit="difference", layer="X"))
    np.testing.assert_allclose(found.levels.toarray(), np.log(2), rtol=1e-6)


def test_edits_of_different_spots_are_no_one_perturbation():
    one, other = Scale(genes=("A",), factor=3, spots={"s1": 1.0}), KnockOut(genes=("B",), spots={"s2": 1.0})
    with pytest.raises(GeneError, match="2 edits act on 2 different sets of spots"):
        perturbation_of([one, other], "T")
    nowhere = KnockOut(genes=("B",), spots={})
    assert perturbation_of([one, nowhere], "T") == {"T": {"A": 3.0}}


def test_an_edit_remembers_the_whole_path_of_its_table(spots, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.csv").write_text("id,A\ns1,1\n")
    assert signed(Table(table="t.csv", unit="difference")).table == str(tmp_path / "t.csv")


def test_a_table_that_names_a_gene_twice_by_two_symbols_is_refused(tmp_path):
    section = SpotTable(
        np.array(["s1", "s2"]), np.zeros((2, 2)), 1.0, csr_matrix(np.ones((2, 2))), Genes(np.array(["SEPTIN11", "A"]))
    )
    (tmp_path / "t.csv").write_text("id,SEPT11,SEPTIN11\ns1,1,0\n")
    fault = table_fault(Table(table=str(tmp_path / "t.csv"), unit="difference"), section)
    assert fault == "t.csv names the gene SEPTIN11 twice, as SEPT11 and SEPTIN11; leave one out"
