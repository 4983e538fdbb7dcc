"""Selections of spots in the formats of other tools."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import SectionError, first_line
from ..files import BadFile, read_json, user_path
from ..storage.atomic import write_text
from ..text import shorten, some_of
from ..types import SpotTable
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

    Row numbers are those of ``spots``.

    Parameters
    ----------
    spots
        The section's spots: those of `Section.whole`, whose order is that of the table in a saved store, which keeps excluded ones.
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
    for number, (name, geometry) in enumerate(geojson_features(content, nested=True)):
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
