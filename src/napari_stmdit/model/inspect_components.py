"""What the components beside a transformer are: recognised by their tensors, described by their shapes, without building them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import CheckpointError
from .reading import read_settings

if TYPE_CHECKING:
    from torch import Tensor

ComponentKind = Literal["vae", "expression_encoder", "morphology_encoder"]


@dataclass(frozen=True)
class Description:
    """A recognised component: what goes into `napari_stmdit.model.inspect.Inspection`, and what it lacks."""

    kind: ComponentKind
    family: str
    fields: Mapping[str, Any]
    missing: tuple[str, ...] = ()
    ignored: Mapping[str, str] = field(default_factory=dict)


# A part of a tensor's name that gives a component away -> its family.
_SIGNS = {
    "value_encoder.linear1.weight": "CancerFoundation",
    "reg_token": "UNI2-h",
    "decoder.stem.weight": "StmditAutoencoder",
    "decoder.conv_in.weight": "AutoencoderKL",
    "decoder.layers.0.weight": "AutoencoderTiny",
}


def describe_component(path: Path, tensors: Mapping[str, Tensor]) -> Description | None:
    """Describe a component by its tensors and the settings beside it; None where it is none of those we know."""
    family = next((family for sign, family in _SIGNS.items() if any(sign in name for name in tensors)), None)
    if family == "CancerFoundation":
        return _cancer_foundation(path, tensors)
    if family == "UNI2-h":
        return _uni(path, tensors)
    return None if family is None else _vae(path, family, tensors)


def _cancer_foundation(path: Path, tensors: Mapping[str, Tensor]) -> Description:
    settings = _beside(path, "args.json", "config.json")
    width = _size(tensors, ("embedding.weight",), 1)
    words = _size(tensors, ("embedding.weight",), 0)
    heads = settings.get("nheads") or {256: 8, 128: 8}.get(width or 0)
    missing = []
    if not any(file.name.endswith("vocab.json") for file in path.parent.glob("*.json")):
        missing.append(
            f"vocab.json beside the weights: the gene of each of the {words:,} tokens" if words else "vocab.json"
        )
    if heads is None:
        missing.append(f"args.json beside the weights: the number of heads of width {width}")
    missing.append("a gene list: the released code chooses genes anew for every data set, here they are fixed")
    heads_of_training = {name: "head of the training run" for name in tensors if _is_training_head(name)}
    fields = {
        "depth": _blocks(tensors, "layers"),
        "width": width,
        "heads": heads,
        "conditions": {"genes": f"a vocabulary of {words}, {settings.get('n_bins', 51)} bins"},
    }
    return Description("expression_encoder", "CancerFoundation", fields, tuple(missing), heads_of_training)


def _is_training_head(name: str) -> bool:
    heads = ("decoder.", "mvc_decoder.", "cls_decoder.", "flag_encoder", "generative_flag", "condition_encoders.")
    return any(name.startswith(head) or f".{head}" in name for head in (*heads, "grad_reverse_discriminators."))


def _uni(path: Path, tensors: Mapping[str, Tensor]) -> Description:
    settings = _beside(path, "config.json")
    width = _size(tensors, ("cls_token",), 2)
    heads = settings.get("num_heads") or {1536: 24}.get(width or 0)
    missing = () if heads else (f"config.json beside the weights: the number of heads of width {width}",)
    fields = {
        "depth": _blocks(tensors, "blocks"),
        "width": width,
        "heads": heads,
        "patch_size": _size(tensors, ("patch_embed.proj.weight",), 2),
        "conditions": {"image": "tiles of 256 px, resized to 224"},
    }
    return Description("morphology_encoder", "UNI2-h", fields, missing)


def _vae(path: Path, family: str, tensors: Mapping[str, Tensor]) -> Description:
    settings = _beside(path, "config.json")
    channels = settings.get("latent_channels")
    if channels is None and family == "AutoencoderKL":
        channels = _size(tensors, ("decoder.conv_in.weight",), 1)
    missing = []
    if family == "AutoencoderKL" and "scaling_factor" not in settings:
        missing.append("config.json beside the weights: scaling_factor and shift_factor of the latents")
    return Description("vae", family, {"latent_channels": channels}, tuple(missing))


def _beside(path: Path, *names: str) -> dict[str, Any]:
    """Read the first settings file beside the weights: of the same stem, or of one of these names; {} where there is none."""
    folder = path if path.is_dir() else path.parent
    stem = path.name.split(".")[0]
    for file in [folder / f"{stem}_{name}" for name in names] + [folder / name for name in names]:
        if file.is_file():
            try:
                return read_settings(file)
            except CheckpointError:
                return {}
    return {}


def _size(tensors: Mapping[str, Tensor], endings: tuple[str, ...], axis: int) -> int | None:
    found = next((tensor for name, tensor in tensors.items() if name.endswith(endings) and tensor.ndim > axis), None)
    return None if found is None else int(found.shape[axis])


def _blocks(tensors: Mapping[str, Tensor], part: str) -> int:
    numbers = set()
    for name in tensors:
        words = name.split(".")
        numbers |= {words[i + 1] for i, word in enumerate(words[:-1]) if word == part and words[i + 1].isdigit()}
    return len(numbers)
