"""Genes that follow an edit: how all others, and depth, change with the edited ones; and reach: which of an edit's genes section and checkpoint have."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from ..edits import Edit, Swap, Table
from ..text import some_of
from ..types import Genes, SpotTable
from .changes import (
    Measured,
    active_edits,
    apply_changes,
    changes_of,
    edited_genes,
    gene_weights,
    genes_at,
    spot_weights,
    unread_genes,
)
from .covariation import MIN_GENES, MIN_SPOTS, Covariation, covariation_of
from .edit_tables import read_edit_table
from .genes import columns_of, match_genes
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

    def moves(self) -> Array:
        """Return the change of each factor, (n, k)."""
        return self.share[:, None] * self.factors

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
    followed = [edit for edit in active_edits(edits) if follows(edit)]
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
    naming = [(edit, _columns([edit], programs, spots.genes)) for edit in active_edits(edits)]
    named = np.unique(np.concatenate([theirs for _, theirs in naming]))
    held = np.zeros((len(own), len(named)))
    for edit, theirs in naming:
        places = np.searchsorted(named, theirs)
        weights = spot_weights(edit, ids)
        if (members := _members(edit)) is not None:
            weights = weights * np.isin(ids, list(members))
        held[:, places] = np.maximum(held[:, places], weights[:, None])
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
    for edit in edits:
        if isinstance(edit, Table) and not edit.genes and not edit.programs:
            names |= dict.fromkeys(read_edit_table(edit).genes)
    return columns_of(tuple(names), genes)


def _members(edit: Edit) -> Collection[str] | None:
    """Return the only spots that an edit can change: those of its groups or of its table; None where there is no such limit."""
    if isinstance(edit, Swap):
        return {*edit.group_a, *edit.group_b}
    return read_edit_table(edit).ids if isinstance(edit, Table) else None


FOLLOWING_SHARE = 0.1
"""Share of its standard deviation by which a gene must change with a program to count as a follower."""


@dataclass(frozen=True)
class Reach:
    """Genes of an edit that can have an effect.

    Attributes
    ----------
    named
        Number of genes that it names.
    missing
        Genes that the section lacks.
    unread
        Genes that the checkpoint does not read: alone they have no effect on the image. Empty where no checkpoint is known.
    followed
        Whether other genes follow, so that even unread ones have an effect.
    """

    named: int
    missing: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    followed: bool = False

    @property
    def warning(self) -> str:
        """Sentence on genes without effect; empty where there are none."""
        if self.missing and len(self.missing) == self.named:
            return f"this section has none of its genes ({some_of(self.missing, 4)})"
        parts = []
        if self.missing:
            parts.append(f"{_share(self.missing, self.named)} not in this section ({some_of(self.missing, 4)})")
        if self.followed:
            return "; ".join(parts)
        if self.unread and len(self.unread) == self.named:
            parts.append(
                f"the checkpoint reads none of its genes ({some_of(self.unread, 4)}): the image will not change"
            )
        elif self.unread:
            parts.append(f"{_share(self.unread, self.named)} not read by the checkpoint ({some_of(self.unread, 4)})")
        return "; ".join(parts)


def reach_of(
    edit: Edit, programs: Programs, genes: Genes, checkpoint_genes: Sequence[str] | None, followed: bool = False
) -> Reach:
    """Return the reach of an edit in a section, for a checkpoint that reads ``checkpoint_genes`` (None: not known).

    An edit of the whole profile is not checked gene by gene. ``followed``: whether the section allows others to follow.
    """
    names = edited_genes(edit, {**{name: {} for name in edit.programs}, **programs})
    if not names:
        return Reach(0)
    unread = () if checkpoint_genes is None else unread_genes(names, checkpoint_genes, genes)
    return Reach(len(names), match_genes(names, genes).missing, unread, followed and follows(edit))


@dataclass(frozen=True)
class ProgramReach:
    """Share of a program that a checkpoint reads in a section.

    Attributes
    ----------
    named, there, read
        Number of its genes; of these, in the section; of those, read by the checkpoint.
    followers
        Number of the checkpoint's other genes that follow it in the section, by at least `FOLLOWING_SHARE` of their standard deviation for one
        standard deviation of the program's mean.
    others
        Number of other genes that the checkpoint reads and the section has.
    """

    named: int
    there: int
    read: int
    followers: int
    others: int

    @property
    def ineffective(self) -> bool:
        """Whether edits of it have no effect."""
        return self.there == 0 or self.read + self.followers == 0

    @property
    def words(self) -> str:
        """The share in a sentence."""
        if self.there == 0:
            return f"this section has none of its {self.named} genes"
        if self.ineffective:
            return f"the checkpoint reads none of its {self.named} genes, and nothing that it reads follows them here: no edit of it has an effect"
        through = f", and {self.followers} of {self.others} other genes follow it here" if self.followers else ""
        return f"the checkpoint reads {self.read} of its {self.named} genes{through}"


def program_reach(program: Mapping[str, float], spots: SpotTable, checkpoint_genes: Sequence[str]) -> ProgramReach:
    """Return how much of a program a checkpoint with these genes reads in a section, directly and through followers."""
    names = tuple(gene for gene, weight in program.items() if weight > 0)
    columns, visible = columns_of(names, spots.genes), columns_of(tuple(checkpoint_genes), spots.genes)
    match = match_genes(names, spots.genes)
    there = match.shared
    direct = len(set(names) - set(match.missing) - set(unread_genes(names, checkpoint_genes, spots.genes)))
    others = np.setdiff1d(visible, columns)
    known = covariation_of(spots)
    if known is None or not there:
        return ProgramReach(len(names), there, direct, 0, len(others))
    along = known.loadings[columns].mean(axis=0)
    spread = np.sqrt(along @ along + known.noise[columns].sum() / len(columns) ** 2)
    change = known.factors(np.full((1, len(columns)), spread), columns)[0] @ known.loadings[others].T
    noticed = np.abs(change) >= FOLLOWING_SHARE * np.sqrt(
        (known.loadings[others] ** 2).sum(axis=1) + known.noise[others]
    )
    return ProgramReach(len(names), there, direct, int(noticed.sum()), len(others))


def _share(names: Sequence[str], total: int) -> str:
    return f"{len(names)} of {total} genes {'is' if len(names) == 1 else 'are'}"
