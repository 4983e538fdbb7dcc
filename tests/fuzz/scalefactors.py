"""Scale factors, and the scale that the user states, broken or odd."""

from __future__ import annotations

from fuzz.harness import (
    MISSING,
    Works,
    both,
    cases,
    edit_json,
    edit_text,
    link,
    remove,
    request_error,
    section_error,
    setting,
    truncate,
    write,
)

FILE = "spatial/scalefactors_json.json"
NAN, INF = float("nan"), float("inf")
DIAMETER = section_error("spot_diameter_fullres", "expected pixels above 0")
LATTICE = Works("0.7 um/px by lattice")
ODD = (0, -1.0, NAN, INF, "0.5", True, [0.5, 0.5], [], ["0.5"], [None], [True], {}, None)
"""A list of one number is that number, as R writes all numbers; these are no numbers."""

CASES = cases(
    "scalefactors",
    "outs",
    [
        ("missing", remove(FILE), section_error("is missing")),
        ("empty file", write(FILE, ""), section_error(FILE, "cannot be read")),
        ("cut short", truncate(FILE, 0.6), section_error(FILE, "cannot be read")),
        ("no JSON", write(FILE, "tissue_hires_scalef: 0.5"), section_error(FILE, "cannot be read")),
        ("a list", write(FILE, "[1, 2]"), section_error("holds a list", "expected an object")),
        ("a number", write(FILE, "7"), section_error("holds a int", "expected an object")),
        ("null", write(FILE, "null"), section_error("expected an object")),
        ("an empty object", write(FILE, "{}"), DIAMETER),
        (
            "nested a hundred thousand deep",
            write(FILE, "[" * 100_000 + "]" * 100_000),
            section_error(FILE, "cannot be read"),
        ),
        (
            "an object nested a hundred thousand deep",
            write(FILE, '{"a":' * 100_000 + "1" + "}" * 100_000),
            section_error(FILE, "cannot be read"),
        ),
        (
            "twenty megabytes",
            edit_text(FILE, lambda t: t[:-1] + ', "x": "' + "y" * 20_000_000 + '"}'),
            Works("by scalefactors"),
        ),
        (
            "a hundred thousand keys",
            edit_text(FILE, lambda t: t[:-1] + "".join(f', "k{i}": {i}' for i in range(100_000)) + "}"),
            Works("by scalefactors"),
        ),
        ("random bytes", write(FILE, bytes(range(256))), section_error(FILE, "cannot be read")),
        (
            "UTF-16",
            lambda s: (s.section / FILE).write_bytes((s.section / FILE).read_text().encode("utf-16")),
            section_error(FILE, "cannot be read"),
        ),
        ("a link to itself", link(FILE, "scalefactors_json.json"), section_error("is missing")),
        (
            "a folder of that name",
            both(remove(FILE), lambda s: (s.section / FILE).mkdir()),
            section_error("is missing"),
        ),
        (
            "an integer of 5000 digits",
            edit_text(FILE, lambda t: t[:-1] + ', "spot_diameter_fullres": ' + "9" * 5000 + "}"),
            section_error(FILE, "cannot be read"),
        ),
        (
            "an integer of 400 digits",
            edit_text(FILE, lambda t: t[:-1] + ', "spot_diameter_fullres": ' + "9" * 400 + "}"),
            DIAMETER,
        ),
        *(
            (f"spot diameter {value!r}", edit_json(FILE, spot_diameter_fullres=value), DIAMETER)
            for value in (MISSING, *ODD)
            if value is not MISSING
        ),
        *(
            (
                f"spot diameter {value!r}, as R writes it",
                edit_json(FILE, spot_diameter_fullres=value),
                Works("1 of 30 spots"),
            )
            for value in ([78.6], [[78.6]])
        ),
        *(
            (
                f"microns per pixel {value!r}, as R writes it",
                edit_json(FILE, microns_per_pixel=value),
                Works("0.5 um/px by scalefactors"),
            )
            for value in ([0.5], [[[0.5]]])
        ),
        ("hires factor [0.5], as R writes it", edit_json(FILE, tissue_hires_scalef=[0.5]), Works("slide.png")),
        (
            "a list nested a thousand deep around one number",
            edit_text(FILE, lambda t: t[:-1] + ', "microns_per_pixel": ' + "[" * 900 + "0.5" + "]" * 900 + "}"),
            Works("0.5 um/px by scalefactors"),
        ),
        ("no spot diameter", edit_json(FILE, spot_diameter_fullres=MISSING), DIAMETER),
        *(
            (f"microns per pixel {value!r}", edit_json(FILE, microns_per_pixel=value), LATTICE)
            for value in (*ODD, 1e-9, 1e9, 1e308)
        ),
        (
            "microns per pixel of 400 digits",
            edit_text(FILE, lambda t: t[:-1] + ', "microns_per_pixel": ' + "9" * 400 + "}"),
            LATTICE,
        ),
        (
            "microns per pixel far from the lattice",
            edit_json(FILE, microns_per_pixel=0.35),
            Works("0.35 um/px by scalefactors"),
        ),
        (
            "microns per pixel of a far coarser image",
            edit_json(FILE, microns_per_pixel=7.0),
            request_error("7 um/px, coarser than"),
        ),
        (
            "microns per pixel of an electron microscope",
            edit_json(FILE, microns_per_pixel=0.02),
            Works(["0.02 um/px", "reach over the slide's edge"]),
        ),
        ("no microns per pixel", edit_json(FILE, microns_per_pixel=MISSING), LATTICE),
        *(
            (f"hires factor {value!r}", edit_json(FILE, tissue_hires_scalef=value), Works("slide.png"))
            for value in (*ODD, 1e-320, 1e-300)
        ),
        ("hires factor 2", edit_json(FILE, tissue_hires_scalef=2.0), Works("slide.png")),
        (
            "hires factor of 400 digits",
            edit_text(FILE, lambda t: t[:-1] + ', "tissue_hires_scalef": ' + "9" * 400 + "}"),
            Works("slide.png"),
        ),
        ("no hires factor", edit_json(FILE, tissue_hires_scalef=MISSING), Works("slide.png")),
        (
            "no hires and no lowres factor",
            edit_json(FILE, tissue_hires_scalef=MISSING, tissue_lowres_scalef=MISSING),
            request_error("--fullres"),
        ),
        (
            "no factor, but the slide given",
            both(
                edit_json(FILE, tissue_hires_scalef=MISSING, tissue_lowres_scalef=MISSING), setting(fullres="slide.png")
            ),
            Works("1 of 30 spots"),
        ),
        (
            "factors of hires and lowres swapped",
            edit_json(FILE, tissue_hires_scalef=0.3, tissue_lowres_scalef=0.5),
            request_error("--fullres"),
        ),
        *(
            (f"--mpp {value!r}", setting(mpp=lambda s, v=value: v), section_error("mpp is", "between 0.02 and 50"))
            for value in (0, 0.0, -0.5, NAN, INF, 1e-9, 1e9, True, "0.5", 10**400)
        ),
        ("--mpp at the finest end", setting(mpp=0.02), Works("0.02 um/px by override")),
        ("--mpp 0.5 against a stated 0.7", setting(mpp=0.5), Works("0.5 um/px by override")),
        ("--mpp coarser than cells", setting(mpp=5.0), request_error("coarser than")),
    ],
)
