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

from typing import Literal, cast

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from .blocks import MLP, Block, SeedPooling, modulate
from .positions import TIME_WIDTH, condition_position_table, position_table, time_sinusoid
from .prepared import Condition, Modulation, Prepared, row_index
from .shapes import check_expression, check_latents, check_morphology, check_options

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
        seen = self._morphology(morphology, morphology_rows is not None, queries).rows(morphology_rows)
        genes = self._expression(expression, expression_keep, expression_rows is not None, queries).rows(
            expression_rows
        )
        given = (morphology_rows, expression_rows, morphology, expression)
        items = next((len(entries) for entries in given if entries is not None), 1)
        positions = None if self.position_table is None else self._positions(*grid).to(self.patch_embed.weight.dtype)
        return Prepared(items, grid, positions, seen, genes)

    def modulation(self, times: Tensor, prepared: Prepared) -> Modulation:
        """Compute what times (S,), shared by all items, do in every block: all steps in one product."""
        time = self.time_embed(time_sinusoid(times).to(self.patch_embed.weight.dtype))  # (S, D)
        return self._modulation(time[:, None], prepared)

    def predict(self, hidden_states: Tensor, prepared: Prepared, modulation: Modulation, step: int) -> Tensor:
        """Predict at a step from 0, with everything prepared.

        ``hidden_states`` (b, C, H, W) may be fewer than the B items prepared: they are repeated, all of them after another ->
        (B, out_channels, H, W).
        """
        p, (rows, columns) = self.config.patch_size, prepared.grid
        x: Tensor = self.patch_embed(hidden_states.to(self.patch_embed.weight.dtype))  # (b, D, h, w)
        x = x.flatten(2).transpose(1, 2).contiguous()  # (b, N, D)
        if prepared.positions is not None:
            x = x + prepared.positions  # (b, N, D) + (N, D)
        tables, shift, scale = modulation.at(step)  # L x (B or 1, 6, D), 2 x (B or 1, 1, D)
        genes = prepared.expression.contexts or (None,) * len(tables)
        for block, table, seen, context in zip(self.blocks, tables, prepared.morphology.contexts, genes, strict=True):
            x = block(x, table, seen, context, prepared.grid, prepared.items)  # (B, N, D)
        x = self.final_linear(modulate(x, shift, scale))  # (B, N, p*p*out), channel fastest
        x = x.reshape(len(x), rows, columns, p, p, -1)  # (B, h, w, p, p, out)
        x = x.permute(0, 5, 1, 3, 2, 4)  # (B, out, h, p, w, p)
        return x.reshape(len(x), -1, rows * p, columns * p)  # (B, out, H, W)

    def _modulation(self, time: Tensor, prepared: Prepared) -> Modulation:
        """Add what conditions say to times (S, B or 1, D), and project for blocks and final layer."""
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
        """Prepare morphology (R, T, Dm) or (R, Dm), with a null row before the others where asked for."""
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
        """Prepare expression (R, Dg) or (R, G, Dg), with a null row before the others where asked for."""
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
    """Mean of (B, G, Dg) over the vectors that count -> (B, Dg)."""
    if keep is None:
        return vectors.mean(1)
    weight = keep[..., None].to(vectors.dtype)  # (B, G, 1)
    return (vectors * weight).sum(1) / weight.sum(1)
