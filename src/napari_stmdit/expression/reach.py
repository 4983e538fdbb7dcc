"""How far an edit reaches: which of its genes the section has, and which of those the checkpoint sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..types import Edit, Genes
from .changes import edited_genes
from .genes import match_genes
from .programs import Programs


@dataclass(frozen=True)
class Reach:
    """What becomes of the genes that an edit names.

    Attributes
    ----------
    named
        How many it names.
    missing
        Those that the section lacks.
    unseen
        Those that the checkpoint does not see: to change them has no effect on the image. Empty where no checkpoint is known.
    """

    named: int
    missing: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()

    @property
    def warning(self) -> str:
        """Say what has no effect, in words; empty where all genes have one."""
        if self.missing and len(self.missing) == self.named:
            return f"this section has none of its genes ({_some(self.missing)})"
        parts = []
        if self.missing:
            parts.append(f"{_share(self.missing, self.named)} not in this section ({_some(self.missing)})")
        if self.unseen and len(self.unseen) == self.named:
            parts.append(f"the checkpoint sees none of its genes ({_some(self.unseen)}): the image will not change")
        elif self.unseen:
            parts.append(f"{_share(self.unseen, self.named)} not seen by the checkpoint ({_some(self.unseen)})")
        return "; ".join(parts)


def reach_of(edit: Edit, programs: Programs, genes: Genes, seen: Sequence[str] | None) -> Reach:
    """Return how far an edit reaches.

    Parameters
    ----------
    edit
        An edit without genes and programs moves the whole profile and is not looked at gene by gene.
    programs
        What programs stand for.
    genes
        The section's.
    seen
        The checkpoint's genes, or None.
    """
    names = edited_genes(edit, {**{name: {} for name in edit.programs}, **programs})
    if not names:
        return Reach(0)
    known = set(names if seen is None else seen)
    return Reach(len(names), match_genes(names, genes).missing, tuple(gene for gene in names if gene not in known))


def _share(names: Sequence[str], total: int) -> str:
    return f"{len(names)} of {total} genes {'is' if len(names) == 1 else 'are'}"


def _some(names: Sequence[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")
