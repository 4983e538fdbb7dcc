"""Checkpoints and components kept elsewhere: those known by name, and references of checkpoints, resolved to local files. Nothing is fetched."""

from __future__ import annotations

import difflib
import re
from functools import lru_cache
from importlib.resources import files
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator

from ..downloads.places import Entry, Reference, find_reference
from ..errors import CheckpointError
from ..frozen import validated
from ..storage.fingerprint import of_file, of_files
from .reading import SETTING_SUFFIXES, WEIGHT_SUFFIXES, read_settings

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


Kind = Literal["transformer", "vae", "preview_vae", "expression_encoder", "morphology_encoder"]
STMDIT_PREFIX = "stmdit:"
_ROW_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_STMDIT_REPOSITORY = "stmdit-anon/stmdit-checkpoints"
COMPONENTS = {"vae": "sd3.5-vae", "morphology_encoder": "uni2-h", "expression_encoder": "cancerfoundation"}
"""Entries of the components of STMDiT checkpoints."""


class ZooEntry(Entry):
    """A checkpoint or component that can be downloaded by name.

    Attributes
    ----------
    kind
        Role.
    patch_px
        Edge of the patches it synthesizes, in pixels; None where it synthesizes none.
    patch_mpp
        Microns per pixel in training; None: unknown, to be chosen.
    components
        Further components needed: component -> name in the zoo.
    """

    kind: Kind
    patch_px: Annotated[int, Field(gt=0)] | None = None
    patch_mpp: Annotated[float, Field(gt=0)] | None = None
    components: dict[str, str] = {}

    @field_validator("files")
    @classmethod
    def _no_code(cls, files: tuple[str, ...]) -> tuple[str, ...]:
        """Check that only weights and settings are fetched, never code."""
        for name in files:
            if PurePosixPath(name).suffix not in (*WEIGHT_SUFFIXES, *SETTING_SUFFIXES):
                raise ValueError(f"{name!r} is neither weights nor settings")
        return files


def zoo() -> tuple[ZooEntry, ...]:
    """Return every known checkpoint and component; raises CheckpointError where the data file of the package is damaged."""
    return _read(Path(str(files("napari_stmdit").joinpath("data/zoo.yaml"))))


def zoo_entry(name: str, others: tuple[str, ...] = ()) -> ZooEntry:
    """Return an entry by its name, or build one from ``stmdit:<row id>``; a CheckpointError lists near names, of ``others`` too."""
    known = {entry.name: entry for entry in zoo()}
    if name.startswith(STMDIT_PREFIX):
        row = name.removeprefix(STMDIT_PREFIX)
        same = [entry for entry in known.values() if (entry.source, entry.subfolder) == (_STMDIT_REPOSITORY, row)]
        return same[0] if same else _row_entry(row)
    if name in known:
        return known[name]
    names = (*known, *others)
    near = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.5)
    near += [other for other in names if name and name.lower() in other and other not in near]
    hint = f"Did you mean {' or '.join(near[:4])}?" if near else f"Known are {', '.join(names)}."
    raise CheckpointError(
        f"there is nothing to download by the name {name!r}. {hint} A model of the STMDiT collection is named stmdit:<row id>."
    )


def reference_of(entry: ZooEntry) -> Reference:
    """Return the reference part of an entry, as a ``reference.json`` states it."""
    return Reference.model_validate({name: getattr(entry, name) for name in Reference.model_fields})


def state_of(entry: ZooEntry) -> tuple[Literal["here", "missing"], Path | None]:
    """Say whether every file of an entry is on this computer, and in which folder; nothing is fetched and nothing is hashed."""
    place = find_reference(reference_of(entry))
    return ("missing", None) if place is None else ("here", place)


def _row_entry(row: str) -> ZooEntry:
    if not _ROW_ID.fullmatch(row):
        raise CheckpointError(
            f"{row!r} is no row id of the STMDiT collection. Expected letters, digits, '.', '_' and '-', such as "
            "stmdit:adaln-ddpm-p01."
        )
    note = "This row id is not among those known here; whether it exists shows when it is downloaded."
    return ZooEntry.model_validate(
        _filled(
            {
                "name": f"stmdit-{row.lower()}",
                "title": f"STMDiT {row}",
                "kind": "transformer",
                "row": row,
                "notes": [note],
            }
        )
    )


def _filled(item: dict[str, Any]) -> dict[str, Any]:
    """Fill in what all rows of the STMDiT collection have in common."""
    row = item.pop("row", None)
    if row is None:
        return item
    shared: dict[str, Any] = {
        "fetch": "hub",
        "source": _STMDIT_REPOSITORY,
        "subfolder": row,
        "files": ["model.pt", "training_config.yaml"],
        "licence": "not seen; UNI2-h's terms prohibit commercial use of models trained on its outputs",
        "terms": f"https://huggingface.co/{_STMDIT_REPOSITORY}",
        "patch_px": 256,
        "components": COMPONENTS,
    }
    notes = [
        *item.get("notes", []),
        "The public list of row ids that could be read was truncated.",
        "Which autoencoder it was trained with is not public: PixCell's is listed, training_config.yaml decides.",
    ]
    return {**shared, **item, "notes": notes}


@lru_cache
def _read(path: Path) -> tuple[ZooEntry, ...]:
    import yaml

    try:
        items = yaml.safe_load(path.read_text(encoding="utf-8"))
        entries = tuple(ZooEntry.model_validate(_filled(dict(item))) for item in items)
    except (OSError, yaml.YAMLError, ValidationError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: {error}. Install napari-stmdit again.") from None
    if len({entry.name for entry in entries}) != len(entries):
        raise CheckpointError(f"{path} names an entry twice. Install napari-stmdit again.")
    return entries
