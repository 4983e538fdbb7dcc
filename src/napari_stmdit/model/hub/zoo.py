"""Zoo of checkpoints and components known by name: where to get them, and whether they are on this computer."""

from __future__ import annotations

import difflib
import re
from functools import lru_cache
from importlib.resources import files
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from ...errors import CheckpointError
from ..reading import SETTING_SUFFIXES, WEIGHT_SUFFIXES
from .references import Reference, find_reference

Kind = Literal["transformer", "vae", "preview_vae", "expression_encoder", "morphology_encoder"]
STMDIT_PREFIX = "stmdit:"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_ROW_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_STMDIT_REPOSITORY = "stmdit-anon/stmdit-checkpoints"


class ZooEntry(Reference):
    """A checkpoint or component that can be downloaded by name.

    Attributes
    ----------
    title, kind
        Name for people, and role.
    fetch
        ``hub`` (``source`` is a repository id) or ``manual`` (``source`` is a web page; the user brings the files).
    size_bytes
        Approximate size of all files; None: unknown.
    patch_px
        Edge of the patches it synthesizes, in pixels; None where it synthesizes none.
    patch_mpp
        Microns per pixel in training; None: unknown, to be chosen.
    components
        Further components needed: component -> name in the zoo.
    notes
        Notes for the user.
    """

    title: str
    kind: Kind
    fetch: Literal["hub", "manual"]
    size_bytes: Annotated[int, Field(gt=0)] | None = None
    patch_px: Annotated[int, Field(gt=0)] | None = None
    patch_mpp: Annotated[float, Field(gt=0)] | None = None
    components: dict[str, str] = {}
    notes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _safe(self) -> Self:
        """Check that only weights and settings are fetched, never code, and that hashes are those of listed files."""
        for name in self.files:
            path = PurePosixPath(name)
            if path.suffix not in (*WEIGHT_SUFFIXES, *SETTING_SUFFIXES) or any(c in name for c in "\\?#\0"):
                raise ValueError(f"{name!r} is neither weights nor settings")
        if self.fetch == "hub" and not _HUB_ID.fullmatch(self.source):
            raise ValueError(f"{self.source!r} is no repository id (owner/name)")
        for name, value in self.sha256.items():
            if name not in self.files or not re.fullmatch(r"[0-9a-f]{64}", value):
                raise ValueError(f"sha256 of {name!r} is no SHA-256 of a listed file")
        return self


def zoo() -> tuple[ZooEntry, ...]:
    """Return every known checkpoint and component; raises CheckpointError where the data file of the package is damaged."""
    return _read(Path(str(files("napari_stmdit").joinpath("data/zoo.yaml"))))


def zoo_entry(name: str) -> ZooEntry:
    """Return an entry by its name, or build one from ``stmdit:<row id>``; a CheckpointError lists near names."""
    known = {entry.name: entry for entry in zoo()}
    if name.startswith(STMDIT_PREFIX):
        row = name.removeprefix(STMDIT_PREFIX)
        same = [entry for entry in known.values() if (entry.source, entry.subfolder) == (_STMDIT_REPOSITORY, row)]
        return same[0] if same else _row_entry(row)
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    near += [other for other in known if name and name.lower() in other and other not in near]
    hint = f"Did you mean {' or '.join(near[:4])}?" if near else f"Known are {', '.join(known)}."
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
        "components": {"vae": "sd3.5-vae", "morphology_encoder": "uni2-h", "expression_encoder": "cancerfoundation"},
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
