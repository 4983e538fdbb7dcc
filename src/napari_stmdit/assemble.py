"""The one place that puts encoders, model and devices together."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .errors import CheckpointError, is_out_of_memory
from .expression.edits import Profile
from .model.references import data_directory
from .synthesis.run import DenoiseStep, PatchBatch
from .types import CheckpointCard, Genes, Guidance

if TYPE_CHECKING:
    import torch

    from .encoders.protocols import ExpressionEncoder, MorphologyEncoder
    from .model.pipeline import STMDiTPipeline
    from .model.solver import CanvasSolver

BUNDLED = {"demo": "data/demo_checkpoint"}
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class CheckpointEntry:
    """A checkpoint that can be loaded by name: ``name`` and the folder ``path``."""

    name: str
    path: Path


class Checkpoint:
    """An assembled checkpoint: the pipeline with its encoders on a device. It is a `CanvasModel`.

    Attributes
    ----------
    card
        What the checkpoint says of itself.
    profiles
        Tissue profiles that edits may move towards.
    provenance
        What is recorded with every result: hash, device, dtype, licence.
    """

    def __init__(
        self,
        card: CheckpointCard,
        pipeline: STMDiTPipeline,
        expression: ExpressionEncoder,
        morphology: MorphologyEncoder,
        profiles: Mapping[str, Profile],
        provenance: Mapping[str, Any],
    ) -> None:
        self.card = card
        self.profiles = profiles
        self.provenance = provenance
        self.pipeline = pipeline
        self.expression = expression
        self.morphology = morphology

    @property
    def device(self) -> str:
        """Device the transformer runs on."""
        return str(self.provenance["device"])

    def encode_expression(self, counts: Any, genes: Genes, spots: Sequence[str] = ()) -> NDArray[np.float32]:
        """Encode counts, sparse (n, g), measured at n ``spots``, as (n, d) or (n, tokens, d)."""
        return self.expression.encode(counts, genes)

    def encode_morphology(self, patches: NDArray[np.uint8], spots: Sequence[str] = ()) -> NDArray[np.float32]:
        """Encode (n, patch_px, patch_px, 3) uint8 crops, taken at n ``spots``, as (n, tokens, d)."""
        return self.morphology.encode(patches)

    def denoise(self, batch: PatchBatch) -> Iterator[DenoiseStep]:
        """Yield after every denoising step; the last step carries the images."""
        side = self.card.patch_px
        with _memory_given_back():
            for step, steps, images in self.pipeline.denoise_images(
                morphology=batch.morphology,
                expression=batch.expression,
                seeds=batch.seeds,
                guidance=batch.guidance,
                num_inference_steps=batch.steps,
                height=side,
                width=side,
            ):
                yield DenoiseStep(step, steps, images)

    @property
    def latent_grid(self) -> tuple[int, int]:
        """Channels of a latent, and image pixels per latent cell."""
        from .model.vae import latent_channels, spatial_factor

        return latent_channels(self.pipeline.vae), spatial_factor(self.pipeline.vae)

    def solver(
        self,
        noise: NDArray[np.float32],
        guidance: Guidance,
        steps: int,
        *,
        has_morphology: bool,
        has_expression: bool,
        state: Mapping[str, NDArray[Any]] | None = None,
    ) -> CanvasSolver:
        """Return a solver for a canvas of noise (c, h, w), or one that goes on from a state."""
        from .model.guidance import branches
        from .model.solver import CanvasSolver

        filled = guidance.filled(self.card.guidance)
        assert filled.rule is not None and filled.morphology is not None and filled.expression is not None
        seen = branches(
            filled.rule,
            filled.morphology,
            filled.expression,
            has_morphology=has_morphology,
            has_expression=has_expression,
        )
        return CanvasSolver(self.pipeline.transformer, self.pipeline.scheduler, seen, noise, steps, state)

    def decode(self, latents: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Decode latents (c, h, w) into an image (h * factor, w * factor, 3) uint8."""
        import torch

        with _memory_given_back():
            image: NDArray[np.uint8] = self.pipeline.decode(torch.from_numpy(latents)[None])[0]
        return image


@contextmanager
def _memory_given_back() -> Iterator[None]:
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


def load_checkpoint(name: str | Path = "demo", device: str = "auto", dtype: str = "auto") -> Checkpoint:
    """Open a checkpoint folder, verify it, and put it on a device.

    Parameters
    ----------
    name
        A name from `list_checkpoints`, or a folder.
    device
        ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
    dtype
        ``auto``, ``float32``, ``bfloat16`` or ``float16`` for the transformer; auto is float32 on a CPU and on MPS.

    Raises
    ------
    CheckpointError
        The folder is missing, incomplete, unsafe or does not fit this version, or the device is not there.
    """
    import torch

    from .model.folder import load_component, read_folder, read_profile_spreads, read_profiles
    from .model.pipeline import STMDiTPipeline

    path = _resolve(name)
    chosen, kind = choose_device(device, dtype)
    folder = read_folder(path)
    transformer = load_component(folder, "transformer").eval()
    torch.nn.Module.to(
        transformer, device=chosen, dtype=kind
    )  # diffusers' own `to` warns of modules to be kept in float32
    vae = load_component(folder, "vae").to(device=chosen).eval()
    pipeline = STMDiTPipeline(transformer=transformer, vae=vae, scheduler=load_component(folder, "scheduler"))
    provenance = {
        "sha256": folder.sha256,
        "device": str(chosen),
        "dtype": str(kind).removeprefix("torch."),
        "licence": folder.card.licence,
        "torch": _version("torch"),
    }
    spreads = read_profile_spreads(folder)
    profiles = {
        profile: Profile(folder.card.genes, mean, spreads.get(profile))
        for profile, mean in read_profiles(folder).items()
    }
    return Checkpoint(
        folder.card,
        pipeline,
        _load_encoder(folder, "expression_encoder"),
        _load_encoder(folder, "morphology_encoder"),
        profiles,
        provenance,
    )


def list_checkpoints() -> list[CheckpointEntry]:
    """Return the checkpoints that can be loaded by name: the bundled one and the folders in the data directory."""
    entries = [CheckpointEntry(name, _bundled(name)) for name in BUNDLED]
    home = data_directory() / "checkpoints"
    if home.is_dir():
        entries += [
            CheckpointEntry(folder.name, folder)
            for folder in sorted(home.iterdir())
            if (folder / "stmdit.json").is_file()
        ]
    return entries


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
    """Resolve device and dtype; raises CheckpointError where one is not to be had."""
    import torch

    have = [name for name, _ in devices()]
    wanted = have[0] if device == "auto" else device
    wanted = "cuda:0" if wanted == "cuda" else wanted
    if wanted not in have:
        raise CheckpointError(f"device {device!r} is not available; this computer has: {', '.join(have)}")
    if dtype != "auto" and dtype not in DTYPES:
        raise CheckpointError(f"dtype {dtype!r} is unknown; choose auto, {', '.join(DTYPES)}")
    if dtype == "auto":
        fast = "bfloat16" if wanted.startswith("cuda") and torch.cuda.is_bf16_supported() else "float16"
        dtype = fast if wanted.startswith("cuda") else "float32"
    return torch.device(wanted), getattr(torch, dtype)


def describe_installation() -> dict[str, Any]:
    """Return versions, devices, checkpoints and data directories: the text for a bug report."""
    packages = ("torch", "diffusers", "napari", "spatialdata", "spatialdata-io", "dask", "zarr", "numpy", "qtpy")
    qt = {name: v for name in ("PySide6_Essentials", "PySide6", "PyQt6", "PyQt5") if (v := _version(name))}
    return {
        "versions": {
            "napari-stmdit": _version("napari-stmdit"),
            "python": sys.version.split()[0],
            "system": platform.platform(),
            **{name: _version(name) or "not installed" for name in packages},
            "Qt": ", ".join(f"{name} {v}" for name, v in qt.items()) or "none: the viewer needs one, see the README",
        },
        "devices": dict(devices()),
        "checkpoints": {entry.name: str(entry.path) for entry in list_checkpoints()},
        "directories": {"data": str(data_directory()), "package": str(files("napari_stmdit"))},
    }


def _load_encoder(folder: Any, component: str) -> Any:
    """Open an encoder from the allow-list; its class is named in ``model_index.json``."""
    from .encoders.linear_programs import LinearProgramEncoder
    from .encoders.small_conv import SmallConvEncoder

    allowed: dict[str, dict[str, Any]] = {
        "expression_encoder": {"LinearProgramEncoder": LinearProgramEncoder},
        "morphology_encoder": {"SmallConvEncoder": SmallConvEncoder},
    }
    known = allowed[component]
    _, name, path = folder.components[component]
    if name not in known:
        raise CheckpointError(f"{component} of {folder.path} is a {name!r}; this version knows {', '.join(known)}")
    return known[name].load(path)


def _resolve(name: str | Path) -> Path:
    entries = {entry.name: entry.path for entry in list_checkpoints()}
    if str(name) in entries:
        return entries[str(name)]
    path = Path(name).expanduser()
    if not path.is_dir():
        raise CheckpointError(
            f"there is no checkpoint {str(name)!r}: it is neither a folder nor one of {', '.join(entries)}; `stmdit info` "
            "lists the checkpoints that are there"
        )
    return path


def _bundled(name: str) -> Path:
    return Path(str(files("napari_stmdit").joinpath(BUNDLED[name])))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
