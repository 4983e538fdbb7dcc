"""The selection against other spots: a table of what differs, and an edit that makes the one like the other. No Qt."""

from __future__ import annotations

from dataclasses import replace

from ..errors import GeneError, StmditError
from ..expression.groups import GroupTable, compare_groups
from ..expression.programs import known_programs
from .jobs import Handlers, Job, Lane, Start, failing, once
from .painting import Painting
from .state import EditDraft, WorkbenchState

REST = "the rest"


class Groups:
    """Compares the selection with the rest of the section, or with a named selection."""

    def __init__(self, state: WorkbenchState, start: Start, painting: Painting) -> None:
        self.state = state
        self._painting = painting
        self._lane = Lane(start)
        state.events.section.connect(self._forget, max_args=0)

    def _forget(self) -> None:
        self._lane.abandon()
        self.state.groups = None

    def compare(self, other: str | None) -> None:
        """Compare the selection with a named selection, or, where None, with all other spots."""
        section, chosen = self.state.section, self.state.selected
        if section is None or not chosen:
            self.state.tell("warning", "Select the spots of the first group first.")
            return
        if other is not None and other not in self.state.named:
            self.state.tell("warning", f"There is no selection called {other}; keep it under that name first.")
            return
        known = set(section.spots.ids.tolist())
        b = None if other is None else [spot for spot in self.state.named[other] if spot in known]
        name = next((name for name, kept in self.state.named.items() if set(kept) == set(chosen)), "selection")
        names = (name, other or REST)
        programs = known_programs(self.state.request.programs)
        error = failing(GeneError, "the groups could not be compared")
        job = Job(
            "Comparing groups",
            once(lambda: compare_groups(section.spots, chosen, b, programs, names)),
            error,
            quiet=True,
        )
        handlers = Handlers(self._compared, lambda fault: self.state.tell("error", _sentence(fault)), lambda: None)
        self.state.tell("info", f"Comparing {names[0]} with {names[1]} ...")
        self._lane.submit(job, handlers)

    def _compared(self, found: GroupTable) -> None:
        self.state.groups = found
        self.state.tell("info", found.statement)

    def export(self, path: str) -> None:
        """Write the table as CSV."""
        found = self.state.groups
        if found is None:
            return
        try:
            found.write(path)
        except OSError as error:
            self.state.tell("error", f"{path} cannot be written: {error}")
            return
        self.state.tell("info", f"Table saved in {path}.")

    def make_alike(self) -> None:
        """Add an edit that moves all genes of the first group towards the mean of the second."""
        found = self.state.groups
        if found is None:
            return
        a, b = found.ids
        self._painting.choose(None)
        self.state.draft = replace(EditDraft(), operation="towards", target_spots=b)
        if self._painting.add(a, f"{found.names[0]} like {found.names[1]}"):
            said = f"An edit makes {found.names[0]} like {found.names[1]}: it is under Paint expression. Select spots and press Run to see it."
            self.state.tell("info", said)

    def close(self) -> None:
        """End what is under way."""
        self._lane.abandon()


def _sentence(fault: StmditError) -> str:
    text = str(fault)
    return f"{text[0].upper()}{text[1:]}."
