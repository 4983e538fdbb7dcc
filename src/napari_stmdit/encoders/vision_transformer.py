"""The vision transformer of UNI2-h: DINOv2's, with register tokens, gated feed-forward layers and scaled residuals.

Parameters have the names of the published weights, so that they load as they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .tensors import shape_of

EPS = 1e-6


@dataclass(frozen=True)
class ViTSizes:
    """What a vision transformer is made of.

    Attributes
    ----------
    depth, width, heads
        Blocks, channels and attention heads; the width is a multiple of the heads.
    hidden
        Channels inside the feed-forward layer, after the gate.
    registers
        Tokens beside the class token that carry no place.
    patch, grid
        Pixels along a patch, and patches along the image: the image has patch * grid pixels along each side.
    """

    depth: int
    width: int
    heads: int
    hidden: int
    registers: int
    patch: int
    grid: int

    @property
    def image_px(self) -> int:
        """Pixels along a side of the image that goes in."""
        return self.patch * self.grid


UNI2H = ViTSizes(depth=24, width=1536, heads=24, hidden=4096, registers=8, patch=14, grid=16)
"""UNI2-h: 681,394,176 parameters in 343 tensors."""


class GatedFeedForward(nn.Module):
    """SwiGLU with both halves in one matrix: silu(first half) * second half.

    Source: Shazeer, "GLU Variants Improve Transformer", 2020.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 2 * hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, width) -> (B, N, width)."""
        gate, value = self.fc1(x).chunk(2, dim=-1)  # each (B, N, hidden)
        out: Tensor = self.fc2(F.silu(gate) * value)
        return out


class SelfAttention(nn.Module):
    """Attention among all tokens; the rows of ``qkv`` are queries, keys and values, each by head."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, width) -> (B, N, width)."""
        batch, tokens, width = x.shape
        split = self.qkv(x).view(batch, tokens, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)  # each (B, heads, N, width / heads)
        mixed = F.scaled_dot_product_attention(query, key, value)
        out: Tensor = self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))
        return out


class LayerScale(nn.Module):
    """A learned factor for each channel of a residual. Source: Touvron et al., "Going deeper with image transformers", 2021."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), 1e-5))

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, width) -> (B, N, width)."""
        return x * self.gamma


class ViTBlock(nn.Module):
    """Attention and feed-forward, each normalised before and scaled after."""

    def __init__(self, sizes: ViTSizes) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(sizes.width, eps=EPS)
        self.attn = SelfAttention(sizes.width, sizes.heads)
        self.ls1 = LayerScale(sizes.width)
        self.norm2 = nn.LayerNorm(sizes.width, eps=EPS)
        self.mlp = GatedFeedForward(sizes.width, sizes.hidden)
        self.ls2 = LayerScale(sizes.width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, width) -> (B, N, width)."""
        x = x + self.ls1(self.attn(self.norm1(x)))
        out: Tensor = x + self.ls2(self.mlp(self.norm2(x)))
        return out


class PatchEmbedding(nn.Module):
    """Image patches as tokens, row by row."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, stride=patch)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, H / patch * W / patch, width)."""
        tokens: Tensor = self.proj(images)
        return tokens.flatten(2).transpose(1, 2)


class VisionTransformer(nn.Module):
    """A vision transformer whose answer is its class token.

    Source: Oquab et al., "DINOv2", 2023; Darcet et al., "Vision transformers need registers", 2023; sizes of UNI2-h (Chen et al.,
    "Towards a general-purpose foundation model for computational pathology", 2024) in `UNI2H`.

    Parameters
    ----------
    sizes
        What it is made of.
    """

    def __init__(self, sizes: ViTSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.cls_token = nn.Parameter(torch.zeros(1, 1, sizes.width))
        self.reg_token = nn.Parameter(torch.zeros(1, sizes.registers, sizes.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, sizes.grid**2, sizes.width))
        self.patch_embed = PatchEmbedding(sizes.width, sizes.patch)
        self.blocks = nn.ModuleList(ViTBlock(sizes) for _ in range(sizes.depth))
        self.norm = nn.LayerNorm(sizes.width, eps=EPS)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, image_px, image_px), normalised -> (B, width)."""
        return self.tokens(images)[:, 0]

    def tokens(self, images: Tensor) -> Tensor:
        """Return all tokens after the last norm: (B, 1 + registers + grid * grid, width), class token first."""
        batch = images.shape[0]
        placed = self.patch_embed(images) + self.pos_embed  # class and register tokens have no place
        x = torch.cat([self.cls_token.expand(batch, -1, -1), self.reg_token.expand(batch, -1, -1), placed], dim=1)
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.norm(x)
        return out


def sizes_in(tensors: Mapping[str, Any], default: ViTSizes = UNI2H) -> ViTSizes:
    """Read the sizes off the shapes of a state dict, each by majority; the default's where nothing tells, and its heads.

    A tensor that is missing or of an odd shape therefore stands out in the comparison that follows, whichever it is.
    """
    found = {name: shape_of(value) for name, value in tensors.items()}
    blocks = {int(index) for name in found if name.startswith("blocks.") and (index := name.split(".")[1]).isdecimal()}
    # an absurd index is no depth: it must not make us build that many blocks
    depth = max((index for index in blocks if index < 2 * len(blocks)), default=default.depth - 1) + 1
    one_axis = [
        shape[0]
        for name, shape in found.items()
        if name.endswith(("norm.weight", "norm.bias", ".gamma")) and len(shape) == 1
    ]
    width = _majority((*one_axis, *_axis(found, "cls_token", 2, 3), *_axis(found, "pos_embed", 2, 3)), default.width)
    hidden = [shape[1] for name, shape in found.items() if name.endswith("mlp.fc2.weight") and len(shape) == 2]
    places = _majority(_axis(found, "pos_embed", 1, 3), default.grid**2)
    return ViTSizes(
        depth=depth,
        width=width,
        heads=default.heads,
        hidden=_majority(hidden, default.hidden),
        registers=_majority(_axis(found, "reg_token", 1, 3), default.registers),
        patch=_majority(_axis(found, "patch_embed.proj.weight", 3, 4), default.patch),
        grid=max(round(places**0.5), 1),
    )


def _axis(found: Mapping[str, tuple[int, ...]], name: str, axis: int, rank: int) -> tuple[int, ...]:
    shape = found.get(name, ())
    return (shape[axis],) if len(shape) == rank else ()


def _majority(values: Iterable[int], default: int) -> int:
    counted = Counter(value for value in values if value > 0).most_common(1)
    return counted[0][0] if counted else default
