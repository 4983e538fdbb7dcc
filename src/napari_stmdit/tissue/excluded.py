"""Exclusion of spots, under folds, pen and blur."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import RequestError, SectionError
from ..intent import Request
from ..regions import SpotList
from ..text import shorten, some_of
from ..types import Excluded, Section
from .selections import read_annotations

MIN_LEFT = 3


def exclude(section: Section, regions: Mapping[str, Sequence[str]]) -> Section:
    """Return a section without the spots of some regions, beside those excluded already, with a note.

    Parameters
    ----------
    section
        From `napari_stmdit.open_section`.
    regions
        Name of a region -> ids of its spots. They are added to those of an earlier region of the same name.

    Raises
    ------
    SectionError
        A spot is not in the section, or fewer than three are left.
    """
    whole = section.whole
    before = {} if section.excluded is None else section.excluded.regions
    both = {name: {*before.get(name, ()), *regions.get(name, ())} for name in (*before, *regions)}
    wanted = set().union(*both.values())
    ids = whole.spots.ids.tolist()
    if strangers := sorted(wanted - set(ids)):
        raise SectionError(f"{len(strangers)} spots to exclude are not in {whole.name}, such as {strangers[0]!r}")
    rows = np.array([row for row, spot in enumerate(ids) if spot not in wanted], dtype=np.int64)
    if len(rows) < MIN_LEFT:
        raise SectionError(
            f"{len(wanted)} of the {len(ids)} spots of {whole.name} are to be excluded, and at least {MIN_LEFT} must be left; exclude less"
        )
    if not wanted:
        return whole
    ordered = {name: tuple(spot for spot in ids if spot in inside) for name, inside in both.items() if inside}
    excluded = Excluded(whole.spots, ordered)
    return replace(whole, spots=whole.spots.at(rows), notes=(*whole.notes, excluded.statement), excluded=excluded)


def exclude_file(section: Section, path: str | Path, classes: Sequence[str] = ()) -> Section:
    """Return a section without the spots whose centres lie in the polygons of a GeoJSON file, by class or name; holes are kept.

    Parameters
    ----------
    section
        From `napari_stmdit.open_section`.
    path
        Polygons of points (x, y) in full-resolution pixels, as QuPath exports them.
    classes
        Classes of the file to exclude; none: all.

    Raises
    ------
    SectionError
        The file cannot be read, has no such class, or no spot lies inside.
    """
    read = read_annotations(section.whole.spots, path)
    found = read.selections
    if missing := [name for name in classes if name not in found]:
        raise SectionError(
            f"no spot lies in regions of the class {some_of(map(shorten, missing))} of {Path(path).name}; those with spots inside are {some_of(found)}"
        )
    left = exclude(section, {name: ids for name, ids in found.items() if not classes or name in classes})
    # a class without a spot matters where all are meant; x and y that look swapped always do
    notes = [f"{Path(path).name}: {note}" for note in read.notes if not classes or "x and y" in note]
    return replace(left, notes=(*left.notes, *notes))


def excluded_as_kept(section: Section, own: Mapping[str, Any]) -> Section:
    """Return a section without the spots excluded in its store; see `napari_stmdit.tissue.elements.about`."""
    kept = own.get("excluded") or {}
    if not isinstance(kept, Mapping) or not all(isinstance(ids, list | tuple) for ids in kept.values()):
        raise SectionError(
            f"{section.name}: what its store keeps as excluded is {shorten(repr(kept))}; expected regions with the ids of their spots"
        )
    return exclude(section, {str(name): [str(spot) for spot in ids] for name, ids in kept.items()}) if kept else section


def without_excluded(section: Section, request: Request) -> Request:
    """Return a request without a section's excluded spots: in its region, its edits, and their targets.

    Raises
    ------
    RequestError
        Nothing would be left of the region, of an edit or of its target; or the request names a file of regions that the
        section was opened without.
    """
    if request.exclude is not None and section.excluded is None:
        raise RequestError(
            [
                (
                    "exclude",
                    f"{request.exclude} is to be excluded; open the section with it (--exclude FILE, exclude=FILE)",
                )
            ]
        )
    if section.excluded is None:
        return request
    gone, faults = section.excluded.ids, list[tuple[str, str]]()
    update: dict[str, Any] = {}
    if isinstance(request.region, SpotList) and gone & set(request.region.ids):
        update["region"] = {"kind": "spots", "ids": _left(request.region.ids, gone, "region.ids", faults)}
    edits = [
        _of_left(edit.model_dump(exclude_unset=True) | {"operation": edit.operation}, gone, f"edits[{number}]", faults)
        for number, edit in enumerate(request.edits)
    ]
    if request.morphology in gone:
        faults.append(("morphology", f"spot {request.morphology!r} is excluded from this section; name another"))
    if faults:
        raise RequestError(faults)
    if any(edits):
        update["edits"] = [new or edit for new, edit in zip(edits, request.edits, strict=True)]
    return request.model_copy(update=update) if update else request


def _of_left(
    edit: dict[str, Any], gone: frozenset[str], place: str, faults: list[tuple[str, str]]
) -> dict[str, Any] | None:
    """Return an edit's values without the excluded spots, None where it names none."""
    named = {name: edit[name] for name in ("spots", "target_spots", "group_a", "group_b") if edit.get(name)}
    hit = {name: spots for name, spots in named.items() if gone & set(spots)}
    for name, spots in hit.items():
        left = _left(tuple(spots), gone, f"{place}.{name}", faults)
        edit[name] = {spot: spots[spot] for spot in left} if isinstance(spots, dict) else left
    return edit if hit else None


def _left(ids: Sequence[str], gone: frozenset[str], place: str, faults: list[tuple[str, str]]) -> tuple[str, ...]:
    left = tuple(spot for spot in ids if spot not in gone)
    if not left:
        faults.append(
            (place, f"all {len(ids)} spots are excluded from this section; choose others, or include them again")
        )
    return left
