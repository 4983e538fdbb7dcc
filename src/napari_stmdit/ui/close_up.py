"""One spot seen closely: which patches of which results are set beside each other, and measured. No Qt."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..synthesis.boxes import boxes_around
from ..tissue.crops import read_patches
from ..tissue.geometry import apply, mean_scale
from ..types import Section
from . import jobs
from .jobs import Job
from .layers import KEY
from .results import ResultList
from .section_view import SectionView
from .state import ResultEntry, WorkbenchState

Submit = Callable[[str, Job, Callable[[Any], None]], None]


class CloseUps:
    """Keeps the close-up of the spot that is pointed at, or else of the first selected one.

    Parameters
    ----------
    state
        Of the viewer.
    results
        Where its patches are taken from.
    submit
        Starts a job in a lane of the presenter.
    """

    def __init__(self, state: WorkbenchState, results: ResultList, submit: Submit) -> None:
        self.state = state
        self._results = results
        self._submit = submit

    def follow(self, viewer: Any, view: Callable[[], SectionView | None]) -> None:
        """Note which spot the mouse is over."""
        weak = weakref.ref(self)

        def moved(_: Any, event: Any) -> None:
            own = weak()
            if own is not None:
                own._point(view(), event.position)

        viewer.mouse_move_callbacks.append(moved)

    def _point(self, view: SectionView | None, world: Any) -> None:
        found: tuple[str, ...] = ()
        if view is not None and view.spots is not None:
            found = view.finder.at([float(v) for v in view.spots.world_to_data(world)[-2:]])
        hovered = found[0] if found else None
        if hovered != self.state.hovered:
            self.state.hovered = hovered

    @property
    def spot(self) -> str | None:
        """The spot that is meant."""
        return self.state.hovered or (self.state.selected[0] if self.state.selected else None)

    def look(self) -> None:
        """Cut out and measure the patches of the spot that is meant, off the GUI thread."""
        state, spot = self.state, self.spot
        if state.section is None or state.checkpoint is None or spot is None:
            state.close_up = None
            return
        card, section = state.checkpoint.card, state.section
        if section.calibration.mpp is None:
            state.close_up = None
            return
        shown, words = self._columns(spot)
        side, pixel = card.patch_px, card.patch_mpp / section.calibration.mpp

        def cut() -> Mapping[str, NDArray[np.uint8]]:
            row = section.spots.rows([spot])
            (box,) = boxes_around(section.spots.yx[row], side, pixel)
            found = {}
            if section.image is not None:
                found["real"] = read_patches(section.image, [box.source], side)[0]
            for column, entry, layer in shown:
                pixels = patch_at(entry, layer, spot, section, side, card.patch_mpp)
                if pixels is not None:
                    found[column] = pixels
            return found

        def keep(close_up: Any) -> None:
            state.close_up = close_up

        edited = any(entry.counterfactual for _, entry, _ in shown)
        self._submit("spot", jobs.close_up(spot, cut, card.patch_um, words, edited), keep)

    def _columns(self, spot: str) -> tuple[list[tuple[str, ResultEntry, Any]], str]:
        """What to show beside the real crop, as (column, result, its layer), and what to say about it."""
        chosen = self._results.entry(self.state.chosen_result)
        if chosen is None or spot not in chosen.spots or chosen.section is not self.state.section:
            own = [e for e in self.state.results if spot in e.spots and e.section is self.state.section]
            chosen = own[-1] if own else None
        if chosen is None:
            return [], "Not synthesized yet."
        if not chosen.request.edits:
            return [("synthetic", chosen, self._results.layer(chosen.number))], chosen.name
        found = [("edited", chosen, self._results.layer(chosen.number))]
        if chosen.counterfactual:
            return found, f"{chosen.name}. Its baseline is the slide."
        base = self._results.baseline(chosen.number)
        if base is None:
            return found, f"{chosen.name}. Run its baseline to see the effect of the edit."
        return [
            ("baseline", base, self._results.layer(base.number)),
            *found,
        ], f"{chosen.name}, same noise as {base.name}"


def patch_at(
    entry: ResultEntry, layer: Any, spot: str, section: Section, side: int, mpp: float
) -> NDArray[np.uint8] | None:
    """Return a spot's patch (side, side, 3) of a result: as it was made where that is kept, else cut from its canvas.

    What lies outside a blended image, or was not synthesized, is white. None too where its pixels are not of ``mpp`` microns.
    """
    if entry.result is not None:
        for place, index in enumerate(entry.result.done):
            patch = entry.result.plan.patches[index]
            if patch.spot_id == spot and place < len(entry.result.patches):
                return np.asarray(entry.result.patches[place])
    stored = None if layer is None else layer.metadata.get(KEY, {}).get("stored")
    if entry.result is not None:
        affine, rgba, kept = entry.result.plan.frame.affine, entry.result.rgba, None
    elif stored is not None:
        affine, rgba, kept = stored.pixel_to_fullres, stored.rgba, stored.patches
    else:
        return None
    if round(mean_scale(affine) * (section.calibration.mpp or 0), 3) != round(mpp, 3):
        return None
    if stored is not None and kept is not None and spot in stored.spots and kept.shape[1] == side:
        return np.asarray(kept[stored.spots.index(spot)])
    centre = apply(np.linalg.inv(affine), section.spots.yx[section.spots.rows([spot])])[0]
    y, x = (round(float(v) - side / 2) for v in centre)
    height, width = rgba.shape[:2]
    y0, x0, y1, x1 = max(y, 0), max(x, 0), min(y + side, height), min(x + side, width)
    if y0 >= y1 or x0 >= x1:
        return None
    block = np.asarray(rgba[y0:y1, x0:x1])
    pixels = np.full((side, side, 3), 255, dtype=np.uint8)
    alpha = block[..., 3:] > 0
    pixels[y0 - y : y1 - y, x0 - x : x1 - x] = np.where(alpha, block[..., :3], 255)
    return pixels
