"""Options of a transformer, from its settings file and the shapes of its tensors; both must agree.

Nothing that changes the images is guessed: scale of positions and number of heads come from the settings, the stored position table, or
published sizes; otherwise loading stops.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ...files import is_number
from ...text import shown

if TYPE_CHECKING:
    from torch import Tensor

    from .keys import Stacked


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

    from ..transformer import position_table

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
