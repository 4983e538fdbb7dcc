"""Work that must not run on the GUI thread: what it is, how it is numbered, and how stale answers are dropped. No Qt."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..dataset.export import Exported, export_steps
from ..devices import leave_a_core
from ..errors import SectionError, StmditError, SynthesisError
from ..evaluation.cases import EvaluationRequest
from ..evaluation.evaluate import Evaluated
from ..expression.covariation import covariation_of
from ..progress import CancelToken, Progress
from ..synthesis.export import ExportKind, export_result
from ..synthesis.models import PatchModel
from ..synthesis.result import Result
from ..synthesis.session import Event, Session, sampling_failure
from ..synthesis.stored import StoredResult, StoredResults, read_stored
from ..synthesis.variants import ContactSheet, Variant, make_sheet
from ..tissue.linked import LinkedElements
from ..types import Section
from .state import CloseUp, ModelChoice, OpenIntent, ResultEntry


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
    quiet
        Whether it is too short to be listed among napari's activities.
    """

    title: str
    generate: Callable[[CancelToken], Iterator[Any]]
    failure: Callable[[Exception], StmditError]
    yields: int = 0
    quiet: bool = False

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
    """One kind of work, one at a time: each submission takes the next generation number and silences the one before.

    For work whose answer alone counts. What leaves something behind, such as a file, goes into a `Series`.
    """

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


class Series:
    """Work that leaves something behind, one after the other in the order it came: each is done, and says how it ended."""

    def __init__(self, start: Start) -> None:
        self._start = start
        self._waiting: list[tuple[Job, Handlers, Callable[[], None]]] = []
        self._token: CancelToken | None = None
        self._closed = False

    def submit(self, job: Job, handlers: Handlers, begun: Callable[[], None] = lambda: None) -> None:
        """Start a job, or let it wait for those before it; ``begun`` is called when it starts."""
        self._waiting.append((job, handlers, begun))
        if self._token is None:
            self._next()

    def _next(self) -> None:
        job, handlers, begun = self._waiting.pop(0)
        token = self._token = CancelToken()

        def end() -> None:
            if self._token is token:
                self._token = None
            try:
                heard(handlers.end)()
            finally:
                if self._token is None and self._waiting:
                    self._next()

        def heard(handler: Callable[..., None]) -> Callable[..., None]:
            return lambda *values: None if self._closed else handler(*values)

        begun()
        self._start(job, token, Handlers(heard(handlers.value), heard(handlers.error), end))

    @property
    def busy(self) -> bool:
        """Whether a job is under way."""
        return self._token is not None

    @property
    def waiting(self) -> int:
        """Return how many jobs have not begun."""
        return len(self._waiting)

    def cancel(self) -> None:
        """Ask the present job to end; its answers still arrive, and the next one begins."""
        if self._token is not None:
            self._token.cancel()

    def finish(self) -> None:
        """Start everything that waits, at once: nobody will be there to start it later. What is under way goes on."""
        while self._waiting:
            self._next()

    def close(self) -> None:
        """End the present job, drop those that wait, and listen no longer: for what can be begun again and goes on."""
        self._closed = True
        self._waiting.clear()
        self.cancel()


# ------------------------------------------------------------------------------------------------- the jobs


@dataclass(frozen=True)
class LoadedModel:
    """A checkpoint on its device, and the devices to choose from."""

    model: PatchModel
    devices: tuple[tuple[str, str], ...]


def synthesis(session: Session) -> Job:
    """Return the job that drives a run; it yields the events of `Session.steps`."""

    def generate(token: CancelToken) -> Iterator[Event]:
        leave_a_core()
        session.cancel = token
        yield from session.steps()

    return Job(f"Synthesizing {len(session.plan)} patches", generate, _sampling_failed, session.events)


def _sampling_failed(error: Exception) -> StmditError:
    return SynthesisError(sampling_failure(error))


def opening(intent: OpenIntent) -> Job:
    """Return the job that opens a section; it yields a `Section` whose slide is ready to be drawn."""

    def generate(_: CancelToken) -> Iterator[Section]:
        from ..tissue.open import open_section

        section = open_section(intent.path, fullres=intent.fullres, mpp=intent.mpp, **vars(intent.slide))
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
    """Read one pixel of every level, and estimate what varies with what: what takes seconds is done here, not on the GUI thread when first asked."""
    for level in section.image.levels if section.image is not None else ():
        level[:1, :1].compute()
    covariation_of(section.spots)


def loading(choice: ModelChoice) -> Job:
    """Return the job that loads a checkpoint; it yields a `LoadedModel`."""

    def generate(_: CancelToken) -> Iterator[LoadedModel]:
        from ..assemble import load_checkpoint
        from ..devices import devices

        model = load_checkpoint(
            choice.checkpoint,
            device=choice.device,
            morphology_embeddings=choice.morphology_embeddings,
            expression_embeddings=choice.expression_embeddings,
        )
        yield LoadedModel(model, tuple(devices()))

    def failure(error: Exception) -> StmditError:
        return SynthesisError(f"checkpoint {choice.checkpoint!r} could not be loaded: {error} ({type(error).__name__})")

    return Job("Loading the checkpoint", generate, failure)


def exporting(result: Result | StoredResult, path: str, kind: ExportKind, name: str) -> Job:
    """Return the job that writes a result into a file or folder for other programs; it yields the path."""

    def generate(_: CancelToken) -> Iterator[Path]:
        yield export_result(result, path, kind, name)

    def failure(error: Exception) -> StmditError:
        return SynthesisError(f"the result could not be written to {path}: {error} ({type(error).__name__})")

    return Job("Exporting the result", generate, failure)


def exporting_dataset(results: Sequence[Result | StoredResult], path: str) -> Job:
    """Return the job that writes results as a data set; it yields `Progress`, and `Exported` at the end."""

    def generate(token: CancelToken) -> Iterator[Progress | Exported]:
        yield (yield from export_steps(results, path, cancel=token))

    def failure(error: Exception) -> StmditError:
        return SynthesisError(f"the data set could not be written to {path}: {error} ({type(error).__name__})")

    return Job("Writing a data set", generate, failure)


def evaluating(
    section: Section, model: PatchModel, request: EvaluationRequest, path: str, checkpoint: str, batch: int | None
) -> Job:
    """Return the job that evaluates a section; it yields `Progress`, and `Evaluated` at the end."""

    def generate(token: CancelToken) -> Iterator[Progress | Evaluated]:
        from ..evaluation.evaluate import evaluation_steps

        leave_a_core()
        how: dict[str, Any] = {"checkpoint": checkpoint, "resume": True, "batch": batch or 8, "cancel": token}
        yield (yield from evaluation_steps([section], model, request, path, **how))

    def failure(error: Exception) -> StmditError:
        return SynthesisError(f"{section.name} could not be evaluated: {error} ({type(error).__name__})")

    return Job(f"Evaluating {section.name}", generate, failure)


def reading_stored(section: Section) -> Job:
    """Return the job that reads a section's stored results; it yields `StoredResults`."""

    def generate(_: CancelToken) -> Iterator[StoredResults]:
        yield read_stored(section)

    def failure(error: Exception) -> StmditError:
        return SectionError(f"the results in {section.path} could not be read: {error} ({type(error).__name__})")

    return Job("Reading stored results", generate, failure)


def linking(section: Section) -> Job:
    """Return the job that makes a section's SpatialData objects for other plugins; it yields `LinkedElements` or None."""

    def generate(_: CancelToken) -> Iterator[LinkedElements | None]:
        from ..tissue.linked import link_elements

        yield link_elements(section)

    def failure(error: Exception) -> StmditError:
        return SectionError(f"other plugins cannot work on {section.name}: {error} ({type(error).__name__})")

    return Job("Linking with SpatialData", generate, failure, quiet=True)


def sheet(title: str, variants: Sequence[Variant], columns: int, section: Section, model: PatchModel) -> Job:
    """Return the job that makes a contact sheet; it yields (`ContactSheet`, `Progress`)."""

    def generate(token: CancelToken) -> Iterator[tuple[ContactSheet, Progress]]:
        leave_a_core()
        yield from make_sheet(title, variants, columns, section, model, token)

    return Job(f"{title}: {len(variants)} images", generate, _sampling_failed)


def close_up(
    spot: str,
    columns: Callable[[], Mapping[str, NDArray[np.uint8]]],
    patch_um: float,
    words: str,
    edited: bool = False,
) -> Job:
    """Return the job that measures the patches of a spot; it yields a `CloseUp`, with the change where real tissue was ``edited``."""

    def generate(token: CancelToken) -> Iterator[CloseUp]:
        from ..evaluation.measures import compare_spot

        patches = columns()
        if not token.cancelled:
            change, limit = None, 0.0
            if edited and {"real", "edited"} <= set(patches):
                from .changes import change_of, change_picture, limit_of

                difference = change_of(patches["edited"], patches["real"])
                limit = limit_of(difference)
                change = change_picture(difference, limit)
            yield CloseUp(spot, patches, compare_spot(patches, patch_um), patch_um, words, change, limit)

    return Job(
        "Measuring a spot", generate, lambda error: SynthesisError(f"spot {spot} could not be measured: {error}")
    )


def measuring_change(entry: ResultEntry) -> Job:
    """Return the job that measures what an edit of real tissue changes; it yields the levels of the change."""

    def generate(token: CancelToken) -> Iterator[list[NDArray[np.float32]]]:
        from .changes import canvas_change, levels_of

        change = canvas_change(entry, lambda: token.cancelled)
        if change is not None:
            yield levels_of(change)

    def failure(error: Exception) -> StmditError:
        return SynthesisError(f"the change of {entry.name} could not be measured: {error}")

    return Job("Measuring the change", generate, failure)


def saving(result: Result, path: str) -> Job:
    """Return the job that writes a result; it yields the element's name."""

    def generate(_: CancelToken) -> Iterator[str]:
        yield result.save(path)

    def failure(error: Exception) -> StmditError:
        return SynthesisError(f"the result could not be written to {path}: {error} ({type(error).__name__})")

    return Job("Saving the result", generate, failure)
