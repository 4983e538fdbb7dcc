"""Devices of torch: which are available, their precision and memory, and how work leaves the viewer its time."""

from __future__ import annotations

import os
import platform
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from .errors import CheckpointError, is_out_of_memory

if TYPE_CHECKING:
    import torch

WAITING = {"OMP_WAIT_POLICY": "ACTIVE", "GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "0"}
"""Environment variables by which OpenMP's threads spin briefly while they wait, and then sleep; `stmdit bench` measures it.

GNU's (torch on Linux) spin a thousand times: a thread that sleeps at once wakes later than most of its work is done. Under ``PASSIVE`` they would
spin less where several threads call torch, as beside a viewer. Intel's and LLVM's sleep at once, whatever the policy."""
NICE = 5
"""Priority of work beside a viewer on Linux: below that of the viewer's thread (0), above that of what may wait (19)."""
DTYPES = ("float32", "bfloat16", "float16")


def devices() -> list[tuple[str, str]]:
    """Return the available devices as (id, label), the best first."""
    import torch

    found = [
        (f"cuda:{k}", f"GPU {k}: {torch.cuda.get_device_name(k)}")
        for k in range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    ]
    if torch.backends.mps.is_available():
        found.append(("mps", "Apple GPU (MPS)"))
    return [*found, ("cpu", "CPU")]


def choose_device(device: str = "auto", dtype: str = "auto") -> tuple[torch.device, torch.dtype]:
    """Resolve device and dtype; raises CheckpointError where one is not available.

    The dtype ``auto`` depends on the hardware alone, so that all workers of a run, and a resumed run, choose the same one.
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
    """Return the fast dtype of a device: bfloat16 where the hardware has it, float16 on other GPUs, else float32."""
    import torch

    if device.startswith("cuda"):
        with torch.cuda.device(device):
            return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    # a CPU without products of bfloat16 (those with AMX have them, too) gains little or loses, and on MPS nothing was measured
    products = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    fast = device == "cpu" and products() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return "bfloat16" if fast else "float32"


def decoder_on(vae: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """Put an autoencoder on a device, in the format it decodes fastest in; return it."""
    import torch

    # float32 beside a float16 transformer: decoders of latent diffusion overflow in float16
    half = torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
    # not diffusers' own `to`, which warns of modules to be kept in float32
    torch.nn.Module.to(vae, device=device, dtype=half)
    if device.type == "cpu":
        vae.to(memory_format=torch.channels_last)  # else oneDNN rearranges at every layer
    return vae.eval()


def thread_waiting() -> dict[str, str]:
    """Return the environment of a process whose threads wait as `WAITING` says, unless the user set one of its variables."""
    return {name: os.environ[name] for name in WAITING if name in os.environ} or dict(WAITING)


def let_threads_sleep() -> None:
    """Make torch's waiting threads sleep, unless the user set it otherwise; call it before torch is imported.

    By default they spin for long and block the cores that other threads need. Once torch is imported, it affects only processes started later.
    """
    os.environ.update(thread_waiting())


def let_viewer_go_first() -> None:
    """Let the viewer's thread go before the calling one, and before the threads that torch starts for it.

    On Linux by priority, so that all cores can be used. Elsewhere torch takes one thread fewer than there are cores, unless
    ``OMP_NUM_THREADS`` says how many.
    """
    if threading.current_thread() is threading.main_thread():
        return
    if platform.system() == "Linux":  # only there a thread has a priority of its own, which those it starts inherit
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, max(NICE, os.getpriority(os.PRIO_PROCESS, thread)))
        return
    torch: Any = sys.modules.get("torch")
    if not hasattr(torch, "set_num_threads") or os.environ.get("OMP_NUM_THREADS"):  # another thread may be importing it
        return
    torch.set_num_threads(max(1, (os.cpu_count() or 2) - 1))


@contextmanager
def memory_given_back() -> Iterator[None]:
    """Free a device's cached memory after a failure, so that a smaller batch fits."""
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            free_device_memory()
        raise


def free_device_memory() -> None:
    """Free the memory that torch caches on a device; call it once no reference to a checkpoint is left."""
    import gc

    gc.collect()
    torch: Any = sys.modules.get("torch")
    if torch is None:
        return
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()
