"""Sections and checkpoints of an evaluation, from what a user gives: values that are at hand, paths, or a folder of sections."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import RequestError, SectionError, StmditError, first_line
from ..tissue.open import open_section
from ..types import Section

Source = Section | str | Path


def open_sections(
    sources: Source | Sequence[Source],
    fullres: str | Path | None = None,
    mpp: float | None = None,
    place: str = "section",
) -> tuple[Section, ...]:
    """Return the sections that are meant; a folder that is no section itself stands for all sections in it.

    Parameters
    ----------
    sources
        Sections, or paths as `napari_stmdit.open_section` takes them.
    fullres, mpp
        Full-resolution image and scale; for a single section alone.
    place
        What they are called in messages.

    Raises
    ------
    RequestError
        With every source that cannot be opened, and why.
    """
    given = [sources] if isinstance(sources, Section | str | Path) else list(sources)
    found: list[Section] = []
    faults = []
    for source in given:
        try:
            found += [source] if isinstance(source, Section) else _open(Path(source), fullres, mpp)
        except StmditError as error:
            faults.append((f"{place} {getattr(source, 'name', source)}", str(error)))
    if not faults and not found:
        faults.append((place, "none was given"))
    if not faults and len(found) > 1 and (fullres is not None or mpp is not None):
        faults.append((place, f"--fullres and --mpp are for a single section, {len(found)} were given"))
    if faults:
        raise RequestError(faults)
    return tuple(found)


def _open(path: Path, fullres: str | Path | None, mpp: float | None) -> list[Section]:
    try:
        return [open_section(path, fullres=fullres, mpp=mpp)]
    except SectionError as error:
        inside = [child for child in sorted(path.iterdir()) if child.is_dir()] if path.is_dir() else []
        if "is no tissue section that can be read" not in str(error) or not inside:
            raise
        reasons = []
        found = []
        for child in inside:
            try:
                found.append(open_section(child, mpp=mpp))
            except SectionError as reason:
                reasons.append(f"{child.name}: {first_line(reason)}")
        if not found:
            raise SectionError(f"{error}; nor is any folder in it: {'; '.join(reasons[:5])}") from None
        return found
