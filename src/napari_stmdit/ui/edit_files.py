"""Edits, programs and profiles from files and to files, for one viewer. No Qt."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from ..errors import StmditError
from ..expression import programs
from ..expression.edits import write_movers
from ..expression.profiles import measure_profile, read_profile, write_profile
from ..synthesis.requests import read_edit_file, used_by, write_edit_file
from .painting import Painting


class EditFiles:
    """What the user reads and writes while painting; a file that cannot be read is told and changes nothing."""

    def __init__(self, painting: Painting) -> None:
        self._painting = painting
        self.state = painting.state

    def save(self, path: str) -> None:
        """Write the edits, with the programs and profiles that they name."""
        self._guarded(
            lambda: write_edit_file(used_by(self.state.request.edits, self.state.request), path),
            f"Edits saved in {path}.",
        )

    def export_movers(self, path: str) -> None:
        """Write the genes that the edits move most, as CSV."""
        self._guarded(lambda: write_movers(self._painting.movers(), path), f"Genes that move most saved in {path}.")

    def load(self, path: str) -> None:
        """Replace the edits by those of a file; that can be undone."""
        self._guarded(lambda: self._painting.take(read_edit_file(path)), f"Edits read from {path}.")

    def import_gmt(self, path: str) -> None:
        """Add the gene sets of a GMT file to the programs; what is doubtful about them is told."""

        def read() -> None:
            sets, section = programs.read_gmt(path), self.state.section
            names = self._painting.bring(Path(path).stem, programs=sets.programs)
            notes = (*_renamed(names), *(sets.notes if section is None else programs.report(sets, section.spots.genes)))
            head = f"{len(sets.programs)} gene sets from {Path(path).name}."
            rest = f" {len(notes) - 5} more." if len(notes) > 5 else ""
            self.state.tell("warning" if notes else "info", " ".join([head, *(f"{n}." for n in notes[:5])]) + rest)

        self._guarded(read, "")

    def import_profile(self, path: str) -> None:
        """Read a profile that was measured elsewhere and choose it as the target."""

        def read() -> None:
            profile = read_profile(path)
            names = self._painting.bring("file", profiles={Path(path).stem: profile})
            (name,) = names.values()
            self._painting.take_draft(replace(self.state.draft, operation="towards", target_profile=name))
            told = "".join(f"{note}. " for note in _renamed(names))
            self.state.tell(
                "warning" if told else "info",
                f"{told}{name}: a profile of {len(profile.values):,} genes. {profile.source}",
            )

        self._guarded(read, "")

    def export_profile(self, path: str) -> None:
        """Write the mean profile of the selected spots, to be used in another section."""
        section, selected = self.state.section, self.state.selected
        if section is None or not selected:
            self.state.tell("warning", "Select the spots first whose mean expression is to be kept.")
            return
        source = f"mean of {len(selected)} spots of {section.name}"
        self._guarded(
            lambda: write_profile(measure_profile(section.spots, selected, source), path), f"Profile saved in {path}."
        )

    def _guarded(self, do: Callable[[], None], done: str) -> None:
        try:
            do()
        except (StmditError, OSError) as error:
            self.state.tell("error", str(error))
            return
        if done:
            self.state.tell("info", done)


def _renamed(names: Mapping[str, str]) -> tuple[str, ...]:
    """Say which names were in use by edits for something else, and what they became."""
    return tuple(
        f"{name} is in use by an edit for something else; the one of the file is now {given!r}"
        for name, given in names.items()
        if name != given
    )
