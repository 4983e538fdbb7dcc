"""``stmdit export-dataset``: results into a paired data set."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ._common import (
    InterruptCancels,
    Json,
    OldOutput,
    ProgressBar,
    Results,
    one_output,
    output_option,
    print_json,
    section_option,
)

if TYPE_CHECKING:
    from ..dataset.export import Exported


def export_dataset(
    result: Results,
    out: OldOutput = None,
    output: Annotated[Path | None, output_option(help="Folder to make.")] = None,
    formats: Annotated[
        list[str] | None,
        output_option("--format", help="imagefolder, parquet or anndata; several may be given, all by default."),
    ] = None,
    runs: Annotated[
        list[str] | None, typer.Option("--run", help="A result of the store; several may be given, all by default.")
    ] = None,
    section: Annotated[
        Path | None, section_option(help="The section the result was made from, where its record does not lead there.")
    ] = None,
    fullres: Annotated[Path | None, section_option(help="That section's full-resolution image.")] = None,
    no_real: Annotated[bool, typer.Option("--no-real", help="Leave out the crops of the slide.")] = False,
    checkpoint: Annotated[
        str | None, typer.Option(help="Name or folder of the checkpoint, where the record does not lead there.")
    ] = None,
    licence: Annotated[
        str | None, output_option(help="Licence for the data card; without it the card says unknown.")
    ] = None,
    shard_rows: Annotated[int | None, output_option(min=1, help="Images in a shard; about 32 MiB by default.")] = None,
    as_json: Json = False,
) -> None:
    """Write synthetic and real patches with expression, edits and records, for `datasets` and `anndata`.

    It grows in OUTPUT.unfinished; stopped or killed, the same command goes on.
    """
    from ..dataset.export import export_dataset as export
    from ..progress import CancelToken

    cancel = CancelToken()
    wanted: dict[str, Any] = {} if not formats else {"formats": [part for one in formats for part in one.split(",")]}
    with ProgressBar("exporting") as on_progress, InterruptCancels(cancel):
        found = export(
            result,
            one_output(output, out),
            **wanted,
            runs=tuple(runs or ()),
            real=not no_real,
            section=section,
            fullres=fullres,
            checkpoint=checkpoint,
            licence=licence,
            rows_per_shard=shard_rows,
            cancel=cancel,
            on_progress=on_progress,
        )
    if as_json:
        print_json(_facts(found))
    else:
        sys.stdout.write(_summary(found, licence))
    if not found.complete:
        raise typer.Exit(130)


def _facts(found: Exported) -> dict[str, Any]:
    return {
        "output": str(found.path),
        "images": found.rows,
        "synthetic": found.synthetic,
        "runs": list(found.runs),
        "formats": list(found.formats),
        "written": found.done,
        "complete": found.complete,
        "existed": found.existed,
        "unfinished": None if found.unfinished is None else str(found.unfinished),
        "notes": list(found.notes),
    }


def _summary(found: Exported, licence: str | None) -> str:
    if found.existed:
        return f"{found.path} holds this data set already, whole: nothing was done\n"
    if not found.complete:
        return f"{found.done} of {found.rows} images (stopped); run the same again, it goes on ({found.unfinished})\n"
    lines = [f"{found.rows} images, {found.synthetic} of them synthetic -> {found.path} ({', '.join(found.formats)})"]
    lines += [f"note: {note}" for note in found.notes]
    if licence is None:
        lines.append("note: the data card says that the licence is unknown; give --licence, or complete README.md")
    return "\n".join(lines) + "\n"
