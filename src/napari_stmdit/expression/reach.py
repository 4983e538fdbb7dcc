"""Reach of an edit: which of its genes the section has, and which of those the checkpoint reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..intent import Edit
from ..types import Genes, SpotTable
from .changes import columns_of, edited_genes
from .covariation import covariation_of
from .following import follows
from .genes import match_genes
from .programs import Programs

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
            return f"this section has none of its genes ({_some(self.missing)})"
        parts = []
        if self.missing:
            parts.append(f"{_share(self.missing, self.named)} not in this section ({_some(self.missing)})")
        if self.followed:
            return "; ".join(parts)
        if self.unread and len(self.unread) == self.named:
            parts.append(f"the checkpoint reads none of its genes ({_some(self.unread)}): the image will not change")
        elif self.unread:
            parts.append(f"{_share(self.unread, self.named)} not read by the checkpoint ({_some(self.unread)})")
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
    known = set(names if checkpoint_genes is None else checkpoint_genes)
    unread = tuple(gene for gene in names if gene not in known)
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
    there, direct = match.shared, len(set(names) & set(checkpoint_genes) - set(match.missing))
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


def _some(names: Sequence[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")
