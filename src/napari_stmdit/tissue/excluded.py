"""Selections of spots in the formats of other tools, and exclusion of spots, under folds, pen and blur."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..edits import Edit, KnockOut, Scale
from ..errors import RequestError, SectionError, first_line
from ..files import BadFile, read_json, user_path
from ..intent import Request
from ..regions import SpotList
from ..storage.atomic import write_text
from ..text import shorten, some_of
from ..types import Excluded, Section, SpotTable
from .geometry import geojson_features

FORMATS: Mapping[str, str] = {
    ".geojson": "outlines for QuPath, in full-resolution pixels",
    ".csv": "barcodes and names for Loupe Browser",
    ".txt": "row numbers from 0, one a line, for CONCERT",
}
"""Ending of a file -> description of its content."""
_MANY_MORE = 3
"""Minimum ratio of the spots in regions with x and y swapped to those without, to assume that they are swapped."""
_REACH = 0.62
"""Radius of a spot's disc in an outline, in spot distances: discs of three neighbours meet from 0.58 on."""


def write_selections(spots: SpotTable, selections: Mapping[str, Sequence[str]], path: str | Path) -> None:
    """Write named selections of spots; the file's ending decides the format (`FORMATS`).

    Row numbers are those of the section's spots in their order here, as in the table of a saved store.

    Parameters
    ----------
    spots
        The section's spots.
    selections
        Name -> ids of spots.
    path
        File, replaced if it exists.

    Raises
    ------
    SectionError
        The ending is unknown, a spot is not in the section, or the format cannot hold these selections.
    """
    file = user_path(path)
    chosen = {name: tuple(ids) for name, ids in selections.items() if len(ids)}
    if not chosen:
        raise SectionError("no spot is selected; there is nothing to write")
    strangers = sorted(set().union(*chosen.values()) - set(spots.ids.tolist()))
    if strangers:
        raise SectionError(f"{len(strangers)} spots are not in this section, such as {strangers[0]!r}")
    match file.suffix.lower():
        case ".geojson":
            text = json.dumps(
                {"type": "FeatureCollection", "features": [_outline(spots, *item) for item in chosen.items()]}
            )
        case ".csv":
            text = _categories(chosen)
        case ".txt":
            if len(chosen) > 1:
                raise SectionError(f"a list of row numbers holds one selection; got {len(chosen)}: {', '.join(chosen)}")
            (ids,) = chosen.values()
            text = "".join(f"{row}\n" for row in np.sort(spots.rows(ids)).tolist())
        case other:
            forms = "; ".join(f"{ending} ({what})" for ending, what in FORMATS.items())
            raise SectionError(f"got a file ending in {other or 'nothing'!r}; expected one of {forms}")
    write_text(file, text)


@dataclass(frozen=True)
class Annotations:
    """Annotations of a file as selections: class -> ids, in the table's order; and notes about what looks wrong."""

    selections: dict[str, tuple[str, ...]]
    notes: tuple[str, ...] = ()


def read_selections(spots: SpotTable, path: str | Path) -> dict[str, tuple[str, ...]]:
    """Return the selections of `read_annotations`."""
    return read_annotations(spots, path).selections


def read_annotations(spots: SpotTable, path: str | Path) -> Annotations:
    """Read the annotations of a GeoJSON file, as QuPath exports them, as selections: the spots whose centres lie inside.

    Holes are kept. Annotations of one class are one selection; one without a class goes by its own name, else as *region*.

    Parameters
    ----------
    spots
        The section's spots.
    path
        Polygons of points (x, y) in full-resolution pixels.

    Returns
    -------
    Annotations
        Without classes that have no spot; notes name these, and x and y that look swapped.

    Raises
    ------
    SectionError
        The file cannot be read, holds no polygon, or none of them has a spot inside.
    """
    import shapely

    file = user_path(path)
    try:
        content = read_json(file)
    except BadFile as error:
        raise SectionError(f"{file.name} cannot be read as GeoJSON: {error}") from None
    inside: dict[str, Any] = {}
    turned = 0
    y, x = spots.yx[:, 0], spots.yx[:, 1]
    for number, (name, geometry) in enumerate(geojson_features(content)):
        if geometry.get("type") not in ("Polygon", "MultiPolygon"):
            continue
        try:
            region = shapely.geometry.shape(geometry)
            region = region if region.is_valid else shapely.make_valid(region)
        except Exception as error:  # noqa: BLE001 - shapely raises many kinds over coordinates that are none
            raise SectionError(
                f"{file.name}: the geometry of annotation {number + 1} cannot be used: {first_line(error)}"
            ) from None
        inside[name] = inside.get(name, False) | shapely.contains_xy(region, x, y)
        turned += int(shapely.contains_xy(region, y, x).sum())
    if not inside:
        raise SectionError(f"{file.name} holds no polygon; expected GeoJSON with Polygon or MultiPolygon geometries")
    found = {name: tuple(spots.ids[where].tolist()) for name, where in inside.items() if where.any()}
    if not found:
        hint = (
            f"; with x and y changed over they would hold {turned}: are the points written as (y, x)?"
            if turned
            else "; points must be (x, y) in pixels of the full-resolution slide"
        )
        raise SectionError(
            f"none of this section's {len(spots):,} spots lies in the {len(inside)} regions of {file.name}{hint}"
        )
    notes = []
    if empty := [name for name, where in inside.items() if not where.any()]:
        notes.append(f"no spot lies in {some_of(map(shorten, empty))}; left out")
    held = sum(len(ids) for ids in found.values())
    if turned > _MANY_MORE * held:
        notes.append(
            f"the regions hold {held:,} spots, and with x and y changed over they would hold {turned:,}: are the points written as (y, x)?"
        )
    return Annotations(found, tuple(notes))


def perturbation_of(edits: Sequence[Edit], name: str) -> dict[str, dict[str, float]]:
    """Return the gene factors of edits as SpatialProp takes them: ``{group: {gene: factor}}``.

    Raises
    ------
    SectionError
        An edit does something else than multiply genes, or names programs.
    """
    factors: dict[str, float] = {}
    for edit in edits:
        if not edit.enabled:
            continue
        if not isinstance(edit, Scale | KnockOut) or edit.programs or edit.strength != 1:
            raise SectionError(
                f"the edit {edit.name or edit.operation!r} cannot be written as a factor a gene; only scaling and knocking out genes at full "
                "strength can"
            )
        for gene in edit.genes:
            factors[gene] = factors.get(gene, 1.0) * (edit.factor if isinstance(edit, Scale) else 0.0)
    if not factors:
        raise SectionError("no edit multiplies a gene; there is nothing to write")
    return {name: factors}


def _categories(chosen: Mapping[str, Sequence[str]]) -> str:
    names: dict[str, str] = {}
    for name, ids in chosen.items():
        for spot in ids:
            if spot in names:
                raise SectionError(
                    f"the spot {spot} is in {names[spot]!r} and in {name!r}; Loupe Browser takes one category a spot"
                )
            names[spot] = name
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerows([("Barcode", "selection"), *names.items()])
    return text.getvalue()


def _outline(spots: SpotTable, name: str, ids: Sequence[str]) -> dict[str, Any]:
    """Return the outline of some spots as a QuPath annotation; x before y, from the image's corner."""
    from scipy.spatial import cKDTree
    from shapely import Point, unary_union
    from shapely.geometry import mapping

    rows = spots.rows(tuple(ids))
    near, _ = cKDTree(spots.yx).query(spots.yx, k=2) if len(spots) > 1 else (np.full((1, 2), spots.diameter), None)
    reach = max(_REACH * float(np.median(near[:, 1])), spots.diameter / 2)
    region = unary_union([Point(x, y).buffer(reach, quad_segs=6) for y, x in spots.yx[rows].tolist()])
    # grown regions reach over spots that are not chosen where these lie close; they are cut out again
    others = np.setdiff1d(np.arange(len(spots)), rows)
    close = others[cKDTree(spots.yx[rows]).query(spots.yx[others])[0] <= reach] if others.size else others
    if close.size:
        region = region.difference(unary_union([Point(x, y).buffer(0.3 * reach) for y, x in spots.yx[close].tolist()]))
    return {
        "type": "Feature",
        "geometry": mapping(region),
        "properties": {"objectType": "annotation", "name": name, "classification": {"name": name}},
    }


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
    found = read_selections(section.whole.spots, path)
    if missing := [name for name in classes if name not in found]:
        raise SectionError(
            f"no spot lies in regions of the class {some_of(map(shorten, missing))} of {Path(path).name}; those with spots inside are {some_of(found)}"
        )
    return exclude(section, {name: ids for name, ids in found.items() if not classes or name in classes})


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
