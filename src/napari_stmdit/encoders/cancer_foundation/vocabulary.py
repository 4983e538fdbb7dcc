"""Input of a CancerFoundation network: binned values (digits), tokens of genes, and the choice of a gene list.

Bin edges are ``n_bins - 1`` quantiles of a cell's non-zero values, so a digit is a rank within the cell and does not depend on depth or
log1p. Where several edges fall on one value, as with counts, a rule for ties chooses.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from ...errors import CheckpointError, GeneError
from ...expression.genes import aliases, gather_counts, match_genes
from ...expression.normalise import sparse_cp10k_log1p
from ...files import BadFile, read_json
from ...text import some_of
from ...types import Genes

if TYPE_CHECKING:
    from scipy.sparse import csc_matrix, csr_matrix


Ties = Literal["middle", "random"]


def bin_rows(rows: NDArray[np.float32], n_bins: int = 51, ties: Ties = "middle", seed: int = 0) -> NDArray[np.float32]:
    """Bin every row by itself.

    Parameters
    ----------
    rows
        (n, g) finite values of any sign, in any unit that increases with expression.
    n_bins
        Digits are 0 (no expression) to ``n_bins - 1``.
    ties
        ``middle``: the middle of the digits allowed, rounded down; deterministic, equal values always get equal digits.
        ``random``: the released rule, a uniform draw among the digits allowed, from a generator of the seed and the row's content.
    seed
        Of ``random``.

    Returns
    -------
    NDArray[np.float32]
        (n, g) digits.
    """
    binned = np.zeros(rows.shape, dtype=np.float32)
    for place, row in enumerate(rows):
        binned[place] = bin_row(row, n_bins, row_generator(row, seed) if ties == "random" else None)
    return binned


def bin_row(
    row: NDArray[np.float32], n_bins: int = 51, random: np.random.RandomState | None = None
) -> NDArray[np.int64]:
    """Bin one cell's (g,) values into (g,) digits.

    Zeros stay 0, negative values count as non-zero, and a row whose largest value is 0 gets zeros (the released code fails on it). With
    ``random`` one uniform number is drawn for each non-zero value, in order; without, ties take the middle, rounded down.
    """
    digits = np.zeros(len(row), dtype=np.int64)
    if row.size == 0 or row.max() == 0:
        return digits
    filled = np.flatnonzero(row)
    if random is None:
        lowest, highest = allowed_digits(row[filled], n_bins)
        digits[filled] = (lowest + highest) // 2
    else:
        below, upto = _edges_around(row[filled], n_bins)
        digits[filled] = np.ceil(random.random_sample(len(filled)) * (below - upto) + upto)
    return digits


def allowed_digits(values: NDArray[np.float32], n_bins: int = 51) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the lowest and the highest digit that each of the (k,) non-zero values of a cell may get."""
    below, upto = _edges_around(values, n_bins)
    return np.minimum(below + 1, upto), upto


def _edges_around(values: NDArray[np.float32], n_bins: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Count the edges below each value, and those up to and including it; edges are quantiles in float64."""
    wide = values.astype(np.float64)
    edges = np.quantile(wide, np.linspace(0, 1, n_bins - 1))
    below, upto = (np.searchsorted(edges, wide, side=side).astype(np.int64) for side in ("left", "right"))
    return below, upto


def row_generator(row: NDArray[np.float32], seed: int) -> np.random.RandomState:
    """Return the generator of one row, made from the seed and the row's content."""
    content = np.ascontiguousarray(row, dtype="<f4") + np.float32(0)  # -0 and 0 are the same content
    digest = hashlib.sha256(f"{seed}:".encode() + content.tobytes()).digest()
    return np.random.RandomState(np.frombuffer(digest, dtype="<u4"))


CLS = "<cls>"
PAD = "<pad>"
_MAX_SHOWN = 20


@dataclass(frozen=True)
class Vocabulary:
    """Gene symbols (and special names in angle brackets) with their tokens, 0 to n - 1, each once."""

    tokens: Mapping[str, int]

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def cls(self) -> int:
        """Token of ``<cls>``."""
        return self.tokens[CLS]

    @property
    def pad(self) -> int:
        """Token of ``<pad>``."""
        return self.tokens[PAD]

    def __contains__(self, symbol: str) -> bool:
        """Return whether it is a gene of the vocabulary; the special names are none."""
        return symbol in self.tokens and not (symbol.startswith("<") and symbol.endswith(">"))


@dataclass(frozen=True)
class GeneReport:
    """Report on a gene list in a vocabulary.

    Attributes
    ----------
    listed
        Number of genes.
    by_alias
        Gene of the list -> name in the vocabulary, where it was found by a former or present symbol.
    unknown
        Genes that the vocabulary has under no name.
    twice
        Pairs of genes with one token.
    """

    listed: int
    by_alias: Mapping[str, str] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()
    twice: tuple[tuple[str, str], ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for the user."""
        notes = [f"{self.listed - len(self.unknown)} of {self.listed} genes of the list are in the vocabulary."]
        if self.by_alias:
            notes.append(
                f"Found by another symbol: {some_of((f'{a} as {b}' for a, b in self.by_alias.items()), _MAX_SHOWN)}."
            )
        if self.unknown:
            notes.append(f"Not in the vocabulary: {some_of(self.unknown, _MAX_SHOWN)}.")
        if self.twice:
            notes.append(
                f"Two genes of the list with one token: {some_of((f'{a} and {b}' for a, b in self.twice), _MAX_SHOWN)}."
            )
        return tuple(notes)


def read_vocabulary(path: str | Path) -> Vocabulary:
    """Read a vocabulary from a JSON mapping of names to tokens; raises CheckpointError, also for a pickle, which could run code."""
    path = Path(path)
    if path.suffix != ".json":
        why = " Pickles are refused, because reading one can run code." if path.suffix in (".pkl", ".pickle") else ""
        raise CheckpointError(
            f"{path.name} is no vocabulary: a .json mapping of gene symbols to tokens is expected.{why}"
        )
    try:
        found = read_json(path)
    except BadFile as error:
        raise CheckpointError(f"{path} is no readable vocabulary: {error}") from None
    return make_vocabulary(found, str(path))


def make_vocabulary(found: Any, where: str = "the vocabulary") -> Vocabulary:
    """Check a mapping of names to tokens; raises CheckpointError with every fault seen."""
    if not isinstance(found, Mapping) or not found:
        raise CheckpointError(f"{where} holds {type(found).__name__}, expected a mapping of gene symbols to tokens.")
    faults = [f"it lacks {name}" for name in (CLS, PAD) if name not in found]
    if not all(isinstance(token, int) and not isinstance(token, bool) for token in found.values()):
        faults.append("some tokens are no whole numbers")
    elif sorted(found.values()) != list(range(len(found))):
        faults.append(f"its tokens are not 0 to {len(found) - 1}, each once")
    if faults:
        raise CheckpointError(f"{where} is no valid vocabulary: {'; '.join(faults)}.")
    return Vocabulary({str(name): int(token) for name, token in found.items()})


def report_genes(genes: tuple[str, ...], vocabulary: Vocabulary) -> tuple[NDArray[np.int64], GeneReport]:
    """Return (g,) tokens of genes, -1 where unknown, and how they were found.

    Genes are found exactly and case-sensitively, then by a former or present symbol of the same gene.
    """
    other = aliases()
    tokens = np.full(len(genes), -1, dtype=np.int64)
    by_alias: dict[str, str] = {}
    owners: dict[int, str] = {}
    twice: list[tuple[str, str]] = []
    for place, gene in enumerate(genes):
        name = gene if gene in vocabulary else other.get(gene, "")
        if name not in vocabulary:
            continue
        if name != gene:
            by_alias[gene] = name
        tokens[place] = token = vocabulary.tokens[name]
        if token in owners:
            twice.append((owners[token], gene))
        owners.setdefault(token, gene)
    unknown = tuple(gene for gene, token in zip(genes, tokens.tolist(), strict=True) if token < 0)
    return tokens, GeneReport(len(genes), by_alias, unknown, tuple(twice))


def resolve_genes(genes: tuple[str, ...], vocabulary: Vocabulary) -> tuple[NDArray[np.int64], GeneReport]:
    """Find every gene in a vocabulary, as `report_genes`; raises GeneError where one is unknown or two are the same."""
    tokens, report = report_genes(genes, vocabulary)
    if report.unknown or report.twice:
        raise GeneError(
            f"The gene list does not fit the vocabulary. {' '.join(report.notes)} Leave these genes out of the list, or use the "
            "vocabulary that the network was trained with."
        )
    return tokens, report


NORMAL_MAD = 0.6744897501960817
"""Median absolute deviation of a standard normal variable."""
MIN_GENES = 50
"""Minimum number of genes for comparing dispersion among genes of like abundance."""


def choose_genes(counts: csr_matrix, genes: Genes, vocabulary: Vocabulary, count: int = 1199) -> tuple[str, ...]:
    """Choose the genes that vary most in a section, by the rule of the released CancerFoundation.

    Of the genes that the vocabulary has (exactly and case-sensitively), the ``count`` with the highest normalised dispersion
    (`normalised_dispersion`) of log(1 + counts per 10,000). The released code takes whatever it is given; this is the normalisation
    its rule supposes. Genes without any count are left out first: the rule compares genes within percentiles of abundance.

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
        Symbols, in the order of the section's columns; fewer where the section has fewer that are expressed, more where the last
        ones are equal.

    Raises
    ------
    GeneError
        The section expresses too few genes of the vocabulary to compare them.
    """
    totals = np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()
    filled = np.flatnonzero(totals > 0)
    known = tuple(dict.fromkeys(symbol for symbol in genes.symbols.tolist() if symbol in vocabulary))
    own = gather_counts(counts[filled], match_genes(known, genes), known).astype(np.float64)
    expressed = np.flatnonzero(np.asarray(own.sum(axis=0)).ravel() > 0)
    if len(expressed) < MIN_GENES:
        raise GeneError(
            f"The section expresses {len(expressed)} of the {len(vocabulary)} genes of the vocabulary; at least {MIN_GENES} are needed "
            "to choose variable ones. The vocabulary holds human gene symbols and they match case-sensitively."
        )
    names = np.array(known)[expressed]
    if len(expressed) <= count:
        return tuple(names.tolist())
    spread = normalised_dispersion(sparse_cp10k_log1p(own[:, expressed], totals[filled]).tocsc())
    ranked = np.sort(spread[~np.isnan(spread)])
    chosen = np.nan_to_num(spread, nan=-np.inf) >= ranked[-min(count, len(ranked))]
    return tuple(names[chosen].tolist())


def normalised_dispersion(values: csc_matrix) -> NDArray[np.float64]:
    """Return the dispersion (g,) of each column of values (n, g), relative to columns of like mean; NaN where there is none to compare.

    Variance over mean, less the median of its bin and divided by the bin's median absolute deviation; bins are vigintiles of the mean
    from the tenth percentile on (Zheng et al., 2017; in scanpy the flavour ``cell_ranger`` of ``highly_variable_genes``).
    """
    n = values.shape[0]
    column = np.repeat(np.arange(values.shape[1]), np.diff(values.indptr))  # of each stored value
    mean = np.asarray(values.sum(axis=0)).ravel() / n
    squares = np.bincount(column, (values.data - mean[column]) ** 2, minlength=len(mean))
    zeros = n - np.bincount(column, minlength=len(mean))
    dispersion = (squares + zeros * mean**2) / (n - 1) / mean
    bins = np.searchsorted(np.percentile(mean, np.arange(10, 105, 5)), mean)
    found = np.full(len(mean), np.nan)
    for one in np.unique(bins):
        own = bins == one
        off = dispersion[own] - np.median(dispersion[own])
        with np.errstate(divide="ignore", invalid="ignore"):  # of one gene alone, or of equal ones
            found[own] = off / (np.median(np.abs(off)) / NORMAL_MAD)
    return found
