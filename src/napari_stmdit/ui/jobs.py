"""Work that must not run on the GUI thread: what it is, how it is numbered, and how stale answers are dropped. No Qt."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from ..errors import SectionError, StmditError, SynthesisError
from ..progress import CancelToken, Progress
from ..synthesis.result import Result
from ..synthesis.run import PatchModel, run
from ..types import PatchResult, Plan, Section
from .state import ModelChoice, OpenIntent


@dataclass(frozen=True)
class Job:
    """A generator to be driven by a worker.

    Attributes
    ----------
    title
        What the activity list shows.
    generate
        Makes the generator; it asks the token whether it should end.
    failure
        Turns an unexpected exception into the error that the user reads.
    yields
        How many values to expect, for a progress bar; 0 where that is not known.
    """

    title: str
    generate: Callable[[CancelToken], Iterator[Any]]
    failure: Callable[[Exception], StmditError]
    yields: int = 0

    def guarded(self, token: CancelToken) -> Iterator[Any]:
        """Drive the generator so that only `StmditError` comes out.

        napari's generator workers take every RuntimeError for "the worker was deleted": they end without ``errored`` and
        without ``finished``. Nearly every failure of torch is a RuntimeError.
        """
        try:
            yield from self.generate(token)
        except StmditError:
            raise
        except Exception as error:
            raise self.failure(error) from error


@dataclass(frozen=True)
class Handlers:
    """What to call on the GUI thread: for each value, for an error, and once at the end, however it came."""

    value: Callable[[Any], None]
    error: Callable[[StmditError], None]
    end: Callable[[], None]


class Start(Protocol):
    """Starts a job: on a thread (`worker.start`), or at once where there is no event loop (`start_inline`)."""

    def __call__(self, job: Job, token: CancelToken, handlers: Handlers) -> None:
        """Drive the job and call the handlers."""


def start_inline(job: Job, token: CancelToken, handlers: Handlers) -> None:
    """Drive a job to its end in the calling thread: scripts and tests without Qt."""
    try:
        for value in job.guarded(token):
            handlers.value(value)
    except StmditError as error:
        handlers.error(error)
    handlers.end()


class Lane:
    """One kind of work, one at a time: each submission takes the next generation number and silences the one before."""

    def __init__(self, start: Start) -> None:
        self._start = start
        self._token: CancelToken | None = None
        self.generation = 0

    def submit(self, job: Job, handlers: Handlers) -> int:
        """Start a job and return its generation number; answers of earlier jobs no longer arrive."""
        self.cancel()
        self.generation += 1
        number, token = self.generation, CancelToken()
        self._token = token

        def if_current(handler: Callable[..., None]) -> Callable[..., None]:
            def call(*values: Any) -> None:
                if number == self.generation:
                    handler(*values)

            return call

        def end() -> None:
            self._token = None
            handlers.end()

        self._start(job, token, Handlers(if_current(handlers.value), if_current(handlers.error), if_current(end)))
        return number

    @property
    def busy(self) -> bool:
        """Whether a job is under way."""
        return self._token is not None

    def cancel(self) -> None:
        """Ask the present job to end; its answers still arrive."""
        if self._token is not None:
            self._token.cancel()

    def abandon(self) -> None:
        """Ask the present job to end and drop whatever it still says."""
        self.cancel()
        self._token = None
        self.generation += 1


# ------------------------------------------------------------------------------------------------- the jobs


@dataclass(frozen=True)
class Advance:
    """Patches finished since the last one, and the progress."""

    patches: tuple[PatchResult, ...]
    progress: Progress


@dataclass(frozen=True)
class LoadedModel:
    """A checkpoint on its device, and the devices to choose from."""

    model: PatchModel
    devices: tuple[tuple[str, str], ...]


def synthesis(plan: Plan, section: Section, model: PatchModel, batch: int) -> Job:
    """Return the job that runs a plan; it yields `Advance`."""

    def generate(token: CancelToken) -> Iterator[Advance]:
        for patches, progress in run(plan, section, model, batch=batch, cancel=token):
            yield Advance(patches, progress)

    def failure(error: Exception) -> StmditError:
        return SynthesisError(sampling_failure(error, batch))

    count = len(plan) if plan.windows is None else len(plan.windows)
    return Job(f"Synthesizing {len(plan)} patches", generate, failure, 1 + -(-count // batch) * plan.steps)


def sampling_failure(error: Exception, batch: int) -> str:
    """Say what went wrong in the sampler and what to do about it."""
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        advice = "lower 'Patches at once'" if batch > 1 else "choose a smaller region or the CPU"
        return f"The device ran out of memory with {batch} patches at once; {advice} and run again. ({text})"
    return f"Sampling failed: {text} ({type(error).__name__}). Finished patches are kept; run again to go on."


def opening(intent: OpenIntent) -> Job:
    """Return the job that opens a section; it yields a `Section` whose slide is ready to be drawn."""

    def generate(_: CancelToken) -> Iterator[Section]:
        from ..tissue.open import open_section

        section = open_section(intent.path, fullres=intent.fullres, mpp=intent.mpp)
        touch(section)
        yield section

    def failure(error: Exception) -> StmditError:
        return SectionError(f"{intent.path} could not be opened: {error} ({type(error).__name__})")

    return Job("Opening the section", generate, failure)


def opening_sample() -> Job:
    """Return the job that opens the bundled sample section."""

    def generate(_: CancelToken) -> Iterator[Section]:
        from ..tissue.sample import open_sample_section

        section = open_sample_section()
        touch(section)
        yield section

    return Job("Opening the sample section", generate, lambda error: SectionError(f"the sample section: {error}"))


def touch(section: Section) -> None:
    """Read one pixel of every level: a JPEG is decoded here, not on the GUI thread when it is first drawn."""
    for level in section.image.levels if section.image is not None else ():
        level[:1, :1].compute()


def loading(choice: ModelChoice) -> Job:
    """Return the job that loads a checkpoint; it yields a `LoadedModel`."""

    def generate(_: CancelToken) -> Iterator[LoadedModel]:
        from ..assemble import devices, load_checkpoint

        yield LoadedModel(load_checkpoint(choice.checkpoint, device=choice.device), tuple(devices()))

    def failure(error: Exception) -> StmditError:
        return SynthesisError(f"checkpoint {choice.checkpoint!r} could not be loaded: {error} ({type(error).__name__})")

    return Job("Loading the checkpoint", generate, failure)


def saving(result: Result, path: str) -> Job:
    """Return the job that writes a result; it yields the element's name."""

    def generate(_: CancelToken) -> Iterator[str]:
        yield result.save(path)

    def failure(error: Exception) -> StmditError:
        return SynthesisError(f"the result could not be written to {path}: {error} ({type(error).__name__})")

    return Job("Saving the result", generate, failure)
