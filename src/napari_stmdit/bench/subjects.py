"""Benchmarked models: a checkpoint, or a transformer and autoencoder of published sizes with random weights."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..assemble import Checkpoint
from ..devices import decoder_on
from ..model.guidance import Branch, branches
from ..model.inference import ConditionTensors
from ..model.transformer import STMDiTTransformer2D
from ..model.vae import latent_channels, spatial_factor

BASE_SIZES: dict[str, Any] = {
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": 2,
    "sample_size": 32,
    "num_layers": 12,
    "num_attention_heads": 12,
    "attention_head_dim": 64,
    "morphology_dim": 1536,
    "expression_dim": 256,
    "expression_adaln": True,
    "position_scale": 0.5,
}
"""DiT-B/2 (Peebles & Xie, 2023, arXiv 2212.09748) on latents of 16 x 32 x 32, one UNI2-h vector, CancerFoundation's in the time."""

SD3_VAE: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 16,
    "norm_num_groups": 32,
    "scaling_factor": 1.5305,
    "shift_factor": 0.0609,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
"""Settings of the SD3.5 autoencoder, for ``AutoencoderKL`` of diffusers."""

STEPS = 20


@dataclass(frozen=True)
class Subject:
    """Transformer, autoencoder and scheduler on their device, with their guidance branches, steps and the side of their latents."""

    name: str
    transformer: STMDiTTransformer2D
    vae: Any
    scheduler: Any
    guidance: tuple[Branch, ...]
    steps: int
    side: int = 32

    @property
    def device(self) -> torch.device:
        """Device of the transformer."""
        return torch.device(self.transformer.device)

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the transformer."""
        found: torch.dtype = self.transformer.dtype
        return found

    def shape(self, batch: int) -> tuple[int, int, int, int]:
        """Return the shape (b, c, h, w) of the latents of ``batch`` patches."""
        return (batch, latent_channels(self.vae), self.side, self.side)

    def conditions(self, batch: int) -> ConditionTensors:
        """Draw conditions of ``batch`` patches, the same at every call."""
        config, generator = self.transformer.config, torch.Generator().manual_seed(1)
        images = torch.randn(batch, config["morphology_tokens"], config["morphology_dim"], generator=generator)
        if config["expression_dim"] is None:
            return ConditionTensors(images)
        return ConditionTensors(images, torch.randn(batch, config["expression_dim"], generator=generator))

    def noise(self, batch: int) -> Tensor:
        """Draw standard normal latents of ``batch`` patches, the same at every call."""
        return torch.randn(self.shape(batch), generator=torch.Generator().manual_seed(0))


def of_checkpoint(checkpoint: Checkpoint) -> Subject:
    """Return a loaded checkpoint as a subject, with its own steps and guidance."""
    card, pipeline = checkpoint.card, checkpoint.pipeline
    scales = card.guidance
    assert scales.rule is not None  # a card states its rule
    expression = "expression" in card.conditions and pipeline.transformer.config["expression_dim"] is not None
    guidance = branches(
        scales.rule,
        1.0 if scales.morphology is None else scales.morphology,
        1.0 if scales.expression is None else scales.expression,
        has_morphology="morphology" in card.conditions,
        has_expression=expression,
    )
    side = card.patch_px // spatial_factor(pipeline.vae)
    return Subject(card.name, pipeline.transformer, pipeline.vae, pipeline.scheduler, guidance, card.steps, side)


def random_base(
    device: torch.device, sizes: dict[str, Any] | None = None, vae_sizes: dict[str, Any] | None = None
) -> Subject:
    """Make a DiT-B/2 and an SD3-style autoencoder of random weights in float32, 20 steps and both guidance scales.

    ``sizes`` and ``vae_sizes`` override some of theirs.
    """
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler

    torch.manual_seed(0)
    transformer = STMDiTTransformer2D(**{**BASE_SIZES, **(sizes or {})}).eval()
    with torch.no_grad():
        for parameter in transformer.parameters():  # what training starts at zero would otherwise be nothing to compute
            parameter.add_(torch.randn(parameter.shape) * 0.02)
    torch.nn.Module.to(transformer, device=device)
    vae = decoder_on(AutoencoderKL(**{**SD3_VAE, **(vae_sizes or {})}), device, torch.float32)
    guidance = branches("nested_morphology_first", 1.5, 2.0, has_morphology=True, has_expression=True)
    side = int(transformer.config["sample_size"])
    return Subject(
        "DiT-B/2 + SD3-style VAE", transformer, vae, FlowMatchEulerDiscreteScheduler(), guidance, STEPS, side
    )


def in_dtype(subject: Subject, dtype: torch.dtype) -> Subject:
    """Return a subject in another precision, a copy where it differs. Start from float32: what was rounded stays rounded."""
    if subject.dtype == dtype:
        return subject
    transformer = copy.deepcopy(subject.transformer)
    torch.nn.Module.to(transformer, dtype=dtype)
    vae = decoder_on(copy.deepcopy(subject.vae), subject.device, dtype)
    return replace(subject, transformer=transformer, vae=vae)
