"""``stmdit figure``: a result in a store as a figure for a paper."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from ..errors import StmditError
from ._common import output_option, request_option, section_option


def figure(
    result: Annotated[Path, typer.Argument(help="SpatialData store with results, as stmdit synthesize writes it.")],
    output: Annotated[Path, output_option(help="Figure to write; its ending says how: .png, .svg or .pdf.")],
    run: Annotated[str | None, request_option(help="The result; needed where the store holds several.")] = None,
    fullres: Annotated[
        Path | None,
        section_option(help="Full-resolution image of the section, of which the store keeps a smaller copy."),
    ] = None,
    width: Annotated[float, output_option(help="Width in mm.")] = 180.0,
    dpi: Annotated[int, output_option(help="Pixels per inch of its pictures.")] = 300,
) -> None:
    """Draw slide, edit, result and difference side by side, with scale bars, legends and what is synthetic."""
    from ..evaluation.paper_figure import write_figure
    from ..synthesis.stored import stored_results
    from ..tissue.open import open_section

    found = {one.element: one for one in stored_results(open_section(result, fullres=fullres))}
    names = ", ".join(found) or "none"
    wanted = [name for name in found if run in (None, name, name.removeprefix("stmdit_"))]
    if len(wanted) != 1:
        asked = f"no result {run}" if run is not None else "several results" if found else "no result of its section"
        raise StmditError(f"{result} holds {asked}; choose one with --run (it has {names})")
    written = write_figure(found[wanted[0]], output, width_mm=width, dpi=dpi)
    sys.stdout.write(f"written: {written} ({wanted[0]})\n")
