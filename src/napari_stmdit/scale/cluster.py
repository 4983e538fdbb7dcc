"""Runs on a dask cluster, or on workers of this computer: patches are shared out, and one process records them."""

from __future__ import annotations

import logging
import os
import queue
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..assemble import place_of_checkpoint
from ..devices import thread_waiting
from ..errors import (
    ClusterGoneError,
    RequestError,
    StmditError,
    SynthesisError,
    SynthesisStoppedError,
    first_line,
)
from ..intent import Request
from ..progress import BATCH, CancelToken, Progress, Stopwatch
from ..synthesis.identity import identity_of
from ..synthesis.plan import plan as make_plan
from ..synthesis.result import Result, collect
from ..synthesis.session import kept, open_canvas, to_continue
from ..synthesis.zarr_canvas import ZarrCanvas, progress_text
from ..tissue.open import SectionSource
from ..types import Plan, Section

if TYPE_CHECKING:
    from .work import Facts, Share, Task


_VISIBLE = "CUDA_VISIBLE_DEVICES"
BATCHES_A_SHARE = 4
"""Batches in a share: few, so that a dead worker costs little; enough to be worth sending."""
MAX_ROUNDS = 2
"""Maximum times that the scheduler gives up a share (after several deaths each) before the run ends."""
PATIENCE_S = 120.0
"""Seconds to wait for a worker where there is none."""
ANSWER_S = 20.0
"""Seconds to wait for a scheduler to answer."""
_POLL_S = 0.5
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@contextmanager
def local_client(workers: int, device: str = "auto") -> Iterator[Any]:
    """Start worker processes on this computer, reachable from it alone, yield their `distributed.Client`, and stop them at the end.

    With CUDA each gets a GPU of its own, else its part of the cores. Raises RequestError where there are fewer GPUs than workers, or one
    device was given for several workers.
    """
    require_distributed()
    environments = worker_environments(workers, device, gpus(), os.cpu_count() or 1)
    import dask
    from distributed import Client, Nanny, Scheduler, SpecCluster

    from .work import NoInterrupt

    # set before a worker's process starts: libraries read the number of threads when they are loaded
    early = {"distributed.nanny.pre-spawn-environ": environments[0]}
    with dask.config.set(early), tempfile.TemporaryDirectory(prefix="stmdit-") as place:
        specification = {
            number: {
                "cls": Nanny,
                "options": {
                    "nthreads": 1,  # tasks at once; torch has its own threads
                    "env": environment,
                    "host": "127.0.0.1",
                    "memory_limit": 0,
                    "local_directory": place,
                    "dashboard_address": None,
                    "silence_logs": 50,
                },
            }
            for number, environment in enumerate(environments)
        }
        scheduler = {
            "cls": Scheduler,
            "options": {"host": "127.0.0.1", "dashboard": False, "dashboard_address": "127.0.0.1:0", "port": 0},
        }
        with (
            SpecCluster(workers=specification, scheduler=scheduler, silence_logs=50) as cluster,
            Client(cluster, set_as_default=False) as client,
        ):
            client.register_plugin(NoInterrupt())
            client.wait_for_workers(workers, timeout=120)
            yield client


def worker_environments(workers: int, device: str, gpu_count: int, cores: int) -> list[dict[str, str]]:
    """Return the environment of each worker: its GPU, and how many threads it may use."""
    if workers < 1:
        raise RequestError([("workers", f"got {workers}; expected one or more")])
    on_gpu = gpu_count > 0 and device in ("auto", "cuda")
    if workers > 1 and device.startswith(("cuda:", "mps")):
        said = f"{device} is one device, and {workers} workers need one each; leave --device out, or use cuda or cpu"
        raise RequestError([("device", said)])
    if on_gpu and workers > gpu_count:
        raise RequestError([("workers", f"{workers} workers need a GPU each, and this computer has {gpu_count}")])
    own = {name: str(max(1, cores // workers)) for name in _THREADS}
    own |= thread_waiting()
    if not on_gpu:
        return [dict(own) for _ in range(workers)]
    return [{**own, _VISIBLE: name} for name in _gpu_names(gpu_count)[:workers]]


def _gpu_names(count: int) -> list[str]:
    """Return the names of the GPUs that this process sees, as CUDA takes them: on a shared node the first need not be number 0.

    ``CUDA_VISIBLE_DEVICES`` holds numbers, or UUIDs of GPUs or MIG parts; torch's device k is its k-th entry.
    """
    given = os.environ.get(_VISIBLE)
    names = [str(k) for k in range(count)] if given is None else [part.strip() for part in given.split(",")]
    if len(names) < count:  # pragma: no cover - CUDA shows no GPU that the variable does not name
        raise StmditError(f"{_VISIBLE} is {given!r}, and {count} GPUs are visible; no worker's GPU follows from it")
    return names


def gpus() -> int:
    """Return the number of CUDA devices."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def require_distributed() -> None:
    """Raise where the extra `cluster` is not installed."""
    from importlib.util import find_spec

    if find_spec("distributed") is None:
        raise StmditError(
            'several workers need dask.distributed, which is not installed: pip install "napari-stmdit[cluster]"'
        )


def check_choice(scheduler: str | None, workers: int | None) -> None:
    """Refuse a scheduler together with workers."""
    if scheduler is not None and workers is not None:
        raise RequestError([("workers", "give --scheduler or --workers, not both: a scheduler has its own workers")])


@contextmanager
def connect(scheduler: str | None, workers: int | None, device: str = "auto") -> Iterator[Any]:
    """Yield a client of the scheduler at an address, or of workers started here.

    Raises StmditError where dask.distributed is missing or nobody answers, RequestError where the workers do not fit this computer.
    """
    require_distributed()
    if scheduler is None:
        with local_client(workers or 1, device) as client:
            yield client
        return
    from distributed import Client

    try:
        _check_address(scheduler)
        client = Client(scheduler, timeout=ANSWER_S, set_as_default=False)
    except (OSError, TypeError, ValueError) as error:
        raise StmditError(
            f"no dask scheduler answers at {scheduler} ({first_line(error)}); expected an address as `dask scheduler` prints it, for "
            "instance tcp://host:8786"
        ) from None
    with _quiet(), client:
        yield client


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep dask's client from writing tracebacks of a lost connection: an error of ours says it, once."""
    logger = logging.getLogger("distributed.client")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


def _check_address(address: str) -> None:
    """Raise ValueError or TypeError for an address that no client can use: one that is half made waits 40 s, and ends in a traceback."""
    from distributed import Security
    from distributed.comm import parse_address, parse_host_port
    from distributed.comm.registry import get_backend

    scheme, place = parse_address(address)
    get_backend(scheme).get_connector()
    host, port = parse_host_port(place)
    if not host or not port:
        raise ValueError(f"it has no {'port' if host else 'host'}")
    if scheme in ("tls", "wss") and Security().get_connection_args("client")["ssl_context"] is None:
        raise ValueError("TLS needs the certificates in dask's configuration, under distributed.comm.tls")


def remote_checkpoint(client: Any, name: str, device: str, dtype: str, cancel: CancelToken | None = None) -> Facts:
    """Have a worker load a checkpoint, and return its facts, which cannot compute.

    ``name`` is a checkpoint's, or a folder on a disk that workers see. Raises CheckpointError as `load_checkpoint` does on the worker, ClusterGoneError where there is none, SynthesisStoppedError once
    ``cancel`` is set, SynthesisError where the worker has another version.
    """
    from .work import facts

    watch, ended = _Watch(client), threading.Event()
    with _connected(client):
        # asked before there is a worker: an adaptive cluster starts workers for what is asked
        future = client.submit(facts, place_of_checkpoint(name), device, dtype, pure=False)
        future.add_done_callback(lambda _: ended.set())
        while not ended.wait(_POLL_S):
            if cancel is not None and cancel.cancelled:
                future.cancel()
                raise SynthesisStoppedError("stopped before a worker had loaded the checkpoint; nothing was computed")
            watch.look()
        try:
            found: Facts = future.result()
        except StmditError:
            raise
        except Exception as error:
            _workers(client)  # the error may be but that of a lost scheduler
            raise SynthesisError(f"no worker could load checkpoint {name!r}: {_why(error)}") from error
        return replace(found, provenance={**found.provenance, "workers": len(_workers(client))})


def synthesize_on(
    scheduler: str | None,
    workers: int | None,
    source: SectionSource,
    section: Section,
    request: Request,
    *,
    device: str = "auto",
    dtype: str = "auto",
    **how: Any,
) -> Result:
    """Connect and run `synthesize_shared` with ``how``; raises RequestError for a scheduler together with workers."""
    check_choice(scheduler, workers)
    require_distributed()
    with connect(scheduler, workers, device) as client:
        return synthesize_shared(client, source.absolute(), section, request, device=device, dtype=dtype, **how)


def synthesize_shared(
    client: Any,
    source: SectionSource,
    section: Section,
    request: Request,
    *,
    folder: Path,
    batch: int = BATCH,
    device: str = "auto",
    dtype: str = "auto",
    cancel: CancelToken | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    resume: bool = False,
) -> Result:
    """Synthesize on the workers of a cluster, like `napari_stmdit.synthesize` and with its errors.

    Spots are shared out; a continuous region stays on one worker. Patches of a dead worker are done again by another. ``source`` is where
    workers find the section, ``folder`` lies on a disk that all see, and an automatic dtype is the first worker's. Raises SynthesisError
    where workers keep dying, none is left, or they disagree; what is finished stays.
    """
    from .work import Task

    cancel = cancel or CancelToken()
    model = remote_checkpoint(client, request.checkpoint, device, dtype, cancel)
    plan = make_plan(section, request, model)
    identity = identity_of(plan, section, model)
    # workers of several kinds would choose differently, and none could go on for another
    dtype = str(model.provenance["dtype"])
    canvas = open_canvas(folder, plan, section, model, resume)
    asked = request.model_copy(update={"checkpoint": place_of_checkpoint(request.checkpoint)})
    task = Task(source, asked, canvas.folder, canvas.run_id, device, dtype, batch, identity)
    if plan.windows is None:
        before = len(canvas.finished)
        with kept(canvas, plan):
            run = _SharedSynthesis(client, task, plan, cancel, on_progress)
            run.spots(canvas)
    else:
        before = 0
        canvas.close()  # for the worker to take
        with _kept_by_worker(canvas.folder):
            run = _SharedSynthesis(client, task, plan, cancel, on_progress)
            done = run.region()
        canvas = ZarrCanvas.resume(canvas.folder, plan, identity)
        with kept(canvas, plan):
            canvas.adopt(done)
    progress = run.progress(len(canvas.finished))
    return collect(plan, section, model, canvas, run.watch.seconds, progress, resumed=before)


@contextmanager
def _kept_by_worker(folder: Path) -> Iterator[None]:
    """Name the folder in errors, as `kept` does where this process holds it."""
    try:
        yield
    except StmditError as error:
        if "--resume" in str(error):  # the worker was at work there, and said so itself
            raise
        raise to_continue(error, f"what is finished is kept in {folder}{progress_text(folder)}") from error


@dataclass
class _SharedSynthesis:
    client: Any
    task: Task
    plan: Plan
    cancel: CancelToken
    on_progress: Callable[[Progress], None] | None
    watch: Stopwatch = field(default_factory=Stopwatch)
    failed: dict[int, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.name = f"stmdit-{uuid.uuid4().hex[:12]}"
        self._news: queue.Queue[tuple[str, Any]] = queue.Queue()
        self._futures: dict[Any, Sequence[int]] = {}
        self._deaths: dict[int, int] = {}
        self._stop_sent = False
        self._cluster = _Watch(self.client)
        self._present = self._cluster.look()
        self._checked = time.monotonic()

    def progress(self, finished: int, step: int = 0, batch: int = 0, part: float = 0.0, doing: str = "") -> Progress:
        """Return the progress of the run."""
        return Progress(
            finished,
            len(self.plan),
            step,
            self.plan.steps,
            batch,
            self.watch.seconds,
            part=part,
            notes=tuple(dict.fromkeys(self.notes)),
            failed=dict(self.failed),
            facts=dict(self.facts),
            doing=doing,
        )

    def spots(self, canvas: ZarrCanvas) -> None:
        """Share out the missing patches, and record them until all are done."""
        from .work import compute

        def send(shares: Sequence[Sequence[int]]) -> None:
            for share in shares:
                self._watch_over(self.client.submit(compute, self.name, share, pure=False), share)

        todo = [patch.index for patch in self.plan.patches if patch.index not in canvas.finished]
        self._report(len(canvas.finished))
        with self._run_on_workers():
            send(self._cut(todo))
            while self._futures:
                kind, what = self._next()
                if kind == "report" and "done" in what:
                    self.facts |= what["facts"]
                    self._record(canvas, what["done"])
                elif kind == "report":
                    self._report(len(canvas.finished), doing=what["doing"])
                elif kind == "done":
                    share = self._futures.pop(what, None)
                    if share is None:  # dropped before it began
                        continue
                    rest = [index for index in share if index not in canvas.finished]
                    outcome = self._outcome(what, rest)
                    if outcome is None:
                        send(self._cut(rest, 1))
                    else:
                        self._take(outcome)
                        self._record(canvas, outcome.done)
            self._note_losses(_workers(self.client))  # one may have left since it was last looked for

    def region(self) -> list[int]:
        """Have one worker do a continuous region, and another one if it dies; return the tiles that it says are finished."""
        from .work import compute_whole

        whole = range(len(self.plan))
        done: list[int] = []
        with self._run_on_workers():
            self._watch_over(self.client.submit(compute_whole, self.name, pure=False), whole)
            while self._futures:
                kind, what = self._next()
                if kind == "report" and "step" in what:
                    how = int(what["step"]), int(what["batch"]), float(what["part"]), str(what["doing"])
                    self._report(int(what["finished"]), *how)
                elif kind == "done" and self._futures.pop(what, None) is not None:
                    outcome = self._outcome(what, whole)
                    if outcome is None:
                        self._watch_over(self.client.submit(compute_whole, self.name, pure=False), whole)
                    else:
                        self._take(outcome)
                        done = outcome.done
        return done

    def _take(self, share: Share) -> None:
        self.failed |= share.failed
        self.notes += share.notes
        self.facts |= share.facts

    def _cut(self, indices: Sequence[int], batches: int = BATCHES_A_SHARE) -> list[list[int]]:
        """Cut patches into shares of a few batches, smaller ones if workers would be idle."""
        workers = max(1, len(_workers(self.client)))
        size = self.task.batch * max(1, min(batches, len(indices) // (2 * workers * self.task.batch)))
        return [list(indices[start : start + size]) for start in range(0, len(indices), size)]

    def _record(self, canvas: ZarrCanvas, indices: Sequence[int]) -> None:
        canvas.facts |= self.facts
        if set(indices) <= canvas.finished:
            return
        canvas.adopt(indices)
        canvas.failed = dict(self.failed)
        canvas.commit()
        self._report(len(canvas.finished))

    def _report(self, finished: int, step: int = 0, batch: int = 0, part: float = 0.0, doing: str = "") -> None:
        if self.on_progress is not None:
            self.on_progress(self.progress(finished, step, batch, part, doing))

    def _watch_over(self, future: Any, share: Sequence[int]) -> None:
        self._futures[future] = share
        future.add_done_callback(lambda done: self._news.put(("done", done)))

    def _next(self) -> tuple[str, Any]:
        """Wait for the next event; check meanwhile for a stop and for workers."""
        while True:
            if self.cancel.cancelled and not self._stop_sent:
                self._stop_sent = True
                self._stop()
            if time.monotonic() - self._checked > _POLL_S:
                self._checked = time.monotonic()
                self._note_losses(self._cluster.look())
            with suppress(queue.Empty):
                return self._news.get(timeout=_POLL_S)

    def _stop(self) -> None:
        """Ask the workers to end at their next step, and drop tasks not begun."""
        from .work import stop

        waiting = [f for f in self._futures if f.status == "pending" and not self._is_running(f)]
        for future in waiting:
            self._futures.pop(future)
        self.client.cancel(waiting)
        self.client.run(stop, self.name, on_error="ignore")

    def _is_running(self, future: Any) -> bool:
        processing = self.client.processing()
        return any(future.key in keys for keys in processing.values())

    def _note_losses(self, present: set[str]) -> None:
        lost = len(self._present - present)
        if lost:
            who = "1 worker left, and its patches were" if lost == 1 else f"{lost} workers left, and their patches were"
            self.notes.append(f"{who} given to others")
        self._present = present

    def _outcome(self, future: Any, rest: Sequence[int]) -> Share | None:
        """Return the result of a task; None where its worker died and the task must be repeated."""
        from distributed import KilledWorker
        from distributed.client import FutureCancelledError

        from .work import Share

        try:
            found: Share = future.result()
            return found
        except (KilledWorker, FutureCancelledError) as error:
            _workers(self.client)  # without its scheduler a future ends as if its worker had died
            if self.cancel.cancelled:
                return Share([], {}, [], {})
            for index in rest:
                self._deaths[index] = self._deaths.get(index, 0) + 1
            if any(self._deaths[index] >= MAX_ROUNDS for index in rest):
                raise SynthesisError(
                    f"worker after worker died over the same {len(rest)} patches ({first_line(error)}); most often that is too "
                    "little memory: give a smaller --batch, or fewer workers on a computer"
                ) from error
            return None
        except StmditError:
            raise
        except Exception as error:
            _workers(self.client)
            raise SynthesisError(f"a worker failed: {_why(error)} ({type(error).__name__})") from error

    @contextmanager
    def _run_on_workers(self) -> Iterator[None]:
        from .work import SharedRun

        try:
            with _connected(self.client):
                self.client.register_plugin(SharedRun(self.name, replace(self.task)), name=self.name)
                self.client.subscribe_topic(self.name, lambda event: self._news.put(("report", event[1])))
                yield
        finally:
            with suppress(Exception):
                if self._futures and not self._stop_sent and self.client.status == "running":
                    self._stop()
                self.client.cancel(list(self._futures))
                self.client.unsubscribe_topic(self.name)
                self.client.unregister_worker_plugin(self.name)


def _why(error: Exception) -> str:
    """Return an error of a task in a line, and that of a scheduler that cannot read the task by its cause: dask's own words are no help."""
    cause = error.__cause__
    if not isinstance(cause, ImportError | AttributeError):
        return first_line(error)
    return f"{first_line(cause)}; the scheduler and all workers need napari-stmdit, in this version and with all that it needs"


def _workers(client: Any) -> set[str]:
    """Return the addresses of the workers; raises ClusterGoneError where the scheduler does not say."""
    lost = ClusterGoneError("the connection to the dask scheduler was lost; see that it runs and can be reached")
    if client.status != "running":
        raise lost
    try:
        return set(client.nthreads())
    except Exception as error:  # of the network, or of a client that is closing
        raise lost from error


@contextmanager
def _connected(client: Any) -> Iterator[None]:
    """Raise ClusterGoneError for whatever a client raises because its scheduler is gone."""
    try:
        yield
    except StmditError:
        raise
    except Exception:
        _workers(client)
        raise


class _Watch:
    """Watch over a cluster: whether its scheduler answers, and since when it has had no worker."""

    def __init__(self, client: Any) -> None:
        self._client, self._seen = client, time.monotonic()

    def look(self) -> set[str]:
        """Return the addresses of the workers; raises ClusterGoneError where there has been none for too long."""
        present = _workers(self._client)
        if present:
            self._seen = time.monotonic()
        elif time.monotonic() - self._seen > PATIENCE_S:
            raise ClusterGoneError(
                f"the cluster has had no worker for {PATIENCE_S:.0f} s; start workers, or see in their logs why they ended"
            )
        return present
