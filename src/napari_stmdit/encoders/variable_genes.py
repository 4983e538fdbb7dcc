"""Choosing the gene list of an embedding: the most variable genes of a section."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..errors import GeneError
from ..expression.genes import gather_counts, match_genes
from ..types import Genes
from .vocabulary import Vocabulary

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

PER = 1e4
FEWEST = 50
"""Genes that are needed to compare their spread with that of genes of like abundance."""


def choose_genes(counts: csr_matrix, genes: Genes, vocabulary: Vocabulary, count: int = 1199) -> tuple[str, ...]:
    """Choose the genes that vary most in a section, by the rule of the released CancerFoundation.

    Of the genes that the vocabulary has (exactly and case-sensitively), the ``count`` with the highest dispersion among genes of
    like abundance: scanpy's ``highly_variable_genes`` with the flavour ``cell_ranger`` (Zheng et al. 2017) on log(1 + counts per
    10,000). The released code takes whatever it is given; this is the normalisation its flavour supposes. Genes without any count are
    left out first: the released rule compares genes within percentiles of abundance, and fails where many have none.

    Such a list belongs to the section it came from. To compare sections, and to reproduce an embedding, choose once and keep it.

    Parameters
    ----------
    counts
        (n, G) sparse raw counts; spots without any are left out.
    genes
        Names of the G columns.
    vocabulary
        Of the network.
    count
        How many; 1199 fill the released network's sequence of 1200.

    Returns
    -------
    tuple
        Symbols, in the order of the section's columns; fewer where the section has fewer that are expressed.

    Raises
    ------
    GeneError
        The section expresses too few genes of the vocabulary to compare them.
    """
    from anndata import AnnData
    from scanpy.preprocessing import highly_variable_genes
    from scipy.sparse import csr_matrix as csr
    from scipy.sparse import diags

    totals = np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()
    filled = np.flatnonzero(totals > 0)
    known = tuple(dict.fromkeys(symbol for symbol in genes.symbols.tolist() if symbol in vocabulary))
    own = gather_counts(counts[filled], match_genes(known, genes), known).astype(np.float64)
    expressed = np.flatnonzero(np.asarray(own.sum(axis=0)).ravel() > 0)
    if len(expressed) < FEWEST:
        raise GeneError(
            f"The section expresses {len(expressed)} of the {len(vocabulary)} genes of the vocabulary; at least {FEWEST} are needed "
            "to choose variable ones. The vocabulary holds human gene symbols and they match case-sensitively."
        )
    values = csr(diags(PER / totals[filled]) @ own[:, expressed])
    values.data = np.log1p(values.data)
    names = np.array(known)[expressed]
    if len(expressed) <= count:
        return tuple(names.tolist())
    table = highly_variable_genes(AnnData(values), n_top_genes=count, flavor="cell_ranger", inplace=False)
    return tuple(names[table["highly_variable"].to_numpy()].tolist())
