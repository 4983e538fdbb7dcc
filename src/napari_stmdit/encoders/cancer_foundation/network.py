"""The network of CancerFoundation: a transformer over the set of a cell's genes, each with its binned value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ValueStyle = Literal["plain", "zero_below_zero"]

MAX_VALUE = 512.0


@dataclass(frozen=True)
class NetworkSizes:
    """Sizes of the network: rows of the gene table, width d, layers, attention heads and width of the feed-forward."""

    tokens: int
    width: int
    depth: int
    heads: int
    feed_forward: int


class GeneEncoder(nn.Module):
    """Token of a gene -> layer-normalised embedding."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        # the released class names row 1 the padding; that only keeps its gradient at zero in training
        self.embedding = nn.Embedding(tokens, width)
        self.enc_norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (B, L) int64 to (B, L, d)."""
        found: Tensor = self.enc_norm(self.embedding(tokens))
        return found


class ValueEncoder(nn.Module):
    """Binned value -> embedding by a small perceptron, cut at 512 above and not below.

    Parameters
    ----------
    width
        d.
    style
        ``plain`` sends every value through the perceptron, also the -2 of ``<cls>``, as the released model does;
        ``zero_below_zero`` gives a zero vector for negative values (later training code).
    """

    def __init__(self, width: int, style: ValueStyle) -> None:
        super().__init__()
        self.style = style
        self.linear1 = nn.Linear(1, width)
        self.linear2 = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, values: Tensor) -> Tensor:
        """Map (B, L) to (B, L, d)."""
        columns = values[..., None]  # (B, L, 1)
        coded: Tensor = self.norm(self.linear2(self.linear1(columns.clamp(max=MAX_VALUE)).relu()))
        return coded if self.style == "plain" else torch.where(columns >= 0, coded, torch.zeros_like(coded))


class SelfAttention(nn.Module):
    """Multi-head self-attention with the parameter names of torch's own class.

    The inference path of torch's class is half as fast on a CPU at this length and holds every attention matrix in memory.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))  # rows: queries, keys, values
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, x: Tensor, keep: Tensor | None, first_only: bool) -> Tensor:
        """Map (B, L, d) to (B, L, d), or to (B, 1, d) of the first position; keep (B, 1, 1, L) is False for padding."""
        width = x.shape[-1]
        queries = F.linear(x[:, :1] if first_only else x, self.in_proj_weight[:width], self.in_proj_bias[:width])
        keys, values = F.linear(x, self.in_proj_weight[width:], self.in_proj_bias[width:]).chunk(2, dim=-1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (queries, keys, values))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=keep)  # (B, h, L or 1, d / h)
        out: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return out


class EncoderLayer(nn.Module):
    """Attention and feed-forward, each added and then normalised (post-norm)."""

    def __init__(self, width: int, heads: int, feed_forward: int) -> None:
        super().__init__()
        self.self_attn = SelfAttention(width, heads)
        self.linear1 = nn.Linear(width, feed_forward)
        self.linear2 = nn.Linear(feed_forward, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)

    def forward(self, x: Tensor, keep: Tensor | None, first_only: bool) -> Tensor:
        """Map (B, L, d) to (B, L, d), or (B, 1, d) of the first position alone."""
        own = x[:, :1] if first_only else x
        own = self.norm1(own + self.self_attn(x, keep, first_only))
        out: Tensor = self.norm2(own + self.linear2(self.linear1(own).relu()))
        return out


class CancerFoundationNetwork(nn.Module):
    """Gene and value embeddings, summed, through a post-norm transformer encoder without positions.

    Its parameters have the names of the released loader.
    """

    def __init__(self, sizes: NetworkSizes, value_style: ValueStyle = "plain") -> None:
        super().__init__()
        self.sizes = sizes
        self.value_style = value_style
        self.gene_encoder = GeneEncoder(sizes.tokens, sizes.width)
        self.value_encoder = ValueEncoder(sizes.width, value_style)
        layers = [EncoderLayer(sizes.width, sizes.heads, sizes.feed_forward) for _ in range(sizes.depth)]
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList(layers)})

    def forward(
        self, tokens: Tensor, values: Tensor, padding: Tensor | None = None, first_only: bool = False
    ) -> Tensor:
        """Embed cells as (B, L, d), undefined where padded.

        Parameters
        ----------
        tokens
            (B, L) or (1, L) int64, ``<cls>`` first; (1, L) stands for the same genes in every cell.
        values
            (B, L) binned values, -2 for ``<cls>`` and padding.
        padding
            (B, L) bool, True where there is no gene; None: no padding.
        first_only
            Whether only the embedding at the first position, (B, 1, d), is wanted, which saves most of the last layer.
        """
        x = self.gene_encoder(tokens) + self.value_encoder(values)  # (B, L, d)
        keep = None if padding is None else ~padding[:, None, None]
        layers = list(self.encoder["layers"].children())
        for layer in layers:
            x = layer(x, keep, first_only and layer is layers[-1])
        return x  # type: ignore[no-any-return]
