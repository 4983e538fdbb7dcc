"""The decoder against a patch discriminator: what makes reconstructions sharp."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..model.autoencoder import StmditAutoencoder
from .config import AutoencoderSettings
from .losses import PatchDiscriminator, TextureLoss, feature_distance, gradient_loss
from .parallel import Worker
from .state import Average

ALONE = 40
"""Steps that the discriminator learns before the decoder hears it; its say then grows over as many."""


class Contest:
    """Decoder and discriminator with their optimizers; the encoder is frozen, so that latents stay what they are.

    Parameters
    ----------
    model
        The autoencoder after its first phase.
    settings
        Rates and weights.
    worker
        On whose device both are put.
    """

    def __init__(self, model: StmditAutoencoder, settings: AutoencoderSettings, worker: Worker) -> None:
        self.model, self.settings, self.worker = worker.place(model), settings, worker
        model.encoder.requires_grad_(False)
        self.judge = worker.place(PatchDiscriminator())
        rate = settings.decoder_rate
        self.optimizer = torch.optim.AdamW(model.decoder.parameters(), lr=rate, betas=(0.5, 0.95))
        self.judge_optimizer = torch.optim.AdamW(self.judge.parameters(), lr=4e-4, betas=(0.5, 0.95))
        self.average = Average(model, 0.98)
        self.texture = worker.place(TextureLoss())
        for network in (model, self.judge):
            channels_last(network)

    def state(self) -> dict[str, Any]:
        """What `load` takes."""
        parts = ("model", "judge", "optimizer", "judge_optimizer")
        return {name: getattr(self, name).state_dict() for name in parts} | {"average": self.average.state()}

    def load(self, state: dict[str, Any]) -> None:
        """Continue from a saved state."""
        for name in ("model", "judge", "optimizer", "judge_optimizer"):
            getattr(self, name).load_state_dict(state[name])
        self.average.load(state["average"])

    def step(self, images: Tensor, step: int) -> dict[str, float]:
        """Take one step of both on images (B, 3, H, W) and return the figures to log."""
        progress = step / self.settings.decoder_steps
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.decoder_rate * (1 if progress < 0.4 else max(0.03, 1 - (progress - 0.4) / 0.6))
        output, figures = self._step_decoder(images, step)
        return figures | {"judge": self._step_judge(images, output)}

    def _step_decoder(self, images: Tensor, step: int) -> tuple[Tensor, dict[str, float]]:
        settings = self.settings
        with torch.no_grad(), self.worker.autocast():
            latents = disturb(self.model.encoder(images), 0.75 * settings.noise)
        self.judge.requires_grad_(False)
        with self.worker.autocast():
            output = self.model.decoder(latents)
            score, features = self.judge(output)
            with torch.no_grad():
                _, real_features = self.judge(images)
        sharp = output.float()
        pixel, edge, grain = (sharp - images).abs().mean(), gradient_loss(sharp, images), self.texture(sharp, images)
        match = feature_distance(features, real_features)
        say = min(1.0, max(0.0, (step - ALONE) / ALONE))
        loss = pixel + 0.3 * edge + 0.5 * grain
        loss = loss + say * (settings.feature_matching * match - settings.adversarial * score.float().mean())
        self.worker.update(loss, [self.optimizer], 0.5)
        self.average.update(self.model)
        return output.detach(), {"pixel": pixel.item(), "texture": grain.item(), "match": match.item()}

    def _step_judge(self, images: Tensor, output: Tensor) -> float:
        self.judge.requires_grad_(True)
        with self.worker.autocast():
            scores, _ = self.judge(torch.cat([images, output.to(images.dtype)]))
        real, made = scores.float().chunk(2)
        loss = F.relu(1 - real).mean() + F.relu(1 + made).mean()
        self.worker.update(loss, [self.judge_optimizer], 10.0)
        return float(loss.item())


def disturb(latents: Tensor, spread: float) -> Tensor:
    """Disturb latents by a random amount for each image: a decoder must stand what a diffusion model leaves behind."""
    amount = torch.randn(len(latents), 1, 1, 1, device=latents.device).abs() * spread
    return latents + amount * torch.randn_like(latents)


def channels_last(module: nn.Module) -> None:
    """Lay a network's weights out with channels last, which is faster on a CPU."""
    for parameter in module.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
