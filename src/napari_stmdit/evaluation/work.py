"""Patches of an evaluation by case and seed, kept in its folder so that a stopped one continues."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import StoreError, SynthesisError
from ..expression.edits import moved_totals
from ..expression.profiles import as_profiles
from ..progress import CancelToken, Progress, Stopwatch
from ..storage.atomic import write_atomically
from ..storage.fingerprint import of_json
from ..synthesis.conditions import Conditions, conditioned_counts
from ..synthesis.identity import inputs_of
from ..synthesis.models import Pasted, PatchModel
from ..synthesis.session import Session
from ..types import Plan, Section
from .cases import COMPARED, EDITED, MIN_SPOTS, Case, EvaluationRequest
from .figures import Measurements
from .measures import CaseValues, PatchMetrics, SpotSet
from .reading import ExpressionReader, log_levels

STACKS = "stacks"
KEPT = "What is finished is kept; --resume goes on."


@dataclass(frozen=True)
class Stack:
    """Patches of one case and seed in one section.

    Attributes
    ----------
    images
        (n, side, side, 3) uint8.
    made
        (n,) bool: finished patches. One that is not finite never is.
    """

    images: NDArray[np.uint8]
    made: NDArray[np.bool_]


class StackFolder:
    """Folder of finished patches; each file is named by all that its pixels depend on.

    Parameters
    ----------
    folder
        The evaluation's folder.

    Raises
    ------
    StoreError
        The folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / STACKS
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"{folder} cannot be written: {error.strerror}; give another --output") from error

    def load(self, key: str, count: int, side: int) -> Stack:
        """Return the stack of a key; empty where there is none, or it is damaged."""
        empty = Stack(np.zeros((count, side, side, 3), np.uint8), np.zeros(count, dtype=bool))
        path = self._path(key)
        if not path.is_file():
            return empty
        try:
            with np.load(path, allow_pickle=False) as file:
                stack = Stack(file["images"], file["made"])
        except (OSError, ValueError, KeyError, EOFError):
            return empty
        fits = stack.images.shape == empty.images.shape and stack.made.shape == empty.made.shape
        return stack if fits else empty

    def save(self, key: str, stack: Stack) -> None:
        """Write a stack, complete or not, atomically."""
        path = self._path(key)
        try:
            write_atomically(path, lambda file: np.savez(file, images=stack.images, made=stack.made))
        except OSError as error:
            raise StoreError(
                f"{path} cannot be written: {error.strerror}; what was finished before is kept, --resume goes on"
            ) from error

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.npz"


class StackNaming:
    """Names of stacks, by what they depend on: section, checkpoint, request, dtype and code.

    Parameters
    ----------
    section, model
        Of all plans, which share their spots; the part of the slide that they read depends on the morphology condition alone.
    """

    def __init__(self, section: Section, model: PatchModel) -> None:
        self._section, self._model = section, model
        self._inputs: dict[tuple[str, str], dict[str, Any]] = {}

    def key(self, plan: Plan, further: str = "") -> str:
        """Return the name of a plan's stack; ``further`` distinguishes conditions that the request does not hold."""
        request = plan.request.model_dump(mode="json", exclude={"section", "checkpoint", "allow_gene_mismatch"})
        conditions = plan.request.morphology, plan.request.expression
        if conditions not in self._inputs:
            self._inputs[conditions] = inputs_of(plan, self._section, self._model)
        return of_json({**self._inputs[conditions], "request": request, "further": further})[:24]


def synthesize_stack(
    plan: Plan,
    section: Section,
    model: PatchModel,
    before: Stack,
    batch: int,
    cancel: CancelToken,
    conditions: Conditions | None = None,
) -> Iterator[tuple[Stack, Progress | None]]:
    """Synthesize the missing patches of a stack; yields it as it grows, with the run's progress."""
    images, made = before.images.copy(), before.made.copy()
    done = frozenset(np.flatnonzero(made).tolist())
    yield Stack(images, made), None
    if len(done) == len(plan):
        return
    session = Session(
        plan, section, model, batch=batch, cancel=cancel, done=done, conditions=conditions, kept=KEPT
    )  # named, so that a type checker reads them
    for event in session.steps():
        if isinstance(event, Pasted):
            for patch in event.images:
                images[patch.patch.index] = patch.pixels
                made[patch.patch.index] = True
        elif isinstance(event, Progress):
            yield Stack(images, made), event


# An evaluation under way: stacks of patches are made and measured one by one, and put together at the end.


SHIFT = 0.6
"""Maximum shift, in patch sides along each axis, of the real patches that give a floor."""
SHIFTED = "real, shifted"


@dataclass(frozen=True)
class Job:
    """Stack to be made: case, seed number, section number, plan, and conditions that no request can hold."""

    case: Case
    seed: int
    group: int
    plan: Plan
    key: str
    conditions: Conditions | None = None


@dataclass
class Work:
    """An evaluation under way."""

    spots: tuple[SpotSet, ...]
    model: PatchModel
    request: EvaluationRequest
    jobs: tuple[Job, ...]
    stacks: StackFolder
    metrics: PatchMetrics
    reader: ExpressionReader
    cases: tuple[Case, ...]
    notes: tuple[str, ...]
    watch: Stopwatch = field(default_factory=Stopwatch)
    values: dict[str, CaseValues] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)

    @property
    def plans(self) -> list[Plan]:
        """The plans of all stacks."""
        return [job.plan for job in self.jobs]

    @property
    def total(self) -> int:
        """Patches to be made."""
        return sum(len(plan) for plan in self.plans)

    def synthesize(self, batch: int, cancel: CancelToken) -> Generator[Progress, None, int]:
        """Synthesize missing patches and measure all; return the number of patches handled, fewer than all where it was stopped."""
        done = 0
        yield Progress(0, self.total, 0, self.jobs[0].plan.steps, 0, self.watch.seconds)
        for case in self.cases:
            values = self.values.setdefault(case.key, CaseValues(case.key, case.description))
            for seed in range(self.request.seeds):
                stacks = []
                for job in (job for job in self.jobs if (job.case, job.seed) == (case, seed)):
                    stack, failed = yield from self._make(job, done, batch, cancel)
                    missing = int((~stack.made).sum()) - len(failed)
                    done += len(job.plan) - missing
                    if missing:
                        return done
                    self.lost |= failed
                    stacks.append(stack)
                self._measure(values, case, seed, np.concatenate([stack.images for stack in stacks]))
        return done

    def _make(
        self, job: Job, before: int, batch: int, cancel: CancelToken
    ) -> Generator[Progress, None, tuple[Stack, dict[str, str]]]:
        """Synthesize one stack and keep its finished patches however it ends; return it with the failures."""
        one = self.spots[job.group]
        stack = kept = self.stacks.load(job.key, len(job.plan), job.plan.card.patch_px)
        failed: dict[str, str] = {}
        if kept.made.all():
            return kept, failed
        try:
            grown = synthesize_stack(job.plan, one.section, self.model, kept, batch, cancel, job.conditions)
            for found, progress in grown:
                stack = found
                if progress is not None:
                    failed = {f"{job.group}/{job.plan.patches[k].spot_id}": why for k, why in progress.failed.items()}
                    at, seconds = before + progress.patches_done, self.watch.seconds
                    yield replace(progress, patches_done=at, patches_total=self.total, elapsed_s=seconds, failed={})
        finally:
            if stack.made.sum() > kept.made.sum():
                self.stacks.save(job.key, stack)
        return stack, failed

    def _measure(self, values: CaseValues, case: Case, seed: int, images: NDArray[np.uint8]) -> None:
        base = None
        if case.edited:
            base = np.concatenate([self._kept(EDITED[1], seed, group).images for group in range(len(self.spots))])
        values.per_seed.append(self.metrics.measure(images, base))
        if values.shown is None:
            values.shown = images[self.metrics.shown]

    def _kept(self, key: str, seed: int, group: int) -> Stack:
        job = next(job for job in self.jobs if (job.case.key, job.seed, job.group) == (key, seed, group))
        return self.stacks.load(job.key, len(job.plan), job.plan.card.patch_px)

    def measurements(self) -> Measurements:
        """Collect the measurements, without spots that failed in any case."""
        groups = np.repeat(np.arange(len(self.spots)), [len(one) for one in self.spots])
        shifted = CaseValues(SHIFTED, "real patches near the spots, shifted", synthetic=False)
        card = self.model.card
        moved = [one.shifted(SHIFT * card.patch_um / one.section.mpp, self.request.seed) for one in self.spots]
        crops = np.concatenate(moved)
        shifted.per_seed.append(self.metrics.measure(crops))
        shifted.shown = crops[self.metrics.shown]
        where = [f"{group}/{spot}" for group, one in enumerate(self.spots) for spot in one.ids]
        keep = np.array([place not in self.lost for place in where])
        if keep.sum() < MIN_SPOTS:
            raise SynthesisError(
                f"only {int(keep.sum())} spots could be synthesized in every case, at least {MIN_SPOTS} are needed"
            )
        if not keep.all():
            some = "; ".join(f"{place.split('/', 1)[1]}: {why}" for place, why in list(self.lost.items())[:3])
            self.notes = (*self.notes, f"{int((~keep).sum())} spots were left out of all figures: {some}")
        names = ", ".join(one.section.name for one in self.spots)
        return Measurements(
            f"{card.name} on {names}",
            groups[keep],
            tuple(np.array([spot for one in self.spots for spot in one.ids])[keep].tolist()),
            _narrowed(self.metrics.real, keep),
            (_narrowed(shifted, keep),),
            tuple(_narrowed(values, keep) for values in self.values.values()),
            COMPARED,
            (EDITED,),
            replace(self.reader, truth=self.reader.truth[keep], which=self.reader.which[keep]),
            None if (change := self._intended()) is None else change[keep],
        )

    def _intended(self) -> NDArray[np.float64] | None:
        """Return the (n, g) change of log(1 + counts per 10,000) by the edits, relative to the unedited totals."""
        if EDITED[0] not in self.values:
            return None
        parts = []
        for group, one in enumerate(self.spots):
            job = next(job for job in self.jobs if job.case.edited and job.group == group)
            counts, _ = conditioned_counts(one.rows, one.section, job.plan.request, self.model.profiles)
            spots = replace(one.section.spots, counts=counts, ids=one.section.spots.ids[one.rows])
            edited = replace(one.section, spots=spots)
            before = log_levels(one.section, one.rows, self.reader.genes)
            known = {**self.model.profiles, **as_profiles(job.plan.request.profiles)}
            deeper = moved_totals(
                one.rows, one.section.spots, job.plan.request.edits, known
            )  # no change of a gene's level
            scale = np.maximum(np.asarray(counts.sum(axis=1)).ravel() / deeper, 1) / np.maximum(
                np.asarray(one.section.spots.counts[one.rows].sum(axis=1)).ravel(), 1
            )
            after = np.log1p(np.expm1(log_levels(edited, np.arange(len(one)), self.reader.genes)) * scale[:, None])
            parts.append(after - before)
        return np.concatenate(parts)


def _narrowed(values: CaseValues, keep: NDArray[np.bool_]) -> CaseValues:
    return replace(values, per_seed=[one.only(keep) for one in values.per_seed])
