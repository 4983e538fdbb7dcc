"""Our checkpoint folder: its parts, its check, and its components, built from an allow-list of classes.

Classes named in ``model_index.json`` are looked up in that list and never imported, so a foreign folder cannot run code.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..downloads.places import Reference
from ..errors import CheckpointError, table
from ..expression.changes import Profile
from ..frozen import validated
from ..intent import CheckpointCard
from ..storage.fingerprint import of_folder
from ..text import shown
from .checkpoint import load_transformer
from .reading import WEIGHT_SUFFIXES, read_settings, read_weights
from .zoo import REFERENCE_FILE, read_reference, reference_hash, resolve_reference

COMPONENTS = ("transformer", "vae", "scheduler", "expression_encoder", "morphology_encoder")
ENCODERS = ("expression_encoder", "morphology_encoder")
MORPHOLOGY_MAP = "morphology_map"
PROFILES = "profiles.safetensors"
OPTIONAL = (*ENCODERS, "preview_vae", MORPHOLOGY_MAP)
"""Components that a folder may lack: encoders (embeddings serve too), preview decoder, map (then fitted on each section)."""
SCHEDULERS = ("DPMSolverMultistepScheduler", "FlowMatchEulerDiscreteScheduler", "DDIMScheduler")
VAES = ("StmditAutoencoder", "AutoencoderKL")
PREVIEW_VAES = ("AutoencoderTiny",)
TRANSFORMERS = ("STMDiTTransformer2D",)
MAPS = ("MorphologyMap",)


class Component(NamedTuple):
    """Component as in ``model_index.json``: library or module, class, sub-folder."""

    library: str
    kind: str
    path: Path

    @property
    def reference(self) -> Reference | None:
        """Reference to its weights, if they are not in the folder."""
        file = self.path / REFERENCE_FILE
        return read_reference(file) if file.is_file() else None

    def weights(self, name: str) -> Path:
        """Return the folder of its weights, its own or that of its reference; raises MissingComponentError where that is not here."""
        reference = self.reference
        return self.path if reference is None else resolve_reference(reference, name)

    def weights_file(self, name: str) -> Path:
        """Return its weights file, its own or that of its reference, which must list a single one."""
        reference = self.reference
        if reference is None:
            return self.path / "diffusion_pytorch_model.safetensors"
        listed = [file for file in reference.files if file.endswith(WEIGHT_SUFFIXES)]
        if len(listed) != 1:
            raise CheckpointError(f"{REFERENCE_FILE} of {self.path} lists {len(listed)} weights files, expected one.")
        return resolve_reference(reference, name) / listed[0]


@dataclass(frozen=True)
class CheckpointFolder:
    """A checkpoint folder that was read: its valid ``card``, its ``components`` by name, and ``sha256`` of all names and contents."""

    card: CheckpointCard
    components: dict[str, Component]
    path: Path
    sha256: str

    @property
    def elsewhere(self) -> dict[str, str]:
        """Component -> hash of its files, for components kept outside the folder."""
        found = {}
        for name, component in self.components.items():
            reference = component.reference
            if reference is not None and (digest := reference_hash(reference)) is not None:
                found[name] = digest
        return found


def read_folder(path: str | Path) -> CheckpointFolder:
    """Read and verify a checkpoint folder, without building anything; a CheckpointError names the file and what to do."""
    path = Path(path)
    for name, what in {"stmdit.json": "the card", "model_index.json": "the list of components"}.items():
        if not (path / name).is_file():
            raise CheckpointError(
                f"{path} is no checkpoint folder: {name} ({what}) is missing. Foreign checkpoints are made into one by "
                "`stmdit convert`."
            )
    card = validated(CheckpointCard, read_settings(path / "stmdit.json"), f"stmdit.json of {path} is not valid")
    index = read_settings(path / "model_index.json")
    components = {}
    for name in dict.fromkeys((*COMPONENTS, *OPTIONAL)):
        entry = index.get(name)
        if name in OPTIONAL and entry in (None, [None, None]):  # the latter is how diffusers says "none"
            continue
        if not isinstance(entry, list) or len(entry) != 2 or not all(isinstance(part, str) for part in entry):
            raise CheckpointError(
                f"model_index.json of {path} has no entry {name!r}: [library, class]. Copy the folder again."
            )
        if not (path / name).is_dir():
            raise CheckpointError(
                f"{path} lacks the folder {name}/ of its component {entry[1]}. Copy the whole checkpoint."
            )
        components[name] = Component(entry[0], entry[1], path / name)
    return CheckpointFolder(card, components, path, of_folder(path))


def load_component(folder: CheckpointFolder, name: str) -> Any:
    """Build the transformer, a VAE or the scheduler of a folder, in float32 on the CPU and in evaluation mode.

    Raises
    ------
    CheckpointError
        The folder has no such component, its class is not on the allow-list, or files are missing, damaged or do not fit.
    """
    if name not in folder.components:
        raise CheckpointError(f"{folder.path} has no component {name!r}; it has {', '.join(folder.components)}.")
    _, kind, path = component = folder.components[name]
    allowed = {
        "transformer": TRANSFORMERS,
        "vae": VAES,
        "scheduler": SCHEDULERS,
        "preview_vae": PREVIEW_VAES,
    }.get(name, ())
    if kind not in allowed:
        raise CheckpointError(
            f"{name} of {folder.path} is a {kind!r}; this version knows {', '.join(allowed) or 'none'}."
        )
    if name == "transformer":
        return load_transformer(path)
    return _load_scheduler(kind, path) if name == "scheduler" else _load_vae(kind, component.weights_file(name), path)


def map_folder(folder: CheckpointFolder) -> Path | None:
    """Return the folder of the map from expression to morphology, or None; raises CheckpointError for an unknown kind of map."""
    component = folder.components.get(MORPHOLOGY_MAP)
    if component is None:
        return None
    if component.kind not in MAPS:
        raise CheckpointError(
            f"{MORPHOLOGY_MAP} of {folder.path} is a {component.kind!r}; this version knows {', '.join(MAPS)}."
        )
    return component.path


def read_profiles(folder: CheckpointFolder) -> dict[str, Profile]:
    """Return the tissue profiles stored beside the weights.

    Raises
    ------
    CheckpointError
        A profile of the card is missing, does not fit its genes, or has a part of the wrong shape.
    """
    if not folder.card.profiles:
        return {}
    found, genes = read_weights(folder.path / PROFILES), folder.card.genes
    read_as: Any = read_settings(folder.components["transformer"].path / "config.json").get("expression_dim")

    def part(name: str, ending: str, size: int, words: str) -> NDArray[np.float32] | None:
        tensor = found.get(f"{name}.{ending}")
        if tensor is None and ending != "mean":
            return None
        if tensor is None or tuple(tensor.shape) != (size,):
            got = "missing" if tensor is None else f"of shape {tuple(tensor.shape)}"
            raise CheckpointError(f"{PROFILES}: {name}.{ending} is {got}, expected ({size},): {words}.")
        numbers: NDArray[np.float32] = tensor.float().numpy()
        return numbers

    profiles = {}
    for name in folder.card.profiles:
        mean = part(name, "mean", len(genes), "one value a gene")
        assert mean is not None
        depth = part(name, "depth", 1, "one value")
        profiles[name] = Profile(
            genes,
            mean,
            part(name, "spread", len(genes), "one value a gene"),
            None if depth is None else float(depth[0]),
            part(name, "encoding", read_as, "as many values as the transformer takes of expression"),
        )
    return profiles


def _load_scheduler(kind: str, path: Path) -> Any:
    import diffusers

    settings = read_settings(path / "scheduler_config.json")
    try:
        return getattr(diffusers, kind).from_config(
            {key: value for key, value in settings.items() if not key.startswith("_")}
        )
    except (TypeError, ValueError, ArithmeticError, RuntimeError, NotImplementedError) as error:
        raise CheckpointError(f"{path / 'scheduler_config.json'} describes no {kind}: {error}") from None


def _load_vae(kind: str, weights: Path, own: Path) -> Any:
    """Build a VAE and fill it; misfits are shown as one table.

    ``own`` is the checkpoint's sub-folder, whose ``config.json`` states what the transformer was trained on; the VAE's own
    ``config.json`` lies beside its weights.
    """
    if kind == "AutoencoderKL":
        from diffusers import AutoencoderKL as Autoencoder
    elif kind == "AutoencoderTiny":
        from diffusers import AutoencoderTiny as Autoencoder
    else:
        from .autoencoder import StmditAutoencoder as Autoencoder

    path = weights.parent
    settings = read_settings(path / "config.json")
    if kind == "AutoencoderTiny":
        settings.pop("block_out_channels", None)  # diffusers writes it and does not take it
    if not weights.is_file():
        raise CheckpointError(
            f"{weights} is missing. A VAE of its own (SD3.5) is not part of every checkpoint: copy its vae folder there."
        )
    if path != own:
        for key, value in read_settings(own / "config.json").items():
            if not key.startswith("_") and settings.get(key) != value:
                raise CheckpointError(
                    f"the VAE in {path} has {key} {shown(settings.get(key))}, but the transformer was trained with {shown(value)}: it is another VAE."
                )
    try:
        vae = Autoencoder.from_config({key: value for key, value in settings.items() if not key.startswith("_")})
    except (TypeError, ValueError, RuntimeError, KeyError, IndexError) as error:
        raise CheckpointError(f"{path / 'config.json'} makes no {kind}: {error}") from None
    tensors, expected = read_weights(weights), vae.state_dict()
    faults = [(key, tuple(expected[key].shape), "missing") for key in expected.keys() - tensors.keys()]
    for key, tensor in tensors.items():
        if key not in expected:
            faults.append((key, tuple(tensor.shape), "not part of this VAE"))
        elif tensor.shape != expected[key].shape:
            faults.append((key, tuple(tensor.shape), f"expected {tuple(expected[key].shape)}"))
        elif not bool(tensor.isfinite().all()):
            faults.append((key, tuple(tensor.shape), "holds values that are not finite numbers"))
    if faults:
        raise CheckpointError(f"{len(faults)} tensors of {weights} do not fit.\n{table(faults)}")
    vae.load_state_dict(tensors)
    return vae.float().eval()
