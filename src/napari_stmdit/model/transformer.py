"""The STMDiT diffusion transformer: it predicts noise (or velocity) in latents from morphology and gene expression.

The blocks are those of PixArt (Chen et al., 2024, arXiv 2310.00426: one shared adaLN projection plus a table per block) as PixCell uses
them for histology; the second condition, gene expression, enters through the time embedding (adaLN), through a second cross-attention
in every block, or both, and a set of gene tokens may first be pooled by learned seeds (PMA: Lee et al., 2019, arXiv 1810.00825).

Letters in the shapes: B batch, C/H/W latent channels/height/width, p patch size, h = H/p, w = W/p, N = h*w tokens, D width, A heads,
T morphology vectors of width Dm, G expression vectors of width Dg, E tokens per condition vector, K condition tokens, F hidden width.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from ..errors import SynthesisError

TIME_WIDTH = 256  # width of the sinusoid of the time embedding
NORM_EPS = 1e-6


class STMDiTTransformer2D(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Diffusion transformer over latents, conditioned on morphology vectors and, optionally, on gene expression vectors.

    Parameters
    ----------
    in_channels, out_channels
        Latent channels in and out; ``out_channels`` is twice ``in_channels`` with ``learn_sigma``.
    patch_size, sample_size
        Side of a token in latent pixels, and side of the latents it was trained on (sets the scale of positions).
    num_layers, num_attention_heads, attention_head_dim, mlp_ratio
        Depth, heads, width of a head, and hidden width of the feed-forward over D.
    morphology_dim, morphology_tokens
        Width Dm and number T of the morphology vectors of one patch.
    morphology_position
        Add a stored position embedding (1, T, Dm) to the morphology vectors, real or null.
    morphology_expand, morphology_adaln
        Tokens E each morphology vector is projected to; whether their mean also enters the time embedding.
    expression_dim
        Width Dg of an expression vector; None for a transformer without expression.
    expression_adaln, expression_cross_attention, expression_expand
        Whether expression enters the time embedding, a cross-attention in every block, and tokens E per expression vector.
    expression_pooling, expression_pool_tokens
        ``pma``: the expression tokens are pooled to so many by attention from learned seeds; ``none``: used as they are.
    qk_norm
        LayerNorm over the width of queries and keys.
    ff_conv
        Add a depthwise 3 x 3 convolution inside the feed-forward, after the activation.
    cross_norm
        LayerNorm before each cross-attention.
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
        width = num_attention_heads * attention_head_dim
        self.width = width
        _check_options(dict(self.config), width)
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

        hidden = int(width * mlp_ratio)
        self.blocks = nn.ModuleList(
            Block(width, num_attention_heads, hidden, expression_cross_attention, qk_norm, ff_conv, cross_norm)
            for _ in range(num_layers)
        )
        self.final_modulation = nn.Parameter(torch.zeros(2, width))
        self.final_linear = nn.Linear(width, patch_size**2 * out_channels)
        self.initialise()

    def initialise(self) -> None:
        """Draw weights for training: every block starts as the identity (adaLN-Zero) and the output as zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.patch_embed.weight.flatten(1))
        nn.init.zeros_(self.patch_embed.bias)
        for name, module in self.named_modules():
            if isinstance(module, MLP):
                nn.init.normal_(module.fc1.weight, std=0.02)
                nn.init.normal_(module.fc2.weight, std=0.02)
            closes_a_branch = name.endswith(
                ("morphology_attention.proj", "expression_attention.proj", "feed_forward.conv")
            )
            if closes_a_branch or name in ("time_modulation", "final_linear"):
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
            (B,) bool, True where the null embedding replaces that condition. Not given: null exactly where the condition is None.
        expression_keep
            (B, G) bool, True for the expression vectors that count; at least one an item. Not given: all of them.

        Returns
        -------
        Tensor
            (B, out_channels, H, W).

        Raises
        ------
        SynthesisError
            A shape does not fit, or a condition is None although its mask says that it is needed.
        """
        p = self.config.patch_size
        self._check_input(hidden_states, timestep)
        batch, _, height, width = hidden_states.shape
        rows, columns = height // p, width // p
        dtype = self.patch_embed.weight.dtype

        x = self.patch_embed(hidden_states.to(dtype))  # (B, D, h, w)
        x = x.flatten(2).transpose(1, 2).contiguous()  # (B, N, D)
        if self.position_table is not None:
            x = x + self._positions(rows, columns).to(dtype)  # (B, N, D) + (N, D)

        vectors = self._morphology_vectors(morphology, morphology_null, batch)  # (B, T, Dm)
        tokens = self.morphology_embed(vectors).reshape(batch, -1, self.width)  # (B, T*E, D)
        genes, keep = self._expression_vectors(
            expression, expression_null, expression_keep, batch
        )  # (B, G, Dg), (B, G)

        t = self.time_embed(time_sinusoid(timestep).to(dtype))  # (B, D)
        if self.config.morphology_adaln:
            t = t + self.morphology_time(tokens.mean(1))  # (B, D)
        if genes is not None and self.config.expression_adaln:
            t = t + self.expression_time(_masked_mean(genes, keep))  # (B, D)
        modulation = self.time_modulation(F.silu(t)).reshape(batch, 6, self.width)  # (B, 6, D)
        gene_tokens, gene_keep = self._expression_tokens(genes, keep)  # (B, G*E or pooled, D), (B, G*E)

        for block in self.blocks:
            x = block(x, modulation, tokens, gene_tokens, gene_keep, (rows, columns))  # (B, N, D)

        shift, scale = (self.final_modulation + t[:, None]).chunk(2, dim=1)  # 2 x (B, 1, D)
        x = self.final_linear(_modulate(x, shift, scale))  # (B, N, p*p*out), channel fastest
        x = x.reshape(batch, rows, columns, p, p, -1)  # (B, h, w, p, p, out)
        x = x.permute(0, 5, 1, 3, 2, 4)  # (B, out, h, p, w, p)
        return x.reshape(batch, -1, height, width)  # (B, out, H, W)

    def _positions(self, rows: int, columns: int) -> Tensor:
        """Return the (N, D) position table of this grid: stored for the trained one, computed for others."""
        side = self.config.sample_size // self.config.patch_size
        if (rows, columns) == (side, side):
            stored: Tensor = self.position_table
            return stored
        table = position_table(rows, columns, self.width, side, self.config.position_scale)
        return table.to(self.position_table.device)

    def _morphology_vectors(self, given: Tensor | None, null: Tensor | None, batch: int) -> Tensor:
        expected = (batch, self.config.morphology_tokens, self.config.morphology_dim)
        _check_null("morphology", given, null, batch)
        if given is None:
            vectors = self.morphology_null.expand(batch, -1, -1)  # (B, T, Dm)
        else:
            given = given[:, None] if given.ndim == 2 else given  # (B, T, Dm)
            if tuple(given.shape) != expected:
                raise _shape_error("morphology", tuple(given.shape), f"{expected} (batch, vectors, width)")
            vectors = given.to(self.morphology_null.dtype)
            if null is not None:
                vectors = torch.where(null[:, None, None], self.morphology_null, vectors)  # (B, T, Dm)
        return vectors + self.morphology_position_table if self.config.morphology_position else vectors

    def _expression_vectors(
        self, given: Tensor | None, null: Tensor | None, keep: Tensor | None, batch: int
    ) -> tuple[Tensor | None, Tensor | None]:
        if self.config.expression_dim is None:
            if given is not None:
                raise SynthesisError("This transformer has no expression condition: give expression=None.")
            return None, None
        _check_null("expression", given, null, batch)
        if given is None:
            return self.expression_null.expand(batch, 1, -1), None  # (B, 1, Dg)
        given = given[:, None] if given.ndim == 2 else given  # (B, G, Dg)
        if (
            given.ndim != 3
            or given.shape[0] != batch
            or given.shape[1] < 1
            or given.shape[2] != self.config.expression_dim
        ):
            expected = f"({batch}, {self.config.expression_dim}) or ({batch}, vectors, {self.config.expression_dim})"
            raise _shape_error("expression", tuple(given.shape), expected)
        vectors = given.to(self.expression_null.dtype)
        if null is not None:
            vectors = torch.where(null[:, None, None], self.expression_null, vectors)  # (B, G, Dg)
        if keep is None:
            return vectors, None
        if tuple(keep.shape) != tuple(given.shape[:2]) or keep.dtype != torch.bool:
            raise _shape_error("expression_keep", (*keep.shape, keep.dtype), f"{tuple(given.shape[:2])}, torch.bool")
        keep = keep if null is None else keep | null[:, None]  # (B, G)
        if not bool(keep.any(1).all()):
            raise SynthesisError(
                "expression_keep leaves an item without any vector: mark it in expression_null instead."
            )
        return vectors, keep

    def _expression_tokens(self, genes: Tensor | None, keep: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        if genes is None or not self.config.expression_cross_attention:
            return None, None
        expand = self.config.expression_expand
        tokens = self.expression_embed(genes).reshape(genes.shape[0], -1, self.width)  # (B, G*E, D)
        keep = None if keep is None else keep.repeat_interleave(expand, dim=1)  # (B, G*E)
        if self.config.expression_pooling == "pma":
            return self.expression_pool(tokens, keep), None  # (B, pooled, D)
        return tokens, keep

    def _check_input(self, latents: Tensor, timestep: Tensor) -> None:
        p, channels = self.config.patch_size, self.config.in_channels
        if (
            latents.ndim != 4
            or latents.shape[1] != channels
            or min(latents.shape) < 1
            or any(n % p for n in latents.shape[2:])
        ):
            expected = f"(batch, {channels}, height, width) with height and width multiples of {p}"
            raise _shape_error("hidden_states", tuple(latents.shape), expected)
        if tuple(timestep.shape) != (latents.shape[0],):
            raise _shape_error("timestep", tuple(timestep.shape), f"({latents.shape[0]},): one time for each item")


class Block(nn.Module):
    """Self-attention, cross-attention to morphology, cross-attention to expression, feed-forward; each added to its input."""

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
        morphology: Tensor,
        expression: Tensor | None,
        keep: Tensor | None,
        grid: tuple[int, int],
    ) -> Tensor:
        """Map tokens (B, N, D) to tokens (B, N, D)."""
        parts = (self.modulation + modulation).chunk(6, dim=1)  # 6 x (B, 1, D)
        shift1, scale1, gate1, shift2, scale2, gate2 = parts
        x = torch.addcmul(x, gate1, self.self_attention(_modulate(x, shift1, scale1)))  # (B, N, D)
        x = x + self.morphology_attention(self.morphology_norm(x), morphology)  # (B, N, D)
        if self.expression_attention is not None and expression is not None:
            x = x + self.expression_attention(self.expression_norm(x), expression, keep)  # (B, N, D)
        return torch.addcmul(x, gate2, self.feed_forward(_modulate(x, shift2, scale2), grid))  # (B, N, D)


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
        return self.proj(_attend(self.q_norm(q), self.k_norm(k), v, self.heads))  # (B, N, D)


class CrossAttention(nn.Module):
    """Attention from tokens to condition tokens.

    A condition has few tokens, so it is cheaper to carry the query and output projections over to them than to apply them to every
    token: (x Wq) k = x (Wq k) and (p v) Wo = p (v Wo). The result is the same up to rounding.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor, keep: Tensor | None = None) -> Tensor:
        """Map x (B, N, D) and context (B, K, D) to (B, N, D), or to (B, 1, D) where K = 1.

        A softmax over one key is 1 whatever the query: every token then receives the same vector, and queries and keys are not needed.
        """
        heads, (batch, keys, width) = self.heads, context.shape
        if keys == 1:
            value = F.linear(context, self.kv.weight[width:], self.kv.bias[width:])  # (B, 1, D)
            return self.proj(value)  # type: ignore[no-any-return]  # (B, 1, D)
        k, v = self.kv(context).chunk(2, dim=-1)  # 2 x (B, K, D)
        if keys + x.shape[1] * keys * heads // width >= x.shape[1]:  # products are counted in units of D * D
            return self.proj(_attend(self.q(x), k, v, heads, keep))  # type: ignore[no-any-return]  # (B, N, D)
        k = k.unflatten(-1, (heads, -1)) * (width // heads) ** -0.5  # (B, K, A, D/A)
        v = v.unflatten(-1, (heads, -1))  # (B, K, A, D/A)
        query = torch.einsum("bkad,adm->bmak", k, self.q.weight.unflatten(0, (heads, -1))).flatten(2)  # (B, D, A*K)
        offset = torch.einsum("bkad,ad->bak", k, self.q.bias.unflatten(0, (heads, -1))).flatten(1)  # (B, A*K)
        scores = torch.baddbmm(offset[:, None], x, query).unflatten(-1, (heads, keys))  # (B, N, A, K)
        if keep is not None:
            scores = scores.masked_fill(~keep[:, None, None], float("-inf"))  # (B, N, A, K)
        value = torch.einsum("bkad,mad->bakm", v, self.proj.weight.unflatten(1, (heads, -1))).flatten(
            1, 2
        )  # (B, A*K, D)
        return torch.baddbmm(self.proj.bias, scores.softmax(-1).flatten(2), value)  # (B, N, D)


class SeedPooling(CrossAttention):
    """A set of tokens pooled to a few by attention from learned seeds (PMA without residual, norm and feed-forward)."""

    def __init__(self, width: int, heads: int, seeds: int) -> None:
        super().__init__(width, heads)
        self.seeds = nn.Parameter(torch.randn(1, seeds, width) * width**-0.5)

    def forward(self, tokens: Tensor, keep: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Map (B, G, D) to (B, seeds, D), or to (B, 1, D) where G = 1: all the pooled tokens are then the same."""
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
    """The MLP of a block; with ``conv``, a depthwise 3 x 3 convolution over the token grid is added after the activation."""

    def __init__(self, width: int, hidden: int, conv: bool) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.conv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden) if conv else None
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Map (B, N, D) to (B, N, D); ``grid`` is (h, w)."""
        y = F.gelu(self.fc1(x), approximate="tanh")  # (B, N, F)
        if self.conv is not None:
            image = y.unflatten(1, grid).permute(0, 3, 1, 2)  # (B, F, h, w), channels last in memory
            y = self.conv(image).permute(0, 2, 3, 1).flatten(1, 2).add_(y)  # (B, N, F)
        return self.fc2(y)  # type: ignore[no-any-return]  # (B, N, D)


def _attend(q: Tensor, k: Tensor, v: Tensor, heads: int, keep: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention of q (B, N, D) over k, v (B, K, D), ``keep`` (B, K) True for keys that count -> (B, N, D)."""
    q, k, v = (y.unflatten(-1, (heads, -1)).transpose(1, 2) for y in (q, k, v))  # (B, A, N or K, D/A)
    mask = None if keep is None else keep[:, None, None, :]  # (B, 1, 1, K)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)  # (B, N, D)


def _modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Normalise (B, N, D) over the width, then scale and shift by (B, 1, D)."""
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=NORM_EPS), 1 + scale)  # (B, N, D)


def _masked_mean(vectors: Tensor, keep: Tensor | None) -> Tensor:
    """Mean of (B, G, Dg) over the vectors that count -> (B, Dg)."""
    if keep is None:
        return vectors.mean(1)
    weight = keep[..., None].to(vectors.dtype)  # (B, G, 1)
    return (vectors * weight).sum(1) / weight.sum(1)


def time_sinusoid(timestep: Tensor) -> Tensor:
    """Embed times (B,) as (B, 256) float32: cosines first, then sines, periods up to 10,000."""
    half = TIME_WIDTH // 2
    frequency = torch.exp(
        -math.log(10000) * torch.arange(half, device=timestep.device, dtype=torch.float32) / half
    )  # (128,)
    angle = timestep.float()[:, None] * frequency  # (B, 128)
    return torch.cat([angle.cos(), angle.sin()], dim=1)  # (B, 256)


def _sincos(coordinates: Tensor, width: int) -> Tensor:
    """Embed coordinates (n,) as (n, width): sines, then cosines."""
    omega = 10000.0 ** (-torch.arange(width // 2, dtype=torch.float64) / (width // 2))  # (width/2,)
    angle = coordinates[:, None] * omega  # (n, width/2)
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def position_table(rows: int, columns: int, width: int, base: int, scale: float, phase: float = 0.0) -> Tensor:
    """Fixed 2-D sine-cosine positions (rows*columns, width) float32; the first half of the width encodes the column.

    A grid of any size is stretched over ``base`` positions, then divided by ``scale`` and moved by ``phase``.
    """
    y = torch.arange(rows, dtype=torch.float64) * (base / rows) / scale + phase  # (rows,)
    x = torch.arange(columns, dtype=torch.float64) * (base / columns) / scale + phase  # (columns,)
    by_column = _sincos(x, width // 2)[None].expand(rows, -1, -1)  # (rows, columns, width/2)
    by_row = _sincos(y, width // 2)[:, None].expand(-1, columns, -1)  # (rows, columns, width/2)
    return torch.cat([by_column, by_row], dim=-1).flatten(0, 1).float()


def condition_position_table(tokens: int, width: int, base: int, scale: float) -> Tensor:
    """Positions (1, tokens, width) of condition tokens that tile the patch row by row, centred as PixCell does."""
    side = math.isqrt(tokens)
    return position_table(side, side, width, base, scale, phase=base // tokens)[None].clone()


def _shape_error(what: str, got: tuple[Any, ...], expected: str) -> SynthesisError:
    return SynthesisError(f"{what} has shape {got}, but this transformer expects {expected}.")


def _check_null(what: str, given: Tensor | None, null: Tensor | None, batch: int) -> None:
    if null is not None and (tuple(null.shape) != (batch,) or null.dtype != torch.bool):
        raise _shape_error(f"{what}_null", (*null.shape, null.dtype), f"({batch},), torch.bool")
    if given is None and null is not None and not bool(null.all()):
        raise SynthesisError(f"{what} is None, but {what}_null asks for it in {int((~null).sum())} of {batch} items.")


def _check_options(config: dict[str, Any], width: int) -> None:
    outputs = config["in_channels"] * (2 if config["learn_sigma"] else 1)
    tokens = config["morphology_tokens"]
    expression = config["expression_dim"] is not None
    used = config["expression_adaln"] or config["expression_cross_attention"]
    faults = {
        f"out_channels is {config['out_channels']}, expected {outputs}": config["out_channels"] != outputs,
        f"the width {width} is not a multiple of 4, as positions need": width % 4 != 0,
        "sample_size is not a multiple of patch_size": config["sample_size"] % config["patch_size"] != 0,
        f"morphology_position needs a square number of vectors, got {tokens}": (
            config["morphology_position"] and math.isqrt(tokens) ** 2 != tokens
        ),
        "expression_dim and the ways expression enters (adaLN, cross-attention) must be given together": expression
        != used,
        "pooling (pma) needs expression_cross_attention and expression_pool_tokens": (
            config["expression_pooling"] == "pma"
            and not (config["expression_cross_attention"] and config["expression_pool_tokens"] > 0)
        ),
        "expression_pooling must be 'none' or 'pma'": config["expression_pooling"] not in ("none", "pma"),
        "position_embedding must be 'sincos' or 'none'": config["position_embedding"] not in ("sincos", "none"),
    }
    if any(faults.values()):
        raise SynthesisError(
            "Transformer options do not fit: " + "; ".join(text for text, bad in faults.items() if bad) + "."
        )
