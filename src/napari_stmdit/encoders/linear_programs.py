"""Expression as scores of linear programs over a fixed list of genes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError
from ..expression.genes import gather_counts, match_genes
from ..types import Genes, hash_genes

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

PER = 1e4
ARRAYS = ("mean", "scale", "abundance", "projection", "offset")
WEIGHTS = "model.safetensors"


class LinearProgramEncoder:
    """log1p(counts per 10,000) over its own genes, standardised and projected on programs.

    Depth is normalised over the encoder's own genes alone: whatever happens to any other gene has no effect at all. Genes that a
    section lacks count as their training mean, and the genes that are there share the depth that they had in training.

    Parameters
    ----------
    genes
        The g gene symbols.
    mean, scale
        (g,) mean and spread of log1p(CP10k) in training.
    abundance
        (g,) mean counts per 10,000 in training; says which share of the depth missing genes would have had.
    projection, offset
        (g, d) and (d,): scores are standardised expression @ projection + offset.
    half_depth
        Counts, over these genes, at which a spot's scores are drawn half-way to the offset: n counts keep n / (n + half_depth) of
        them. A shallow spot says little, and should not look like an extreme one. 0: no such shrinkage.
    """

    def __init__(
        self,
        genes: tuple[str, ...],
        mean: NDArray[np.float32],
        scale: NDArray[np.float32],
        abundance: NDArray[np.float32],
        projection: NDArray[np.float32],
        offset: NDArray[np.float32],
        half_depth: float = 0.0,
    ) -> None:
        self.genes = tuple(genes)
        self.half_depth = float(half_depth)
        self.mean, self.scale, self.abundance = mean, scale, abundance
        self.projection, self.offset = projection, offset
        expected: dict[str, tuple[int, ...]] = {name: (len(genes),) for name in ("mean", "scale", "abundance")}
        expected |= {"projection": (len(genes), len(offset)), "offset": (len(offset),)}
        for name, shape in expected.items():
            got = getattr(self, name).shape
            if got != shape:
                raise CheckpointError(f"expression encoder: {name} has the shape {got}, {shape} was expected")

    @property
    def dim(self) -> int:
        """Number of programs d."""
        return len(self.offset)

    @property
    def gene_hash(self) -> str:
        """SHA-256 of the gene list, as in the checkpoint's card."""
        return hash_genes(self.genes)

    def encode(self, counts: csr_matrix, genes: Genes) -> NDArray[np.float32]:
        """Encode counts.

        Parameters
        ----------
        counts
            (n, G) sparse counts.
        genes
            Names of the G columns, matched exactly and case-sensitively.

        Returns
        -------
        NDArray[np.float32]
            (n, d) program scores. A spot without any count of these genes gets the scores of the training mean, and so does
            every spot of a section that has none of them; a plan refuses such a section unless it is told not to.
        """
        match = match_genes(self.genes, genes)
        own = gather_counts(counts, match, self.genes).toarray().astype(np.float32)
        return self.encode_counts(own, match.columns >= 0)

    def encode_counts(self, own: NDArray[np.float32], present: NDArray[np.bool_] | None = None) -> NDArray[np.float32]:
        """Encode (n, g) counts of the encoder's own genes, of which those ``present`` (g,) were measured."""
        if present is None:
            present = np.ones(len(self.genes), dtype=bool)
        share = float(self.abundance[present].sum() / self.abundance.sum())
        total = own[:, present].sum(axis=1, keepdims=True)
        values = np.log1p(own * (PER * share / np.maximum(total, 1e-6)))
        standard = (values - self.mean) / self.scale
        standard[:, ~present] = 0
        standard[total[:, 0] <= 0] = 0
        full = total / max(share, 1e-12)  # the depth with the missing genes, had they been measured
        kept = full / (full + self.half_depth + 1e-6)
        return np.asarray(kept * (standard @ self.projection) + self.offset, dtype=np.float32)

    def save(self, folder: Path) -> None:
        """Write ``config.json`` and ``model.safetensors``."""
        from safetensors.numpy import save_file

        folder.mkdir(parents=True, exist_ok=True)
        config = {
            "_class_name": type(self).__name__,
            "genes": list(self.genes),
            "gene_hash": self.gene_hash,
            "dim": self.dim,
            "half_depth": self.half_depth,
        }
        (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
        save_file(
            {name: np.ascontiguousarray(getattr(self, name), dtype=np.float32) for name in ARRAYS}, folder / WEIGHTS
        )

    @classmethod
    def load(cls, folder: Path) -> LinearProgramEncoder:
        """Read an encoder; raises CheckpointError where its folder is incomplete or its genes do not fit their hash."""
        config, arrays = read_encoder_folder(folder, ARRAYS)
        encoder = cls(tuple(config.get("genes", ())), half_depth=float(config.get("half_depth", 0.0)), **arrays)
        if encoder.gene_hash != config.get("gene_hash"):
            raise CheckpointError(f"{folder}: the gene list does not fit its hash; the folder was changed or damaged")
        return encoder


def read_encoder_folder(folder: Path, names: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, NDArray[np.float32]]]:
    """Read ``config.json`` and the named arrays of ``model.safetensors``; raises CheckpointError where something is missing."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        config = json.loads((folder / "config.json").read_text())
        arrays = load_file(folder / WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{folder} is no readable encoder: {error}") from error
    missing = sorted(set(names) - set(arrays))
    if missing:
        raise CheckpointError(f"{folder}/{WEIGHTS} lacks {missing}; it holds {sorted(arrays)}")
    return config, {name: arrays[name].astype(np.float32) for name in names}
