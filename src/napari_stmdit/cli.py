"""The ``stmdit`` command: parses, calls, prints. Everything it does can be done from Python."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from . import __version__
from .cli_batch import batch as batch_command
from .cli_bench import bench as bench_command
from .cli_dataset import export_dataset as export_dataset_command
from .cli_evaluate import evaluate as evaluate_command
from .cli_progress import InterruptCancels, ProgressBar
from .cli_train import train as train_command
from .devices import let_threads_sleep
from .errors import StmditError
from .progress import BATCH

if TYPE_CHECKING:
    from .intent import Request
    from .synthesis.result import Result


class Commands(TyperGroup):
    """The command with all it can do. What is empty, such as a variable of the shell that was never set, is never taken for not given."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Refuse empty arguments, of whichever command, before anything is read."""
        for before, word in zip(["", *args], args, strict=False):
            name, given, value = word.partition("=") if word.startswith("--") else (before, "=", word)
            if given and not value.strip():
                what = name if name.startswith("-") else "an argument"
                raise StmditError(f"{what} is empty; give it a value, or leave it out")
        return super().parse_args(ctx, args)


app = typer.Typer(
    name="stmdit",
    cls=Commands,
    help="Virtual tissue synthesis from spatial transcriptomics.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")]


def main() -> None:
    """Run the command; one clear message and exit code 2 on bad input, 130 on interrupt, never a traceback."""
    let_threads_sleep()
    try:
        app(standalone_mode=True)
    except StmditError as error:
        _complain(str(error))
        sys.exit(2)
    except KeyboardInterrupt:
        _complain("interrupted")
        sys.exit(130)
    except Exception as error:  # the last line of defence: a user never gets a traceback unasked
        if os.environ.get("STMDIT_DEBUG"):
            raise
        _complain(
            f"unexpected {type(error).__name__}: {error}\nThis is a fault of napari-stmdit. Please report it with the output of "
            "`stmdit info`; STMDIT_DEBUG=1 shows where it happened."
        )
        sys.exit(1)


def _complain(message: str) -> None:
    # a name out of a file must not steer the terminal
    safe = "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in message)
    sys.stderr.write(f"stmdit: {safe}\n")


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        sys.stdout.write(f"napari-stmdit {__version__}\n")
        raise typer.Exit


@app.command()
def info(as_json: Json = False) -> None:
    """Print versions, computer, devices, checkpoints, folders and known troubles: the text for a bug report."""
    from .installation import describe_installation

    facts = describe_installation()
    if as_json:
        _print_json(facts)
        return
    for title, content in facts.items():
        rows = content.items() if isinstance(content, dict) else enumerate(content, 1)
        lines = [f"  {key}: {value}\n" for key, value in rows]
        sys.stdout.write("".join([f"{title}\n", *(lines or ["  none\n"])]))


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder for OUT.zarr, comparison.png and the report.")] = Path(
        "stmdit-demo"
    ),
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
    view: Annotated[bool, typer.Option("--view", help="Open the result in napari.")] = False,
    as_json: Json = False,
) -> None:
    """Synthesize on the bundled section before and after a painted edit, with the bundled checkpoint."""
    from .evaluation.demo import run_demo

    with ProgressBar("synthesizing", hidden=as_json) as on_progress:
        outcome = run_demo(output, seed=seed, on_progress=on_progress)
    if as_json:
        _print_json(outcome.facts)
    else:
        sys.stdout.write(outcome.summary + "\n")
    if view:
        from .ui.manifest import view_store

        view_store(outcome.store)


@app.command()
def synthesize(
    section: Annotated[Path, typer.Argument(help="SpatialData .zarr, Space Ranger outs folder, or an H&E image.")],
    output: Annotated[Path, typer.Option(help="SpatialData store to write or add to.")],
    fullres: Annotated[Path | None, typer.Option(help="Full-resolution image, where the folder lacks it.")] = None,
    mpp: Annotated[float | None, typer.Option(help="Microns per full-resolution pixel; overrides the file's.")] = None,
    grid_pitch: Annotated[
        float | None, typer.Option(help="Of an H&E image: microns between its virtual spots, 100 by default.")
    ] = None,
    tissue_fraction: Annotated[
        float | None,
        typer.Option(help="Of an H&E image: part of a spot that is on tissue, 0.5 by default; 0: no mask."),
    ] = None,
    predicted_expression: Annotated[
        Path | None, typer.Option(help="Of an H&E image: .h5ad with predicted expression and positions.")
    ] = None,
    predicted_units: Annotated[
        str | None, typer.Option(help="What it holds where it does not say so: counts or log1p.")
    ] = None,
    request_file: Annotated[
        Path | None, typer.Option("--request", help="A whole request as YAML; other options override it.")
    ] = None,
    checkpoint: Annotated[str | None, typer.Option(help="Name or folder of a checkpoint.")] = None,
    spots: Annotated[str | None, typer.Option(help="Spot ids, separated by commas.")] = None,
    region: Annotated[
        Path | None, typer.Option(help="GeoJSON polygons in full-resolution pixels, (x, y) as GeoJSON has it.")
    ] = None,
    sample: Annotated[int | None, typer.Option(help="So many spots, drawn with the seed.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every spot.")] = False,
    mode: Annotated[str | None, typer.Option(help="spots or continuous.")] = None,
    edits: Annotated[Path | None, typer.Option(help="YAML file with virtual expression edits.")] = None,
    guidance_expression: Annotated[float | None, typer.Option(help="Guidance scale of expression.")] = None,
    guidance_morphology: Annotated[float | None, typer.Option(help="Guidance scale of morphology.")] = None,
    morphology: Annotated[str | None, typer.Option(help="own, mean, null, or the id of a spot.")] = None,
    expression: Annotated[str | None, typer.Option(help="own, shuffled (a control) or null.")] = None,
    counterfactual: Annotated[
        bool | None,
        typer.Option(
            "--counterfactual/--no-counterfactual",
            help="Whether edits change this tissue, or new tissue is made. By default this tissue, where it can be.",
        ),
    ] = None,
    edit_scale: Annotated[float | None, typer.Option(help="Scale of an edit of this tissue; 1 by default.")] = None,
    fresh_noise: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE", help="Share of an edit's noise drawn with the seed, 0 to 1; 0, this tissue, by default."
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps; of an edit of this tissue, each way.")] = None,
    preset: Annotated[
        str | None, typer.Option(help="exact, fast or draft: fewer steps, less guidance; the result says so.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the noise.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Patches denoised together; does not change the result.")] = BATCH,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    morphology_embeddings: Annotated[
        Path | None, typer.Option(help="Embeddings of the spots in place of the morphology encoder.")
    ] = None,
    expression_embeddings: Annotated[
        Path | None, typer.Option(help="Embeddings of the spots in place of the expression encoder.")
    ] = None,
    allow_gene_mismatch: Annotated[
        bool, typer.Option("--allow-gene-mismatch", help="Go on where too few genes are shared.")
    ] = False,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with the unfinished run beside the output; start where there is none."),
    ] = False,
    scheduler: Annotated[
        str | None, typer.Option(help="Address of a dask scheduler, whose workers share the run.")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Processes on this computer that share the run: one per GPU, or parts of the CPU."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Synthesize H&E patches over a section and write them into a SpatialData store.

    What is finished is kept in OUTPUT.unfinished as the run goes on, and moved into the store at its end.
    """
    from .assemble import load_checkpoint
    from .progress import CancelToken
    from .synthesis.requests import make_request, read_edit_file, read_request, with_edits
    from .synthesis.session import synthesize as run_request
    from .synthesis.session import unfinished_folder
    from .tissue.open import SectionSource
    from .tissue.store import check_writable

    options: dict[str, Any] = {
        "section": str(section),
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
    }
    guidance = {"expression": guidance_expression, "morphology": guidance_morphology}
    base = {} if request_file is None else read_request(request_file).model_dump(exclude_unset=True)
    base.update({name: value for name, value in options.items() if value is not None})
    base["guidance"] = {**base.get("guidance", {}), **{k: v for k, v in guidance.items() if v is not None}}
    request = make_request(base, "options")
    if edits is not None:
        request = with_edits(request, read_edit_file(edits))
    units: Any = predicted_units  # whatever was typed; opening refuses what it does not know
    source = SectionSource(section, fullres, mpp, grid_pitch, tissue_fraction, predicted_expression, units)
    opened = source.open()
    check_writable(output, opened)
    brought = {"morphology_embeddings": morphology_embeddings, "expression_embeddings": expression_embeddings}
    if (scheduler is not None or workers is not None) and any(brought.values()):
        raise StmditError(
            "embeddings computed elsewhere are used in this process alone; leave --workers and --scheduler out"
        )
    cancel = CancelToken()
    with ProgressBar("synthesizing", hidden=as_json) as on_progress, InterruptCancels(cancel):
        how: dict[str, Any] = {
            "batch": batch,
            "cancel": cancel,
            "on_progress": on_progress,
            "folder": unfinished_folder(output),
            "resume": resume,
        }
        if scheduler is not None or workers is not None:
            from .scale.cluster import synthesize_on

            result = synthesize_on(scheduler, workers, source, opened, request, device=device, dtype=dtype, **how)
        else:
            model = load_checkpoint(request.checkpoint, device=device, dtype=dtype, **brought)
            result = run_request(opened, request, model, **how)
    name = result.save(output) if result.done else None
    if result.canvas is not None and (result.complete or result.canvas.is_blank):
        result.canvas.discard()
    _report_run(result, request, name, output, as_json)
    if not result.complete:
        raise typer.Exit(1 if result.failed and not cancel.cancelled else 130)


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(help="A checkpoint file or folder, or a name that `stmdit info` lists.")],
    config: Annotated[Path | None, typer.Option(help="Settings, where they are not beside the weights.")] = None,
    mapping: Annotated[Path | None, typer.Option(help="Mapping file for names that are not known.")] = None,
    as_json: Json = False,
) -> None:
    """Say what a checkpoint holds, whether it can edit real tissue, and what it lacks to run; never runs code from it."""
    from .assemble import list_checkpoints
    from .cli_models import print_inspection
    from .model.inspect import inspect_checkpoint

    named = {} if path.exists() else {entry.name: entry.path for entry in list_checkpoints()}
    found = inspect_checkpoint(named.get(str(path), path), config, mapping)
    if as_json:
        _print_json(found.model_dump(mode="json"))
    else:
        print_inspection(found)


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help="Foreign weights, their folder, or the name of a download.")],
    output: Annotated[Path, typer.Argument(help="Checkpoint folder to make.")],
    patch_mpp: Annotated[
        float | None, typer.Option(help="Microns per pixel of its patches: no file states it.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="Settings, where they are not beside the weights.")] = None,
    mapping: Annotated[Path | None, typer.Option(help="Mapping file for names that are not known.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the checkpoint; the folder's by default.")] = None,
    genes: Annotated[Path | None, typer.Option(help="Genes of the expression encoder, one symbol a line.")] = None,
    genes_from: Annotated[Path | None, typer.Option(help="Section to choose those genes from instead.")] = None,
    vae: Annotated[Path | None, typer.Option(help="Local folder of the VAE.")] = None,
    expression_encoder: Annotated[Path | None, typer.Option(help="Local folder of CancerFoundation.")] = None,
    morphology_encoder: Annotated[Path | None, typer.Option(help="Local folder of UNI2-h.")] = None,
    licence: Annotated[str | None, typer.Option(help="Terms of the weights, for the card.")] = None,
    as_json: Json = False,
) -> None:
    """Make a checkpoint folder of a foreign transformer; what may not be passed on is referred to, not copied."""
    from .assemble import convert_checkpoint
    from .cli_models import report_conversion

    places = {"vae": vae, "expression_encoder": expression_encoder, "morphology_encoder": morphology_encoder}
    made = convert_checkpoint(
        source,
        output,
        patch_mpp=patch_mpp,
        config=config,
        mapping=mapping,
        name=name,
        genes=genes,
        genes_from=genes_from,
        sources={component: place for component, place in places.items() if place is not None},
        licence=licence,
    )
    report_conversion(made, as_json)


@app.command()
def download(
    name: Annotated[
        str | None, typer.Argument(help="Name in the zoo, or stmdit:<row id>; without it, the zoo.")
    ] = None,
    source_folder: Annotated[Path | None, typer.Option("--from", help="Copy the files from this folder.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Consent to the terms without being asked.")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Never touch the network.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Download again what is here already.")] = False,
    as_json: Json = False,
) -> None:
    """List known checkpoints and components, or bring one to this computer; size and terms are shown first."""
    from .cli_download import confirm, fetch, print_zoo, report
    from .model.download import check_source, find_download
    from .model.zoo import zoo_entry
    from .progress import CancelToken

    if name is None:
        print_zoo(as_json)
        return
    entry = zoo_entry(name)
    done = None if force else find_download(entry)
    if done is None:
        check_source(entry, offline=offline or None, source_folder=source_folder)
        confirm(entry, source_folder, yes)
        cancel = CancelToken()
        with InterruptCancels(cancel):
            done = fetch(
                entry, cancel=cancel, offline=offline, force=force, source_folder=source_folder, hidden=as_json
            )
    report(done, as_json)


app.command()(train_command)
app.command()(batch_command)
app.command("bench")(bench_command)
app.command("export-dataset")(export_dataset_command)
app.command("evaluate")(evaluate_command)


def _region(spots: str | None, region: Path | None, sample: int | None, everything: bool) -> Any:
    given = [
        name
        for name, value in (
            ("--spots", spots),
            ("--region", region),
            ("--sample", sample),
            ("--all", everything or None),
        )
        if value is not None
    ]
    if len(given) > 1:
        raise StmditError(f"got {' and '.join(given)}; give only one of --spots, --region, --sample, --all")
    if spots is not None:
        return {"kind": "spots", "ids": [part.strip() for part in spots.split(",") if part.strip()]}
    if region is not None:
        from .tissue.geometry import polygons_from_geojson

        return polygons_from_geojson(region).model_dump()
    if sample is not None:
        return {"kind": "sample", "count": sample}
    return {"kind": "all"} if everything else None


def _report_run(result: Result, request: Request, name: str | None, output: Path, as_json: bool) -> None:
    facts = {
        "output": str(output),
        "element": name,
        "patches": len(result.done),
        "planned": len(result.plan),
        "complete": result.complete,
        "seconds": result.provenance["seconds"],
        "mpp": result.section.calibration.mpp,
        "mpp_source": result.section.calibration.detail,
        "checkpoint": result.provenance["checkpoint"],
        "guidance": result.provenance["guidance"],
        "steps": result.plan.steps,
        "seed": request.seed,
        "counterfactual": result.plan.counterfactual,
        "edit": result.provenance.get("edit"),
        "genes_shared": result.plan.genes_shared,
        "notes": [*result.section.notes, *result.provenance["checkpoint"].get("notes", ()), *result.notes],
        "unfinished": str(result.canvas.folder)
        if result.canvas is not None and result.canvas.folder.exists()
        else None,
    }
    if as_json:
        _print_json(facts)
        return
    state = "" if result.complete else f" of {len(result.plan)} (stopped)"
    where = f" -> {output}, element {name}" if name else "; nothing was written"
    kind = "patches of edited tissue" if result.plan.counterfactual else "synthetic patches"
    sys.stdout.write(f"{len(result.done)} {kind}{state} in {facts['seconds']:.1f} s{where}\n")
    sys.stdout.write(f"scale: {facts['mpp_source']}\n")
    about = result.section.notes[1:] if result.section.kind == "image" else ()  # the first is among the result's
    for note in (*about, *result.provenance["checkpoint"].get("notes", ()), *result.notes):
        sys.stdout.write(f"note: {note}\n")
    if facts["unfinished"] is not None:
        sys.stdout.write(f"the rest can be done: run the same again with --resume ({facts['unfinished']})\n")


if __name__ == "__main__":
    main()
