"""Which lines of the package only cases run that do not run each time: those that `families.OWN_LINES` lacks, the most telling first.

Run as ``python tests/fuzz/lines.py``; it traces, and takes minutes.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from types import FrameType
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from conftest import make_tiny_folder, make_tiny_zarr
from fuzz.families import ALL, AT_EVERY_RUN
from fuzz.harness import Case, Workshop, scratch

import napari_stmdit

PACKAGE = str(Path(napari_stmdit.__file__).parent)


def lines_of(workshop: Workshop, case: Case) -> set[tuple[str, int]]:
    """Run a case, and return the lines of the package that it runs."""
    found: set[tuple[str, int]] = set()

    def trace(frame: FrameType, event: str, _: object) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == "line":
            found.add((frame.f_code.co_filename, frame.f_lineno))
        return trace

    sys.settrace(trace)
    try:
        workshop.attempt(case)
    finally:
        sys.settrace(None)
    return found


def main() -> None:
    with tempfile.TemporaryDirectory() as tiny, scratch() as place:
        workshop = Workshop(make_tiny_folder(Path(tiny)), make_tiny_zarr(Path(tiny)), place)
        workshop.attempt(ALL[0])  # what is imported late is no case's own
        found = {case.key: lines_of(workshop, case) for case in ALL}
    missing = set().union(*found.values()) - set().union(*(found[key] for key in AT_EVERY_RUN))
    while missing:
        key = max(found, key=lambda key: len(found[key] & missing))
        print(len(found[key] & missing), key)
        missing -= found[key]


if __name__ == "__main__":
    main()
