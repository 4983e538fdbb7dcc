"""Where torch computes: devices at hand, their precision, their memory, and the cores a viewer needs for itself."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from .errors import CheckpointError, is_out_of_memory

if TYPE_CHECKING:
    import torch

WAITING = {"OMP_WAIT_POLICY": "PASSIVE"}
"""Of the environment: threads of OpenMP that wait sleep at once, where by default they first spin; `stmdit bench` measures it."""
DTYPES = ("float32", "bfloat16", "float16")


def devices() -> list[tuple[str, str]]:
    """Return the devices at hand as (id, label), the best first."""
    import torch

    found = [
        (f"cuda:{k}", f"GPU {k}: {torch.cuda.get_device_name(k)}")
        for k in range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    ]
    if torch.backends.mps.is_available():
        found.append(("mps", "Apple GPU (MPS)"))
    return [*found, ("cpu", "CPU")]


def choose_device(device: str = "auto", dtype: str = "auto") -> tuple[torch.device, torch.dtype]:
    """Resolve device and dtype; raises CheckpointError where one is not to be had.

    The dtype ``auto`` follows what the device can do, not a stopwatch: a run that is shared out or resumed must find the same one.
    """
    import torch

    have = [name for name, _ in devices()]
    wanted = have[0] if device == "auto" else device
    wanted = "cuda:0" if wanted == "cuda" else wanted
    if wanted not in have:
        raise CheckpointError(f"device {device!r} is not available; this computer has: {', '.join(have)}")
    if dtype != "auto" and dtype not in DTYPES:
        raise CheckpointError(f"dtype {dtype!r} is unknown; choose auto, {', '.join(DTYPES)}")
    if dtype == "auto":
        dtype = _fast_dtype(wanted)
    return torch.device(wanted), getattr(torch, dtype)


def _fast_dtype(device: str) -> str:
    """Return bfloat16 where it is faster in hardware: GPUs that do not emulate it, CPUs with matrix tiles (AMX); measured by `stmdit bench`.

    Without tiles a CPU gains less or loses, and on MPS nothing was measured: both compute in float32.
    """
    import torch

    if device.startswith("cuda"):
        with torch.cuda.device(device):
            return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    tiles = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    return "bfloat16" if device == "cpu" and tiles() and torch.ops.mkldnn._is_mkldnn_bf16_supported() else "float32"


def decoder_on(vae: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """Put an autoencoder on a device, in the form it decodes fastest in; return it.

    It follows the transformer into bfloat16, not into float16, in which the decoders of latent diffusion overflow. On a CPU its
    convolutions take channels last, which oneDNN would otherwise rearrange at every layer.
    """
    import torch

    half = torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
    # not diffusers' own `to`, which warns of modules to be kept in float32
    torch.nn.Module.to(vae, device=device, dtype=half)
    if device.type == "cpu":
        vae.to(memory_format=torch.channels_last)
    return vae.eval()


def let_threads_sleep() -> None:
    """Have torch's threads sleep while they wait for each other; call it before torch is imported.

    By default they spin for a while, on cores that another program could use, and where one is at work they wait for the very thread
    that they keep from running. What the user has set stays. Where torch is imported already, as by another plugin, its OpenMP has read
    the environment and nothing can be done in this process; those that it starts have it.
    """
    for name, value in WAITING.items():
        os.environ.setdefault(name, value)


def leave_a_core() -> None:
    """Let torch compute with one thread fewer than there are cores, in the calling thread, as a viewer wants to be drawn, too.

    Threads that torch shares a core with wait for each other by spinning: with as many threads as cores, on a machine that does
    anything else, both the run and the viewer crawl. ``OMP_NUM_THREADS``, where it is set, is respected.
    """
    if "torch" not in sys.modules or os.environ.get("OMP_NUM_THREADS"):
        return
    import torch

    torch.set_num_threads(max(1, (os.cpu_count() or 2) - 1))


@contextmanager
def memory_given_back() -> Iterator[None]:
    """After a failure, hand a device's cached memory back, so that a smaller batch finds room."""
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            free_device_memory()
        raise


def free_device_memory() -> None:
    """Give back what torch holds of a device without using it; call it after the last reference to a checkpoint is gone."""
    import gc

    gc.collect()
    torch: Any = sys.modules.get("torch")
    if torch is None:
        return
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()
