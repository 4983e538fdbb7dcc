"""Regions in GeoJSON that are broken or odd."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from fuzz.harness import Scene, Works, cases, given, request_error, section_error, setting

SQUARE = [[0, 0], [900, 0], [900, 900], [0, 900], [0, 0]]
EVERYTHING = Works("30 of 30 spots")
NAN, INF = float("nan"), float("inf")


def geo(content: Any):
    return given("region", content if isinstance(content, str | bytes) else json.dumps(content))


def polygon(ring: Any, *holes: Any) -> dict:
    return {"type": "Polygon", "coordinates": [ring, *holes]}


def feature(geometry: Any) -> dict:
    return {"type": "Feature", "properties": {}, "geometry": geometry}


def nested(key: str, depth: int) -> str:
    return f'{{"{key}":' * depth + json.dumps(polygon(SQUARE)) + "}" * depth


def _folder(scene: Scene) -> None:
    scene.region = scene.root / "region.geojson"
    scene.region.mkdir()


def _loop(scene: Scene) -> None:
    scene.region = scene.root / "region.geojson"
    scene.region.symlink_to("region.geojson")


NO_POLYGON = section_error("holds no polygon", "Polygon or MultiPolygon")
NOT_JSON = section_error("cannot be read as GeoJSON")
NOBODY = request_error("region.rings", "no centre of the section's 30 spots")
NO_POINTS = section_error("no list of (x, y) points")
WILD = np.random.default_rng(0).uniform(0, 800, (400, 2)).tolist()

CASES = cases(
    "regions",
    "nothing",
    [
        ("a polygon", geo(polygon(SQUARE)), EVERYTHING),
        ("a polygon that is not closed", geo(polygon(SQUARE[:-1])), EVERYTHING),
        ("a polygon the other way round", geo(polygon(SQUARE[::-1])), EVERYTHING),
        ("a feature", geo(feature(polygon(SQUARE))), EVERYTHING),
        (
            "a collection of features",
            geo({"type": "FeatureCollection", "features": [feature(polygon(SQUARE))]}),
            EVERYTHING,
        ),
        ("a bare list of features, as QuPath writes it", geo([feature(polygon(SQUARE))]), EVERYTHING),
        (
            "a collection of geometries",
            geo({"type": "GeometryCollection", "geometries": [polygon(SQUARE)]}),
            EVERYTHING,
        ),
        (
            "several polygons",
            geo({"type": "MultiPolygon", "coordinates": [[SQUARE], [[[1, 1], [2, 1], [2, 2]]]]}),
            EVERYTHING,
        ),
        ("three coordinates a point", geo(polygon([[*p, 5] for p in SQUARE])), EVERYTHING),
        ("the same polygon twice", geo([polygon(SQUARE), polygon(SQUARE)]), EVERYTHING),
        ("polygons and points mixed", geo([polygon(SQUARE), {"type": "Point", "coordinates": [1, 1]}]), EVERYTHING),
        ("a lasso that crosses itself", geo(polygon([[0, 0], [900, 900], [900, 0], [0, 900]])), Works("of 30 spots")),
        ("a lasso that crosses itself 400 times", geo(polygon(WILD)), Works("of 30 spots")),
        (
            "twenty thousand points",
            geo(polygon([[450 + 450 * np.cos(a), 450 + 450 * np.sin(a)] for a in np.linspace(0, 6.28, 20_000)])),
            Works("of 30 spots"),
        ),
        ("a thousand polygons", geo({"type": "MultiPolygon", "coordinates": [[SQUARE]] * 1000}), EVERYTHING),
        (
            "points of 1e308",
            geo(polygon([[-1e308, -1e308], [1e308, -1e308], [1e308, 1e308], [-1e308, 1e308]])),
            EVERYTHING,
        ),
        *(
            (f"a {kind}", geo({"type": kind, "coordinates": c}), NO_POLYGON)
            for kind, c in (
                ("Point", [1, 2]),
                ("MultiPoint", SQUARE),
                ("LineString", SQUARE),
                ("MultiLineString", [SQUARE]),
            )
        ),
        ("a type that is none", geo({"type": "Circle", "coordinates": [[1, 2]]}), NO_POLYGON),
        ("a type in small letters", geo({"type": "polygon", "coordinates": [SQUARE]}), NO_POLYGON),
        ("a type that is a number", geo({"type": 7, "coordinates": [SQUARE]}), NO_POLYGON),
        ("no type", geo({"coordinates": [SQUARE]}), NO_POLYGON),
        ("a feature of nothing", geo(feature(None)), NO_POLYGON),
        ("features that are null", geo({"type": "FeatureCollection", "features": None}), NO_POLYGON),
        ("features that are words", geo({"type": "FeatureCollection", "features": ["a", "b"]}), NO_POLYGON),
        *(
            (f"the value {text}", geo(text), NO_POLYGON)
            for text in ("null", "7", '"Polygon"', "[]", "{}", "true", "[[[]]]")
        ),
        ("a hole", geo(polygon(SQUARE, [[1, 1], [2, 1], [2, 2]])), section_error("2 rings", "no hole")),
        ("no ring", geo({"type": "Polygon", "coordinates": []}), section_error("0 rings")),
        ("coordinates null", geo({"type": "Polygon", "coordinates": None}), section_error("0 rings")),
        ("coordinates missing", geo({"type": "Polygon"}), section_error("0 rings")),
        ("an empty ring", geo(polygon([])), section_error("0 points")),
        ("one point", geo(polygon([[1, 1]])), section_error("1 points", "three or more")),
        ("two points", geo(polygon([[1, 1], [2, 2]])), section_error("2 points", "three or more")),
        ("points on a line", geo(polygon([[0, 0], [400, 400], [800, 800]])), NOBODY),
        ("the same point thrice", geo(polygon([[100, 100]] * 3)), NOBODY),
        ("far away", geo(polygon([[1e6, 1e6], [2e6, 1e6], [2e6, 2e6]])), NOBODY),
        ("degrees of longitude and latitude", geo(polygon([[8.5, 47.3], [8.6, 47.3], [8.6, 47.4]])), NOBODY),
        ("negative", geo(polygon([[-900, -900], [-1, -900], [-1, -1]])), NOBODY),
        ("points are nan", geo(polygon([[NAN, 0], [900, 0], [900, 900]])), section_error("a point that is no number")),
        (
            "points are infinite",
            geo(polygon([[INF, 0], [900, 0], [900, 900]])),
            section_error("a point that is no number"),
        ),
        ("points are words", geo(polygon([["a", "b"], [9, 0], [9, 9]])), NO_POINTS),
        ("points are numbers in words", geo(polygon([["0", "0"], ["900", "0"], ["900", "900"]])), NO_POINTS),
        ("points are null", geo(polygon([None, None, None])), NO_POINTS),
        ("points are yes and no", geo(polygon([[False, False], [True, False], [True, True]])), NO_POINTS),
        ("points of one coordinate", geo(polygon([[1], [2], [3]])), NO_POINTS),
        ("points of differing length", geo(polygon([[1, 2], [3], [4, 5]])), NO_POINTS),
        ("a ring that is an object", geo({"type": "Polygon", "coordinates": [{"a": 1}]}), NO_POINTS),
        ("coordinates that are a number", geo({"type": "Polygon", "coordinates": 7}), NO_POINTS),
        ("coordinates that are a word", geo({"type": "Polygon", "coordinates": "abc"}), NO_POINTS),
        ("coordinates that are an object", geo({"type": "Polygon", "coordinates": {"a": SQUARE}}), NO_POINTS),
        ("several polygons that are a number", geo({"type": "MultiPolygon", "coordinates": 7}), NO_POINTS),
        ("several polygons that are numbers", geo({"type": "MultiPolygon", "coordinates": [7, 8]}), NO_POINTS),
        (
            "nested as a polygon of several",
            geo({"type": "MultiPolygon", "coordinates": [SQUARE]}),
            section_error("expected one outer ring"),
        ),
        (
            "a point of 400 digits",
            geo('{"type":"Polygon","coordinates":[[[' + "9" * 400 + ",1],[2,2],[3,4]]]}"),
            section_error("region.geojson"),
        ),
        ("geometry nested 400 deep", geo(nested("geometry", 400)), EVERYTHING),
        *(
            (f"{key} nested a hundred thousand deep", geo(nested(key, 100_000)), NOT_JSON)
            for key in ("geometry", "features")
        ),
        ("lists nested a hundred thousand deep", geo("[" * 100_000 + "]" * 100_000), NOT_JSON),
        ("lists nested 900 deep", geo("[" * 900 + "]" * 900), NO_POLYGON),
        ("empty file", geo(""), NOT_JSON),
        ("cut short", geo(json.dumps(polygon(SQUARE))[:-5]), NOT_JSON),
        ("not UTF-8", geo(b"\xff\xfe\xfa"), NOT_JSON),
        ("with a byte order mark", geo(b"\xef\xbb\xbf" + json.dumps(polygon(SQUARE)).encode()), EVERYTHING),
        ("WKT", geo("POLYGON((0 0, 1 0, 1 1, 0 0))"), NOT_JSON),
        ("two documents", geo(json.dumps(polygon(SQUARE)) * 2), NOT_JSON),
        ("a folder", _folder, NOT_JSON),
        ("a link to itself", _loop, NOT_JSON),
        ("missing", setting(region=lambda s: s.root / "nothing.geojson"), NOT_JSON),
        ("a device that never ends", setting(region=Path("/dev/zero")), NOT_JSON),
        ("a path with a NUL", setting(region=lambda s: s.root / "a\0b"), NOT_JSON),
    ],
)
