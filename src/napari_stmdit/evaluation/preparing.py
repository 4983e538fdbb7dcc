"""What an evaluation needs before anything is synthesized: spots, edits, cases, plans, and a judge. Everything is checked here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import RequestError
from ..expression.genes import gather_counts, match_genes
from ..intent import TowardsEdit
from ..storage.fingerprint import of_arrays
from ..synthesis.conditions import Conditions
from ..synthesis.models import PatchModel
from ..synthesis.plan import plan as make_plan
from ..types import Plan, Section
from .cases import FEWEST, Case, EvaluationRequest, cases_of
from .held_out import SpotSet
from .measures import Judge, find_lpips
from .reading import (
    ExpressionReader,
    log_levels,
    read_predictor,
    reader_across_blocks,
    reader_from_sections,
    reader_of_user,
)
from .report import about_checkpoint, check_report
from .spaces import FeatureSpace, open_spaces
from .work import Job, Naming, StackFolder, Work


def prepare(
    sections: Sequence[Section],
    model: PatchModel,
    request: EvaluationRequest,
    folder: Path,
    predictor_sections: Sequence[Section] = (),
    spaces: Sequence[FeatureSpace] | None = None,
    resume: bool = False,
) -> Work:
    """Check everything and lay out what is to be done; nothing is synthesized yet.

    Raises
    ------
    RequestError
        With every fault that was found.
    StoreError
        The folder holds another evaluation, or this one and ``resume`` was not asked for, or it cannot be written.
    """
    spots = choose_spots(sections, model, request)
    notes: list[str] = [note for section in sections for note in section.notes]
    request = _with_edits(request, sections, model, notes)
    others = [*sections, *predictor_sections]
    cases = cases_of(model.card, len(others) > 1, bool(request.edits))
    first = [_plan(one, cases[0], request, 0, model) for one in spots]
    notes += [note for plan in first for note in plan.notes]
    about = about_checkpoint(first[0], model, [one.section for one in spots], request, 0)
    check_report(folder, about, resume)
    stacks = StackFolder(folder)
    names = [Naming(one.section, model) for one in spots]
    jobs = []
    for case in cases:
        for seed in range(request.seeds):
            for group, one in enumerate(spots):
                plan = _plan(one, case, request, seed, model)
                told, further = _told(case, one, others, request.seed + seed, model)
                jobs.append(Job(case, seed, group, plan, names[group].key(plan, further), told))
    opened = tuple(spaces) if spaces else open_spaces(request.feature_spaces, model)
    reader = _reader(request, spots, model, opened, predictor_sections)
    lpips, reason = find_lpips()
    notes += [reason] if reason else []
    crops = np.concatenate([one.crops for one in spots])
    judge = Judge(crops, model.card.patch_um, opened, lpips)
    return Work(spots, model, request, tuple(jobs), stacks, judge, reader, cases, tuple(dict.fromkeys(notes)))


def choose_spots(sections: Sequence[Section], model: PatchModel, request: EvaluationRequest) -> tuple[SpotSet, ...]:
    """Draw the spots, shared out evenly over the sections; a section with fewer gives all it has.

    Raises
    ------
    RequestError
        There are fewer than `FEWEST` in all, or a section is given twice.
    """
    names = [section.name for section in sections]
    chosen = []
    for number, section in enumerate(sections):
        share = request.spots // len(sections) + (number < request.spots % len(sections))
        rng = np.random.default_rng([request.seed, number])
        chosen.append(np.sort(rng.permutation(len(section.spots))[:share]))
    count = sum(map(len, chosen))
    if count < FEWEST:
        raise RequestError(
            [("spots", f"the sections ({', '.join(names)}) have {count} spots, at least {FEWEST} are needed")]
        )
    return tuple(SpotSet(section, rows, model) for section, rows in zip(sections, chosen, strict=True) if len(rows))


def _plan(one: SpotSet, case: Case, request: EvaluationRequest, seed: int, model: PatchModel) -> Plan:
    try:
        return make_plan(one.section, case.request(request, one.ids, seed, model.card.name), model.card)
    except RequestError as error:
        raise RequestError([(f"{one.section.name}: {place}", text) for place, text in error.faults]) from None


def _with_edits(
    request: EvaluationRequest, sections: Sequence[Section], model: PatchModel, notes: list[str]
) -> EvaluationRequest:
    """Fill in an edit where none was given: towards the checkpoint's profile that lies farthest from the sections."""
    if request.edits or "expression" not in model.card.conditions:
        return request
    if not model.profiles:
        notes.append("the checkpoint has no profiles and no edits were given: edits were not evaluated")
        return request
    far = {}
    for name, profile in model.profiles.items():
        levels = [log_levels(s, np.arange(len(s.spots)), profile.genes).mean(axis=0) for s in sections]
        far[name] = float(np.linalg.norm(np.mean(levels, axis=0) - profile.mean))
    chosen = max(sorted(far), key=far.__getitem__)
    notes.append(
        f"the edit moves expression towards the checkpoint's profile {chosen!r}, the one farthest from the sections' mean"
    )
    return request.model_copy(update={"edits": (TowardsEdit(name=f"towards {chosen}", target_profile=chosen),)})


def _told(
    case: Case, one: SpotSet, sections: Sequence[Section], seed: int, model: PatchModel
) -> tuple[Conditions | None, str]:
    """Conditions of spots of another section, where a case asks for them, and what tells them apart in the name of a stack."""
    if case.expression != "across":
        return None, ""
    place = next(k for k, section in enumerate(sections) if section is one.section)
    other = sections[(place + 1) % len(sections)]
    rows = np.random.default_rng([seed, 7]).choice(len(other.spots), len(one), replace=len(other.spots) < len(one))
    names = one.section.spots.genes.symbols.tolist()
    wanted = (
        tuple(name if names.index(name) == k else "" for k, name in enumerate(names))
        if len(set(names)) < len(names)
        else tuple(names)
    )
    match = match_genes(wanted, other.spots.genes)
    counts = gather_counts(other.spots.counts[rows].astype(np.float32), match, wanted)
    depth = other.spots.relative_depth[rows]
    told = Conditions(counts, tuple(other.spots.ids[rows].tolist()), None, depth)
    return told, f"expression {of_arrays(counts.indptr, counts.indices, counts.data, depth)}"


def _reader(
    request: EvaluationRequest,
    spots: Sequence[SpotSet],
    model: PatchModel,
    spaces: Sequence[FeatureSpace],
    others: Sequence[Section],
) -> ExpressionReader:
    if request.predictor is not None:
        return reader_of_user(read_predictor(request.predictor), spaces, spots)
    if others:
        return reader_from_sections(others, spaces[0], spots, model, request.genes)
    return reader_across_blocks(spaces[0], spots, model, request.genes)
