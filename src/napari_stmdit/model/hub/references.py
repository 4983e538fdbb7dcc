"""References of checkpoints to components whose weights may not be redistributed, resolved to local files.

Nothing is fetched.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from ...downloads.places import Reference, find_reference
from ...errors import CheckpointError
from ...intent import validated
from ...storage.fingerprint import of_file, of_files
from ..reading import read_settings

REFERENCE_FILE = "reference.json"
READ_BESIDE = ("args.json", "config.json", "vocab.json")
"""Settings files read beside the weights even if a reference does not list them."""


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


def read_reference(path: str | Path) -> Reference:
    """Read a ``reference.json``; raises CheckpointError with every fault."""
    return validated(Reference, read_settings(path), f"{path} is no valid reference")


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
