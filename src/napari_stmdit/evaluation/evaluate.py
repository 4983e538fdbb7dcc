"""Evaluate a checkpoint on sections that it was not trained on: synthesize under true and broken conditions, measure, report."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from ..errors import RequestError
from ..progress import BATCH, CancelToken, Progress
from ..synthesis.models import PatchModel
from ..types import Section
from .cases import EvaluationRequest
from .command import equivalent_command
from .counterfactual import CounterfactualCheck
from .features import FeatureSpace
from .figures import figures_of
from .opening import Source, open_sections
from .preparing import prepare
from .report import EvaluationReport, about_checkpoint, check_report, write_report

OUTPUT = "stmdit-evaluation"
T = TypeVar("T")


@dataclass(frozen=True)
class Evaluated:
    """What came of an evaluation.

    Attributes
    ----------
    folder
        Where the patches, the report and its figures are.
    done, total
        Patches that are finished, and all.
    report
        None where it was stopped; the same with ``resume`` goes on.
    """

    folder: Path
    done: int
    total: int
    report: EvaluationReport | None = None

    @property
    def complete(self) -> bool:
        """Whether it came to its end."""
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
        A section or several, or paths; a folder that is no section stands for those in it.
    request
        How many spots and seeds, and by what they are judged; the defaults where it is None.
    output
        Folder for ``report.html``, ``report.json`` and the patches.
    predictor_sections
        Other sections, whose real patches teach a regression to read expression off a patch. Without them, and without
        ``request.predictor``, it is cross-validated on the evaluated sections.
    spaces
        Feature spaces of one's own in place of those that the request names, such as
        `napari_stmdit.evaluation.spaces.TorchSpace`.
    command
        The command line, for the report; None for one that asks for the same.
    resume
        Go on with the evaluation that is in the folder; start where there is none.
    batch
        Patches denoised together; does not change the result.
    device, dtype
        Where the checkpoint is loaded, and its precision, where it is not loaded yet.
    cancel, on_progress
        To stop it, and to be told how far it is.

    Returns
    -------
    Evaluated
        With the report, or without one where it was cancelled.

    Raises
    ------
    StmditError
        Where something cannot be opened, planned, synthesized or written. What is finished is kept.
    """
    opened = open_sections(sections)
    others = open_sections(predictor_sections, place="predictor section") if _any(predictor_sections) else ()
    model: Any = checkpoint
    if isinstance(checkpoint, str | Path):
        from ..assemble import load_checkpoint

        model = load_checkpoint(checkpoint, device=device, dtype=dtype)
    steps = evaluation_steps(
        opened,
        model,
        request or EvaluationRequest(),
        output,
        predictor_sections=others,
        spaces=spaces,
        checkpoint=None if checkpoint is model else str(checkpoint),
        command=command,
        resume=resume,
        batch=batch,
        cancel=cancel,
    )
    return finish(steps, on_progress)


def finish(
    steps: Generator[Progress, None, Evaluated], on_progress: Callable[[Progress], None] | None = None
) -> Evaluated:
    """Drive the steps of an evaluation to their end."""
    while True:
        try:
            progress = next(steps)
        except StopIteration as end:
            done: Evaluated = end.value
            return done
        if on_progress is not None:
            on_progress(progress)


def evaluation_steps(
    sections: Sequence[Section],
    model: PatchModel,
    request: EvaluationRequest,
    output: str | Path,
    *,
    predictor_sections: Sequence[Section] = (),
    spaces: Sequence[FeatureSpace] | None = None,
    checkpoint: str | None = None,
    command: str | None = None,
    resume: bool = False,
    batch: int = BATCH,
    cancel: CancelToken | None = None,
) -> Generator[Progress, None, Evaluated]:
    """Evaluate step by step: yields after every denoising step and returns what came of it; see `evaluate`.

    ``checkpoint`` is how the user called it, for the command line of the report.
    """
    folder, cancel = Path(output).expanduser(), cancel or CancelToken()
    check = counterfactual_check(sections, model, request, folder, batch, cancel)
    work, figures, edits = None, [], None
    if "conditions" in request.parts:
        work = prepare(sections, model, request, folder, predictor_sections, spaces, resume)
    else:
        assert check is not None  # a request has at least one part
        check_report(folder, about_checkpoint(check.plan, model, sections, request, 0), resume)
    done, total = 0, (0 if work is None else work.total) + (0 if check is None else check.total)
    if work is not None:
        done = yield from _of_all(work.synthesize(batch, cancel), 0, total)
        if done < work.total:
            return Evaluated(folder, done, total)
        figures.append(figures_of(work.evidence(), request.draws))
        seen, notes = (work.plans[0], work.request, work.watch), list(work.notes)
        sections_of = [one.section for one in work.spots]
    if check is not None:
        edits = yield from _of_all(check.run(), done, total)
        done += check.done
        if edits is None:
            return Evaluated(folder, done, total)
    if work is None and check is not None:
        seen, notes, sections_of = (check.plan, request, check.watch), list(check.plan.notes), list(sections)
    about = about_checkpoint(seen[0], model, sections_of, seen[1], seen[2].seconds)
    if work is None and check is not None:
        about["steps"] = check.steps
    about["notes"] = notes
    told = command or equivalent_command(
        sections,
        checkpoint or model.card.name,
        request,
        folder,
        predictor_sections=predictor_sections,
        own_spaces=bool(spaces),
        provenance=model.provenance,
    )
    return Evaluated(folder, total, total, write_report(folder, about, figures, told, edits))


def _of_all(steps: Generator[Progress, None, T], before: int, total: int) -> Generator[Progress, None, T]:
    """Drive one part of an evaluation; its progress counts what was done before, and the patches of all parts."""
    while True:
        try:
            progress = next(steps)
        except StopIteration as end:
            found: T = end.value
            return found
        yield replace(progress, patches_done=before + progress.patches_done, patches_total=total)


def counterfactual_check(
    sections: Sequence[Section],
    model: PatchModel,
    request: EvaluationRequest,
    folder: Path,
    batch: int,
    cancel: CancelToken,
) -> CounterfactualCheck | None:
    """Return the check of edits of real tissue, or None where it was not asked for.

    Raises
    ------
    RequestError
        There are several sections, or the checkpoint or the section allow no edits.
    """
    if "counterfactual" not in request.parts:
        return None
    if len(sections) != 1:
        names = ", ".join(section.name for section in sections)
        raise RequestError([("parts", f"counterfactual is checked on one section, got {len(sections)} ({names})")])
    return CounterfactualCheck(sections[0], model, request, folder, batch, cancel)


def _any(sources: Source | Sequence[Source]) -> bool:
    return isinstance(sources, Section | str | Path) or len(sources) > 0
