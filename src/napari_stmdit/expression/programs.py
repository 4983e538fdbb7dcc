"""Programs: named gene sets with weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from types import MappingProxyType

import yaml

Programs = Mapping[str, Mapping[str, float]]
"""Name -> gene symbol -> weight between 0 and 1. A gene's weight multiplies an edit's effect on it."""


@dataclass(frozen=True)
class ProgramNote:
    """What is said of a bundled program: what it stands for, and a publication where such markers are described."""

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
