"""Diffusion transformer that predicts the noise or velocity of latents from morphology and gene expression.

`STMDiTTransformer2D.prepare` (conditions) and `STMDiTTransformer2D.modulation` (timesteps) compute once what all steps share;
`STMDiTTransformer2D.predict` then makes a step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import ConfigMixin, ModelMixin, register_to_config
from .inference import (
    add_product,
    attention,
    check_expression,
    check_latents,
    check_morphology,
    check_options,
    linear_gelu,
)

TIME_WIDTH = 256
NORM_EPS = 1e-6


def time_sinusoid(timestep: Tensor) -> Tensor:
    """Embed timesteps (B,), fractions included, as (B, 256) float32: cosines, then sines, of periods up to 2 pi * 10,000."""
    half = TIME_WIDTH // 2
    exponent = -math.log(10000) * (torch.arange(half, dtype=torch.float32, device="cpu") / half)  # (128,)
    # in float64 on the CPU: a frequency's last bit, in which the exponentials of processors differ, shows at timesteps near 1000
    frequency = torch.exp(exponent.double()).float().to(timestep.device)  # (128,)
    angle = timestep.float()[:, None] * frequency  # (B, 128)
    return torch.cat([angle.cos(), angle.sin()], dim=1)  # (B, 256)


def position_table(rows: int, columns: int, width: int, base: int, scale: float, phase: float = 0.0) -> Tensor:
    """Embed the tokens of a grid as (rows * columns, width) float32; the first half of the width encodes the column.

    A grid of any size is stretched over ``base`` positions, then divided by ``scale`` and moved by ``phase``.
    """
    # on the CPU whatever the default device: a network built without storage ("meta") still gets its table
    y = torch.arange(rows, dtype=torch.float64, device="cpu") * (base / rows) / scale + phase  # (rows,)
    x = torch.arange(columns, dtype=torch.float64, device="cpu") * (base / columns) / scale + phase  # (columns,)
    by_column = _sincos(x, width // 2)[None].expand(rows, -1, -1)  # (rows, columns, width/2)
    by_row = _sincos(y, width // 2)[:, None].expand(-1, columns, -1)  # (rows, columns, width/2)
    return torch.cat([by_column, by_row], dim=-1).flatten(0, 1).float()


def condition_position_table(tokens: int, width: int, base: int, scale: float) -> Tensor:
    """Embed condition vectors that tile the patch row by row as (1, tokens, width).

    PixCell's rule: a square grid over the same base as the latents, every coordinate moved by base // tokens.
    """
    side = math.isqrt(tokens)
    return position_table(side, side, width, base, scale, phase=base // tokens)[None]


def _sincos(coordinates: Tensor, width: int) -> Tensor:
    """Embed coordinates (n,) as (n, width): sines, then cosines."""
    omega = 10000.0 ** (-torch.arange(width // 2, dtype=torch.float64, device="cpu") / (width // 2))  # (width/2,)
    angle = coordinates[:, None] * omega  # (n, width/2)
    return torch.cat([angle.sin(), angle.cos()], dim=1)


@dataclass(frozen=True)
class Context:
    """Keys and values of K condition tokens for a cross-attention; K decides which fields are set.

    Attributes
    ----------
    value
        One token: its output, added to every query, (R, 1, D). A few: values after the output projection, (R, A*K, D). Many: (R, K, D).
    query, offset
        A few tokens: keys with the query projection applied, (R, A*K, D), and its bias, (R, A*K, 1); minus infinity in the offset for
        a token that is masked out.
    key, mask
        Many tokens: (R, K, D), and (R, 1, 1, K), False for those masked out.
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
        """Return the fields that are set."""
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
        Where b < B = ``items``, x is repeated only at the first condition: before it all branches are the same.
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
    """Attention from tokens to condition tokens, in two parts: `prepare` once a condition, `add` at every step."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor, keep: Tensor | None = None) -> Tensor:
        """Map x (B, N, D) and context (B, K, D) to (B, N, D); mask ``keep`` (B, K)."""
        return self.add(torch.zeros_like(x), self.prepare(context, keep, x.shape[1]), lambda _: x)  # (B, N, D)

    def prepare(self, context: Tensor, keep: Tensor | None, queries: int) -> Context:
        """Compute keys and values of condition tokens (R, K, D) for N ``queries``; mask ``keep`` (R, K) is False for tokens to ignore."""
        heads, keys, width = self.heads, context.shape[1], context.shape[2]
        if keys == 1:  # a softmax over one key is 1: one vector for all queries
            value = F.linear(context, self.kv.weight[width:], self.kv.bias[width:])  # (R, 1, D)
            return Context(self.proj(value))  # (R, 1, D)
        k, v = self.kv(context).chunk(2, dim=-1)  # 2 x (R, K, D)
        if keys + queries * keys * heads // width >= queries:  # products are counted in units of D * D
            return Context(v, key=k, mask=None if keep is None else keep[:, None, None])  # (R, K, D), (R, 1, 1, K)
        # few keys: project them rather than every query, (x Wq) k = x (Wq k) and (p v) Wo = p (v Wo)
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
        """Return x (B, N, D) plus the attention of norm(x) to the condition."""
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
        """Map (B, G, D) to (B, seeds, D), or to (B, 1, D) where G = 1, as all pooled tokens are then equal."""
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
    """Tile x (b, ...) along the batch to ``items`` entries."""
    return x if len(x) == items else x.repeat(items // len(x), *(1 for _ in x.shape[1:]))


@dataclass(frozen=True)
class Condition:
    """Prepared condition (morphology or expression) of a batch.

    Attributes
    ----------
    contexts
        For the cross-attention of every block; empty where there is none.
    time
        (B, D) its part of the time embedding, or None.
    """

    contexts: tuple[Context, ...] = ()
    time: Tensor | None = None

    def rows(self, index: Tensor | None) -> Condition:
        """Return the condition of items whose rows ``index`` (B,) names; None: each item has its own."""
        if index is None:
            return self
        contexts = tuple(context.rows(index) for context in self.contexts)
        return Condition(contexts, None if self.time is None else self.time[index])


@dataclass(frozen=True)
class Prepared:
    """Conditions prepared for `STMDiTTransformer2D.predict`.

    ``items`` are B, ``grid`` rows and columns of tokens, ``positions`` (N, D) or None.
    """

    items: int
    grid: tuple[int, int]
    positions: Tensor | None
    morphology: Condition
    expression: Condition


@dataclass(frozen=True)
class Modulation:
    """Shifts, scales (as 1 + scale) and gates of all steps.

    Attributes
    ----------
    tables
        (L, 1, 6, D) float32, each block's own.
    blocks
        (S, B or 1, 6, D), shared by all blocks; one row for all items where no condition enters the time embedding.
    final
        (S, B or 1, 2, D), shift and scale of the final layer.
    """

    tables: Tensor
    blocks: Tensor
    final: Tensor

    def at(self, step: int) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
        """Return, of a step from 0, L tables (B or 1, 6, D) and the final shift and scale (B or 1, 1, D)."""
        tables = (self.tables + self.blocks[step]).to(self.blocks.dtype)  # (L, B or 1, 6, D)
        shift, scale = self.final[step].chunk(2, dim=1)  # 2 x (B or 1, 1, D)
        return tables.unbind(0), shift, scale


def row_index(given: Tensor | None, null: Tensor | None, batch: int, device: torch.device) -> Tensor | None:
    """Return the row of each item where row 0 is null and row 1 + k the k-th given; None: each has its own."""
    if given is None:
        return torch.zeros(batch, dtype=torch.long, device=device)  # (B,)
    if null is None:
        return None
    own = torch.arange(1, batch + 1, device=device)  # (B,)
    return own.masked_fill(null.to(device), 0)  # (B,)


STARTS_AT_ZERO = ("morphology_attention.proj", "expression_attention.proj", "conv", "time_modulation", "final_linear")


class STMDiTTransformer2D(ModelMixin, ConfigMixin):
    """Diffusion transformer over latents, conditioned on morphology vectors and, optionally, on expression vectors.

    Parameters
    ----------
    in_channels, out_channels
        Latent channels in and out; ``out_channels`` is twice ``in_channels`` with ``learn_sigma``.
    patch_size, sample_size
        Side of a token in latent pixels, and side of the latents it was trained on (sets the scale of positions).
    num_layers, num_attention_heads, attention_head_dim, mlp_ratio
        Depth, heads, width of a head, and hidden width of the feed-forward over D.
    morphology_dim, morphology_tokens, morphology_position
        Width Dm and number T of the morphology vectors of a patch; whether stored positions (1, T, Dm) are added.
    morphology_expand, morphology_adaln
        Tokens E each morphology vector is projected to; whether their mean also enters the time embedding.
    expression_dim, expression_adaln, expression_cross_attention, expression_expand
        Width Dg of an expression vector (None: no expression); whether it enters the time embedding and a
        cross-attention in every block; tokens E each vector is projected to.
    expression_pooling, expression_pool_tokens
        ``pma``: expression tokens are pooled to this number by attention from learned seeds; ``none``: used as they are.
    qk_norm, ff_conv, cross_norm
        LayerNorm of queries and keys in self-attention; a depthwise 3 x 3 convolution in the feed-forward; LayerNorm
        before the cross-attentions.
    position_embedding, position_scale
        ``sincos`` or ``none``; the interpolation scale of the positions (PixCell: 0.5 at 256 px, 1 at 512, 2 at 1024).
    learn_sigma
        The second half of the output channels holds the learned variance.

    Raises
    ------
    SynthesisError
        The options contradict each other.
    """

    @register_to_config
    def __init__(
        self,
        in_channels: int = 16,
        out_channels: int = 16,
        patch_size: int = 2,
        sample_size: int = 32,
        num_layers: int = 12,
        num_attention_heads: int = 12,
        attention_head_dim: int = 64,
        mlp_ratio: float = 4.0,
        morphology_dim: int = 1536,
        morphology_tokens: int = 1,
        morphology_position: bool = False,
        morphology_expand: int = 1,
        morphology_adaln: bool = False,
        expression_dim: int | None = None,
        expression_adaln: bool = False,
        expression_cross_attention: bool = False,
        expression_expand: int = 1,
        expression_pooling: Literal["none", "pma"] = "none",
        expression_pool_tokens: int = 0,
        qk_norm: bool = False,
        ff_conv: bool = False,
        cross_norm: bool = False,
        position_embedding: Literal["sincos", "none"] = "sincos",
        position_scale: float = 0.5,
        learn_sigma: bool = False,
    ) -> None:
        super().__init__()
        check_options(self.config)
        self.width = width = num_attention_heads * attention_head_dim
        self.patch_embed = nn.Conv2d(in_channels, width, patch_size, stride=patch_size)
        side = sample_size // patch_size
        table = position_table(side, side, width, side, position_scale) if position_embedding == "sincos" else None
        self.register_buffer("position_table", table, persistent=False)

        self.time_embed = MLP(TIME_WIDTH, width, width, nn.SiLU())
        self.time_modulation = nn.Linear(width, 6 * width)

        self.morphology_embed = MLP(morphology_dim, width, width * morphology_expand, nn.GELU("tanh"))
        self.morphology_null = nn.Parameter(torch.randn(morphology_tokens, morphology_dim) * morphology_dim**-0.5)
        if morphology_position:
            stored = condition_position_table(morphology_tokens, morphology_dim, side, position_scale)
            self.register_buffer("morphology_position_table", stored)
        if morphology_adaln:
            self.morphology_time = nn.Linear(width, width)

        if expression_dim is not None:
            self.expression_null = nn.Parameter(torch.randn(1, expression_dim) * expression_dim**-0.5)
        if expression_dim is not None and expression_adaln:
            self.expression_time = MLP(expression_dim, width, width, nn.SiLU())
        if expression_dim is not None and expression_cross_attention:
            self.expression_embed = MLP(expression_dim, width, width * expression_expand, nn.GELU("tanh"))
            if expression_pooling == "pma":
                self.expression_pool = SeedPooling(width, num_attention_heads, expression_pool_tokens)

        sizes = (width, num_attention_heads, int(width * mlp_ratio))
        flags = (expression_cross_attention, qk_norm, ff_conv, cross_norm)
        self.blocks = nn.ModuleList(Block(*sizes, *flags) for _ in range(num_layers))
        self.final_modulation = nn.Parameter(torch.zeros(2, width))
        self.final_linear = nn.Linear(width, patch_size**2 * out_channels)
        self.initialise()

    def initialise(self) -> None:
        """Draw weights for training: every block starts as the identity (adaLN-Zero) and the output as zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
                nn.init.xavier_uniform_(module.weight.flatten(1))
                nn.init.zeros_(module.bias)
        for name, module in self.named_modules():
            if isinstance(module, MLP):
                nn.init.normal_(module.fc1.weight, std=0.02)
                nn.init.normal_(module.fc2.weight, std=0.02)
            if name.endswith(STARTS_AT_ZERO):
                for parameter in module.parameters():
                    nn.init.zeros_(parameter)

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        morphology: Tensor | None = None,
        expression: Tensor | None = None,
        morphology_null: Tensor | None = None,
        expression_null: Tensor | None = None,
        expression_keep: Tensor | None = None,
    ) -> Tensor:
        """Predict the noise or velocity of latents.

        Parameters
        ----------
        hidden_states
            (B, C, H, W) latents; H and W are multiples of the patch size and need not be equal.
        timestep
            (B,) diffusion times between 0 and 1000; fractions are kept.
        morphology
            (B, T, Dm), or (B, Dm) where T = 1; None where every item is null.
        expression
            (B, Dg) or (B, G, Dg); None where every item is null.
        morphology_null, expression_null
            (B,) bool, True where the null embedding replaces that condition. Not given: no item, or all of a None.
        expression_keep
            (B, G) bool, True for the expression vectors that count; at least one an item. Not given: all of them.

        Returns
        -------
        Tensor
            (B, out_channels, H, W).

        Raises
        ------
        SynthesisError
            A shape does not fit, or a condition is None where its mask needs it.
        """
        batch, device = hidden_states.shape[0], hidden_states.device
        check_latents(self.config, hidden_states, timestep)
        check_morphology(self.config, morphology, morphology_null, batch)
        check_expression(self.config, expression, expression_null, expression_keep, batch)
        if expression_keep is not None and expression_null is not None:
            expression_keep = expression_keep | expression_null[:, None]  # (B, G); a null item may keep nothing
        prepared = self.prepare(
            (hidden_states.shape[2], hidden_states.shape[3]),
            morphology,
            expression,
            expression_keep,
            morphology_rows=row_index(morphology, morphology_null, batch, device),
            expression_rows=row_index(expression, expression_null, batch, device),
        )
        time = self.time_embed(time_sinusoid(timestep).to(self.patch_embed.weight.dtype))[None]  # (1, B, D)
        return self.predict(hidden_states, prepared, self._modulation(time, prepared), 0)  # (B, out, H, W)

    def prepare(
        self,
        size: tuple[int, int],
        morphology: Tensor | None = None,
        expression: Tensor | None = None,
        expression_keep: Tensor | None = None,
        *,
        morphology_rows: Tensor | None = None,
        expression_rows: Tensor | None = None,
    ) -> Prepared:
        """Compute once what `predict` needs of the conditions at every step.

        Parameters
        ----------
        size
            Height H and width W of the latents.
        morphology, expression, expression_keep
            As for a forward, one entry for each distinct condition R; None where every item is null.
        morphology_rows, expression_rows
            (B,) long: 0 where an item is null, 1 + k where it has the k-th entry. Not given: B = R, each its own.
        """
        p = self.config.patch_size
        grid = (size[0] // p, size[1] // p)
        queries = grid[0] * grid[1]
        images = self._morphology(morphology, morphology_rows is not None, queries).rows(morphology_rows)
        genes = self._expression(expression, expression_keep, expression_rows is not None, queries).rows(
            expression_rows
        )
        given = (morphology_rows, expression_rows, morphology, expression)
        items = next((len(entries) for entries in given if entries is not None), 1)
        positions = None if self.position_table is None else self._positions(*grid).to(self.patch_embed.weight.dtype)
        return Prepared(items, grid, positions, images, genes)

    def modulation(self, times: Tensor, prepared: Prepared) -> Modulation:
        """Compute the modulation of every block at timesteps (S,), shared by all items."""
        time = self.time_embed(time_sinusoid(times).to(self.patch_embed.weight.dtype))  # (S, D)
        return self._modulation(time[:, None], prepared)

    def predict(self, hidden_states: Tensor, prepared: Prepared, modulation: Modulation, step: int) -> Tensor:
        """Predict at a step from 0.

        ``hidden_states`` (b, C, H, W) are repeated as a whole to the B items prepared -> (B, out_channels, H, W).
        """
        p, (rows, columns) = self.config.patch_size, prepared.grid
        x: Tensor = self.patch_embed(hidden_states.to(self.patch_embed.weight.dtype))  # (b, D, h, w)
        x = x.flatten(2).transpose(1, 2).contiguous()  # (b, N, D)
        if prepared.positions is not None:
            x = x + prepared.positions  # (b, N, D) + (N, D)
        tables, shift, scale = modulation.at(step)  # L x (B or 1, 6, D), 2 x (B or 1, 1, D)
        genes = prepared.expression.contexts or (None,) * len(tables)
        for block, table, image, context in zip(self.blocks, tables, prepared.morphology.contexts, genes, strict=True):
            x = block(x, table, image, context, prepared.grid, prepared.items)  # (B, N, D)
        x = self.final_linear(modulate(x, shift, scale))  # (B, N, p*p*out), channel fastest
        x = x.reshape(len(x), rows, columns, p, p, -1)  # (B, h, w, p, p, out)
        x = x.permute(0, 5, 1, 3, 2, 4)  # (B, out, h, p, w, p)
        return x.reshape(len(x), -1, rows * p, columns * p)  # (B, out, H, W)

    def _modulation(self, time: Tensor, prepared: Prepared) -> Modulation:
        """Add the conditions to time embeddings (S, B or 1, D), and project them for blocks and final layer."""
        for condition in (prepared.morphology, prepared.expression):
            if condition.time is not None:
                time = time + condition.time  # (S, B, D)
        shared = self.time_modulation(F.silu(time)).unflatten(-1, (6, self.width))  # (S, B or 1, 6, D)
        tables = torch.stack([block.modulation for block in self._stack])[:, None].float()  # (L, 1, 6, D)
        tables = tables + tables.new_tensor([0, 1, 0, 0, 1, 0])[:, None]  # scales multiply as 1 + scale
        final = self.final_modulation + time[:, :, None]  # (S, B or 1, 2, D)
        return Modulation(tables, shared, final + final.new_tensor([0, 1])[:, None])

    @property
    def _stack(self) -> list[Block]:
        return cast("list[Block]", list(self.blocks))

    def _positions(self, rows: int, columns: int) -> Tensor:
        """Return the (N, D) position table of this grid: stored for the trained one, computed for others."""
        side = self.config.sample_size // self.config.patch_size
        if (rows, columns) == (side, side):
            return self.position_table  # type: ignore[no-any-return]  # (N, D)
        return position_table(rows, columns, self.width, side, self.config.position_scale).to(self.device)  # (N, D)

    def _morphology(self, given: Tensor | None, null: bool, queries: int) -> Condition:
        """Prepare morphology (R, T, Dm) or (R, Dm); with ``null`` a null row comes first."""
        absent = self.morphology_null[None]  # (1, T, Dm)
        if given is None:
            vectors = absent  # (1, T, Dm)
        else:
            vectors = given.to(absent.device, absent.dtype).reshape(-1, *absent.shape[1:])  # (R, T, Dm)
            vectors = torch.cat([absent, vectors]) if null else vectors  # (R or 1 + R, T, Dm)
        if self.config.morphology_position:
            vectors = vectors + self.morphology_position_table  # (R, T, Dm)
        tokens = self.morphology_embed(vectors).reshape(len(vectors), -1, self.width)  # (R, T*E, D)
        contexts = tuple(block.morphology_attention.prepare(tokens, None, queries) for block in self._stack)
        return Condition(contexts, self.morphology_time(tokens.mean(1)) if self.config.morphology_adaln else None)

    def _expression(self, given: Tensor | None, keep: Tensor | None, null: bool, queries: int) -> Condition:
        """Prepare expression (R, Dg) or (R, G, Dg); with ``null`` a null row comes first."""
        if self.config.expression_dim is None:
            return Condition()
        absent = self.expression_null[None]  # (1, 1, Dg)
        if given is None:
            vectors, keep = absent, None  # (1, 1, Dg)
        else:
            vectors = (given[:, None] if given.ndim == 2 else given).to(absent.device, absent.dtype)  # (R, G, Dg)
            keep = None if keep is None else keep.to(absent.device)  # (R, G)
            if null:
                vectors = torch.cat([absent.expand(1, vectors.shape[1], -1), vectors])  # (1 + R, G, Dg)
                keep = None if keep is None else torch.cat([keep.new_ones(1, keep.shape[1]), keep])  # (1 + R, G)
        time = self.expression_time(_masked_mean(vectors, keep)) if self.config.expression_adaln else None  # (R, D)
        if not self.config.expression_cross_attention:
            return Condition((), time)
        tokens = self.expression_embed(vectors).reshape(len(vectors), -1, self.width)  # (R, G*E, D)
        keep = None if keep is None else keep.repeat_interleave(self.config.expression_expand, dim=1)  # (R, G*E)
        if self.config.expression_pooling == "pma":
            tokens, keep = self.expression_pool(tokens, keep), None  # (R, pooled, D)
        attentions = [block.expression_attention for block in self._stack]
        contexts = tuple(part.prepare(tokens, keep, queries) for part in attentions if part is not None)
        return Condition(contexts, time)


def _masked_mean(vectors: Tensor, keep: Tensor | None) -> Tensor:
    """Return the mean (B, Dg) of (B, G, Dg) over the vectors to keep."""
    if keep is None:
        return vectors.mean(1)
    weight = keep[..., None].to(vectors.dtype)  # (B, G, 1)
    return (vectors * weight).sum(1) / weight.sum(1)
