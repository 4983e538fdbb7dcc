"""The products that dominate a block, in the form that is fastest where they are computed; results differ by rounding alone.

On a CPU, torch's own GELU and its attention in bfloat16 cost as much as the matrix products around them. In inference a linear map
and its GELU are one oneDNN primitive, and attention in bfloat16 over a patch's tokens is written out. Elsewhere, and wherever
gradients are wanted, both are what torch offers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_WRITTEN_OUT = 1024 * 1024
"""Largest queries x keys whose scores are kept: a head of a 512 px patch. Beyond it they no longer fit a core's cache."""


def linear_gelu(layer: nn.Linear, x: Tensor) -> Tensor:
    """Return gelu(layer(x)) with the tanh form of GELU (Hendrycks & Gimpel, 2016, arXiv 1606.08415); (..., in) -> (..., out)."""
    if _inference_on_cpu(x) and x.dtype in _fusable():
        fused: Tensor = torch.ops.mkldnn._linear_pointwise(x, layer.weight, layer.bias, "gelu", [], "tanh")
        return fused
    plain: Tensor = F.gelu(layer(x), approximate="tanh")
    return plain


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """Attention of q (B, N, D) over k and v (B, K, D); ``mask`` (B, 1, 1, K) is True for keys that count -> (B, N, D)."""
    batch, tokens, width = q.shape
    small = tokens * k.shape[1] <= _WRITTEN_OUT
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
    """Return x + a @ b, in one pass over x (B, N, D) where that keeps its precision: autocast would lower it."""
    if torch.is_grad_enabled() or x.dtype != a.dtype or torch.is_autocast_enabled(x.device.type):
        return x + torch.bmm(a, b)
    return torch.baddbmm(x, a, b)


def _inference_on_cpu(x: Tensor) -> bool:
    plain = not (torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling())
    return plain and x.device.type == "cpu"


def _fusable() -> tuple[torch.dtype, ...]:
    """Precisions in which this build and this CPU have the fused primitive."""
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        return ()
    bfloat16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return (torch.float32, torch.bfloat16) if bfloat16 else (torch.float32,)
