"""``stmdit inspect``, ``convert`` and ``download``: what checkpoints hold, made of foreign weights, brought here."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import StmditError
from ._common import (
    Exclude,
    InterruptCancels,
    Json,
    Mpp,
    OldOutput,
    Orientation,
    ProgressBar,
    console,
    one_output,
    output_option,
    print_json,
    section_option,
)
from .section import inspect_section, is_section

if TYPE_CHECKING:
    from ..model.foreign.convert import Converted
    from ..model.foreign.inspect import Inspection
    from ..model.hub.download import Downloaded
    from ..model.hub.zoo import ZooEntry
    from ..progress import CancelToken, DownloadProgress

parts_option = partial(typer.Option, rich_help_panel="Encoders and decoder")

# What a person reads first, in words; the rest of an inspection is lists.
_ROWS = {
    "kind": "kind",
    "family": "family",
    "naming": "naming",
    "objective": "objective",
    "depth": "depth",
    "width": "width",
    "heads": "heads",
    "patch_size": "patch size (latent px)",
    "latent_channels": "latent channels",
    "latent_size": "latents (px)",
    "position_scale": "position scale",
    "learned_sigma": "learned sigma",
    "patch_px": "patches (px)",
    "patch_mpp": "patches (um/px)",
    "parameters": "parameters",
    "tensors": "tensors",
    "sha256": "sha256",
}


def inspect(
    path: Annotated[
        Path, typer.Argument(help="A checkpoint file or folder, a name that `stmdit info` lists, or a tissue section.")
    ],
    config: Annotated[Path | None, typer.Option(help="Settings, where they are not beside the weights.")] = None,
    mapping: Annotated[Path | None, typer.Option(help="Mapping file for names that are not known.")] = None,
    fullres: Annotated[Path | None, section_option(help="Full-resolution image, where the folder lacks it.")] = None,
    mpp: Mpp = None,
    exclude: Exclude = None,
    orientation: Orientation = "as-given",
    picture: Annotated[
        Path | None, section_option(help="PNG to write: the spots over the slide, as they are and as they fit better.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what a checkpoint holds and lacks to run, without running code from it; or whether a section's spots lie right on its slide."""
    if is_section(path):
        from ..tissue.open import SectionSource

        source = SectionSource.given(path, fullres=fullres, mpp=mpp, exclude=exclude, orientation=orientation)
        inspect_section(source, picture, as_json)
        return
    from ..assemble import list_checkpoints
    from ..model.foreign.inspect import inspect_checkpoint

    named = {} if path.exists() else {entry.name: entry.path for entry in list_checkpoints()}
    found = inspect_checkpoint(named.get(str(path), path), config, mapping)
    if as_json:
        print_json(found.model_dump(mode="json"))
    else:
        print_inspection(found)


def print_inspection(found: Inspection) -> None:
    """Print an inspection as a table, then what was chosen, what was left aside and what is missing to run it."""
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, label in _ROWS.items():
        value = getattr(found, name)
        if value is not None:
            table.add_row(label, f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value))
    for condition, how in found.conditions.items():
        table.add_row(f"condition: {condition}", how)
    for component, kind in found.components.items():
        table.add_row(component.replace("_", " "), kind)
    if found.kind == "checkpoint":
        table.add_row("edits of real tissue", found.cannot_edit or _follows(found.morphology_map))
    out = console()
    out.print(found.path, style="bold")
    out.print(table)
    for title, lines in (
        ("Notes", found.notes),
        ("Left aside", [f"{name}: {reason}" for name, reason in found.ignored.items()]),
        ("Missing to run", found.missing),
    ):
        if lines:
            out.print(f"\n{title}", style="bold")
            for line in lines:
                out.print(f"- {line}")
    if not found.missing:
        out.print("\nNothing is missing to run it.")


def _follows(known: dict[str, Any] | None) -> str:
    """Say by which map morphology follows an edit of expression, and what that explains."""
    if known is None:
        return (
            "possible; morphology follows by a map that is fitted on each section: none is stored with the checkpoint"
        )
    first = ", ".join(f"{value:.2f}" for value in known["r2"][:5])
    return (
        f"possible; morphology follows by the map that is stored with the checkpoint: expression explains {100 * known['share']:.0f} % of its "
        f"variance ({known['spots']} spots, on tissue left out; R2 of the largest components {first}); {known['components']} components "
        "follow an edit"
    )


def convert(
    source: Annotated[str, typer.Argument(help="Foreign weights, their folder, or the name of a download.")],
    place: OldOutput = None,
    output: Annotated[Path | None, output_option(help="Checkpoint folder to make.")] = None,
    patch_mpp: Annotated[
        float | None, typer.Option(help="Microns per pixel of its patches: no file states it.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="Settings, where they are not beside the weights.")] = None,
    mapping: Annotated[Path | None, typer.Option(help="Mapping file for names that are not known.")] = None,
    name: Annotated[str | None, output_option(help="Name of the checkpoint; the folder's by default.")] = None,
    genes: Annotated[Path | None, parts_option(help="Genes of the expression encoder, one symbol a line.")] = None,
    genes_from: Annotated[Path | None, parts_option(help="Section to choose those genes from instead.")] = None,
    vae: Annotated[Path | None, parts_option(help="Local folder of the VAE.")] = None,
    expression_encoder: Annotated[Path | None, parts_option(help="Local folder of CancerFoundation.")] = None,
    morphology_encoder: Annotated[Path | None, parts_option(help="Local folder of UNI2-h.")] = None,
    licence: Annotated[str | None, output_option(help="Terms of the weights, for the card.")] = None,
    as_json: Json = False,
) -> None:
    """Make a checkpoint folder of a foreign transformer; what may not be passed on is referred to, not copied."""
    from ..assemble import convert_checkpoint

    places = {"vae": vae, "expression_encoder": expression_encoder, "morphology_encoder": morphology_encoder}
    made = convert_checkpoint(
        source,
        one_output(output, place),
        patch_mpp=patch_mpp,
        config=config,
        mapping=mapping,
        name=name,
        genes=genes,
        genes_from=genes_from,
        sources={component: place for component, place in places.items() if place is not None},
        licence=licence,
    )
    _report_conversion(made, as_json)


def _report_conversion(made: Converted, as_json: bool) -> None:
    """Say where the folder is, what was chosen where the files do not say, and how to go on."""
    if as_json:
        facts = {"path": str(made.path), "card": made.card.model_dump(mode="json"), "notes": list(made.notes)}
        print_json(facts)
        return
    lines = [
        f"{made.path}: checkpoint {made.card.name!r}, patches of {made.card.patch_px} px at {made.card.patch_mpp:g} um/px"
    ]
    lines += [f"- {note}" for note in made.notes]
    lines.append(f"`stmdit inspect {made.path}` says what it still needs; --checkpoint {made.path} runs it.")
    sys.stdout.write("\n".join(lines) + "\n")


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
    from ..model.hub.download import check_source, find_download
    from ..model.hub.zoo import zoo_entry
    from ..progress import CancelToken

    if name is None:
        _print_zoo(as_json)
        return
    entry = zoo_entry(name)
    done = None if force else find_download(entry)
    if done is None:
        check_source(entry, offline=offline or None, source_folder=source_folder)
        _confirm(entry, source_folder, yes)
        cancel = CancelToken()
        with InterruptCancels(cancel):
            done = _fetch(entry, cancel, offline=offline, force=force, source_folder=source_folder)
    _report_download(done, as_json)


def _print_zoo(as_json: bool) -> None:
    """Print what can be downloaded: the table, or one JSON object."""
    from ..model.hub.references import data_directory
    from ..model.hub.zoo import zoo

    if as_json:
        rows = [_row(entry) for entry in zoo()]
        print_json({"directory": str(data_directory() / "downloads"), "zoo": rows})
        return
    from rich.table import Table

    table = Table("name", "kind", "size", "gated", "state", "licence", box=None, pad_edge=False)
    for column in table.columns[:-1]:
        column.no_wrap = True
    for entry in zoo():
        row = _row(entry)
        gated = "yes" if entry.gated else "no"
        table.add_row(entry.name, entry.kind, _size(entry), gated, row["state"], entry.licence)
    out = console()
    out.print(table)
    out.print("\n`stmdit download NAME` fetches one; stmdit:<row id> names any other model of the STMDiT collection.")


def _confirm(entry: ZooEntry, source_folder: Path | None, yes: bool) -> None:
    """Say on stderr what would be fetched, how large, under which terms and to where; go on only with consent.

    Raises
    ------
    StmditError
        Nobody can be asked, and ``--yes`` was not given.
    typer.Exit
        The answer was no (exit code 1), or Ctrl-C (130).
    """
    from ..model.hub.references import download_directory

    lines = [f"{entry.name}: {entry.title} ({entry.kind.replace('_', ' ')})"]
    where = "/".join(part for part in (entry.source, entry.subfolder) if part)
    lines.append(f"  files    {', '.join(entry.files)}")
    lines.append(f"  from     {source_folder or where}")
    lines.append(f"  to       {download_directory(entry.name)}")
    lines.append(f"  size     {_size(entry)}")
    lines.append(f"  licence  {entry.licence}")
    lines.append(f"  terms    {entry.terms}{' (gated: accept them there first)' if entry.gated else ''}")
    if entry.patch_px:
        scale = "unknown: choose" if entry.patch_mpp is None else f"{entry.patch_mpp:g} um/px"
        lines.append(f"  patches  {entry.patch_px} px at {scale}")
    lines += [f"  note     {note}" for note in entry.notes]
    sys.stderr.write("\n".join(lines) + "\n")
    if yes:
        return
    if not sys.stdin.isatty():
        raise StmditError("nobody can be asked for consent here: read the terms above and add --yes.")
    try:
        code = 0 if typer.confirm("Download it under these terms?", default=False, err=True) else 1
    except typer.Abort:
        code = 130
    if code:
        sys.stderr.write("nothing was downloaded\n")
        raise typer.Exit(code)


def _fetch(
    entry: ZooEntry, cancel: CancelToken, *, offline: bool, force: bool, source_folder: Path | None
) -> Downloaded:
    """Download with a progress bar on stderr; exit code 130 where it was stopped."""
    from ..model.hub.download import download
    from ..model.hub.transfer import DownloadCancelledError

    def show(progress: DownloadProgress) -> None:
        done, total = progress.bytes_done / 1e6, progress.bytes_total / 1e6
        speed = done / max(progress.elapsed_s, 0.1)
        bar.show(entry.name, progress.fraction, f"{done:,.0f}/{total:,.0f} MB, {speed:,.1f} MB/s, {progress.file}")

    with ProgressBar() as bar:
        try:
            return download(
                entry,
                on_progress=show,
                cancel=cancel,
                offline=offline or None,
                source_folder=source_folder,
                force=force,
            )
        except DownloadCancelledError as error:
            stopped = str(error)
    sys.stderr.write(f"stmdit: {stopped}\n")
    raise typer.Exit(130)


def _report_download(done: Downloaded, as_json: bool) -> None:
    """Say what is where, and what else it needs."""
    entry, record = done.entry, done.record
    needs = _needs(entry)
    if as_json:
        facts = {
            "name": entry.name,
            "folder": str(done.folder),
            "already": done.already,
            "record": None if record is None else record.model_dump(mode="json"),
            "components": needs,
        }
        print_json(facts)
        return
    state = "is here already" if done.already else "was downloaded"
    sys.stdout.write(f"{entry.name} {state}: {done.folder}\n")
    for name, file in (record.files if record else {}).items():
        sys.stdout.write(f"  {name}  {file.size:,} bytes  sha256 {file.sha256}\n")
    if record is None:
        sys.stdout.write("  (not put there by `stmdit download`: no hashes are recorded; --force downloads it)\n")
    if needs:
        sys.stdout.write("It needs:\n")
    for component, need in needs.items():
        hint = "" if need["state"] == "here" else f": `stmdit download {need['name']}`"
        sys.stdout.write(f"  {component.replace('_', ' ')} {need['name']}, {need['state']}{hint}\n")


def _needs(entry: ZooEntry) -> dict[str, dict[str, Any]]:
    from ..model.hub.zoo import state_of, zoo_entry

    needs = {}
    for component, name in entry.components.items():
        state, where = state_of(zoo_entry(name))
        needs[component] = {"name": name, "state": state, "where": None if where is None else str(where)}
    return needs


def _row(entry: ZooEntry) -> dict[str, Any]:
    from ..model.hub.zoo import state_of

    state, where = state_of(entry)
    return {
        **entry.model_dump(mode="json", exclude={"sha256"}),
        "state": state,
        "where": None if where is None else str(where),
    }


def _size(entry: ZooEntry) -> str:
    if entry.size_bytes is None:
        return "unknown"
    megabytes = entry.size_bytes / 1e6
    return f"about {megabytes / 1000:.2f} GB" if megabytes >= 1000 else f"about {megabytes:.0f} MB"
