"""Expression as the embedding of a frozen CancerFoundation, a transformer over the genes of a cell.

The network was trained on single malignant cells; a spot holds several cells of several kinds. Gene list, binning of ties and
normalisation of vectors, on which an embedding depends, are saved with the encoder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from ...errors import CheckpointError, GeneError, SectionError
from ...expression.genes import GeneMatch, gather_counts, match_genes
from ...frozen import validated
from ...intent import hash_genes
from ...storage.atomic import write_text
from ...types import Genes
from ..tensors import read_tensors, write_encoder
from .folder import (
    VOCABULARY,
    CancerFoundationSettings,
    build_network,
    check_sizes,
    read_arguments,
    read_encoder,
)
from .network import CancerFoundationNetwork
from .vocabulary import Vocabulary, bin_rows, make_vocabulary, read_vocabulary, resolve_genes

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix


CLS_VALUE = -2.0


class CancerFoundationEncoder:
    """Encoder by a frozen CancerFoundation over a fixed list of genes.

    Each spot is a sequence of ``<cls>`` and its genes, each with the bin of its value among the spot's own values. Genes of the list that
    a section lacks are left out of the sequence, as in the released code; genes outside the list have no effect. Since bins are ranks
    within a spot, counts, counts per 10,000 and their logarithm give the same bins.

    Parameters
    ----------
    network
        On any device, float32.
    vocabulary
        Tokens of the genes.
    genes
        The list of genes, in order; at most ``settings.max_seq_len - 1``.
    settings
        Binning and output.
    ignored
        Stored tensor -> why it is not used.

    Attributes
    ----------
    gene_report
        How the genes were found in the vocabulary.
    batch
        Spots in one pass of the network; has no influence on the result beyond rounding.

    Raises
    ------
    GeneError
        Genes of the list are not in the vocabulary, or two of them are the same.
    CheckpointError
        There is no gene in the list, or there are too many; vocabulary and network differ in size.
    """

    def __init__(
        self,
        network: CancerFoundationNetwork,
        vocabulary: Vocabulary,
        genes: tuple[str, ...],
        settings: CancerFoundationSettings | None = None,
        ignored: Mapping[str, str] | None = None,
    ) -> None:
        self.network = network.eval().requires_grad_(False)
        self.vocabulary = vocabulary
        self.genes = tuple(genes)
        self.settings = settings or CancerFoundationSettings()
        self.ignored = dict(ignored or {})
        self.batch = 16
        if len(vocabulary) != network.sizes.tokens:
            raise CheckpointError(
                f"The vocabulary has {len(vocabulary)} names, the network {network.sizes.tokens} tokens: they do not belong together."
            )
        if not 0 < len(self.genes) < self.settings.max_seq_len:
            raise CheckpointError(
                f"The gene list has {len(self.genes)} genes; this network takes 1 to {self.settings.max_seq_len - 1}. "
                "`choose_genes` picks them from a section."
            )
        self._tokens, self.gene_report = resolve_genes(self.genes, vocabulary)

    @classmethod
    def from_weights(
        cls,
        tensors: Mapping[str, Any],
        vocabulary: Vocabulary,
        genes: tuple[str, ...],
        args: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> CancerFoundationEncoder:
        """Build an encoder from foreign weights, in any of the known layouts, wrapped or not.

        Parameters
        ----------
        tensors
            As read from a file.
        vocabulary, genes
            As for the class.
        args
            The model's ``args.json``; None: the number of heads is taken from a table of published widths.
        **settings
            Fields of `CancerFoundationSettings`; they take precedence over ``args``.

        Raises
        ------
        CheckpointError, GeneError
            Weights, arguments, vocabulary or genes do not fit.
        """
        said = read_arguments(args or {})
        stored = build_network(tensors, said.heads, said.value_style)
        check_sizes(stored.network, said.sizes, "args.json")
        chosen = validated(CancerFoundationSettings, {**said.settings, **settings}, "settings of CancerFoundation")
        return cls(stored.network, vocabulary, genes, chosen, stored.ignored)

    @property
    def dim(self) -> int:
        """Width d of an embedding."""
        return self.network.sizes.width

    @property
    def gene_hash(self) -> str:
        """SHA-256 of the gene list, as in the checkpoint's card."""
        return hash_genes(self.genes)

    @property
    def device(self) -> torch.device:
        """Device of the network."""
        return next(self.network.parameters()).device

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for the user: how the genes were found, and which tensors were left aside."""
        aside = f"Tensors left aside: {', '.join(self.ignored)}."
        return (*self.gene_report.notes, aside) if self.ignored else self.gene_report.notes

    def to(self, device: str | torch.device) -> CancerFoundationEncoder:
        """Move the network to a device; it stays in float32."""
        self.network.to(device)
        return self

    def encode(self, counts: csr_matrix, genes: Genes, depth: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """Encode counts.

        Parameters
        ----------
        counts
            (n, G) sparse counts, or any increasing transform of them.
        genes
            Names of the G columns, matched exactly and case-sensitively; Ensembl ids and renamed symbols are known.
        depth
            Not used: a spot's values are binned by their order within the spot.

        Returns
        -------
        NDArray[np.float32]
            ``output="cls"``: (n, d), the embedding at ``<cls>``; that of ``<cls>`` alone for a section without any gene of the list.
            ``output="tokens"``: (n, g, d), the embeddings of those g genes of the list that the section has, in the list's order
            (see `measured`), for a transformer that pools gene tokens; with ``include_cls``, (n, 1 + g, d). What the
            published STMDiT checkpoints pool is not known.

        Raises
        ------
        GeneError
            Tokens are wanted of a section that has none of the genes.
        SectionError
            Counts are not finite.
        """
        tokens, values = self._sequences(counts, genes)
        whole = self.settings.output == "tokens"
        first = 0 if self.settings.include_cls else 1
        shape = (len(values), len(tokens) - first, self.dim) if whole else (len(values), self.dim)
        if whole and shape[1] == 0:
            raise GeneError(
                f"The section has none of the {len(self.genes)} genes of CancerFoundation's list: there are no gene tokens. Genes "
                "match by symbol, case-sensitively, or by Ensembl id."
            )
        encoded = np.empty(shape, dtype=np.float32)
        for start in range(0, len(values), self.batch):
            part = slice(start, start + self.batch)
            embedded = self._embed(tokens, values[part])
            encoded[part] = embedded[:, first:] if whole else embedded[:, 0]
        return encoded

    def measured(self, genes: Genes) -> tuple[str, ...]:
        """Return the genes of the list that a section has, in the order of the tokens."""
        places = _places(match_genes(self.genes, genes), self.genes)
        return tuple(self.genes[place] for place in places.tolist())

    def save(self, folder: Path) -> None:
        """Write ``config.json``, ``vocab.json`` and ``model.safetensors``."""
        config = {
            "_class_name": type(self).__name__,
            "genes": list(self.genes),
            "gene_hash": self.gene_hash,
            "dim": self.dim,
            **self.settings.model_dump(),
            "network": {**asdict(self.network.sizes), "value_style": self.network.value_style},
        }
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / VOCABULARY, json.dumps(dict(self.vocabulary.tokens), indent=0) + "\n")
        write_encoder(folder, config, self.network.state_dict())

    @classmethod
    def load(
        cls,
        folder: Path,
        tensors: Mapping[str, Any] | None = None,
        vocabulary: Vocabulary | Mapping[str, int] | None = None,
    ) -> CancerFoundationEncoder:
        """Read an encoder from its folder: ``config.json`` and, unless they are given, ``model.safetensors`` and ``vocab.json``.

        Raises
        ------
        CheckpointError, GeneError
            The folder is incomplete, its parts do not fit each other, or its list of genes is empty.
        """
        described = read_encoder(folder)
        if vocabulary is None:
            vocabulary = read_vocabulary(folder / VOCABULARY)
        elif not isinstance(vocabulary, Vocabulary):
            vocabulary = make_vocabulary(vocabulary)
        stored = build_network(
            read_tensors(folder) if tensors is None else tensors, described.heads, described.value_style
        )
        check_sizes(stored.network, described.sizes, f"config.json of {folder}")
        return cls(stored.network, vocabulary, described.genes, described.settings, stored.ignored)

    def _sequences(self, counts: csr_matrix, genes: Genes) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return (L,) tokens and (n, L) binned values, ``<cls>`` first, of the genes that are there."""
        match = match_genes(self.genes, genes)
        places = _places(match, self.genes)
        own = gather_counts(counts, match, self.genes)[:, places].toarray().astype(np.float32)
        if not np.isfinite(own).all():
            raise SectionError("The counts hold values that are not finite numbers; expression cannot be encoded.")
        binned = bin_rows(_restore_ties(own), self.settings.n_bins, self.settings.ties, self.settings.seed)
        if self.settings.normalise_bins:
            binned /= self.settings.n_bins
        tokens = np.concatenate([[self.vocabulary.cls], self._tokens[places]])
        return tokens, np.pad(binned, ((0, 0), (1, 0)), constant_values=CLS_VALUE)

    @torch.inference_mode()
    def _embed(self, tokens: NDArray[np.int64], values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map (L,) tokens and (b, L) values to (b, L, d), or (b, 1, d) where only ``<cls>`` is wanted."""
        device = self.device
        embedded = self.network(
            torch.from_numpy(tokens)[None].to(device),
            torch.from_numpy(values).to(device),
            first_only=self.settings.output == "cls",
        )
        if self.settings.normalize:
            embedded = F.normalize(embedded, dim=-1)
        return embedded.cpu().numpy()  # type: ignore[no-any-return]


def _places(match: GeneMatch, genes: tuple[str, ...]) -> NDArray[np.int64]:
    """Return the places in the list of the genes that a section has; a column counts once, for the gene that has its own name.

    A list may hold the former and the present symbol of a gene as two genes, as the released vocabulary does.
    """
    own = {column for gene, column in zip(genes, match.columns.tolist(), strict=True) if gene not in match.renamed}
    places = []
    for place, (gene, column) in enumerate(zip(genes, match.columns.tolist(), strict=True)):
        if column < 0 or (gene in match.renamed and column in own):
            continue
        own.add(column)
        places.append(place)
    return np.array(places, dtype=np.int64)


def _restore_ties(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Round values within float32 error of a whole number, so that 2.0000002 after an edit still ties with 2."""
    whole = np.rint(values)
    return np.where(np.abs(values - whole) <= 1e-5 * np.abs(whole), whole, values)
