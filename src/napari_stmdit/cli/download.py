"""``stmdit download``: checkpoints, components and public sections, listed and brought to this computer."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import StmditError
from ..text import size_words
from ._common import InterruptCancels, Json, ProgressBar, console, print_json

if TYPE_CHECKING:
    from ..downloads.download import Downloaded
    from ..downloads.places import Entry
    from ..model.zoo import ZooEntry
    from ..progress import CancelToken, DownloadProgress
    from ..tissue.public import PublicSection


def download(
    name: Annotated[
        str | None, typer.Argument(help="Name in the list, or stmdit:<row id>; without it, the list.")
    ] = None,
    source_folder: Annotated[Path | None, typer.Option("--from", help="Copy the files from this folder.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Consent to the terms without being asked.")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Never touch the network.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Download again what is here already.")] = False,
    as_json: Json = False,
) -> None:
    """List known checkpoints, components and public sections, or bring one to this computer; size and terms are shown first."""
    from ..downloads.download import check_source, find_download
    from ..model.zoo import zoo_entry
    from ..progress import CancelToken
    from ..tissue.public import find_section, public_section, public_sections

    if name is None:
        _print_list(as_json)
        return
    section = public_section(name)
    entry: Entry = section or zoo_entry(name, tuple(known.name for known in public_sections()))
    done = None
    if not force:
        done = find_download(entry) if section is None else find_section(section)
    if done is None:
        check_source(entry, offline=offline or None, source_folder=source_folder)
        _confirm(entry, source_folder, yes)
        cancel = CancelToken()
        with InterruptCancels(cancel):
            done = _fetch(entry, cancel, offline=offline, force=force, source_folder=source_folder)
    _report_download(done, as_json)


def _print_list(as_json: bool) -> None:
    """Print what can be downloaded: the tables, or one JSON object."""
    from ..downloads.places import data_directory
    from ..model.zoo import zoo
    from ..tissue.public import public_sections

    rows = [_row(entry) for entry in zoo()]
    sections = [_section_row(entry) for entry in public_sections()]
    if as_json:
        print_json({"directory": str(data_directory() / "downloads"), "zoo": rows, "sections": sections})
        return
    from rich.table import Table

    table = Table("name", "kind", "size", "gated", "state", "licence", box=None, pad_edge=False)
    for entry, row in zip(zoo(), rows, strict=True):
        table.add_row(
            entry.name,
            entry.kind,
            size_words(entry.size_bytes),
            "yes" if entry.gated else "no",
            row["state"],
            entry.licence,
        )
    of_sections = Table("public section", "tissue", "size", "state", "licence", box=None, pad_edge=False)
    for public, row in zip(public_sections(), sections, strict=True):
        of_sections.add_row(public.name, public.title, size_words(public.size_bytes), row["state"], public.licence)
    out = console()
    for one in (table, of_sections):
        for column in one.columns[:-1]:
            column.no_wrap = True
        out.print(one)
        out.print()
    out.print("`stmdit download NAME` fetches one; stmdit:<row id> names any other model of the STMDiT collection.")


def _confirm(entry: Entry, source_folder: Path | None, yes: bool) -> None:
    """Say on stderr what would be fetched, how large, under which terms and to where; go on only with consent.

    Raises
    ------
    StmditError
        Nobody can be asked, and ``--yes`` was not given.
    typer.Exit
        The answer was no (exit code 1), or Ctrl-C (130).
    """
    from ..downloads.download import ask_size
    from ..downloads.places import download_directory
    from ..model.zoo import ZooEntry
    from ..tissue.public import PublicSection, section_directory

    place, details = download_directory(entry.name), []
    if isinstance(entry, PublicSection):
        place = section_directory(entry.name)
        details = [f"  tissue   {entry.about}", f"  cite     {entry.citation}"]
        size = size_words(entry.size_bytes if source_folder else ask_size(entry))
    else:
        size = size_words(entry.size_bytes)
    if isinstance(entry, ZooEntry) and entry.patch_px:
        scale = "unknown: choose" if entry.patch_mpp is None else f"{entry.patch_mpp:g} um/px"
        details = [f"  patches  {entry.patch_px} px at {scale}"]
    kind = f" ({entry.kind.replace('_', ' ')})" if isinstance(entry, ZooEntry) else ""
    where = "/".join(part for part in (entry.source, entry.subfolder) if part)
    lines = [
        f"{entry.name}: {entry.title}{kind}",
        f"  files    {', '.join(entry.files)}",
        f"  from     {source_folder or where}",
        f"  to       {place}",
        f"  size     {size}",
        f"  licence  {entry.licence}",
        f"  terms    {entry.terms}{' (gated: accept them there first)' if entry.gated else ''}",
        *details,
    ]
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


def _fetch(entry: Entry, cancel: CancelToken, *, offline: bool, force: bool, source_folder: Path | None) -> Downloaded:
    """Download with a progress bar on stderr; exit code 130 where it was stopped."""
    from ..downloads.download import download
    from ..downloads.transfer import DownloadCancelledError
    from ..tissue.public import PublicSection, fetch_section

    def show(progress: DownloadProgress) -> None:
        done, total = progress.bytes_done / 1e6, progress.bytes_total / 1e6
        speed = done / max(progress.elapsed_s, 0.1)
        bar.show(entry.name, progress.fraction, f"{done:,.0f}/{total:,.0f} MB, {speed:,.1f} MB/s, {progress.file}")

    options: dict[str, Any] = {"offline": offline or None, "source_folder": source_folder, "force": force}
    with ProgressBar() as bar:
        options |= {"on_progress": show, "cancel": cancel}
        try:
            return fetch_section(entry, **options) if isinstance(entry, PublicSection) else download(entry, **options)
        except DownloadCancelledError as error:
            stopped = str(error)
    sys.stderr.write(f"stmdit: {stopped}\n")
    raise typer.Exit(130)


def _report_download(done: Downloaded, as_json: bool) -> None:
    """Say what is where, and what else it needs."""
    from ..model.zoo import ZooEntry

    entry, record = done.entry, done.record
    needs = _needs(entry) if isinstance(entry, ZooEntry) else {}
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
    if not isinstance(entry, ZooEntry):
        sys.stdout.write(
            f"`stmdit synthesize {entry.name} ...` takes it by its name, and napari opens it under File > Open Sample.\n"
        )
    elif record is None:
        sys.stdout.write("  (not put there by `stmdit download`: no hashes are recorded; --force downloads it)\n")
    if needs:
        sys.stdout.write("It needs:\n")
    for component, need in needs.items():
        hint = "" if need["state"] == "here" else f": `stmdit download {need['name']}`"
        sys.stdout.write(f"  {component.replace('_', ' ')} {need['name']}, {need['state']}{hint}\n")


def _needs(entry: ZooEntry) -> dict[str, dict[str, Any]]:
    from ..model.zoo import state_of, zoo_entry

    needs = {}
    for component, name in entry.components.items():
        state, where = state_of(zoo_entry(name))
        needs[component] = {"name": name, "state": state, "where": None if where is None else str(where)}
    return needs


def _row(entry: ZooEntry) -> dict[str, Any]:
    from ..model.zoo import state_of

    state, where = state_of(entry)
    return {
        **entry.model_dump(mode="json", exclude={"sha256"}),
        "state": state,
        "where": None if where is None else str(where),
    }


def _section_row(entry: PublicSection) -> dict[str, Any]:
    from ..tissue.public import find_section

    found = find_section(entry)
    return {
        **entry.model_dump(mode="json"),
        "state": "missing" if found is None else "here",
        "where": None if found is None else str(found.folder),
    }
