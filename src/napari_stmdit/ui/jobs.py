"""Jobs off the GUI thread: their work, their order, and how stale answers are dropped. No Qt."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..dataset.export import Exported, export_steps
from ..devices import devices, let_viewer_go_first
from ..errors import SectionError, StmditError, SynthesisError
from ..evaluation.cases import EvaluationRequest
from ..evaluation.evaluate import Evaluated, evaluate
from ..evaluation.selection import EditEffect, chance_steps, measure_edit, with_chance
from ..expression.covariation import covariation_of
from ..progress import BATCH, CancelToken, Progress
from ..synthesis.models import PatchModel
from ..synthesis.result import ExportKind, Result, export_result
from ..synthesis.session import Session, sampling_failure
from ..synthesis.stored import StoredResult, read_stored
from ..synthesis.variants import ContactSheet, Variant, make_sheet
from ..tissue.crops import computed
from ..tissue.in_memory import link_elements
from ..tissue.open import SectionSource, open_sample_section
from ..tissue.pseudo_spots import drawn_outlines
from ..types import Section
from .layers import outlines_size
from .state import CloseUp, ModelChoice, ResultEntry

Tell = Callable[[Any], None]


@dataclass(frozen=True)
class Job:
    """Job for a worker."""

    title: str  # what the dock says while it is under way
    # makes the generator of the values; it asks the token whether it should end
    generate: Callable[..., Iterator[Any]]
    error: Callable[[Exception], StmditError]  # turns an unexpected exception into the error that the user reads
    quiet: bool = False  # whether it is too short to be shown as busy
    # whether ``generate`` takes a second argument, which is called with values that come while it works
    tells: bool = False

    def guarded(self, token: CancelToken, tell: Tell = lambda value: None) -> Iterator[Any]:
        """Drive the generator so that only `StmditError` is raised."""
        let_viewer_go_first()
        # napari's generator workers take every RuntimeError for "the worker was deleted" and end without ``errored`` and
        # ``finished``; nearly every failure of torch is a RuntimeError
        try:
            yield from self.generate(token, tell) if self.tells else self.generate(token)
        except StmditError:
            raise
        except Exception as error:
            raise self.error(error) from error


@dataclass(frozen=True)
class Handlers:
    """Callbacks on the GUI thread: for each value, for an error, and once at the end in any case."""

    value: Callable[[Any], None]
    error: Callable[[StmditError], None]
    end: Callable[[], None] = lambda: None


class Start(Protocol):
    """Function that starts a job: on a thread (`worker.start`), or at once without an event loop (`start_inline`)."""

    def __call__(self, job: Job, token: CancelToken, handlers: Handlers) -> None:
        """Drive the job and call the handlers."""


def start_inline(job: Job, token: CancelToken, handlers: Handlers) -> None:
    """Drive a job to its end in the calling thread: scripts and tests without Qt."""
    try:
        for value in job.guarded(token, handlers.value):
            handlers.value(value)
    except StmditError as error:
        handlers.error(error)
    handlers.end()


class _Jobs:
    """Jobs that are started one at a time."""

    def __init__(self, start: Start) -> None:
        self._start = start
        self._token: CancelToken | None = None

    @property
    def busy(self) -> bool:
        """Whether a job is running."""
        return self._token is not None

    def cancel(self) -> None:
        """Ask the present job to end; its answers still arrive, and the next one begins."""
        if self._token is not None:
            self._token.cancel()


class Lane(_Jobs):
    """Queue of length one: each submission takes the next generation number and drops the answers of the one before.

    For jobs without side effects. Those that leave something behind, such as a file, go into a `Series`.
    """

    def __init__(self, start: Start) -> None:
        super().__init__(start)
        self._generation = 0

    def submit(self, job: Job, handlers: Handlers) -> None:
        """Start a job; answers of earlier jobs no longer arrive."""
        self.cancel()
        self._generation += 1
        number, token = self._generation, CancelToken()
        self._token = token

        def if_current(handler: Callable[..., None]) -> Callable[..., None]:
            def call(*values: Any) -> None:
                if number == self._generation:
                    handler(*values)

            return call

        def end() -> None:
            self._token = None
            handlers.end()

        self._start(job, token, Handlers(if_current(handlers.value), if_current(handlers.error), if_current(end)))

    def abandon(self) -> None:
        """Ask the present job to end and drop its further answers."""
        self.cancel()
        self._token = None
        self._generation += 1


class Series(_Jobs):
    """Queue of jobs that leave something behind: each is done in order and reports its end."""

    def __init__(self, start: Start) -> None:
        super().__init__(start)
        self._waiting: list[tuple[Job, Handlers, Callable[[], None]]] = []
        self._closed = False

    def submit(self, job: Job, handlers: Handlers, begun: Callable[[], None] = lambda: None) -> None:
        """Queue a job; ``begun`` is called when it starts."""
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

    def finish(self) -> None:
        """Start all waiting jobs at once, as nobody will start them later; the present one continues."""
        while self._waiting:
            self._next()

    def close(self) -> None:
        """End the present job, drop waiting ones, and ignore all answers; for jobs that can be continued later."""
        self._closed = True
        self._waiting.clear()
        self.cancel()


# ------------------------------------------------------------------------------------------------- the jobs


@dataclass(frozen=True)
class LoadedModel:
    """Checkpoint on its device, and the available devices."""

    model: PatchModel
    devices: tuple[tuple[str, str], ...]


def synthesis(session: Session) -> Job:
    """Return the job that drives a run; it yields the events of `Session.steps`."""
    return Job(f"Synthesizing {len(session.plan)} patches", session.steps, sampling_failed)


def sampling_failed(error: Exception) -> StmditError:
    """Return the error that a sampler's exception becomes."""
    return SynthesisError(sampling_failure(error))


def once(work: Callable[[], Any]) -> Callable[[CancelToken], Iterator[Any]]:
    """Return a generator function that yields what ``work`` returns."""

    def generate(_: CancelToken) -> Iterator[Any]:
        yield work()

    return generate


def failing(kind: type[StmditError], what: str) -> Callable[[Exception], StmditError]:
    """Return a function that converts an exception to an error of a kind, with what failed and why."""
    return lambda error: kind(f"{what}: {error} ({type(error).__name__})")


def opening(source: SectionSource | None) -> Job:
    """Open a section, or the bundled sample; yields a `Section` whose slide is ready to be drawn."""

    def work() -> Section:
        section = open_sample_section() if source is None else source.open()
        touch(section)
        return section

    if source is None:
        return Job("Opening the sample section", once(work), failing(SectionError, "the sample section"))
    return Job("Opening the section", once(work), failing(SectionError, f"{source.path} could not be opened"))


def touch(section: Section) -> None:
    """Read one pixel of every level and estimate the covariation, which take seconds, off the GUI thread."""
    for level in section.image.levels if section.image is not None else ():
        computed(level[:1, :1])
    covariation_of(section.spots)


def importing() -> Job:
    """Import what every checkpoint needs, which takes seconds; yields None."""

    def work() -> None:
        with suppress(Exception):  # loading one says what is wrong
            from ..model import pipeline  # noqa: F401

    return Job("Importing", once(work), sampling_failed, quiet=True)


def loading(choice: ModelChoice) -> Job:
    """Load a checkpoint; yields a `LoadedModel`."""

    def work() -> LoadedModel:
        from ..assemble import load_checkpoint

        model = load_checkpoint(
            choice.checkpoint,
            device=choice.device,
            morphology_embeddings=choice.morphology_embeddings,
            expression_embeddings=choice.expression_embeddings,
        )
        return LoadedModel(model, tuple(devices()))

    error = failing(SynthesisError, f"checkpoint {choice.checkpoint!r} could not be loaded")
    return Job("Loading the checkpoint", once(work), error)


def _writing(title: str, path: str, work: Callable[[], Any]) -> Job:
    return Job(title, once(work), failing(SynthesisError, f"the result could not be written to {path}"))


def saving(result: Result | StoredResult, path: str) -> Job:
    """Write a result into a SpatialData store; yields the element's name."""
    return _writing("Saving the result", path, lambda: result.save(path))


def exporting(result: Result | StoredResult, path: str, kind: ExportKind, name: str) -> Job:
    """Write a result into a file or folder for other programs; yields the path."""
    return _writing("Exporting the result", path, lambda: export_result(result, path, kind, name))


def drawing_figure(result: Result | StoredResult, path: str, width_mm: float, dpi: int) -> Job:
    """Write a result as a figure for a paper; yields the path."""

    def work() -> Any:
        from ..evaluation.paper_figure import write_figure

        return write_figure(result, path, width_mm=width_mm, dpi=dpi)

    return _writing("Drawing the figure", path, work)


def exporting_dataset(results: Sequence[Result | StoredResult], path: str) -> Job:
    """Write results as a data set; yields `Progress`, and `Exported` at the end."""

    def generate(token: CancelToken) -> Iterator[Progress | Exported]:
        yield (yield from export_steps(results, path, cancel=token))

    return Job("Writing a data set", generate, failing(SynthesisError, f"the data set could not be written to {path}"))


def evaluating(
    section: Section, model: PatchModel, request: EvaluationRequest, path: str, checkpoint: str, batch: int | None
) -> Job:
    """Evaluate a section; reports `Progress`, and yields `Evaluated`."""

    def generate(token: CancelToken, tell: Tell) -> Iterator[Evaluated]:
        how: dict[str, Any] = {"called": checkpoint, "resume": True, "batch": batch or BATCH, "cancel": token}
        yield evaluate(model, section, request, output=path, on_progress=tell, **how)

    error = failing(SynthesisError, f"{section.name} could not be evaluated")
    return Job(f"Evaluating {section.name}", generate, error, tells=True)


def reading_stored(section: Section) -> Job:
    """Read a section's stored results; yields `StoredResults`."""
    error = failing(SectionError, f"the results in {section.path} could not be read")
    return Job("Reading stored results", once(lambda: read_stored(section)), error)


def outlining(section: Section) -> Job:
    """Read and draw the outlines of a section's cells; yields the levels of the picture."""
    outlines = section.outlines
    assert outlines is not None  # who asks has a layer of them
    error = failing(SectionError, f"the cells of {section.name} cannot be outlined")
    work = once(lambda: drawn_outlines(outlines.pieces, outlines_size(section)))
    return Job("Reading the outlines of cells", work, error, quiet=True)


def linking(section: Section) -> Job:
    """Make a section's SpatialData objects for other plugins; yields `LinkedElements` or None."""
    error = failing(SectionError, f"other plugins cannot work on {section.name}")
    return Job("Linking with SpatialData", once(lambda: link_elements(section)), error, quiet=True)


def sheet(title: str, variants: Sequence[Variant], columns: int, section: Section, model: PatchModel) -> Job:
    """Make a contact sheet; yields (`ContactSheet`, `Progress`)."""

    def generate(token: CancelToken) -> Iterator[tuple[ContactSheet, Progress]]:
        yield from make_sheet(title, variants, columns, section, model, token)

    return Job(f"{title}: {len(variants)} images", generate, sampling_failed)


def close_up(
    spot: str, columns: Callable[[], Mapping[str, NDArray[np.uint8]]], patch_um: float, words: str, edited: bool = False
) -> Job:
    """Measure the patches of a spot; yields a `CloseUp`, with the change where real tissue was ``edited``."""

    def generate(token: CancelToken) -> Iterator[CloseUp]:
        from ..evaluation.measures import compare_spot
        from .looking import change_of, change_picture, limit_of

        patches = columns()
        if token.cancelled:
            return
        change, limit = None, 0.0
        if edited and {"real", "edited"} <= set(patches):
            difference = change_of(patches["edited"], patches["real"])
            limit = limit_of(difference)
            change = change_picture(difference, limit)
        yield CloseUp(spot, patches, compare_spot(patches, patch_um), patch_um, words, change, limit)

    return Job("Measuring a spot", generate, failing(SynthesisError, f"spot {spot} could not be measured"))


def measuring_edit(entry: ResultEntry, baseline: Result | StoredResult | None) -> Job:
    """Measure what an edit changes over all spots of a result; yields an `EditEffect`."""

    def work() -> EditEffect:
        kept = EditEffect.read(entry.provenance)
        if kept is not None:
            return kept
        assert entry.source is not None  # who asks has looked
        return measure_edit(entry.source, baseline)

    error = failing(SynthesisError, f"the effect of {entry.name} could not be measured")
    return Job("Measuring the effect", once(work), error, quiet=True)


def comparing_with_chance(entry: ResultEntry, effect: EditEffect, model: PatchModel) -> Job:
    """Synthesize some spots with two seeds; yields `Progress`, and the `EditEffect` with chance at the end."""

    def generate(token: CancelToken) -> Iterator[Progress | EditEffect]:
        assert entry.source is not None  # who asks has looked
        for chance, progress in chance_steps(entry.source, model, token):
            yield progress
            if chance is not None:
                yield with_chance(effect, chance)

    return Job("Comparing with chance", generate, sampling_failed)


def measuring_change(entry: ResultEntry) -> Job:
    """Measure what an edit of real tissue changes; yields the levels of the change."""

    def generate(token: CancelToken) -> Iterator[list[NDArray[np.float32]]]:
        from .looking import canvas_change, levels_of

        change = canvas_change(entry, lambda: token.cancelled)
        if change is not None:
            yield levels_of(change)

    error = failing(SynthesisError, f"the change of {entry.name} could not be measured")
    return Job("Measuring the change", generate, error)
