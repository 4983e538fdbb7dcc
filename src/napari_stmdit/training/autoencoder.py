"""The autoencoder stage: a closed-form start, then pixel and texture losses, then the decoder against a patch discriminator."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import CheckpointError
from ..model.autoencoder import StmditAutoencoder
from .config import AutoencoderSettings, TrainingConfig
from .data import CropSampler
from .parallel import Control, Worker, run_workers
from .pictures import HeldOutImages, PictureSampler, open_pictures
from .sections import open_sampler
from .start import open_start, starting_folder, starting_vae
from .state import EMA, load_state, open_records, run_steps, save_state

FIT_CROPS = 400
"""Number of crops of the closed-form fit."""
DISC_START = 40
"""Warm-up in steps: the adversarial weight is 0 before, then rises linearly to its full value over as many steps."""


def luminance(images: Tensor) -> Tensor:
    """Return (B, 1, H, W) weighted means of (B, 3, H, W) that favour green, where haematoxylin and eosin absorb most."""
    weights = images.new_tensor([0.35, 0.4, 0.25]).view(1, 3, 1, 1)
    return (images * weights).sum(dim=1, keepdim=True)


def gradient_loss(output: Tensor, target: Tensor) -> Tensor:
    """Return the mean absolute error of the horizontal and vertical differences of neighbouring pixels."""
    error = output - target
    return error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()


class TextureLoss(nn.Module):
    """Texture loss: energies of 4 x 4 cosine components in overlapping windows, at two scales.

    Unlike a pixel loss it does not reward blur where the exact place of an edge cannot be known.
    """

    def __init__(self, scales: int = 2) -> None:
        super().__init__()
        self.scales = scales
        place = torch.arange(4) + 0.5
        basis = torch.stack([torch.cos(math.pi * k * place / 4) for k in range(4)])
        basis = basis / basis.norm(dim=1, keepdim=True)
        filters = torch.einsum("ai,bj->abij", basis, basis).reshape(16, 1, 4, 4)[1:]  # without the mean
        self.filters: Tensor
        self.register_buffer("filters", filters)

    def energies(self, images: Tensor) -> list[Tensor]:
        """Return the root mean squares of the components: a (B, 15, h, w) tensor for each scale."""
        grey = luminance(images)
        out = []
        for scale in range(self.scales):
            if scale:
                grey = F.avg_pool2d(grey, 2)
            power = F.conv2d(grey, self.filters, stride=2).square()
            out.append((F.avg_pool2d(power, 4, stride=2) + 1e-4).sqrt())
        return out

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the mean absolute difference of the energies, summed over the scales."""
        pairs = zip(self.energies(output), self.energies(target), strict=True)
        return torch.stack([(a - b).abs().mean() for a, b in pairs]).sum()


class PatchDiscriminator(nn.Module):
    """Discriminator of overlapping patches, real or decoded; its features also serve as a perceptual distance."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [
                nn.Conv2d(12, width, 3, padding=1),
                nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
                nn.Conv2d(2 * width, 128, 4, stride=2, padding=1),
                nn.Conv2d(128, 128, 3, padding=1),
            ]
        )
        self.head = nn.Conv2d(128, 1, 3, padding=1)

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return scores (B, 1, H/8, W/8), high for real, and the features of each layer, of images (B, 3, H, W)."""
        x = F.pixel_unshuffle(images, 2)
        features = []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
            features.append(x)
        return self.head(x), features


def feature_distance(output: list[Tensor], target: list[Tensor]) -> Tensor:
    """Return the mean absolute difference of discriminator features, each layer relative to its magnitude."""
    parts = [
        (a.float() - b.float()).abs().mean() / (b.float().abs().mean() + 1e-3)
        for a, b in zip(output, target, strict=True)
    ]
    return torch.stack(parts).mean()


class AdversarialTraining:
    """Decoder and discriminator with their optimizers; the encoder is frozen, so that latents keep their meaning."""

    def __init__(self, model: StmditAutoencoder, settings: AutoencoderSettings, worker: Worker) -> None:
        self.model, self.settings, self.worker = worker.place(model), settings, worker
        model.encoder.requires_grad_(False)
        self.discriminator = worker.place(PatchDiscriminator())
        rate = settings.decoder_rate
        self.optimizer = torch.optim.AdamW(model.decoder.parameters(), lr=rate, betas=(0.5, 0.95))
        self.disc_optimizer = torch.optim.AdamW(self.discriminator.parameters(), lr=4e-4, betas=(0.5, 0.95))
        self.average = EMA(model, 0.98)
        self.texture = worker.place(TextureLoss())
        for network in (model, self.discriminator):
            channels_last(network)

    def _parts(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "judge": self.discriminator,
            "optimizer": self.optimizer,
            "judge_optimizer": self.disc_optimizer,
            "average": self.average,
        }

    def state(self) -> dict[str, Any]:
        """Return the state that `load` takes."""
        return {name: part.state_dict() for name, part in self._parts().items()}

    def load(self, state: dict[str, Any]) -> None:
        """Continue from a saved state."""
        for name, part in self._parts().items():
            part.load_state_dict(state[name])

    def step(self, images: Tensor, step: int) -> dict[str, float]:
        """Train both for a step on images (B, 3, H, W); return the losses to log."""
        progress = step / self.settings.decoder_steps
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.decoder_rate * (1 if progress < 0.4 else max(0.03, 1 - (progress - 0.4) / 0.6))
        output, figures = self._step_decoder(images, step)
        return figures | {"judge": self._step_discriminator(images, output)}

    def _step_decoder(self, images: Tensor, step: int) -> tuple[Tensor, dict[str, float]]:
        settings = self.settings
        with torch.no_grad(), self.worker.autocast():
            latents = add_noise(self.model.encoder(images), 0.75 * settings.noise)
        self.discriminator.requires_grad_(False)
        with self.worker.autocast():
            output = self.model.decoder(latents)
            score, features = self.discriminator(output)
            with torch.no_grad():
                _, real_features = self.discriminator(images)
        sharp = output.float()
        pixel, edge, grain = reconstruction_losses(sharp, images, self.texture)
        match = feature_distance(features, real_features)
        disc_weight = min(1.0, max(0.0, (step - DISC_START) / DISC_START))
        loss = pixel + 0.3 * edge + settings.texture * grain
        loss = loss + disc_weight * (settings.feature_matching * match - settings.adversarial * score.float().mean())
        self.worker.update(loss, [self.optimizer], 0.5)
        self.average.update(self.model)
        return output.detach(), {"pixel": pixel.item(), "texture": grain.item(), "match": match.item()}

    def _step_discriminator(self, images: Tensor, output: Tensor) -> float:
        self.discriminator.requires_grad_(True)
        with self.worker.autocast():
            scores, _ = self.discriminator(torch.cat([images, output.to(images.dtype)]))
        real, made = scores.float().chunk(2)
        loss = F.relu(1 - real).mean() + F.relu(1 + made).mean()
        self.worker.update(loss, [self.disc_optimizer], 10.0)
        return float(loss.item())


def reconstruction_losses(output: Tensor, images: Tensor, texture: TextureLoss) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mean absolute error, and the gradient and texture losses, of float32 images (B, 3, H, W)."""
    return (output - images).abs().mean(), gradient_loss(output, images), texture(output, images)


def add_noise(latents: Tensor, spread: float) -> Tensor:
    """Add noise of a random strength per image: a decoder must tolerate the errors of a diffusion model."""
    amount = torch.randn(len(latents), 1, 1, 1, device=latents.device).abs() * spread
    return latents + amount * torch.randn_like(latents)


def channels_last(module: nn.Module) -> None:
    """Lay a network's weights out with channels last, which is faster on a CPU."""
    for parameter in module.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def train_autoencoder(config: TrainingConfig, control: Control | None = None) -> Path:
    """Train the autoencoder, or continue, and return its state file; with ``start``, train its decoder alone, if at all."""
    if config.start is not None and not config.autoencoder.refine:
        return starting_folder(config) / "vae"
    control = control or Control()
    if config.start is None:
        run_workers(config, control, _whole, config)
    if config.autoencoder.decoder_steps:
        run_workers(config, control, _decoder, config)
    return state_path(config)


def state_path(config: TrainingConfig) -> Path:
    """Return the latest state file: of the decoder phase if there is one."""
    decoder = config.output / "autoencoder_decoder.pt"
    return decoder if decoder.is_file() else config.output / "autoencoder.pt"


def load_autoencoder(config: TrainingConfig) -> StmditAutoencoder:
    """Return the trained autoencoder (EMA weights); raises CheckpointError that names the stage to run first, or to its end."""
    state = load_state(state_path(config))
    if state is None:
        raise CheckpointError(f"No trained autoencoder in {config.output}; run the stage 'autoencoder' first.")
    if config.start is None:
        _check_ended(config)
    model = _first(config)
    refined = state["average"]["weights"]
    if config.start is not None:
        share = config.autoencoder.refined_share
        refined = {name: torch.lerp(own, refined[name], share) for name, own in model.state_dict().items()}
    model.load_state_dict(refined)
    model.eval()
    return model


def _check_ended(config: TrainingConfig) -> None:
    """Raise CheckpointError where the encoder may still change: what it encoded would not fit it any more."""
    state, steps = load_state(config.output / "autoencoder.pt"), config.autoencoder.steps
    if state is not None and state["step"] < steps:
        raise CheckpointError(
            f"The autoencoder in {config.output} is at step {state['step']} of {steps}; run the stage 'autoencoder' to its end first, or ask for "
            f"{state['step']} steps."
        )


def _first(config: TrainingConfig) -> StmditAutoencoder:
    if config.start is not None:
        vae: StmditAutoencoder = starting_vae(open_start(config)).float()
        return vae
    model = _new(config)
    whole = load_state(config.output / "autoencoder.pt")
    assert whole is not None  # the first phase has ended
    model.load_state_dict(whole["average"]["weights"])
    return model


def _new(config: TrainingConfig) -> StmditAutoencoder:
    settings = config.autoencoder
    model: StmditAutoencoder = StmditAutoencoder(
        latent_channels=settings.latent_channels,
        encoder_widths=settings.encoder_widths,
        decoder_widths=settings.decoder_widths,
    )
    return model


def _open_crops(config: TrainingConfig) -> CropSampler | PictureSampler:
    return open_pictures(config) if config.pictures else open_sampler(config)


def to_tensor(crops: NDArray[np.uint8]) -> Tensor:
    """Convert crops (B, H, W, 3) uint8 to (B, 3, H, W) in [-1, 1], channels last in memory, as convolutions prefer."""
    images = torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 127.5 - 1
    return images.contiguous(memory_format=torch.channels_last)


def generator(config: TrainingConfig, worker: Worker, stage: int, step: int) -> np.random.Generator:
    """Return the random generator of a worker and stage; its seed holds the step, so that a continued run draws new crops."""
    return np.random.default_rng([config.seed, stage, worker.rank, step])


def decay(step: int, steps: int, warmup: int = 50, last: float = 0.05) -> float:
    """Return the learning-rate factor of a step: linear warm-up, then a cosine down to ``last``."""
    return min(1.0, (step + 1) / warmup) * (last + (1 - last) * 0.5 * (1 + math.cos(math.pi * step / steps)))


def _whole(worker: Worker, config: TrainingConfig) -> None:
    settings = config.autoencoder
    path = config.output / "autoencoder.pt"
    torch.manual_seed(config.seed)
    model = _new(config)
    state = load_state(path)
    start = 0 if state is None else int(state["step"])
    if start >= settings.steps:
        return
    sampler = _open_crops(config)
    log, board = open_records(config, worker, "autoencoder", start)
    held_out = HeldOutImages(config) if worker.leads else None
    if state is None:
        crops = sampler.batch(np.random.default_rng(config.seed), FIT_CROPS, settings.crop_px)
        log.write(phase="linear", psnr=round(model.fit_linear(to_tensor(crops).contiguous()), 2))
    worker.place(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.rate, betas=(0.9, 0.98), weight_decay=1e-4)
    average = EMA(model, 0.995)
    parts: dict[str, Any] = {"model": model, "optimizer": optimizer, "average": average}
    if state is not None:
        for name, part in parts.items():
            part.load_state_dict(state[name])
    channels_last(model)
    texture = worker.place(TextureLoss())
    rng = generator(config, worker, 1, start)
    torch.manual_seed(config.seed + 1000 * worker.rank + start)

    def take_step(step: int) -> None:
        for group in optimizer.param_groups:
            group["lr"] = settings.rate * decay(step, settings.steps)
        images = to_tensor(sampler.batch(rng, settings.batch, settings.crop_px)).to(worker.device)
        with worker.autocast():
            output = model.decoder(add_noise(model.encoder(images), settings.noise))
        output = output.float()
        pixel, edge, grain = reconstruction_losses(output, images, texture)
        worker.update(pixel + 0.5 * edge + 0.5 * grain, [optimizer], 1.0)
        average.update(model)
        if step % 50 == 0:
            psnr = 10 * math.log10(4 / float((output - images).detach().square().mean()))
            figures = {"pixel": pixel.item(), "edge": edge.item(), "texture": grain.item(), "psnr": psnr}
            log.write(phase="whole", step=step, **figures)
            board.scalars(step, {f"autoencoder/{name}": value for name, value in figures.items()})
            worker.report("autoencoder", step, settings.steps, figures["pixel"])
        if held_out is not None and held_out.due(step + 1):
            log.write(phase="whole", step=step + 1, held_out=held_out.figures(average.follow(model)))

    def save(step: int) -> None:
        save_state(path, step=step, **{name: part.state_dict() for name, part in parts.items()})

    run_steps(worker, "autoencoder", range(start, settings.steps), config.checkpoint_seconds, take_step, save)
    board.close()


def _decoder(worker: Worker, config: TrainingConfig) -> None:
    settings = config.autoencoder
    path = config.output / "autoencoder_decoder.pt"
    torch.manual_seed(config.seed + 1)
    training = AdversarialTraining(_first(config).train(), settings, worker)
    state = load_state(path)
    start = 0 if state is None else int(state["step"])
    if start >= settings.decoder_steps:
        return
    if state is not None:
        training.load(state)
    sampler = _open_crops(config)
    log, board = open_records(config, worker, "autoencoder", start, part="decoder")
    held_out = HeldOutImages(config) if worker.leads else None
    rng = generator(config, worker, 2, start)
    torch.manual_seed(config.seed + 1000 * worker.rank + start)

    def take_step(step: int) -> None:
        images = to_tensor(sampler.batch(rng, settings.batch, settings.crop_px)).to(worker.device)
        figures = training.step(images, step)
        if step % 50 == 0:
            log.write(phase="decoder", step=step, **figures)
            board.scalars(step, {f"decoder/{name}": value for name, value in figures.items()})
            worker.report("decoder", step, settings.decoder_steps, figures["pixel"])
        if held_out is not None and held_out.due(step + 1):
            log.write(
                phase="decoder", step=step + 1, held_out=held_out.figures(training.average.follow(training.model))
            )

    def save(step: int) -> None:
        save_state(path, step=step, **training.state())

    run_steps(worker, "decoder", range(start, settings.decoder_steps), config.checkpoint_seconds, take_step, save)
    board.close()
