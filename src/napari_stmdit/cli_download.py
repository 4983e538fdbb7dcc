"""What `stmdit download` prints and asks; the work is done in `model.hub.download`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from .errors import StmditError

if TYPE_CHECKING:
    from .model.hub.download import Downloaded
    from .model.hub.zoo import ZooEntry
    from .progress import CancelToken, DownloadProgress


def print_zoo(as_json: bool) -> None:
    """Print what can be downloaded: the table, or one JSON object."""
    from .model.hub.references import data_directory
    from .model.hub.zoo import zoo

    if as_json:
        rows = [_row(entry) for entry in zoo()]
        sys.stdout.write(_as_json({"directory": str(data_directory() / "downloads"), "zoo": rows}))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("name", "kind", "size", "gated", "state", "licence", box=None, pad_edge=False)
    for column in table.columns[:-1]:
        column.no_wrap = True
    for entry in zoo():
        row = _row(entry)
        gated = "yes" if entry.gated else "no"
        table.add_row(entry.name, entry.kind, _size(entry), gated, row["state"], entry.licence)
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = 160
    console.print(table)
    console.print(
        "\n`stmdit download NAME` fetches one; stmdit:<row id> names any other model of the STMDiT collection."
    )


def confirm(entry: ZooEntry, source_folder: Path | None, yes: bool) -> None:
    """Say on stderr what would be fetched, how large, under which terms and to where; go on only with consent.

    Raises
    ------
    StmditError
        Nobody can be asked, and ``--yes`` was not given.
    typer.Exit
        The answer was no (exit code 1), or Ctrl-C (130).
    """
    from .model.hub.references import download_directory

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


def fetch(
    entry: ZooEntry,
    *,
    cancel: CancelToken,
    offline: bool,
    force: bool,
    source_folder: Path | None,
    hidden: bool,
) -> Downloaded:
    """Download with a progress bar on stderr; exit code 130 where it was stopped."""
    from .model.hub.download import download
    from .model.hub.transfer import DownloadCancelledError

    with _BytesBar(entry.name, hidden) as on_progress:
        try:
            return download(
                entry,
                on_progress=on_progress,
                cancel=cancel,
                offline=offline or None,
                source_folder=source_folder,
                force=force,
            )
        except DownloadCancelledError as error:
            stopped = str(error)
    sys.stderr.write(f"stmdit: {stopped}\n")
    raise typer.Exit(130)


def report(done: Downloaded, as_json: bool) -> None:
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
        sys.stdout.write(_as_json(facts))
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
    from .model.hub.zoo import state_of, zoo_entry

    needs = {}
    for component, name in entry.components.items():
        state, where = state_of(zoo_entry(name))
        needs[component] = {"name": name, "state": state, "where": None if where is None else str(where)}
    return needs


def _row(entry: ZooEntry) -> dict[str, Any]:
    from .model.hub.zoo import state_of

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


def _as_json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


class _BytesBar:
    """Takes `DownloadProgress`: a bar where stderr is a terminal, a line now and then where it is a log."""

    LINE_SECONDS = 10.0

    def __init__(self, title: str, hidden: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
        from rich.progress import Progress as Bar

        console = Console(stderr=True)
        self._title = title
        self._hidden = hidden
        self._lines = not console.is_terminal
        self._told_at = 0.0
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=hidden or self._lines,
        )
        self._task = self._bar.add_task(title, total=None)

    def __enter__(self) -> _BytesBar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, progress: DownloadProgress) -> None:
        self._bar.update(
            self._task,
            description=f"{self._title} {progress.file}",
            completed=progress.bytes_done,
            total=progress.bytes_total,
        )
        if self._lines and not self._hidden and progress.elapsed_s - self._told_at >= self.LINE_SECONDS:
            self._told_at = progress.elapsed_s
            sys.stderr.write(
                f"{self._title}: {progress.bytes_done / 1e6:,.0f}/{progress.bytes_total / 1e6:,.0f} MB, {progress.file}\n"
            )
            sys.stderr.flush()
