"""Getting checkpoints: what is known by name is downloaded, what is foreign is looked at and converted. No Qt.

Nothing is fetched before the user has seen its size and terms and pressed the button, and no scale is assumed for a foreign checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError, StmditError
from ..progress import CancelToken, DownloadProgress
from .jobs import Handlers, Job, Lane, Series, Start, Tell, failing, once
from .state import Fetching, Foreign, ModelChoice, WorkbenchState

if TYPE_CHECKING:
    from ..model.hub.zoo import ZooEntry


@dataclass(frozen=True)
class Offer:
    """Something that can be downloaded by name, as it is shown before anyone agrees to it."""

    entry: ZooEntry
    here: bool  # whether it is on this computer

    @property
    def size(self) -> str:
        """How much there is to fetch, in words."""
        return "size unknown" if self.entry.size_bytes is None else f"about {self.entry.size_bytes / 1e9:.2g} GB"

    @property
    def by_hand(self) -> bool:
        """Whether it is on no hub: the user brings its files in a folder."""
        return self.entry.fetch == "manual"


@dataclass(frozen=True)
class ConvertIntent:
    """What the user answers: the scale, a name, and a gene list where there is one."""

    path: str
    patch_mpp: float | None
    name: str
    genes: str | None = None


def offers() -> tuple[Offer, ...]:
    """Return what can be downloaded by name, with its state on this computer."""
    from ..model.hub.zoo import state_of, zoo

    return tuple(Offer(entry, state_of(entry)[0] == "here") for entry in zoo())


class Acquisition:
    """Downloads and conversions of one viewer, one of each at a time; ``load`` loads a checkpoint once it is there."""

    def __init__(self, state: WorkbenchState, start: Start, load: Callable[[ModelChoice], None]) -> None:
        self.state = state
        self._load = load
        self._looks = Lane(start)
        self._downloads, self._conversions = Series(start), Series(start)

    # --- downloads

    def download(self, name: str, folder: str | None = None) -> None:
        """Fetch something by name, or copy its files from a folder, after what is under way; the user has seen its size and terms."""

        def begun() -> None:
            self.state.fetching = Fetching(name)

        def show(value: Any) -> None:
            if isinstance(value, Fetching):
                self.state.fetching = value
            else:
                self.state.tell("info", f"{name} is on this computer: {value}")

        if self._downloads.busy:
            self.state.tell("info", f"{name} is fetched after what is under way.")
        self._downloads.submit(_downloading(name, folder), Handlers(show, self._failed, self._fetched), begun)

    def stop_download(self) -> None:
        """Stop the download; what has arrived is kept, and the next one goes on from there."""
        self._downloads.cancel()

    def _failed(self, fault: StmditError) -> None:
        self.state.tell("error", str(fault))

    def _fetched(self) -> None:
        self.state.fetching = None
        missing = getattr(self.state.checkpoint, "lacking", {})
        if missing:  # perhaps it was what the loaded checkpoint waited for
            self._load(self.state.model)

    # --- foreign checkpoints

    def choose(self, path: str) -> None:
        """Load a checkpoint folder of ours, or look at a foreign file or folder and ask what has to be asked."""
        self.state.foreign = None
        if (Path(path) / "stmdit.json").is_file():
            self._load(
                replace(self.state.model, checkpoint=path, morphology_embeddings=None, expression_embeddings=None)
            )
            return

        def found(foreign: Foreign) -> None:
            self.state.foreign = foreign
            self.state.tell("info", f"{Path(path).name} is a foreign checkpoint: say its scale and convert it once.")

        self._looks.submit(_looking(path), Handlers(found, self._failed, lambda: None))

    def convert(self, intent: ConvertIntent) -> None:
        """Convert a foreign checkpoint into the user's own checkpoints, and load it."""

        def made(folder: Path) -> None:
            self.state.foreign = None
            self.state.tell("info", f"{folder.name} was converted; it is offered by its name from now on.")
            self._load(replace(self.state.model, checkpoint=str(folder)))

        def begun() -> None:
            self.state.converting = True

        def ended() -> None:
            self.state.converting = False

        self._conversions.submit(_converting(intent), Handlers(made, self._failed, ended), begun)

    def close(self) -> None:
        """End everything that is under way."""
        self._looks.abandon()
        for series in (self._downloads, self._conversions):
            series.close()
        self.state.fetching, self.state.converting = None, False


def _downloading(name: str, folder: str | None) -> Job:
    """Download something; tells `Fetching`, and yields the folder."""

    def generate(token: CancelToken, tell: Tell) -> Iterator[Path]:
        from ..downloads.download import download
        from ..downloads.transfer import DownloadCancelledError
        from ..model.hub.zoo import zoo_entry

        def arrived(progress: DownloadProgress) -> None:
            tell(Fetching(name, progress.fraction, progress.file))

        try:
            yield download(zoo_entry(name), on_progress=arrived, cancel=token, source_folder=folder).folder
        except DownloadCancelledError:
            return

    error = failing(CheckpointError, f"{name} could not be downloaded")
    return Job(f"Downloading {name}", generate, error, tells=True)


def _looking(path: str) -> Job:
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
    """Convert a foreign checkpoint; yields the folder."""

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
