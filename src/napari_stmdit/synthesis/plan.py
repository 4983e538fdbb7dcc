"""Plans: a request resolved against a section and a checkpoint, with presets (costs: docs/evidence/speed.md), and what a plan will cost."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..edits import Edit, Swap, Table, Towards
from ..errors import RequestError
from ..expression.changes import active_edits, edited_genes, unread_genes
from ..expression.edit_tables import signed, table_note
from ..expression.edits import faults_of
from ..expression.following import following_fault, following_notes, follows
from ..expression.genes import match_genes
from ..expression.programs import known_programs
from ..intent import CheckpointCard, Guidance, Preset, Request
from ..model.guidance import branches
from ..regions import AllSpots, Polygons, SampleOfSpots, SpotList
from ..text import shorten, some_of
from ..tissue.excluded import without_excluded
from ..tissue.geometry import spots_in_polygons
from ..tissue.open import synthesis_fault
from ..types import CanvasFrame, GuidanceScales, Patch, Plan, Sampling, Section, Windows
from .canvas import BYTES_PER_PIXEL, Box, boxes_around
from .conditions import spot_rows
from .continuous import changed_windows, reached_windows
from .models import KnownModel
from .windows import place_windows, windows_fault

MIN_STEPS = 4


@dataclass(frozen=True)
class PresetSettings:
    """Settings of a preset.

    Attributes
    ----------
    steps
        Share of the checkpoint's steps.
    above
        Noise level above which guidance acts; below it a step takes the conditional prediction alone, one branch in place of several
        (Kynkaanniemi et al., 2024, arXiv 2404.07724).
    fast_solver
        Whether to use a solver that needs fewer steps, where the checkpoint's schedule has one; see
        `napari_stmdit.model.sampling.fast_solver`.
    preview_decoder
        Whether to use the checkpoint's preview decoder, if any.
    """

    steps: float = 1.0
    above: float = 0.0
    fast_solver: bool = False
    preview_decoder: bool = False


PRESETS: dict[Preset, PresetSettings] = {
    "exact": PresetSettings(),
    "fast": PresetSettings(steps=1 / 2, above=0.4, fast_solver=True),
    "draft": PresetSettings(steps=0.4, above=0.65, fast_solver=True, preview_decoder=True),
}


def resolve_steps(request: Request, card: CheckpointCard) -> int:
    """Return the denoising steps: the request's own, else the checkpoint's by the preset's share."""
    if request.steps is not None:
        return request.steps
    share = PRESETS[request.preset].steps
    return card.steps if share == 1 else min(card.steps, max(MIN_STEPS, ceil(share * card.steps)))


COUNTERFACTUAL_STEPS: dict[Preset, int] = {"exact": 12, "fast": 6, "draft": 4}
"""Second-order steps of the inversion, and as many of sampling; see docs/evidence/inversion.md."""


def resolve_counterfactual_steps(request: Request) -> int:
    """Return the steps each way of an edit of real tissue: the request's own, else the preset's."""
    return COUNTERFACTUAL_STEPS[request.preset] if request.steps is None else request.steps


def resolve_sampling(request: Request, card: CheckpointCard, counterfactual: bool = False) -> Sampling:
    """Return the sampling of a run: of the request, else the preset, else the checkpoint."""
    settings = PRESETS[request.preset]
    guidance = GuidanceScales.of(request.guidance, Guidance(above=settings.above or None), card.guidance)
    steps = resolve_counterfactual_steps(request) if counterfactual else resolve_steps(request, card)
    return Sampling(guidance, steps, settings.fast_solver, settings.preview_decoder)


def preset_notes(request: Request, card: CheckpointCard) -> list[str]:
    """Return the effect of a preset in sentences; none for ``exact``."""
    settings = PRESETS[request.preset]
    if request.preset == "exact":
        return []
    sampling = resolve_sampling(request, card)
    decoder = ", the checkpoint's preview decoder where it has one" if settings.preview_decoder else ""
    solver = " of a solver for few steps" if settings.fast_solver else ""
    return [
        f"preset {request.preset}: {sampling.steps} steps{solver} (the checkpoint's own: {card.steps}), guidance only above noise level "
        f"{sampling.guidance.above:g}{decoder}; the image differs from that of the preset exact"
    ]


# From what the user wants to what will be computed: a pure function of section, request and checkpoint card.


def patch_seed(run_seed: int, spot_id: str) -> int:
    """Return the seed of a patch's noise: it depends on the run's seed and the spot alone."""
    digest = hashlib.sha256(f"{run_seed}/{spot_id}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1  # generators take signed 64-bit seeds


def plan(section: Section, request: Request, checkpoint: KnownModel | CheckpointCard) -> Plan:
    """Resolve a request against a section and a checkpoint.

    Parameters
    ----------
    section
        From `napari_stmdit.open_section`.
    request
        Request of the user.
    checkpoint
        From `napari_stmdit.load_checkpoint`, or its card alone.

    Returns
    -------
    Plan
        Every patch with its place, seed and spot; guidance and steps resolved. In continuous mode the windows, and the tiles.

    Raises
    ------
    RequestError
        With every fault, each with the field it belongs to.
    """
    card = checkpoint if isinstance(checkpoint, CheckpointCard) else checkpoint.card
    faults: list[tuple[str, str]] = []
    request = without_excluded(section, request)
    request = _resolved(section, request, card, faults)
    reason = synthesis_fault(section, card.patch_mpp)
    if reason is not None:
        faults.append(("section", reason))
    if request.mode == "continuous" and (reason := windows_fault(card)) is not None:
        faults.append(("mode", reason))
    rows = region_rows(section, request, faults)
    if request.morphology not in ("own", "mean", "null") and request.morphology not in set(section.spots.ids.tolist()):
        faults.append(
            (
                "morphology",
                f"{shorten(repr(request.morphology))} is neither own, mean or null nor the id of a spot of this section",
            )
        )
    shared = match_genes(card.genes, section.spots.genes).shared
    if unread := gene_fault(request, card, section, shared):
        faults.append(("genes", unread))
    _check_conditions(request, card, faults)
    if section.expression.kind != "none":
        programs, profiles = known_programs(request.programs), (*request.profiles, *card.profiles)
        faults += faults_of(request.edits, section.spots, programs, profiles)
    counterfactual = _counterfactual(request, card, faults)
    if counterfactual and request.fresh_noise and request.mode == "continuous":
        faults.append(
            (
                "fresh_noise",
                f"got a share of {request.fresh_noise:g}, but seamless tissue is edited with the slide's own noise alone; "
                "use 0, or spots in place of a continuous region (--mode spots, mode='spots')",
            )
        )
    if faults:
        raise RequestError(faults)
    return _lay_out(section, request, card, rows, shared, counterfactual)


def _resolved(section: Section, request: Request, card: CheckpointCard, faults: list[tuple[str, str]]) -> Request:
    """Return the request with its tables' hashes.

    Without counts, an unstated ``expression`` becomes null, with a note; a stated one is a fault.
    """
    if section.expression.kind != "none" or card.expression_given:
        edits = tuple(signed(edit) if isinstance(edit, Table) else edit for edit in request.edits)
        return request if edits == request.edits else request.model_copy(update={"edits": edits})
    what, way_out = (
        "this section",
        "put its counts beside its positions and open it again, or open a section that has some",
    )
    if section.kind == "image":
        what = "a plain slide"
        way_out = (
            "open the slide with a predicted table (--predicted-expression FILE.h5ad, predicted_expression=...), or a section whose expression "
            "was measured"
        )
    if card.reads_factors:
        way_out = f"give the table of the {len(card.genes)} factors that checkpoint {card.name!r} reads, {_FACTORS}"
    asked = "expression" in request.model_fields_set and request.expression != "null"
    if asked or request.expression == "shuffled":
        faults.append(
            (
                "expression",
                f"{request.expression!r} was asked for, but {what} has no expression: use null, or {way_out}",
            )
        )
    if any(edit.enabled for edit in request.edits):
        faults.append(("edits", f"{what} has no expression to edit: disable or remove the edits, or {way_out}"))
    return request.model_copy(update={"expression": "null"})


def region_rows(section: Section, request: Request, faults: list[tuple[str, str]]) -> NDArray[np.int64]:
    """Return the rows of the spots of a region, in the table's order; faults of the region are added to ``faults``."""
    spots = section.spots
    nothing = np.empty(0, dtype=np.int64)
    if len(spots) == 0:
        faults.append(("section", "it has no spot with counts"))
        return nothing
    match request.region:
        case AllSpots():
            return np.arange(len(spots))
        case SpotList(ids=ids):
            known = set(spots.ids.tolist())
            unknown = [spot for spot in ids if spot not in known]
            if unknown:
                some = some_of(map(shorten, unknown))
                faults.append(("region.ids", f"not in this section: {some}; its ids look like {str(spots.ids[0])!r}"))
                return nothing
            return np.unique(spots.rows(list(ids)))
        case Polygons() as polygons:
            inside = np.flatnonzero(spots_in_polygons(spots.yx, polygons))
            if inside.size == 0 and request.mode == "spots":
                faults.append(("region.rings", f"no centre of the section's {len(spots)} spots lies in the region"))
            return inside
        case SampleOfSpots(count=count):
            if count > len(spots):
                faults.append(("region.count", f"{count} spots were asked for, the section has {len(spots)}"))
                return nothing
            return np.sort(np.random.default_rng(request.seed).choice(len(spots), count, replace=False))


_FACTORS = "--factors FILE.h5ad::NAME (factors=...)"


def gene_fault(request: Request, card: CheckpointCard, section: Section, shared: int) -> str | None:
    """Return why a checkpoint cannot read a section's expression, of which it shares some genes; None where it can or need not."""
    needed = _genes_needed(card)
    if request.expression == "null" or request.allow_gene_mismatch or shared >= needed:
        return None
    if card.reads_factors:
        kind, names = section.expression.kind, some_of(section.spots.genes.symbols.tolist(), 3)
        has = f"those of {section.expression.file} ({names})" if kind == "factors" else "counts of genes"
        return (
            f"checkpoint {card.name!r} reads {len(card.genes)} factors of each spot in the place of counts ({some_of(card.genes, 3)}), and the section "
            f"has {has}; give the table that holds them, {_FACTORS}"
        )
    return (
        f"the section shares {shared} of the {len(card.genes)} genes that checkpoint {card.name!r} was trained with, "
        f"at least {needed} are needed; use a checkpoint trained for this species and panel (of those in the package, 'demo' is for human "
        "breast and 'demo_colon' for mouse colon), or --allow-gene-mismatch (allow_gene_mismatch=True) to go on with missing genes at "
        "their training mean"
    )


def _check_conditions(request: Request, card: CheckpointCard, faults: list[tuple[str, str]]) -> None:
    """Refuse edits and conditions that this checkpoint ignores: an edit without effect must not look as if it had been made."""
    edited = any(edit.enabled for edit in request.edits)
    if edited and "expression" not in card.conditions:
        faults.append(("edits", f"checkpoint {card.name!r} is not conditioned on expression: an edit changes nothing"))
    elif edited and not card.genes:
        faults.append(
            (
                "edits",
                f"checkpoint {card.name!r} has no gene list here, or its expression comes from embeddings computed elsewhere: "
                "an edit would not reach it. Use it with its expression encoder and a gene list, or disable the edits",
            )
        )
    if request.morphology != "null" and "morphology" not in card.conditions:
        faults.append(("morphology", f"checkpoint {card.name!r} is not conditioned on morphology; use null"))


def _counterfactual(request: Request, card: CheckpointCard, faults: list[tuple[str, str]]) -> bool:
    """Return whether real tissue is edited (True) or new tissue is made; obstacles to a stated wish are faults."""
    if request.counterfactual == "off":
        return False
    reason = counterfactual_fault(request, card)
    if reason is not None and request.counterfactual == "on":
        faults.append(
            ("counterfactual", f"{reason}, or make new tissue with --no-counterfactual (counterfactual='off')")
        )
    return reason is None


def counterfactual_fault(request: Request, card: CheckpointCard) -> str | None:
    """Return why a request cannot edit real tissue with a checkpoint, or None where it can."""
    if not any(edit.enabled for edit in request.edits):
        return "there is nothing to change: the request has no enabled edit; add one"
    if "expression" not in card.conditions:
        return f"checkpoint {card.name!r} is not conditioned on expression, so no edit reaches it; use one that is"
    if "morphology" not in card.conditions:
        return f"checkpoint {card.name!r} is not conditioned on morphology, by which an edit moves the image; use one that is"
    if not card.edits_tissue:
        return (
            f"the autoencoder of checkpoint {card.name!r} has no encoder, so the slide cannot be read; use one that has"
        )
    if request.morphology != "own":
        return f"an edit of this tissue starts from each spot's own morphology, got {request.morphology!r}; use own"
    if request.expression != "own":
        return f"an edit of this tissue starts from its measured expression, got {request.expression!r}; use own"
    return None


def _genes_needed(card: CheckpointCard) -> int:
    return int(np.ceil(card.minimum_gene_fraction * len(card.genes)))


def _lay_out(
    section: Section,
    request: Request,
    card: CheckpointCard,
    rows: NDArray[np.int64],
    shared: int,
    counterfactual: bool,
) -> Plan:
    windows: Windows | None = None
    further: tuple[str, ...] = ()
    if request.mode == "continuous":
        windows, patches, frame, further = place_windows(section, request, card, rows, counterfactual)
        read = windows.source_boxes
    else:
        patches, frame = _place_patches(section, request, card, rows)
        read = np.array([patch.source_box for patch in patches])
    used = section.spots.ids[rows if windows is None else np.unique(windows.rows)]
    notes = (*_notes(section, request, card, read, shared, counterfactual), *_misses(request, used), *further)
    return Plan(
        request=request,
        card=card,
        patches=patches,
        frame=frame,
        sampling=resolve_sampling(request, card, counterfactual),
        genes_shared=shared,
        notes=notes,
        windows=windows,
        counterfactual=counterfactual,
    )


def _place_patches(
    section: Section, request: Request, card: CheckpointCard, rows: NDArray[np.int64]
) -> tuple[tuple[Patch, ...], CanvasFrame]:
    pixel_size = card.patch_mpp / section.mpp
    boxes = boxes_around(section.spots.yx[rows], card.patch_px, pixel_size)
    frame, shift = _frame(boxes, pixel_size)
    patches = []
    for index, (row, box) in enumerate(zip(rows.tolist(), boxes, strict=True)):
        spot = str(section.spots.ids[row])
        y0, x0, y1, x1 = box.canvas
        place = (y0 - shift[0], x0 - shift[1], y1 - shift[0], x1 - shift[1])
        patches.append(Patch(index, spot, row, box.source, place, patch_seed(request.seed, spot)))
    return tuple(patches), frame


def _frame(boxes: Sequence[Box], pixel_size: float) -> tuple[CanvasFrame, tuple[int, int]]:
    corners = np.array([box.canvas for box in boxes])
    y0, x0 = (int(v) for v in corners[:, :2].min(axis=0))
    y1, x1 = (int(v) for v in corners[:, 2:].max(axis=0))
    return CanvasFrame((y1 - y0, x1 - x0), (y0 * pixel_size, x0 * pixel_size), pixel_size), (y0, x0)


def _notes(
    section: Section,
    request: Request,
    card: CheckpointCard,
    read: NDArray[np.float64],
    shared: int,
    counterfactual: bool,
) -> tuple[str, ...]:
    notes = [section.expression.statement] if section.expression.statement else []
    if card.expression_given and request.expression != "null":
        notes = ["expression is what the given embeddings say of each spot; no count of the section was used"]
    notes += [section.excluded.statement] if section.excluded is not None else []
    notes += [] if counterfactual else preset_notes(request, card)
    if counterfactual and request.fresh_noise:
        notes.append(f"{100 * request.fresh_noise:g} % of the noise is fresh: details differ from the slide")
    if request.counterfactual == "auto" and not counterfactual and any(edit.enabled for edit in request.edits):
        notes.append(f"new tissue was made, this tissue was not edited: {counterfactual_fault(request, card)}")
    if request.expression != "null" and "expression" not in card.conditions:
        notes.append(f"checkpoint {card.name!r} is not conditioned on expression: its images follow morphology alone")
    elif request.expression != "null" and shared < _genes_needed(card):
        rest = "; expression then says nothing, every spot looks the same to the checkpoint" if shared == 0 else ""
        notes.append(
            f"{shared} of the checkpoint's {len(card.genes)} genes are shared, the others count as their training mean{rest}"
        )
    notes += _edit_notes(section, request, card)
    if request.morphology == "own" and section.image is not None:
        what = "windows" if request.mode == "continuous" else "patches"
        limit = np.array(section.image.shape) * section.image.pixel_size
        off = int(((read[:, :2] < 0).any(axis=1) | (read[:, 2:] > limit).any(axis=1)).sum())
        if off:
            notes.append(f"{off} {what} reach over the slide's edge; what lies outside is read as blank glass")
    if section.synthetic:
        notes.append("the section itself is synthetic")
    return tuple(notes)


def _edit_notes(section: Section, request: Request, card: CheckpointCard) -> list[str]:
    """Return notes: the genes of each edit that the checkpoint does not read, and what follows the edits."""
    programs, notes = known_programs(request.programs), list[str]()
    can_follow = any(follows(edit) for edit in request.edits if edit.enabled) and following_fault(section.spots) is None
    for number, edit in enumerate(request.edits):
        names = edited_genes(edit, programs)
        if isinstance(edit, Towards) and edit.enabled and edit.target_profile in request.profiles:
            target = tuple(request.profiles[edit.target_profile].values)
            if lacking := unread_genes(names, target, section.spots.genes):
                notes.append(
                    f"edits[{number}]: {edit.target_profile} lacks {len(lacking)} of its {len(names)} genes, which stay as "
                    f"measured: {some_of(lacking, 8)}"
                )
        unread = unread_genes(names, card.genes, section.spots.genes)
        if not unread or not edit.enabled:
            continue
        some = ", ".join(unread[:8]) + (" ..." if len(unread) > 8 else "")
        if can_follow and follows(edit):
            effect = "act only through the genes that follow"
        elif len(unread) == len(names):
            effect = "have no effect: this edit changes nothing"
        else:
            effect = "have no effect"
        notes.append(
            f"edits[{number}]: {len(unread)} of its {len(names)} genes are not read by the checkpoint and {effect}: {some}"
        )
    if request.expression == "null" or not card.genes:
        return notes
    notes += [table_note(edit, section.spots) for edit in active_edits(request.edits) if isinstance(edit, Table)]
    return notes + following_notes(section.spots, request.edits, programs, card.genes)


def _misses(request: Request, ids: NDArray[np.str_]) -> list[str]:
    """Return notes on edits that change none of the spots that a plan reads."""
    found = []
    for number, edit in enumerate(request.edits):
        listed = _listed(edit)
        if edit.enabled and edit.strength > 0 and listed is not None and not np.isin(ids, listed).any():
            found.append(f"edits[{number}]: none of its spots is made here, so it changes nothing")
    return found


def _listed(edit: Edit) -> list[str] | None:
    """Return the spots that an edit lists; None where it is for every spot."""
    if isinstance(edit, Swap):
        return [*edit.group_a, *edit.group_b]
    return None if edit.spots is None else [spot for spot, weight in edit.spots.items() if weight > 0]


@dataclass(frozen=True)
class Estimate:
    """Cost of a plan.

    Attributes
    ----------
    patches
        Patches to compute.
    canvas_bytes
        Memory of the canvas.
    seconds
        Time, from the pace of earlier patches on this device; None before any was measured.
    """

    patches: int
    canvas_bytes: int
    seconds: float | None


def estimate(
    plan: Plan,
    seconds_per_prediction: float | None = None,
    samples: int = 1,
    *,
    ids: NDArray[Any] | None = None,
    kept: float = 0.0,
) -> Estimate:
    """Estimate the cost of a plan for a number of samples; in continuous mode a window counts as a patch.

    ``seconds_per_prediction`` is the measured time of one prediction for one patch; ``ids`` and ``kept`` are those of `evaluations`.
    """
    height, width = plan.frame.shape
    seconds = None
    if seconds_per_prediction is not None:
        seconds = seconds_per_prediction * evaluations(plan, ids=ids, kept=kept) * samples
    return Estimate(len(plan) * samples, height * width * BYTES_PER_PIXEL * samples, seconds)


def evaluations(plan: Plan, done: int | None = None, *, ids: NDArray[Any] | None = None, kept: float = 0.0) -> float:
    """Return the number of predictions, each for a single patch or window, of a plan, or of ``done`` of its patches.

    For an edit of real tissue, ``ids`` are those of the section's spots, without which it counts as reaching everything, and ``kept`` is
    the share of the reached spots whose noise is cached.
    """
    if (
        plan.counterfactual
    ):  # one branch: to the noise unless it is kept, and back; back twice where the change is weighed
        back = 1 if plan.request.edit_scale == 1 else 2
        return (plan.steps + 1) * (1 - kept + back) * len(edited_places(plan, ids))
    share = 1.0 if done is None else done / len(plan)
    return share * _predictions(plan) * len(plan if plan.windows is None else plan.windows)


def edited_places(plan: Plan, ids: NDArray[Any] | None = None) -> frozenset[int]:
    """Return the places in reach of the edits by their lists of spots: rows of the spots of patches, or numbers of windows."""
    rows = spot_rows(plan)
    touched = np.zeros(len(rows), dtype=bool)
    for edit in plan.request.edits:
        if edit.enabled and edit.strength > 0:
            listed = _listed(edit)
            touched |= True if ids is None or listed is None else np.isin(ids[rows], listed)
    if plan.windows is None:
        return frozenset(rows[touched].tolist())
    reached = reached_windows(plan.windows, changed_windows(plan.windows, rows, touched))
    return frozenset(np.flatnonzero(reached).tolist())


def _predictions(plan: Plan) -> float:
    """Return the predictions of a patch: of several branches at guided steps, of one at the others."""
    scales = plan.guidance
    given = {"has_morphology": plan.has_morphology, "has_expression": plan.has_expression}
    count = len(branches(scales.rule, scales.morphology, scales.expression, **given))
    above = scales.above
    return plan.steps * ((1 - above) * count + above)
