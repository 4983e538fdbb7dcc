"""Every case of the suite, and which of them run each time."""

from __future__ import annotations

import re

from fuzz import counts, images, intents, paths, positions, regions, scalefactors, settings, slides, stores
from fuzz.harness import Case, Refused

FAMILIES = (positions, counts, scalefactors, images, stores, regions, intents, paths, settings, slides)
ALL = [case for family in FAMILIES for case in family.CASES]


def _end(case: Case) -> tuple[object, ...]:
    """What a case starts from and how it must end: the class of error, and its words whatever the numbers in them."""
    wanted = case.expected
    error, says = (wanted.error, wanted.says) if isinstance(wanted, Refused) else ("", wanted.tells)
    texts = [says] if isinstance(says, str) else says
    return case.family, case.base, error, tuple(re.sub(r"[\d.,]+", "#", text) for text in texts)


OWN_LINES = (
    *("positions: a second file that is empty", "positions: a barcode that is a path"),
    *("positions: cells in the place of spots", "counts: shape swapped", "counts: shape of one number"),
    *("counts: data is half precision", "counts: one count is nan", "counts: int8 counts", "counts: no entry at all"),
    *("counts: indices are floats", "counts: antibodies among genes", "counts: a gene name twice"),
    *("counts: Matrix Market: gzip cut short", "scalefactors: factors of hires and lowres swapped"),
    *("images: TIFF that says it has 40,000 x 40,000 pixels", "images: both thumbnails broken", "images: RGBA TIFF"),
    *("images: JPEG cut to 30%", "images: TIFF header alone", "images: planes called red, green and blue"),
    *("images: YCbCr TIFF", "images: two images that fit", "images: colours multiplied by alpha"),
    *(
        "images: a thumbnail before the slide",
        "stores: table's metadata cut short",
        "stores: circles far from the slide",
    ),
    *("stores: no image, no lattice, a file, and a spot's diameter in pixels", "stores: counts that claim terabytes"),
    *("stores: what we wrote: in order", "stores: a second slide, one named", "stores: what we wrote: no source"),
    *("stores: what we wrote: notes are a number", "regions: a collection of features"),
    *("regions: a ring that is an object", "edits: every operation", "edits: a list as a key"),
    *("programs and profiles of edits: a profile of a file", "programs and profiles of edits: a program with weights"),
    *("programs and profiles of edits: the key programs with nothing behind it", "requests: morphology of a spot"),
    *("requests: shuffled expression of one spot alone", "requests: spots by their ids"),
    *("requests: both morphology and expression null", "paths: the folder above outs", "paths: a path through a file"),
    *("paths: a folder called 'square_008um'", "paths: a note that it is synthetic: '7'"),
    *("checkpoints: stmdit.json is empty", "checkpoints: stmdit.json is a list"),
    *(
        "job files: sections that differ in case",
        "slides: Aperio without MPP",
        "slides: white, and no tissue looked for",
    ),
)
"""Cases that run lines of the package which no first one of its end runs, as `lines.py` finds them."""

# backwards, so that the first row of each end stays
FIRSTS = set({_end(case): case.key for case in reversed(ALL)}.values())
AT_EVERY_RUN = {*FIRSTS, *OWN_LINES}
"""Keys of the cases that run each time: in each family one for each end that is foreseen, and one for each line that any runs."""
