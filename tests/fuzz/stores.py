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


def element(path: str, made: Callable[[Any], Any]) -> Callable[[Scene], object]:
    """Write an element of the table with anndata; gets the counts, (30, 20) sparse."""

    def apply(scene: Scene) -> None:
        import anndata

        group = zarr.open_group(scene.section, mode="r+", use_consolidated=False)
        anndata.io.write_elem(group, f"{TABLE}/{path}", made(anndata.io.read_elem(group[f"{TABLE}/X"])))
        plain(scene)

    return apply


def factors(**values: Any) -> Callable[[Scene], object]:
    """Let the table keep scale factors as scanpy does."""
    return element("uns/spatial", lambda x: {"lib": {"scalefactors": values}})


def column(name: str, made: Callable[[], Any]) -> Callable[[Scene], object]:
    """Add a column to the table's rows."""
    return both(
        attrs(f"{TABLE}/obs", lambda a: a["column-order"].append(name)),
        element(f"obs/{name}", lambda x: np.array(made())),
    )


def rounded(x: Any) -> Any:
    """Counts brought to a million a spot."""
    return x.multiply(1e6 / x.sum(axis=1)).rint().astype(np.float32).tocsr()


def old(*changes: Callable[[Path], object]) -> Callable[[Scene], object]:
    """Write the store as SpatialData before 0.3 did, in zarr 2, and change that."""

    def apply(scene: Scene) -> None:
        import spatialdata
        from spatialdata._io.format import SpatialDataContainerFormatV01

        made = scene.root / "old.zarr"
        spatialdata.read_zarr(scene.section).write(made, sdata_formats=SpatialDataContainerFormatV01())
        for change in changes:
            change(made)
        scene.section = made

    return apply


def bare(store: Path) -> None:
    """Take the attributes of the root and what is consolidated, which 0.2 did not write."""
    for name in (".zattrs", ".zmetadata", "zmetadata"):
        (store / name).unlink(missing_ok=True)


def pickled(store: Path) -> None:
    file = store / f"{TABLE}/obs/_index/.zarray"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"filters": [{"id": "pickle", "protocol": 5}]}))


def consolidated_pickle(store: Path) -> None:
    node = {"dtype": "|O", "filters": [{"id": "pickle"}], "shape": [30], "chunks": [30]}
    (store / ".zmetadata").write_text(json.dumps({"metadata": {f"{TABLE}/obs/_index/.zarray": node}}))


def claims(path: str, shape: list[int]) -> Callable[[Scene], object]:
    """Let the metadata of an array claim another shape."""

    def apply(scene: Scene) -> None:
        file = scene.section / path / "zarr.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"shape": shape}))
        plain(scene)

    return apply


def slide_file(scene: Scene) -> None:
    """Give the slide as a file, which states no scale."""
    from PIL import Image
    from tiny import analytic_image

    Image.fromarray(analytic_image()).save(scene.root / "slide.png")
    scene.fullres = scene.root / "slide.png"


def in_microns(t: Any) -> Any:
    return t.assign(geometry=t.geometry.affine_transform([0.7, 0, 0, 0.7, 0, 0]))


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
            Works("1 of 30 spots"),
        ),
        (
            "circles of which some are squares",
            shapes(
                lambda t: t.assign(geometry=t.geometry.where(t.index < 20, t.geometry.buffer(5, cap_style="square")))
            ),
            section_error("not all circles"),
        ),
        (
            "squares of which some are circles",
            shapes(
                lambda t: t.assign(geometry=t.geometry.where(t.index > 20, t.geometry.buffer(5, cap_style="square")))
            ),
            section_error("not all polygons"),
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
        (
            "the slide mirrored and moved back, which its pixels are taken for",
            place(SLIDE, "affine", affine=[[1, 0, 0, 0], [0, -1, 0, 860], [0, 0, 1, 0]]),
            Works(["1 of 30 spots", "full-resolution pixels are those of image slide"]),
        ),
        (
            "the slide turned by a right angle",
            place(SLIDE, "affine", affine=[[1, 0, 0, 0], [0, 0, -1, 860], [0, 1, 0, 0]]),
            Works(["1 of 30 spots", "full-resolution pixels are those of image slide"]),
        ),
        (
            "the slide stretched by 1.3",
            place(SLIDE, "scale", scale=[1.0, 1.3, 1.0]),
            section_error("image slide is stretched", "1.3 x 1 of their units"),
        ),
        (
            "the slide stretched by a fiftieth",
            place(SLIDE, "scale", scale=[1.0, 1.0, 1.02]),
            section_error("image slide is stretched", "1.02 x 1"),
        ),
        (
            "the slide stretched by a two-hundredth",
            place(SLIDE, "scale", scale=[1.0, 1.0, 1.005]),
            Works("1 of 30 spots"),
        ),
        (
            "the slide sheared",
            place(SLIDE, "affine", affine=[[1, 0, 0, 0], [0, 1, 0.3, 0], [0, 0, 1, 0]]),
            section_error("stretched or sheared", "0.3"),
        ),
        (
            "the slide stretched and turned",
            place(SLIDE, "affine", affine=[[1, 0, 0, 0], [0, 0, -1.3, 1100], [0, 1, 0, 0]]),
            section_error("stretched or sheared"),
        ),
        (
            "circles and slide share no coordinate system, and both are named",
            renamed_system(SPOTS, "elsewhere"),
            request_error(
                "image slide of the store shares no coordinate system",
                "it is in tiny, they are in elsewhere",
                "set_transformation",
            ),
        ),
        (
            "no image, and a file whose scale nobody states",
            both(without("images"), slide_file),
            section_error("their unit is 0.7 um, and the file states no scale", "--mpp"),
        ),
        (
            "no image, and a file whose scale is given",
            both(without("images"), slide_file, setting(mpp=0.7)),
            Works(["1 of 30 spots", "0.7 um/px by override"]),
        ),
        (
            "circles in microns, no image, and a file whose scale is given",
            both(shapes(in_microns), without("images"), slide_file, setting(mpp=0.7)),
            section_error("not stored in its pixels", "their unit is 1 um", "0.7 um (as given)"),
        ),
        (
            "no image, no lattice, and a file",
            both(without("images"), array(f"{TABLE}/obs/array_row", lambda v: v * 0), slide_file, setting(mpp=0.7)),
            section_error("their unit is unknown", "add the slide to the store"),
        ),
        (
            "no image, no lattice, a file, and a spot's diameter in pixels",
            both(
                without("images"),
                array(f"{TABLE}/obs/array_row", lambda v: v * 0),
                factors(spot_diameter_fullres=np.array([55 / 0.7])),
                slide_file,
                setting(mpp=0.7),
            ),
            Works("1 of 30 spots"),
        ),
        *(
            (
                f"microns per pixel kept as {value!r}",
                factors(microns_per_pixel=value),
                Works("0.7 um/px by scalefactors"),
            )
            for value in (0.7, np.array([0.7]), np.float32(0.7))
        ),
        *(
            (f"microns per pixel kept as {value!r}", factors(microns_per_pixel=value), Works("0.7 um/px by lattice"))
            for value in (
                "0.7",
                "unknown",
                np.array([0.7, 0.7]),
                np.array(["0.7"]),
                {"y": 0.7},
                True,
                -0.7,
                np.nan,
                1e300,
                10**12,
            )
        ),
        (
            "microns per pixel against the lattice",
            factors(microns_per_pixel=0.35),
            request_error("states 0.35 microns_per_pixel", "the spots' lattice gives 0.7"),
        ),
        (
            "microns per pixel against the lattice, and the right one given",
            both(factors(microns_per_pixel=0.35), setting(mpp=0.7)),
            Works("0.7 um/px by override"),
        ),
        ("spatial of uns is a word", element("uns/spatial", lambda x: "none"), Works("0.7 um/px by lattice")),
        ("spatial of uns is a list", element("uns/spatial", lambda x: np.arange(3)), Works("0.7 um/px by lattice")),
        (
            "scale factors are a number",
            element("uns/spatial", lambda x: {"lib": {"scalefactors": 7}}),
            Works("by lattice"),
        ),
        (
            "two libraries in a column",
            column("library_id", lambda: ["a"] * 15 + ["b"] * 15),
            section_error("library_id: a, b"),
        ),
        ("one library in a column", column("library_id", lambda: ["a"] * 30), Works("1 of 30 spots")),
        ("libraries by number", column("library_id", lambda: [0] * 15 + [1] * 15), section_error("several libraries")),
        (
            "places of the array there twice",
            both(
                array(f"{TABLE}/obs/array_row", lambda v: np.tile(v[:15], 2)),
                array(f"{TABLE}/obs/array_col", lambda v: np.tile(v[:15], 2)),
            ),
            section_error("15 of 15 places of the array", "keep the rows of one"),
        ),
        (
            "one barcode in two samples",
            array(
                f"{TABLE}/obs/_index",
                lambda v: np.array(
                    [f"{i // 15}_AAACAAGTATCTC{'ACGT'[i % 15 % 4]}{'ACGT'[i % 15 // 4]}A" for i in range(30)]
                ),
            ),
            section_error("have one barcode"),
        ),
        (
            "rows named as bins",
            array(f"{TABLE}/obs/_index", lambda v: np.array([f"s_002um_00001_{i:05d}-1" for i in range(30)])),
            section_error("bins cannot be brought together to spots without a scale", "--mpp"),
        ),
        (
            "circles as near as cells",
            both(
                shapes(lambda t: t.assign(geometry=t.geometry.affine_transform([0.1, 0, 0, 0.1, 400, 400]))),
                array(f"{TABLE}/obs/array_row", lambda v: v * 0),
                setting(mpp=0.7),
            ),
            section_error("lie 10 um from each other", "bins or cells"),
        ),
        (
            "X rounded to a million and a layer of counts",
            both(element("layers/counts", lambda x: x), element("X", rounded)),
            Works("counts are those of the table's layer 'counts'"),
        ),
        ("a layer of counts that X repeats", element("layers/counts", lambda x: x), Works("1 of 30 spots")),
        (
            "a layer of counts that are fractions",
            element("layers/counts", lambda x: x * 0.3),
            Works("the table's layer 'counts' holds fractional values; X is taken"),
        ),
        (
            "a layer of counts that are nan, and X fractions",
            both(element("layers/counts", lambda x: x * np.nan), element("X", lambda x: x * 0.3)),
            section_error("does not hold counts"),
        ),
        (
            "a layer of counts of another shape",
            element("layers/counts", lambda x: x[:, :5]),
            section_error("tiny.zarr"),
        ),
        (
            "X fractions and counts in another layer",
            both(element("layers/umi", lambda x: x), element("X", lambda x: x * 0.3)),
            section_error("does not hold counts", "whole numbers are in umi"),
        ),
        ("X of 8 bits", element("X", lambda x: x.minimum(100).astype(np.uint8)), Works("1 of 30 spots")),
        ("X of logical values", element("X", lambda x: x > 0), section_error("does not hold counts")),
        ("X dense", element("X", lambda x: x.toarray()), Works("1 of 30 spots")),
        ("X of 2^31", element("X", lambda x: x.astype(np.int64) * 2**31), section_error("does not hold counts")),
        ("counts that claim terabytes", claims(f"{TABLE}/X/data", [2**50]), section_error("tiny.zarr")),
        ("before 0.3, with a root that says nothing", old(bare), Works(["1 of 30 spots", "0.7 um/px by lattice"])),
        ("before 0.3, with what later versions added", old(), Works("1 of 30 spots")),
        ("before 0.3, without shapes", old(bare, lambda s: shutil.rmtree(s / "shapes")), NONE),
        (
            "before 0.3, without any attribute of an element",
            old(bare, lambda s: [f.write_text("{}") for k in ("shapes", "tables") for f in s.glob(f"{k}/*/.zattrs")]),
            section_error("no SpatialData"),
        ),
        ("before 0.3, with names that are pickled", old(bare, pickled), section_error("pickled", "Nothing was run")),
        (
            "before 0.3, with names that are pickled by consolidated metadata",
            old(bare, consolidated_pickle),
            section_error("pickled", "Nothing was run"),
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
