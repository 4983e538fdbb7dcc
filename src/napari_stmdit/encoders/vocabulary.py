"""The vocabulary of a gene-token network: which token stands for which gene symbol."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError, GeneError
from ..expression.genes import aliases
from ..files import BadFile, read_json

CLS = "<cls>"
PAD = "<pad>"
_SHOWN = 20


@dataclass(frozen=True)
class Vocabulary:
    """Gene symbols (and special names in angle brackets) with their tokens.

    Attributes
    ----------
    tokens
        Name -> token; the tokens are 0 to n - 1, each once.
    """

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
        """Whether it is a gene of the vocabulary; the special names are none."""
        return symbol in self.tokens and not (symbol.startswith("<") and symbol.endswith(">"))


@dataclass(frozen=True)
class GeneReport:
    """How a gene list was found in a vocabulary.

    Attributes
    ----------
    listed
        Number of genes.
    by_alias
        Gene of the list -> name in the vocabulary, where it was found by a former or present symbol.
    unknown
        Genes that the vocabulary has under no name.
    twice
        Pairs of genes that stand for one token.
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
            notes.append(f"Found by another symbol: {_some(f'{a} as {b}' for a, b in self.by_alias.items())}.")
        if self.unknown:
            notes.append(f"Not in the vocabulary: {_some(self.unknown)}.")
        if self.twice:
            notes.append(f"Two genes of the list with one token: {_some(f'{a} and {b}' for a, b in self.twice)}.")
        return tuple(notes)


def read_vocabulary(path: str | Path) -> Vocabulary:
    """Read a vocabulary from a JSON mapping of names to tokens.

    Raises
    ------
    CheckpointError
        The file is missing, no JSON (pickles are refused: reading one can run code), or no valid vocabulary.
    """
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
    """Find genes in a vocabulary: exactly and case-sensitively, then by a former or present symbol of the same gene.

    Returns
    -------
    NDArray[np.int64]
        (g,) tokens, -1 where unknown.
    GeneReport
        What was found how.
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


def _some(names: Any) -> str:
    listed = list(names)
    shown = ", ".join(listed[:_SHOWN])
    return shown if len(listed) <= _SHOWN else f"{shown} and {len(listed) - _SHOWN} more"
