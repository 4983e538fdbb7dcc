"""Live preview of edits of real tissue, while they are painted and their strength is dragged; Run makes the result. No Qt."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Collection, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..edits import KnockOut
from ..errors import RequestError, StmditError
from ..intent import CheckpointCard, Request
from ..progress import CancelToken, Progress
from ..synthesis.live import LivePicture, LiveTissue
from ..synthesis.plan import counterfactual_fault, resolve_counterfactual_steps
from ..text import counted
from ..tissue.geometry import napari_affine
from ..tissue.open import synthesis_fault
from ..types import Section
from . import jobs, layers
from .jobs import Handlers, Job, Lane, Start, Tell
from .section_view import SectionView
from .state import RunStatus, WorkbenchState

IDLE_S = 0.5
"""Idle seconds after which noise is computed ahead."""


class Live:
    """Live preview that follows the edits with one worker at a time.

    A newer request ends the present one, but for spots that are the same in both: otherwise a long stroke would show nothing before its end.

    Parameters
    ----------
    viewer, state, start
        Of the workbench, and function that starts jobs.
    request
        Returns the present request, with the unfinished stroke.
    view
        Returns the section's layers.
    place
        Adds a layer over the slide and the results.
    redraw
        Called when spots have to be drawn differently, because there is a picture under them.
    """

    def __init__(
        self,
        viewer: Any,
        state: WorkbenchState,
        start: Start,
        request: Callable[[], Request],
        view: Callable[[], SectionView | None],
        place: Callable[[layers.LayerTuple], Any],
        redraw: Callable[[], None],
    ) -> None:
        self._viewer = weakref.ref(viewer)
        self.state = state
        self._lane = Lane(start)
        self._request, self._view, self._place = request, view, place
        self._tissue: LiveTissue | None = None
        self._asked: Request | None = None  # what is shown, or under way
        self._wanted: Request | None = None  # what begins when that has ended
        self._layer: Any = None
        self.spots: frozenset[str] = frozenset()
        """Spots in the picture."""
        self._before_run: frozenset[str] = frozenset()
        self._redraw = redraw
        for signal in (state.events.request, state.events.live):
            signal.connect(self.follow, max_args=0)
        for signal in (state.events.section, state.events.checkpoint):
            signal.connect(self._renew, max_args=0)
        state.events.status.connect(self._run_begins_or_ends, max_args=0)
        state.events.progress.connect(self._run_goes_on, max_args=1)

    def follow(self) -> None:
        """Update the picture to the edits, off the GUI thread; nothing runs where nothing changed."""
        if not self.state.live:
            self.close()
            self.state.live_text = ""
            return
        if self.state.section is None or self.state.checkpoint is None or self.state.status.busy:
            return
        request = self._request()
        if request == (self._wanted or self._asked):
            return
        if self._lane.busy:  # what is under way ends where this wants something else, and this begins
            self._wanted = request
            if self._tissue is not None:
                self._tissue.newest = request
        else:
            self._begin(request)

    def clear(self) -> None:
        """Remove the picture: Live is off, or the result is there."""
        layer, self._layer = self._layer, None
        layers.remove(self._viewer(), layer)
        self._note_spots(())

    def _note_spots(self, spots: Collection[str]) -> None:
        if self.spots != (found := frozenset(spots)):
            self.spots = found
            self._redraw()

    def close(self) -> None:
        """End all work, remove the picture, and forget its spots."""
        self._lane.abandon()
        self._asked = self._wanted = self._tissue = None
        self.clear()

    # --- private

    def _renew(self) -> None:
        """Reset for another section or checkpoint."""
        self.close()
        self.state.live_text = ""
        self.follow()

    def _run_begins_or_ends(self) -> None:
        """Pause during a run; after one that made the same edits of these spots its result replaces the picture."""
        status = self.state.status
        if not self.state.live:
            return
        if status.busy:
            self._before_run = self._before_run | self.spots
            self._wanted = None
            self._lane.cancel()
            return
        self._asked = None  # else an unchanged request would not be shown again
        shown, self._before_run = self._before_run, frozenset()
        made = self.state.results[-1] if status is RunStatus.DONE and self.state.results else None
        if made is not None and made.request.edits == self._request().edits and shown <= set(made.spots):
            self.clear()
            self.state.live_text = ""
            self._asked = self._request()
        else:
            # the run's first patches took the picture away, and the tissue would not draw again what it drew
            if self._layer is None:
                self._tissue = None
            self.follow()

    def _run_goes_on(self, progress: Progress | None) -> None:
        if progress is not None and progress.patches_done:
            self.clear()

    def _begin(self, request: Request) -> None:
        section, model = self.state.section, self.state.checkpoint
        self._asked, self._wanted = request, None
        if section is None or model is None:
            return
        fault = live_fault(request, section, model.card)
        if fault:
            self.clear()
            self._tissue = None
            self.state.live_text = f"Live shows nothing: {fault}."
            return
        self._tissue = self._tissue or LiveTissue(section, model)
        self._tissue.newest = request
        job = following(self._tissue, request, self._in_view())
        self._lane.submit(job, Handlers(self._show, self._fail, self._ended))

    def _in_view(self) -> NDArray[np.bool_] | None:
        """Return which spots are in view; None where the view has no size yet."""
        view = self._view()
        if view is None or view.spots is None:
            return None
        low, high = np.asarray(view.spots.corner_pixels)[:, -2:]
        if not (high > low).all():
            return None
        yx = view.section.spots.yx
        return np.asarray(((yx >= low) & (yx <= high)).all(axis=1))

    def _show(self, picture: LivePicture | str) -> None:
        viewer, section = self._viewer(), self.state.section
        if viewer is None or section is None or not self.state.live or self.state.status.busy:
            return
        if isinstance(picture, str):
            self.state.live_text = picture
            return
        self.state.live_text = described(picture, self.state.request)
        if not picture.steps:
            self.clear()
        elif self._layer is None or self._layer not in viewer.layers:
            self._layer = self._place(layers.live_layer(picture.rgba, picture.frame, section))
        else:
            affine = napari_affine(picture.frame.affine, section.calibration.mpp)
            layers.redraw(self._layer, picture.rgba, affine)
        self._note_spots(picture.steps)

    def _fail(self, fault: StmditError) -> None:
        words = fault.words if isinstance(fault, RequestError) else str(fault)
        self.state.live_text = f"Live stopped: {words}"

    def _ended(self) -> None:
        if self._wanted is not None:
            self._begin(self._wanted)


def live_fault(request: Request, section: Section, card: CheckpointCard) -> str:
    """Return why edits cannot be previewed, as the end of a sentence; empty where they can."""
    if request.counterfactual == "off":
        return "new tissue is chosen; choose to edit this tissue"
    if section.expression.kind == "none":
        return "a plain slide has no expression to edit; open a section with measured or predicted expression"
    any_edit = request.model_copy(update={"edits": (KnockOut(genes=("any",)),)})
    return synthesis_fault(section, card.patch_mpp) or counterfactual_fault(any_edit, card) or ""


def following(tissue: LiveTissue, request: Request, in_view: NDArray[np.bool_] | None) -> Job:
    """Update the tissue, then compute the noise of the spots in view; tells what is done before, in words, and yields `LivePicture`."""

    def generate(token: CancelToken, tell: Tell) -> Iterator[LivePicture]:
        yield from tissue.update(request, in_view, token, tell)
        idle = time.perf_counter() + IDLE_S
        # a drag pauses often and briefly: computing ahead then would delay its next picture
        while time.perf_counter() < idle:
            if token.cancelled or tissue.newest != request:
                return
            time.sleep(0.005)
        for _ in tissue.prepare(request, in_view, token):
            pass

    return Job("Live", generate, jobs.sampling_failed, quiet=True, tells=True)


def described(picture: LivePicture, request: Request) -> str:
    """Return a description of a picture: spots, their state, and that it is a preview."""
    if not picture.steps:
        return ""
    spots = counted(len(picture.steps), "spot")
    fine = resolve_counterfactual_steps(request)
    state = f"{picture.waiting} of them coarse or older" if picture.waiting else f"{fine} steps"
    more = f" {picture.hidden} more are edited: zoom in to see them." if picture.hidden else ""
    whole = " in one piece" if request.mode == "continuous" else ""
    return f"Live preview of {spots}, {state}. Run makes the result{whole}.{more}"
