"""SpatialData stores that are broken or odd."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from fuzz.harness import (
    Scene,
    Works,
    both,
    cases,
    link,
    nothing,
    remove,
    request_error,
    section_error,
    setting,
    truncate,
    write,
)

ROOT = "zarr.json"
TABLE, SPOTS, SLIDE = "tables/table", "shapes/spots", "images/slide"


def attrs(path: str, change: Callable[[dict], object]) -> Callable[[Scene], object]:
    """Change the attributes of a node, and drop consolidated metadata, which would hide the change."""

    def apply(scene: Scene) -> None:
        file = scene.section / path / "zarr.json" if path else scene.section / "zarr.json"
        content = json.loads(file.read_text())
        change(content["attributes"])
        file.write_text(json.dumps(content))
        plain(scene)

    return apply


def plain(scene: Scene) -> None:
    for file in scene.section.rglob("zarr.json"):
        content = json.loads(file.read_text())
        if content.pop("consolidated_metadata", None) is not None:
            file.write_text(json.dumps(content))


def without(*paths: str) -> Callable[[Scene], object]:
    return both(remove(*paths), plain)


def copied(source: str, target: str) -> Callable[[Scene], object]:
    return both(lambda s: shutil.copytree(s.section / source, s.section / target), plain)


def array(path: str, change: Callable[[np.ndarray], Any]) -> Callable[[Scene], object]:
    """Rewrite an array of the store."""

    def apply(scene: Scene) -> None:
        group = zarr.open_group(scene.section, mode="r+", use_consolidated=False)
        old = group[path]
        values, kept = np.asarray(change(old[()])), dict(old.attrs)
        parent, name = path.rsplit("/", 1)
        del group[parent][name]
        group[parent].create_array(name, data=values).attrs.update(kept)
        plain(scene)

    return apply


def chunks(path: str, change: Callable[[Path], object]) -> Callable[[Scene], object]:
    """Do something to every chunk of an array."""
    return lambda s: [change(f) for f in sorted((s.section / path / "c").rglob("*")) if f.is_file()]


def shapes(change: Callable[[Any], Any]) -> Callable[[Scene], object]:
    """Rewrite the table of circles."""

    def apply(scene: Scene) -> None:
        import geopandas

        file = scene.section / SPOTS / "shapes.parquet"
        change(geopandas.read_parquet(file)).to_parquet(file)

    return apply


def annotates(key: str, value: Any) -> Callable[[Scene], object]:
    """Change what the table says that it annotates."""

    def apply(scene: Scene) -> None:
        import anndata

        group = zarr.open_group(scene.section, mode="r+", use_consolidated=False)
        anndata.io.write_elem(group, f"{TABLE}/uns/spatialdata_attrs/{key}", value)
        plain(scene)

    return apply


def place(path: str, kind: str, **values: Any) -> Callable[[Scene], object]:
    """Set the transformation of an element into its coordinate system."""

    def change(content: dict) -> None:
        where = content["ome"]["multiscales"][0] if "ome" in content else content
        for item in where["coordinateTransformations"]:
            for old in ("scale", "affine", "translation"):
                item.pop(old, None)
            item.update({"type": kind, **values})

    return attrs(path, change)


def renamed_system(path: str, name: str) -> Callable[[Scene], object]:
    def change(content: dict) -> None:
        where = content["ome"]["multiscales"][0] if "ome" in content else content
        for item in where["coordinateTransformations"]:
            item["output"]["name"] = name

    return attrs(path, change)


def about(**values: Any) -> Callable[[Scene], object]:
    """Let the store say of itself what our own stores say."""
    return attrs("", lambda a: a.__setitem__("stmdit_section", values))


UNREADABLE = section_error("cannot be read as SpatialData")
NONE = section_error("no circles that a table annotates")
ASKS = request_error("--fullres")
OWN = {"mpp": 0.7, "source": "override", "detail": "0.7"}

CASES = cases(
    "stores",
    "store",
    [
        ("as it is", nothing, Works(["1 of 30 spots", "0.7 um/px by lattice"])),
        ("no metadata", remove(ROOT), section_error("tiny.zarr")),
        ("empty metadata", write(ROOT, ""), section_error("no SpatialData")),
        ("metadata cut short", truncate(ROOT, 0.5), section_error("no SpatialData")),
        ("metadata are a list", write(ROOT, "[]"), section_error("no SpatialData")),
        (
            "metadata whose attributes are a list",
            write(ROOT, '{"zarr_format": 3, "node_type": "group", "attributes": []}'),
            section_error("no SpatialData"),
        ),
        ("metadata nested a hundred thousand deep", write(ROOT, "[" * 100_000), section_error("no SpatialData")),
        ("metadata not UTF-8", write(ROOT, b"\xff\xfe\xfa"), section_error("no SpatialData")),
        (
            "metadata that say it is an array",
            write(ROOT, '{"zarr_format": 3, "node_type": "array", "attributes": {"spatialdata_attrs": {}}}'),
            UNREADABLE,
        ),
        ("zarr, but no SpatialData", attrs("", lambda a: a.clear()), section_error("no SpatialData")),
        ("SpatialData of the future", attrs("", lambda a: a["spatialdata_attrs"].update(version="99.0")), UNREADABLE),
        ("SpatialData of no version", attrs("", lambda a: a["spatialdata_attrs"].clear()), UNREADABLE),
        ("an empty store", without("images", "shapes", "tables"), NONE),
        ("without tables", without("tables"), NONE),
        ("without shapes", without("shapes"), NONE),
        ("without images", without("images"), ASKS),
        ("table's metadata missing", remove(f"{TABLE}/zarr.json"), section_error("tiny.zarr")),
        ("table's metadata cut short", truncate(f"{TABLE}/zarr.json", 0.5), section_error("tiny.zarr")),
        ("table without names of rows", without(f"{TABLE}/obs"), section_error("tiny.zarr")),
        ("table without genes", without(f"{TABLE}/var"), request_error("shares 0 of the 20 genes")),
        ("table without X", without(f"{TABLE}/X"), section_error("does not hold counts")),
        ("counts' chunks empty", chunks(f"{TABLE}/X/data", lambda f: f.write_bytes(b"")), section_error("tiny.zarr")),
        (
            "counts' chunks random",
            chunks(f"{TABLE}/X/data", lambda f: f.write_bytes(b"\xaa" * 99)),
            section_error("tiny.zarr"),
        ),
        (
            "counts' chunks missing",
            chunks(f"{TABLE}/X/data", lambda f: f.unlink()),
            request_error("has a single count"),
        ),
        ("counts negative", array(f"{TABLE}/X/data", lambda v: -v), section_error("does not hold counts")),
        ("counts fractional", array(f"{TABLE}/X/data", lambda v: v * 0.3), section_error("does not hold counts")),
        ("counts nan", array(f"{TABLE}/X/data", lambda v: v * np.nan), section_error("does not hold counts")),
        ("counts floats but whole", array(f"{TABLE}/X/data", lambda v: v.astype(float)), Works("1 of 30 spots")),
        ("counts of 1e300", array(f"{TABLE}/X/data", lambda v: v * 1e300), section_error("does not hold counts")),
        ("counts' indices out of range", array(f"{TABLE}/X/indices", lambda v: v + 1000), section_error("tiny.zarr")),
        ("counts' indices negative", array(f"{TABLE}/X/indices", lambda v: v - 1000), section_error("tiny.zarr")),
        ("counts' indptr cut short", array(f"{TABLE}/X/indptr", lambda v: v[:-3]), section_error("tiny.zarr")),
        (
            "rows' names twice",
            array(f"{TABLE}/obs/_index", lambda v: np.array(["A", *v[1:-1], "A"])),
            section_error("lists the barcode A twice"),
        ),
        (
            "instances that are no circle",
            array(f"{TABLE}/obs/instance", lambda v: v + 1000),
            section_error("30 rows of the table have no circle"),
        ),
        (
            "half the instances are no circle",
            both(array(f"{TABLE}/obs/instance", lambda v: v + 15), setting(mpp=0.7)),
            Works("15 rows of the table have no circle"),
        ),
        (
            "array rows are text",
            array(f"{TABLE}/obs/array_row", lambda v: np.array(["x"] * len(v))),
            section_error("array_row"),
        ),
        ("array rows are nan", array(f"{TABLE}/obs/array_row", lambda v: v * np.nan), section_error("array_row")),
        (
            "array rows missing",
            both(
                attrs(f"{TABLE}/obs", lambda a: a["column-order"].remove("array_row")), remove(f"{TABLE}/obs/array_row")
            ),
            request_error("--mpp"),
        ),
        (
            "in_tissue is text",
            both(
                array(f"{TABLE}/obs/array_row", lambda v: v),
                attrs(f"{TABLE}/obs", lambda a: a["column-order"].append("in_tissue")),
                lambda s: shutil.copytree(s.section / f"{TABLE}/obs/_index", s.section / f"{TABLE}/obs/in_tissue"),
            ),
            section_error("in_tissue"),
        ),
        (
            "nothing on tissue",
            both(
                attrs(f"{TABLE}/obs", lambda a: a["column-order"].append("in_tissue")),
                lambda s: shutil.copytree(s.section / f"{TABLE}/obs/array_row", s.section / f"{TABLE}/obs/in_tissue"),
                array(f"{TABLE}/obs/in_tissue", lambda v: v * 0),
            ),
            section_error("not on tissue"),
        ),
        (
            "in_tissue is nan",
            both(
                attrs(f"{TABLE}/obs", lambda a: a["column-order"].append("in_tissue")),
                lambda s: shutil.copytree(s.section / f"{TABLE}/obs/array_row", s.section / f"{TABLE}/obs/in_tissue"),
                array(f"{TABLE}/obs/in_tissue", lambda v: v * np.nan),
            ),
            section_error("in_tissue"),
        ),
        ("a table that annotates nothing", annotates("region", "elsewhere"), section_error("tiny.zarr")),
        ("a table without a region", without(f"{TABLE}/uns/spatialdata_attrs/region"), section_error("tiny.zarr")),
        ("a table whose region is a number", annotates("region", 7), section_error("tiny.zarr")),
        ("a table whose key is no column", annotates("region_key", "nowhere"), section_error("tiny.zarr")),
        ("a table whose instance key is no column", annotates("instance_key", "nowhere"), section_error("tiny.zarr")),
        ("two tables", copied(TABLE, "tables/other"), section_error("several sets of spots", "tiny.zarr/tables")),
        (
            "two tables, one chosen",
            both(copied(TABLE, "tables/other"), setting(section=lambda s: s.section / "tables/other")),
            Works("1 of 30 spots"),
        ),
        ("two sets of circles, one annotated", copied(SPOTS, "shapes/other"), Works("1 of 30 spots")),
        (
            "circles chosen that are not there",
            setting(section=lambda s: s.section / "shapes/nothing"),
            section_error("there is no file or folder"),
        ),
        (
            "an image chosen in the place of circles",
            setting(section=lambda s: s.section / SLIDE),
            section_error("images/slide"),
        ),
        (
            "a path back out of the store",
            setting(section=lambda s: s.section / "shapes/../shapes/spots"),
            Works("1 of 30 spots"),
        ),
        ("circles' table missing", remove(f"{SPOTS}/shapes.parquet"), section_error("tiny.zarr")),
        ("circles' table cut short", truncate(f"{SPOTS}/shapes.parquet", 0.7), section_error("tiny.zarr")),
        ("circles' table is text", write(f"{SPOTS}/shapes.parquet", "no"), section_error("tiny.zarr")),
        ("circles without radius", shapes(lambda t: t.drop(columns="radius")), section_error("tiny.zarr", "radius")),
        ("circles with a radius of nan", shapes(lambda t: t.assign(radius=np.nan)), section_error("radius")),
        (
            "circles with a radius of 0",
            shapes(lambda t: t.assign(radius=0.0)),
            section_error("Radii of circles must be positive"),
        ),
        (
            "circles with a negative radius",
            shapes(lambda t: t.assign(radius=-5.0)),
            section_error("Radii of circles must be positive"),
        ),
        (
            "circles at nan",
            shapes(lambda t: t.assign(geometry=t.geometry.translate(np.nan))),
            section_error("no finite number"),
        ),
        ("circles without a place", shapes(lambda t: t.assign(geometry=None)), section_error("tiny.zarr")),
        ("circles far from the slide", shapes(lambda t: t.assign(geometry=t.geometry.translate(1e6))), ASKS),
        (
            "circles that are squares",
            shapes(lambda t: t.assign(geometry=t.geometry.buffer(5, cap_style="square"))),
            section_error("not all circles"),
        ),
        ("a circle twice", shapes(lambda t: t.set_axis([0, *range(29)], axis=0)), section_error("not unique")),
        ("circles and slide share no coordinate system", renamed_system(SPOTS, "elsewhere"), ASKS),
        (
            "the slide named, which shares none",
            both(renamed_system(SPOTS, "elsewhere"), setting(fullres="slide")),
            section_error("shares no coordinate system"),
        ),
        ("a coordinate system that is not there", setting(coordinate_system="nowhere"), section_error("nowhere")),
        ("an image that is not there", setting(fullres="nothing"), section_error("is neither")),
        (
            "the slide scaled to nothing",
            place(SLIDE, "scale", scale=[1.0, 0.0, 0.0]),
            section_error("cannot be undone"),
        ),
        (
            "the slide scaled by nan",
            place(SLIDE, "scale", scale=[1.0, float("nan"), 1.0]),
            section_error("cannot be undone", "nan"),
        ),
        ("the slide mirrored", place(SLIDE, "scale", scale=[1.0, -1.0, 1.0]), ASKS),
        (
            "the slide ten times as coarse",
            place(SLIDE, "scale", scale=[1.0, 10.0, 10.0]),
            request_error("coarser than"),
        ),
        ("circles scaled to nothing", place(SPOTS, "scale", scale=[0.0, 0.0]), section_error("cannot be undone")),
        ("circles placed by a word", place(SPOTS, "twist"), section_error("tiny.zarr")),
        (
            "no transformation at all",
            attrs(SPOTS, lambda a: a.update(coordinateTransformations=[])),
            section_error("no transformation into a coordinate system"),
        ),
        ("slide's metadata cut short", truncate(f"{SLIDE}/zarr.json", 0.4), section_error("tiny.zarr")),
        ("slide's first level missing", without(f"{SLIDE}/s0"), section_error("tiny.zarr")),
        ("slide's chunks empty", chunks(f"{SLIDE}/s0", lambda f: f.write_bytes(b"")), section_error("slide")),
        (
            "slide's chunks random",
            chunks(f"{SLIDE}/s0", lambda f: f.write_bytes(b"\xaa" * 500)),
            section_error("slide"),
        ),
        (
            "slide's chunks cut short",
            chunks(f"{SLIDE}/s0", lambda f: f.write_bytes(f.read_bytes()[: f.stat().st_size // 2])),
            section_error("slide"),
        ),
        (
            "slide's chunks missing, which zarr reads as zero",
            chunks(f"{SLIDE}/s0", lambda f: f.unlink()),
            Works("mean 0"),
        ),
        ("a second slide", copied(SLIDE, "images/other"), section_error("several images", "--fullres NAME")),
        (
            "a second slide, one named",
            both(copied(SLIDE, "images/other"), setting(fullres="slide")),
            Works("1 of 30 spots"),
        ),
        ("an image named as a result", copied(SLIDE, "images/stmdit_1"), Works("results in this store: stmdit_1")),
        (
            "a result given as the slide",
            both(copied(SLIDE, "images/stmdit_1"), setting(fullres="stmdit_1")),
            section_error("it cannot be the slide"),
        ),
        (
            "a link to the store",
            lambda s: ((s.root / "link.zarr").symlink_to(s.section), setting(section=s.root / "link.zarr")(s)),
            Works("1 of 30 spots"),
        ),
        ("images folder is a link to itself", both(link("images", "images"), plain), section_error("tiny.zarr")),
        ("a foreign file in the store", write("images/notes.txt", "hello"), Works("1 of 30 spots")),
        (
            "a store in a store",
            both(
                lambda s: shutil.copytree(s.section, s.root / "x.zarr"),
                lambda s: shutil.copytree(s.root / "x.zarr", s.section / "images/inner.zarr"),
                plain,
            ),
            section_error("tiny.zarr"),
        ),
        ("what we wrote: in order", about(name="tiny", calibration=OWN, notes=["one"]), Works("0.7 um/px by override")),
        (
            "what we wrote is a list",
            attrs("", lambda a: a.update(stmdit_section=[1, 2])),
            section_error("stmdit_section"),
        ),
        ("what we wrote is a word", attrs("", lambda a: a.update(stmdit_section="x")), section_error("stmdit_section")),
        *(
            (
                f"what we wrote: mpp {value!r}",
                about(calibration={**OWN, "mpp": value}),
                section_error("stmdit_section", "mpp"),
            )
            for value in (0, -1, True, "0.7", float("nan"), 1e12)
        ),
        ("what we wrote: no source", about(calibration={"mpp": 0.7}), section_error("stmdit_section")),
        (
            "what we wrote: an unknown source",
            about(calibration={**OWN, "source": "a dream"}),
            section_error("stmdit_section"),
        ),
        ("what we wrote: calibration is a number", about(calibration=7), section_error("stmdit_section")),
        ("what we wrote: notes are a number", about(notes=7), section_error("stmdit_section")),
        ("what we wrote: a hostile name", about(name="../../../etc/x", calibration=OWN), Works("1 of 30 spots")),
    ],
)
