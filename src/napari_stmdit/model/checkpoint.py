"""Transformers opened from our folder, or from PixCell or STMDiT files in original or diffusers naming, with their options.

Every tensor is used or listed and every parameter filled, or loading fails with a table of misfits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError, Fault, SynthesisError, table
from ..files import is_number
from ..text import shown
from .foreign.keys import KeyMapping, Naming, Stacked, Weights, merge_lora, read_mapping, to_native, unwrap
from .reading import SETTING_SUFFIXES, WEIGHT_SUFFIXES, read_settings, read_weights

if TYPE_CHECKING:
    from torch import Tensor, nn

CLASS_NAME = "STMDiTTransformer2D"

# Our option -> the names that PixCell's, STMDiT's and the diffusers configurations use for it.
_MODEL_NAMES = {
    "in_channels": ("in_channels",),
    "out_channels": ("out_channels",),
    "patch_size": ("patch_size",),
    "sample_size": ("sample_size", "input_size"),
    "num_layers": ("num_layers", "depth"),
    "num_attention_heads": ("num_attention_heads", "num_heads"),
    "width": ("hidden_size",),
    "attention_head_dim": ("attention_head_dim",),
    "mlp_ratio": ("mlp_ratio",),
    "morphology_dim": ("caption_channels",),
    "morphology_tokens": ("caption_num_tokens", "model_max_length"),
    "morphology_position": ("use_cond_pos_embed",),
    "position_scale": ("interpolation_scale", "pe_interpolation"),
    "learn_sigma": ("learn_sigma", "pred_sigma"),
    "qk_norm": ("qk_norm",),
}
_GENE_NAMES = {
    "expression_dim": "dim",
    "expression_adaln": "adaln",
    "expression_cross_attention": "cross_attention",
    "expression_pooling": "pooling",
    "expression_pool_tokens": "pma_tokens",
}
_MAX_SIDE = 1024
"""Maximum side of the latents, in latent pixels: 8,192 px at factor 8."""
_COUNTS = (
    *("in_channels", "out_channels", "patch_size", "sample_size", "num_layers", "num_attention_heads", "width"),
    *("attention_head_dim", "morphology_dim", "morphology_tokens", "expression_dim"),
)
_FLAGS = ("morphology_position", "learn_sigma", "qk_norm", "expression_adaln", "expression_cross_attention")
# What this transformer does in any case: settings that ask for something else cannot be honoured.
_FIXED = {
    "activation_fn": ("gelu-approximate",),
    "norm_type": ("ada_norm_single",),
    "norm_elementwise_affine": (False,),
    "attention_bias": (True,),
    "use_additional_conditions": (False,),
    "proj_act": ("gelu_tanh", "gelu-approximate"),
    "adaln_act": ("silu",),
}
_FLOW = {"flow", "velocity", "rectified_flow", "flow_matching", "flow_prediction"}
_NOISE = {"ddpm", "epsilon", "eps", "noise", "iddpm"}
_SUPPORTED = "noise (ddpm, epsilon) and velocity of a rectified flow (flow, velocity)"
# Published sizes (PixArt / DiT: XL, L, B, S): width -> heads.
_HEADS = {1152: 16, 1024: 16, 768: 12, 384: 6}


@dataclass
class Options:
    """Options with the source of each, conflicts, and notes for the user."""

    values: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    objective: str | None = None
    """``epsilon`` (DDPM), ``flow`` (rectified flow, velocity), or None where nothing tells."""

    def state(self, name: str, value: Any, source: str) -> None:
        """Record a value, or a fault where it has a wrong type or contradicts another source."""
        if value is None:
            return
        if (expected := _misfit(name, value)) is not None:
            self.faults.append(f"{name} is {shown(value)} by the {source}, expected {expected}")
            return
        known = self.values.get(name)
        if known is None:
            self.values[name], self.sources[name] = value, source
        elif known != value and not (isinstance(value, float) and math.isclose(known, value, rel_tol=1e-3)):
            self.faults.append(
                f"{name} is {shown(known)} by the {self.sources[name]} but {shown(value)} by the {source}"
            )


def gather_options(
    native: Mapping[str, Stacked], settings: Mapping[str, Any] | None, positions: Tensor | None
) -> Options:
    """Collect the options of a transformer, and in ``faults`` what is missing or contradictory.

    Parameters
    ----------
    native
        Its tensors under our names.
    settings
        ``training_config.yaml``, an original or diffusers ``config.json``, or ours; None where there is none.
    positions
        The stored position table (1, N, D), where there is one.
    """
    found = Options()
    _from_shapes(found, native)
    if settings is not None:
        _from_settings(found, settings)
    if positions is not None:
        _from_positions(found, positions)
    _complete(found, settings is not None)
    return found


def _misfit(name: str, value: Any) -> str | None:
    """Say what was expected of an option that a settings file gives wrongly."""
    number = is_number(value)
    if name in _COUNTS and not (number and value == int(value) and value > 0):
        return "a positive whole number"
    if name == "sample_size" and value > _MAX_SIDE:
        return f"at most {_MAX_SIDE} latent pixels"
    if name in ("mlp_ratio", "position_scale") and not (number and value > 0):
        return "a positive number"
    return "true or false" if name in _FLAGS and not isinstance(value, bool) else None


def _from_shapes(found: Options, native: Mapping[str, Stacked]) -> None:
    def size(name: str, axis: int) -> int | None:
        return native[name].shape[axis] if name in native and native[name].ndim > axis else None

    def state(name: str, value: Any) -> None:
        found.state(name, value, "tensors' shapes")

    width, patch = size("patch_embed.weight", 0), size("patch_embed.weight", 2)
    rows, hidden = size("final_linear.weight", 0), size("blocks.0.feed_forward.fc1.weight", 0)
    if not width or not patch or not rows or not hidden:
        found.faults.append("it lacks the patch embedding, the first block or the final layer")
        return
    channels = size("patch_embed.weight", 1)
    state("width", width)
    state("patch_size", patch)
    state("in_channels", channels)
    state("out_channels", rows // patch**2)
    state("learn_sigma", rows // patch**2 != channels)
    state("num_layers", len({name.split(".")[1] for name in native if name.startswith("blocks.")}))
    state("mlp_ratio", hidden / width)
    state("morphology_dim", size("morphology_embed.fc1.weight", 1))
    state("morphology_expand", (size("morphology_embed.fc2.weight", 0) or width) // width)
    state("morphology_tokens", size("morphology_null", 0))
    for name, sign in {
        "morphology_position": "morphology_position_table",
        "morphology_adaln": "morphology_time.weight",
        "expression_adaln": "expression_time.fc1.weight",
        "expression_cross_attention": "blocks.0.expression_attention.q.weight",
        "qk_norm": "blocks.0.self_attention.q_norm.weight",
        "ff_conv": "blocks.0.feed_forward.conv.weight",
        "cross_norm": "blocks.0.morphology_norm.weight",
    }.items():
        state(name, sign in native)
    if found.values["expression_adaln"] or found.values["expression_cross_attention"]:
        for name in ("expression_null", "expression_time.fc1.weight", "expression_embed.fc1.weight"):
            state("expression_dim", size(name, 1))
        state("expression_expand", (size("expression_embed.fc2.weight", 0) or width) // width)
        state("expression_pooling", "pma" if "expression_pool.seeds" in native else "none")
        state("expression_pool_tokens", size("expression_pool.seeds", 1) or 0)


def _from_settings(found: Options, settings: Mapping[str, Any]) -> None:
    if settings.get("_class_name") == CLASS_NAME:
        for name, value in settings.items():
            if not name.startswith("_"):
                found.state(name, value, "settings")
        return
    model = settings["model"] if isinstance(settings.get("model"), Mapping) else settings
    genes = settings["gene_expression"] if isinstance(settings.get("gene_expression"), Mapping) else {}
    for ours, theirs in _MODEL_NAMES.items():
        for name in theirs:
            found.state(ours, model.get(name), "settings")
    for ours, name in _GENE_NAMES.items():
        value = genes.get(name)
        if ours == "expression_pooling" and name in genes:
            value = value or "none"
        found.state(ours, value, "settings")
    for section in (model, genes):
        for name, allowed in _FIXED.items():
            if section.get(name, allowed[0]) not in allowed:
                found.faults.append(f"{name} is {shown(section[name])}, and only {allowed[0]!r} is supported")
    if genes.get("adaln") and genes.get("adaln_to_final_layer") is False:
        found.faults.append("adaln_to_final_layer is False, and only True is supported")
    diffusion = settings.get("diffusion")
    if isinstance(diffusion, Mapping):
        stated = {
            shown(diffusion.get(name)).strip("'\"").lower() for name in ("objective", "prediction", "prediction_type")
        }
        flow, noise = stated & _FLOW, stated & _NOISE
        if strange := stated - _FLOW - _NOISE - {"none"}:
            found.faults.append(f"the objective {', '.join(sorted(strange))} is not supported, only {_SUPPORTED}")
        found.objective = "flow" if flow and not noise else "epsilon" if noise and not flow else None


def _from_positions(found: Options, positions: Tensor) -> None:
    """Recover grid and scale from a stored table: the angle of one frequency between the first two columns."""
    import torch

    from .transformer import position_table

    width, tokens = positions.shape[-1], positions.shape[-2]
    side = math.isqrt(tokens)
    if side < 2 or side * side != tokens or positions.ndim != 3 or width % 4:
        found.faults.append(
            f"the stored position table has shape {tuple(positions.shape)}, expected (1, side * side, width)"
        )
        return
    quarter = width // 4
    frequency = quarter // 2  # a middle one: the first may turn by more than half a circle between neighbours
    omega = 10000.0 ** (-frequency / quarter)
    step = math.atan2(float(positions[0, 1, frequency]), float(positions[0, 1, quarter + frequency])) / omega
    scale = round(1 / step, 4) if step > 1e-6 else 1.0
    expected = position_table(side, side, width, side, scale)
    if not torch.allclose(expected, positions[0].float(), atol=2e-3):
        found.faults.append("the stored position table is not the sine-cosine table of a square grid")
        return
    found.state("sample_size", side * found.values.get("patch_size", 2), "stored position table")
    found.state("position_scale", scale, "stored position table")


def _complete(found: Options, settings: bool) -> None:
    values = found.values
    width = values.pop("width", None)
    hint = "" if settings else " (no settings file was found beside the weights: give config=)"
    if width is not None and "num_attention_heads" not in values:
        heads = width // values["attention_head_dim"] if "attention_head_dim" in values else _HEADS.get(width)
        if heads is None:
            found.faults.append(f"the number of heads is unknown and cannot be seen in the weights{hint}")
        else:
            values["num_attention_heads"] = heads
            found.notes.append(f"{heads} heads, as published models of width {width} have; the settings do not say.")
    heads = values.get("num_attention_heads")
    if width is not None and heads and width % heads == 0:
        found.state("attention_head_dim", width // heads, "width and heads")
    elif width is not None and heads:
        found.faults.append(f"the width {width} is not divisible by {heads} heads")
    if values.get("position_embedding", "sincos") == "sincos" and "position_scale" not in values:
        found.faults.append(
            "the interpolation scale of the positions is unknown (pe_interpolation or interpolation_scale; PixCell uses "
            f"0.5 at 256 px, 1 at 512 px, 2 at 1024 px){hint}"
        )
    if "sample_size" not in values:
        found.faults.append(f"the side of the latents is unknown (sample_size or input_size){hint}")
    if found.objective is None and values.get("learn_sigma"):
        found.objective = "epsilon"  # a learned variance exists for noise prediction alone


_FOLDER_WEIGHTS = (
    "diffusion_pytorch_model.safetensors.index.json",
    "diffusion_pytorch_model.safetensors",
    "model.safetensors",
    "model.pt",
    "diffusion_pytorch_model.bin",
)
_FOLDER_SETTINGS = ("training_config.yaml", "training_config.yml", "config.yaml", "config.json", "training_config.json")


@dataclass(frozen=True)
class Opened:
    """Transformer before it is built: tensors under our names, and options.

    Attributes
    ----------
    tensors
        By our names, those of several parts not joined yet.
    naming
        How they were named in the file.
    options
        Of the transformer, each with its source.
    notes, ignored
        Choices made, and tensor -> why it is not used.
    weights, settings, stated
        The files, and the settings as read.
    """

    tensors: dict[str, Stacked]
    naming: Naming
    options: Options
    notes: tuple[str, ...]
    ignored: dict[str, str]
    weights: Path
    settings: Path | None
    stated: Mapping[str, Any]


Settings = str | Path | Mapping[str, Any] | None
"""Settings file, its contents, or None for the file beside the weights."""


def load_transformer(
    weights_or_dir: str | Path, config: Settings = None, *, mapping: str | Path | KeyMapping | None = None
) -> nn.Module:
    """Load a transformer in float32, ready to predict.

    Parameters
    ----------
    weights_or_dir
        A safetensors or torch file, or a folder that holds one: our checkpoint folder or its ``transformer``, a diffusers
        ``transformer`` folder, or an STMDiT folder (``model.pt`` and ``training_config.yaml``).
    config
        Settings as a YAML or JSON file or a mapping; None for the file beside the weights.
    mapping
        A mapping file for names that we do not know; see `napari_stmdit.model.foreign.keys`.

    Returns
    -------
    torch.nn.Module
        `napari_stmdit.model.transformer.STMDiTTransformer2D` in evaluation mode on the CPU.

    Raises
    ------
    CheckpointError
        The file is unsafe, damaged or of no known kind; options are missing or contradict the shapes; a tensor is missing,
        unknown, of a wrong shape or not finite. A table lists (key, shape, reason).
    """
    return build_transformer(open_weights(weights_or_dir, config, mapping=mapping))


def open_weights(
    weights_or_dir: str | Path, config: Settings = None, *, mapping: str | Path | KeyMapping | None = None
) -> Opened:
    """Read and recognise a transformer without building it; arguments and errors as for `load_transformer`."""
    opened, faults = examine(weights_or_dir, config, mapping=mapping)
    if faults:
        raise CheckpointError(
            f"{len(faults)} tensors of {opened.weights.name} cannot be placed.\n{table(faults)}\n"
            "If they are known under other names, give a mapping file."
        )
    if opened.options.faults:
        missing = "; ".join(opened.options.faults)
        raise CheckpointError(f"{opened.weights.name}: the transformer cannot be built: {missing}.")
    return opened


def examine(
    weights_or_dir: str | Path,
    config: Settings = None,
    *,
    mapping: str | Path | KeyMapping | None = None,
    found: Weights | None = None,
) -> tuple[Opened, tuple[Fault, ...]]:
    """Read a transformer and collect the tensors that cannot be placed; faults of its options are in ``options.faults``.

    ``found`` saves reading the file again. Raises CheckpointError where a file is unsafe, damaged or missing, or of no known naming.
    """
    path, beside = locate(Path(weights_or_dir))
    mapping = mapping if mapping is None or isinstance(mapping, KeyMapping) else read_mapping(mapping)
    settings_path = beside if config is None else None if isinstance(config, Mapping) else Path(config)
    settings = (
        config if isinstance(config, Mapping) else None if settings_path is None else read_settings(settings_path)
    )
    if mapping is not None and mapping.settings:
        settings = {**(settings or {}), **mapping.settings}
    found = unwrap(read_weights(path), mapping) if found is None else found
    if found.naming is None:
        raise CheckpointError(
            f"{path.name} is no STMDiT or PixCell transformer: its tensors have other names.\n"
            + table((name, tuple(tensor.shape), "unknown name") for name, tensor in found.tensors.items())
        )
    tensors, merged, misfits = merge_lora(found.tensors, settings)
    renamed = to_native(tensors, found.naming)
    native = renamed.tensors | _filled(renamed.tensors, mapping)
    positions = found.tensors.get("pos_embed", found.tensors.get("pos_embed.pos_embed"))
    options = gather_options(native, settings, positions)
    stated = [f"{name} is zero, as the mapping file states." for name in native.keys() - renamed.tensors.keys()]
    notes = (*found.notes, *merged, *options.notes, *stated)
    ignored = {**found.ignored, **renamed.ignored}
    opened = Opened(native, found.naming, options, notes, ignored, path, settings_path, settings or {})
    return opened, (*misfits, *renamed.faults)


def skeleton(opened: Opened) -> nn.Module:
    """Build an opened transformer without storage; raises CheckpointError unless every tensor is there and fits."""
    import torch

    from .transformer import STMDiTTransformer2D

    try:
        with torch.device("meta"):
            net = STMDiTTransformer2D(**opened.options.values)
    except (SynthesisError, TypeError, ValueError, RuntimeError, ZeroDivisionError) as error:
        raise CheckpointError(f"{opened.weights.name}: the transformer cannot be built: {error}") from None
    faults = list(_misfits(opened.tensors, {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}))
    if faults:
        raise CheckpointError(f"{len(faults)} tensors of {opened.weights.name} do not fit.\n" + table(faults))
    return net  # type: ignore[no-any-return]


def build_transformer(opened: Opened) -> nn.Module:
    """Build an opened transformer around its tensors, without a second copy of those in float32."""
    net = skeleton(opened)
    shapes = {name: tensor.shape for name, tensor in net.state_dict().items()}
    tensors = {name: stacked.tensor().reshape(shapes[name]).float() for name, stacked in opened.tensors.items()}
    net.load_state_dict(tensors, strict=True, assign=True)
    return net.eval()


def locate(path: Path) -> tuple[Path, Path | None]:
    """Find the weights and the settings file of a transformer; raises CheckpointError unless there is exactly one candidate."""
    if path.is_file():
        return path, _settings_beside(path)
    if not path.is_dir():
        raise CheckpointError(f"{path} does not exist. Expected a weights file or a folder with one.")
    if (path / "transformer").is_dir():
        path = path / "transformer"
    named = next((path / name for name in _FOLDER_WEIGHTS if (path / name).is_file()), None)
    if named is None:
        others = sorted(file for file in path.iterdir() if file.suffix in WEIGHT_SUFFIXES)
        if len(others) != 1:
            listed = ", ".join(file.name for file in others) or "none"
            raise CheckpointError(f"{path} should hold one weights file, found {listed}. Name the file instead.")
        named = others[0]
    return named, _settings_beside(named)


def _settings_beside(weights: Path) -> Path | None:
    stem = weights.name.split(".")[0]
    own = [f"{stem}_{name}" for name in _FOLDER_SETTINGS] + [f"{stem}{suffix}" for suffix in SETTING_SUFFIXES]
    return next(
        (weights.parent / name for name in (*own, *_FOLDER_SETTINGS) if (weights.parent / name).is_file()), None
    )


def _filled(native: Mapping[str, Stacked], mapping: KeyMapping | None) -> dict[str, Stacked]:
    """Make the null embeddings that a mapping file states to be zero."""
    import torch

    made: dict[str, Stacked] = {}
    for name in mapping.fill if mapping is not None else ():
        kind = name.removesuffix("_null")
        layers = (native.get(f"{kind}_embed.fc1.weight"), native.get(f"{kind}_time.fc1.weight"))
        width = next((layer.shape[1] for layer in layers if layer is not None and layer.ndim == 2), None)
        if name not in native and width is not None:
            made[name] = Stacked((torch.zeros(1, width),))
    return made


def _squeezed(shape: Iterable[int]) -> tuple[int, ...]:
    """Leave out axes of length 1: null embeddings are stored as (1, d), (d,) or (1, 1, d)."""
    return tuple(n for n in shape if n != 1)


def _misfits(tensors: Mapping[str, Stacked], expected: Mapping[str, tuple[int, ...]]) -> Iterable[Fault]:
    for name in expected.keys() - tensors.keys():
        yield name, expected[name], "missing; it is never filled at random"
    for name, stacked in tensors.items():
        if name not in expected:
            yield name, stacked.shape, "not part of this transformer"
        elif _squeezed(stacked.shape) != _squeezed(expected[name]):
            yield name, stacked.shape, f"expected {expected[name]}"
        elif not all(part.is_floating_point() and bool(part.isfinite().all()) for part in stacked.parts):
            yield name, stacked.shape, "holds values that are not finite numbers"
