"""Runs the command line, kills it at random moments, and has it go on: nothing may be lost and nothing may change."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from command_line import Done


@dataclass
class Outcome:
    """What happened: one entry a kill (patches safe then), and the image at the end."""

    kills: list[int] = field(default_factory=list)
    rewritten: int = 0
    seconds: float = 0.0
    image: np.ndarray | None = None


def command(section: Path, checkpoint: Path, output: Path, *options: object) -> list[str]:
    """Arguments of ``stmdit`` for a run in float32 on the CPU."""
    return [
        *("synthesize", str(section), "--checkpoint", str(checkpoint), "--output", str(output)),
        *("--device", "cpu", "--dtype", "float32", "--json", *map(str, options)),
    ]


def run_cli(arguments: list[str], log: Path, environment: dict[str, str]) -> None:
    """Be the command line, in a process of its own; stdout and stderr go to ``log``.out and ``log``.err."""
    from napari_stmdit.cli import main

    os.environ.clear()  # what it is forked from may have been started with another test's folders
    os.environ.update(environment)
    for stream, suffix in ((1, ".out"), (2, ".err")):
        os.dup2(os.open(f"{log}{suffix}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    sys.argv = ["stmdit", *arguments]
    main()


def forking() -> Any:
    """Return a context whose processes are forked from one which has imported everything: imports take most of a short run."""
    if "forkserver" not in multiprocessing.get_all_start_methods():  # on Windows
        return multiprocessing.get_context("spawn")
    from multiprocessing import forkserver

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["killing_preload"])
    # Python before 3.13 looks for it where the interpreter looks by itself, and is silent where it is not found
    with patch.dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)):
        forkserver.ensure_running()
    return context


def forked(target: Callable[..., None], *arguments: Any) -> Any:
    """Make a process that is forked."""
    return forking().Process(target=target, args=arguments, daemon=True)


@contextmanager
def forked_workers(**environment: str) -> Iterator[None]:
    """Have dask's workers forked, too, where the system can, with changes to their environment."""
    import dask

    # the process that they are forked from may have been started with another test's folders
    ours = {name: value for name, value in os.environ.items() if name.startswith(("STMDIT_", "HF_"))}
    how: dict[str, Any] = {"distributed.nanny.environ": ours | environment}
    if "forkserver" in multiprocessing.get_all_start_methods():
        forking()
        how["distributed.worker.multiprocessing-method"] = "forkserver"
    with dask.config.set(how):
        yield


def _run_dask(kind: str, file: Path) -> None:
    """Be a dask scheduler, which writes its address into a file, one without the package, or one worker of it."""
    import asyncio

    from distributed import Scheduler, Worker

    async def run() -> None:
        if kind == "worker":
            async with Worker(file.read_text(), nthreads=1, dashboard=False, memory_limit=0) as worker:
                await worker.finished()
            return
        async with Scheduler(host="127.0.0.1", port=0, dashboard=False) as scheduler:
            file.write_text(scheduler.address)
            await scheduler.finished()

    if kind == "bare scheduler":
        for name in ["napari_stmdit", *(name for name in sys.modules if name.startswith("napari_stmdit."))]:
            sys.modules[name] = None  # type: ignore[assignment]
    asyncio.run(run())


@contextmanager
def mortal_cluster(file: Path, kind: str = "scheduler") -> Iterator[tuple[str, Any]]:
    """Yield the address of a scheduler with one worker, and the scheduler's process."""
    scheduler = forked(_run_dask, kind, file)
    scheduler.start()
    while not (file.is_file() and file.read_text()):
        time.sleep(0.05)
    worker = forked(_run_dask, "worker", file)
    worker.start()
    try:
        yield file.read_text(), scheduler
    finally:
        for process in (worker, scheduler):
            process.kill()
            process.join()


def start(arguments: list[str], log: Path, **environment: str) -> Any:
    """Start the command line in a process of its own, with changes to its environment."""
    process = forked(run_cli, arguments, log, dict(os.environ) | environment)
    process.start()
    return process


def run_alone(arguments: list[str], log: Path, timeout: float = 600) -> Done:
    """Run the command line to its end in a process of its own."""
    process = start(arguments, log)
    process.join(timeout)
    try:
        assert process.exitcode is not None, f"it still runs after {timeout:g} s"
    finally:
        process.kill()
    return Done(process.exitcode, *(Path(f"{log}{suffix}").read_text() for suffix in (".out", ".err")))


def told(log: Path, process: Any, words: str) -> str:
    """Wait until a process that was started has said these words on stderr; return all that it said by then."""
    file = Path(f"{log}.err")
    while process.is_alive() and not (file.is_file() and words in file.read_text()):
        time.sleep(0.005)
    return file.read_text()


def end(process: Any, log: Path) -> dict[str, Any]:
    """Wait for the end and return what was printed."""
    process.join(timeout=900)
    assert process.exitcode == 0, Path(f"{log}.err").read_text()
    return json.loads(Path(f"{log}.out").read_text())


def image_of(output: Path, element: str) -> np.ndarray:
    from napari_stmdit.tissue.store_entries import read_result

    pixels, _, _ = read_result(output, element)
    return np.asarray(pixels).astype(int)


def uninterrupted(arguments: list[str], output: Path) -> Outcome:
    log = output.with_suffix(".log")
    process = start(arguments, log)
    _wait_until_it_works(process, _unfinished(output))
    since = time.monotonic()
    facts = end(process, log)
    return Outcome(seconds=time.monotonic() - since, image=image_of(output, facts["element"]))


def killed_and_resumed(arguments: list[str], output: Path, kills: int, seconds: float, rng: random.Random) -> Outcome:
    """Kill a run so often, each time up to a third of its whole time after it began to work, and let it end."""
    outcome = Outcome()
    folder, log = _unfinished(output), output.with_suffix(".log")
    while True:
        times = _written(folder)
        process = start([*arguments, "--resume"], log)
        if len(outcome.kills) < kills:
            _wait_until_it_works(process, folder)
            time.sleep(rng.uniform(0, seconds / 3))
            process.kill()
            process.join()
            if process.exitcode == -signal.SIGKILL and folder.exists():
                outcome.kills.append(_check_readable(folder))
                outcome.rewritten += _rewritten(times, folder)
                continue
            if process.exitcode == -signal.SIGKILL:
                continue  # before it had a folder, or as it removed it
        facts = end(process, log)
        outcome.image = image_of(output, facts["element"])
        assert not folder.exists()
        return outcome


def _unfinished(output: Path) -> Path:
    return output.with_name(output.name + ".unfinished")


def _wait_until_it_works(process: Any, folder: Path) -> None:
    """Until it holds its folder's lock, as far as the system tells."""
    while process.is_alive() and not (folder.exists() and _holds_a_lock(process.pid)):
        time.sleep(0.005)


def _holds_a_lock(pid: int) -> bool:
    locks = Path("/proc/locks")
    return not locks.exists() or any(line.split()[4] == str(pid) for line in locks.read_text().splitlines())


def finished_patches(folder: Path) -> set[int]:
    from napari_stmdit.synthesis.zarr_canvas import from_ranges

    return from_ranges(json.loads((folder / "manifest.json").read_text())["finished"])


def _check_readable(folder: Path) -> int:
    """Whatever moment it was, every level can be read, and every listed patch is there."""
    import zarr

    group = zarr.open_group(folder / "image", mode="r")
    for level in group.array_keys():
        assert group[level][:].shape[0] == 4
    listed = finished_patches(folder)
    if (folder / "patches").exists():
        patches = zarr.open_array(folder / "patches", mode="r")
        assert all(patches[index].any() for index in listed)
    return len(listed)


def _written(folder: Path) -> dict[int, int] | None:
    """When each listed patch was written."""
    if not (folder / "patches").exists():
        return None
    return {
        i: os.stat(folder / "patches" / "c" / str(i) / "0" / "0" / "0").st_mtime_ns for i in finished_patches(folder)
    }


def _rewritten(before: dict[int, int] | None, folder: Path) -> int:
    after = _written(folder)
    if before is None or after is None:
        return 0
    return sum(after.get(index) != when for index, when in before.items())
