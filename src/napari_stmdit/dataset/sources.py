"""A data set as AnnData, and its images as a zarr array beside it, row for row. Both are written block by block."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..assemble import checkpoint_folder
from ..errors import CheckpointError, SectionError, StmditError, StoreError
from ..expression.edits import Profile
from ..intent import Request, TowardsEdit
from ..synthesis.result import Finished, Result, finished
from ..synthesis.stored import StoredResult, StoredResults, read_stored
from ..tissue.elements import fingerprint
from ..tissue.export import NEW
from ..tissue.open import open_section, synthesis_fault
from ..tissue.spatialdata_store import quiet
from ..tissue.store_entries import element_name
from ..types import Section, SlideImage
from .contents import FACTS, Contents

if TYPE_CHECKING:
    import pandas as pd
    from scipy.sparse import csr_matrix

    from ..model.folder import CheckpointFolder


IMAGES, TABLE = "anndata/images.zarr", "anndata/dataset.zarr"
ROWS_AT_ONCE = 256
"""Edits work on dense rows; so many are held at a time."""


def make_images(place: Path, contents: Contents, rows_per_shard: int) -> None:
    """Make the zarr array of the images, (n, y, x, rgb) uint8, where it is not there yet: a chunk an image, a file a shard."""
    import zarr

    if (place / "zarr.json").is_file():
        return
    side = contents.patch_px
    zarr.create_array(
        place,
        shape=(len(contents), side, side, 3),
        chunks=(1, side, side, 3),
        shards=(rows_per_shard, side, side, 3),
        dtype="uint8",
        fill_value=0,
        dimension_names=("image", "y", "x", "rgb"),
        config={"write_empty_chunks": True},
        attributes={
            "statement": NEW.statement,
            "layout": "image k belongs to row k of dataset.zarr beside it; RGB, 8 bits",
            "microns_per_pixel": contents.patch_mpp,
        },
    )


def write_images(place: Path, start: int, pixels: NDArray[np.uint8]) -> None:
    """Write the images of one shard: one file, in one step."""
    import zarr

    zarr.open_array(place, mode="r+")[start : start + len(pixels)] = pixels


def images_file(number: int) -> str:
    """Return the file that holds the images of a shard."""
    return f"{IMAGES}/c/{number}/0/0/0"


def write_table(place: Path, contents: Contents, records: Mapping[str, Any], check: Callable[[], None]) -> None:
    """Write everything but the images as AnnData in zarr.

    ``X`` are the counts as measured, ``layers["edited"]`` those the images were conditioned on, both CSR float32; ``obs`` the facts of
    each image, ``obsm["spatial"]`` the spot's (x, y) in full-resolution pixels, ``var`` the genes.

    Parameters
    ----------
    place
        The new folder.
    contents
        What to write.
    records
        Run -> its provenance, kept in ``uns``.
    check
        Called before every block; what it raises ends the writing.
    """
    import anndata

    uns = {
        "synthetic": True,
        "statement": NEW.statement,
        "images": "images.zarr beside this store: (n, y, x, rgb) uint8, image k belongs to row k of obs",
        "X": contents.section.expression.statement or "counts as measured at the spot",
        "layer_edited": "counts the image was conditioned on, after edits; zero where obs['expression'] is 'null'",
        "spatial": "(x, y) of the spot's centre in full-resolution pixels of the slide, from its corner",
        "patch_px": contents.patch_px,
        "patch_mpp": contents.patch_mpp,
        "runs": {name: json.dumps(record) for name, record in records.items()},
    }
    with quiet():
        table = anndata.AnnData(
            X=_lazy(contents, contents.measured, check),
            obs=_obs(contents),
            var=_var(contents),
            layers={"edited": _lazy(contents, contents.conditioned, check)},
            uns=uns,
        )
        table.obsm["spatial"] = table.obs[["x_fullres", "y_fullres"]].to_numpy(dtype=np.float64)
        table.write_zarr(place)


def genes_table(contents: Contents) -> pd.DataFrame:
    """Return the genes in the order of every count: index, symbol, and id where the section has ids."""
    import pandas as pd

    genes = contents.section.spots.genes
    found = pd.DataFrame({"index": np.arange(len(genes)), "symbol": genes.symbols.astype(object)})
    if genes.ids is not None:
        found["id"] = genes.ids.astype(object)
    return found


def _var(contents: Contents) -> pd.DataFrame:
    """The genes; a symbol that occurs twice gets a number as its name here, and stays as it is in the column ``symbol``."""
    import pandas as pd
    from anndata.utils import make_index_unique

    genes = genes_table(contents).drop(columns="index")
    return genes.set_index(make_index_unique(pd.Index(genes["symbol"], name=None)))


def _obs(contents: Contents) -> pd.DataFrame:
    import pandas as pd

    records = [contents.facts(k) for k in range(len(contents))]
    columns: dict[str, Any] = {}
    for column in FACTS[1:]:
        values = [record[column.name] for record in records]
        match column.kind:
            case "string":
                columns[column.name] = pd.Categorical(values)
            case "int64":
                columns[column.name] = pd.array(values, dtype="Int64")
            case _:
                columns[column.name] = np.array(values, dtype=bool if column.kind == "bool" else np.float64)
    return pd.DataFrame(columns, index=pd.Index([record["id"] for record in records], dtype=object))


def _lazy(contents: Contents, counts: Callable[[int, int], csr_matrix], check: Callable[[], None]) -> Any:
    """The counts of all rows, a block at a time."""
    import dask.array as da
    from scipy.sparse import csr_matrix

    def block(rows: NDArray[np.int64]) -> csr_matrix:
        check()
        return counts(int(rows[0]), int(rows[-1]) + 1)

    rows = da.arange(len(contents), chunks=ROWS_AT_ONCE, dtype=np.int64)
    genes = contents.section.spots.counts.shape[1]
    return rows.map_blocks(
        block,
        chunks=(rows.chunks[0], (genes,)),
        new_axis=1,
        dtype=np.float32,
        meta=csr_matrix((0, 0), dtype=np.float32),
    )


# What a data set is made from: results out of a store, the slide at its full resolution, and what the checkpoint
# says of itself.


log = logging.getLogger(__name__)
AnyResult = str | Path | Result | StoredResult | Sequence[Result | StoredResult]


@dataclass(frozen=True)
class Slide:
    """Where crops of the slide are read.

    Attributes
    ----------
    image
        The slide image.
    mpp
        Microns per pixel of its finest level.
    words
        Which image that is, in a sentence.
    """

    image: SlideImage
    mpp: float
    words: str


@dataclass(frozen=True)
class CheckpointFacts:
    """What a checkpoint says of itself, as far as it is known; the profiles are there where they were needed."""

    name: str
    sha256: str
    training_data: str | None
    licence: str | None
    limits: str | None
    profiles: Mapping[str, Profile] = field(default_factory=dict, repr=False)


def open_results(source: AnyResult, names: Sequence[str] = ()) -> tuple[Finished, ...]:
    """Return the results a data set is made of.

    Parameters
    ----------
    source
        A SpatialData store with results, a result, or several of one section.
    names
        Of the results to take from a store, with or without ``stmdit_``; all where none is given.

    Raises
    ------
    StoreError
        There are none, or a name is not among them.
    SectionError
        The store cannot be opened.
    """
    if isinstance(source, str | Path):
        section = open_section(source)
        stored = read_stored(section)
        if not stored.results:
            why = "".join(f"; {note}" for note in stored.notes)
            raise StoreError(
                f"{source} holds no results of {section.name}; `stmdit synthesize {source} --output OUT.zarr` makes some{why}"
            )
        return tuple(finished(one) for one in _chosen(stored, names, str(source)))
    results = [source] if isinstance(source, Result | StoredResult) else list(source)
    if names:
        raise StoreError("runs are chosen by name from a store; of results at hand, pass those that are wanted")
    return tuple(
        finished(one, None if isinstance(one, StoredResult) else f"run_{number}")
        for number, one in enumerate(results, 1)
    )


def _chosen(stored: StoredResults, names: Sequence[str], where: str) -> Sequence[StoredResult]:
    by_name = {one.element: one for one in stored.results}
    wanted = {name: name if name in by_name else element_name(name) for name in names or by_name}
    if unknown := [name for name, element in wanted.items() if element not in by_name]:
        why = "".join(f"; {stored.left_out[wanted[name]]}" for name in unknown if wanted[name] in stored.left_out)
        raise StoreError(f"{where} holds no run {', '.join(unknown)}; its runs: {', '.join(by_name)}{why}")
    chosen = [by_name[element] for element in dict.fromkeys(wanted.values())]
    told = {} if names else stored.left_out  # who names runs knows that there are others
    for note in StoredResults(tuple(chosen), told).notes:
        log.warning("%s: %s", where, note)
    return chosen


# ------------------------------------------------------------------------------------------------- the slide


def find_slide(made: Finished, section: str | Path | None = None, fullres: str | Path | None = None) -> Slide:
    """Return the slide to crop real patches from: the one given, else the finest that belongs to the result.

    A store that was made for a result carries a slide image of at most 4000 px; the section it was made from is named in the result's
    record, and taken where it is still there and has the very same spots.

    Parameters
    ----------
    made
        A result.
    section, fullres
        Where the section is, and its full-resolution image, where the result does not lead there.

    Raises
    ------
    StmditError
        There is no image of that section that is fine enough; the message says what to give.
    """
    own = made.section
    if section is not None or fullres is not None:
        place = section if section is not None else own.path
        if place is None:
            raise SectionError("the result has no folder that --fullres could belong to; give --section as well")
        given = open_section(place, fullres=fullres, mpp=own.calibration.mpp)
        if fingerprint(given) != fingerprint(own):
            raise SectionError(f"{place} is another section than the one of the result: its spots differ")
        return _slide(given, made, f"the slide image of {given.name}, as given")
    reduced = own.image is not None and own.image.pixel_size > 1 + 1e-6
    if own.image is not None and not reduced and synthesis_fault(own, made.patch_mpp) is None:
        return _slide(own, made, f"the slide image of {own.name}")
    recorded = _recorded_section(made)
    if recorded is not None:
        return _slide(recorded, made, f"the slide image of {recorded.name}, which the result was made from")
    try:
        return _slide(own, made, f"the reduced slide image that is kept with the result of {own.name}")
    except StmditError as error:
        asked = f"; the result was made from {made.request.section}" if made.request.section else ""
        raise SectionError(
            f"real patches cannot be read from the result's own store: {error}{asked}. Give that section with --section (and --fullres), "
            "or leave real patches out with --no-real"
        ) from error


def _recorded_section(made: Finished) -> Section | None:
    """The section that the result names, if it can still be opened, is the same, and is fine enough."""
    if not made.request.section or not Path(made.request.section).exists():
        return None
    try:
        section = open_section(made.request.section, mpp=made.section.calibration.mpp)
    except StmditError:
        return None
    same = fingerprint(section) == fingerprint(made.section)
    return section if same and synthesis_fault(section, made.patch_mpp) is None else None


def _slide(section: Section, made: Finished, words: str) -> Slide:
    fault = synthesis_fault(section, made.patch_mpp)
    if fault is not None:
        raise SectionError(fault)
    assert section.image is not None and section.calibration.mpp is not None  # or there was a fault
    mpp = section.image.pixel_size * section.calibration.mpp
    return Slide(section.image, mpp, f"{words}, {mpp:.4g} um/px")


# ------------------------------------------------------------------------------------------------- the checkpoint


def checkpoint_facts(made: Finished, checkpoint: str | Path | None = None) -> CheckpointFacts:
    """Return what is known of the checkpoint of a result, with the profiles that its edits move towards.

    Parameters
    ----------
    made
        A result.
    checkpoint
        Name or folder of the checkpoint, where the name in the result's record does not lead there.

    Raises
    ------
    CheckpointError
        The expression after the edits cannot be computed, as the checkpoint is not there or is in another state; or the one given is
        another than the result's.
    """
    from ..model.folder import read_profile_depths, read_profiles

    record = dict(made.provenance.get("checkpoint") or {})
    name, sha256 = str(record.get("name") or made.request.checkpoint), str(record.get("sha256") or "")
    data, licence, limits = (_text(record.get(key)) for key in ("training_data", "licence", "limits"))
    told = CheckpointFacts(name, sha256, data, licence, limits)
    needed = _profiles_needed(made.request)
    if not needed and checkpoint is None and data and licence and limits:
        return told
    folder, reason = _folder_of(made, checkpoint, sha256)
    if folder is None and checkpoint is not None:
        raise CheckpointError(reason)
    if folder is None and needed:
        raise CheckpointError(
            f"the expression after the edits of {made.name} needs the profile {', '.join(needed)} of checkpoint {name!r} (sha256 "
            f"{sha256[:12]}): {reason}. Give its folder with --checkpoint"
        )
    if folder is None:
        return told
    card = folder.card
    means, depths = (read_profiles(folder), read_profile_depths(folder)) if needed else ({}, {})
    if missing := [profile for profile in needed if profile not in means]:
        raise CheckpointError(
            f"checkpoint {name!r} has no profile {', '.join(missing)}, which edits of {made.name} name"
        )
    return CheckpointFacts(
        name,
        sha256,
        data or card.training_data,
        licence or card.licence,
        limits or card.limits,
        {profile: Profile(card.genes, mean, depth=depths.get(profile)) for profile, mean in means.items()},
    )


def _profiles_needed(request: Request) -> list[str]:
    """The checkpoint's profiles that the edits of a request move towards."""
    named = {edit.target_profile for edit in request.edits if isinstance(edit, TowardsEdit) and edit.enabled}
    return sorted(profile for profile in named if profile is not None and profile not in request.profiles)


def _folder_of(made: Finished, checkpoint: str | Path | None, sha256: str) -> tuple[CheckpointFolder | None, str]:
    """The folder of the very checkpoint that made a result, or why it is not to be had."""
    from ..model.folder import read_folder

    try:
        folder = read_folder(checkpoint_folder(checkpoint if checkpoint is not None else made.request.checkpoint))
    except CheckpointError as error:
        return None, str(error)
    if folder.sha256 != sha256:
        return None, f"{folder.path} is in another state than the checkpoint that made {made.name}"
    return folder, ""


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value.strip() else None
