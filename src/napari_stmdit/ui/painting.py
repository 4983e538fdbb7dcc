"""Edits of one viewer: their list, the brush, undo and redo. No Qt."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from numpy.typing import NDArray

from ..edits import Edit, Swap, Table
from ..errors import GeneError, RequestError
from ..expression.edit_tables import signed, table_fault, table_note
from ..expression.edits import Mover, most_moved, write_movers
from ..expression.following import ProgramReach, Reach, following_fault, follows, program_reach, reach_of
from ..expression.profiles import as_profiles, measure_profile, read_profile, write_profile
from ..expression.programs import known_programs, read_gmt, report
from ..intent import Request, SpotProfile
from ..synthesis.requests import EditFile, read_edit_file, used_by, write_edit_file
from ..types import Section
from .section_view import SectionView
from .spot_colours import Edited
from .state import Colouring, EditDraft, WorkbenchState
from .strokes import Stroke, describe, draft_of, make_edit

T = TypeVar("T")
MAX_STEPS = 200


class History(Generic[T]):
    """Undo stack of an immutable value."""

    def __init__(self, value: T) -> None:
        self._values = [value]
        self._at = 0
        self._merging: object = None

    @property
    def value(self) -> T:
        """The present value."""
        return self._values[self._at]

    @property
    def can_undo(self) -> bool:
        """Whether there is a value before this one."""
        return self._at > 0

    @property
    def can_redo(self) -> bool:
        """Whether there is a value after this one."""
        return self._at + 1 < len(self._values)

    def push(self, value: T, merging: object = None) -> None:
        """Push a new value; undone values are dropped.

        Successive values with the same ``merging``, which is not None, are one step, as of a slider that is being dragged.
        """
        if merging is not None and merging == self._merging and self._at:
            self._values[self._at :] = [value]
        else:
            self._values[self._at + 1 :] = [value]
            self._values = self._values[-MAX_STEPS - 1 :]
            self._at = len(self._values) - 1
        self._merging = merging

    def replace(self, value: T) -> None:
        """Replace the present value without a step."""
        self._values[self._at] = value

    def undo(self) -> T:
        """Undo one step, if there is one, and return the present value."""
        self._at = max(0, self._at - 1)
        self._merging = None
        return self.value

    def redo(self) -> T:
        """Redo one step, if there is one, and return the present value."""
        self._at = min(len(self._values) - 1, self._at + 1)
        self._merging = None
        return self.value


RECOLOUR_S = 0.08
"""Minimum seconds between two recolourings of spots during a stroke."""
Edits = tuple[Edit, ...]


class Virtual(NamedTuple):
    """Undoable state: edits with the programs and profiles that they may name, and the selection."""

    edits: Edits = ()
    programs: Mapping[str, Mapping[str, float]] = {}
    profiles: Mapping[str, SpotProfile] = {}
    selected: tuple[str, ...] = ()

    @classmethod
    def of(cls, state: WorkbenchState) -> Virtual:
        """Return the undoable state of a viewer."""
        request = state.request
        return cls(request.edits, request.programs, request.profiles, state.selected)

    def into(self, request: Request) -> Request:
        """Return a request with these edits, programs and profiles."""
        return request.model_copy(update={"edits": self.edits, "programs": self.programs, "profiles": self.profiles})

    def differs(self, other: Virtual) -> bool:
        """Return whether anything differs; identical dictionaries are not compared."""
        return any(a is not b and a != b for a, b in zip(self, other, strict=True))


class Painting:
    """User's changes of edits: each is a new tuple in ``state.request`` and an undoable step."""

    def __init__(
        self,
        state: WorkbenchState,
        view: Callable[[], SectionView | None],
        colour: Callable[[Colouring], None],
        select: Callable[[Sequence[str]], None],
    ) -> None:
        self.state = state
        self._view = view
        self._colour = colour
        self._select = select
        self._history: History[Virtual] = History(Virtual())
        self._put_away: dict[str, History[Virtual]] = {}
        self._stroke: tuple[int, Stroke] | None = None
        self._drawn_at = 0.0
        self._profiles: tuple[Any, Any, dict[str, Any]] | None = None
        self.stroked: Callable[[], None] = lambda: None
        """Callback during a stroke, whenever spots are recoloured."""
        state.events.request.connect(self._state_changed, max_args=0)
        state.events.selected.connect(self._state_changed, max_args=0)

    # --- what is known

    @property
    def edits(self) -> Edits:
        """The edits."""
        return self.state.request.edits

    @property
    def chosen(self) -> Edit | None:
        """The edit that the form shows and the brush paints on."""
        number = self.state.chosen_edit
        return self.edits[number] if number is not None and number < len(self.edits) else None

    def edited(self) -> Edited:
        """Return the edits with what they refer to, and with the unfinished stroke."""
        request, model = self.state.request, self.state.checkpoint
        key = (request.profiles, None if model is None else model.profiles)
        if self._profiles is None or self._profiles[0] is not key[0] or self._profiles[1] is not key[1]:
            self._profiles = (*key, {**(key[1] or {}), **as_profiles(request.profiles)})
        edits = self.edits
        if self._stroke is not None:
            number, stroke = self._stroke
            painted = edits[number].model_copy(update={"spots": stroke.weights()})
            edits = (*edits[:number], painted, *edits[number + 1 :])
        known = self._profiles[2]
        usable = tuple(edit for edit in edits if self._usable(edit, known))
        return Edited(usable, known_programs(request.programs), known)

    def _usable(self, edit: Edit, profiles: Mapping[str, Any]) -> bool:
        section = self.state.section
        if isinstance(edit, Table):
            return section is not None and edit.enabled and table_fault(edit, section.spots) is None
        return (getattr(edit, "target_profile", None) or "") in ("", *profiles)

    def profile_names(self) -> tuple[str, ...]:
        """Return the target profiles: the user's own, then the checkpoint's."""
        return tuple(self.edited().profiles)

    def reaches(self) -> tuple[Reach, ...]:
        """Return the reach of each edit."""
        section, model = self.state.section, self.state.checkpoint
        if section is None:
            return tuple(Reach(0) for _ in self.edits)
        programs = known_programs(self.state.request.programs)
        seen = None if model is None else model.card.genes
        followed = any(follows(edit) for edit in self.edits) and following_fault(section.spots) is None
        return tuple(reach_of(edit, programs, section.spots.genes, seen, followed) for edit in self.edits)

    def program_reaches(self) -> dict[str, ProgramReach]:
        """Return the reach of each program; empty while section or checkpoint is unknown."""
        section, model = self.state.section, self.state.checkpoint
        if section is None or model is None or not model.card.genes or section.expression.kind == "none":
            return {}
        seen = model.card.genes
        return {
            name: program_reach(genes, section.spots, seen)
            for name, genes in known_programs(self.state.request.programs).items()
        }

    def movers(self) -> tuple[Mover, ...]:
        """Return the genes that the edits move most over the spots that they act on."""
        section, edited = self.state.section, self.edited()
        return () if section is None else most_moved(section.spots, edited.edits, edited.programs, edited.profiles)

    # --- the form and the list

    def add(self, ids: Sequence[str] | None, name: str = "") -> bool:
        """Add the edit of the form to some spots or (None) to all; return whether it could be made."""
        if self.state.section is None:
            return False
        if ids is not None and not ids and self.state.draft.operation != "swap":
            self.state.tell("warning", "Select spots first, or apply the edit to all spots.")
            return False
        whole = ids is None or self.state.draft.operation == "swap"
        edit = self._made(None if whole else dict.fromkeys(ids or (), 1.0), name)
        if edit is None:
            return False
        self.state.chosen_edit = len(self.edits)
        self._commit((*self.edits, edit))
        self.show_change()
        return True

    def add_table(self, edit: Table) -> None:
        """Add an edit read from a table without fault."""
        named = edit if edit.name else edit.model_copy(update={"name": describe(edit)})
        self.state.chosen_edit = len(self.edits)
        self._commit((*self.edits, named))

    def _made(self, spots: dict[str, float] | None, name: str = "", **more: Any) -> Edit | None:
        try:
            edit = make_edit(self.state.draft, spots, name, **more)
        except RequestError as error:
            self.state.draft_faults = dict(error.faults)
            return None
        self.state.draft_faults = {}
        return edit

    def take_draft(self, draft: EditDraft) -> None:
        """Apply a change of the form to the chosen edit, if any."""
        self.state.draft = draft
        if isinstance(self.chosen, Table):  # the form does not show it: what is written there is another edit
            self.state.chosen_edit = None
        edit, number = self.chosen, self.state.chosen_edit
        if edit is None or number is None:
            self.state.draft_faults = {}
            return
        name = "" if edit.name == describe(edit) else edit.name
        spots = edit.spots
        members = (*edit.group_a, *edit.group_b) if isinstance(edit, Swap) else ()
        if members and draft.operation == "swap":
            if spots is not None:  # who joins takes part whole; all others keep their weight
                spots = {**dict.fromkeys({*draft.group_a, *draft.group_b} - {*members}, 1.0), **spots}
        elif members:
            weights = dict.fromkeys(members, 1.0) if spots is None else spots
            spots = {spot: weights[spot] for spot in members if spot in weights}
        elif draft.operation == "swap":
            spots = None
        changed = self._made(spots, name, strength=edit.strength, enabled=edit.enabled)
        if changed is not None and changed != edit:
            self._replace(number, changed, merging=("form", number))

    def choose(self, number: int | None) -> None:
        """Choose an edit to show in the form and paint on; None for a new one."""
        self.state.chosen_edit = number if number is not None and 0 <= number < len(self.edits) else None
        edit = self.chosen
        self.state.draft_faults = {}
        if edit is not None:
            self.state.draft = draft_of(edit, self.state.draft)
            if self.state.colouring.show == "change":
                self.show_change()
        self._redraw()

    def set_enabled(self, number: int, enabled: bool) -> None:
        """Switch an edit on or off."""
        self._change(number, enabled=enabled)

    def set_strength(self, number: int, strength: float) -> None:
        """Set the strength of an edit, 0 to 1; a drag of the slider is one step."""
        self._change(number, merging=("strength", number), strength=round(min(max(strength, 0.0), 1.0), 4))

    def rename(self, number: int, name: str) -> None:
        """Rename an edit; an empty name restores the description."""
        self._change(number, name=name.strip() or describe(self.edits[number]))

    def delete(self, number: int) -> None:
        """Take an edit out of the list."""
        if 0 <= number < len(self.edits):
            self._commit((*self.edits[:number], *self.edits[number + 1 :]))
            self.choose(min(number, len(self.edits) - 1) if self.edits else None)

    def move(self, number: int, by: int) -> None:
        """Move an edit up (negative) or down: edits are applied in the list's order."""
        to = number + by
        if 0 <= number < len(self.edits) and 0 <= to < len(self.edits):
            edits = list(self.edits)
            edits.insert(to, edits.pop(number))
            self.state.chosen_edit = to
            self._commit(tuple(edits))

    def undo(self) -> None:
        """Undo the last change of the edits or of the selection."""
        self._go(self._history.undo)

    def redo(self) -> None:
        """Redo the last undone change."""
        self._go(self._history.redo)

    def _go(self, step: Callable[[], Virtual]) -> None:
        if self._stroke is not None:
            return
        before, after = self.edits, step()
        edits = after.edits
        number = self.state.chosen_edit
        if len(edits) < len(before):
            number = None if number is None or not edits else min(number, len(edits) - 1)
        elif edits != before:  # what has changed is what is looked at, and painted on next
            number = next(
                (k for k, pair in enumerate(zip(before, edits, strict=False)) if pair[0] != pair[1]), len(before)
            )
        self.state.chosen_edit = number
        self.state.request = after.into(self.state.request)
        if after.selected != self.state.selected:
            self._select(after.selected)
        self._after_change()
        if self.chosen is not None:
            self.state.draft = draft_of(self.chosen, self.state.draft)

    # --- the brush

    def begin_stroke(self, yx: NDArray[Any], erase: bool) -> None:
        """Begin a stroke at a place in full-resolution pixels, on the chosen edit or a new one."""
        view, section = self._view(), self.state.section
        if view is None or section is None or view.finder.tree is None:
            return
        number = self.state.chosen_edit
        if self.chosen is None:
            edit = self._made({})
            if edit is None:
                self.state.tell("warning", " ".join(self.state.draft_faults.values()))
                return
            number = len(self.edits)
            self._set_without_step((*self.edits, edit))
            self.state.chosen_edit = number
        assert number is not None
        edit = self.edits[number]
        if isinstance(edit, Swap):
            self.state.tell("warning", "A swap names its own spots and cannot be painted; choose 'New edit' first.")
            return
        brush = self.state.brush
        brush = replace(brush, erase=brush.erase or erase)
        mpp = section.calibration.mpp
        radius = brush.radius_um if mpp is None else brush.radius_um / mpp
        self._stroke = (number, Stroke(section.spots, view.finder.tree, brush, radius, edit.spots))
        shown = self.state.colouring
        if shown.show != "change" or not {shown.program or shown.gene} & {*edit.programs, *edit.genes}:
            self.show_change()
        self.move_stroke(yx)

    def move_stroke(self, yx: NDArray[Any]) -> None:
        """Extend the stroke to a place."""
        view = self._view()
        if self._stroke is None or view is None:
            return
        changed = self._stroke[1].to(yx)
        if changed and time.perf_counter() - self._drawn_at >= RECOLOUR_S:
            view.recolour(self.edited())
            self._drawn_at = time.perf_counter()
            self.stroked()

    def end_stroke(self, yx: NDArray[Any] | None = None) -> None:
        """End the stroke, at a place if one is given, as one step."""
        if self._stroke is None:
            return
        number, stroke = self._stroke
        self._stroke = None
        if yx is not None:
            stroke.to(yx)
        weights = stroke.weights()
        edit = self.edits[number]
        begun = len(self.edits) > len(self._history.value.edits)
        if begun and not weights:  # beside the tissue
            self._set_without_step(self._history.value.edits)
            self.state.chosen_edit = None
            self._redraw()
            return
        self._replace(number, edit.model_copy(update={"spots": weights}))

    # --- what is shown

    def show_change(self) -> None:
        """Colour the spots by what the chosen edit changes: its program, or its first gene."""
        edit, before = self.chosen, self.state.colouring
        if edit is None:
            return
        wanted = replace(before, obs=None, show="change", limits=None)
        if edit.programs:
            wanted = replace(wanted, program=edit.programs[0], gene=None)
        elif edit.genes:
            wanted = replace(wanted, gene=edit.genes[0], program=None)
        elif before.gene is None and before.program is None:
            return  # the whole profile moves: the user says which gene to look at
        self._colour(wanted)

    def outlined(self) -> set[str]:
        """Return the spots that the chosen edit changes."""
        edit = self.chosen
        if edit is None:
            return set()
        if isinstance(edit, Swap):
            return {*edit.group_a, *edit.group_b}
        return set(edit.spots or ())

    def take(self, file: EditFile) -> None:
        """Replace the edits by those of a file, with its programs and profiles, as one step."""
        request = self.state.request
        self.state.chosen_edit = None
        programs, profiles = {**request.programs, **file.programs}, {**request.profiles, **file.profiles}
        self._commit_all(Virtual(file.edits, programs, profiles, self.state.selected))
        self.choose(len(file.edits) - 1 if file.edits else None)
        self.show_change()

    def bring(
        self,
        origin: str,
        programs: Mapping[str, dict[str, float]] | None = None,
        profiles: Mapping[str, SpotProfile] | None = None,
    ) -> dict[str, str]:
        """Add programs and profiles from a file, as one step; existing edits keep their meaning.

        Parameters
        ----------
        origin
            Their origin, in a word.
        programs, profiles
            By name. One whose name an edit uses for something else gets another name.

        Returns
        -------
        dict
            The name in the file -> its present name.
        """
        request, used = self.state.request, used_by(self.edits, self.state.request)
        known = known_programs(request.programs)
        kept = {name: known[name] for edit in self.edits for name in edit.programs if name in known}
        targets = {name for edit in self.edits if (name := getattr(edit, "target_profile", None)) is not None}
        present = {**kept, **dict.fromkeys(targets), **used.profiles}
        names = {
            name: _free_name(name, origin, {**known, **self.edited().profiles})
            if name in present and present[name] != content
            else name
            for name, content in (*(programs or {}).items(), *(profiles or {}).items())
        }
        added = {names[name]: content for name, content in (programs or {}).items()}
        more = {names[name]: content for name, content in (profiles or {}).items()}
        self._commit_all(
            Virtual(
                self.edits,
                {**request.programs, **added},
                {**request.profiles, **more},
                self.state.selected,
            )
        )
        return names

    # --- sections

    def section_changed(self, before: Section | None, after: Section | None) -> None:
        """Store the edits of one section and restore those of the other: spot ids mean nothing elsewhere."""
        self._stroke = None
        if before is not None:
            self._put_away[_identity(before)] = self._history
        self._history = self._put_away.get("" if after is None else _identity(after), History(Virtual()))
        self.state.chosen_edit = None
        own, now = self._history.value, self.state.request
        named = {name for edit in own.edits for name in edit.programs}  # what they meant, they mean; bundled ones too
        targets = {getattr(edit, "target_profile", None) for edit in own.edits}
        both = Virtual(
            own.edits,
            {**{name: genes for name, genes in now.programs.items() if name not in named}, **own.programs},
            {**{name: profile for name, profile in now.profiles.items() if name not in targets}, **own.profiles},
            self.state.selected,
        )
        self._history.replace(both)
        self.state.request = both.into(now)
        self._note_undoable()

    # --- private

    def _change(self, number: int, merging: object = None, **changes: Any) -> None:
        if 0 <= number < len(self.edits):
            self._replace(number, self.edits[number].model_copy(update=changes), merging)

    def _replace(self, number: int, edit: Edit, merging: object = None) -> None:
        self._commit((*self.edits[:number], edit, *self.edits[number + 1 :]), merging)

    def _commit(self, edits: Edits, merging: object = None) -> None:
        self._commit_all(Virtual.of(self.state)._replace(edits=edits), merging)

    def _commit_all(self, value: Virtual, merging: object = None) -> None:
        if value.differs(self._history.value):
            self._history.push(value, merging)
        self.state.request = value.into(self.state.request)
        self._after_change()

    def _set_without_step(self, edits: Edits) -> None:
        """Change the edits without a step: an unfinished stroke is none."""
        with self.state.events.request.blocked():
            self.state.request = self.state.request.model_copy(update={"edits": edits})

    def _state_changed(self) -> None:
        present = Virtual.of(self.state)
        if self._stroke is None and present.differs(self._history.value):
            self._history.push(present)  # spots were chosen, or a request was opened again
        self._note_undoable()

    def _after_change(self) -> None:
        self._note_undoable()
        view = self._view()
        if view is not None:
            view.recolour(self.edited(), whole=True)
            self.state.colour_scale = view.scale
            self._redraw()

    def _note_undoable(self) -> None:
        self.state.undoable = (self._history.can_undo, self._history.can_redo)

    def _redraw(self) -> None:
        view = self._view()
        if view is not None:
            view.outline(self.outlined())


def _identity(section: Section) -> str:
    return str(section.path) if section.path else section.name


def _free_name(name: str, origin: str, taken: Mapping[str, Any]) -> str:
    """Return a free name: with its origin, and a number if needed."""
    free, number = f"{name} ({origin})", 2
    while free in taken:
        free, number = f"{name} ({origin} {number})", number + 1
    return free


class EditFiles:
    """Files of edits, programs and profiles; an unreadable one is reported and changes nothing."""

    def __init__(self, painting: Painting) -> None:
        self._painting = painting
        self.state = painting.state

    def save(self, path: str) -> None:
        """Write the edits, with the programs and profiles that they name."""
        with self.state.telling():
            write_edit_file(used_by(self.state.request.edits, self.state.request), path)
            self.state.written_edits = self.state.request.edits
            self.state.tell("info", f"Edits saved in {path}.")

    def export_movers(self, path: str) -> None:
        """Write the genes that the edits move most, as CSV."""
        with self.state.telling():
            write_movers(self._painting.movers(), path)
            self.state.tell("info", f"Genes that move most saved in {path}.")

    def load(self, path: str) -> None:
        """Replace the edits by those of a file, as one step."""
        with self.state.telling():
            file = read_edit_file(path)
            self.state.written_edits = file.edits
            self._painting.take(file)
            self.state.tell("info", f"Edits read from {path}.")

    def import_gmt(self, path: str) -> None:
        """Add the gene sets of a GMT file to the programs; doubts are reported."""
        with self.state.telling():
            sets, section = read_gmt(path), self.state.section
            names = self._painting.bring(Path(path).stem, programs=sets.programs)
            notes = (*_renamed(names), *(sets.notes if section is None else report(sets, section.spots.genes)))
            head = f"{len(sets.programs)} gene sets from {Path(path).name}."
            rest = f" {len(notes) - 5} more." if len(notes) > 5 else ""
            self.state.tell("warning" if notes else "info", " ".join([head, *(f"{n}." for n in notes[:5])]) + rest)

    def import_profile(self, path: str) -> None:
        """Read a profile that was measured elsewhere and choose it as the target."""
        with self.state.telling():
            profile = read_profile(path)
            names = self._painting.bring("file", profiles={Path(path).stem: profile})
            (name,) = names.values()
            self._painting.take_draft(replace(self.state.draft, operation="towards", target_profile=name))
            warning = "".join(f"{note}. " for note in _renamed(names))
            self.state.tell(
                "warning" if warning else "info",
                f"{warning}{name}: a profile of {len(profile.values):,} genes. {profile.source}",
            )

    def import_table(self, path: str, unit: str, layer: str | None, baseline: str | None) -> None:
        """Add the edit of a table predicted by another tool, to the selected spots or, with none, to all."""
        section, selected = self.state.section, self.state.selected
        if section is None:
            self.state.tell("warning", "Open the section first whose spots the table is about.")
            return
        given = {"operation": "table", "table": path, "unit": unit, "layer": layer, "baseline": baseline}
        weights = dict.fromkeys(selected, 1.0) if selected else None
        with self.state.telling():
            edit = signed(Table.model_validate({**given, "spots": weights}))
            if (fault := table_fault(edit, section.spots)) is not None:
                raise GeneError(fault)
            self._painting.add_table(edit)
            self.state.tell("info", f"{table_note(edit, section.spots)}.")

    def export_profile(self, path: str) -> None:
        """Write the mean profile of the selected spots, for use in another section."""
        section, selected = self.state.section, self.state.selected
        if section is None or not selected:
            self.state.tell("warning", "Select the spots first whose mean expression is to be kept.")
            return
        source = f"mean of {len(selected)} spots of {section.name}"
        with self.state.telling():
            write_profile(measure_profile(section.spots, selected, source), path)
            self.state.tell("info", f"Profile saved in {path}.")


def _renamed(names: Mapping[str, str]) -> tuple[str, ...]:
    """Return notes on names that edits use for something else, and their new names."""
    return tuple(
        f"{name} is in use by an edit for something else; the one of the file is now {given!r}"
        for name, given in names.items()
        if name != given
    )
