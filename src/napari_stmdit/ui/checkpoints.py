"""Checkpoints and public sections: downloads, conversion of foreign checkpoints, and adaptations to one's own tissue. No Qt.

Nothing is fetched before the user has seen its size and terms and pressed the button, and no scale is assumed for a foreign checkpoint.
An adaptation is a process that outlives the viewer; its work folder tells a later viewer about it.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from ..errors import CheckpointError, DownloadError, StmditError
from ..evaluation.evaluate import opened_with
from ..progress import CancelToken, DownloadProgress
from ..storage.atomic import LOCK, hold
from ..text import size_words
from ..tissue.open import SectionSource
from ..tissue.public import PublicSection, fetch_section, find_section, known_section, public_sections
from ..tissue.selections import write_selections
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
from .jobs import Handlers, Job, Lane, Series, Start, Tell, failing, once
from .state import Fetching, Foreign, ModelChoice, WorkbenchState

if TYPE_CHECKING:
    from ..downloads.places import Entry


@dataclass(frozen=True)
class Downloadable:
    """Entry that can be downloaded, as it is shown before the user consents."""

    entry: Entry
    here: bool  # whether it is on this computer

    @property
    def size(self) -> str:
        """Size to fetch, in words."""
        return "size unknown" if self.entry.size_bytes is None else size_words(self.entry.size_bytes)

    @property
    def state(self) -> str:
        """Whether it is on this computer, in words."""
        return "on this computer" if self.here else "not on this computer"

    @property
    def by_hand(self) -> bool:
        """Whether the user has to bring its files in a folder, as it is on no hub."""
        return self.entry.fetch == "manual"


@dataclass(frozen=True)
class ConvertIntent:
    """User's answers for a conversion: the scale, a name, and a gene list, if any."""

    path: str
    patch_mpp: float | None
    name: str
    genes: str | None = None


def downloadables() -> tuple[Downloadable, ...]:
    """Return the downloadable entries, with their state on this computer."""
    from ..model.zoo import state_of, zoo

    return tuple(Downloadable(entry, state_of(entry)[0] == "here") for entry in zoo())


def downloadable_sections() -> tuple[Downloadable, ...]:
    """Return the public sections, with their state on this computer."""
    return tuple(Downloadable(entry, find_section(entry) is not None) for entry in public_sections())


class Acquisition:
    """Downloads and conversions of one viewer, one of each at a time.

    Parameters
    ----------
    state, start
        State of the viewer, and function that starts jobs.
    load, open_section
        Load a checkpoint, or open a section, once it is there.
    """

    def __init__(
        self,
        state: WorkbenchState,
        start: Start,
        load: Callable[[ModelChoice], None],
        open_section: Callable[[SectionSource], None],
    ) -> None:
        self.state = state
        self._load, self._open_section = load, open_section
        self._start = start
        self._inspections, self._sizes = Lane(start), Lane(start)
        self._downloads, self._conversions = Series(start), Series(start)

    # --- downloads

    def download(self, name: str, folder: str | None = None) -> None:
        """Download by name, or copy from a folder, after the present download; the user has seen size and terms."""

        def arrived(place: Path) -> None:
            self.state.tell("info", f"{name} is on this computer: {place}")
            if getattr(self.state.checkpoint, "lacking", {}):  # perhaps it was what the loaded checkpoint waited for
                model = self.state.model
                self._load_between_runs(
                    model, f"{name} is on this computer: choose {Path(model.checkpoint).name} again"
                )

        self._fetch(name, _downloading(name, folder), arrived)

    def download_section(self, name: str, folder: str | None = None) -> None:
        """Open a public section, after a download or a copy from a folder if needed; as for `download`."""
        entry = known_section(name)
        if find_section(entry) is not None:
            self._open_section(SectionSource(path=name))
        else:
            self._fetch(name, _downloading(name, folder, entry), lambda _: self._open_section(SectionSource(path=name)))

    def offer_section(self, name: str) -> None:
        """Open a public section that is on this computer, else show its terms to be agreed to."""
        if find_section(known_section(name)) is not None:
            self.download_section(name)
        else:
            self.state.offered = ""
            self.state.offered = name
            self.state.tell(
                "info", f"{name} is not on this computer yet: its size and licence are shown under Public sections."
            )

    def ask_size(self, name: str) -> None:
        """Look up the size of a public section, if unknown; only headers are fetched."""
        entry = known_section(name)

        def answered(size: int | None) -> None:
            self.state.sizes = {**self.state.sizes, name: size}

        if self.state.sizes.get(name) is None and entry.size_bytes is None:
            self._sizes.submit(_asking_size(entry), Handlers(answered, self.state.tell_error))

    def _fetch(self, name: str, job: Job, arrived: Callable[[Path], None]) -> None:
        def begun() -> None:
            self.state.fetching = Fetching(name)

        def show(value: Any) -> None:
            if isinstance(value, Fetching):
                self.state.fetching = value
            else:
                arrived(value)

        if self._downloads.busy:
            self.state.tell("info", f"{name} is fetched after what is under way.")
        self._downloads.submit(job, Handlers(show, self.state.tell_error, self._fetched), begun)

    def stop_download(self) -> None:
        """Stop the download; what has arrived is kept, and the next one continues."""
        self._downloads.cancel()

    def _fetched(self) -> None:
        self.state.fetching = None

    def _load_between_runs(self, choice: ModelChoice, otherwise: str) -> None:
        """Load a checkpoint, which ends runs; where there are any, leave it to the user, and say so."""
        if self.state.status.busy or self.state.queue:
            self.state.tell("info", f"{otherwise} when the run has ended.")
        else:
            self._load(choice)

    # --- foreign checkpoints

    def choose(self, path: str) -> None:
        """Load a checkpoint folder of ours, or inspect a foreign file or folder and ask what it does not state."""
        self.state.foreign = None
        if (Path(path) / "stmdit.json").is_file():
            self._load(
                replace(self.state.model, checkpoint=path, morphology_embeddings=None, expression_embeddings=None)
            )
            return

        def found(foreign: Foreign) -> None:
            self.state.foreign = foreign
            self.state.tell("info", f"{Path(path).name} is a foreign checkpoint: say its scale and convert it once.")

        self._inspections.submit(_inspecting(path), Handlers(found, self.state.tell_error))

    def convert(self, intent: ConvertIntent) -> None:
        """Convert a foreign checkpoint into the user's own checkpoints, and load it unless that would end a run."""

        def made(folder: Path) -> None:
            self.state.foreign = None
            self.state.tell("info", f"{folder.name} was converted; it is offered by its name from now on.")
            choice = replace(self.state.model, checkpoint=str(folder))
            self._load_between_runs(choice, f"{folder.name} is ready: choose it")

        def begun() -> None:
            self.state.converting = True

        def ended() -> None:
            self.state.converting = False

        self._conversions.submit(_converting(intent), Handlers(made, self.state.tell_error, ended), begun)

    def close(self) -> None:
        """End all jobs; new ones may follow."""
        self._inspections.abandon()
        self._sizes.abandon()
        for series in (self._downloads, self._conversions):
            series.close()
        self._downloads, self._conversions = Series(self._start), Series(self._start)  # the dock may be opened again
        self.state.fetching, self.state.converting = None, False


def _asking_size(entry: PublicSection) -> Job:
    """Look up the size of a public section; yields bytes, or None where unknown."""

    def generate(token: CancelToken) -> Iterator[int | None]:
        from ..downloads.download import ask_size

        yield ask_size(entry, token)

    return Job(f"Asking for the size of {entry.name}", generate, failing(DownloadError, entry.name), quiet=True)


def _downloading(name: str, folder: str | None, section: PublicSection | None = None) -> Job:
    """Download a checkpoint, component or public section; reports `Fetching`, and yields the folder."""

    def generate(token: CancelToken, tell: Tell) -> Iterator[Path]:
        from ..downloads.download import download
        from ..downloads.transfer import DownloadCancelledError
        from ..model.zoo import zoo_entry

        def arrived(progress: DownloadProgress) -> None:
            tell(Fetching(name, progress.fraction, progress.file))

        how: dict[str, Any] = {"on_progress": arrived, "cancel": token, "source_folder": folder}
        try:
            done = download(zoo_entry(name), **how) if section is None else fetch_section(section, **how)
        except DownloadCancelledError:
            return
        yield done.folder

    error = failing(DownloadError, f"{name} could not be downloaded")
    return Job(f"Downloading {name}", generate, error, tells=True)


def _inspecting(path: str) -> Job:
    """Inspect a foreign checkpoint; yields a `Foreign`."""

    def work() -> Foreign:
        from ..model.foreign.convert import LATENT_FACTOR, MPP_CANDIDATES
        from ..model.foreign.inspect import inspect_checkpoint

        found = inspect_checkpoint(path)
        if found.kind != "transformer":
            what = (
                "is of no known kind"
                if found.kind == "unknown"
                else f"is a {found.kind.replace('_', ' ')}, no transformer"
            )
            raise CheckpointError(
                f"{path} {what}. Choose a checkpoint folder, or the weights of an STMDiT or PixCell model."
            )
        if found.latent_size is None:
            raise CheckpointError(f"{path} cannot be converted: {'; '.join(found.missing[:3])}.")
        conditions = " and ".join(found.conditions)
        summary = f"{found.family}, {found.depth} blocks of width {found.width}, {found.parameters:,} parameters, conditioned on {conditions}"
        candidates = tuple(MPP_CANDIDATES.items())
        return Foreign(path, summary, found.latent_size * LATENT_FACTOR, candidates, "expression" in found.conditions)

    return Job("Looking at the checkpoint", once(work), failing(CheckpointError, path))


def _converting(intent: ConvertIntent) -> Job:

    def work() -> Path:
        from ..assemble import convert_checkpoint
        from ..downloads.places import data_directory

        name = intent.name.strip()
        if not name or name.startswith(".") or any(mark in name for mark in '/\\:*?"<>|'):
            raise CheckpointError(
                f"{intent.name!r} cannot be the name of a folder. Use letters, digits, '.', '_' and '-'."
            )
        target = data_directory() / "checkpoints" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        made = convert_checkpoint(intent.path, target, patch_mpp=intent.patch_mpp, name=name, genes=intent.genes)
        return made.path

    return Job("Converting the checkpoint", once(work), failing(CheckpointError, f"{intent.path} was not converted"))


LOG_LINES = 3
NICENESS = 10
"""Niceness of the process, so that the viewer stays responsive."""


@dataclass(frozen=True)
class Adaptation:
    """State of an adaptation: name, whether a process works on it, progress, and reason of a failure, if any."""

    name: str
    alive: bool
    progress: AdaptProgress | None
    fault: str = ""

    @property
    def done(self) -> bool:
        """Whether its checkpoint is finished."""
        return self.progress is not None and self.progress.state == "done"


class Adaptations:
    """Adaptations on this computer, and those whose process was started here."""

    def __init__(self) -> None:
        self._started: dict[str, subprocess.Popen[bytes]] = {}

    def names(self) -> list[str]:
        """Return the names of all adaptations, the latest first."""
        home = adaptations_home()
        found = [path for path in home.iterdir() if read_request(path) is not None] if home.is_dir() else []
        found.sort(key=lambda path: path.stat().st_mtime, reverse=True)
        names = [path.name for path in found]
        return [*(name for name in self._started if name not in names), *names]

    def begin(self, section: Section | None, name: str, minutes: float, hold_out: str) -> str:
        """Start an adaptation to a section and return its name; raises StmditError for a section in memory."""
        if section is None or section.path is None:
            raise StmditError(
                "Open a section from a folder or a store first: the process that learns opens it again by itself."
            )
        how = opened_with(section)
        name = name.strip() or default_name(section.path)
        if self.look(name).alive:
            raise StmditError(f"{name} is being adapted already; wait for it, or give another name.")
        excluded = None
        if section.excluded is not None:
            regions = section.excluded.regions
            digest = hashlib.sha256(json.dumps(regions, sort_keys=True).encode()).hexdigest()[:8]
            excluded = adaptations_home() / f"{name}-{digest}.excluded.geojson"
            excluded.parent.mkdir(parents=True, exist_ok=True)
            write_selections(section.whole.spots, regions, excluded)
        request = request_of(
            name=name,
            sections=(str(section.path),),
            fullres=how["--fullres"],
            mpp=how["--mpp"],
            factors=() if how["--factors"] is None else (how["--factors"],),
            exclude=None if excluded is None else str(excluded),
            orientation=section.orientation,
            minutes=minutes,
            hold_out=hold_out,
        )
        self._start(request)
        return name

    def go_on(self, name: str) -> None:
        """Continue a stopped adaptation."""
        request = read_request(home_of(name))
        if request is not None and not self.look(name).alive:
            self._start(request)

    def stop(self, name: str) -> None:
        """Ask the process to save its state and end; it can be continued."""
        if home_of(name).is_dir():
            ask_to_stop(home_of(name))
        elif (process := self._started.get(name)) is not None:
            process.terminate()  # nothing was written yet

    def look(self, name: str) -> Adaptation:
        """Return the state of an adaptation."""
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
    try:
        lock = hold(work / LOCK)
    except OSError:
        return False
    if lock is None:
        return True
    lock.release()
    return False


def _last_words(log: Path) -> str:
    """Return the last lines of a process's log."""
    with suppress(OSError):
        lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        said = [number for number, line in enumerate(lines) if line.startswith("stmdit: ")]
        end = lines[said[-1] :] if said else lines[-1:]
        return "\n".join(end[:LOG_LINES]).removeprefix("stmdit: ")
    return "Its process ended without a word."
