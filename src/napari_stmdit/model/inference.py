"""Fast inference: checks of options and inputs, fused products of a block, and the guided prediction of all branches in one batch.

Fused forms are for inference on a CPU; elsewhere, and with gradients, torch's own run. Results agree up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import SynthesisError
from .guidance import Branch, combine


def check_options(config: Mapping[str, Any]) -> None:
    """Raise SynthesisError with every contradiction among the options of `STMDiTTransformer2D`."""
    width = config["num_attention_heads"] * config["attention_head_dim"]
    outputs = config["in_channels"] * (2 if config["learn_sigma"] else 1)
    tokens = config["morphology_tokens"]
    pooled, seeds = config["expression_pooling"] == "pma", config["expression_pool_tokens"]
    enters = config["expression_adaln"] or config["expression_cross_attention"]
    faults = {
        f"out_channels is {config['out_channels']}, expected {outputs}": config["out_channels"] != outputs,
        f"the width {width} is not a multiple of 4, as positions need": width % 4 != 0,
        "sample_size is not a multiple of patch_size": config["sample_size"] % config["patch_size"] != 0,
        f"morphology_position needs a square number of vectors, got {tokens}": bool(config["morphology_position"])
        and math.isqrt(tokens) ** 2 != tokens,
        "expression_dim needs expression_adaln or expression_cross_attention, and they need it": enters
        != (config["expression_dim"] is not None),
        "pooling (pma) needs expression_cross_attention and expression_pool_tokens": pooled
        and not (config["expression_cross_attention"] and seeds > 0),
        "expression_pooling must be 'none' or 'pma'": config["expression_pooling"] not in ("none", "pma"),
        "position_embedding must be 'sincos' or 'none'": config["position_embedding"] not in ("sincos", "none"),
    }
    if any(faults.values()):
        listed = "; ".join(text for text, wrong in faults.items() if wrong)
        raise SynthesisError(f"The options of the transformer do not fit: {listed}.")


def check_latents(config: Mapping[str, Any], latents: Tensor, timestep: Tensor) -> None:
    """Raise SynthesisError unless latents are (B, C, H, W) of whole patches and timestep is (B,)."""
    patch, channels = config["patch_size"], config["in_channels"]
    fits = latents.ndim == 4 and latents.shape[1] == channels and min(latents.shape) > 0
    if not fits or any(side % patch for side in latents.shape[2:]):
        expected = f"(batch, {channels}, height, width) with height and width multiples of {patch}"
        raise _shape_error("hidden_states", latents, expected)
    if tuple(timestep.shape) != (latents.shape[0],):
        raise _shape_error("timestep", timestep, f"({latents.shape[0]},): one time for each item")


def check_morphology(config: Mapping[str, Any], given: Tensor | None, null: Tensor | None, batch: int) -> None:
    """Raise SynthesisError unless morphology is (B, T, Dm), (B, Dm) with T = 1, or None and not asked for."""
    _check_null("morphology", given, null, batch)
    if given is None:
        return
    tokens, width = config["morphology_tokens"], config["morphology_dim"]
    if tuple(given.shape) != (batch, tokens, width) and not (tokens == 1 and tuple(given.shape) == (batch, width)):
        raise _shape_error("morphology", given, f"({batch}, {tokens}, {width}): batch, vectors, width")


def check_expression(
    config: Mapping[str, Any], given: Tensor | None, null: Tensor | None, keep: Tensor | None, batch: int
) -> None:
    """Raise SynthesisError unless expression is (B, Dg), (B, G, Dg), or None and not asked for, and keep is (B, G)."""
    width = config["expression_dim"]
    if width is None:
        if given is not None:
            raise SynthesisError("This transformer has no expression condition: give expression=None.")
        return
    _check_null("expression", given, null, batch)
    if given is None:
        return
    fits = given.ndim in (2, 3) and given.shape[0] == batch and given.shape[-1] == width and min(given.shape) > 0
    if not fits:
        raise _shape_error("expression", given, f"({batch}, {width}) or ({batch}, vectors, {width})")
    if keep is None:
        return
    expected = (batch, given.shape[1] if given.ndim == 3 else 1)
    if tuple(keep.shape) != expected or keep.dtype != torch.bool:
        raise _shape_error("expression_keep", keep, f"{expected}, torch.bool")
    needed = keep.any(1) if null is None else keep.any(1) | null
    if not bool(needed.all()):
        raise SynthesisError("expression_keep leaves an item without any vector: mark it in expression_null instead.")


def _check_null(what: str, given: Tensor | None, null: Tensor | None, batch: int) -> None:
    if null is None:
        return
    if tuple(null.shape) != (batch,) or null.dtype != torch.bool:
        raise _shape_error(f"{what}_null", null, f"({batch},), torch.bool")
    if given is None and not bool(null.all()):
        raise SynthesisError(
            f"{what} is None, but {what}_null is False for {int((~null).sum())} of {batch} items: "
            f"give {what}, or True for every item."
        )


def _shape_error(what: str, got: Tensor, expected: str) -> SynthesisError:
    return SynthesisError(
        f"{what} has shape {tuple(got.shape)} ({got.dtype}), but this transformer expects {expected}."
    )


_GELU = (2 * (2 / math.pi) ** 0.5, 2 * (2 / math.pi) ** 0.5 * 0.044715)
"""a and b of 2 z = x (a + b x^2) in the tanh form of GELU, x (1 + tanh(z)) / 2."""
_MAX_WRITTEN_OUT = 1024 * 1024
"""Maximum queries x keys of written-out attention (a head of a 512 px patch): larger scores do not fit a core's cache."""


def linear_gelu(layer: nn.Linear, x: Tensor) -> Tensor:
    """Return gelu(layer(x)) with the tanh form of GELU (Hendrycks & Gimpel, 2016, arXiv 1606.08415); (..., in) -> (..., out)."""
    # on a CPU torch's own GELU costs as much as the matrix product, and so does the one fused with it in float32
    if _inference_on_cpu(x) and x.dtype == torch.float32:
        y: Tensor = layer(x)
        return y.mul_((y * y).mul_(_GELU[1]).add_(_GELU[0]).mul_(y).sigmoid_())  # (1 + tanh(z)) / 2 = sigmoid(2 z)
    if _inference_on_cpu(x) and x.dtype == torch.bfloat16 and _fuses_bfloat16():
        fused: Tensor = torch.ops.mkldnn._linear_pointwise(x, layer.weight, layer.bias, "gelu", [], "tanh")
        return fused
    plain: Tensor = F.gelu(layer(x), approximate="tanh")
    return plain


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """Attend from q (B, N, D) to k and v (B, K, D); ``mask`` (B, 1, 1, K) is False for keys to ignore -> (B, N, D)."""
    batch, tokens, width = q.shape
    # on a CPU torch's bfloat16 attention costs as much as the matrix products around it
    small = tokens * k.shape[1] <= _MAX_WRITTEN_OUT
    if small and mask is None and q.dtype == torch.bfloat16 and _inference_on_cpu(q):
        q, k, v = (y.unflatten(-1, (heads, -1)).transpose(1, 2).flatten(0, 1) for y in (q, k, v))  # (B*A, N or K, D/A)
        scale = (width // heads) ** -0.5
        scores = torch.baddbmm(q.new_zeros(1), q, k.transpose(1, 2), beta=0, alpha=scale)  # (B*A, N, K)
        out = torch.bmm(scores.softmax(-1), v)  # (B*A, N, D/A)
        return out.view(batch, heads, tokens, -1).transpose(1, 2).flatten(2)  # (B, N, D)
    q, k, v = (y.unflatten(-1, (heads, -1)).transpose(1, 2) for y in (q, k, v))  # (B, A, N or K, D/A)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)  # (B, A, N, D/A)
    return out.transpose(1, 2).flatten(2)  # (B, N, D)


def add_product(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Return x + a @ b, in one pass over x (B, N, D) where that keeps its precision."""
    # autocast would lower the precision of x in the fused form
    if torch.is_grad_enabled() or x.dtype != a.dtype or torch.is_autocast_enabled(x.device.type):
        return x + torch.bmm(a, b)
    return torch.baddbmm(x, a, b)


def _inference_on_cpu(x: Tensor) -> bool:
    plain = not (torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling())
    return plain and x.device.type == "cpu"


def _fuses_bfloat16() -> bool:
    """Return whether this build and this CPU have the fused primitive in bfloat16."""
    there = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return there and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


Prediction = Callable[[int, Tensor], Tensor]
"""Function (step from 0, scaled latents (b, c, h, w)) -> guided prediction (b, c, h, w) float32."""


@dataclass(frozen=True)
class ConditionTensors:
    """Conditions of b patches; None where a condition is null for all of them.

    Attributes
    ----------
    morphology
        (b, t, dm) or (b, dm).
    expression
        (b, dg) or (b, g, dg).
    expression_keep
        (b, g) bool, False for expression vectors to ignore; None: none.
    """

    morphology: Tensor | None = None
    expression: Tensor | None = None
    expression_keep: Tensor | None = None


def prediction(
    transformer: Any,
    conditions: ConditionTensors,
    guidance: Sequence[Sequence[Branch]],
    times: Tensor,
    shape: Sequence[int],
) -> Prediction:
    """Prepare the guided prediction of a batch at all its steps.

    Parameters
    ----------
    transformer
        `napari_stmdit.model.transformer.STMDiTTransformer2D`. One without ``prepare`` is called with ``forward`` at every step.
    conditions
        Of the b patches.
    guidance
        The branches of each of the s steps, from `napari_stmdit.model.guidance.branches`.
    times
        (s,) timesteps of the transformer.
    shape
        (b, c, h, w) of the latents.

    Raises
    ------
    SynthesisError
        Shapes do not fit, or a branch asks for a condition that is not given.
    """
    times = on_device(times, transformer.device)
    plan = [tuple(branches) for branches in guidance]
    steps: dict[tuple[Branch, ...], list[int]] = {}
    for step, branches in enumerate(plan):
        steps.setdefault(branches, []).append(step)
    make = _prepared if hasattr(transformer, "prepare") else _plain
    parts = {branches: make(transformer, conditions, branches, times[own], shape) for branches, own in steps.items()}
    place = {step: k for own in steps.values() for k, step in enumerate(own)}
    return lambda step, latents: parts[plan[step]](place[step], latents)


def _plain(
    transformer: Any, conditions: ConditionTensors, guidance: tuple[Branch, ...], times: Tensor, shape: Sequence[int]
) -> Prediction:
    repeated = repeat_conditions(conditions, guidance, shape[0], transformer)

    def predict(step: int, latents: Tensor) -> Tensor:
        batch = latents.repeat(len(guidance), 1, 1, 1)  # (branches * b, c, h, w)
        output = transformer(batch, times[step].expand(len(batch)), **repeated)  # (branches * b, c or 2c, h, w)
        return combined(output, guidance, shape[1])

    return predict


def _prepared(
    transformer: Any, conditions: ConditionTensors, guidance: tuple[Branch, ...], times: Tensor, shape: Sequence[int]
) -> Prediction:
    check_conditions(transformer.config, conditions, guidance, shape[0])
    device = transformer.device
    parts = (conditions.morphology, conditions.expression, conditions.expression_keep)
    prepared = transformer.prepare(
        (shape[2], shape[3]),
        *(None if part is None else on_device(part, device) for part in parts),
        morphology_rows=on_device(_rows([branch.morphology for branch in guidance], shape[0]), device),
        expression_rows=on_device(_rows([branch.expression for branch in guidance], shape[0]), device),
    )
    modulation = transformer.modulation(times, prepared)
    return lambda step, latents: combined(transformer.predict(latents, prepared, modulation, step), guidance, shape[1])


def combined(output: Tensor, guidance: Sequence[Branch], channels: int) -> Tensor:
    """Combine the outputs of all branches, (branches * b, c or 2c, h, w) -> (b, c, h, w) float32."""
    predictions: Sequence[Tensor] = output[:, :channels].float().chunk(len(guidance))
    return combine(predictions, guidance)  # the variance half, if learned, is not used


def repeat_conditions(
    conditions: ConditionTensors, guidance: Sequence[Branch], batch: int, transformer: Any
) -> dict[str, Tensor | None]:
    """Return a plain forward's conditions, repeated for every branch, and where each is null."""
    count, device = len(guidance), transformer.device

    def repeat(tensor: Tensor | None) -> Tensor | None:
        if tensor is None:
            return None
        return tensor.to(device).repeat(count, *(1 for _ in tensor.shape[1:]))

    def null(given: list[bool]) -> Tensor:
        return ~torch.tensor(given, device=device).repeat_interleave(batch)

    return {
        "morphology": repeat(conditions.morphology),
        "expression": repeat(conditions.expression),
        "expression_keep": repeat(conditions.expression_keep),
        "morphology_null": null([branch.morphology for branch in guidance]),
        "expression_null": null([branch.expression for branch in guidance]),
    }


def check_conditions(config: Any, conditions: ConditionTensors, guidance: Sequence[Branch], batch: int) -> None:
    """Raise SynthesisError where conditions do not fit the transformer, or a branch asks for one that is not given."""
    check_morphology(config, conditions.morphology, None, batch)
    check_expression(config, conditions.expression, None, conditions.expression_keep, batch)
    asked = {
        "morphology": any(branch.morphology for branch in guidance) and conditions.morphology is None,
        "expression": any(branch.expression for branch in guidance)
        and conditions.expression is None
        and config["expression_dim"] is not None,
    }
    if lacking := [name for name, missing in asked.items() if missing]:
        raise SynthesisError(f"Guidance asks for {' and '.join(lacking)}, but no such condition is given.")


def on_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device, without waiting where the device is asynchronous."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def _rows(given: Sequence[bool], batch: int) -> Tensor:
    """Return the row of each item, branch after branch: 0 for null, 1 + k for the k-th patch."""
    own = torch.arange(1, batch + 1)  # (b,)
    return torch.cat([own if there else torch.zeros_like(own) for there in given])  # (branches * b,)
