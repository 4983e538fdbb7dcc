"""One layer over another, faded by hand or blinking. Works by opacity, so that no list of visible layers changes. No Qt."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from . import layers
from .results import ResultList
from .section_view import SectionView
from .state import CompareMode, Comparison, WorkbenchState


class Fade:
    """The upper of two layers, more or less transparent."""

    def __init__(self, viewer: Any) -> None:
        self._viewer = weakref.ref(viewer)
        self._kept = Kept()
        self._pair: tuple[Any, Any] | None = None

    @property
    def active(self) -> bool:
        """Whether the comparison is on."""
        return self._pair is not None

    def uses(self, layer: Any) -> bool:
        """Whether a layer is needed by the comparison that is on."""
        return self._pair is not None and any(layer is one for one in self._pair)

    def start(self, left: Any, right: Any, others: list[Any], position: float) -> None:
        """Show ``right`` over ``left``; ``others`` are hidden for the time being."""
        self.stop()
        if self._viewer() is None:
            return
        for layer in others:
            self._kept.change(layer, visible=False)
        for layer in (left, right):
            self._kept.change(layer, visible=True, opacity=layer.opacity)
        self._pair = (left, right)
        self.move(position)

    def move(self, position: float) -> None:
        """Show so much of the right layer, 0 to 1, and the rest of the left one."""
        viewer = self._viewer()
        if viewer is None or self._pair is None:
            return
        left, right = self._pair
        if viewer.layers.index(right) > viewer.layers.index(left):
            left.opacity, right.opacity = 1.0, position
        else:
            left.opacity, right.opacity = 1.0 - position, 1.0

    def stop(self) -> None:
        """Give the layers their opacity and visibility back."""
        self._pair = None
        self._kept.restore()


# The slide and results side by side, with linked pan and zoom: napari's grid, and the way back.


CONTEXT_OPACITY = 0.35
"""The slide under a synthetic result is faded, so that nobody takes what is not synthesized for synthesized."""
NAME_PT = 7
"""Names have to fit into a third of the canvas."""


def grid_of(viewer: Any) -> Any:
    """Return the grid model: it moved from the viewer to its canvas in napari 0.9."""
    canvas: Any = getattr(viewer, "canvas", None)
    return canvas.grid if hasattr(canvas, "grid") else viewer.grid


def scale_bar_of(viewer: Any) -> Any:
    """Return the scale bar's model: it moved from the viewer to its canvas in napari 0.9."""
    canvas: Any = getattr(viewer, "canvas", None)
    return canvas.overlays.scale_bar if hasattr(canvas, "overlays") else viewer.scale_bar


def camera_of(viewer: Any) -> Any:
    """Return the camera: it moved from the viewer to its scene in napari 0.9."""
    scene: Any = getattr(viewer, "scene", None)
    return scene.camera if hasattr(scene, "camera") else viewer.camera


@dataclass
class Kept:
    """Attributes of the user's that a comparison changes, and their values before; `restore` gives them back, latest first."""

    values: list[tuple[weakref.ref[Any], str, Any]] = field(default_factory=list)

    def change(self, owner: Any, **new: Any) -> None:
        """Set attributes and remember what they were."""
        for name, value in new.items():
            self.values.append((weakref.ref(owner), name, getattr(owner, name)))
            setattr(owner, name, value)

    def restore(self) -> None:
        """Set everything back."""
        while self.values:
            owner, name, value = self.values.pop()
            found = owner()
            if found is not None:
                setattr(found, name, value)


class SideBySide:
    """A cell for the slide with its spots, and a cell for each result over a faded slide.

    napari's grid puts every ``stride`` layers of the list into a cell and leaves out cells without a visible layer. Our layers
    are moved to the bottom of the list for the time being and all others are hidden.
    """

    def __init__(self, viewer: Any) -> None:
        self._viewer = weakref.ref(viewer)
        self._order: list[Any] | None = None
        self._kept = Kept()
        self._contexts: list[Any] = []
        self._shown: tuple[Any, ...] = ()

    @property
    def active(self) -> bool:
        """Whether the comparison is on."""
        return self._order is not None

    def uses(self, layer: Any) -> bool:
        """Whether a layer is needed by the comparison that is on."""
        return self.active and any(layer is one for one in self._shown)

    def start(self, slide: Any, spots: Any, results: list[Any]) -> None:
        """Show the slide and results side by side; replaces a comparison that is on."""
        self.stop()
        viewer = self._viewer()
        if viewer is None:
            return
        self._order = list(viewer.layers)
        section = layers.section_of(slide)
        assert section is not None
        cells = [slide, spots]
        for result in results:
            context = layers.insert(viewer, layers.slide_layer(section, "context", "slide, faded"))
            context.opacity = CONTEXT_OPACITY
            self._contexts.append(context)
            cells += [context, result]
        self._shown = (slide, spots, *results)
        for place, layer in enumerate(cells):
            viewer.layers.move(viewer.layers.index(layer), place)
        for layer in viewer.layers:
            self._kept.change(layer, visible=any(layer is one for one in cells))
        for layer in (slide, *results):
            if hasattr(layer, "name_overlay"):
                self._kept.change(layer.name_overlay, visible=True, font_size=NAME_PT)
        self._kept.change(grid_of(viewer), stride=2, shape=(1, len(cells) // 2), spacing=6, enabled=True)
        bar = scale_bar_of(viewer)
        self._kept.change(bar, visible=True)
        if hasattr(bar, "gridded"):
            self._kept.change(bar, gridded=True)

    def stop(self) -> None:
        """Give the user's grid, scale bar, order and visibility back."""
        viewer, order = self._viewer(), self._order
        contexts, self._contexts, self._order, self._shown = self._contexts, [], None, ()
        if viewer is None or order is None:
            self._kept.values.clear()
            return
        bar = scale_bar_of(viewer)
        if hasattr(bar, "gridded"):
            bar.gridded = False  # first: napari redraws a gridded bar while cells come and go
        grid_of(viewer).enabled = False
        self._kept.restore()
        for context in contexts:
            if context in viewer.layers:
                viewer.layers.remove(context)
        order = [layer for layer in order if layer in viewer.layers]
        order += [layer for layer in viewer.layers if layer not in order]
        for place, layer in enumerate(order):
            viewer.layers.move(viewer.layers.index(layer), place)


# Which two things are compared, how, and for how long.


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
            self.state.tell("warning", NOTHING)
            return
        if upper is lower:
            self.state.tell("warning", "Choose two different results to compare.")
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
