"""Genes match exactly; a renamed gene is still found; mouse is not human."""

from __future__ import annotations

import time

import numpy as np
from scipy.sparse import csr_matrix

from napari_stmdit.expression.genes import aliases, gather_counts, match_genes
from napari_stmdit.types import Genes

GENES = Genes(
    np.array(["ACTB", "TBCE", "SEPT2", "H2AC6", "TBCE", "Actb"]),
    np.array(
        [
            "ENSG00000075624.17",
            "ENSG00000284770",
            "ENSG00000168385",
            "ENSG00000180573",
            "ENSG00000116957",
            "ENSMUSG00000029580",
        ]
    ),
)


def test_columns_of_one_symbol_are_summed_beyond_what_their_own_type_holds():
    twins = Genes(np.array(["A", "B", "A"]))
    for kind in (np.uint8, np.int32, np.float32):
        counts = csr_matrix(np.array([[255, 7, 200]], dtype=kind))
        found = gather_counts(counts, match_genes(("A", "C"), twins), ("A", "C"))
        assert found.toarray().tolist() == [[455, 0]]
    assert found.dtype == np.float32


def test_symbols_match_exactly_and_case_sensitively():
    match = match_genes(("Actb", "ACTB", "actb"), GENES)
    assert match.columns.tolist() == [5, 0, -1]
    assert match.missing == ("actb",)
    assert match.shared == 2


def test_mouse_symbols_are_never_taken_for_human_ones():
    mouse = Genes(np.array(["Epcam", "Krt8"]))
    match = match_genes(("EPCAM", "KRT8"), mouse)
    assert match.shared == 0
    assert match.missing == ("EPCAM", "KRT8")


def test_ensembl_ids_match_without_their_version():
    match = match_genes(("ENSG00000075624", "ENSG00000116957.9", "ENSG00000999999"), GENES)
    assert match.columns.tolist() == [0, 4, -1]
    assert match.renamed == {"ENSG00000075624": "ACTB", "ENSG00000116957.9": "TBCE"}


def test_ensembl_ids_are_found_where_they_stand_as_symbols():
    table = Genes(np.array(["ENSG00000075624.2", "ENSG00000168385"]))
    assert match_genes(("ENSG00000168385.3", "ENSG00000075624"), table).columns.tolist() == [1, 0]


def test_renamed_genes_are_found_in_both_directions():
    match = match_genes(("SEPTIN2", "HIST1H2AC"), GENES)
    assert match.columns.tolist() == [2, 3]
    assert match.renamed == {"SEPTIN2": "SEPT2", "HIST1H2AC": "H2AC6"}


def test_the_exact_symbol_is_preferred_to_an_alias():
    both = Genes(np.array(["SEPT2", "SEPTIN2"]))
    assert match_genes(("SEPTIN2", "SEPT2"), both).columns.tolist() == [1, 0]


def test_no_name_stands_twice_in_the_table_of_aliases():
    table = aliases()
    assert all(table[table[name]] == name for name in table)
    assert "Septin2" in table and table["Septin2"] == "Sept2"


def test_columns_of_one_symbol_are_reported_and_summed():
    wanted = ("TBCE", "GONE", "ACTB")
    match = match_genes(wanted, GENES)
    assert match.ambiguous == {"TBCE": (1, 4)}
    assert match.columns.tolist() == [1, -1, 0]
    counts = csr_matrix(np.array([[1, 2, 3, 4, 5, 6], [0, 0, 0, 0, 7, 0]]))
    assert gather_counts(counts, match, wanted).toarray().tolist() == [[7, 0, 1], [7, 0, 0]]


def test_nothing_wanted_is_no_error():
    match = match_genes((), GENES)
    assert match.columns.shape == (0,) and match.shared == 0


def test_twenty_thousand_genes_take_no_time():
    symbols = np.array([f"GENE{i}" for i in range(20_000)])
    genes = Genes(symbols, np.array([f"ENSG{i:011d}" for i in range(20_000)]))
    wanted = (*symbols[::-1].tolist(), "ENSG00000000005")
    start = time.process_time()
    match = match_genes(wanted, genes)
    assert time.process_time() - start < 1.0
    assert match.columns[0] == 19_999 and match.columns[-1] == 5 and match.shared == 20_001


def test_names_of_a_table_are_looked_through_once(monkeypatch):
    from napari_stmdit.expression import genes as module

    made = []
    columns_by = module._columns_by
    monkeypatch.setattr(module, "_columns_by", lambda names: made.append(len(names)) or columns_by(names))
    table = Genes(np.array(["ERBB2", "KRT8"]), np.array(["ENSG00000141736.2", "ENSG00000170421"]))
    for _ in range(3):
        assert match_genes(("KRT8", "ENSG00000141736"), table).columns.tolist() == [1, 0]
    assert made == [2, 2]
    other = Genes(np.array(["KRT8", "ERBB2"]))
    assert match_genes(("KRT8",), other).columns.tolist() == [0]  # another table has its own
