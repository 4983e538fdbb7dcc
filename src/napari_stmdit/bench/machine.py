"""Measurements of the machine: peak rate, time and memory of some work."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

_STATUS = Path("/proc/self/status")
PEAK_SIDES = (1024, 2048, 4096)
MAX_ROUNDS = 15


@dataclass(frozen=True)
class Timing:
    """Seconds over ``rounds`` repetitions after a warm-up; ``rounds`` 0: the warm-up itself."""

    median: float
    least: float
    rounds: int


def describe(device: torch.device) -> dict[str, Any]:
    """Describe the machine in JSON types, without names of people or places."""
    facts: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
    }
    if device.type == "cpu":
        facts["cpu"] = torch.backends.cpu.get_cpu_capability()
        facts["matrix_tiles"] = bool(getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)())
        facts["load"] = [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else None
    return facts


def wait_for(device: torch.device) -> None:
    """Wait until a device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def timed(work: Callable[[], Any], device: torch.device, seconds: float, rounds: int = MAX_ROUNDS) -> Timing:
    """Time some work as often as fits into ``seconds``, at most ``rounds`` times, after a warm-up.

    Where the warm-up takes longer than that, it is the result.
    """
    first = once(work, device)
    if first > seconds:
        return Timing(first, first, 0)
    found: list[float] = []
    while len(found) < rounds and (not found or sum(found) + found[-1] <= seconds):
        found.append(once(work, device))
    return Timing(statistics.median(found), min(found), len(found))


def once(work: Callable[[], Any], device: torch.device) -> float:
    """Return the seconds that some work takes once."""
    wait_for(device)
    start = time.perf_counter()
    work()
    wait_for(device)
    return time.perf_counter() - start


def interleaved(
    works: Mapping[str, Callable[[], Any]],
    device: torch.device,
    rounds: int,
    warm: Mapping[str, Callable[[], Any]] | None = None,
) -> dict[str, Timing]:
    """Time several works in turn, A B C A B C, so that other load falls on all of them; ``warm`` may replace the first, uncounted time."""
    found: dict[str, list[float]] = {name: [] for name in works}
    for name, work in works.items():
        (warm or works).get(name, work)()
    for _ in range(rounds):
        for name, work in works.items():
            found[name].append(once(work, device))
    return {name: Timing(statistics.median(times), min(times), len(times)) for name, times in found.items()}


def matmul_peak(device: torch.device, dtype: torch.dtype, seconds: float = 0.6) -> float:
    """Return the highest rate (FLOP/s) of a plain product of square matrices, over a few sizes."""
    best = 0.0
    with torch.inference_mode():
        for side in PEAK_SIDES:
            a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
            taken = timed(lambda a=a, b=b: a @ b, device, seconds, rounds=50)  # type: ignore[misc]
            best = max(best, 2 * side**3 / taken.least)
            if taken.least * 8 > seconds:  # the next one has eight times the operations
                break
    return best


def flops(work: Callable[[], Any]) -> float:
    """Return the floating-point operations of some work, two for a multiplication and addition.

    It is done once, as in training: fused operations have no count.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        work()
    return float(counter.get_total_flops())


class PeakMemory:
    """Peak memory from here on, in MB: of the device where it keeps count, else of this process by the kernel.

    Elsewhere than on Linux the kernel's mark cannot be reset, and earlier work may be in it.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        elif _STATUS.is_file():
            with suppress(OSError):  # not allowed in every container
                Path("/proc/self/clear_refs").write_text("5")

    def read(self) -> float | None:
        """Return the peak so far; None where it is not counted."""
        if self._device.type == "cuda":
            return float(torch.cuda.max_memory_allocated(self._device)) / 1e6
        if _STATUS.is_file():
            lines = _STATUS.read_text().splitlines()
            return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM"))
        try:
            import resource
        except ImportError:  # Windows
            return None
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # bytes on macOS


def ratio(slow: Timing, fast: Timing) -> float:
    """Return how many times faster the second is, by the medians."""
    return slow.median / fast.median
