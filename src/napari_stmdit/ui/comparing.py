"""Which two things are compared, how, and for how long. No Qt."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from . import layers
from .compare import SideBySide
from .fade import Fade
from .results import ResultList
from .section_view import SectionView
from .state import CompareMode, Comparison, Message, WorkbenchState

NOTHING = "Choose a result to compare with the slide."


class Comparing:
    """Turns comparisons on and off; whatever way one ends, the viewer is as it was.

    Parameters
    ----------
    viewer
        Held weakly.
    state
        Of the viewer.
    results
        The results that can be compared.
    view
        Returns the layers of the open section, or None.
    """

    def __init__(
        self, viewer: Any, state: WorkbenchState, results: ResultList, view: Callable[[], SectionView | None]
    ) -> None:
        from .swipe import Swipe

        self._viewer = weakref.ref(viewer)
        self.state = state
        self._results = results
        self._view = view
        self.grid = SideBySide(viewer)
        self.swipe = Swipe(viewer, self._dragged)
        self.fade = Fade(viewer)

    def start(self, mode: CompareMode, right: int | None = None, left: int | None = None) -> None:
        """Compare a result with another one or the slide.

        Parameters
        ----------
        mode
            How.
        right
            Number of a result; None takes the chosen one.
        left
            Number of a result; None takes the slide.
        """
        before = self.state.comparison
        self.stop()
        viewer, view = self._viewer(), self._view()
        right = self.state.chosen_result if right is None else right
        upper, lower = self._results.layer(right), self._results.layer(left)
        if (
            viewer is None
            or view is None
            or upper is None
            or view.slide is None
            or (left is not None and lower is None)
        ):
            self.state.message = Message("warning", NOTHING)
            return
        if upper is lower:
            self.state.message = Message("warning", "Choose two different results to compare.")
            return
        assert right is not None
        position = 0.5 if mode == "swipe" else 1.0
        if before is not None and (before.mode, before.left) == (mode, left) and mode == "swipe":
            position = before.position  # another strength of the same edit: the eye stays where it is
        if mode == "grid":
            self.grid.start(view.slide, view.spots, [x for x in (lower, upper) if x is not None])
        else:
            below = view.slide if lower is None else lower
            others = [
                x
                for x in viewer.layers
                if layers.role_of(x) in ("result", "stored") and x is not upper and x is not below
            ]
            (self.swipe if mode == "swipe" else self.fade).start(below, upper, others, position)
        self.state.chosen_result = right
        self.state.comparison = Comparison(mode, left, right, position)

    def stop(self) -> None:
        """End the comparison that is on."""
        for way in (self.grid, self.swipe, self.fade):
            way.stop()
        self.state.comparison = None

    def move(self, position: float) -> None:
        """Put the seam, or the opacity of the right one, at a share of 0 to 1."""
        comparison = self.state.comparison
        if comparison is None or comparison.mode == "grid":
            return
        (self.swipe if comparison.mode == "swipe" else self.fade).move(position)
        self.state.comparison = replace(comparison, position=position)

    def flip(self) -> None:
        """Show the other one: a blink."""
        comparison = self.state.comparison
        if comparison is not None and comparison.mode in ("blink", "fade"):
            self.move(0.0 if comparison.position >= 0.5 else 1.0)

    def uses(self, layer: Any) -> bool:
        """Whether a layer is needed by the comparison that is on."""
        return any(way.uses(layer) for way in (self.grid, self.swipe, self.fade))

    def _dragged(self, position: float) -> None:
        if self.state.comparison is not None:
            self.state.comparison = replace(self.state.comparison, position=position)
