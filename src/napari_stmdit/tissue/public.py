"""Public sections by name: their source, terms, and place on this computer.

A download is laid out as a folder that the readers open, and moved into place once complete.
"""

from __future__ import annotations

import dataclasses
import shutil
import tarfile
from functools import lru_cache
from importlib.resources import files
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import ValidationError

from ..downloads.download import Downloaded, download
from ..downloads.places import Entry, data_directory
from ..errors import SectionError
from ..storage.atomic import Work, link_or_copy
from .st_array import write_st_array


class PublicSection(Entry):
    """Public section.

    Attributes
    ----------
    about
        Description in a line.
    citation
        Its citation.
    layout
        Kind of its files: ``st-array`` is slide, counts and spots of a Spatial Transcriptomics array; ``spaceranger`` the
        slide, the counts (HDF5) and the folder ``spatial``, packed.
    """

    about: str
    citation: str
    layout: Literal["st-array", "spaceranger"]


def public_sections() -> tuple[PublicSection, ...]:
    """Return every known public section; raises SectionError where the data file of the package is damaged."""
    return _read(Path(str(files("napari_stmdit").joinpath("data/sections.yaml"))))


def public_section(name: object) -> PublicSection | None:
    """Return a public section by its name; None where there is none."""
    return next((entry for entry in public_sections() if entry.name == str(name)), None)


def known_section(name: str) -> PublicSection:
    """Return a public section by its name; raises SectionError that lists the known ones."""
    entry = public_section(name)
    if entry is None:
        raise SectionError(
            f"there is no public section {name!r}; known are {', '.join(one.name for one in public_sections())}"
        )
    return entry


def section_directory(name: str) -> Path:
    """Return the folder of a downloaded public section."""
    return data_directory() / "sections" / name


def find_section(entry: PublicSection) -> Downloaded | None:
    """Return a public section that is on this computer, or None."""
    folder = section_directory(entry.name)
    return Downloaded(entry, folder, None, already=True) if folder.is_dir() else None


def named_section(path: Path) -> Path | None:
    """Return the folder of a public section that a path names, there or not; None where it names none, or an existing path."""
    entry = public_section(path)
    return None if entry is None or path.exists() else section_directory(entry.name)


def missing_section(name: str) -> SectionError:
    """Return the error for a public section that is not downloaded."""
    return SectionError(
        f"{name} is a public section that is not on this computer: run `stmdit download {name}`, which shows its size and licence first"
    )


def fetch_section(entry: PublicSection, **options: Any) -> Downloaded:
    """Download a public section and lay it out as the readers open it.

    Parameters
    ----------
    entry
        From `public_section`.
    **options
        Of `napari_stmdit.downloads.download.download`.

    Returns
    -------
    Downloaded
        Its folder is the section's.

    Raises
    ------
    DownloadError, DownloadCancelledError
        As for `download`.
    SectionError
        The download cannot be laid out.
    StoreError
        Its place is taken by something else.
    """
    if not options.get("force") and (found := find_section(entry)) is not None:
        return found
    folder = section_directory(entry.name)
    done = download(entry, **options)
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Work(f"section {entry.name}", "`stmdit download`", "move it away")
    with work.replacing(folder) as draft:
        slide, counts, rest = (done.folder / name for name in entry.files)
        if entry.layout == "st-array":
            write_st_array(draft, slide, counts, rest)
        else:
            _lay_out(draft, slide, counts, rest)
    return dataclasses.replace(done, folder=folder, already=False)


def _lay_out(path: Path, slide: Path, counts: Path, spatial: Path) -> None:
    """Make a Space Ranger folder of its parts, as 10x Genomics publishes them."""
    (path / "spatial").mkdir(parents=True)
    try:
        with tarfile.open(spatial) as archive:
            for member in archive:
                place = PurePosixPath(member.name)
                content = archive.extractfile(member) if member.isfile() and place.parent.name == "spatial" else None
                if content is not None:  # its name alone is taken, so that nothing leads out of the folder
                    with content, (path / "spatial" / place.name).open("wb") as file:
                        shutil.copyfileobj(content, file)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise SectionError(f"{spatial} cannot be unpacked: {error}") from error
    link_or_copy(counts, path / "filtered_feature_bc_matrix.h5")
    link_or_copy(slide, path / slide.name)


@lru_cache
def _read(path: Path) -> tuple[PublicSection, ...]:
    import yaml

    try:
        entries = tuple(PublicSection.model_validate(item) for item in yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, ValidationError, TypeError, ValueError) as error:
        raise SectionError(f"{path} is damaged: {error}. Install napari-stmdit again.") from None
    if len({entry.name for entry in entries}) != len(entries):
        raise SectionError(f"{path} names a section twice. Install napari-stmdit again.")
    return entries
