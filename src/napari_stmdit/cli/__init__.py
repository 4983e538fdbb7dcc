"""The ``stmdit`` command: parses, calls, prints. Everything it does can be done from Python."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from .. import __version__
from ..devices import let_threads_sleep
from ..errors import StmditError, SynthesisStoppedError
from . import bench, checkpoints, dataset, download, evaluate, synthesize, train
from ._common import Json, print_json


class Commands(TyperGroup):
    """The command and its subcommands. An empty argument, as from an unset variable of the shell, is not taken for a missing one."""

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


def main() -> None:
    """Run the command; one clear message and exit code 2 on bad input, 130 on interrupt, never a traceback."""
    let_threads_sleep()
    try:
        app(standalone_mode=True)
    except StmditError as error:
        _complain(str(error))
        sys.exit(130 if isinstance(error, SynthesisStoppedError) else 2)
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


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        sys.stdout.write(f"napari-stmdit {__version__}\n")
        raise typer.Exit


def info(as_json: Json = False) -> None:
    """Print versions, computer, devices, checkpoints, folders and known troubles: the text for a bug report."""
    from ..installation import describe_installation

    facts = describe_installation()
    if as_json:
        print_json(facts)
        return
    for title, content in facts.items():
        rows = content.items() if isinstance(content, dict) else enumerate(content, 1)
        lines = [f"  {key}: {value}\n" for key, value in rows]
        sys.stdout.write("".join([f"{title}\n", *(lines or ["  none\n"])]))


_PANELS: dict[str, tuple[Callable[..., None], ...]] = {
    "Start": (info, synthesize.demo),
    "Synthesize": (synthesize.synthesize, synthesize.batch),
    "Evaluate and use": (evaluate.evaluate, evaluate.evaluate_result, dataset.export_dataset, evaluate.figure),
    "Checkpoints": (checkpoints.inspect, checkpoints.convert, download.download, train.train, bench.bench),
}
for _panel, _commands in _PANELS.items():
    for _command in _commands:
        app.command(rich_help_panel=_panel)(_command)
