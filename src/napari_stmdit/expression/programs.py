"""Programs (named gene sets with weights): bundled ones, and those of GMT files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType

import yaml

from ..errors import GeneError
from ..files import BadFile, read_text
from ..text import some_of
from ..types import Genes
from .genes import match_genes

MAX_MB = 50

Programs = Mapping[str, Mapping[str, float]]
"""Name -> gene symbol -> weight between 0 and 1. A gene's weight multiplies an edit's effect on it."""


@dataclass(frozen=True)
class GeneSets:
    """Contents of a GMT file.

    Attributes
    ----------
    programs
        Name -> {gene: 1.0}, in the file's order.
    notes
        Sentences for the user on genes named twice.
    """

    programs: dict[str, dict[str, float]]
    notes: tuple[str, ...] = ()


def read_gmt(path: str | Path) -> GeneSets:
    """Read gene sets from a GMT file: one set a line, name, description and genes, separated by tabs.

    A gene that a set names twice counts once, and a note says so; two sets with one name and different genes are refused.

    Raises
    ------
    GeneError
        The file cannot be read, or is no GMT; every faulty line is named.
    """
    path = Path(path)
    try:
        lines = read_text(path, MAX_MB).splitlines()
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
            notes.append(f"{name} names {some_of(twice)} more than once; each counts once")
        if name in programs and programs[name] != genes:
            faults.append(f"line {number} gives {name!r} other genes than a line before; give them different names")
        programs.setdefault(name, genes)
    if faults or not programs:
        what = "; ".join(faults[:8]) or "it has no gene set"
        raise GeneError(f"{path.name} is not a GMT file: {what}. Columns are separated by tabs")
    return GeneSets(programs, tuple(notes))


def report(sets: GeneSets, genes: Genes) -> tuple[str, ...]:
    """Return notes on how the sets fit a section: genes that it lacks, sets without any gene in it."""
    notes = list(sets.notes)
    for name, program in sets.programs.items():
        missing = match_genes(tuple(program), genes).missing
        if len(missing) == len(program):
            notes.append(f"{name}: this section has none of its {len(program)} genes")
        elif missing:
            notes.append(
                f"{name}: {len(missing)} of its {len(program)} genes are not in this section: {some_of(missing)}"
            )
    return tuple(notes)


# ------------------------------------------------------------------------------------------------- bundled programs


@dataclass(frozen=True)
class ProgramNote:
    """Note on a bundled program: what it stands for, and a publication where such markers are described."""

    about: str
    source: str


@cache
def _bundled() -> tuple[Programs, Mapping[str, ProgramNote]]:
    text = files("napari_stmdit").joinpath("data/programs.yaml").read_text(encoding="utf-8")
    content = yaml.safe_load(text)
    programs = {name: MappingProxyType(dict.fromkeys(entry["genes"], 1.0)) for name, entry in content.items()}
    notes = {name: ProgramNote(entry["about"], entry["source"]) for name, entry in content.items()}
    return MappingProxyType(programs), MappingProxyType(notes)


def bundled_programs() -> Programs:
    """Return the programs that come with the package: name -> {gene symbol: weight}, human symbols.

    They are short lists of marker genes in common use, meant for painting edits, not for scoring cell types.
    """
    return _bundled()[0]


def bundled_notes() -> Mapping[str, ProgramNote]:
    """Return what each bundled program stands for and where its markers are described."""
    return _bundled()[1]


def known_programs(own: Programs) -> Programs:
    """Return the bundled programs and the user's own; of two with one name, the user's."""
    return {**bundled_programs(), **own} if own else bundled_programs()
