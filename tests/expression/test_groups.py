"""Two groups of spots compared: which genes and programs differ."""

import csv

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from napari_stmdit.errors import GeneError
from napari_stmdit.expression.groups import compare_groups
from napari_stmdit.types import Genes, SpotTable


@pytest.fixture
def spots():
    """Forty spots: UP is threefold in the first twenty, DOWN a third, SAME alike, NONE never counted."""
    rng = np.random.default_rng(0)
    factors = np.ones((40, 5)) * (60, 60, 60, 0, 800)
    factors[:20] *= (3, 1 / 3, 1, 1, 1)
    counts = csr_matrix(rng.poisson(factors).astype(np.float32))
    genes = Genes(np.array(["UP", "DOWN", "SAME", "NONE", "REST"]))
    return SpotTable(np.array([f"s{k:02d}" for k in range(40)]), rng.random((40, 2)) * 1000, 55.0, counts, genes)


def test_genes_and_programs_that_differ_come_first(spots):
    a = spots.ids[:20].tolist()
    found = compare_groups(
        spots, a, programs={"up": {"UP": 1.0}, "mixed": {"UP": 1.0, "DOWN": 1.0}, "strange": {"X": 1.0}}
    )
    genes = found.table[found.table["kind"] == "gene"].set_index("name")
    assert set(genes.index[:2]) == {"UP", "DOWN"} and "NONE" not in genes.index
    share = np.asarray(spots.counts.todense()) / spots.counts.sum(axis=1) * 1e4
    by_hand = np.log2((share[:20, 0].mean() + 1) / (share[20:, 0].mean() + 1))
    assert genes.loc["UP", "log2_fold_change"] == pytest.approx(by_hand, rel=1e-5) and by_hand > 1
    assert genes.loc["DOWN", "log2_fold_change"] < -1
    assert genes.loc["UP", "fdr"] < 1e-5 and genes.loc["SAME", "fdr"] > genes.loc["UP", "fdr"]
    assert (genes["fdr"] >= genes["p"]).all()
    assert found.top("program", 5)["name"].tolist() == ["up", "mixed"]
    assert (
        found.ids == (tuple(a), tuple(spots.ids[20:].tolist()))
        and "selection (20 spots) against the rest (20)" in found.statement
    )


def test_the_table_is_written_whole(spots, tmp_path):
    found = compare_groups(spots, spots.ids[:5].tolist(), spots.ids[10:20].tolist(), names=("core", "rim"))
    found.write(tmp_path / "t.csv")
    said, *rows = (tmp_path / "t.csv").read_text().splitlines()
    assert said.startswith("# core (5 spots) against rim (10)")
    assert [row["name"] for row in csv.DictReader(rows)] == found.table["name"].tolist()


def test_groups_that_cannot_be_compared_are_refused(spots):
    ids = spots.ids.tolist()
    with pytest.raises(GeneError, match="selection has 2 spots, and at least 3 are needed"):
        compare_groups(spots, ids[:2])
    with pytest.raises(GeneError, match="share 1 spots, such as 's04'"):
        compare_groups(spots, ids[:5], ids[4:9])
    with pytest.raises(GeneError, match="not in this section, such as 'nobody'"):
        compare_groups(spots, [*ids[:5], "nobody"])
    with pytest.raises(GeneError, match="the rest has 0 spots"):
        compare_groups(spots, ids)
