import anndata
import numpy as np
import pytest
import scanpy
from scipy.sparse import csc_matrix, csr_matrix

from napari_stmdit.encoders.cancer_foundation.vocabulary import choose_genes, make_vocabulary, normalised_dispersion
from napari_stmdit.errors import GeneError
from napari_stmdit.types import Genes


def vocabulary_of(names):
    return make_vocabulary({name: k for k, name in enumerate(("<cls>", "<pad>", *names))})


@pytest.fixture(scope="module")
def section(shared_data):
    folder = shared_data / "her2st_C3_spaceranger2"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here")
    from napari_stmdit.tissue.open import open_section

    return open_section(folder)


def test_the_genes_of_a_real_section_are_those_of_the_released_rule(section):
    symbols = section.spots.genes.symbols
    known = sorted(set(symbols.tolist()))[::2]  # a vocabulary that lacks half of the genes
    chosen = choose_genes(section.spots.counts, section.spots.genes, vocabulary_of(known))
    assert len(chosen) == 1199 and set(chosen) <= set(known)
    # the same by scanpy from end to end
    data = anndata.AnnData(section.spots.counts.astype(np.float32).copy())
    data.var_names = symbols
    scanpy.pp.normalize_total(data, target_sum=1e4)
    scanpy.pp.log1p(data)
    data = data[:, data.var_names.isin(known)].copy()
    scanpy.pp.filter_genes(data, min_cells=1)
    scanpy.pp.highly_variable_genes(data, n_top_genes=1199, flavor="cell_ranger")
    assert chosen == tuple(data.var_names[data.var["highly_variable"]])


@pytest.mark.parametrize("seed", range(4))
def test_dispersions_are_those_of_scanpy(seed):
    rng = np.random.default_rng(seed)
    counts = rng.poisson(np.exp(rng.uniform(-3, 3, 300)) * rng.uniform(0.2, 5, (60, 1)))
    counts = counts[:, counts.any(axis=0)].astype(float)
    values = csc_matrix(np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4))
    ours = normalised_dispersion(values)
    theirs = scanpy.pp.highly_variable_genes(
        anndata.AnnData(values.tocsr()), n_top_genes=40, flavor="cell_ranger", inplace=False
    )
    np.testing.assert_allclose(ours, theirs["dispersions_norm"], rtol=1e-9, atol=1e-12)
    assert ((ours >= np.sort(ours)[-40]) == theirs["highly_variable"]).all()


def test_a_gene_that_varies_is_chosen_and_depth_is_none():
    rng = np.random.default_rng(0)
    names = [f"G{k}" for k in range(200)]
    depth = rng.uniform(0.2, 5, (80, 1))
    means = np.exp(rng.uniform(0, 3, 200))
    counts = rng.poisson(means * depth)
    counts[:, 17] = rng.poisson(means[17] * depth[:, 0] * np.where(np.arange(80) < 40, 0.05, 1.95))
    counts[3] = 0
    chosen = choose_genes(csr_matrix(counts), Genes(np.array(names)), vocabulary_of(names), 20)
    assert "G17" in chosen and len(chosen) == 20


def test_genes_that_are_nowhere_expressed_change_nothing():
    rng = np.random.default_rng(1)
    names = [f"G{k}" for k in range(400)]
    counts = rng.poisson(np.exp(rng.uniform(-1, 3, 400)), (40, 400))
    counts[:, 100:] = 0
    chosen = choose_genes(csr_matrix(counts), Genes(np.array(names)), vocabulary_of(names), 20)
    few = choose_genes(csr_matrix(counts[:, :100]), Genes(np.array(names[:100])), vocabulary_of(names), 20)
    assert chosen == few


def test_a_small_panel_is_taken_whole_and_strangers_are_refused():
    rng = np.random.default_rng(0)
    counts = csr_matrix(rng.poisson(2, (30, 80)))
    names = [f"G{k}" for k in range(80)]
    assert choose_genes(counts, Genes(np.array(names)), vocabulary_of(names[:60])) == tuple(names[:60])
    with pytest.raises(GeneError, match="expresses 0 of the"):
        choose_genes(counts, Genes(np.array([name.lower() for name in names])), vocabulary_of(names))
