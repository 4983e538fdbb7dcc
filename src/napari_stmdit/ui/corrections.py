"""What a user may correct of the open section: spots that lie the wrong way round, and spots that are to be used for nothing. No Qt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import SectionError, StmditError
from ..tissue.alignment import WORDS, Alignment, check_alignment, check_picture, oriented
from ..tissue.excluded import exclude, exclude_file
from ..tissue.selections import write_selections
from ..types import Section
from .jobs import Handlers, Job, Lane, Start, failing, once
from .state import WorkbenchState

DEFAULT_NAME = "excluded"


class Corrections:
    """Checks a section when it is shown, and shows it again with what the user corrects; nothing is corrected unasked."""

    def __init__(self, state: WorkbenchState, start: Start, show: Callable[[Section], None]) -> None:
        self.state = state
        self._lane, self._pictures = Lane(start), Lane(start)
        self._show = show

    # --- orientation

    def check(self, section: Section) -> None:
        """Find out in the background how spots and slide fit."""
        self.state.alignment, self.state.check_pictures = None, ()
        error = failing(SectionError, "whether the spots lie right on the slide cannot be told")
        job = Job("Checking the spots", once(lambda: check_alignment(section)), error, quiet=True)
        self._lane.submit(job, Handlers(self._checked, self._failed, lambda: None))

    def _checked(self, found: Alignment) -> None:
        self.state.alignment = found
        if found.verdict in ("other", "several"):
            self.look(True)

    def _failed(self, fault: StmditError) -> None:
        self.state.alignment = Alignment("unknown", reason=str(fault))

    def look(self, on: bool) -> None:
        """Show the spots over the slide, as they are and as they fit clearly better; or take the pictures away."""
        section, found = self.state.section, self.state.alignment
        if not on or section is None or section.image is None:
            self.state.check_pictures = ()
            return
        other = None if found is None else found.best

        def work() -> tuple[NDArray[np.uint8], ...]:
            return tuple(check_picture(section, name) for name in ("as-given", other) if name is not None)

        error = failing(SectionError, "the slide cannot be shown")
        job = Job("Drawing the spots", once(work), error, quiet=True)
        self._pictures.submit(job, Handlers(self._drawn, lambda fault: self._say("error", str(fault)), lambda: None))

    def _drawn(self, pictures: Any) -> None:
        self.state.check_pictures = pictures

    def orient(self) -> None:
        """Lay the spots over the slide in the orientation that fits clearly better."""
        section, found = self.state.section, self.state.alignment
        if section is None or found is None or found.best is None:
            return
        self._show(oriented(section, found.best))
        self._say(
            "info",
            f"The spots now lie {WORDS[found.best]}; the files are as they were. Open the section again to take it back.",
        )

    # --- spots that are used for nothing

    def exclude(self, name: str) -> None:
        """Exclude the selected spots, as a region of a name."""
        section, name = self.state.section, name.strip() or DEFAULT_NAME
        if section is None or not self.state.selected:
            self._say(
                "warning",
                "Select the spots to exclude first: draw a lasso around the fold, or recall a named selection.",
            )
            return
        chosen = self.state.selected
        self._change(lambda: exclude(section, {name: chosen}))

    def exclude_file(self, path: str) -> None:
        """Exclude the spots inside the regions of a GeoJSON file."""
        section = self.state.section
        if section is not None:
            self._change(lambda: exclude_file(section, path))

    def include(self) -> None:
        """Use all spots again."""
        section = self.state.section
        if section is not None and section.excluded is not None:
            self._show(section.whole)
            self._say("info", f"All {len(section.whole.spots):,} spots are used again.")

    def export(self, path: str) -> None:
        """Write the excluded regions as GeoJSON, to be given to a run, a training or an evaluation."""
        section = self.state.section
        if section is None or section.excluded is None:
            return
        try:
            write_selections(section.whole.spots, section.excluded.regions, path)
        except (StmditError, OSError) as error:
            self._say("error", str(error))
            return
        self._say("info", f"Excluded regions saved in {path}.")

    def _change(self, make: Callable[[], Section]) -> None:
        try:
            changed = make()
        except StmditError as error:
            self._say("error", str(error))
            return
        self._show(changed)
        if changed.excluded is not None:
            said = changed.excluded.statement
            self._say("info", f"{said[0].upper()}{said[1:]}.")

    def close(self) -> None:
        """End what is under way."""
        self._lane.abandon()
        self._pictures.abandon()

    def _say(self, kind: Any, text: str) -> None:
        self.state.tell(kind, text)
