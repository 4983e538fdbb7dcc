"""The STMDiT diffusion transformer: it predicts noise (or velocity) in latents from morphology and gene expression.

The blocks are those of PixArt (Chen et al., 2024, arXiv 2310.00426: one adaLN projection for all blocks, a table in each),
as PixCell uses them for histology. The second condition, gene expression, enters through the time embedding (adaLN), a
second cross-attention in every block, or both; a set of gene tokens may first be pooled by learned seeds (Lee et al.,
2019, arXiv 1810.00825).

Letters in the shapes: B batch; C, H, W latent channels, height, width; p patch size; h = H/p, w = W/p; N = h*w tokens;
D width; A heads; T morphology vectors of width Dm; G expression vectors of width Dg; E tokens a vector; K condition
tokens; F hidden width.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from .positions import TIME_WIDTH, condition_position_table, position_table, time_sinusoid
from .shapes import check_expression, check_latents, check_morphology, check_options

NORM_EPS = 1e-6
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
        ``pma``: expression tokens are pooled to so many by attention from learned seeds; ``none``: used as they are.
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
            A shape does not fit, or a condition is None although its mask says that it is needed.
        """
        p, batch = self.config.patch_size, hidden_states.shape[0]
        check_latents(self.config, hidden_states, timestep)
        check_morphology(self.config, morphology, morphology_null, batch)
        check_expression(self.config, expression, expression_null, expression_keep, batch)
        height, width = hidden_states.shape[2:]
        rows, columns = height // p, width // p
        dtype = self.patch_embed.weight.dtype

        x: Tensor = self.patch_embed(hidden_states.to(dtype))  # (B, D, h, w)
        x = x.flatten(2).transpose(1, 2).contiguous()  # (B, N, D)
        if self.position_table is not None:
            x = x + self._positions(rows, columns).to(dtype)  # (B, N, D) + (N, D)

        vectors = self._morphology_vectors(morphology, morphology_null, batch)  # (B, T, Dm)
        tokens = self.morphology_embed(vectors).reshape(batch, -1, self.width)  # (B, T*E, D)
        genes, keep = self._expression_vectors(expression, expression_null, expression_keep, batch)  # (B, G, Dg)

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
            return self.position_table  # type: ignore[no-any-return]  # (N, D)
        return position_table(rows, columns, self.width, side, self.config.position_scale).to(self.device)  # (N, D)

    def _morphology_vectors(self, given: Tensor | None, null: Tensor | None, batch: int) -> Tensor:
        """Put null embeddings in place and add the stored positions -> (B, T, Dm)."""
        if given is None:
            vectors = self.morphology_null.expand(batch, -1, -1)  # (B, T, Dm)
        else:
            vectors = given.to(self.morphology_null.dtype).reshape(batch, *self.morphology_null.shape)  # (B, T, Dm)
            if null is not None:
                vectors = torch.where(null[:, None, None], self.morphology_null, vectors)  # (B, T, Dm)
        return vectors + self.morphology_position_table if self.config.morphology_position else vectors  # (B, T, Dm)

    def _expression_vectors(
        self, given: Tensor | None, null: Tensor | None, keep: Tensor | None, batch: int
    ) -> tuple[Tensor | None, Tensor | None]:
        """Put null embeddings in place -> (B, G, Dg) and which of them count (B, G)."""
        if self.config.expression_dim is None:
            return None, None
        if given is None:
            return self.expression_null.expand(batch, 1, -1), None  # (B, 1, Dg)
        vectors = (given[:, None] if given.ndim == 2 else given).to(self.expression_null.dtype)  # (B, G, Dg)
        if null is not None:
            vectors = torch.where(null[:, None, None], self.expression_null, vectors)  # (B, G, Dg)
            keep = None if keep is None else keep | null[:, None]  # (B, G)
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
        self, x: Tensor, t: Tensor, morphology: Tensor, genes: Tensor | None, keep: Tensor | None, grid: tuple[int, int]
    ) -> Tensor:
        """Map tokens x (B, N, D) to (B, N, D); t (B, 6, D), morphology (B, T*E, D), genes (B, K, D), keep (B, K)."""
        shift1, scale1, gate1, shift2, scale2, gate2 = (self.modulation + t).chunk(6, dim=1)  # 6 x (B, 1, D)
        x = torch.addcmul(x, gate1, self.self_attention(_modulate(x, shift1, scale1)))  # (B, N, D)
        x = x + self.morphology_attention(self.morphology_norm(x), morphology)  # (B, N, D)
        if self.expression_attention is not None:
            x = x + self.expression_attention(self.expression_norm(x), genes, keep)  # (B, N, D)
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
        return self.proj(_attend(self.q_norm(q), self.k_norm(k), v, self.heads))  # type: ignore[no-any-return]  # (B, N, D)


class CrossAttention(nn.Module):
    """Attention from tokens to condition tokens.

    A condition has few tokens: it is cheaper to carry the query and output projections over to them than to apply them
    to every token: (x Wq) k = x (Wq k) and (p v) Wo = p (v Wo). The result is the same up to rounding.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor, keep: Tensor | None = None) -> Tensor:
        """Map x (B, N, D) and context (B, K, D) to (B, N, D), or to (B, 1, D) where K = 1.

        A softmax over one key is 1 whatever the query: every token receives the same vector, and neither is needed.
        """
        heads, keys, width = self.heads, context.shape[1], context.shape[2]
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
    """The MLP of a block; with ``conv``, a depthwise 3 x 3 convolution over the grid is added after the activation."""

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
    """Attention of q (B, N, D) over k and v (B, K, D); ``keep`` (B, K) is True for keys that count -> (B, N, D)."""
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
