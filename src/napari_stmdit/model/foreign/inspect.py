"""Inspection of checkpoints without running anything in them: components are recognised by their tensors and shapes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel

from ...downloads.places import find_reference
from ...errors import CheckpointError, Fault, table
from ...text import some_of
from ..checkpoint import Opened, Settings, examine, locate, skeleton
from ..counterfactual import counterfactual_fault
from ..folder import VAES, CheckpointFolder, load_component, map_folder, read_folder
from ..reading import SETTING_SUFFIXES, read_settings, read_weights
from ..zoo import missing_text, reference_of, zoo_entry
from .convert import LATENT_FACTOR, MPP_CANDIDATES, SD3_CHANNELS, UNI_WIDTH
from .keys import TABLES, KeyMapping, read_mapping, unwrap

if TYPE_CHECKING:
    from torch import Tensor


ComponentKind = Literal["vae", "expression_encoder", "morphology_encoder"]


@dataclass(frozen=True)
class Description:
    """Recognised component: fields of its `Inspection`, and what it lacks."""

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
    """Describe a component by its tensors and the settings beside it; None where it is unknown."""
    family = next((family for sign, family in _SIGNS.items() if any(sign in name for name in tensors)), None)
    if family == "CancerFoundation":
        return _cancer_foundation(path, tensors)
    if family == "UNI2-h":
        return _uni(path, tensors)
    return None if family is None else _vae(path, family, tensors)


def _cancer_foundation(path: Path, tensors: Mapping[str, Tensor]) -> Description:
    settings = _beside(path, "args.json", "config.json")
    width = _size(tensors, ("embedding.weight",), 1)
    tokens = _size(tensors, ("embedding.weight",), 0)
    heads = settings.get("nheads") or {256: 8, 128: 8}.get(width or 0)
    missing = []
    if not any(file.name.endswith("vocab.json") for file in path.parent.glob("*.json")):
        missing.append(
            f"vocab.json beside the weights: the gene of each of the {tokens:,} tokens" if tokens else "vocab.json"
        )
    if heads is None:
        missing.append(f"args.json beside the weights: the number of heads of width {width}")
    missing.append("a gene list: the released code chooses genes anew for every data set, here they are fixed")
    heads_of_training = {name: "head of the training run" for name in tensors if _is_training_head(name)}
    fields = {
        "depth": _blocks(tensors, "layers"),
        "width": width,
        "heads": heads,
        "conditions": {"genes": f"a vocabulary of {tokens}, {settings.get('n_bins', 51)} bins"},
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
    """Read the first settings file beside the weights, of the same stem or of one of these names; {} where there is none."""
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
        parts = name.split(".")
        numbers |= {parts[i + 1] for i, one in enumerate(parts[:-1]) if one == part and parts[i + 1].isdigit()}
    return len(numbers)


Kind = Literal["checkpoint", "transformer", "vae", "expression_encoder", "morphology_encoder", "settings", "unknown"]


class Inspection(BaseModel):
    """Contents of a checkpoint; None where unknown or not applicable.

    Attributes
    ----------
    kind, family, naming
        Kind, family (``pixcell``, ``stmdit_adaln``, ``stmdit_cross_attention_pma``, ...) and naming scheme.
    depth, width, heads, patch_size, latent_channels, latent_size, position_scale
        Sizes of the transformer; the patch size and the latents' side are in latent pixels.
    conditions
        Condition -> how it enters and how wide it is.
    objective, learned_sigma
        ``epsilon`` or ``flow``, and whether a variance is predicted too.
    tensors, parameters
        How many, in all.
    morphology_map
        Statistics of the map from expression to morphology: explained ``share`` of variance and ``r2`` of each principal component on tissue
        left out, ``components`` that follow, ``spots`` of the fit. None: an edit of real tissue fits a map on its section.
    cannot_edit
        Why a checkpoint folder cannot edit real tissue; None where it can, and for anything but a checkpoint folder.
    missing
        What keeps it from running as it is; empty where it can run.
    notes, ignored
        Choices made, and tensors that are not needed, with the reason.
    """

    path: str
    kind: Kind
    family: str | None = None
    naming: str | None = None
    depth: int | None = None
    width: int | None = None
    heads: int | None = None
    patch_size: int | None = None
    latent_channels: int | None = None
    latent_size: int | None = None
    position_scale: float | None = None
    conditions: dict[str, str] = {}
    objective: str | None = None
    learned_sigma: bool | None = None
    tensors: int = 0
    parameters: int = 0
    patch_px: int | None = None
    patch_mpp: float | None = None
    components: dict[str, str] = {}
    sha256: str | None = None
    morphology_map: dict[str, Any] | None = None
    cannot_edit: str | None = None
    missing: list[str] = []
    notes: list[str] = []
    ignored: dict[str, str] = {}


def inspect_checkpoint(
    path: str | Path, config: Settings = None, mapping: str | Path | KeyMapping | None = None
) -> Inspection:
    """Inspect our checkpoint folder, a foreign folder, a safetensors or a torch file, or a settings file.

    Parameters
    ----------
    path
        What to inspect.
    config, mapping
        Settings and a mapping file for a foreign transformer, as for `napari_stmdit.load_transformer`.

    Raises
    ------
    CheckpointError
        The file does not exist, is damaged, or would execute code when read; the message names what it would import.
    """
    path = Path(path)
    if (path / "stmdit.json").is_file():
        return _of_folder(read_folder(path))
    if path.is_file() and path.suffix in SETTING_SUFFIXES and not path.name.endswith(".index.json"):
        settings = read_settings(path)
        return Inspection(
            path=str(path), kind="settings", missing=["weights"], notes=[f"settings: {', '.join(map(str, settings))}"]
        )
    weights, beside = locate(path)
    if beside is not None:
        read_settings(beside)  # refused here, too, where it carries code
    mapping = mapping if mapping is None or isinstance(mapping, KeyMapping) else read_mapping(mapping)
    found = unwrap(read_weights(weights), mapping)
    if found.naming is None:
        return _of_other(path, weights, found.tensors)
    opened, faults = examine(path, config, mapping=mapping, found=found)
    lone = _of_transformer(path, opened, faults)
    return lone.model_copy(update={"missing": lone.missing + _companions(opened.options.values)})


def _of_transformer(path: Path, opened: Opened, faults: Iterable[Fault]) -> Inspection:
    values = opened.options.values
    missing = [*(table([fault]).strip() for fault in faults), *opened.options.faults]
    if not missing:
        try:
            skeleton(opened)
        except CheckpointError as error:
            missing.append(str(error))
    return Inspection(
        path=str(path),
        kind="transformer",
        family=_family(values),
        naming=opened.naming,
        depth=values.get("num_layers"),
        width=opened.tensors["patch_embed.weight"].shape[0] if "patch_embed.weight" in opened.tensors else None,
        heads=values.get("num_attention_heads"),
        patch_size=values.get("patch_size"),
        latent_channels=values.get("in_channels"),
        latent_size=values.get("sample_size"),
        position_scale=values.get("position_scale"),
        conditions=_conditions(values),
        objective=opened.options.objective,
        learned_sigma=values.get("learn_sigma"),
        tensors=len(opened.tensors),
        parameters=sum(math.prod(tensor.shape) for tensor in opened.tensors.values()),
        missing=missing,
        notes=list(opened.notes),
        ignored=opened.ignored,
    )


def _of_folder(folder: CheckpointFolder) -> Inspection:
    opened, faults = examine(folder.components["transformer"].path)
    found = _of_transformer(folder.path, opened, faults)
    _, scheduler, place = folder.components["scheduler"]
    settings = read_settings(place / "scheduler_config.json")
    flow = scheduler.startswith("FlowMatch") or settings.get("prediction_type") == "flow_prediction"
    lacking = _lacking(folder)
    return found.model_copy(
        update={
            "kind": "checkpoint",
            "objective": "flow" if flow else "epsilon",
            "patch_px": folder.card.patch_px,
            "patch_mpp": folder.card.patch_mpp,
            "components": {name: part.kind for name, part in folder.components.items()},
            "sha256": folder.sha256,
            "morphology_map": _follows(folder),
            "cannot_edit": _edit_fault(folder, opened.options.values, lacking),
            "missing": [*found.missing, *lacking],
        }
    )


def _follows(folder: CheckpointFolder) -> dict[str, Any] | None:
    place = map_folder(folder)
    if place is None:
        return None
    config, arrays = read_settings(place / "config.json"), read_weights(place / "model.safetensors")
    r2, components = ([] if arrays.get(name) is None else arrays[name].tolist() for name in ("r2", "components"))
    return {
        "share": config.get("share"),
        "r2": [round(value, 4) for value in r2],
        "components": len(components),
        "spots": config.get("spots"),
    }


def _edit_fault(folder: CheckpointFolder, settings: dict[str, Any], lacking: Iterable[str]) -> str | None:
    """Return why a checkpoint cannot edit real tissue, by its settings alone."""
    try:
        scheduler = load_component(folder, "scheduler")
    except CheckpointError as error:
        return f"This checkpoint cannot edit real tissue: {error}"
    vae = folder.components.get("vae")
    parts = SimpleNamespace(
        transformer=SimpleNamespace(config=settings),
        vae=SimpleNamespace(encoder=vae) if vae is not None and vae.kind in VAES else None,  # each of these has one
        scheduler=scheduler,
    )
    encoders = [name for line in lacking if (name := line.split(":")[0]).endswith("_encoder")]
    return counterfactual_fault(parts, folder.card.conditions, encoders)


def _lacking(folder: CheckpointFolder) -> list[str]:
    """List the components whose weights are not on this computer, and how to get them."""
    missing = []
    for name in ("vae", "expression_encoder", "morphology_encoder"):
        part = folder.components.get(name)
        if part is None:
            if name.removesuffix("_encoder") in folder.card.conditions:
                missing.append(f"{name}: none is known for this checkpoint; give embeddings computed elsewhere")
        elif (reference := part.reference) is not None:
            if find_reference(reference) is None:
                missing.append(f"{name}: {missing_text(reference, name)}")
        elif not any(part.path.glob("*.safetensors")):
            missing.append(f"{name}: {part.path} holds no safetensors")
    if "expression_encoder" in folder.components and not folder.card.genes:
        missing.append("gene list: convert again with --genes FILE, or give --expression-embeddings FILE")
    return missing


def _of_other(path: Path, weights: Path, tensors: dict[str, Tensor]) -> Inspection:
    counts: dict[str, Any] = {
        "tensors": len(tensors),
        "parameters": sum(math.prod(tensor.shape) for tensor in tensors.values()),
    }
    known = describe_component(weights, tensors)
    if known is not None:
        own: dict[str, Any] = {"missing": list(known.missing), "ignored": dict(known.ignored)}
        return Inspection(path=str(path), kind=known.kind, family=known.family, **known.fields, **own, **counts)
    fault = (
        f"no known network has these tensors: {some_of(tensors, 10)}; known transformer namings: native, {', '.join(TABLES)}. "
        "Where they are a transformer under other names, give a mapping file (--mapping)"
    )
    return Inspection(path=str(path), kind="unknown", missing=[fault], **counts)


def _family(values: dict[str, Any]) -> str:
    ways = [way for way in ("adaln", "cross_attention") if values.get(f"expression_{way}")]
    if not ways:
        return "pixcell"
    return "_".join(["stmdit", *ways, *(["pma"] if values.get("expression_pooling") == "pma" else [])])


def _conditions(values: dict[str, Any]) -> dict[str, str]:
    tokens = values.get("morphology_tokens")
    found = {"morphology": f"{tokens} x {values.get('morphology_dim')}, cross-attention"}
    if values.get("morphology_adaln"):
        found["morphology"] += " + adaLN"
    ways = [
        text
        for way, text in {"adaln": "adaLN", "cross_attention": "cross-attention"}.items()
        if values.get(f"expression_{way}")
    ]
    if ways:
        found["expression"] = f"{values.get('expression_dim')}, {' + '.join(ways)}"
        if values.get("expression_pooling") == "pma":
            found["expression"] += f", set pooled to {values.get('expression_pool_tokens')}"
    return found


def _companions(values: dict[str, Any]) -> list[str]:
    """List what a lone transformer needs beside it to make images."""
    sides = "" if values.get("sample_size") is None else f" {values['sample_size'] * LATENT_FACTOR} px"
    needed = [
        f"patch mpp: microns per pixel of its{sides} patches; {', '.join(f'{mpp:g}' for mpp in MPP_CANDIDATES)} are candidates"
    ]
    vae = f"vae: one with {values.get('in_channels')} latent channels"
    needed.append(vae + (f" ({_state('sd3.5-vae')})" if values.get("in_channels") == SD3_CHANNELS else ""))
    if values.get("morphology_dim") == UNI_WIDTH:
        needed.append(f"morphology_encoder: UNI2-h ({_state('uni2-h')}), or embeddings computed with it")
    else:
        needed.append(f"morphology_encoder: of width {values.get('morphology_dim')}, or embeddings computed with it")
    if values.get("expression_dim"):
        known = f"CancerFoundation ({_state('cancerfoundation')})"
        needed.append(
            f"expression_encoder: of width {values['expression_dim']}, as {known}, with its gene list; or embeddings"
        )
    return needed


def _state(name: str) -> str:
    here = find_reference(reference_of(zoo_entry(name))) is not None
    return "on this computer" if here else f"not on this computer: stmdit download {name}"
