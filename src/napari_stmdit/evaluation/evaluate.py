"""Evaluation of a checkpoint on sections that it was not trained on: prepare and check, synthesize, measure, report."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ..edits import Towards
from ..errors import RequestError, SectionError, StmditError, first_line
from ..expression.genes import gather_counts, match_genes
from ..progress import BATCH, CancelToken, Progress, finish, mapped
from ..storage.fingerprint import of_arrays
from ..synthesis.conditions import Conditions
from ..synthesis.models import PatchModel
from ..synthesis.plan import plan as make_plan
from ..synthesis.requests import EditFile, read_edit_file, write_edit_file
from ..tissue.excluded import exclude_file
from ..tissue.open import open_section
from ..types import Orientation, Plan, Section
from .cases import MIN_SPOTS, Case, EvaluationRequest, cases_of
from .counterfactual import CounterfactualCheck
from .figures import figures_of
from .measures import PatchMetrics, SpotSet, find_lpips
from .reading import (
    ExpressionReader,
    log_levels,
    read_predictor,
    reader_across_blocks,
    reader_from_sections,
    reader_of_user,
)
from .report import EvaluationReport, about_checkpoint, check_report, write_report
from .spaces import FeatureSpace, open_spaces
from .work import Job, StackFolder, StackNaming, Work


def prepare(
    sections: Sequence[Section],
    model: PatchModel,
    request: EvaluationRequest,
    folder: Path,
    predictor_sections: Sequence[Section] = (),
    spaces: Sequence[FeatureSpace] | None = None,
    resume: bool = False,
) -> Work:
    """Check everything and plan the work; nothing is synthesized yet.

    Raises
    ------
    RequestError
        With every fault.
    StoreError
        The folder holds another evaluation, or this one without ``resume``, or cannot be written.
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
    names = [StackNaming(one.section, model) for one in spots]
    jobs = []
    for case in cases:
        for seed in range(request.seeds):
            for group, one in enumerate(spots):
                plan = _plan(one, case, request, seed, model)
                conditions, further = _across(case, one, others, request.seed + seed, model)
                jobs.append(Job(case, seed, group, plan, names[group].key(plan, further), conditions))
    opened = tuple(spaces) if spaces else open_spaces(request.feature_spaces, model)
    reader = _reader(request, spots, model, opened, predictor_sections)
    lpips, reason = find_lpips()
    notes += [reason] if reason else []
    crops = np.concatenate([one.crops for one in spots])
    metrics = PatchMetrics(crops, model.card.patch_um, opened, lpips)
    return Work(spots, model, request, tuple(jobs), stacks, metrics, reader, cases, tuple(dict.fromkeys(notes)))


def choose_spots(sections: Sequence[Section], model: PatchModel, request: EvaluationRequest) -> tuple[SpotSet, ...]:
    """Draw the spots evenly over the sections; a section with fewer gives all it has.

    Raises
    ------
    RequestError
        There are fewer than `MIN_SPOTS` in all, or a section is given twice.
    """
    names = [section.name for section in sections]
    chosen = []
    for number, section in enumerate(sections):
        share = request.spots // len(sections) + (number < request.spots % len(sections))
        rng = np.random.default_rng([request.seed, number])
        chosen.append(np.sort(rng.permutation(len(section.spots))[:share]))
    count = sum(map(len, chosen))
    if count < MIN_SPOTS:
        raise RequestError(
            [("spots", f"the sections ({', '.join(names)}) have {count} spots, at least {MIN_SPOTS} are needed")]
        )
    return tuple(SpotSet(section, rows, model) for section, rows in zip(sections, chosen, strict=True) if len(rows))


def _plan(one: SpotSet, case: Case, request: EvaluationRequest, seed: int, model: PatchModel) -> Plan:
    try:
        return make_plan(one.section, case.request(request, one.ids, seed, model.card.name), model)
    except RequestError as error:
        raise RequestError([(f"{one.section.name}: {place}", text) for place, text in error.faults]) from None


def _with_edits(
    request: EvaluationRequest, sections: Sequence[Section], model: PatchModel, notes: list[str]
) -> EvaluationRequest:
    """Fill in a missing edit: towards the checkpoint's profile that is farthest from the sections."""
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
    return request.model_copy(update={"edits": (Towards(name=f"towards {chosen}", target_profile=chosen),)})


def _across(
    case: Case, one: SpotSet, sections: Sequence[Section], seed: int, model: PatchModel
) -> tuple[Conditions | None, str]:
    """Return the conditions of spots of another section, if a case needs them, and their identity for the name of a stack."""
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
    conditions = Conditions(counts, tuple(other.spots.ids[rows].tolist()), None, depth)
    return conditions, f"expression {of_arrays(counts.indptr, counts.indices, counts.data, depth)}"


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


# The work, once everything is checked.


OUTPUT = "stmdit-evaluation"
Source = Section | str | Path
T = TypeVar("T")


@dataclass(frozen=True)
class Evaluated:
    """Outcome of an evaluation.

    Attributes
    ----------
    folder
        Folder of the patches, the report and its figures.
    done, total
        Finished patches, and all.
    report
        The report; None where it was stopped, and ``resume`` continues.
    """

    folder: Path
    done: int
    total: int
    report: EvaluationReport | None = None

    @property
    def complete(self) -> bool:
        """Whether it finished."""
        return self.report is not None


def evaluate(
    checkpoint: str | Path | PatchModel,
    sections: Source | Sequence[Source],
    request: EvaluationRequest | None = None,
    *,
    output: str | Path = OUTPUT,
    predictor_sections: Source | Sequence[Source] = (),
    spaces: Sequence[FeatureSpace] | None = None,
    command: str | None = None,
    called: str | None = None,
    resume: bool = False,
    batch: int = BATCH,
    device: str = "auto",
    dtype: str = "auto",
    cancel: CancelToken | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Evaluated:
    """Evaluate a checkpoint on sections that it was not trained on.

    Parameters
    ----------
    checkpoint
        A name, a folder, or a loaded checkpoint.
    sections
        One or several sections, or paths; a folder that is no section stands for those in it.
    request
        Spots, seeds and metrics; None for the defaults.
    output
        Folder for ``report.html``, ``report.json`` and the patches.
    predictor_sections
        Other sections to fit the regression that reads expression off a patch. Without them, and without
        ``request.predictor``, it is cross-validated on the evaluated sections.
    spaces
        Feature spaces of one's own in place of those that the request names, such as
        `napari_stmdit.evaluation.spaces.TorchSpace`.
    command
        Command line for the report; None for an equivalent one.
    called
        Name of a loaded checkpoint for that command line; None: its card's.
    resume
        Whether to continue the evaluation in the folder; starts where there is none.
    batch
        Patches denoised together; does not change the result in float32.
    device, dtype
        Device and precision to load the checkpoint with.
    cancel, on_progress
        Token that stops it, and function called with its progress.

    Returns
    -------
    Evaluated
        With the report, or without one where it was cancelled.

    Raises
    ------
    StmditError
        Something cannot be opened, planned, synthesized or written. Finished patches are kept.
    """
    opened = open_sections(sections)
    any_others = isinstance(predictor_sections, Source) or len(predictor_sections) > 0
    others = open_sections(predictor_sections, place="predictor section") if any_others else ()
    request, model = request or EvaluationRequest(), checkpoint
    if isinstance(model, str | Path):
        from ..assemble import load_checkpoint

        called, model = str(model), load_checkpoint(model, device=device, dtype=dtype)
    folder, cancel = Path(output).expanduser(), cancel or CancelToken()
    check = _counterfactual_check(opened, model, request, folder, batch, cancel)
    work, figures, edits = None, [], None
    if "conditions" in request.parts:
        work = prepare(opened, model, request, folder, others, spaces, resume)
    else:
        check_report(folder, _about(work, check, model, opened, request), resume)
    done, total = 0, sum(part.total for part in (work, check) if part is not None)
    if work is not None:
        done = finish(_of_all(work.synthesize(batch, cancel), 0, total), on_progress)
        if done < work.total:
            return Evaluated(folder, done, total)
        figures.append(figures_of(work.measurements(), request.draws))
    if check is not None:
        edits = finish(_of_all(check.run(), done, total), on_progress)
        if edits is None:
            return Evaluated(folder, done + check.done, total)
    command = command or equivalent_command(
        opened,
        called or model.card.name,
        request,
        folder,
        predictor_sections=others,
        own_spaces=bool(spaces),
        provenance=model.provenance,
    )
    about = _about(work, check, model, opened, request)
    return Evaluated(folder, total, total, write_report(folder, about, figures, command, edits))


def _about(
    work: Work | None,
    check: CounterfactualCheck | None,
    model: PatchModel,
    sections: Sequence[Section],
    request: EvaluationRequest,
) -> dict[str, Any]:
    if work is not None:
        evaluated = [one.section for one in work.spots]
        about = about_checkpoint(work.plans[0], model, evaluated, work.request, work.watch.seconds)
        return about | {"notes": list(work.notes)}
    assert check is not None  # a request has at least one part
    about = about_checkpoint(check.plan, model, sections, request, check.watch.seconds)
    return about | {"steps": check.steps, "notes": list(check.plan.notes)}


def _of_all(steps: Generator[Progress, None, T], before: int, total: int) -> Generator[Progress, None, T]:
    """Run one part of an evaluation; its progress counts the patches of all parts."""
    return mapped(steps, lambda at: replace(at, patches_done=before + at.patches_done, patches_total=total))


def _counterfactual_check(
    sections: Sequence[Section],
    model: PatchModel,
    request: EvaluationRequest,
    folder: Path,
    batch: int,
    cancel: CancelToken,
) -> CounterfactualCheck | None:
    """Return the check of edits of real tissue, None where it was not requested; refuses several sections."""
    if "counterfactual" not in request.parts:
        return None
    if len(sections) != 1:
        names = ", ".join(section.name for section in sections)
        raise RequestError([("parts", f"counterfactual is checked on one section, got {len(sections)} ({names})")])
    return CounterfactualCheck(sections[0], model, request, folder, batch, cancel)


# ------------------------------------------------------------------------------------------------- opening sections


def open_sections(
    sources: Source | Sequence[Source],
    fullres: str | Path | None = None,
    mpp: float | None = None,
    place: str = "section",
    exclude: str | Path | None = None,
    factors: str | Path | None = None,
    orientation: Orientation = "as-given",
) -> tuple[Section, ...]:
    """Open sections; a folder that is no section itself stands for all sections in it.

    Parameters
    ----------
    sources
        Sections, or paths as `napari_stmdit.open_section` takes them.
    fullres, mpp, exclude, factors, orientation
        Full-resolution image, scale, GeoJSON regions of spots to exclude, values of each spot in place of counts, and orientation of the spots over
        the slide; for a single section only.
    place
        Name of the argument in messages.

    Raises
    ------
    RequestError
        With every source that cannot be opened, and why.
    """
    given = [sources] if isinstance(sources, Section | str | Path) else list(sources)
    found: list[Section] = []
    faults = []
    for source in given:
        try:
            found += (
                [source] if isinstance(source, Section) else _open(Path(source), fullres, mpp, factors, orientation)
            )
        except StmditError as error:
            faults.append((f"{place} {getattr(source, 'name', source)}", str(error)))
    if not faults and not found:
        faults.append((place, "none was given"))
    turned = None if orientation == "as-given" else orientation
    if not faults and len(found) > 1 and any(one is not None for one in (fullres, mpp, exclude, factors, turned)):
        said = f"--fullres, --mpp, --factors, --exclude and --orientation are for a single section, {len(found)} were given"
        faults.append((place, said))
    if not faults and exclude is not None:
        found = [exclude_file(found[0], exclude)]
    if faults:
        raise RequestError(faults)
    return tuple(found)


def _open(
    path: Path,
    fullres: str | Path | None,
    mpp: float | None,
    factors: str | Path | None,
    orientation: Orientation,
) -> list[Section]:
    try:
        return [open_section(path, fullres=fullres, mpp=mpp, factors=factors, orientation=orientation)]
    except SectionError as error:
        inside = [child for child in sorted(path.iterdir()) if child.is_dir()] if path.is_dir() else []
        if "is no tissue section that can be read" not in str(error) or not inside:
            raise
        found, reasons = [], []
        for child in inside:
            try:
                found.append(open_section(child, mpp=mpp))
            except SectionError as reason:
                reasons.append(f"{child.name}: {first_line(reason)}")
        if not found:
            raise SectionError(f"{error}; nor is any folder in it: {'; '.join(reasons[:5])}") from None
        return found


# ------------------------------------------------------------------------------------------------- the same as a command line

EDITS = "edits.yaml"


def equivalent_command(
    sections: Sequence[Section],
    checkpoint: str,
    request: EvaluationRequest,
    folder: Path,
    *,
    predictor_sections: Sequence[Section] = (),
    own_spaces: bool = False,
    provenance: Mapping[str, Any] | None = None,
) -> str:
    """Return an equivalent command line; a comment behind it names what no option can express.

    Edits are written into a file in the report's ``folder``, which the command names. ``provenance`` is the checkpoint's: it shows
    whether embeddings replaced its encoders. Raises `RequestError` where the file cannot be written.
    """
    words = ["stmdit", "evaluate", checkpoint, *(_place(section) for section in sections)]
    words += ["--seed", str(request.seed), "--draws", str(request.draws)]
    if "conditions" in request.parts:
        words += ["--spots", str(request.spots), "--seeds", str(request.seeds), "--genes", str(request.genes)]
    if request.parts != ("conditions",):
        words += [part for name in request.parts for part in ("--parts", name)]
        swaps = ["--pairs", str(request.pairs), "--mode", request.mode]
        words += swaps if "counterfactual" in request.parts else []
    given = {
        "--steps": request.steps,
        "--guidance-expression": request.guidance.expression,
        "--guidance-morphology": request.guidance.morphology,
        "--predictor": request.predictor,
        "--edits": _edits_file(request, folder),
        **(opened_with(sections[0]) if len(sections) == 1 else {}),
    }
    words += [part for name, value in given.items() if value is not None for part in (name, str(value))]
    spaces = request.feature_spaces if "conditions" in request.parts else ()
    words += [part for name in spaces for part in ("--feature-space", name)]
    words += [part for section in predictor_sections for part in ("--predictor-sections", _place(section))]
    words += ["--allow-gene-mismatch"] if request.allow_gene_mismatch else []
    line = shlex.join([*words, "--output", str(folder)])
    missing = [*_without_option(sections, predictor_sections, request)]
    missing += ["feature spaces of the caller's own"] if own_spaces else []
    brought = [name for name in provenance or {} if name.endswith("_embeddings")]
    missing += [f"{name.replace('_', ' ')} in place of an encoder" for name in brought]
    comment = " ".join("; ".join(missing).split())  # a line break in a name would end it
    return f"{line}  # no option says: {comment}" if comment else line


def _place(section: Section) -> str:
    return str(section.path or section.name)


def opened_with(section: Section) -> dict[str, Any]:
    """Return the options that a single section was opened with."""
    image, scale = section.image, section.calibration
    from_file = image is not None and section.kind != "image" and image.pixel_size == 1 and Path(image.source).is_file()
    return {
        "--fullres": image.source if image is not None and from_file else None,
        "--mpp": scale.mpp if scale.source == "override" else None,
        "--factors": section.expression.place or None,
        "--orientation": None if section.orientation == "as-given" else section.orientation,
    }


def _edits_file(request: EvaluationRequest, folder: Path) -> Path | None:
    """Write the edits beside the report; an earlier file with others keeps its name."""
    if not request.edits:
        return None
    file = EditFile(edits=request.edits, programs=request.programs, profiles=request.profiles)
    for number in count(1):
        path = folder / (EDITS if number == 1 else f"edits-{number}.yaml")
        if not path.exists():
            write_edit_file(file, path)
            return path
        if path.is_file() and _holds(path, file):
            return path
    return None


def _holds(path: Path, file: EditFile) -> bool:
    try:
        return read_edit_file(path) == file
    except RequestError:
        return False


def _without_option(
    sections: Sequence[Section], others: Sequence[Section], request: EvaluationRequest
) -> Iterator[str]:
    """Yield the parts of a request that no option of the command can express."""
    if request.guidance.rule is not None:
        yield f"guidance rule {request.guidance.rule}"
    if request.guidance.above is not None:
        yield f"guidance above noise level {request.guidance.above:g} alone"
    for section in (*sections, *others):
        if section.path is None:
            yield f"{section.name} was not opened from a path"
        if section.excluded is not None:
            yield f"{section.excluded.statement} (--exclude FILE)"
        if section.kind == "image":
            yield f"the grid of spots of {section.name} and its predicted expression, where they are not the default"
    for section in (*(sections if len(sections) > 1 else ()), *others):
        if section.calibration.source == "override":
            yield f"{section.name} was opened with {section.calibration.mpp} um/px"
