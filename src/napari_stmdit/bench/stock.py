"""The straightforward ways to do the same, to compare with: diffusers' own blocks, and a loop that saves nothing.

A `StockTransformer` has the weights of one of our transformers, and gives the same up to rounding; so do the loops.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..errors import SynthesisError
from ..model.guidance import Branch, combine
from ..model.inference import ConditionTensors, combined, repeat_conditions
from ..model.keys import from_native
from ..model.sampling import model_time, ready
from ..model.transformer import STMDiTTransformer2D

_PLAIN = {"morphology_tokens": 1, "morphology_expand": 1, "position_embedding": "sincos", "expression_adaln": True}
_PLAIN |= dict.fromkeys(("morphology_adaln", "expression_cross_attention", "qk_norm", "ff_conv", "cross_norm"), False)


class Forward(Protocol):
    """The forward of `STMDiTTransformer2D`: (latents, times, morphology, expression, null masks) -> prediction."""

    @property
    def device(self) -> torch.device:
        """Where it is."""

    def __call__(self, hidden_states: Tensor, timestep: Tensor, **conditions: Tensor | None) -> Tensor:
        """Predict."""


class StockTransformer(nn.Module):
    """``PixArtTransformer2DModel`` of diffusers with the weights of one of ours; expression is added to its time embedding.

    Parameters
    ----------
    ours
        With one morphology token, expression in the time embedding alone, and none of the options that PixArt lacks.

    Raises
    ------
    SynthesisError
        ``ours`` is of another kind.
    """

    morphology_null: Tensor
    expression_null: Tensor

    def __init__(self, ours: STMDiTTransformer2D) -> None:
        from diffusers import PixArtTransformer2DModel

        super().__init__()
        config = ours.config
        if other := [name for name, value in _PLAIN.items() if config[name] != value]:
            raise SynthesisError(f"diffusers has no blocks for a transformer with its own {', '.join(other)}")
        self.net = PixArtTransformer2DModel(
            num_attention_heads=config["num_attention_heads"],
            attention_head_dim=config["attention_head_dim"],
            in_channels=config["in_channels"],
            out_channels=config["out_channels"],
            num_layers=config["num_layers"],
            cross_attention_dim=ours.width,
            sample_size=config["sample_size"],
            patch_size=config["patch_size"],
            interpolation_scale=config["position_scale"],
            use_additional_conditions=False,
            caption_channels=config["morphology_dim"],
        )
        weights = from_native(ours.state_dict(), "diffusers")
        self.net.load_state_dict({name: weights[name] for name in self.net.state_dict()})
        self.expression_time = copy.deepcopy(ours.expression_time)
        self.register_buffer("morphology_null", ours.morphology_null.detach().clone())
        self.register_buffer("expression_null", ours.expression_null.detach().clone())
        self._told: Tensor | None = None
        self.net.adaln_single.emb.register_forward_hook(lambda _module, _input, time: time + self._told)
        self.eval()

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.net.device  # type: ignore[no-any-return]

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        morphology: Tensor,
        expression: Tensor,
        morphology_null: Tensor,
        expression_null: Tensor,
        expression_keep: Tensor | None = None,
    ) -> Tensor:
        """Predict as ours does: latents (B, C, H, W), times (B,), morphology (B, 1, Dm), expression (B, Dg), masks (B,)."""
        dtype = self.net.dtype
        seen = torch.where(morphology_null[:, None, None], self.morphology_null, morphology.to(dtype))  # (B, 1, Dm)
        genes = torch.where(expression_null[:, None], self.expression_null, expression.to(dtype))  # (B, Dg)
        self._told = self.expression_time(genes)  # (B, D)
        nothing = {"resolution": None, "aspect_ratio": None}
        latents = hidden_states.to(dtype)
        made = self.net(latents, seen, timestep, added_cond_kwargs=nothing, return_dict=False)[0]
        return made  # type: ignore[no-any-return]


@torch.inference_mode()
def straightforward(
    net: Forward,
    scheduler: Any,
    noise: Tensor,
    conditions: ConditionTensors,
    guidance: Sequence[Branch],
    steps: int,
    *,
    batched: bool = False,
) -> Tensor:
    """Denoise (b, c, h, w) noise as one would write it down: at every step a forward for every branch, or one for all of them.

    Returns
    -------
    Tensor
        (b, c, h, w) float32.
    """
    scheduler = ready(scheduler, steps)
    latents = noise.to(net.device) * float(getattr(scheduler, "init_noise_sigma", 1.0))
    channels = latents.shape[1]
    for index, time in enumerate(scheduler.timesteps):
        scaled = scheduler.scale_model_input(latents, time) if hasattr(scheduler, "scale_model_input") else latents
        now = model_time(scheduler, index, time).to(net.device)
        if batched:
            many = scaled.repeat(len(guidance), 1, 1, 1)  # (branches * b, c, h, w)
            told = repeat_conditions(conditions, guidance, len(latents), net)
            predicted = combined(net(many, now.expand(len(many)), **told), guidance, channels)
        else:
            parts = []
            for branch in guidance:
                told = repeat_conditions(conditions, [branch], len(latents), net)
                parts.append(net(scaled, now.expand(len(scaled)), **told)[:, :channels].float())
            predicted = combine(parts, guidance)
        latents = scheduler.step(predicted, time, latents, return_dict=False)[0]
    return latents
