"""Downloadable entries and references to them: source, terms, and place on this computer.

Looked up are the folder that the user named, a download, and the hub's cache. Nothing is fetched.
"""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal, Self

from platformdirs import user_data_path
from pydantic import Field, field_validator, model_validator

from ..frozen import Frozen

WITHIN_PACKAGE = "package:"
"""Prefix of a source in the package's own data, which several of its checkpoints share."""
PACKAGE_DATA = Path(__file__).resolve().parents[1] / "data"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


class Reference(Frozen):
    """Component that a checkpoint needs and does not contain (``reference.json``).

    Attributes
    ----------
    name
        Short name, under which `stmdit download` keeps it.
    source, subfolder, revision
        Hub repository id (``owner/name``), folder in it, and commit or branch; or the path of a local folder; or ``package:`` and the name
        of a folder in the package's data.
    files
        What is needed of it, relative to the subfolder.
    sha256
        File -> SHA-256, of those whose hash is known.
    licence, terms, gated
        Under which terms, where they can be read, and whether the hub asks each user to accept them first.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")]
    source: str
    subfolder: str = ""
    revision: str | None = None
    files: Annotated[tuple[str, ...], Field(min_length=1)]
    sha256: dict[str, str] = {}
    licence: str
    terms: str = ""
    gated: bool = False

    @field_validator("files", "subfolder")
    @classmethod
    def _stay_inside(cls, value: tuple[str, ...] | str) -> tuple[str, ...] | str:
        """Refuse absolute paths and ``..``: a reference comes from somebody else."""
        for name in (value,) if isinstance(value, str) else value:
            if name.startswith(("/", "\\")) or ":" in name or ".." in PurePosixPath(name.replace("\\", "/")).parts:
                raise ValueError(f"{name!r} leads out of the folder")
        return value


class Entry(Reference):
    """Entry that can be downloaded by name, with what is shown before the user consents.

    Attributes
    ----------
    title
        Its title.
    fetch
        ``hub`` (``source`` is a repository id), ``web`` (``source`` is an address, below which the files lie) or ``manual`` (``source`` is
        a web page; the user brings the files).
    size_bytes
        Total size of its files; None: unknown.
    notes
        Further facts, and what is not known.
    """

    title: str
    fetch: Literal["hub", "web", "manual"]
    size_bytes: Annotated[int, Field(gt=0)] | None = None
    notes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _sound(self) -> Self:
        """Check the source, and that names are names of files and hashes those of listed files."""
        if self.fetch == "hub" and not _HUB_ID.fullmatch(self.source):
            raise ValueError(f"{self.source!r} is no repository id (owner/name)")
        if self.fetch == "web" and not self.source.startswith("https://"):
            raise ValueError(f"{self.source!r} is no address (https://...)")
        for name in self.files:
            if any(c in name for c in "\\?#\0"):
                raise ValueError(f"{name!r} is no name of a file")
        for name, value in self.sha256.items():
            if name not in self.files or not re.fullmatch(r"[0-9a-f]{64}", value):
                raise ValueError(f"sha256 of {name!r} is no SHA-256 of a listed file")
        return self


def data_directory() -> Path:
    """Return the folder of checkpoints and downloads: ``STMDIT_HOME``, or the system's place for user data."""
    return Path(os.environ.get("STMDIT_HOME") or user_data_path("napari-stmdit", appauthor=False))


def download_directory(name: str) -> Path:
    """Return the folder of `stmdit download NAME`."""
    return data_directory() / "downloads" / name


def find_reference(reference: Reference) -> Path | None:
    """Return the local folder that holds every file of a reference, or None; nothing is fetched and nothing is hashed.

    A source that is an absolute path is a folder of the user's. Anything else is an id on a hub, also where the working directory has a
    folder of that name.
    """
    if reference.source.startswith(WITHIN_PACKAGE):
        place = PACKAGE_DATA / Path(reference.source.removeprefix(WITHIN_PACKAGE)).name / reference.subfolder
        return place if all((place / name).is_file() for name in reference.files) else None
    own = Path(reference.source).expanduser()
    places = [own / reference.subfolder] if own.is_absolute() else []
    for place in (*places, download_directory(reference.name)):
        if all((place / name).is_file() for name in reference.files):
            return place
    return _in_hub_cache(reference)


def _in_hub_cache(reference: Reference) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    found = []
    for name in reference.files:
        inside = f"{reference.subfolder}/{name}" if reference.subfolder else name
        try:
            path = try_to_load_from_cache(reference.source, inside, revision=reference.revision)
        except HFValidationError:
            return None
        if not isinstance(path, str):
            return None
        found.append(Path(path))
    folders = {
        path.parents[len(PurePosixPath(name).parts) - 1] for path, name in zip(found, reference.files, strict=True)
    }
    return folders.pop() if len(folders) == 1 else None
