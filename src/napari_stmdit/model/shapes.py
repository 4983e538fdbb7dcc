"""Checks of a transformer's options and of its inputs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import SynthesisError


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
