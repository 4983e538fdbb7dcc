"""Plain slides and tables predicted for them that are broken or odd; the slide has 1600 x 1600 pixels and states 0.5 um/px."""

from __future__ import annotations

import functools
import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import tifffile
from fuzz.harness import Refused, Scene, Works, asking, both, cases, request_error, section_error
from PIL import Image
from slides import SLIDE_SIDE, on_tissue, predicted_counts, tissue_picture, write_aperio, write_pyramid, write_table
from tiny import TINY_GENES

CM = {"resolution": (20000, 20000), "resolutionunit": "CENTIMETER"}
GRID = np.stack(np.meshgrid(np.arange(150, 1500, 200), np.arange(150, 1500, 200), indexing="ij"), -1).reshape(-1, 2)
PLACES = (GRID[on_tissue(GRID)]).astype(np.float64)
"""(n, 2) places (y, x) on the tissue."""


@functools.lru_cache(maxsize=1)
def made() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return write_pyramid(Path(folder) / "slide.tif", **CM).read_bytes()


@functools.lru_cache(maxsize=1)
def picture() -> np.ndarray:
    return tissue_picture()


def slide(name: str = "slide.tif", after: Callable[[bytes], bytes] = lambda data: data, **options: Any):
    """Open the pyramid, changed, with options."""

    def apply(scene: Scene) -> None:
        scene.section = scene.root / name
        scene.section.write_bytes(after(made()))
        scene.options.update(options)

    return apply


def saved(name: str, array: Callable[[], np.ndarray], mpp: Any = 0.5, **options: Any):
    """Open another picture."""

    def apply(scene: Scene) -> None:
        scene.section, scene.mpp = scene.root / name, mpp
        scene.options.update(options)
        if name.endswith((".png", ".jpg")):
            Image.fromarray(array()).save(scene.section)
        else:
            memory = io.BytesIO()
            tifffile.imwrite(memory, array())
            scene.section.write_bytes(memory.getvalue())

    return apply


def aperio(description: str):
    def apply(scene: Scene) -> None:
        scene.section = write_aperio(scene.root / "slide.svs", picture(), description)

    return apply


def contradicting(about: str = "Aperio Image Library v12|MPP = 0.25", **options: Any):
    """A slide whose description and resolution state different scales."""

    def apply(scene: Scene) -> None:
        scene.section = scene.root / "slide.svs"
        scene.options.update(options)
        tiled = {"tile": (256, 256), "photometric": "rgb", "description": about, "metadata": None}
        tifffile.imwrite(scene.section, picture(), **tiled, **CM)

    return apply


def pages(*arrays: Callable[[], np.ndarray], name: str = "slide.tif"):
    """A file of several pages that all state 0.5 um/px."""

    def apply(scene: Scene) -> None:
        scene.section = scene.root / name
        with tifffile.TiffWriter(scene.section) as file:
            for array in arrays:
                file.write(array(), photometric="rgb", metadata=None, tile=(256, 256), compression="zlib", **CM)

    return apply


def table(values: Any = None, yx: Any = None, after: Callable[[Path], object] | None = None, **changes: Any):
    """Give a predicted table; ``after`` breaks its file."""

    def apply(scene: Scene) -> None:
        options = changes.get("options", {})
        slide(**options)(scene)
        file = write_table(scene.root / "mine.h5ad", PLACES if yx is None else yx, values, **changes)
        if after is not None:
            after(file)
        scene.options["predicted_expression"] = file

    return apply


def inside(change: Callable[[h5py.File], object]) -> Callable[[Path], object]:
    """Change the HDF5 of a table."""

    def apply(file: Path) -> None:
        with h5py.File(file, "r+") as root:
            change(root)

    return apply


def replaced(name: str, **dataset: Any) -> Callable[[Path], object]:
    def change(root: h5py.File) -> None:
        attrs = dict(root[name].attrs)
        del root[name]
        root.create_dataset(name, **dataset).attrs.update(attrs)

    return inside(change)


def with_value(value: float) -> np.ndarray:
    values = np.log1p(predicted_counts(len(PLACES)))
    values[1, 2] = value
    return values


def moved(row: int, y: float, x: float) -> np.ndarray:
    places = PLACES.copy()
    places[row] = y, x
    return places


N = len(PLACES)
COUNTS = predicted_counts(N)
SCALE, POSITIONS = Refused("ScaleError", "--mpp"), "obsm['spatial']"
MEANT = "(x, y) in pixels of the full-resolution slide"
NULL = "no measured expression was used"
WORKS = Works(["1 of", NULL])
DAMAGED = section_error("mine.h5ad cannot be read as a predicted table")

CASES = [
    *cases(
        "slides",
        "nothing",
        [
            ("as it is", slide(), Works(["0.5 um/px by image", NULL, "virtual grid"])),
            ("a suffix in capitals", slide("SLIDE.TIF"), WORKS),
            ("a name with blanks and accents", slide("lame é (2).tif"), WORKS),
            ("empty", slide(after=lambda d: b""), section_error("slide.tif cannot be read as TIFF")),
            ("cut in the header", slide(after=lambda d: d[:6]), section_error("slide.tif")),
            ("cut to a half", slide(after=lambda d: d[: len(d) // 2]), section_error("slide.tif")),
            ("text named .svs", slide("x.svs", lambda d: b"a slide"), section_error("cannot be read as TIFF")),
            ("a PNG without a scale", saved("slide.png", picture, None), SCALE),
            ("a JPEG without a scale", saved("slide.jpg", picture, None), SCALE),
            ("a JPEG with a scale given", saved("slide.jpg", picture), WORKS),
            ("a TIFF without a scale", saved("slide.tif", picture, None), SCALE),
            ("grey", saved("slide.png", lambda: picture()[..., 0]), section_error("8-bit colour image")),
            ("16 bits", saved("slide.tif", lambda: picture().astype(np.uint16)), section_error("8-bit colour image")),
            (
                "one pixel",
                saved("slide.png", lambda: picture()[800:801, 800:801]),
                section_error("no spot of the grid"),
            ),
            ("black", saved("slide.png", lambda: np.zeros((600, 600, 3), np.uint8)), Works("shows no glass")),
            (
                "white",
                saved("slide.png", lambda: np.full((600, 600, 3), 255, np.uint8)),
                section_error("no spot of the grid lies on tissue", "tissue_fraction=0"),
            ),
            (
                "white, and no tissue looked for",
                saved("slide.png", lambda: np.full((600, 600, 3), 255, np.uint8), tissue_fraction=0),
                WORKS,
            ),
            ("too coarse", saved("slide.png", picture, 3.0), request_error("coarser", "finer slide image")),
            ("mpp of 0", saved("slide.png", picture, 0), section_error("mpp is 0")),
            ("mpp of nan", saved("slide.png", picture, float("nan")), section_error("mpp is nan")),
            ("mpp of 500", saved("slide.png", picture, 500.0), section_error("mpp is 500")),
            ("Aperio without MPP", aperio("Aperio Image Library v12|AppMag = 20"), SCALE),
            (
                "Aperio, MPP of 0",
                aperio("Aperio Image Library v12|MPP = 0"),
                Refused("ScaleError", "no pixel of a slide"),
            ),
            ("Aperio, MPP of text", aperio("Aperio Image Library v12|MPP = fine"), SCALE),
            (
                "Aperio, MPP of nan",
                aperio("Aperio Image Library v12|MPP = nan"),
                Refused("ScaleError", "no pixel of a slide"),
            ),
            (
                "Aperio, MPP of before it was made smaller",
                contradicting(),
                Refused(
                    "ScaleError", ["contradict", "MPP of the Aperio description gives 0.25", "gives 0.5 um", "--mpp"]
                ),
            ),
            (
                "Aperio, MPP of before it was made smaller, and the scale given",
                lambda s: (contradicting()(s), setattr(s, "mpp", 0.5)),
                Works("0.5 um/px by override"),
            ),
            ("Aperio, MPP with fewer digits", contradicting("Aperio Image Library v12|MPP = 0.503"), WORKS),
            ("a thumbnail before the slide", pages(lambda: picture()[::8, ::8], picture), WORKS),
            ("a qptiff with coarser pages", pages(picture, lambda: picture()[::2, ::2], name="slide.qptiff"), WORKS),
            (
                "two slides in one file",
                pages(picture, lambda: picture()[:1500]),
                section_error("several images (1600 x 1600, 1500 x 1600 pixels)"),
            ),
            (
                "a Leica scan by its name alone",
                slide("slide.scn"),
                WORKS,
            ),
            *(
                (f"pitch of {pitch!r}", slide(grid_pitch=pitch), section_error("grid_pitch is"))
                for pitch in (0, -100.0, float("nan"), float("inf"), 1e9, "100")
            ),
            ("a pitch beyond the slide", slide(grid_pitch=9000.0), section_error("no spot of the grid")),
            *(
                (f"tissue fraction of {share!r}", slide(tissue_fraction=share), section_error("tissue_fraction is"))
                for share in (-0.1, 1.1, float("nan"), "half")
            ),
            ("units without a table", slide(predicted_units="counts"), section_error("without a predicted table")),
            ("expression asked for", both(slide(), asking(expression="own")), request_error("use null")),
            ("shuffled", both(slide(), asking(expression="shuffled")), request_error("'shuffled'", "plain slide")),
            (
                "an edit",
                both(slide(), asking(edits=[{"operation": "knock_out", "genes": ["ERBB2"]}])),
                request_error("no expression to edit", "--predicted-expression"),
            ),
            (
                "a spot of a Visium slide",
                both(slide(), asking(region={"kind": "spots", "ids": ["AAAC-1"]})),
                request_error("not in this section", "grid_"),
            ),
        ],
    ),
    *cases(
        "predicted tables",
        "nothing",
        [
            ("as it is", table(), Works([f"1 of {N} spots", "mine.h5ad", "log1p", NULL])),
            ("matched to a grid", table(options={"grid_pitch": 100.0}), Works("of the grid's")),
            ("missing", slide(predicted_expression="nowhere.h5ad"), section_error("there is no file nowhere.h5ad")),
            ("a number", slide(predicted_expression=7), section_error("expected a path")),
            ("a name with a NUL", slide(predicted_expression="a\0.h5ad"), section_error("predicted table")),
            (
                "the slide itself",
                lambda s: slide(predicted_expression=s.root / "slide.tif")(s),
                section_error("slide.tif cannot be read"),
            ),
            ("empty file", table(after=lambda f: f.write_bytes(b"")), DAMAGED),
            ("cut to a half", table(after=lambda f: f.write_bytes(f.read_bytes()[: f.stat().st_size // 2])), DAMAGED),
            ("no X", table(after=inside(lambda r: r.__delitem__("X"))), section_error("lacks X")),
            ("no var", table(after=inside(lambda r: r.__delitem__("var"))), section_error("lacks var")),
            ("no positions", table(spatial=False), section_error("no positions", POSITIONS)),
            (
                "positions of three numbers",
                table(after=replaced("obsm/spatial", data=np.zeros((N, 3)))),
                section_error(POSITIONS, "(27, 3)" if N == 27 else f"({N}, 3)"),
            ),
            (
                "positions of fewer rows",
                table(after=replaced("obsm/spatial", data=np.zeros((N - 1, 2)))),
                section_error(POSITIONS),
            ),
            ("positions of text", table(after=replaced("obsm/spatial", data=np.full((N, 2), b"x"))), DAMAGED),
            ("a position of nan", table(yx=moved(0, np.nan, 5)), section_error("no finite number", "row0")),
            ("a position of inf", table(yx=moved(0, 5, np.inf)), section_error("no finite number")),
            ("a position of a billion", table(yx=moved(0, 1e9, 5)), section_error("farther than any slide")),
            ("one row off the slide", table(yx=moved(0, -50, 5)), Works("1 row lies off the slide and left out")),
            ("all rows off the slide", table(yx=PLACES + SLIDE_SIDE), section_error("lie off the slide", MEANT)),
            ("positions in microns of a finer scan", table(yx=PLACES / 8), section_error("off the tissue", MEANT)),
            (
                "two rows at one place",
                table(yx=moved(0, *PLACES[1])),
                Works("1 row has the position of an earlier one"),
            ),
            (
                "one name twice",
                table(names=["a", "a", *(f"r{i}" for i in range(2, N))]),
                section_error("lists the barcode a twice"),
            ),
            ("a value of nan", table(with_value(np.nan)), section_error("1 values that are no finite numbers")),
            ("a value of inf", table(with_value(np.inf)), section_error("no finite numbers")),
            ("a value below zero", table(with_value(-0.5)), section_error("negative values", "z-scores")),
            (
                "z-scores",
                table(np.random.default_rng(0).normal(size=(N, 20)).astype(np.float32)),
                section_error("negative"),
            ),
            (
                "fractions, and no units",
                table(COUNTS, uns={}),
                section_error("does not state its units", "--predicted-units"),
            ),
            (
                "fractions, said to be counts",
                table(COUNTS, uns={}, options={"predicted_units": "counts"}),
                Works("genes, counts"),
            ),
            (
                "fractions, said to be log1p",
                table(COUNTS / 4, uns={}, options={"predicted_units": "log1p"}),
                Works("log1p"),
            ),
            (
                "units that are none",
                table(options={"predicted_units": "cpm"}),
                section_error("predicted_units is 'cpm'"),
            ),
            (
                "logarithms said to be counts",
                table(options={"predicted_units": "counts"}),
                section_error("remove the one that is wrong"),
            ),
            (
                "counts with the mark of logarithms",
                table(COUNTS * 1000 + 0.5),
                section_error("no logarithms of counts"),
            ),
            ("whole counts", table(np.rint(COUNTS), uns={}), Works("genes, counts")),
            ("counts beyond all use", table(np.rint(COUNTS) * 1e12, uns={}), section_error("no spot has so many")),
            ("all zero", table(np.zeros((N, 20), np.float32), uns={}), request_error("has a single count")),
            (
                "X of text",
                table(after=replaced("X", data=np.full((N, 20), b"x"))),
                section_error("where numbers are expected"),
            ),
            (
                "X of another shape",
                table(after=replaced("X", data=np.zeros((N, 3)))),
                section_error("but obs and var say"),
            ),
            (
                "X of a terabyte that is not there",
                table(after=replaced("X", shape=(2**20, 2**18), dtype="f4", chunks=(1024, 64))),
                section_error("but obs and var say"),
            ),
            (
                "genes of a mouse",
                table(genes=[g.title() for g in TINY_GENES]),
                request_error("shares 0 of the 20 genes"),
            ),
            (
                "one gene",
                table(np.rint(COUNTS[:, :1]), genes=["ERBB2"], uns={}),
                request_error("shares 1 of the 20 genes"),
            ),
        ],
    ),
    *cases(
        "slides",
        "outs",
        [
            (
                "a pitch for a section",
                lambda s: s.options.update(grid_pitch=100.0),
                section_error("spots of its own: grid_pitch"),
            ),
            (
                "a predicted table for a section",
                lambda s: s.options.update(predicted_expression="x.h5ad"),
                section_error("spots of its own: predicted_expression"),
            ),
        ],
    ),
]
