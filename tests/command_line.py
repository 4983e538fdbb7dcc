"""The command line run in this process: the same `main`, exit code and streams, without the imports of a process of its own."""

from __future__ import annotations

import contextlib
import io
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch


@dataclass(frozen=True)
class Done:
    """How a command ended, as `subprocess.CompletedProcess` says it."""

    returncode: int
    stdout: str
    stderr: str


def stmdit(*arguments: object, cwd: Path | None = None) -> Done:
    """Run ``stmdit`` with nobody at the keyboard."""
    from napari_stmdit.cli import main

    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    code: object = 0
    with (
        contextlib.chdir(cwd or Path()),
        patch.object(sys, "argv", ["stmdit", *map(str, arguments)]),
        patch.object(sys, "stdin", io.StringIO()),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as end:
            code = end.code
    texts = (stream.buffer.getvalue().decode() for stream in (out, err))  # type: ignore[attr-defined]
    return Done(int(code or 0), *texts)  # type: ignore[arg-type]


def refused(*arguments: object, cwd: Path | None = None) -> str:
    """Run, check that it is refused as bad input is, and return the message."""
    return check_refused(stmdit(*arguments, cwd=cwd))


def check_refused(done) -> str:
    """Check that a command ended as on bad input, and return its message."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    return done.stderr
