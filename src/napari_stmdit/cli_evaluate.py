"""The command `stmdit evaluate`: is it true? A checkpoint on held-out sections, or results that are in a store."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .errors import RequestError, StmditError
from .progress import BATCH

if TYPE_CHECKING:
    from .evaluation.cases import EvaluationRequest
    from .evaluation.evaluate import Evaluated
    from .evaluation.report import EvaluationReport

CONFIGS = (".yaml", ".yml")
FOR_CHECKPOINT = (
    "spots",
    "seeds",
    "seed",
    "steps",
    "guidance_expression",
    "guidance_morphology",
    "edits",
    "predictor",
    "predictor_sections",
    "genes",
    "mpp",
    "allow_gene_mismatch",
    "parts",
    "pairs",
    "mode",
)
"""Options that an evaluation of results does not heed, and so refuses."""
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
"""Options that only one part heeds; they are refused where it is not asked for."""


def evaluate(
    ctx: typer.Context,
    targets: Annotated[
        list[str],
        typer.Argument(
            metavar="CHECKPOINT SECTION... | RESULT",
            help="A checkpoint and the sections to try it on, a folder of them, or a training configuration, whose held-out sections are "
            "meant; or a SpatialData store with results.",
        ),
    ],
    output: Annotated[Path, typer.Option(help="Folder for report.html, report.json and the patches.")] = Path(
        "stmdit-evaluation"
    ),
    spots: Annotated[int, typer.Option(help="Spots, drawn with the seed and shared out over the sections.")] = 60,
    seeds: Annotated[int, typer.Option(help="Images of each spot in each case.")] = 2,
    seed: Annotated[int, typer.Option(help="First seed.")] = 0,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    guidance_expression: Annotated[float | None, typer.Option(help="Guidance scale of expression.")] = None,
    guidance_morphology: Annotated[float | None, typer.Option(help="Guidance scale of morphology.")] = None,
    feature_space: Annotated[
        list[str] | None,
        typer.Option(
            help="encoder (the checkpoint's own), random, uni2h, uni2h=FILE or timm:NAME=FILE; several may be given; expression is read in "
            "the first."
        ),
    ] = None,
    edits: Annotated[Path | None, typer.Option(help="YAML file with the edits to evaluate.")] = None,
    predictor: Annotated[
        Path | None,
        typer.Option(help="Linear predictor of expression, .npz or .safetensors, in place of a fitted one."),
    ] = None,
    predictor_sections: Annotated[
        list[Path] | None,
        typer.Option(
            help="Other sections to fit a predictor to; several may be given; of a training configuration, those it trains on."
        ),
    ] = None,
    genes: Annotated[int, typer.Option(help="Most variable genes that fidelity is measured on.")] = 200,
    parts: Annotated[
        list[str] | None,
        typer.Option(
            help="conditions (images under true and broken conditions; the default), counterfactual (edits of real tissue) or all; several "
            "may be given."
        ),
    ] = None,
    pairs: Annotated[
        int, typer.Option(help="Of the part counterfactual, pairs of spots whose expression is swapped.")
    ] = 64,
    mode: Annotated[
        str,
        typer.Option(
            help="Of the part counterfactual, spots (swaps in single patches) or continuous (in painted regions)."
        ),
    ] = "spots",
    draws: Annotated[int, typer.Option(help="Bootstrap samples.")] = 1000,
    fullres: Annotated[Path | None, typer.Option(help="Full-resolution image of a single section.")] = None,
    mpp: Annotated[float | None, typer.Option(help="Microns per full-resolution pixel; overrides the file's.")] = None,
    allow_gene_mismatch: Annotated[
        bool, typer.Option("--allow-gene-mismatch", help="Go on where too few genes are shared.")
    ] = False,
    runs: Annotated[
        list[str] | None, typer.Option("--run", help="Of a store, a result to evaluate; all by default.")
    ] = None,
    section: Annotated[
        Path | None, typer.Option(help="Of a store, the section that its results were made from.")
    ] = None,
    checkpoint: Annotated[str | None, typer.Option(help="Of a store, the checkpoint that made its results.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Patches denoised together; does not change the result.")] = BATCH,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the evaluation in the folder; start where there is none.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")
    ] = False,
) -> None:
    """Synthesize held-out spots under true and broken conditions, and report with intervals what may be claimed.

    Finished patches are kept in the output folder; stopped or killed, the same command with --resume goes on.
    """
    from .cli_progress import InterruptCancels, ProgressBar
    from .progress import CancelToken

    command, cancel = shlex.join(["stmdit", *sys.argv[1:]]), CancelToken()
    if len(targets) == 1:
        _refuse_for_result(ctx)
        with InterruptCancels(cancel):
            found = _of_result(
                targets[0],
                output=output,
                runs=tuple(runs or ()),
                feature_spaces=tuple(feature_space or ("random",)),
                checkpoint=checkpoint,
                section=section,
                fullres=fullres,
                draws=draws,
                command=command,
                resume=resume,
                cancel=cancel,
            )
        _report(found, as_json)
        return
    _refuse_for_checkpoint({"--run": runs, "--section": section, "--checkpoint": checkpoint})
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
    from .assemble import load_checkpoint
    from .evaluation.evaluate import evaluate as evaluate_checkpoint

    opened = _sections(targets[1:], "held_out", fullres, mpp)
    others = _sections([str(path) for path in predictor_sections or ()], "train")
    model = load_checkpoint(targets[0], device=device, dtype=dtype)
    how: dict[str, Any] = {"command": command, "resume": resume, "batch": batch, "cancel": cancel}
    with ProgressBar("evaluating", hidden=as_json) as on_progress, InterruptCancels(cancel):
        found = evaluate_checkpoint(
            model, opened, request, output=output, predictor_sections=others, on_progress=on_progress, **how
        )
    _report(found, as_json)


def _of_result(target: str, **options: Any) -> Evaluated:
    from .evaluation.results import evaluate_result

    if not Path(target).expanduser().exists() or Path(target, "stmdit.json").is_file():
        raise StmditError(
            f"got {target} alone: give a checkpoint and at least one section (stmdit evaluate CHECKPOINT SECTION...), or a store with "
            "results that is there (stmdit evaluate OUT.zarr)"
        )
    return evaluate_result(target, **options)


def _refuse_for_checkpoint(options: dict[str, Any]) -> None:
    given = [name for name, value in options.items() if value]
    if given:
        raise StmditError(f"{', '.join(given)} is for a store with results; got a checkpoint and sections")


def _refuse_for_result(ctx: typer.Context) -> None:
    """Refuse what only an evaluation of a checkpoint heeds: results were made already."""
    if options := _given(ctx, FOR_CHECKPOINT):
        raise StmditError(f"{options} is for a checkpoint and sections; got {ctx.params['targets'][0]} alone")


def _refuse_for_parts(ctx: typer.Context, parts: Sequence[str]) -> None:
    """Refuse what only a part heeds that was not asked for."""
    for part, names in FOR_PART.items():
        if part not in parts and (options := _given(ctx, names)):
            raise StmditError(
                f"{options} is for the part {part}; got --parts {' --parts '.join(parts)} (add --parts {part})"
            )


def _given(ctx: typer.Context, names: Sequence[str]) -> str:
    """Return those options that the command line has, as a user writes them."""
    sources = {name: ctx.get_parameter_source(name) for name in names}
    given = [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]
    return ", ".join(f"--{name.replace('_', '-')}" for name in given)


def _parts(given: Sequence[str]) -> tuple[str, ...]:
    """Return the parts that are meant, in their order."""
    named = [name for text in given for name in text.split(",")]
    if unknown := [name for name in named if name not in (*PARTS, "all")]:
        raise StmditError(f"got --parts {', '.join(map(repr, unknown))}; expected {', '.join(PARTS)} or all")
    return PARTS if "all" in named else tuple(part for part in PARTS if part in named)


def _request(values: dict[str, Any], edits: Path | None) -> EvaluationRequest:
    from pydantic import ValidationError

    from .evaluation.cases import EvaluationRequest
    from .synthesis.requests import faults_from, read_edit_file

    if edits is not None:
        file = read_edit_file(edits)
        values = {**values, "edits": file.edits, "programs": file.programs, "profiles": file.profiles}
    try:
        return EvaluationRequest.model_validate(values)
    except ValidationError as error:
        raise RequestError(faults_from(error, "options")) from None


def _sections(
    places: Sequence[str], which: str, fullres: Path | None = None, mpp: float | None = None
) -> tuple[Any, ...]:
    """Open sections; a training configuration stands for its held-out ones, or for those it trains on."""
    from .evaluation.evaluate import open_sections
    from .training.sections import sections_of_config

    sources: list[Any] = []
    for place in places:
        path = Path(place)
        if path.suffix.lower() in CONFIGS and path.is_file():
            sources += sections_of_config(path, which)
        else:
            sources.append(path)
    name = "section" if which == "held_out" else "predictor section"
    return open_sections(sources, fullres, mpp, name) if sources else ()


def _counterfactual(report: EvaluationReport | None) -> dict[str, Any]:
    facts = {} if report is None else report.facts
    return {name: facts[name] for name in ("counterfactual",) if name in facts}


def _report(found: Evaluated, as_json: bool) -> None:
    from .cli import _print_json

    report = found.report
    if as_json:
        _print_json(
            {
                "output": str(found.folder),
                "complete": found.complete,
                "done": found.done,
                "total": found.total,
                "report": None if report is None else str(report.html),
                "figures": None if report is None else str(report.json),
                "claims": [] if report is None else [claim.facts for claim in report.claims],
                **_counterfactual(report),
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
