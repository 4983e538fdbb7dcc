"""Sources of a data set: results of a store, the full-resolution slide, and facts of the checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..assemble import checkpoint_folder
from ..errors import CheckpointError, SectionError, StmditError, StoreError
from ..expression.changes import Profile
from ..intent import Request, TowardsEdit
from ..model.folder import read_folder, read_profile_depths, read_profiles
from ..synthesis.result import Finished, Result, finished
from ..synthesis.stored import StoredResult, StoredResults, read_stored
from ..tissue.elements import fingerprint
from ..tissue.open import open_section, synthesis_fault
from ..tissue.store_entries import element_name
from ..types import Section, SlideImage

if TYPE_CHECKING:
    from ..model.folder import CheckpointFolder

log = logging.getLogger(__name__)
AnyResult = str | Path | Result | StoredResult | Sequence[Result | StoredResult]


@dataclass(frozen=True)
class Slide:
    """Slide that crops are read from; ``mpp`` of its finest level, and a sentence that describes it."""

    image: SlideImage
    mpp: float
    description: str


@dataclass(frozen=True)
class CheckpointFacts:
    """Known facts of a checkpoint; profiles only where edits move towards them."""

    name: str
    sha256: str
    training_data: str | None
    licence: str | None
    limits: str | None
    profiles: Mapping[str, Profile] = field(default_factory=dict, repr=False)


def open_results(source: AnyResult, names: Sequence[str] = ()) -> tuple[Finished, ...]:
    """Open the results of a data set: those of a store by ``names``, with or without ``stmdit_``, or all.

    Raises StoreError where there are none or a name is not among them, SectionError where the store cannot be opened.
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
    left_out = {} if names else stored.left_out  # who names runs knows that there are others
    for note in StoredResults(tuple(chosen), left_out).notes:
        log.warning("%s: %s", where, note)
    return chosen


def find_slide(made: Finished, section: str | Path | None = None, fullres: str | Path | None = None) -> Slide:
    """Return the slide for real crops: the one given, else the finest one of the result.

    A store made for a result has a slide of at most 4000 px; the original section in the result's record is used if it is still there with
    the same spots. Raises StmditError where no image is fine enough.
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
    """Return the section in the result's record, if it still opens, is the same, and is fine enough."""
    if not made.request.section or not Path(made.request.section).exists():
        return None
    try:
        section = open_section(made.request.section, mpp=made.section.calibration.mpp)
    except StmditError:
        return None
    same = fingerprint(section) == fingerprint(made.section)
    return section if same and synthesis_fault(section, made.patch_mpp) is None else None


def _slide(section: Section, made: Finished, description: str) -> Slide:
    fault = synthesis_fault(section, made.patch_mpp)
    if fault is not None:
        raise SectionError(fault)
    mpp = section.slide.pixel_size * section.mpp
    return Slide(section.slide, mpp, f"{description}, {mpp:.4g} um/px")


def checkpoint_facts(made: Finished, checkpoint: str | Path | None = None) -> CheckpointFacts:
    """Return the known facts of a result's checkpoint, with its target profiles.

    ``checkpoint`` is its name or folder, if the record does not lead there. Raises CheckpointError where it is needed for edited expression
    and is missing or changed, or where another one is given.
    """
    record = dict(made.provenance.get("checkpoint") or {})
    name, sha256 = str(record.get("name") or made.request.checkpoint), str(record.get("sha256") or "")
    data, licence, limits = (_text(record.get(key)) for key in ("training_data", "licence", "limits"))
    recorded = CheckpointFacts(name, sha256, data, licence, limits)
    needed = _profiles_needed(made.request)
    if not needed and checkpoint is None and data and licence and limits:
        return recorded
    folder, reason = _folder_of(made, checkpoint, sha256)
    if folder is None and checkpoint is not None:
        raise CheckpointError(reason)
    if folder is None and needed:
        raise CheckpointError(
            f"the expression after the edits of {made.name} needs the profile {', '.join(needed)} of checkpoint {name!r} (sha256 "
            f"{sha256[:12]}): {reason}. Give its folder with --checkpoint"
        )
    if folder is None:
        return recorded
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
    """Return the checkpoint's profiles that the edits of a request move towards."""
    named = {edit.target_profile for edit in request.edits if isinstance(edit, TowardsEdit) and edit.enabled}
    return sorted(profile for profile in named if profile is not None and profile not in request.profiles)


def _folder_of(made: Finished, checkpoint: str | Path | None, sha256: str) -> tuple[CheckpointFolder | None, str]:
    """Return the folder of the checkpoint that made a result, or why it is not available."""
    try:
        folder = read_folder(checkpoint_folder(checkpoint if checkpoint is not None else made.request.checkpoint))
    except CheckpointError as error:
        return None, str(error)
    if folder.sha256 != sha256:
        return None, f"{folder.path} is in another state than the checkpoint that made {made.name}"
    return folder, ""


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value.strip() else None
