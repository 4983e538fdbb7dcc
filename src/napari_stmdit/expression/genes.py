"""Genes of a section by name: exact matches, and a report of what is missing."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from importlib.resources import files
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..storage.fingerprint import PerObject
from ..types import Genes

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

_ENSEMBL = re.compile(r"^(ENS[A-Z]*G\d{6,})(\.\d+)?$")
MAX_MATCHES = 64
"""Matches that are kept for a table: one for each set of genes that is asked for."""


@dataclass(frozen=True)
class GeneMatch:
    """Columns of wanted genes in a table.

    Attributes
    ----------
    columns
        (w,) column of each wanted gene, -1 where the table lacks it. Of a symbol with several columns, the first.
    shared
        Number of wanted genes in the table.
    missing
        The others, in the order they were wanted.
    ambiguous
        Wanted gene -> all its columns, where its symbol stands for several (as symbols with two Ensembl ids do). They are one
        gene to the user: `gather_counts` sums them.
    renamed
        Wanted gene -> name in the table, where it was found by its Ensembl id or an alias.
    """

    columns: NDArray[np.int64]
    shared: int
    missing: tuple[str, ...]
    ambiguous: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)


def match_genes(wanted: tuple[str, ...], genes: Genes) -> GeneMatch:
    """Find genes in a table, exactly and case-sensitively.

    A name is looked for among the symbols; then, if it is an Ensembl gene id, among the ids, both without version suffix; then
    by the former or present symbol of the same gene, from a small table of renamed genes. Case is never changed: mouse Actb is
    not human ACTB.

    Parameters
    ----------
    wanted
        Symbols or Ensembl ids.
    genes
        The table's columns.
    """
    return _INDICES.get(genes, lambda: _Index(genes)).match(wanted)


def columns_of(names: tuple[str, ...], genes: Genes) -> NDArray[np.int64]:
    """Return the columns of the genes that the table has, in its order; all columns of a symbol with several."""
    match = match_genes(names, genes)
    twins = [column for columns in match.ambiguous.values() for column in columns]  # one gene to the user: all change
    return np.unique(np.concatenate([match.columns[match.columns >= 0], np.array(twins, dtype=np.int64)]))


def target_columns(
    names: tuple[str, ...], genes: Genes, only: Sequence[str] = ()
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the columns (c,) of a target's genes, and the place of each in ``names``, -1 for a duplicate.

    Of a symbol with several columns the first takes the whole target, and its duplicates go to zero: columns of one symbol are
    summed when encoded.
    """
    match = match_genes(names, genes)
    keep = match.columns >= 0
    if only:
        keep &= np.isin(match.columns, columns_of(tuple(only), genes))
    kept = {gene for gene, k in zip(names, keep, strict=True) if k}
    twins = np.array(
        [c for gene, columns in match.ambiguous.items() if gene in kept for c in columns[1:]], dtype=np.int64
    )
    return np.concatenate([match.columns[keep], twins]), np.concatenate([np.flatnonzero(keep), np.full(len(twins), -1)])


def gather_counts(counts: csr_matrix, match: GeneMatch, wanted: tuple[str, ...]) -> csr_matrix:
    """Return the (n, w) counts of the wanted genes of (n, g) sparse counts, zero where missing; columns of one symbol are summed.

    ``match`` is that of `match_genes` for the same ``wanted``.
    """
    from scipy.sparse import csr_matrix as csr

    source: list[int] = []
    target: list[int] = []
    for place, (name, column) in enumerate(zip(wanted, match.columns.tolist(), strict=True)):
        if column >= 0:
            all_columns = match.ambiguous.get(name, (column,))
            source += all_columns
            target += [place] * len(all_columns)
    kind = counts.dtype if counts.dtype.kind == "f" else np.int64  # two columns may sum to more than a byte holds
    return csr(counts @ csr((np.ones(len(source), kind), (source, target)), shape=(counts.shape[1], len(wanted))))


class _Index:
    """Columns by name, indexed once a table, and the latest matches: a slider asks for the same genes again and again."""

    def __init__(self, genes: Genes) -> None:
        self._ids = (genes.symbols if genes.ids is None else genes.ids).tolist()
        self._symbols = genes.symbols.tolist()
        self._by_symbol = _columns_by(self._symbols)
        self.match = lru_cache(maxsize=MAX_MATCHES)(self._match)

    @cached_property
    def _by_id(self) -> dict[str, list[int]]:
        """Columns by Ensembl id without version."""
        return _columns_by([_without_version(name) for name in self._ids])

    def _match(self, wanted: tuple[str, ...]) -> GeneMatch:
        by_symbol = self._by_symbol
        by_id = self._by_id if any(_ENSEMBL.match(name) for name in wanted) else {}
        columns = np.full(len(wanted), -1, dtype=np.int64)
        ambiguous: dict[str, tuple[int, ...]] = {}
        renamed: dict[str, str] = {}
        for place, name in enumerate(wanted):
            found = by_symbol.get(name)
            if found is None:
                found = by_id.get(_without_version(name)) or _by_alias(name, by_symbol)
                if found is None:
                    continue
                renamed[name] = self._symbols[found[0]]
            columns[place] = found[0]
            if len(found) > 1:
                ambiguous[name] = tuple(found)
        missing = tuple(name for name, column in zip(wanted, columns.tolist(), strict=True) if column < 0)
        columns.flags.writeable = False  # all who ask get the same
        return GeneMatch(columns, len(wanted) - len(missing), missing, ambiguous, renamed)


_INDICES = PerObject()


def _columns_by(names: list[str]) -> dict[str, list[int]]:
    columns: dict[str, list[int]] = {}
    for column, name in enumerate(names):
        columns.setdefault(name, []).append(column)
    return columns


def _without_version(name: str) -> str:
    match = _ENSEMBL.match(name)
    return match.group(1) if match else name


def _by_alias(name: str, by_symbol: Mapping[str, list[int]]) -> list[int] | None:
    other = aliases().get(name)
    return None if other is None else by_symbol.get(other)


@lru_cache(maxsize=1)
def aliases() -> dict[str, str]:
    """Return former symbol -> present symbol and back, for genes that HGNC (and MGI) renamed and that data still mix."""
    text = files("napari_stmdit").joinpath("data/gene_aliases.tsv").read_text(encoding="utf-8")
    table = {}
    for row in csv.DictReader(text.splitlines(), delimiter="\t"):
        table[row["former"]] = row["present"]
        table[row["present"]] = row["former"]
    return table
