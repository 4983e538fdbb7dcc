"""`stmdit bench`'s comparison with the straightforward loops, of diffusers' own blocks: `python benchmarks/stock.py [DEVICE]`.

A `StockTransformer` has the weights of one of our transformers, and gives the same up to rounding.
"""

import copy
import json
import sys

import torch
from torch import Tensor, nn

from napari_stmdit.bench.comparisons import against_straightforward
from napari_stmdit.bench.stages import random_base
from napari_stmdit.devices import choose_device
from napari_stmdit.errors import SynthesisError
from napari_stmdit.model.foreign.keys import from_native
from napari_stmdit.model.transformer import STMDiTTransformer2D

PLAIN = {"morphology_tokens": 1, "morphology_expand": 1, "position_embedding": "sincos", "expression_adaln": True}
PLAIN |= dict.fromkeys(("morphology_adaln", "expression_cross_attention", "qk_norm", "ff_conv", "cross_norm"), False)


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
        if other := [name for name, value in PLAIN.items() if config[name] != value]:
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
        self._time: Tensor | None = None
        self.net.adaln_single.emb.register_forward_hook(lambda _module, _input, time: time + self._time)
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
        self._time = self.expression_time(genes)  # (B, D)
        nothing = {"resolution": None, "aspect_ratio": None}
        latents = hidden_states.to(dtype)
        made = self.net(latents, seen, timestep, added_cond_kwargs=nothing, return_dict=False)[0]
        return made  # type: ignore[no-any-return]


def stock_of(transformer: STMDiTTransformer2D) -> StockTransformer:
    """Return diffusers' blocks with the weights of one of ours, on its device and in its precision."""
    return StockTransformer(transformer).to(transformer.device, transformer.dtype)


if __name__ == "__main__":
    device, fast = choose_device(sys.argv[1] if len(sys.argv) > 1 else "auto")
    found = against_straightforward(random_base(device), fast, rounds=5, plain_net=stock_of)
    print(json.dumps({**found, "blocks": "of diffusers (PixArtTransformer2DModel)"}, indent=1))
