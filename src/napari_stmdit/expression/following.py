"""Genes that follow an edit: how all others, and depth, change with the edited ones in this section."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from ..intent import Edit
from ..types import Genes, SpotTable
from .changes import (
    Measured,
    active_edits,
    apply_changes,
    changes_of,
    columns_of,
    gene_weights,
    genes_at,
    spot_weights,
)
from .covariation import MIN_GENES, MIN_SPOTS, Covariation, covariation_of
from .normalise import PER, counts_from, cp10k_log1p
from .programs import Programs

Array = NDArray[np.float64]
CUT_SHARE = 0.1
"""Share of a gene's change above which clipping is reported; a spot at the end of the range always loses a little."""
ROWS = 512
"""Spots computed at once: what follows is dense."""


@dataclass(frozen=True)
class Following:
    """Change of the followers in n spots.

    Attributes
    ----------
    covariation
        Of the section.
    own
        (n,) rows of the section's table that the spots were measured at.
    factors
        (n, k) change of each factor at full strength.
    share
        (n,) weight of the edits at each spot, 0 to 1; what follows is linear in it.
    named
        (c,) columns that the edits change themselves.
    held
        (n, c) 0 to 1: share of each of those that follows nothing else.
    """

    covariation: Covariation
    own: NDArray[np.int64]
    factors: Array
    share: Array
    named: NDArray[np.int64]
    held: Array

    def of(self, columns: NDArray[np.int64]) -> Followers:
        """Return the followers among some genes."""
        return Followers(self, columns, csr_matrix(self.covariation.levels[:, columns]))

    def depth(self) -> NDArray[np.float32]:
        """Return the change of relative depth, (n,)."""
        known = self.covariation
        before = known.depth[self.own]
        after = _inside(before, before + self.factors @ known.loadings[-1], known.low[-1], known.high[-1])
        return np.asarray(self.share * (after - before), dtype=np.float32)

    def cut(self, columns: NDArray[np.int64]) -> int:
        """Count the genes that lose `CUT_SHARE` of their change, over all spots, at the limits of the section's range."""
        followers, known = self.of(columns), self.covariation
        wanted, lost = np.zeros(len(columns)), np.zeros(len(columns))
        touched = np.flatnonzero(self.share)
        for start in range(0, len(touched), ROWS):
            rows = touched[start : start + ROWS]
            before = followers.smoothed(rows)
            after = before + self.factors[rows] @ known.loadings[columns].T
            wanted += np.abs(after - before).sum(axis=0)
            lost += np.abs(after - _inside(before, after, known.low[columns], known.high[columns])).sum(axis=0)
        return int(((lost >= CUT_SHARE * wanted) & (wanted > 0) & ~np.isin(columns, self.named)).sum())


@dataclass(frozen=True)
class Followers:
    """Following genes, ``columns`` (c,), with their measured levels (n, c) in the whole section."""

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
        """Change ``dense``, the counts of the spots ``rows`` with totals (rows,), in place; its columns ``at`` (c,) are these genes."""
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
        x = cp10k_log1p(dense[block], total)
        # a rise is added; a fall takes a share of every count, as most spots have none and could not fall otherwise
        x = x * (1 + np.minimum(change, 0) / np.maximum(before, 1e-12)) + np.maximum(change, 0)
        dense[block] = counts_from(np.maximum(x, 0), total)


def following(
    own: NDArray[np.int64], ids: Sequence[str], spots: SpotTable, edits: Sequence[Edit], programs: Programs
) -> Following | None:
    """Return what follows the edits with ``follow``, or None where nothing does.

    It is the conditional mean given the change of all edits together; genes that an edit names do not follow another one.
    ``own`` (n,) are the rows of ``spots`` that were measured, ``ids`` (n,) those that edits address them by.
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
        genes_at(columns, spots.genes),
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
    """Return whether an edit asks for other genes to follow."""
    return getattr(edit, "follow", "none") == "section"


def following_fault(spots: SpotTable) -> str | None:
    """Return why nothing can follow an edit in a section, or None where it can."""
    if covariation_of(spots) is not None:
        return None
    return (
        f"nothing follows edits of genes: the section has {len(spots)} spots and {len(spots.genes)} genes, at least {MIN_SPOTS} spots and "
        f"{MIN_GENES} genes are needed to tell what varies with what; only the genes that are named change"
    )


def following_notes(
    spots: SpotTable, edits: Sequence[Edit], programs: Programs, checkpoint_genes: Sequence[str]
) -> list[str]:
    """Return notes on what follows some edits: that nothing can, or that it was clipped to the section's range."""
    followed = [edit for edit in active_edits(edits) if follows(edit)]
    if not followed:
        return []
    if (fault := following_fault(spots)) is not None:
        return [fault]
    rows = np.arange(len(spots))
    along = following(rows, spots.ids.tolist(), spots, edits, programs)
    columns = columns_of(tuple(checkpoint_genes), spots.genes)
    cut = 0 if along is None else along.cut(columns)
    if not cut:
        return []
    return [
        f"for {cut} of the {len(columns)} genes that the checkpoint reads, a tenth or more of what would follow the edits is cut off, as it is "
        "held inside the range that the section's spots show; a smaller change is not cut"
    ]


def _inside(before: Array, after: Array, low: Array | float, high: Array | float) -> Array:
    """Clip a level to a range; a spot that was outside already may stay there."""
    return np.asarray(np.clip(after, np.minimum(before, low), np.maximum(before, high)))


def _columns(edits: Sequence[Edit], programs: Programs, genes: Genes) -> NDArray[np.int64]:
    names = dict.fromkeys(gene for edit in edits for gene, weight in gene_weights(edit, programs).items() if weight > 0)
    return columns_of(tuple(names), genes)
