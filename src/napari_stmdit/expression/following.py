"""What goes along with edits of genes and programs: the other genes, and depth, as they vary with those in this section."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from ..intent import Edit
from ..types import Genes, SpotTable
from .changes import PER, Measured, active_edits, apply_changes, changes_of, columns_of, gene_weights, spot_weights
from .covariation import FEWEST_GENES, FEWEST_SPOTS, Covariation, covariation_of
from .programs import Programs

Array = NDArray[np.float64]
NOTICED = 0.1
"""Share of what would follow that is told of where it is cut off. A spot at the end of the range always loses a little."""
ROWS = 512
"""What follows is dense, so it is looked at for so many spots at once."""


@dataclass(frozen=True)
class Following:
    """What goes along in n spots.

    Attributes
    ----------
    covariation
        Of the section.
    own
        (n,) rows of the section's table that the spots were measured at.
    factors
        (n, k) how far each factor goes at full strength.
    share
        (n,) how strongly the edits act at each spot, 0 to 1: what follows is linear in it.
    named
        (c,) columns that edits of genes change themselves.
    held
        (n, c) 0 to 1: how much each of those stays as the edits say.
    """

    covariation: Covariation
    own: NDArray[np.int64]
    factors: Array
    share: Array
    named: NDArray[np.int64]
    held: Array

    def of(self, columns: NDArray[np.int64]) -> Followers:
        """Return what goes along of some genes."""
        return Followers(self, columns, csr_matrix(self.covariation.levels[:, columns]))

    def depth(self) -> NDArray[np.float32]:
        """Return how far relative depth goes along, (n,)."""
        known = self.covariation
        before = known.depth[self.own]
        after = _inside(before, before + self.factors @ known.loadings[-1], known.low[-1], known.high[-1])
        return np.asarray(self.share * (after - before), dtype=np.float32)

    def cut(self, columns: NDArray[np.int64]) -> int:
        """Return how many of some genes lose `NOTICED` of how they would follow, over all spots, because that leaves the section's range."""
        followers, known = self.of(columns), self.covariation
        wanted, lost = np.zeros(len(columns)), np.zeros(len(columns))
        touched = np.flatnonzero(self.share)
        for start in range(0, len(touched), ROWS):
            rows = touched[start : start + ROWS]
            before = followers.smoothed(rows)
            after = before + self.factors[rows] @ known.loadings[columns].T
            wanted += np.abs(after - before).sum(axis=0)
            lost += np.abs(after - _inside(before, after, known.low[columns], known.high[columns])).sum(axis=0)
        return int(((lost >= NOTICED * wanted) & (wanted > 0) & ~np.isin(columns, self.named)).sum())


@dataclass(frozen=True)
class Followers:
    """What goes along of some genes, ``columns`` (c,), with their measured levels (n, c) in the whole section."""

    following: Following
    columns: NDArray[np.int64]
    levels: csr_matrix

    def smoothed(self, rows: NDArray[np.int64]) -> Array:
        """Return their smoothed levels, (rows, c), at some of the spots."""
        known = self.following
        return np.asarray((known.covariation.weights[known.own[rows]] @ self.levels).toarray(), dtype=np.float64)

    def apply(
        self, dense: NDArray[np.float32], rows: NDArray[np.int64], totals: NDArray[np.float32], at: NDArray[np.int64]
    ) -> None:
        """Let them go along in ``dense``, the counts of the spots ``rows`` with totals (rows,); its columns ``at`` (c,) are these genes.

        A rise is added to the level. A fall takes the same share of every count, so that the mean over neighbouring spots falls by as
        much although most spots have no count of most genes.
        """
        known, section = self.following, self.following.covariation
        touched = np.flatnonzero(known.share[rows])
        if touched.size == 0:
            return
        spots = rows[touched]
        before = self.smoothed(spots)
        after = before + known.factors[spots] @ section.loadings[self.columns].T
        change = known.share[spots, None] * (
            _inside(before, after, section.low[self.columns], section.high[self.columns]) - before
        )
        places = np.searchsorted(known.named, self.columns)
        named = np.flatnonzero(
            (places < len(known.named)) & (known.named[np.minimum(places, len(known.named) - 1)] == self.columns)
        )
        change[:, named] *= 1 - known.held[np.ix_(spots, places[named])]
        block, total = np.ix_(touched, at), totals[touched, None]
        x = np.log1p(dense[block] * (PER / total))
        x = x * (1 + np.minimum(change, 0) / np.maximum(before, 1e-12)) + np.maximum(change, 0)
        dense[block] = np.expm1(np.maximum(x, 0)) * (total / PER)


def following(
    own: NDArray[np.int64], ids: Sequence[str], spots: SpotTable, edits: Sequence[Edit], programs: Programs
) -> Following | None:
    """Return what goes along with the edits of genes that say so, or None where nothing does.

    Parameters
    ----------
    own, ids
        (n,) rows of ``spots`` that were measured, and the ids that edits address them by.
    spots
        The section's spots.
    edits
        All edits; disabled ones are skipped.
    programs
        What programs stand for.

    Returns
    -------
    Following | None
        All edits of genes are looked at together: what follows is the conditional mean given the change that they make together. Genes
        that any of them names do not follow.
    """
    of_genes = [edit for edit in active_edits(edits) if hasattr(edit, "follow")]
    followed = [edit for edit in of_genes if follows(edit)]
    if not followed or (known := covariation_of(spots)) is None:
        return None
    columns = _columns(followed, programs, spots.genes)
    rows = np.arange(len(spots))
    smooth = Measured(
        spots.ids,
        csr_matrix(np.expm1(known.smoothed(rows, columns)).astype(np.float32)),
        _genes(spots.genes, columns),
        np.full(len(spots), PER, np.float32),
    )
    dense = smooth.counts[own].toarray()
    before = np.log1p(dense).astype(np.float64)
    apply_changes(dense, own, list(ids), changes_of(smooth, followed, programs, {}))
    share = np.max([spot_weights(edit, ids) for edit in followed], axis=0).astype(np.float64)
    full = (np.log1p(dense) - before) / np.where(share > 0, share, 1)[:, None]
    full[share == 0] = 0
    named = _columns(of_genes, programs, spots.genes)
    held = np.zeros((len(own), len(named)))
    for edit in of_genes:
        theirs = np.searchsorted(named, _columns([edit], programs, spots.genes))
        held[:, theirs] = np.maximum(held[:, theirs], spot_weights(edit, ids)[:, None])
    held = np.minimum(held / np.where(share > 0, share, 1)[:, None], 1)
    return Following(known, own, known.factors(full, columns), share, named, held)


def follows(edit: Edit) -> bool:
    """Return whether what varies with an edit's genes is asked to go along."""
    return getattr(edit, "follow", "none") == "section"


def following_fault(spots: SpotTable) -> str | None:
    """Say why nothing can follow an edit in a section, or None where it can."""
    if covariation_of(spots) is not None:
        return None
    return (
        f"nothing follows edits of genes: the section has {len(spots)} spots and {len(spots.genes)} genes, at least {FEWEST_SPOTS} spots and "
        f"{FEWEST_GENES} genes are needed to tell what varies with what; only the genes that are named change"
    )


def following_notes(spots: SpotTable, edits: Sequence[Edit], programs: Programs, seen: Sequence[str]) -> list[str]:
    """Return what is to be told of what follows some edits: that nothing can, or that it was held inside what the section shows."""
    followed = [edit for edit in active_edits(edits) if follows(edit)]
    if not followed:
        return []
    if (fault := following_fault(spots)) is not None:
        return [fault]
    rows = np.arange(len(spots))
    along = following(rows, spots.ids.tolist(), spots, edits, programs)
    columns = columns_of(tuple(seen), spots.genes)
    cut = 0 if along is None else along.cut(columns)
    if not cut:
        return []
    return [
        f"for {cut} of the {len(columns)} genes that the checkpoint sees, a tenth or more of what would follow the edits is cut off, as it is "
        "held inside the range that the section's spots show; a smaller change is not cut"
    ]


def _inside(before: Array, after: Array, low: Array | float, high: Array | float) -> Array:
    """Return a level held inside a range, which a spot that lies outside of it need not enter."""
    return np.asarray(np.clip(after, np.minimum(before, low), np.maximum(before, high)))


def _columns(edits: Sequence[Edit], programs: Programs, genes: Genes) -> NDArray[np.int64]:
    names = dict.fromkeys(gene for edit in edits for gene, weight in gene_weights(edit, programs).items() if weight > 0)
    return columns_of(tuple(names), genes)


def _genes(genes: Genes, columns: NDArray[np.int64]) -> Genes:
    return Genes(genes.symbols[columns], None if genes.ids is None else genes.ids[columns])
