"""Gene sets from GMT files: one set a line, name, description and genes, separated by tabs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..errors import GeneError
from ..files import BadFile, read_text
from ..types import Genes
from .genes import match_genes

MOST_BYTES = 50_000_000


@dataclass(frozen=True)
class GeneSets:
    """What a GMT file holds.

    Attributes
    ----------
    programs
        Name -> {gene: 1.0}, in the file's order.
    notes
        Sentences for the user: what was named twice.
    """

    programs: dict[str, dict[str, float]]
    notes: tuple[str, ...] = ()


def read_gmt(path: str | Path) -> GeneSets:
    """Read gene sets from a GMT file.

    A gene that a set names twice counts once, and that is told; of two sets with one name and different genes none can be
    chosen, and that is refused.

    Raises
    ------
    GeneError
        The file cannot be read, or is no GMT; every faulty line is named.
    """
    path = Path(path)
    try:
        lines = read_text(path, MOST_BYTES / 1e6).splitlines()
    except BadFile as error:
        raise GeneError(f"{path} cannot be read as a GMT file: {error}") from None
    programs: dict[str, dict[str, float]] = {}
    notes, faults = [], []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        name, *rest = (part.strip() for part in line.rstrip("\r\n").split("\t"))
        named = [gene for gene in rest[1:] if gene]
        genes = dict.fromkeys(named, 1.0)
        if not name or not genes:
            faults.append(f"line {number} has {len(rest) + 1} columns: expected a name, a description and genes")
            continue
        twice = [gene for gene, count in Counter(named).items() if count > 1]
        if twice:
            notes.append(f"{name} names {_some(twice)} more than once; each counts once")
        if name in programs and programs[name] != genes:
            faults.append(f"line {number} gives {name!r} other genes than a line before; give them different names")
        programs.setdefault(name, genes)
    if faults or not programs:
        what = "; ".join(faults[:8]) or "it has no gene set"
        raise GeneError(f"{path.name} is not a GMT file: {what}. Columns are separated by tabs")
    return GeneSets(programs, tuple(notes))


def report(sets: GeneSets, genes: Genes) -> tuple[str, ...]:
    """Return sentences on how the sets fit a section: genes that it lacks, sets that it has nothing of."""
    notes = list(sets.notes)
    for name, program in sets.programs.items():
        missing = match_genes(tuple(program), genes).missing
        if len(missing) == len(program):
            notes.append(f"{name}: this section has none of its {len(program)} genes")
        elif missing:
            notes.append(
                f"{name}: {len(missing)} of its {len(program)} genes are not in this section: {_some(missing)}"
            )
    return tuple(notes)


def _some(names: Iterable[str], most: int = 5) -> str:
    every = list(names)
    return ", ".join(every[:most]) + (f" and {len(every) - most} more" if len(every) > most else "")
