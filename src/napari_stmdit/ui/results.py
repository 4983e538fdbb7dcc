"""Results of one viewer: their layers, their list, and the close-up of a spot. No Qt."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import StoreError
from ..intent import Request
from ..synthesis.canvas import boxes_around
from ..synthesis.result import ExportKind, Result, spots_of
from ..synthesis.stored import StoredResult, StoredResults
from ..synthesis.variants import noise_key
from ..tissue.crops import computed, read_patches
from ..tissue.elements import is_same_section
from ..tissue.geometry import apply, mean_scale
from ..types import Section
from . import jobs, layers
from .jobs import Job
from .layers import KEY, protect
from .section_view import SectionView
from .state import ResultEntry, WorkbenchState

Submit = Callable[[str, Job, Callable[[Any], None]], None]


class CloseUps:
    """Close-up of the spot under the mouse, or else of the first selected one."""

    def __init__(self, state: WorkbenchState, results: ResultList, submit: Submit) -> None:
        self.state = state
        self._results = results
        self._submit = submit

    def follow(self, viewer: Any, view: Callable[[], SectionView | None]) -> None:
        """Track the spot under the mouse."""
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
        """The spot of the close-up."""
        return self.state.hovered or (self.state.selected[0] if self.state.selected else None)

    def look(self) -> None:
        """Cut out and measure the patches of the spot, off the GUI thread."""
        state, spot = self.state, self.spot
        section = state.section
        if section is None or section.calibration.mpp is None or state.checkpoint is None or spot is None:
            state.close_up = None
            return
        card = state.checkpoint.card
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
        """Return the images beside the real crop, as (column, result, its layer), and a note."""
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
    """Return a spot's patch (side, side, 3) of a result: as made if stored, else cut from its canvas.

    Outside a blended image, and where nothing was synthesized, it is white. None also where its pixels are not of ``mpp`` microns.
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
    (block,) = computed(rgba[y0:y1, x0:x1])
    pixels = np.full((side, side, 3), 255, dtype=np.uint8)
    alpha = block[..., 3:] > 0
    pixels[y0 - y : y1 - y, x0 - x : x1 - x] = np.where(alpha, block[..., :3], 255)
    return pixels


THUMBNAIL_PX = 48
Write = Callable[[Job, Callable[[Any], None], str], None]


class ResultList:
    """List of results, kept in step with their layers; ``redraw`` is called when spots have to be drawn differently."""

    def __init__(
        self, viewer: Any, state: WorkbenchState, submit: Submit, write: Write, redraw: Callable[[], None]
    ) -> None:
        self._viewer = weakref.ref(viewer)
        self.state = state
        self._submit = submit
        self._write = write
        self._redraw = redraw
        self._layers: dict[int, Any] = {}
        self._count = 0
        self.inserting = False
        self.placing: Callable[[], None] = lambda: None
        """Callback before a layer is added."""
        self.deleted: Callable[[int], None] = lambda number: None
        """Callback with the number of a result before the user deletes it."""

    # --- layers

    def next_number(self) -> int:
        """Return a number for a new result."""
        self._count += 1
        return self._count

    def insert(self, data: layers.LayerTuple) -> Any:
        """Add the layer of a run: over the slide and earlier results, under the spots."""
        layer = self.place(data)
        if layer is not None:
            self._layers[layers.ours(layer)["run"]] = layer
            self._follow(layer)
        return layer

    def place(self, data: layers.LayerTuple) -> Any:
        """Add a layer over the slide and earlier results, without changing the tool."""
        viewer = self._viewer()
        if viewer is None or self.state.section is None:
            return None
        self.placing()
        below = [x for x in viewer.layers if layers.role_of(x) in ("slide", "result", "stored")]
        self.inserting = True
        try:
            return layers.insert(viewer, data, above=below[-1] if below else None)
        finally:
            self.inserting = False

    def lay_over(self, slide: Any) -> None:
        """Put a slide that came later under earlier results, which may be of the same tissue."""
        viewer = self._viewer()
        if viewer is None:
            return
        lowest = min((viewer.layers.index(x) for x in self._layers.values() if x in viewer.layers), default=None)
        if lowest is not None and viewer.layers.index(slide) > lowest:
            viewer.layers.move(viewer.layers.index(slide), lowest)

    def _follow(self, layer: Any) -> None:
        protect(layer, lambda: self.state.tell("info", "A result stays as it was made."), lambda: None)
        layer.events.visible.connect(self._layer_changed)
        layer.events.name.connect(self._layer_changed)

    def layer(self, number: int | None) -> Any:
        """Return the layer of a result, or None."""
        return None if number is None else self._layers.get(number)

    def entry(self, number: int | None) -> ResultEntry | None:
        """Return a result of the list, or None."""
        return next((e for e in self.state.results if e.number == number), None)

    def opened_again(self, section: Section) -> None:
        """Count results of this very section, opened before, among those of the open one."""
        self.state.results = tuple(
            replace(entry, section=section) if _is_like(entry.section, section) else entry
            for entry in self.state.results
        )

    def elsewhere(self, *numbers: int | None) -> str:
        """Return a sentence where one of these results is of another section than the open one, or of it otherwise opened."""
        for entry in map(self.entry, numbers):
            if entry is not None and entry.section is not self.state.section:
                return f"Open {entry.section.name} first, as it was then: {entry.title[0]} was made from it."
        return ""

    def removed(self, layer: Any) -> int | None:
        """Handle the removal of a layer; return the number of its result, if any."""
        number = next((n for n, known in self._layers.items() if known is layer), None)
        if number is not None:
            del self._layers[number]
            self.state.results = tuple(e for e in self.state.results if e.number != number)
            if self.state.chosen_result == number:
                self.state.chosen_result = None
            self._redraw()
        return number

    def _layer_changed(self, event: Any = None) -> None:
        def shown(entry: ResultEntry) -> ResultEntry:
            layer = self._layers.get(entry.number)
            if layer is None or (layer.visible, layer.name) == (entry.visible, entry.name):
                return entry
            return replace(entry, visible=layer.visible, name=layer.name)

        results = tuple(shown(entry) for entry in self.state.results)
        if any(a is not b for a, b in zip(results, self.state.results, strict=True)):
            hidden = any(a.visible != b.visible for a, b in zip(results, self.state.results, strict=True))
            self.state.results = results
            if hidden:
                self._redraw()

    # --- the list

    def keep(self, number: int, name: str, result: Result) -> None:
        """Add a finished or stopped run to the list."""
        request, record = result.plan.request, result.provenance
        spots, planned = spots_of(result.section, request, record)
        visible, picture = self._layers[number].visible, thumbnail_of(result.rgba)
        entry = ResultEntry(
            number, name, result.section, request, record, spots, planned, result, visible, thumbnail=picture
        )
        self.state.chosen_result = number  # before the list is shown anew, which then marks it
        self.state.results = (*self.state.results, entry)

    def take_stored(self, layer: Any, saved: bool = True) -> int | None:
        """Add a stored result, whose layer is in the viewer already, to the list, and return its number.

        ``saved`` is False for one of an earlier session that the user has not saved.
        """
        stored = layers.ours(layer).get("stored")
        if not isinstance(stored, StoredResult) or any(known is layer for known in self._layers.values()):
            return None
        try:
            request = stored.request
            spots, planned = spots_of(stored.section, request, stored.provenance)
        except StoreError as error:
            self.state.tell("warning", str(error))
            return None
        number = self.next_number()
        layer.metadata[layers.KEY]["run"] = number
        self._layers[number] = layer
        self._follow(layer)
        entry = ResultEntry(
            number, layer.name, stored.section, request, stored.provenance, spots, planned, None, layer.visible
        )
        where = f"{stored.store} as {stored.element}" if saved else None
        coarsest = stored.levels[-1] if stored.levels else stored.rgba
        small = coarsest.shape[0] * coarsest.shape[1] <= layers.MAX_SINGLE_PX
        picture = thumbnail_of(coarsest) if small else None
        entry = replace(entry, saved=where, stored=stored, thumbnail=picture)
        self.state.results = (*self.state.results, entry)
        return number

    def read_stored(self, section: Section) -> None:
        """Read the results in the section's store, off the GUI thread, unless a reader has added them."""
        viewer = self._viewer()
        if viewer is None or section.kind != "spatialdata":
            return
        there = [x for x in viewer.layers if layers.role_of(x) == "stored" and layers.section_of(x) is section]
        for layer in there:
            self.take_stored(layer)
        if not there:
            self._submit("stored", jobs.reading_stored(section), self._stored)

    def _stored(self, found: StoredResults) -> None:
        for stored in found.results:
            if stored.section is self.state.section:
                self.take_stored(self.place(layers.stored_layer(stored)))
        if found.notes:
            self.state.tell("warning", "\n".join(found.notes))

    # --- what can be done with a result

    def show(self, number: int, visible: bool) -> None:
        """Show or hide a result."""
        layer = self._layers.get(number)
        if layer is not None:
            layer.visible = visible

    def rename(self, number: int, name: str) -> None:
        """Rename a result; its layer completes a name that does not say that it is synthetic."""
        layer, name = self._layers.get(number), name.strip()
        if layer is not None and name:
            layer.name = name

    def delete(self, number: int) -> None:
        """Remove a result from the viewer and the list; a saved copy stays."""
        viewer, layer = self._viewer(), self._layers.get(number)
        if viewer is not None and layer is not None and layer in viewer.layers:
            self.deleted(number)
            layers.remove(viewer, layer)

    def save(self, number: int, path: str) -> None:
        """Write a result into a SpatialData store, off the GUI thread."""
        entry = self.entry(number)
        if entry is None or entry.source is None or (entry.result is None and entry.saved is not None):
            self.state.tell("warning", "This result was read from a store; it is saved already.")
            return

        def saved(element: str) -> None:
            self._note_saved(number, f"{path} as {element}")

        named = replace(entry.source, provenance={**entry.source.provenance, "name": entry.name})
        self._write(jobs.saving(named, path), saved, entry.name)

    def export(self, number: int, path: str, kind: ExportKind) -> None:
        """Write a result into a file or folder for other programs, off the GUI thread."""
        entry = self.entry(number)
        if entry is None or entry.source is None:
            return

        def written(found: Path) -> None:
            self._note_saved(number, str(found))

        self._write(jobs.exporting(entry.source, path, kind, entry.name), written, entry.name)

    def draw_figure(self, number: int, path: str, width_mm: float, dpi: int) -> None:
        """Write a result as a figure for a paper, off the GUI thread."""
        entry = self.entry(number)
        if entry is None or entry.source is None:
            return
        job = jobs.drawing_figure(entry.source, path, width_mm, dpi)
        self._write(job, lambda found: self.state.tell("info", f"Figure of {entry.name} saved in {found}."), entry.name)

    def _note_saved(self, number: int, where: str) -> None:
        results = [replace(e, saved=where) if e.number == number else e for e in self.state.results]
        self.state.results = tuple(results)
        entry = self.entry(number)
        self.state.tell("info", f"{entry.name if entry else 'The result'} was saved in {where}.")

    def made(self, request: Request, model: Any) -> ResultEntry | None:
        """Return the finished result of the same request and checkpoint, or None: its pixels would be the same."""
        sha = None if model is None else model.provenance.get("sha256")
        for entry in self.state.results:
            if (
                entry.result is not None
                and entry.result.section is self.state.section  # opened again, its counts may be others
                and len(entry.spots) >= entry.planned
                and entry.request == request
                and dict(entry.provenance.get("checkpoint") or {}).get("sha256") == sha
            ):
                return entry
        return None

    # --- baselines

    def baseline(self, number: int | None) -> ResultEntry | None:
        """Return the result of the same spots and noise without edits; None if there is none.

        Edited real tissue never has one: its baseline is the slide.
        """
        entry = self.entry(number)
        if entry is None or not entry.request.edits or entry.counterfactual:
            return None
        wanted, spots = noise_key(entry.request, entry.provenance, edited=False), set(entry.spots)
        return next(
            (
                e
                for e in self.state.results
                if e is not entry
                and e.section is entry.section
                and spots <= set(e.spots)
                and noise_key(e.request, e.provenance) == wanted
            ),
            None,
        )


def _is_like(before: Section, now: Section) -> bool:
    """Return whether a section is what it was when it was open before: its spots, its scale and its slide."""
    slides = [None if s.image is None else (s.image.file, s.image.pixel_size, s.image.shape) for s in (before, now)]
    known = (before.path or before.name, before.calibration.mpp, slides[0])
    return known == (now.path or now.name, now.calibration.mpp, slides[1]) and is_same_section(before, now)


def thumbnail_of(rgba: Any) -> NDArray[np.uint8]:
    """Return a thumbnail of at most `THUMBNAIL_PX` a side of pixels, numpy or lazy, by nearest neighbour."""
    step = max(1, -(-max(rgba.shape[:2]) // THUMBNAIL_PX))
    (found,) = computed(rgba[::step, ::step])
    return np.ascontiguousarray(found)
