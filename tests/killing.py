"""Runs the command line, kills it at random moments, and has it go on: nothing may be lost and nothing may change."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np


@dataclass
class Outcome:
    """What happened: one entry a kill (patches safe then), and the image at the end."""

    kills: list[int] = field(default_factory=list)
    rewritten: int = 0
    seconds: float = 0.0
    image: np.ndarray | None = None


def command(section: Path, checkpoint: Path, output: Path, *options: object) -> list[str]:
    return [
        *(sys.executable, "-m", "napari_stmdit.cli", "synthesize", str(section), "--checkpoint", str(checkpoint)),
        *("--output", str(output), "--device", "cpu", "--dtype", "float32", "--json", *map(str, options)),
    ]


def image_of(output: Path, element: str) -> np.ndarray:
    from napari_stmdit.tissue.store import read_result

    pixels, _, _ = read_result(output, element)
    return np.asarray(pixels).astype(int)


def uninterrupted(arguments: list[str], output: Path) -> Outcome:
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    start = _wait_for(process, _unfinished(output))
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    return Outcome(seconds=time.monotonic() - start, image=image_of(output, json.loads(out)["element"]))


def killed_and_resumed(arguments: list[str], output: Path, kills: int, seconds: float, rng: random.Random) -> Outcome:
    """Kill a run so often, each time up to a third of its whole time after it came to life, and let it end."""
    outcome = Outcome()
    folder = _unfinished(output)
    while True:
        times = _written(folder)
        process = subprocess.Popen(
            [*arguments, "--resume"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        if len(outcome.kills) < kills:
            _wait_for(process, folder / "lock" if times is None else folder)
            time.sleep(rng.uniform(0, seconds / 3))
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                process.communicate()
                if folder.exists():
                    outcome.kills.append(_check_readable(folder))
                    outcome.rewritten += _rewritten(times, folder)
                continue
        out, err = process.communicate(timeout=600)
        assert process.returncode == 0, err
        outcome.image = image_of(output, json.loads(out)["element"])
        assert not folder.exists()
        return outcome


def _unfinished(output: Path) -> Path:
    return output.with_name(output.name + ".unfinished")


def _wait_for(process: subprocess.Popen[str], path: Path) -> float:
    while process.poll() is None and not path.exists():
        time.sleep(0.01)
    return time.monotonic()


def _listed(folder: Path) -> set[int]:
    from napari_stmdit.synthesis.disk import from_ranges

    return from_ranges(json.loads((folder / "manifest.json").read_text())["finished"])


def _check_readable(folder: Path) -> int:
    """Whatever moment it was, every level can be read, and every listed patch is there."""
    import zarr

    group = zarr.open_group(folder / "image", mode="r")
    for level in group.array_keys():
        assert group[level][:].shape[0] == 4
    listed = _listed(folder)
    if (folder / "patches").exists():
        patches = zarr.open_array(folder / "patches", mode="r")
        assert all(patches[index].any() for index in listed)
    return len(listed)


def _written(folder: Path) -> dict[int, int] | None:
    """When each listed patch was written."""
    if not (folder / "patches").exists():
        return None
    return {i: os.stat(folder / "patches" / "c" / str(i) / "0" / "0" / "0").st_mtime_ns for i in _listed(folder)}


def _rewritten(before: dict[int, int] | None, folder: Path) -> int:
    after = _written(folder)
    if before is None or after is None:
        return 0
    return sum(after.get(index) != when for index, when in before.items())
