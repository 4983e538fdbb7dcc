"""What it saves that OpenMP's threads sleep while they wait (`napari_stmdit.devices.WAITING`), alone and beside a busy process.

The setting is read once, when torch is imported, so each way is a process of its own; they take turns.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from typing import IO, Any

from ..devices import WAITING
from ..errors import StmditError

COUNT = 8
_LOOP = """import os
parent = os.getppid()
while os.getppid() == parent:
    for _ in range(100000): pass
"""
"""A program that needs a core until its parent is gone."""
_OTHERS = ("GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""What else says how long threads spin; left out of both ways."""
ALONE, BESIDE = "alone", "beside a busy process"


def waiting(checkpoint: str, rounds: int, count: int = COUNT) -> dict[str, Any]:
    """Time ``count`` patches of the sample section, preset draft, on the CPU: spinning as by default, and sleeping.

    ``rounds`` of both ways take turns, after one that does not count.

    Returns
    -------
    dict
        ``patches``, ``rounds``, ``setting``; for ``alone`` and ``beside a busy process``: the median seconds ``spinning`` and ``sleeping``,
        how many ``times_faster`` the latter is, and the ``load`` of the machine before and after, where it counts it. What else the
        machine does comes on top: ``alone`` is quiet only if the load is low.

    Raises
    ------
    StmditError
        A process ended before its time.
    """
    plain = {name: value for name, value in os.environ.items() if name not in (*WAITING, *_OTHERS)}
    ways = {"spinning": plain, "sleeping": {**plain, **WAITING}}
    found: dict[str, Any] = {"patches": count, "rounds": rounds, "setting": dict(WAITING)}
    with ExitStack() as stack:
        works = {name: stack.enter_context(_worker(checkpoint, count, env)) for name, env in ways.items()}
        for name, beside in ((ALONE, nullcontext), (BESIDE, _busy)):
            with beside():
                found[name] = _in_turn(works, rounds)
    return found


def _in_turn(works: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, Any]:
    before = _load()
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            times[name].append(work())
    seconds = {name: statistics.median(taken) for name, taken in times.items()}
    return {
        **{name: round(value, 3) for name, value in seconds.items()},
        "times_faster": round(seconds["spinning"] / seconds["sleeping"], 2),
        "load": [before, _load()],
    }


@contextmanager
def _worker(checkpoint: str, count: int, environment: Mapping[str, str]) -> Iterator[Callable[[], float]]:
    """Start a process that makes the patches when asked, and yield the function that asks and returns the seconds."""
    command = [sys.executable, "-m", "napari_stmdit.bench.waiting", checkpoint, str(count)]
    with subprocess.Popen(
        command,
        env=dict(environment),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is for the one who measures, who ends this one
    ) as process:

        def ask() -> float:
            assert process.stdin is not None and process.stdout is not None  # both are pipes
            try:
                process.stdin.write("\n")
                process.stdin.flush()
                return float(json.loads(process.stdout.readline()))
            except (OSError, ValueError):
                raise StmditError(
                    "the process that was measured ended before its time; what it said is above"
                ) from None

        try:
            ask()  # loads and warms up
            yield ask
        finally:
            process.kill()


@contextmanager
def _busy() -> Iterator[None]:
    """Run another program that needs all of one core."""
    with subprocess.Popen([sys.executable, "-c", _LOOP], start_new_session=True) as process:
        try:
            yield
        finally:
            process.kill()


def _load() -> float | None:
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def _work(checkpoint: str, count: int, asked: IO[str], answers: IO[str]) -> None:
    from ..assemble import load_checkpoint
    from ..synthesis.session import synthesize
    from ..tissue.sample import open_sample_section
    from .stages import request_for

    section, model = open_sample_section(), load_checkpoint(checkpoint, device="cpu")
    request = request_for(model.card, count, "draft")
    for _ in asked:
        start = time.perf_counter()
        synthesize(section, request, model)
        answers.write(json.dumps(time.perf_counter() - start) + "\n")
        answers.flush()


if __name__ == "__main__":
    _work(sys.argv[1], int(sys.argv[2]), sys.stdin, sys.stdout)
