"""Positions tables that are broken or odd."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import pandas as pd
from fuzz.harness import (
    MISSING,
    Scene,
    Works,
    both,
    cases,
    edit_json,
    edit_text,
    link,
    remove,
    request_error,
    section_error,
    truncate,
    write,
)

FILE = "spatial/tissue_positions.csv"
LIST = "spatial/tissue_positions_list.csv"
FACTORS = "spatial/scalefactors_json.json"
COLUMNS = ("barcode", "in_tissue", "array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres")


def table(change: Callable[[pd.DataFrame], object], **options: object) -> Callable[[Scene], object]:
    """Change the positions as a data frame, in place or by what is returned."""

    def apply(scene: Scene) -> None:
        frame = pd.read_csv(scene.section / FILE, dtype=object)
        changed = change(frame)
        (frame if changed is None else changed).to_csv(scene.section / FILE, index=False, **options)

    return apply


def cell(row: int, column: str, value: object) -> Callable[[Scene], object]:
    """Set one cell."""
    return table(lambda frame: frame.__setitem__(column, frame[column].where(frame.index != row, value)))


def whole(column: str, value: object) -> Callable[[Scene], object]:
    """Set a column."""
    return table(lambda frame: frame.__setitem__(column, value))


def _fifo(scene: Scene) -> None:
    (scene.section / FILE).unlink()
    os.mkfifo(scene.section / FILE)


def _shifted(frame: pd.DataFrame) -> None:
    for column in COLUMNS[4:]:
        frame[column] = frame[column].astype(float) + 50_000


def _scaled(frame: pd.DataFrame) -> None:
    for column in COLUMNS[4:]:
        frame[column] = frame[column].astype(float) * 5


def _jittered(frame: pd.DataFrame) -> None:
    rng = np.random.default_rng(0)
    for column in COLUMNS[4:]:
        frame[column] = frame[column].astype(float) + rng.uniform(-60, 60, len(frame))


def second(change: Callable[[pd.DataFrame], object] = lambda f: None, **options: object) -> Callable[[Scene], object]:
    """Write a list of positions for older tools beside the table."""

    def apply(scene: Scene) -> None:
        frame = pd.read_csv(scene.section / FILE)
        changed = change(frame)
        frame = frame if changed is None else changed
        frame.to_csv(scene.section / LIST, **{"index": False, "header": False, **options})

    return apply


def listed(header: str) -> Callable[[Scene], object]:
    """Put a list with such a first line in the place of the table."""

    def apply(scene: Scene) -> None:
        rows = (scene.section / FILE).read_text().split("\n", 1)[1]
        (scene.section / FILE).unlink()
        (scene.section / LIST).write_text(f"{header}\n{rows}")

    return apply


def _crowded(frame: pd.DataFrame) -> pd.DataFrame:
    """Cells in the place of spots."""
    i = np.arange(len(frame))
    return frame.assign(
        array_row=i, array_col=i % 7, pxl_row_in_fullres=300 + i // 6 * 15, pxl_col_in_fullres=300 + i % 6 * 15
    )


NOT_A_TABLE = "cannot be read as a positions table"
NO_NUMBER = "holds something that is no number"
OFF = request_error("section:", "30 of 30 spots lie off the slide image")
ASKS_MPP = request_error("section:", "--mpp")
NO_SCALE = edit_json(FACTORS, microns_per_pixel=MISSING)

CASES = cases(
    "positions",
    "outs",
    [
        ("missing", remove(FILE), section_error("holds no positions", "tissue_positions.csv")),
        ("empty file", write(FILE, ""), section_error(FILE, NOT_A_TABLE)),
        ("one newline", write(FILE, "\n"), section_error(FILE, NOT_A_TABLE)),
        ("header alone", edit_text(FILE, lambda t: t.splitlines()[0] + "\n"), section_error("no barcode", "nothing")),
        ("random bytes", write(FILE, bytes(range(256)) * 20), section_error(FILE, NOT_A_TABLE)),
        ("NUL bytes", write(FILE, b"\0" * 4096), section_error(FILE)),
        ("prose", write(FILE, "this is not a table\nat all\n"), section_error(FILE)),
        ("cut in the middle of a line", truncate(FILE, 0.53), Works("1 of 16 spots")),
        (
            "UTF-16",
            lambda s: (s.section / FILE).write_bytes((s.section / FILE).read_text().encode("utf-16")),
            section_error(FILE, NOT_A_TABLE),
        ),
        (
            "UTF-8 with a byte order mark",
            lambda s: (s.section / FILE).write_text((s.section / FILE).read_text(), encoding="utf-8-sig"),
            Works("1 of 30 spots"),
        ),
        ("Windows line ends", edit_text(FILE, lambda t: t.replace("\n", "\r\n")), Works("1 of 30 spots")),
        ("semicolons", edit_text(FILE, lambda t: t.replace(",", ";")), section_error("lacks the columns")),
        ("tabs", edit_text(FILE, lambda t: t.replace(",", "\t")), section_error("lacks the columns")),
        ("no header, as version 1 has it", edit_text(FILE, lambda t: t.split("\n", 1)[1]), Works("1 of 30 spots")),
        (
            "header in capitals",
            edit_text(FILE, lambda t: t.replace("barcode", "Barcode")),
            section_error(FILE, "lacks the columns barcode"),
        ),
        (
            "header with other names",
            edit_text(FILE, lambda t: t.replace("pxl_row_in_fullres", "y")),
            section_error("lacks the columns pxl_row_in_fullres"),
        ),
        *((f"without {c}", table(lambda f, c=c: f.drop(columns=c)), section_error(c)) for c in COLUMNS),
        ("columns in another order", table(lambda f: f[["barcode", *COLUMNS[:0:-1]]]), Works("1 of 30 spots")),
        (
            "rows and columns of pixels swapped, which a square slide cannot show",
            table(
                lambda f: f.assign(
                    pxl_row_in_fullres=f["pxl_col_in_fullres"], pxl_col_in_fullres=f["pxl_row_in_fullres"]
                )
            ),
            Works("1 of 30 spots"),
        ),
        ("one more column", whole("colour", "red"), Works("1 of 30 spots")),
        ("a column twice", table(lambda f: pd.concat([f, f[["array_row"]]], axis=1)), Works("1 of 30 spots")),
        ("a barcode twice", cell(1, "barcode", "SPOT00-1"), section_error("lists the barcode", "SPOT00-1")),
        ("every line twice", table(lambda f: pd.concat([f, f])), section_error("lists the barcode")),
        ("barcodes all empty", whole("barcode", ""), section_error(FILE, "barcode")),
        ("one barcode empty", cell(3, "barcode", ""), section_error(FILE, "barcode")),
        (
            "barcodes with blanks around",
            table(lambda f: f.__setitem__("barcode", " " + f["barcode"] + " ")),
            section_error("no barcode", "' SPOT00-1 '"),
        ),
        (
            "barcodes without suffix",
            table(lambda f: f.__setitem__("barcode", f["barcode"].str[:-2])),
            section_error("no barcode", "'SPOT00'"),
        ),
        (
            "barcodes are numbers",
            table(lambda f: f.__setitem__("barcode", range(len(f)))),
            section_error("no barcode", "'0'"),
        ),
        ("a barcode that is a path", cell(2, "barcode", "../../x"), Works("1 of 29 spots")),
        ("a barcode of a hundred thousand letters", cell(2, "barcode", "A" * 100_000), Works("1 of 29 spots")),
        ("a barcode in quotes", edit_text(FILE, lambda t: t.replace("SPOT04-1", '"SPOT04-1"')), Works("1 of 30 spots")),
        ("an open quote", edit_text(FILE, lambda t: t.replace("SPOT04-1", '"SPOT04-1')), section_error(FILE)),
        *(
            (f"{c} is {v}", cell(4, c, v), section_error(FILE))
            for c in COLUMNS[1:4]
            for v in ("x", "", "nan", "inf", "1.5", "99999999999999999999")
        ),
        ("a position is text", cell(4, "pxl_row_in_fullres", "x"), section_error(FILE, NO_NUMBER)),
        *(
            (f"a position is {v}", cell(4, "pxl_col_in_fullres", v), section_error("no finite number", "SPOT04-1"))
            for v in ("", "nan", "inf", "-inf", "1e400")
        ),
        (
            "a position off tissue is nan",
            table(
                lambda f: f.assign(in_tissue=[0] + [1] * 29, pxl_row_in_fullres=["nan", *f["pxl_row_in_fullres"][1:]])
            ),
            Works(["1 of 29 spots", "0.7 um/px by scalefactors"]),
        ),
        (
            "a position off tissue is nan and the scale is not stated",
            both(
                NO_SCALE,
                table(
                    lambda f: f.assign(
                        in_tissue=[0] + [1] * 29, pxl_row_in_fullres=["nan", *f["pxl_row_in_fullres"][1:]]
                    )
                ),
            ),
            Works("0.7 um/px by lattice"),
        ),
        ("a position of 1e300", cell(4, "pxl_col_in_fullres", "1e300"), section_error("SPOT04-1", "1e+300")),
        ("one position is negative", cell(4, "pxl_col_in_fullres", "-200"), Works("1 spot lies off the slide image")),
        (
            "one position is off the slide",
            cell(4, "pxl_col_in_fullres", "5000"),
            Works("1 spot lies off the slide image"),
        ),
        ("all positions are off the slide", table(_shifted), OFF),
        (
            "positions in pixels of another image",
            table(_scaled),
            request_error("section:", "29 of 30 spots lie off the slide image"),
        ),
        ("all positions negative", table(lambda f: f.assign(**{c: "-" + f[c] for c in COLUMNS[4:]})), OFF),
        (
            "all positions the same",
            both(whole("pxl_row_in_fullres", 100), whole("pxl_col_in_fullres", 100)),
            section_error("lie 0 um from each other", "bins or cells"),
        ),
        (
            "all positions the same and no scale",
            both(NO_SCALE, whole("pxl_row_in_fullres", 100), whole("pxl_col_in_fullres", 100)),
            ASKS_MPP,
        ),
        ("positions on a line and no scale", both(NO_SCALE, whole("pxl_row_in_fullres", 100)), ASKS_MPP),
        ("positions off the lattice and no scale", both(NO_SCALE, table(_jittered)), ASKS_MPP),
        (
            "array indices swapped and no scale",
            both(NO_SCALE, table(lambda f: f.assign(array_row=f["array_col"], array_col=f["array_row"]))),
            ASKS_MPP,
        ),
        ("array indices all zero and no scale", both(NO_SCALE, whole("array_row", 0), whole("array_col", 0)), ASKS_MPP),
        (
            "array indices negative",
            both(
                NO_SCALE,
                table(
                    lambda f: f.assign(
                        array_row=(f["array_row"].astype(int) - 100), array_col=(f["array_col"].astype(int) - 100)
                    )
                ),
            ),
            Works("0.7 um/px by lattice"),
        ),
        (
            "array indices huge",
            both(NO_SCALE, whole("array_row", 2**62), whole("array_col", 2**62)),
            section_error(FILE, "array_row", "4611686018427387904"),
        ),
        ("in_tissue is 0 everywhere", whole("in_tissue", 0), section_error("lies on tissue")),
        ("in_tissue is 0 for all but one", table(lambda f: f.assign(in_tissue=[1] + [0] * 29)), Works("1 of 1 spots")),
        ("in_tissue is 2", whole("in_tissue", 2), section_error(FILE, "in_tissue")),
        ("in_tissue is True", whole("in_tissue", True), Works("1 of 30 spots")),
        ("in_tissue is -1", whole("in_tissue", -1), section_error(FILE, "in_tissue")),
        ("whole numbers written as 1.0", whole("in_tissue", "1.0"), Works("1 of 30 spots")),
        ("a second file that agrees", second(), Works("1 of 30 spots")),
        ("a second file with a header that agrees", second(header=True), Works("1 of 30 spots")),
        ("a second file of rounded positions", second(lambda f: f.round()), Works("1 of 30 spots")),
        ("a second file of half the spots, which agrees", second(lambda f: f[::2]), Works("1 of 30 spots")),
        ("a second file in another order", second(lambda f: f[::-1]), Works("1 of 30 spots")),
        ("a second file that is empty", write(LIST, ""), Works("1 of 30 spots")),
        ("a second file that is prose", write(LIST, "see the other file"), Works("1 of 30 spots")),
        (
            "a second file 200 px away",
            second(lambda f: f.assign(pxl_row_in_fullres=f["pxl_row_in_fullres"] + 200)),
            section_error("tissue_positions.csv and tissue_positions_list.csv", "30 of 30 spots", "200 px"),
        ),
        (
            "a second file with one spot elsewhere",
            second(lambda f: f.assign(pxl_col_in_fullres=f["pxl_col_in_fullres"].where(f.index != 3, 1.0))),
            section_error("contradict each other", "1 of 30 spots"),
        ),
        (
            "a second file with other spots on tissue",
            second(lambda f: f.assign(in_tissue=[0] * 10 + [1] * 20)),
            section_error("contradict each other", "10 of 30 spots"),
        ),
        (
            "a second file with array indices swapped",
            second(lambda f: f.assign(array_row=f["array_col"], array_col=f["array_row"])),
            section_error("contradict each other"),
        ),
        (
            "a second file of another slide's barcodes",
            second(lambda f: f.assign(barcode="X" + f["barcode"])),
            section_error("contradict each other", "no spot is in both"),
        ),
        ("numbers above the list, as pandas writes them", listed("0,1,2,3,4,5"), Works("1 of 30 spots")),
        (
            "numbers above the list, and no scale",
            both(NO_SCALE, listed("0,1,2,3,4,5")),
            Works(["1 of 30 spots", "0.7 um/px by lattice"]),
        ),
        ("numbers in quotes above the list", listed('"0","1","2","3","4","5"'), Works("1 of 30 spots")),
        ("numbers and an index above the list", listed(",0,1,2,3,4,5"), section_error(LIST, NOT_A_TABLE)),
        ("R's names above the list", listed("V1,V2,V3,V4,V5,V6"), section_error(LIST, "V5")),
        (
            "places of the array there twice",
            table(lambda f: f.assign(array_row=[*f["array_row"][:15]] * 2, array_col=[*f["array_col"][:15]] * 2)),
            section_error("15 of 15 places of the array", "several samples"),
        ),
        ("cells in the place of spots", table(_crowded), section_error("lie 10.5 um from each other", "bins or cells")),
        ("a million spaces", write(FILE, " " * 1_000_000), section_error(FILE)),
        ("a hundred thousand columns", write(FILE, "barcode," + "a," * 100_000), section_error(FILE)),
        (
            "a folder of that name",
            lambda s: (remove(FILE)(s), (s.section / FILE).mkdir()),
            section_error("holds no positions"),
        ),
        ("a link to itself", link(FILE, "tissue_positions.csv"), section_error("holds no positions")),
        ("a link to nothing", link(FILE, "nowhere.csv"), section_error("holds no positions")),
        ("a link to a device", link(FILE, "/dev/zero"), section_error("holds no positions")),
        ("a pipe that nobody writes", _fifo, section_error("holds no positions")),
        (
            "a parquet table in a folder that is no HD",
            lambda s: (
                pd.read_csv(s.section / FILE).to_parquet(s.section / "spatial/tissue_positions.parquet"),
                (s.section / FILE).unlink(),
            ),
            Works("1 of 30 spots"),
        ),
        ("the whole spatial folder is missing", remove("spatial"), section_error("no tissue section")),
        (
            "the spatial folder is a file",
            lambda s: (remove("spatial")(s), (s.section / "spatial").write_text("")),
            section_error("no tissue section"),
        ),
        ("the spatial folder is a link to itself", link("spatial", "spatial"), section_error("no tissue section")),
    ],
)
