"""Report of ``stmdit inspect`` on a tissue section."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._common import console, print_json

if TYPE_CHECKING:
    from ..tissue.open import SectionSource


def is_section(path: Path) -> bool:
    """Return whether a path is a section rather than a checkpoint, by names and small files."""
    from ..tissue.images import IMAGE_SUFFIXES
    from ..tissue.public import named_section
    from ..tissue.remote import url_of
    from ..tissue.spatialdata_store import is_spatialdata
    from ..ui.manifest import is_space_ranger

    if url_of(path) is not None or named_section(path) is not None:
        return True
    if path.is_file():
        return path.suffix.lower() in (*IMAGE_SUFFIXES, ".h5ad")
    return path.is_dir() and (is_space_ranger(path) or is_spatialdata(path))


def inspect_section(source: SectionSource, picture: Path | None, as_json: bool) -> None:
    """Print a description of a section and its alignment, and write the check picture."""
    from rich.table import Table

    from ..tissue.alignment import check_alignment, write_check_picture

    section = source.open()
    found = check_alignment(section)
    image = section.image
    size = None if image is None else list(image.shape)
    if picture is not None:
        write_check_picture(section, picture, found.best)
    if as_json:
        facts: dict[str, Any] = {
            "kind": "section",
            "name": section.name,
            "spots": len(section.spots),
            "genes": len(section.spots.genes),
            "image": None if image is None else {"source": image.source, "shape": size},
            "mpp": section.calibration.mpp,
            "mpp_source": section.calibration.detail,
            "excluded": {} if section.excluded is None else {k: len(v) for k, v in section.excluded.regions.items()},
            "notes": list(section.notes),
            "alignment": found.facts(),
        }
        print_json(facts)
        return
    rows = {
        "kind": "section",
        "name": section.name,
        "spots": f"{len(section.spots):,}",
        "genes": f"{len(section.spots.genes):,}",
        "slide image": "none" if image is None else f"{image.source}, {image.shape[1]} x {image.shape[0]} px",
        "scale": section.calibration.detail,
        "alignment": found.statement,
    }
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for label, value in rows.items():
        table.add_row(label, value)
    out = console()
    out.print(table)
    for note in section.notes:
        out.print(f"- {note}")
    if found.best is not None and source.orientation == "as-given":
        sys.stdout.write(f"--orientation {found.best} lays them so.\n")
