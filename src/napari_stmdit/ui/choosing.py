"""Choosing spots by what they are rather than where: categories, values, neighbours, and selections with a name. No Qt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .section_view import SectionView
from .selection import grown, neighbours
from .state import Colouring, Combine, Message, WorkbenchState
from .values import Edited, as_text


class Choosing:
    """Selections of one viewer beyond the mouse.

    Parameters
    ----------
    state
        Of the viewer.
    view
        Returns the view of the open section, or None.
    select
        Changes the selection.
    edited
        Returns the edits on show, for values after edits.
    """

    def __init__(
        self,
        state: WorkbenchState,
        view: Callable[[], SectionView | None],
        select: Callable[[Sequence[str], Combine], None],
        edited: Callable[[], Edited],
    ) -> None:
        self.state = state
        self._view, self._select, self._edited = view, select, edited
        self._neighbours: tuple[Any, Any] | None = None
        self._put_away: dict[str, dict[str, tuple[str, ...]]] = {}

    def by_category(self, column: str, category: str, how: Combine = "replace") -> None:
        """Select the spots of a category of a column."""
        view = self._view()
        values = None if view is None else view.values.column(column)
        if view is None or values is None:
            return
        self._select(view.section.spots.ids[as_text(values) == category].tolist(), how)

    def by_values(self, colouring: Colouring, low: float, high: float, how: Combine = "replace") -> None:
        """Select the spots whose value, as a colouring shows it, lies between two limits, both included."""
        view = self._view()
        if view is None:
            return
        values, scale = view.values.of(colouring, self._edited())
        if values is None or scale.categories:
            self._tell("warning", scale.fault or "Colour by a gene, a program or a column of numbers first.")
            return
        inside = np.isfinite(values) & (values >= low) & (values <= high)
        self._select(view.section.spots.ids[inside].tolist(), how)
        self._tell("info", f"{int(inside.sum()):,} spots with {scale.gene} from {low:g} to {high:g} ({scale.unit}).")

    def grow(self, rings: int) -> None:
        """Grow the selection by rings of neighbouring spots; a negative number shrinks it."""
        view = self._view()
        if view is None or not self.state.selected:
            return
        spots = view.section.spots
        if self._neighbours is None or self._neighbours[0] is not spots:
            self._neighbours = (spots, neighbours(spots))
        self._select(grown(spots, self._neighbours[1], self.state.selected, rings), "replace")

    def save(self, name: str) -> None:
        """Keep the selection under a name; of the same name, the later one is kept."""
        name = name.strip()
        if not name or not self.state.selected:
            self._tell("warning", "A selection needs a name and at least one spot to be kept.")
            return
        self.state.named = {**self.state.named, name: self.state.selected}
        self._tell("info", f"{name}: {len(self.state.selected):,} spots kept.")

    def recall(self, name: str, how: Combine | None = None) -> None:
        """Select the spots that were kept under a name."""
        if name in self.state.named:
            self._select(self.state.named[name], how or self.state.combine)

    def delete(self, name: str) -> None:
        """Forget a name."""
        self.state.named = {key: ids for key, ids in self.state.named.items() if key != name}

    def section_changed(self, before: Any, after: Any) -> None:
        """Put the names of one section away and bring those of the other back."""
        if before is not None:
            self._put_away[str(before.path or before.name)] = dict(self.state.named)
        self.state.named = {} if after is None else self._put_away.get(str(after.path or after.name), {})

    def _tell(self, kind: Any, text: str) -> None:
        self.state.message = Message(kind, text)
