"""References to components whose weights may not be redistributed, resolved to local files.

Looked up are the folder that the user named, a download, and the hub's cache. Nothing is fetched.
"""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import Annotated

from platformdirs import user_data_path
from pydantic import Field, field_validator

from ...errors import CheckpointError
from ...intent import Intent, validated
from ...storage.fingerprint import of_file, of_files
from ..reading import read_settings

REFERENCE_FILE = "reference.json"
WITHIN_PACKAGE = "package:"
"""Prefix of a source in the package's own data, which several of its checkpoints share."""
PACKAGE_DATA = Path(__file__).resolve().parents[2] / "data"
READ_BESIDE = ("args.json", "config.json", "vocab.json")
"""Settings files read beside the weights even if a reference does not list them."""


class Reference(Intent):
    """Component that a checkpoint needs and does not contain (``reference.json``).

    Attributes
    ----------
    name
        Short name, under which `stmdit download` keeps it.
    source, subfolder, revision
        Hub repository id (``owner/name``), folder in it, and commit or branch; or the path of a local folder; or ``package:`` and the name
        of a folder in the package's data.
    files
        Needed files, relative to the subfolder.
    sha256
        File -> SHA-256, of those whose hash is known.
    licence, terms, gated
        Licence, where its terms can be read, and whether the hub asks each user to accept them.
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


class MissingComponentError(CheckpointError):
    """Weights of a component that are not on this computer.

    Attributes
    ----------
    reference, component
        Which, and what for.
    reason
        The message without its commands.
    """

    def __init__(self, reference: Reference, component: str) -> None:
        super().__init__(missing_text(reference, component))
        self.reference = reference
        self.component = component
        self.reason = _reason(reference, component)


def data_directory() -> Path:
    """Return the folder of checkpoints and downloads: ``STMDIT_HOME``, or the system's place for user data."""
    return Path(os.environ.get("STMDIT_HOME") or user_data_path("napari-stmdit", appauthor=False))


def download_directory(name: str) -> Path:
    """Return where `stmdit download NAME` puts its files."""
    return data_directory() / "downloads" / name


def read_reference(path: str | Path) -> Reference:
    """Read a ``reference.json``; raises CheckpointError with every fault."""
    return validated(Reference, read_settings(path), f"{path} is no valid reference")


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


def resolve_reference(reference: Reference, component: str) -> Path:
    """Return the local folder of a reference, its stated hashes checked.

    Raises
    ------
    MissingComponentError
        It is not on this computer; the message says which files, from where, under which licence, and what to do.
    CheckpointError
        A file differs from its stated hash.
    """
    place = find_reference(reference)
    if place is None:
        raise MissingComponentError(reference, component)
    for name, expected in reference.sha256.items():
        if name in reference.files and (got := of_file(place / name)) != expected:
            raise CheckpointError(
                f"{place / name} has the SHA-256 {got[:16]}..., but {expected[:16]}... was expected: it is damaged or another "
                f"version. Delete it and run `stmdit download {reference.name}`."
            )
    return place


def reference_hash(reference: Reference) -> str | None:
    """Return the hash of all files of a reference that are read; None where it is not on this computer."""
    place = find_reference(reference)
    if place is None:
        return None
    folders = {str(PurePosixPath(name).parent) for name in reference.files}
    beside = [str(PurePosixPath(folder) / name) for folder in folders for name in READ_BESIDE]
    names = {*reference.files, *(name for name in beside if (place / name).is_file())}
    return of_files({name: place / name for name in names})


def missing_text(reference: Reference, component: str) -> str:
    """Say what is missing, from where and under which licence it can be had, and what can be done without it."""
    text = (
        f"{_reason(reference, component)} Run `stmdit download {reference.name}`, or `stmdit download {reference.name} --from FOLDER` "
        "where you have the files."
    )
    if component in ("morphology_encoder", "expression_encoder"):
        kind = component.removesuffix("_encoder")
        text += f" Without them, give embeddings computed elsewhere: --{kind}-embeddings FILE (.npy, .h5, .h5ad, .zarr or .csv)."
    return text


def _reason(reference: Reference, component: str) -> str:
    where = "/".join(part for part in (reference.source, reference.subfolder) if part)
    gate = f"; gated: accept its terms at {reference.terms} first" if reference.gated and reference.terms else ""
    return (
        f"the {component.replace('_', ' ')} {reference.name} is not on this computer. Missing: {', '.join(reference.files)} of {where} "
        f"(licence: {reference.licence}{gate})."
    )


def _in_hub_cache(reference: Reference) -> Path | None:
    """Look into the hub client's cache."""
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
