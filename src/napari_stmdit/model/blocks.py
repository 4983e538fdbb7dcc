"""What the diffusion transformer is built of: its block, attention, and what is prepared of a condition before the first step.

Letters in the shapes: B batch; N tokens; D width; A heads; F hidden width; K condition tokens; R rows, distinct conditions that the
items of a batch share.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .fused import add_product, attention, linear_gelu

NORM_EPS = 1e-6


@dataclass(frozen=True)
class Context:
    """What a cross-attention needs of its condition tokens, whatever the queries; which fields there are depends on their number.

    Attributes
    ----------
    value
        One token: what it adds to every query, (R, 1, D). A few: values with the output projection and its share of the bias
        applied, (R, A*K, D). Many: (R, K, D).
    query, offset
        A few tokens: keys with the query projection applied, (R, A*K, D), and its bias, (R, A*K, 1); minus infinity in the offset for
        a token that does not count.
    key, mask
        Many tokens: (R, K, D), and (R, 1, 1, K), True for those that count.
    """

    value: Tensor
    query: Tensor | None = None
    offset: Tensor | None = None
    key: Tensor | None = None
    mask: Tensor | None = None

    def rows(self, index: Tensor) -> Context:
        """Return the context of items (B,) that share the rows."""
        return self._each(lambda tensor: tensor[index])

    def tensors(self) -> dict[str, Tensor]:
        """Return the fields that are there."""
        found = ((part.name, getattr(self, part.name)) for part in fields(self))
        return {name: tensor for name, tensor in found if tensor is not None}

    def _each(self, function: Callable[[Tensor], Tensor]) -> Context:
        return Context(**{name: function(tensor) for name, tensor in self.tensors().items()})


class Block(nn.Module):
    """Self-attention, cross-attentions to morphology and to expression, feed-forward; each is added to its input."""

    def __init__(
        self, width: int, heads: int, hidden: int, expression: bool, qk_norm: bool, ff_conv: bool, cross_norm: bool
    ) -> None:
        super().__init__()
        self.modulation = nn.Parameter(torch.zeros(6, width))
        self.self_attention = SelfAttention(width, heads, qk_norm)
        self.morphology_norm = nn.LayerNorm(width, eps=NORM_EPS) if cross_norm else nn.Identity()
        self.morphology_attention = CrossAttention(width, heads)
        self.expression_norm = nn.LayerNorm(width, eps=NORM_EPS) if cross_norm and expression else nn.Identity()
        self.expression_attention = CrossAttention(width, heads) if expression else None
        self.feed_forward = FeedForward(width, hidden, ff_conv)

    def forward(
        self,
        x: Tensor,
        modulation: Tensor,
        morphology: Context,
        genes: Context | None,
        grid: tuple[int, int],
        items: int,
    ) -> Tensor:
        """Map tokens x (b, N, D) to (B, N, D).

        ``modulation`` (B or 1, 6, D) is shift, 1 + scale and gate of self-attention, then of the feed-forward; ``grid`` is (h, w).
        Fewer tokens than B ``items`` are repeated as late as they can be: what comes before a condition is the same for all of its
        branches.
        """
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation.chunk(6, dim=1)  # 6 x (B or 1, 1, D)
        if len(modulation) > 1:
            x = repeat(x, items)  # (B, N, D)
        x = torch.addcmul(x, gate1, self.self_attention(modulate(x, shift1, scale1)))  # (b or B, N, D)
        x = self.morphology_attention.add(repeat(x, items), morphology, self.morphology_norm)  # (B, N, D)
        if self.expression_attention is not None and genes is not None:
            x = self.expression_attention.add(x, genes, self.expression_norm)  # (B, N, D)
        return torch.addcmul(x, gate2, self.feed_forward(modulate(x, shift2, scale2), grid))  # (B, N, D)


class SelfAttention(nn.Module):
    """Attention among the tokens of a patch; queries, keys and values in one product."""

    def __init__(self, width: int, heads: int, qk_norm: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = nn.LayerNorm(width) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(width) if qk_norm else nn.Identity()
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, N, D) to (B, N, D)."""
        q, k, v = self.qkv(x).chunk(3, dim=-1)  # 3 x (B, N, D)
        return self.proj(attention(self.q_norm(q), self.k_norm(k), v, self.heads))  # type: ignore[no-any-return]  # (B, N, D)


class CrossAttention(nn.Module):
    """Attention from tokens to condition tokens, in two parts: `prepare` once a condition, `add` at every step.

    A softmax over one key is 1 whatever the query: with one token every query receives the same vector, and no attention is left.
    With few, it is cheaper to carry the query and output projections over to them than to apply them to every query: (x Wq) k =
    x (Wq k) and (p v) Wo = p (v Wo). The results are the same up to rounding.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor, keep: Tensor | None = None) -> Tensor:
        """Map x (B, N, D) and context (B, K, D) to (B, N, D); keep (B, K) as for `prepare`."""
        return self.add(torch.zeros_like(x), self.prepare(context, keep, x.shape[1]), lambda _: x)  # (B, N, D)

    def prepare(self, context: Tensor, keep: Tensor | None, queries: int) -> Context:
        """Do all that depends on the condition tokens (R, K, D) alone, for so many queries; keep (R, K), True where they count."""
        heads, keys, width = self.heads, context.shape[1], context.shape[2]
        if keys == 1:
            value = F.linear(context, self.kv.weight[width:], self.kv.bias[width:])  # (R, 1, D)
            return Context(self.proj(value))  # (R, 1, D)
        k, v = self.kv(context).chunk(2, dim=-1)  # 2 x (R, K, D)
        if keys + queries * keys * heads // width >= queries:  # products are counted in units of D * D
            return Context(v, key=k, mask=None if keep is None else keep[:, None, None])  # (R, K, D), (R, 1, 1, K)
        k = k.unflatten(-1, (heads, -1)) * (width // heads) ** -0.5  # (R, K, A, D/A)
        v = v.unflatten(-1, (heads, -1))  # (R, K, A, D/A)
        query = torch.einsum("bkad,adm->bakm", k, self.q.weight.unflatten(0, (heads, -1))).flatten(1, 2)  # (R, A*K, D)
        offset = torch.einsum("bkad,ad->bak", k, self.q.bias.unflatten(0, (heads, -1)))  # (R, A, K)
        if keep is not None:
            offset = offset.masked_fill(~keep[:, None], float("-inf"))  # (R, A, K)
        output = self.proj.weight.unflatten(1, (heads, -1))  # (D, A, D/A)
        value = torch.einsum("bkad,mad->bakm", v, output).flatten(1, 2)  # (R, A*K, D)
        value = value + self.proj.bias / heads  # a head's weights sum to 1, so the heads together add the bias once
        return Context(value, query=query, offset=offset.flatten(1)[..., None])

    def add(self, x: Tensor, context: Context, norm: Callable[[Tensor], Tensor]) -> Tensor:
        """Return x (B, N, D) plus what norm(x) draws from the condition."""
        if context.query is None and context.key is None:
            return x + context.value  # (B, N, D) + (B, 1, D)
        normed = norm(x)  # (B, N, D)
        if context.key is not None:
            out = attention(self.q(normed), context.key, context.value, self.heads, context.mask)  # (B, N, D)
            return x + self.proj(out)  # type: ignore[no-any-return]  # (B, N, D)
        assert context.query is not None and context.offset is not None  # they come together
        # tokens last: a softmax over a few numbers that lie side by side is slow
        scores = torch.baddbmm(context.offset, context.query, normed.transpose(1, 2))  # (B, A*K, N)
        weights = scores.unflatten(1, (self.heads, -1)).softmax(2).flatten(1, 2)  # (B, A*K, N)
        return add_product(x, weights.transpose(1, 2), context.value)  # (B, N, D)


class SeedPooling(CrossAttention):
    """A set of tokens pooled to a few by attention from learned seeds (PMA without residual, norm and feed-forward)."""

    def __init__(self, width: int, heads: int, seeds: int) -> None:
        super().__init__(width, heads)
        self.seeds = nn.Parameter(torch.randn(1, seeds, width) * width**-0.5)

    def forward(self, tokens: Tensor, keep: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Map (B, G, D) to (B, seeds, D), or to (B, 1, D) where G = 1: all the pooled tokens are then the same."""
        if tokens.shape[1] == 1:
            return self.prepare(tokens, None, 1).value  # (B, 1, D)
        return super().forward(self.seeds.expand(tokens.shape[0], -1, -1), tokens, keep)


class MLP(nn.Module):
    """Linear, activation, linear."""

    def __init__(self, in_width: int, hidden: int, out_width: int, activation: nn.Module) -> None:
        super().__init__()
        self.fc1 = nn.Linear(in_width, hidden)
        self.activation = activation
        self.fc2 = nn.Linear(hidden, out_width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_width) to (..., out_width)."""
        return self.fc2(self.activation(self.fc1(x)))  # type: ignore[no-any-return]


class FeedForward(nn.Module):
    """The MLP of a block; with ``conv``, a depthwise 3 x 3 convolution over the grid is added after the activation."""

    def __init__(self, width: int, hidden: int, conv: bool) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.conv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden) if conv else None
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Map (B, N, D) to (B, N, D); ``grid`` is (h, w)."""
        y = linear_gelu(self.fc1, x)  # (B, N, F)
        if self.conv is not None:
            image = y.unflatten(1, grid).permute(0, 3, 1, 2)  # (B, F, h, w), channels last in memory
            y = self.conv(image).permute(0, 2, 3, 1).flatten(1, 2).add_(y)  # (B, N, F)
        return self.fc2(y)  # type: ignore[no-any-return]  # (B, N, D)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Normalise (B, N, D) over the width, then multiply by ``scale`` and add ``shift``, both (B or 1, 1, D)."""
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=NORM_EPS), scale)  # (B, N, D)


def repeat(x: Tensor, items: int) -> Tensor:
    """Repeat b items (b, ...), all of them after another, until there are so many."""
    return x if len(x) == items else x.repeat(items // len(x), *(1 for _ in x.shape[1:]))
