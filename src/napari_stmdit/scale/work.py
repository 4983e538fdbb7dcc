"""Work of one cluster worker: one checkpoint and one section a process, and shares of a plan.

This module is imported where `distributed` is, and nowhere else.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import dask
from distributed import Worker, WorkerPlugin, get_worker

from .. import __version__
from ..assemble import Checkpoint, checkpoint_content, load_checkpoint
from ..devices import choose_device
from ..errors import StoreError, SynthesisError, first_line
from ..intent import CheckpointCard, Request
from ..progress import CancelToken, Progress
from ..synthesis.conditions import Conditions, condition_rows
from ..synthesis.counterfactual import follow_steps
from ..synthesis.identity import differences, identity_of
from ..synthesis.models import Pasted
from ..synthesis.plan import plan as make_plan
from ..synthesis.session import Session
from ..synthesis.zarr_canvas import PatchStore, ZarrCanvas, check_run
from ..tissue.open import SectionSource
from ..types import Plan, Section


@dataclass(frozen=True)
class Task:
    """A run that workers share.

    Attributes
    ----------
    source, request
        Section and request; every worker makes the same plan of them.
    folder, run_id
        Of the `ZarrCanvas`, on a disk that all workers see.
    device, dtype, batch
        As `load_checkpoint` and `run` take them.
    identity, version
        Identity of section, checkpoint and code, and version of the package, that a worker must match.
    """

    source: SectionSource
    request: Request
    folder: Path
    run_id: str
    device: str
    dtype: str
    batch: int
    identity: dict[str, Any]
    version: str = __version__


@dataclass(frozen=True)
class Facts:
    """Card and provenance of the checkpoint of the workers."""

    card: CheckpointCard
    provenance: dict[str, Any]


@dataclass(frozen=True)
class Share:
    """Outcome of a share: finished patches, reasons of failed ones, and notes and facts as in `napari_stmdit.progress.Progress`."""

    done: list[int]
    failed: dict[int, str]
    notes: list[str]
    facts: dict[str, Any]


def _share(done: list[int], last: Progress) -> Share:
    return Share(done, dict(last.failed), list(last.notes), dict(last.facts))


def _checkpoint(name: str, device: str, dtype: str) -> Checkpoint:
    """Return the checkpoint of this process, loaded once for all runs and shares."""
    chosen, kind = choose_device(device, dtype)
    return _loaded(name, checkpoint_content(name), str(chosen), str(kind).removeprefix("torch."))


@lru_cache(maxsize=1)
def _loaded(name: str, content: str, device: str, dtype: str) -> Checkpoint:
    # ``content`` tells one state of a folder from the next: workers outlive the files that they were started with
    return load_checkpoint(name, device=device, dtype=dtype)


class NoInterrupt(WorkerPlugin):
    """Worker plugin that ignores SIGINT, which a terminal sends to all processes; the parent stops local workers."""

    def setup(self, worker: Worker) -> None:
        """Ignore SIGINT; called on the main thread of the worker's process."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)


class SharedRun(WorkerPlugin):
    """Run on one worker; the scheduler passes it to every worker that joins.

    Parameters
    ----------
    name
        Name of the run, and topic of its reports.
    task
        The shared run.
    """

    def __init__(self, name: str, task: Task) -> None:
        self.name = name
        self.task = task

    def setup(self, worker: Worker) -> None:
        """Register the run on the worker."""
        self._worker = worker
        self._once = threading.Lock()
        self.cancel = CancelToken()

    def __getstate__(self) -> dict[str, Any]:
        return {"name": self.name, "task": self.task}

    @property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint of this process."""
        with self._once:
            return _checkpoint(self.task.request.checkpoint, self.task.device, self.task.dtype)

    @cached_property
    def _prepared(self) -> tuple[Section, Plan]:
        section, checkpoint = self.task.source.open(), self.checkpoint
        plan = make_plan(section, self.task.request, checkpoint)
        wanted = {"napari-stmdit": self.task.version, **self.task.identity}
        found = differences(wanted, {"napari-stmdit": __version__, **identity_of(plan, section, checkpoint)})
        if found:
            raise SynthesisError(
                f"worker {self._worker.address} would compute something else:\n  "
                + "\n  ".join(found[:8])
                + "\nAll workers need the same version of the package, the same checkpoint and the same section files"
            )
        return section, plan

    @cached_property
    def _conditions(self) -> Conditions:
        section, plan = self._prepared
        return condition_rows(plan, section, self.checkpoint)

    def _find_run(self) -> None:
        """Refuse a folder without this run: what is written there would be kept nowhere."""
        folder = self.task.folder
        try:
            check_run(folder, self.task.run_id)
        except (OSError, StoreError) as error:
            raise SynthesisError(
                f"worker {self._worker.address} does not find this run in {folder} ({first_line(error)}); all workers need the disk that "
                "results are written to, at the same path"
            ) from None

    def compute(self, indices: Sequence[int]) -> Share:
        """Compute patches and write them."""
        self._find_run()
        section, plan = self._prepared
        for words in follow_steps(section, plan.card, self.checkpoint) if plan.counterfactual else ():
            if self.cancel.cancelled:
                return Share([], {}, [], {})
            self.report({"doing": words})
        store = PatchStore(self.task.folder, self.task.run_id)
        done: list[int] = []
        how: dict[str, Any] = {"batch": self.task.batch, "cancel": self.cancel, "only": indices}
        session = Session(plan, section, self.checkpoint, conditions=self._conditions, **how)
        for event in session.steps():
            if isinstance(event, Pasted):
                for result in event.images:
                    store.write(result.patch.index, result.pixels)
                own = [result.patch.index for result in event.images]
                done += own
                self.report({"done": own, "facts": dict(session.progress.facts)})
        return _share(done, session.progress)

    def compute_whole(self) -> Share:
        """Compute a continuous region, from where another worker left it."""
        self._find_run()
        section, plan = self._prepared
        canvas = ZarrCanvas.resume(self.task.folder, plan, self.task.identity)
        session = Session(plan, section, self.checkpoint, canvas, batch=self.task.batch, cancel=self.cancel)
        for progress in session.steps():
            if isinstance(progress, Progress):
                self.report(
                    {
                        "step": progress.step,
                        "part": progress.part,
                        "batch": progress.batch,
                        "finished": progress.patches_done,
                        "doing": progress.doing,
                    }
                )
        return _share(sorted(session.finished), session.progress)

    def report(self, what: dict[str, Any]) -> None:
        """Report to the process that shares out the run."""
        self._worker.log_event(self.name, what)


def own_threads() -> Any:
    """Make dask compute arrays by threads of this process."""
    # inside a task dask would send them to the cluster and wait for itself
    return dask.config.set(scheduler="threads")


def _here(name: str) -> SharedRun:
    found: SharedRun = get_worker().plugins[name]
    return found


def facts(checkpoint: str, device: str, dtype: str) -> Facts:
    """Load a checkpoint on this worker and return its facts; a task."""
    loaded = _checkpoint(checkpoint, device, dtype)
    return Facts(loaded.card, dict(loaded.provenance))


def compute(name: str, indices: Sequence[int]) -> Share:
    """Compute a share of a run; a task."""
    with own_threads():
        return _here(name).compute(indices)


def compute_whole(name: str) -> Share:
    """Compute a continuous region; a task."""
    with own_threads():
        return _here(name).compute_whole()


def stop(name: str, dask_worker: Worker) -> None:
    """Ask the run on this worker to stop at its next denoising step; run beside its tasks."""
    plugin = dask_worker.plugins.get(name)
    if plugin is not None:
        plugin.cancel.cancel()
