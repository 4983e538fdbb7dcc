"""Checkpoints of one's own tissue that are being made: each by a process of its own, which outlives the viewer. No Qt.

What is known of one lies in its work folder: a viewer that is opened later finds it there.
"""

from __future__ import annotations

import os
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from ..errors import StmditError
from ..evaluation.evaluate import opened_with
from ..storage.atomic import LOCK, hold
from ..training.adaptation import (
    AdaptProgress,
    AdaptRequest,
    adaptations_home,
    ask_to_stop,
    command_of,
    default_name,
    home_of,
    read_progress,
    read_request,
    request_of,
)
from ..types import Section

LOG_LINES = 3
NICENESS = 10
"""How far the process steps back behind the viewer, which wants to be drawn."""


@dataclass(frozen=True)
class Adaptation:
    """One that was begun: its name, whether a process works on it now, how far it is, and why it failed, if it did."""

    name: str
    alive: bool
    progress: AdaptProgress | None
    fault: str = ""

    @property
    def done(self) -> bool:
        """Whether its checkpoint is there."""
        return self.progress is not None and self.progress.state == "done"


class Adaptations:
    """All adaptations on this computer, and those whose process was started here."""

    def __init__(self) -> None:
        self._started: dict[str, subprocess.Popen[bytes]] = {}

    def names(self) -> list[str]:
        """Return the names of those begun, the latest first."""
        home = adaptations_home()
        found = [path for path in home.iterdir() if read_request(path) is not None] if home.is_dir() else []
        found.sort(key=lambda path: path.stat().st_mtime, reverse=True)
        names = [path.name for path in found]
        return [*(name for name in self._started if name not in names), *names]

    def begin(self, section: Section | None, name: str, minutes: float, hold_out: str) -> str:
        """Start an adaptation to a section and return its name; raises StmditError where the section lies in no file."""
        if section is None or section.path is None:
            raise StmditError(
                "Open a section from a folder or a store first: the process that learns opens it again by itself."
            )
        how = opened_with(section)
        name = name.strip() or default_name(section.path)
        if self.look(name).alive:
            raise StmditError(f"{name} is being adapted already; wait for it, or give another name.")
        request = request_of(
            name=name,
            sections=(str(section.path),),
            fullres=how["--fullres"],
            mpp=how["--mpp"],
            minutes=minutes,
            hold_out=hold_out,
        )
        self._start(request)
        return name

    def go_on(self, name: str) -> None:
        """Start the process of one that was stopped."""
        request = read_request(home_of(name))
        if request is not None and not self.look(name).alive:
            self._start(request)

    def stop(self, name: str) -> None:
        """Ask the process to save what it has and end; it can be gone on with."""
        if home_of(name).is_dir():
            ask_to_stop(home_of(name))
        elif (process := self._started.get(name)) is not None:
            process.terminate()  # nothing was written yet

    def look(self, name: str) -> Adaptation:
        """Say how far one is."""
        work, process = home_of(name), self._started.get(name)
        alive = process is not None and process.poll() is None
        if not alive and work.is_dir():
            alive = _is_held(work)
        progress, fault = read_progress(work), ""
        if not alive and process is not None and process.returncode not in (0, 130):
            fault = _last_words(_log(name))
        elif progress is not None and progress.state == "failed":
            fault = progress.message
        return Adaptation(name, alive, progress, fault)

    def _start(self, request: AdaptRequest) -> None:
        log = _log(request.name)
        log.parent.mkdir(parents=True, exist_ok=True)
        flags = {name: getattr(subprocess, name, 0) for name in ("CREATE_NEW_PROCESS_GROUP", "DETACHED_PROCESS")}
        with log.open("wb") as file:
            process = subprocess.Popen(
                command_of(request, home_of(request.name)),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
                creationflags=sum(flags.values()),  # Windows
                start_new_session=True,  # elsewhere: what ends the viewer does not end it
            )
        with suppress(psutil.Error):
            psutil.Process(process.pid).nice(getattr(psutil, "BELOW_NORMAL_PRIORITY_CLASS", NICENESS))
        self._started[request.name] = process


def _log(name: str) -> Path:
    return adaptations_home() / f"{name}.log"


def _is_held(work: Path) -> bool:
    """Return whether a process works in a folder."""
    try:
        lock = hold(work / LOCK)
    except OSError:
        return False
    if lock is None:
        return True
    lock.release()
    return False


def _last_words(log: Path) -> str:
    """Return the end of what a process said."""
    with suppress(OSError):
        lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        said = [number for number, line in enumerate(lines) if line.startswith("stmdit: ")]
        end = lines[said[-1] :] if said else lines[-1:]
        return "\n".join(end[:LOG_LINES]).removeprefix("stmdit: ")
    return "Its process ended without a word."
