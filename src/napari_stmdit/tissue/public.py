"""Public sections known by name: where they are to be had, under which terms, and where they lie once they are on this computer.

A download is laid out once as a folder that the readers open; it gets its place when it is whole.
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
    """A section that anyone may fetch.

    Attributes
    ----------
    about
        What it is, in a line.
    citation
        How it is cited.
    layout
        What its files are: of ``st-array`` the slide, the counts and the spots of a Spatial Transcriptomics array; of ``spaceranger`` the
        slide, the counts (HDF5) and the folder ``spatial``, packed.
    """

    about: str
    citation: str
    layout: Literal["st-array", "spaceranger"]


def public_sections() -> tuple[PublicSection, ...]:
    """Return every known public section; raises SectionError where the data file of the package is damaged."""
    return _read(Path(str(files("napari_stmdit").joinpath("data/sections.yaml"))))


def public_section(name: object) -> PublicSection | None:
    """Return a public section by its name; None where no section has it."""
    return next((entry for entry in public_sections() if entry.name == str(name)), None)


def known_section(name: str) -> PublicSection:
    """Return a public section by its name; a SectionError lists those there are."""
    entry = public_section(name)
    if entry is None:
        raise SectionError(
            f"there is no public section {name!r}; known are {', '.join(one.name for one in public_sections())}"
        )
    return entry


def section_directory(name: str) -> Path:
    """Return where a public section lies once it was downloaded."""
    return data_directory() / "sections" / name


def find_section(entry: PublicSection) -> Downloaded | None:
    """Return a public section that is on this computer, or None."""
    folder = section_directory(entry.name)
    return Downloaded(entry, folder, None, already=True) if folder.is_dir() else None


def named_section(path: Path) -> Path | None:
    """Return the folder of a public section that a path names, there or not; None where it names none, or something that is there."""
    entry = public_section(path)
    return None if entry is None or path.exists() else section_directory(entry.name)


def missing_section(name: str) -> SectionError:
    """Return the error of a public section that is not on this computer."""
    return SectionError(
        f"{name} is a public section that is not on this computer: run `stmdit download {name}`, which shows its size and licence first"
    )


def fetch_section(entry: PublicSection, **options: Any) -> Downloaded:
    """Bring a public section to this computer, laid out as the readers open it.

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
        What was downloaded cannot be laid out.
    StoreError
        Something else takes its place.
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
