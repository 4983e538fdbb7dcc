"""Description of the installation, for a bug report. It names no section and sends nothing anywhere."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path
from typing import Any

import psutil

from .assemble import list_checkpoints
from .devices import devices
from .downloads.places import data_directory
from .encoders.cache import cache_folder

PACKAGES = (
    "torch diffusers safetensors huggingface_hub numpy pandas scipy anndata spatialdata spatialdata-io dask zarr tifffile "
    "napari npe2 magicgui qtpy superqt vispy pydantic"
).split()
"""Required packages."""
OPTIONAL = "accelerate tensorboard datasets distributed torchmetrics lpips torchvision timm napari-spatialdata".split()
"""Packages reported if present: extras, neighbours, and known troublemakers."""
BINDINGS = ("PySide6_Essentials", "PySide6", "PyQt6", "PyQt5")
VARIABLES = (
    "STMDIT_",
    "NAPARI_",
    "QT_",
    "HF_HUB_OFFLINE",
    "HF_HOME",
    "CUDA_VISIBLE_DEVICES",
    "OMP_",
    "PYTORCH_",
)
"""Prefixes of the environment variables that are reported; no other is read."""
_SECRET = ("TOKEN", "KEY", "PASSWORD", "SECRET")
_BROKEN_QT = "PySide6 6.12.0 ends Python 3.11 after long use; install another: pip install 'PySide6_Essentials!=6.12.0'"
_NO_QT = "no Qt is installed, and the viewer needs one: pip install 'napari-stmdit[all]'"
_LITTLE_SPACE = 2 * 2**30


def describe_installation() -> dict[str, Any]:
    """Return versions, computer, devices, checkpoints, folders and known troubles: the text for a bug report.

    Returns
    -------
    dict
        ``versions``, ``computer``, ``torch``, ``devices``, ``checkpoints``, ``directories``, ``environment`` (name -> text each), and
        ``warnings`` (a list). JSON types only.
    """
    qt = {name: found for name in BINDINGS if (found := _version(name))}
    folders = {
        "data": data_directory(),
        "embeddings": cache_folder("embeddings"),
        "noise": cache_folder("noise"),
        "package": Path(str(files("napari_stmdit"))),
        "here": Path.cwd(),
    }
    return {
        "versions": {
            "napari-stmdit": _version("napari-stmdit"),
            "python": f"{platform.python_version()} ({platform.python_implementation()}), {sys.executable}",
            **{name: _version(name) or "not installed" for name in PACKAGES},
            "Qt": ", ".join(f"{name} {found}" for name, found in qt.items()) or "none",
            **{name: found for name in OPTIONAL if (found := _version(name))},
        },
        "computer": _computer(),
        "torch": _torch(),
        "devices": dict(devices()) | _device_memory(),
        "checkpoints": {entry.name: str(entry.path) for entry in list_checkpoints()},
        "directories": {name: _folder(path) for name, path in folders.items()},
        "environment": _environment(os.environ),
        "warnings": _warnings(qt, folders.values()),
    }


def _computer() -> dict[str, str]:
    memory, cores = psutil.virtual_memory(), psutil.cpu_count(logical=False)
    own_display = "none" if sys.platform.startswith("linux") else "the system's"
    return {
        "system": platform.platform(),
        "processor": f"{platform.processor() or platform.machine()}, {cores or 'unknown'} cores, {os.cpu_count()} threads",
        "memory": f"{_gigabytes(memory.total)}, {_gigabytes(memory.available)} of it free",
        "display": os.environ.get("WAYLAND_DISPLAY") or os.environ.get("DISPLAY") or own_display,
    }


def _torch() -> dict[str, str]:
    import torch

    cuda, rocm = torch.version.cuda, torch.version.hip
    built = f"CUDA {cuda}" if cuda else f"ROCm {rocm}" if rocm else "no NVIDIA or AMD GPU"
    return {"built for": built, "threads": str(torch.get_num_threads())}


def _device_memory() -> dict[str, str]:
    import torch

    found = {}
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        free, total = torch.cuda.mem_get_info(number)
        found[f"cuda:{number} memory"] = f"{_gigabytes(total)}, {_gigabytes(free)} of it free"
    return found


def _folder(path: Path) -> str:
    there = next(place for place in (path, *path.parents) if place.exists())
    state = "" if there == path else ", not made yet"
    return f"{path} ({_gigabytes(shutil.disk_usage(there).free)} free{state})"


def _environment(variables: Mapping[str, str]) -> dict[str, str]:
    return {
        name: "set, not shown" if any(word in name for word in _SECRET) else value
        for name, value in sorted(variables.items())
        if name.startswith(VARIABLES)
    }


def _warnings(qt: Mapping[str, str], folders: Iterable[Path]) -> list[str]:
    import torch

    found = []
    if not qt:
        found.append(_NO_QT)
    if len({name.removesuffix("_Essentials") for name in qt}) > 1:
        found.append(f"several Qt bindings are installed ({', '.join(qt)}); QT_API chooses, and mixing them can crash")
    if sys.version_info < (3, 12) and "6.12.0" in qt.values():
        found.append(_BROKEN_QT)
    if torch.version.cuda is None and shutil.which("nvidia-smi"):
        found.append("an NVIDIA driver is here, but this torch is built without CUDA: it computes on the CPU")
    elif torch.version.cuda and not torch.cuda.is_available() and shutil.which("nvidia-smi"):
        found.append("torch is built for CUDA but reaches no GPU: is the driver older than this CUDA?")
    for folder in folders:
        there = next(place for place in (folder, *folder.parents) if place.exists())
        if shutil.disk_usage(there).free < _LITTLE_SPACE:
            found.append(f"little space is left for {folder}")
    return found


def _gigabytes(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
