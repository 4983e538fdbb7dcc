"""Open section in one viewer: its layers, selection of its spots, and corrections: orientation and excluded spots. No Qt."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from ..errors import SectionError, StmditError
from ..regions import Polygons
from ..text import capitalised, some_of
from ..tissue.alignment import WORDS, Alignment, check_alignment, check_picture, oriented
from ..tissue.excluded import exclude, exclude_file
from ..tissue.geometry import spots_in_polygons
from ..tissue.pseudo_spots import CLUSTERS
from ..tissue.selections import read_annotations, write_selections
from ..types import Section, SpotTable
from . import layers
from .jobs import Handlers, Job, Lane, Start, failing, once
from .layers import protect
from .spot_colours import THIN_PX, Edited, SpotPaint, SpotValues, as_text, face_of, look_of
from .state import Colouring, ColourScale, Combine, WorkbenchState

REWIDEN = 1.3
"""Factor of the width of rings on the screen from which they are redrawn."""


class SpotFinder:
    """Search of a table's spots by position; positions are (y, x) in full-resolution pixels."""

    def __init__(self, spots: SpotTable) -> None:
        from scipy.spatial import cKDTree

        self.spots = spots
        self.tree = cKDTree(spots.yx) if len(spots) else None

    def at(self, yx: Sequence[float]) -> tuple[str, ...]:
        """Return the id of the spot whose disc covers a place; empty where none does."""
        if self.tree is None:
            return ()
        distance, row = self.tree.query(np.asarray(yx, dtype=np.float64))
        return (str(self.spots.ids[row]),) if distance <= self.spots.diameter / 2 else ()

    def within(self, ring: NDArray[np.float64]) -> tuple[str, ...]:
        """Return the ids of the spots whose centres lie in a ring (n, 2); it may cross itself.

        A ring smaller than a spot's radius is a click in lasso mode, and means the spot under it.
        """
        if len(ring) == 0:
            return ()
        if len(ring) < 3 or np.ptp(ring, axis=0).max() < self.spots.diameter / 2:
            return self.at(ring.mean(axis=0))
        rings = (tuple((float(y), float(x)) for y, x in ring),)
        inside = spots_in_polygons(self.spots.yx, Polygons(rings=rings))
        return tuple(self.spots.ids[inside].tolist())


def neighbours(spots: SpotTable) -> csr_matrix:
    """Return which spots are neighbours, (n, n) sparse bool.

    On a Visium lattice six by array row and column (two columns on in the row, one column on in the rows above and below), so
    that a hole is a hole; elsewhere spots within 1.3 times the median distance to the nearest spot: six on a hexagonal
    lattice, four on a square one.
    """
    from scipy.spatial import cKDTree

    if len(spots) < 2:
        return csr_matrix((len(spots), len(spots)), dtype=bool)
    if spots.array_rc is not None and _is_hexagonal(spots.array_rc):
        place = {(r, c): k for k, (r, c) in enumerate(spots.array_rc.tolist())}
        steps = ((0, 2), (0, -2), (1, 1), (1, -1), (-1, 1), (-1, -1))
        pairs = [(k, place[to]) for (r, c), k in place.items() for y, x in steps if (to := (r + y, c + x)) in place]
        a, b = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    else:
        tree = cKDTree(spots.yx)
        pitch = float(np.median(tree.query(spots.yx, k=2)[0][:, 1]))
        one, two = tree.query_pairs(1.3 * pitch, output_type="ndarray").T
        a, b = np.concatenate([one, two]), np.concatenate([two, one])
    return csr_matrix((np.ones(len(a), dtype=bool), (a, b)), shape=(len(spots), len(spots)))


def _is_hexagonal(array_rc: NDArray[np.int64]) -> bool:
    """Return whether array rows and columns are those of a Visium lattice: their sum is even everywhere, and rows interleave."""
    even = (array_rc.sum(axis=1) % 2 == 0).all()
    return bool(even and len(np.unique(array_rc[:, 1] % 2)) == 2 and len(np.unique(array_rc, axis=0)) == len(array_rc))


def grown(spots: SpotTable, near: csr_matrix, ids: Iterable[str], rings: int) -> tuple[str, ...]:
    """Return a selection grown by rings of neighbours, or shrunk where ``rings`` is negative.

    Shrinking removes spots with an unselected neighbour; the border of the tissue is none, and nothing is removed there.
    """
    known = set(ids)
    inside = np.array([spot in known for spot in spots.ids.tolist()], dtype=bool)
    for _ in range(abs(rings)):
        inside = inside | (near @ inside) if rings > 0 else inside & ~(near @ ~inside)
    return tuple(spots.ids[inside].tolist())


def combine(spots: SpotTable, present: Iterable[str], new: Iterable[str], how: Combine) -> tuple[str, ...]:
    """Combine a new choice with the present selection; the result is in the table's order."""
    before, chosen = set(present), set(new)
    kept = {"replace": chosen, "add": before | chosen, "subtract": before - chosen, "toggle": before ^ chosen}[how]
    return tuple(spot for spot in spots.ids.tolist() if spot in kept)


def inverted(spots: SpotTable, present: Iterable[str]) -> tuple[str, ...]:
    """Return the spots that are not selected."""
    return combine(spots, spots.ids.tolist(), present, "subtract")


class SectionView:
    """Slide and spots of one section.

    ``refused`` is called where the user was kept from changing them, ``choose_all`` where a key selects all spots, and ``read_outlines`` where
    the outlines of cells are first shown: it calls `outline_cells`.
    """

    def __init__(
        self,
        viewer: Any,
        section: Section,
        refused: Callable[[], None] = lambda: None,
        choose_all: Callable[[], None] = lambda: None,
        read_outlines: Callable[[], None] = lambda: None,
    ) -> None:
        self._viewer = weakref.ref(viewer)
        self.section = section
        self.finder = SpotFinder(section.spots)
        self.slide: Any = None
        self.outlines: Any = None
        self.spots: Any = None
        self.values = SpotValues(section.spots)
        self._refused, self._choose_all, self._read_outlines = refused, choose_all, read_outlines
        self._outlined_cells = False
        self._restoring = False
        self.outline_only = False
        self._diameter_px = 0.0
        """Whether spots are drawn as rings only."""
        self._colouring, self._edited = Colouring(), Edited()
        self._values: NDArray[Any] | None = None
        self._scale = ColourScale()
        none = np.zeros(len(section.spots), dtype=bool)
        self._selected, self._hollow, self._outlined = none, none, none

    # ------------------------------------------------------------------------------------------- layers

    def show(self) -> None:
        """Add the section's layers, or take over those of a reader, and zoom to them."""
        viewer = self._viewer()
        assert viewer is not None
        for layer in list(viewer.layers):
            if layers.section_of(layer) is self.section:
                self._take(layer)
        if self.spots is None:
            for data in layers.section_layers(self.section):
                self._take(viewer.add_layer(layers.make(data)))
            viewer.reset_view()
        self.activate()

    def _take(self, layer: Any) -> None:
        role = layers.role_of(layer)
        if role == "slide":
            self.slide = layer
        elif role == "outlines":
            self.outlines = layer
            layer.events.visible.connect(self._outlines_shown)
            self._outlines_shown()
        elif role == "spots":
            self.spots = layer
            layer.events.data.connect(self._data_changed)
        if role in ("slide", "outlines", "spots"):
            protect(layer, self._refused, self._choose_all)

    def _outlines_shown(self, event: Any = None) -> None:
        if self.outlines is not None and self.outlines.visible and not self._outlined_cells:
            self._outlined_cells = True
            self._read_outlines()

    def outline_cells(self, levels: list[Any] | None) -> None:
        """Show the outlines of cells; None where they could not be read: they are asked for again when the layer is next shown."""
        self._outlined_cells = levels is not None
        if self.outlines is not None and levels is not None:
            self.outlines.data = levels if self.outlines.multiscale else levels[0]

    def _data_changed(self, event: Any = None) -> None:
        if self.spots is not None and not self._restoring and not self._whole():
            self._restore()
            self._refused()

    def _whole(self) -> bool:
        return np.array_equal(self.spots.data, self.section.spots.yx)

    def _restore(self) -> None:
        """Restore the spots from the section's table after napari changed them."""
        self._restoring = True
        try:
            layers.restore_spots(self.spots, self.section)
            self._describe()
            self.redraw()
        finally:
            self._restoring = False

    def holds(self, layer: Any) -> bool:
        """Return whether a layer is one of ours."""
        return layer is not None and layer in (self.slide, self.outlines, self.spots)

    def forget(self, layer: Any) -> bool:
        """Handle the removal of a layer; return whether the section can no longer be used."""
        if layer is self.slide:
            self.slide = None
        if layer is self.outlines:
            self.outlines = None
        if layer is self.spots:
            self.spots = None
        return self.spots is None

    def remove(self) -> None:
        """Remove the section's layers from the viewer."""
        for layer in (self.spots, self.outlines, self.slide):
            layers.remove(self._viewer(), layer)

    def activate(self) -> None:
        """Make the spots the active layer, so that napari's status bar describes them."""
        viewer = self._viewer()
        if viewer is not None and self.spots is not None and self.spots in viewer.layers:
            viewer.layers.selection.active = self.spots

    # ------------------------------------------------------------------------------------------- colours

    def first_colouring(self, before: Colouring) -> Colouring:
        """Return the first colouring of the spots: that of the section before, or the clusters of 10x's pipeline where nothing was chosen."""
        chosen = before.gene or before.program or (before.obs in self.values.columns() and before.obs)
        first = CLUSTERS if CLUSTERS in self.section.spots.obs else None
        return replace(before, obs=before.obs if chosen else first, limits=None)

    def colour(self, colouring: Colouring, edited: Edited | None = None) -> ColourScale:
        """Compute the colours, which `draw` shows. Return their meaning, or why there are none."""
        self._colouring, self._edited = colouring, edited or Edited()
        self._values, self._scale = self.values.of(colouring, self._edited)
        self._describe()
        return self._scale

    def recolour(self, edited: Edited, whole: bool = False) -> None:
        """Follow a change of the edits: only faces are recoloured, and limits only widen; ``whole`` at its end."""
        if self._colouring.show != "measured" and self._colouring.obs is None:
            values, scale = self.values.of(self._colouring, edited)
            if not whole and values is not None:
                low, high = self._scale.limits
                scale = replace(scale, limits=(min(low, scale.limits[0]), max(high, scale.limits[1])))
            self._values, self._scale = values, scale
            if self.spots is not None and (
                self._hollow.any() or self.outline_only
            ):  # a ring has its colour in its border
                self.redraw()
            elif self.spots is not None:
                layers.draw_faces(self.spots, face_of(self._values, self._scale, self._hollow))
        self._edited = edited
        if whole:
            self._describe()

    @property
    def scale(self) -> ColourScale:
        """Meaning of the present colours."""
        return self._scale

    def _describe(self) -> None:
        """Describe the spot under the mouse in napari's status bar: id, value, and the edits that change it."""
        if self.spots is None:
            return
        features: dict[str, Any] = {"spot": self.section.spots.ids}
        if self._values is not None:
            plain = self._values.dtype.kind in "US"
            features[self._scale.gene or ""] = self._values if plain else np.round(self._values, 3)
        touching: list[list[str]] = [[] for _ in self.section.spots.ids]
        place = {spot: row for row, spot in enumerate(self.section.spots.ids.tolist())}
        for edit in self._edited.edits:
            if edit.enabled:
                groups = (*getattr(edit, "group_a", ()), *getattr(edit, "group_b", ()))
                weights = edit.spots or dict.fromkeys(groups or place, 1.0)
                for spot, weight in weights.items():
                    if spot in place:
                        amount = weight * edit.strength
                        touching[place[spot]].append(edit.name + (f" ({amount:.2g})" if amount < 1 else ""))
        if any(touching):
            features["edits"] = np.array([", ".join(names) or None for names in touching], dtype=object)
        self.spots.features = features

    def draw(self, selected: tuple[str, ...], hollow: set[str], outlined: set[str] | None = None) -> None:
        """Draw colours, selection and rings."""
        ids = self.section.spots.ids
        self._selected, self._hollow = _among(ids, selected), _among(ids, hollow)
        if outlined is not None:
            self._outlined = _among(ids, outlined)
        if self.spots is None:
            return
        layers.draw_spots(self.spots, self._look(), np.flatnonzero(self._selected))

    def outline(self, outlined: set[str]) -> None:
        """Redraw with other spots outlined as changed by the chosen edit."""
        self._outlined = _among(self.section.spots.ids, outlined)
        self.redraw()

    def redraw(self) -> None:
        """Redraw the present colours and outlines."""
        if self.spots is not None:
            layers.draw_spots(self.spots, self._look())

    def zoomed(self, zoom: float) -> None:
        """Redraw the rings where they have become too wide or too thin; ``zoom`` is in screen pixels per unit of the world."""
        if self.spots is None or not len(self.section.spots):
            return
        shown = float(np.ravel(self.spots.size)[0] * np.abs(self.spots.scale).min() * zoom)
        before, now = max(self._diameter_px, THIN_PX), max(shown, THIN_PX)
        if not 1 / REWIDEN < now / before < REWIDEN:  # to set widths sends all spots to the screen anew
            self._diameter_px = shown
            self.redraw()

    def _look(self) -> SpotPaint:
        chosen = (self._selected, self._hollow, self._outlined, self.outline_only, self._diameter_px)
        return look_of(self._values, self._scale, *chosen)


def _among(ids: NDArray[np.str_], chosen: Collection[str]) -> NDArray[np.bool_]:
    known = set(chosen)
    return np.fromiter((spot in known for spot in ids.tolist()), dtype=bool, count=len(ids))


class Choosing:
    """Selection of spots by categories, values, neighbours, and names."""

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
        """Select the spots whose value, as coloured, lies between two limits, both included."""
        view = self._view()
        if view is None:
            return
        values, scale = view.values.of(colouring, self._edited())
        if values is None or scale.categories:
            self.state.tell("warning", scale.fault or "Colour by a gene, a program or a column of numbers first.")
            return
        inside = np.isfinite(values) & (values >= low) & (values <= high)
        self._select(view.section.spots.ids[inside].tolist(), how)
        self.state.tell(
            "info", f"{int(inside.sum()):,} spots with {scale.gene} from {low:g} to {high:g} ({scale.unit})."
        )

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
        """Store the selection under a name, replacing one of the same name."""
        name = name.strip()
        if not name or not self.state.selected:
            self.state.tell("warning", "A selection needs a name and at least one spot to be kept.")
            return
        self.state.named = {**self.state.named, name: self.state.selected}
        self.state.tell("info", f"{name}: {len(self.state.selected):,} spots kept.")

    def recall(self, name: str, how: Combine | None = None) -> None:
        """Select the spots of a named selection."""
        if name in self.state.named:
            self._select(self.state.named[name], how or self.state.combine)

    def export(self, path: str) -> None:
        """Write the selection, or with nothing selected all named ones, for other tools; see `write_selections`."""
        view, selected = self._view(), self.state.selected
        if view is None:
            return
        name = next((name for name, ids in self.state.named.items() if set(ids) == set(selected)), "selection")
        with self.state.telling():
            write_selections(view.section.whole.spots, {name: selected} if selected else self.state.named, path)
            self.state.tell("info", f"Selection saved in {path}.")

    def load(self, path: str) -> None:
        """Store the annotations of a GeoJSON file as named selections, replacing those of the same name."""
        view = self._view()
        if view is None:
            return
        with self.state.telling():
            read = read_annotations(view.section.spots, path)
            found = read.selections
            self.state.named = {**self.state.named, **found}
            counts = some_of([f"{name} ({len(ids):,} spots)" for name, ids in found.items()], 5)
            notes = "".join(f" {capitalised(note)}{'' if note.endswith('?') else '.'}" for note in read.notes)
            self.state.tell("warning" if notes else "info", f"Kept as selections: {counts}.{notes}")

    def delete(self, name: str) -> None:
        """Delete a named selection."""
        self.state.named = {key: ids for key, ids in self.state.named.items() if key != name}

    def section_changed(self, before: Any, after: Any) -> None:
        """Store the named selections of one section and restore those of the other."""
        if before is not None:
            self._put_away[str(before.path or before.name)] = dict(self.state.named)
        self.state.named = {} if after is None else self._put_away.get(str(after.path or after.name), {})


DEFAULT_NAME = "excluded"


class Corrections:
    """Checks of a section when it is shown, and the user's corrections; nothing is corrected unasked."""

    def __init__(self, state: WorkbenchState, start: Start, show: Callable[[Section, str], None]) -> None:
        self.state = state
        self._lane, self._pictures = Lane(start), Lane(start)
        self._show = show

    # --- orientation

    def check(self, section: Section) -> None:
        """Check in the background how spots and slide fit."""
        self.state.alignment, self.state.check_pictures = None, ()
        error = failing(SectionError, "whether the spots lie right on the slide cannot be told")
        job = Job("Checking the spots", once(lambda: check_alignment(section)), error, quiet=True)
        self._lane.submit(job, Handlers(self._checked, self._failed))

    def _checked(self, found: Alignment) -> None:
        self.state.alignment = found
        if found.verdict in ("other", "several"):
            self.look(True)

    def _failed(self, fault: StmditError) -> None:
        self.state.alignment = Alignment("unknown", reason=str(fault))

    def look(self, on: bool) -> None:
        """Show the spots over the slide, as they are and as they fit clearly better; or remove the pictures."""
        section, found = self.state.section, self.state.alignment
        if not on or section is None or section.image is None:
            self.state.check_pictures = ()
            return
        other = None if found is None else found.best

        def work() -> tuple[NDArray[np.uint8], ...]:
            return tuple(check_picture(section, name) for name in ("as-given", other) if name is not None)

        error = failing(SectionError, "the slide cannot be shown")
        job = Job("Drawing the spots", once(work), error, quiet=True)
        self._pictures.submit(job, Handlers(self._drawn, self.state.tell_error))

    def _drawn(self, pictures: Any) -> None:
        self.state.check_pictures = pictures

    def orient(self) -> None:
        """Apply the orientation that fits clearly better."""
        section, found = self.state.section, self.state.alignment
        if section is None or found is None or found.best is None:
            return
        self._show(
            oriented(section, found.best),
            f"The spots now lie {WORDS[found.best]}; the files are as they were. Open the section again to take it back.",
        )

    # --- spots that are used for nothing

    def exclude(self, name: str) -> None:
        """Exclude the selected spots, as a named region."""
        section, name = self.state.section, name.strip() or DEFAULT_NAME
        if section is None or not self.state.selected:
            self.state.tell(
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
            self._show(section.whole, f"All {len(section.whole.spots):,} spots are used again.")

    def export(self, path: str) -> None:
        """Write the excluded regions as GeoJSON, for a run, a training or an evaluation."""
        section = self.state.section
        if section is None or section.excluded is None:
            return
        with self.state.telling():
            write_selections(section.whole.spots, section.excluded.regions, path)
            self.state.tell("info", f"Excluded regions saved in {path}.")

    def _change(self, make: Callable[[], Section]) -> None:
        with self.state.telling():
            changed = make()
            said = "" if changed.excluded is None else f"{changed.excluded.statement}."
            self._show(changed, capitalised(said))

    def close(self) -> None:
        """End all jobs."""
        self._lane.abandon()
        self._pictures.abandon()
