"""Expression as scores of linear programs over a fixed list of genes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError
from ..expression.genes import gather_counts, match_genes
from ..expression.normalise import PER
from ..intent import hash_genes
from ..types import MAX_DEPTH, Genes
from .tensors import read_arrays, read_config, write_encoder

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

ARRAYS = ("mean", "scale", "abundance", "projection", "offset")
DEPTH_ARRAYS = ("levels", "depth_projection")
"""Arrays that only encoders with depth levels have."""


class LinearProgramEncoder:
    """Linear projection of standardised log1p(counts per 10,000) over fixed genes, by the depth of the spot; of factors, of their shares.

    Depth is normalised over the encoder's own genes alone: whatever happens to any other gene has no effect at all. Genes that a
    section lacks count as their training mean, and the genes that are there share the depth that they had in training.

    There is a projection for each of several depth levels, fitted to profiles of that depth; scores are interpolated between the two levels
    around a spot's count, linearly in its logarithm. Below the lowest level they shrink to the offset, in proportion to the counts.

    Parameters
    ----------
    genes
        The g gene symbols.
    mean, scale
        (L, g) mean and spread of log1p(CP10k) in training, at each of L depth levels; (g,) where there is one for all depths.
    abundance
        (g,) mean counts per 10,000 in training, for the share of depth that missing genes would have had.
    projection, offset
        (L, g, d), or (g, d), and (d,): scores are standardised expression @ projection + offset.
    half_depth
        Shrinkage of shallow spots: n counts over these genes keep n / (n + half_depth) of the scores. 0: none.
    levels
        (L,) ascending counts over these genes that the levels stand for; None with one projection for all depths.
    depth_projection
        (d,) what a spot's depth relative to its section adds to the scores, see `SpotTable.relative_depth`; None: nothing.
    logged
        False for factors, which are linear in what they stand for: values per 10,000 are then projected without the logarithm.
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
        levels: NDArray[np.float32] | None = None,
        depth_projection: NDArray[np.float32] | None = None,
        logged: bool = True,
    ) -> None:
        self.logged = logged
        self.genes = tuple(genes)
        self.half_depth = float(half_depth)
        self.mean, self.scale, self.abundance = mean, scale, abundance
        self.projection, self.offset = projection, offset
        self.levels = levels
        self.depth_projection = np.zeros(len(offset), np.float32) if depth_projection is None else depth_projection
        count = () if levels is None else (len(levels),)
        expected: dict[str, tuple[int, ...]] = dict.fromkeys(("mean", "scale"), (*count, len(genes)))
        expected |= {"abundance": (len(genes),), "projection": (*count, len(genes), len(offset))}
        expected |= {"offset": (len(offset),), "depth_projection": (len(offset),)}
        for name, shape in expected.items():
            got = getattr(self, name).shape
            if got != shape:
                raise CheckpointError(f"expression encoder: {name} has the shape {got}, {shape} was expected")
        if levels is not None and (levels.ndim != 1 or np.any(levels <= 0) or np.any(np.diff(levels) <= 0)):
            raise CheckpointError("expression encoder: its depth levels are not positive and ascending")

    @property
    def dim(self) -> int:
        """Number of programs d."""
        return len(self.offset)

    @property
    def gene_hash(self) -> str:
        """SHA-256 of the gene list, as in the checkpoint's card."""
        return hash_genes(self.genes)

    @property
    def uses_depth(self) -> bool:
        """Whether a spot's depth relative to its section enters the scores."""
        return bool(np.any(self.depth_projection))

    def encode(self, counts: csr_matrix, genes: Genes, depth: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """Encode counts.

        Parameters
        ----------
        counts
            (n, G) sparse counts.
        genes
            Names of the G columns, matched exactly and case-sensitively.
        depth
            (n,) depth of the spots relative to their section; None: all as the median spot of theirs.

        Returns
        -------
        NDArray[np.float32]
            (n, d) program scores; those of the training mean for a spot without any count of these genes, or a section without the genes.
        """
        match = match_genes(self.genes, genes)
        own = gather_counts(counts, match, self.genes).toarray().astype(np.float32)
        return self.encode_counts(own, match.columns >= 0, depth)

    def encode_counts(
        self,
        own: NDArray[np.float32],
        present: NDArray[np.bool_] | None = None,
        depth: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """Encode (n, g) counts of its own genes, of which those ``present`` (g,) were measured; depth (n,) as in `encode`."""
        if present is None:
            present = np.ones(len(self.genes), dtype=bool)
        share = float(self.abundance[present].sum() / self.abundance.sum())
        total = own[:, present].sum(axis=1, keepdims=True)
        values = own * (PER * share / np.maximum(total, 1e-6))
        values = np.log1p(values) if self.logged else values
        known = present & (total > 0)
        full = total[:, 0] / max(share, 1e-12)  # the depth with the missing genes, had they been measured
        scores = np.zeros((len(own), self.dim), dtype=np.float32)
        # by depth: the logarithm of few counts says little more than whether a gene was detected
        for mean, scale, projection, weight in self._levels_at(full):
            rows = np.flatnonzero(weight)
            standard = np.where(known[rows], (values[rows] - mean) / scale, 0)
            scores[rows] += weight[rows, None] * (standard @ projection)
        kept = (full / (full + self.half_depth + 1e-6))[:, None]
        scores = kept * scores + self.offset
        if depth is not None and self.uses_depth and present.any():
            scores = scores + np.clip(depth, -MAX_DEPTH, MAX_DEPTH)[:, None] * self.depth_projection
        return np.asarray(scores, dtype=np.float32)

    def _levels_at(self, full: NDArray[np.float32]) -> Iterator[tuple[NDArray[np.float32], ...]]:
        """Yield mean, scale and projection of each level with its weights (n,) for spots of ``full`` counts."""
        if self.levels is None:
            yield self.mean, self.scale, self.projection, np.ones(len(full), dtype=np.float32)
            return
        count = len(self.levels)
        place = np.interp(np.log(np.maximum(full, 1e-6)), np.log(self.levels), np.arange(count))
        shrink = np.minimum(1, full / self.levels[0])
        for level in range(count):
            weight = np.maximum(0, 1 - np.abs(place - level)) * shrink
            yield self.mean[level], self.scale[level], self.projection[level], weight.astype(np.float32)

    def rotated(self, turn: NDArray[np.float64]) -> LinearProgramEncoder:
        """Return an encoder whose scores are this one's, rotated: scores @ ``turn`` (d, e)."""
        parts = (self.projection, self.offset, self.depth_projection)
        projection, offset, depth = ((part.astype(np.float64) @ turn).astype(np.float32) for part in parts)
        kept = (self.genes, self.mean, self.scale, self.abundance)
        return LinearProgramEncoder(*kept, projection, offset, self.half_depth, self.levels, depth, self.logged)

    def save(self, folder: Path) -> None:
        """Write ``config.json`` and ``model.safetensors``."""
        config = {
            "_class_name": type(self).__name__,
            "genes": list(self.genes),
            "gene_hash": self.gene_hash,
            "dim": self.dim,
            "half_depth": self.half_depth,
            "logged": self.logged,
        }
        names = ARRAYS + ("levels",) * (self.levels is not None) + ("depth_projection",) * self.uses_depth
        write_encoder(folder, config, {name: np.asarray(getattr(self, name), dtype=np.float32) for name in names})

    @classmethod
    def load(cls, folder: Path) -> LinearProgramEncoder:
        """Read an encoder; raises CheckpointError where its folder is incomplete or its genes do not fit their hash."""
        config, arrays = read_config(folder), read_arrays(folder, ARRAYS, DEPTH_ARRAYS)
        genes, half_depth = tuple(config.get("genes", ())), float(config.get("half_depth", 0.0))
        encoder = cls(genes, half_depth=half_depth, logged=bool(config.get("logged", True)), **arrays)
        if encoder.gene_hash != config.get("gene_hash"):
            raise CheckpointError(f"{folder}: the gene list does not fit its hash; the folder was changed or damaged")
        return encoder
