"""``stmdit synthesize``, ``batch`` and ``demo``: patches over a section, or over a cohort from a job file, written into SpatialData stores."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import StmditError
from ..progress import BATCH, CancelToken
from ._common import (
    AllowGeneMismatch,
    Batch,
    Device,
    DType,
    Exclude,
    ExcludeClass,
    Factors,
    GuidanceExpression,
    GuidanceMorphology,
    InterruptCancels,
    Json,
    Mpp,
    Orientation,
    ProgressBar,
    Scheduler,
    Seed,
    Workers,
    machine_option,
    output_option,
    print_json,
    request_option,
    sampling_option,
    section_option,
)

if TYPE_CHECKING:
    from ..intent import Request
    from ..progress import Progress
    from ..scale.batch import Job, Outcome
    from ..synthesis.result import Result


def demo(
    output: Annotated[Path, typer.Option(help="Folder for OUT.zarr, comparison.png and the report.")] = Path(
        "stmdit-demo"
    ),
    seed: Annotated[int, typer.Option(help="Recorded; an edit of this tissue uses the slide's own noise.")] = 0,
    view: Annotated[bool, typer.Option("--view", help="Open the result in napari.")] = False,
    as_json: Json = False,
) -> None:
    """Synthesize on the bundled section before and after a painted edit, with the bundled checkpoint."""
    from ..evaluation.demo import run_demo

    with ProgressBar("synthesizing") as on_progress:
        outcome = run_demo(output, seed=seed, on_progress=on_progress)
    if as_json:
        print_json(outcome.facts)
    else:
        sys.stdout.write(outcome.summary + "\n")
    if view:
        from ..ui.manifest import view_store

        view_store(outcome.store)


def synthesize(
    section: Annotated[
        Path,
        typer.Argument(
            help="Space Ranger, Visium HD or Xenium folder, SpatialData .zarr (also by its address), .h5ad, GEO's flat files, an H&E image, or the name of a "
            "public section that was downloaded."
        ),
    ],
    output: Annotated[Path, output_option(help="SpatialData store to write or add to.")],
    fullres: Annotated[Path | None, section_option(help="Full-resolution image, where the folder lacks it.")] = None,
    mpp: Mpp = None,
    grid_pitch: Annotated[
        float | None, section_option(help="Of an H&E image: microns between its virtual spots, 100 by default.")
    ] = None,
    tissue_fraction: Annotated[
        float | None,
        section_option(help="Of an H&E image: part of a spot that is on tissue, 0.5 by default; 0: no mask."),
    ] = None,
    predicted_expression: Annotated[
        Path | None, section_option(help="Of an H&E image: .h5ad with predicted expression and positions.")
    ] = None,
    predicted_units: Annotated[
        str | None, section_option(help="What it holds where it does not say so: counts or log1p.")
    ] = None,
    factors: Factors = None,
    exclude: Exclude = None,
    exclude_class: ExcludeClass = None,
    orientation: Orientation = "as-given",
    request_file: Annotated[
        Path | None, request_option("--request", help="A whole request as YAML; other options override it.")
    ] = None,
    spots: Annotated[str | None, request_option(help="Spot ids, separated by commas.")] = None,
    region: Annotated[
        Path | None, request_option(help="GeoJSON polygons in full-resolution pixels, (x, y) as GeoJSON has it.")
    ] = None,
    sample: Annotated[int | None, request_option(help="Number of spots, drawn with the seed.")] = None,
    everything: Annotated[bool, request_option("--all", help="Every spot.")] = False,
    mode: Annotated[str | None, request_option(help="spots or continuous.")] = None,
    edits: Annotated[Path | None, request_option(help="YAML file with virtual expression edits.")] = None,
    morphology: Annotated[str | None, request_option(help="own, mean, null, or the id of a spot.")] = None,
    expression: Annotated[str | None, request_option(help="own, shuffled (a control) or null.")] = None,
    counterfactual: Annotated[
        bool | None,
        request_option(
            "--counterfactual/--no-counterfactual",
            help="Whether edits change this tissue, or new tissue is made. By default this tissue, where it can be.",
        ),
    ] = None,
    allow_gene_mismatch: AllowGeneMismatch = False,
    edit_scale: Annotated[float | None, sampling_option(help="Scale of an edit of this tissue; 1 by default.")] = None,
    fresh_noise: Annotated[
        float | None,
        sampling_option(
            metavar="SHARE", help="Share of an edit's noise drawn with the seed, 0 to 1; 0, this tissue, by default."
        ),
    ] = None,
    guidance_expression: GuidanceExpression = None,
    guidance_morphology: GuidanceMorphology = None,
    steps: Annotated[int | None, sampling_option(help="Denoising steps; of an edit of this tissue, each way.")] = None,
    preset: Annotated[
        str | None, sampling_option(help="exact, fast or draft: fewer steps, less guidance; the result says so.")
    ] = None,
    seed: Seed = None,
    checkpoint: Annotated[str | None, machine_option(help="Name or folder of a checkpoint.")] = None,
    batch: Batch = BATCH,
    device: Device = "auto",
    dtype: DType = "auto",
    morphology_embeddings: Annotated[
        Path | None, machine_option(help="Embeddings of the spots in place of the morphology encoder.")
    ] = None,
    expression_embeddings: Annotated[
        Path | None, machine_option(help="Embeddings of the spots in place of the expression encoder.")
    ] = None,
    scheduler: Scheduler = None,
    workers: Workers = None,
    resume: Annotated[
        bool,
        output_option("--resume", help="Go on with the unfinished run beside the output; start where there is none."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Synthesize H&E patches over a section and write them into a SpatialData store.

    What is finished is kept in OUTPUT.unfinished as the run goes on, and moved into the store at its end.
    """
    from ..assemble import load_checkpoint
    from ..synthesis.requests import merge
    from ..synthesis.session import synthesize as run_request
    from ..synthesis.session import unfinished_folder
    from ..tissue.open import SectionSource
    from ..tissue.remote import url_of
    from ..tissue.store import check_writable

    options = {
        "section": url_of(section) or str(section),
        "exclude": None if exclude is None else str(exclude),
        "region": _region(spots, region, sample, everything),
        "mode": mode,
        "morphology": morphology,
        "expression": expression,
        "counterfactual": None if counterfactual is None else ("on" if counterfactual else "off"),
        "edit_scale": edit_scale,
        "fresh_noise": fresh_noise,
        "steps": steps,
        "preset": preset,
        "seed": seed,
        "checkpoint": checkpoint,
        "allow_gene_mismatch": allow_gene_mismatch or None,
        "guidance": {"expression": guidance_expression, "morphology": guidance_morphology},
    }
    request = merge(request_file, options, edits)
    source = SectionSource.given(
        section,
        fullres=fullres,
        mpp=mpp,
        grid_pitch=grid_pitch,
        tissue_fraction=tissue_fraction,
        predicted_expression=predicted_expression,
        predicted_units=predicted_units,
        factors=factors,
        orientation=orientation,
        exclude=request.exclude,
        exclude_classes=tuple(exclude_class or ()),
    )
    opened = source.open()
    check_writable(output, opened)
    brought = {"morphology_embeddings": morphology_embeddings, "expression_embeddings": expression_embeddings}
    shared = scheduler is not None or workers is not None
    if shared and any(brought.values()):
        raise StmditError(
            "embeddings computed elsewhere are used in this process alone; leave --workers and --scheduler out"
        )
    cancel = CancelToken()
    with ProgressBar("synthesizing") as on_progress, InterruptCancels(cancel):
        how: dict[str, Any] = {
            "batch": batch,
            "cancel": cancel,
            "on_progress": on_progress,
            "folder": unfinished_folder(output),
            "resume": resume,
        }
        if shared:
            from ..scale.cluster import synthesize_on

            result = synthesize_on(scheduler, workers, source, opened, request, device=device, dtype=dtype, **how)
        else:
            model = load_checkpoint(request.checkpoint, device=device, dtype=dtype, **brought)
            result = run_request(opened, request, model, **how)
    name = result.save(output) if result.done else None
    if result.canvas is not None and (result.complete or result.canvas.is_blank):
        result.canvas.discard()
    _report(result, request, name, output, as_json)
    if not result.complete:
        raise typer.Exit(1 if result.failed and not cancel.cancelled else 130)


def _region(spots: str | None, region: Path | None, sample: int | None, everything: bool) -> Any:
    options = {"--spots": spots, "--region": region, "--sample": sample, "--all": everything or None}
    given = [name for name, value in options.items() if value is not None]
    if len(given) > 1:
        raise StmditError(f"got {' and '.join(given)}; give only one of --spots, --region, --sample, --all")
    if spots is not None:
        return {"kind": "spots", "ids": [part.strip() for part in spots.split(",") if part.strip()]}
    if region is not None:
        from ..tissue.geometry import polygons_from_geojson

        return polygons_from_geojson(region).model_dump()
    if sample is not None:
        return {"kind": "sample", "count": sample}
    return {"kind": "all"} if everything else None


def _report(result: Result, request: Request, name: str | None, output: Path, as_json: bool) -> None:
    canvas, about = result.canvas, result.provenance
    unfinished = str(canvas.folder) if canvas is not None and canvas.folder.exists() else None
    of_checkpoint = about["checkpoint"].get("notes", ())
    if as_json:
        print_json(
            {
                "output": str(output),
                "element": name,
                "patches": len(result.done),
                "planned": len(result.plan),
                "complete": result.complete,
                "seconds": about["seconds"],
                "mpp": result.section.calibration.mpp,
                "mpp_source": result.section.calibration.detail,
                "checkpoint": about["checkpoint"],
                "guidance": about["guidance"],
                "steps": result.plan.steps,
                "seed": request.seed,
                "counterfactual": result.plan.counterfactual,
                "edit": about.get("edit"),
                "genes_shared": result.plan.genes_shared,
                "notes": [*result.section.notes, *of_checkpoint, *result.notes],
                "unfinished": unfinished,
            }
        )
        return
    state = "" if result.complete else f" of {len(result.plan)} (stopped)"
    where = f" -> {output}, element {name}" if name else "; nothing was written"
    kind = "patches of edited tissue" if result.plan.counterfactual else "synthetic patches"
    of_section = result.section.notes[1:] if result.section.kind == "image" else ()  # the first is among the result's
    lines = [
        f"{len(result.done)} {kind}{state} in {about['seconds']:.1f} s{where}",
        f"scale: {result.section.calibration.detail}",
        *(f"note: {note}" for note in (*of_section, *of_checkpoint, *result.notes)),
    ]
    if unfinished is not None:
        lines.append(f"the rest can be done: run the same again with --resume ({unfinished})")
    sys.stdout.write("\n".join(lines) + "\n")


def batch(
    jobs: Annotated[Path, typer.Argument(help="Job file, YAML: sections, edits, output.")],
    scheduler: Scheduler = None,
    workers: Workers = None,
    at_once: Batch = BATCH,
    device: Device = "auto",
    dtype: DType = "auto",
    as_json: Json = False,
) -> None:
    """Synthesize many sections and edits; run again, it goes on where it was stopped.

    Exit code 0 where all is done, 1 where a job failed (the others are done), 2 on a bad job file, 130 on interrupt.
    """
    from ..scale.batch import ClusterRunner, LocalRunner, exit_code, read_jobs, run_batch, table
    from ..scale.cluster import check_choice, connect

    wanted = read_jobs(jobs)
    check_choice(scheduler, workers)
    cancel, number = CancelToken(), count(1)
    shared = scheduler is not None or workers is not None

    def show(job: Job, progress: Progress) -> None:
        bar.title = job.name
        bar(progress)

    def say(outcome: Outcome) -> None:
        if not as_json:
            sys.stderr.write(f"{next(number)}/{len(wanted)} {outcome.job.name}: {outcome.state}\n")
            sys.stderr.flush()

    with (
        InterruptCancels(cancel),
        ProgressBar() as bar,
        connect(scheduler, workers, device) if shared else nullcontext() as client,
    ):
        runner: Any = ClusterRunner(client, device, dtype, at_once) if shared else LocalRunner(device, dtype, at_once)
        outcomes = run_batch(wanted, runner, cancel=cancel, on_outcome=say, on_progress=show)
    code = exit_code(outcomes)
    if as_json:
        print_json({"jobs": [outcome.facts for outcome in outcomes], "complete": code == 0})
    else:
        sys.stdout.write(table(outcomes))
    if code:
        raise typer.Exit(code)
