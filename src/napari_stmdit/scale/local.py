"""A cluster on this computer: one process per GPU, or processes that divide its cores among them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..devices import WAITING
from ..errors import RequestError, StmditError

_VISIBLE = "CUDA_VISIBLE_DEVICES"
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@contextmanager
def local_client(workers: int, device: str = "auto") -> Iterator[Any]:
    """Start workers on this computer, reachable from it alone, and stop them at the end.

    Parameters
    ----------
    workers
        Processes. With CUDA each gets a GPU of its own; else each gets its part of the cores.
    device
        As the user gave it.

    Yields
    ------
    distributed.Client

    Raises
    ------
    RequestError
        Where there are fewer GPUs than workers, or one device was given for several workers.
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
        raise RequestError(
            [
                (
                    "device",
                    f"{device} is one device, and {workers} workers need one each; leave --device out, or use cuda or cpu",
                )
            ]
        )
    if on_gpu and workers > gpu_count:
        raise RequestError([("workers", f"{workers} workers need a GPU each, and this computer has {gpu_count}")])
    own = {name: str(max(1, cores // workers)) for name in _THREADS}
    own |= {name: os.environ.get(name, value) for name, value in WAITING.items()}
    if not on_gpu:
        return [dict(own) for _ in range(workers)]
    return [{**own, _VISIBLE: name} for name in _gpu_names(gpu_count)[:workers]]


def _gpu_names(count: int) -> list[str]:
    """Names of the GPUs that this process sees, as CUDA takes them: where a node is shared, the first need not be number 0.

    The variable holds numbers, or UUIDs of GPUs or of their MIG parts; torch's number k is its k-th entry.
    """
    given = os.environ.get(_VISIBLE)
    names = [str(k) for k in range(count)] if given is None else [part.strip() for part in given.split(",")]
    if len(names) < count:  # pragma: no cover - CUDA shows no GPU that the variable does not name
        raise StmditError(f"{_VISIBLE} is {given!r}, and {count} GPUs are seen; a worker's GPU cannot be told by it")
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
