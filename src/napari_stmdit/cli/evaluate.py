"""``stmdit evaluate``, ``evaluate-result`` and ``figure``: a checkpoint on held-out sections, or results in a store."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import RequestError, StmditError
from ..progress import BATCH, CancelToken
from ._common import (
    AllowGeneMismatch,
    Batch,
    Device,
    DType,
    Exclude,
    Factors,
    GuidanceExpression,
    GuidanceMorphology,
    InterruptCancels,
    Json,
    Mpp,
    Orientation,
    ProgressBar,
    Results,
    machine_option,
    output_option,
    print_json,
    request_option,
    sampling_option,
    section_option,
)

if TYPE_CHECKING:
    from ..evaluation.cases import EvaluationRequest
    from ..evaluation.evaluate import Evaluated

CONFIGS = (".yaml", ".yml")
PARTS = ("conditions", "counterfactual")
FOR_PART = {
    "conditions": (
        "spots",
        "seeds",
        "guidance_expression",
        "guidance_morphology",
        "feature_space",
        "edits",
        "predictor",
        "predictor_sections",
        "genes",
    ),
    "counterfactual": ("pairs", "mode"),
}
"""Options of a single part; they are refused where that part is not evaluated."""

conditions_option = partial(typer.Option, rich_help_panel="Of the part conditions")
edits_option = partial(typer.Option, rich_help_panel="Of the part counterfactual")
Folder = Annotated[Path, output_option("--output", help="Folder for report.html, report.json and the patches.")]
FeatureSpaces = Annotated[
    list[str] | None,
    request_option(
        "--feature-space",
        help="encoder (the checkpoint's own), random, uni2h, uni2h=FILE or timm:NAME=FILE; several may be given; expression is read in "
        "the first.",
    ),
]
Draws = Annotated[int, request_option(help="Bootstrap samples.")]
Fullres = Annotated[Path | None, section_option(help="Full-resolution image of a single section.")]
Resume = Annotated[
    bool, output_option("--resume", help="Go on with the evaluation in the folder; start where there is none.")
]
OUTPUT = Path("stmdit-evaluation")


def evaluate(
    ctx: typer.Context,
    checkpoint: Annotated[str, typer.Argument(help="Name or folder of a checkpoint.")],
    sections: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SECTION",
            help="The sections to try it on, a folder of them, or a training configuration, whose held-out sections are meant.",
        ),
    ] = None,
    output: Folder = OUTPUT,
    parts: Annotated[
        list[str] | None,
        request_option(
            help="conditions (images under true and broken conditions; the default), counterfactual (edits of real tissue) or all; several "
            "may be given."
        ),
    ] = None,
    feature_space: FeatureSpaces = None,
    draws: Draws = 1000,
    allow_gene_mismatch: AllowGeneMismatch = False,
    spots: Annotated[int, conditions_option(help="Spots, drawn with the seed and shared out over the sections.")] = 60,
    seeds: Annotated[int, conditions_option(help="Images of each spot in each case.")] = 2,
    edits: Annotated[Path | None, conditions_option(help="YAML file with the edits to evaluate.")] = None,
    predictor: Annotated[
        Path | None,
        conditions_option(help="Linear predictor of expression, .npz or .safetensors, in place of a fitted one."),
    ] = None,
    predictor_sections: Annotated[
        list[Path] | None,
        conditions_option(
            help="Other sections to fit a predictor to; several may be given; of a training configuration, those it trains on."
        ),
    ] = None,
    genes: Annotated[int, conditions_option(help="Most variable genes that fidelity is measured on.")] = 200,
    pairs: Annotated[int, edits_option(help="Pairs of spots whose expression is swapped.")] = 64,
    mode: Annotated[
        str, edits_option(help="spots (swaps in single patches) or continuous (in painted regions).")
    ] = "spots",
    seed: Annotated[int, sampling_option(help="First seed.")] = 0,
    steps: Annotated[int | None, sampling_option(help="Denoising steps.")] = None,
    guidance_expression: GuidanceExpression = None,
    guidance_morphology: GuidanceMorphology = None,
    fullres: Fullres = None,
    mpp: Mpp = None,
    factors: Factors = None,
    exclude: Exclude = None,
    orientation: Orientation = "as-given",
    batch: Batch = BATCH,
    device: Device = "auto",
    dtype: DType = "auto",
    resume: Resume = False,
    as_json: Json = False,
) -> None:
    """Synthesize held-out spots under true and broken conditions, and report with intervals what may be claimed.

    Finished patches are kept in the output folder; stopped or killed, the same command with --resume goes on.
    """
    from ..assemble import load_checkpoint
    from ..evaluation.evaluate import evaluate as evaluate_checkpoint

    if not sections:
        raise StmditError(
            f"got {checkpoint} alone: give a checkpoint and at least one section (stmdit evaluate CHECKPOINT SECTION...); a store with "
            "results is evaluated by stmdit evaluate-result OUT.zarr"
        )
    asked = _parts(parts or ["conditions"])
    _refuse_for_parts(ctx, asked)
    request = _request(
        {
            "parts": asked,
            "pairs": pairs,
            "mode": mode,
            "spots": spots,
            "seeds": seeds,
            "seed": seed,
            "steps": steps,
            "guidance": {"expression": guidance_expression, "morphology": guidance_morphology},
            "feature_spaces": tuple(feature_space or ("encoder", "random")),
            "genes": genes,
            "predictor": None if predictor is None else str(predictor),
            "draws": draws,
            "allow_gene_mismatch": allow_gene_mismatch,
        },
        edits,
    )
    how_opened = {"fullres": fullres, "mpp": mpp, "factors": factors, "exclude": exclude, "orientation": orientation}
    opened = _sections(sections, "held_out", **how_opened)
    others = _sections([str(path) for path in predictor_sections or ()], "train")
    model, cancel = load_checkpoint(checkpoint, device=device, dtype=dtype), CancelToken()
    how: dict[str, Any] = {"command": _command(), "resume": resume, "batch": batch, "cancel": cancel}
    with ProgressBar("evaluating") as on_progress, InterruptCancels(cancel):
        found = evaluate_checkpoint(
            model, opened, request, output=output, predictor_sections=others, on_progress=on_progress, **how
        )
    _report(found, as_json)


def evaluate_result(
    result: Results,
    output: Folder = OUTPUT,
    runs: Annotated[list[str] | None, request_option("--run", help="A result to evaluate; all by default.")] = None,
    feature_space: FeatureSpaces = None,
    draws: Draws = 1000,
    section: Annotated[Path | None, section_option(help="The section that its results were made from.")] = None,
    fullres: Fullres = None,
    checkpoint: Annotated[str | None, machine_option(help="The checkpoint that made its results.")] = None,
    resume: Resume = False,
    as_json: Json = False,
) -> None:
    """Compare results with the tissue that they were made from, and report with intervals what may be claimed."""
    from ..evaluation.results import evaluate_result as run_evaluation

    if not result.expanduser().exists() or (result / "stmdit.json").is_file():
        raise StmditError(
            f"{result} is no store with results that is there; give one that stmdit synthesize wrote (a checkpoint is evaluated by "
            "stmdit evaluate CHECKPOINT SECTION...)"
        )
    cancel = CancelToken()
    with InterruptCancels(cancel):
        found = run_evaluation(
            result,
            output=output,
            runs=tuple(runs or ()),
            feature_spaces=tuple(feature_space or ("random",)),
            checkpoint=checkpoint,
            section=section,
            fullres=fullres,
            draws=draws,
            command=_command(),
            resume=resume,
            cancel=cancel,
        )
    _report(found, as_json)


def _command() -> str:
    return shlex.join(["stmdit", *sys.argv[1:]])


def _refuse_for_parts(ctx: typer.Context, parts: Sequence[str]) -> None:
    for part, names in FOR_PART.items():
        given = [name for name in names if getattr(ctx.get_parameter_source(name), "name", "") == "COMMANDLINE"]
        if part not in parts and given:
            options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            raise StmditError(
                f"{options} is for the part {part}; got --parts {' --parts '.join(parts)} (add --parts {part})"
            )


def _parts(given: Sequence[str]) -> tuple[str, ...]:
    named = [name for text in given for name in text.split(",")]
    if unknown := [name for name in named if name not in (*PARTS, "all")]:
        raise StmditError(f"got --parts {', '.join(map(repr, unknown))}; expected {', '.join(PARTS)} or all")
    return PARTS if "all" in named else tuple(part for part in PARTS if part in named)


def _request(values: dict[str, Any], edits: Path | None) -> EvaluationRequest:
    from pydantic import ValidationError

    from ..evaluation.cases import EvaluationRequest
    from ..synthesis.requests import faults_from, read_edit_file

    if edits is not None:
        file = read_edit_file(edits)
        values = {**values, "edits": file.edits, "programs": file.programs, "profiles": file.profiles}
    try:
        return EvaluationRequest.model_validate(values)
    except ValidationError as error:
        raise RequestError(faults_from(error, "options")) from None


def _sections(places: Sequence[str], which: str, **how: Any) -> tuple[Any, ...]:
    """Open sections, ``how`` a single one; a training configuration stands for its held-out ones, or for those it trains on."""
    from ..evaluation.evaluate import open_sections
    from ..training.sections import sections_of_config

    sources: list[Any] = []
    for place in places:
        path = Path(place)
        if path.suffix.lower() in CONFIGS and path.is_file():
            sources += sections_of_config(path, which)
        else:
            sources.append(path)
    name = "section" if which == "held_out" else "predictor section"
    return open_sections(sources, place=name, **how) if sources else ()


def _report(found: Evaluated, as_json: bool) -> None:
    report = found.report
    if as_json:
        print_json(
            {
                "output": str(found.folder),
                "complete": found.complete,
                "done": found.done,
                "total": found.total,
                "report": None if report is None else str(report.html),
                "figures": None if report is None else str(report.json),
                "claims": [] if report is None else [claim.facts for claim in report.claims],
                **({name: value for name, value in report.facts.items() if name == "counterfactual"} if report else {}),
            }
        )
    elif report is None:
        sys.stdout.write(
            f"{found.done} of {found.total} are done (stopped); the same command with --resume goes on ({found.folder})\n"
        )
    else:
        summary = f"{report.summary}\n" if report.summary else ""
        sys.stdout.write(f"{summary}written: {report.html}, {report.json.name}\n")
    if report is None:
        raise typer.Exit(130)


def figure(
    result: Results,
    output: Annotated[Path, output_option(help="Figure to write; its ending says how: .png, .svg or .pdf.")],
    run: Annotated[str | None, request_option(help="The result; needed where the store holds several.")] = None,
    fullres: Annotated[
        Path | None,
        section_option(help="Full-resolution image of the section, of which the store keeps a smaller copy."),
    ] = None,
    width: Annotated[float, output_option(help="Width in mm.")] = 180.0,
    dpi: Annotated[int, output_option(help="Pixels per inch of its pictures.")] = 300,
) -> None:
    """Draw slide, edit, result and difference side by side, with scale bars, legends and what is synthetic."""
    from ..evaluation.paper_figure import write_figure
    from ..synthesis.stored import stored_results
    from ..tissue.open import open_section

    found = {one.element: one for one in stored_results(open_section(result, fullres=fullres))}
    names = ", ".join(found) or "none"
    wanted = [name for name in found if run in (None, name, name.removeprefix("stmdit_"))]
    if len(wanted) != 1:
        asked = f"no result {run}" if run is not None else "several results" if found else "no result of its section"
        raise StmditError(f"{result} holds {asked}; choose one with --run (it has {names})")
    written = write_figure(found[wanted[0]], output, width_mm=width, dpi=dpi)
    sys.stdout.write(f"written: {written} ({wanted[0]})\n")
