"""The autoencoder stage: a closed-form start, then the whole of it on pixels and texture, then the decoder for sharpness."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ..model.autoencoder import StmditAutoencoder
from .config import TrainingConfig
from .data import CropSampler, load_training_section
from .losses import PatchDiscriminator, TextureLoss, feature_distance, gradient_loss
from .parallel import Worker, run_workers
from .sections import open_source
from .state import Average, Clock, Log, load_state, save_state

FIT_CROPS = 400
"""Crops of the closed-form fit."""


def train_autoencoder(config: TrainingConfig) -> Path:
    """Train the autoencoder, or continue, and return the file of its state."""
    run_workers(config.workers, _whole, config)
    if config.autoencoder.decoder_steps:
        run_workers(config.workers, _decoder, config)
    return state_path(config)


def state_path(config: TrainingConfig) -> Path:
    """Return the file that holds the newest autoencoder: of the decoder phase if there is one."""
    decoder = config.output / "autoencoder_decoder.pt"
    return decoder if decoder.is_file() else config.output / "autoencoder.pt"


def load_autoencoder(config: TrainingConfig) -> StmditAutoencoder:
    """Return the trained autoencoder with averaged weights, or fail with what to run first."""
    from ..errors import CheckpointError

    state = load_state(state_path(config))
    if state is None:
        raise CheckpointError(f"No trained autoencoder in {config.output}; run the stage 'autoencoder' first.")
    model: StmditAutoencoder = StmditAutoencoder(latent_channels=config.autoencoder.latent_channels)
    model.load_state_dict(state["average"]["weights"])
    model.eval()
    return model


def open_sampler(config: TrainingConfig) -> CropSampler:
    """Open the training sections (never the held-out ones) for drawing crops."""
    store = config.output / "pixels"
    sections = [load_training_section(open_source(source, config), config.patch_mpp, store) for source in config.train]
    return CropSampler(sections, config.augmentation)


def to_tensor(crops: NDArray[np.uint8]) -> Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) in [-1, 1], channels last in memory, which convolutions prefer."""
    images = torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 127.5 - 1
    return images.contiguous(memory_format=torch.channels_last)


def channels_last(module: nn.Module) -> None:
    """Lay a network's weights out with channels last, which is faster on a CPU."""
    for parameter in module.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def generator(config: TrainingConfig, worker: Worker, stage: int, step: int) -> np.random.Generator:
    """Return the source of chance of one worker and stage from a step on; a continued run does not repeat its first crops."""
    return np.random.default_rng([config.seed, stage, worker.rank, step])


def decay(step: int, steps: int, warmup: int = 50, last: float = 0.05) -> float:
    """Rate factor: a short rise, then a cosine down to ``last``."""
    return min(1.0, (step + 1) / warmup) * (last + (1 - last) * 0.5 * (1 + math.cos(math.pi * step / steps)))


def _noisy(latents: Tensor, spread: float) -> Tensor:
    """Disturb latents by a random amount for each image: a decoder must stand what a diffusion model leaves behind."""
    amount = torch.randn(len(latents), 1, 1, 1).abs() * spread
    return latents + amount * torch.randn_like(latents)


def _whole(worker: Worker, config: TrainingConfig) -> None:
    settings = config.autoencoder
    path = config.output / "autoencoder.pt"
    torch.manual_seed(config.seed)
    model = StmditAutoencoder(latent_channels=settings.latent_channels)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.rate, betas=(0.9, 0.98), weight_decay=1e-4)
    average = Average(model, 0.995)
    state = load_state(path)
    start = 0 if state is None else int(state["step"])
    if start >= settings.steps:
        return
    sampler = open_sampler(config)
    log = Log(config.output / "autoencoder.jsonl", worker.leads)
    if state is None:
        crops = sampler.batch(np.random.default_rng(config.seed), FIT_CROPS, settings.crop_px)
        log.write(phase="linear", psnr=round(model.fit_linear(to_tensor(crops).contiguous()), 2))
        average = Average(model, 0.995)
    else:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        average.load(state["average"])
    channels_last(model)
    texture, clock = TextureLoss(), Clock(config.checkpoint_seconds)
    rng = generator(config, worker, 1, start)
    torch.manual_seed(config.seed + 1000 * worker.rank + start)

    def save(step: int) -> None:
        if worker.leads:
            save_state(
                path, step=step, model=model.state_dict(), optimizer=optimizer.state_dict(), average=average.state()
            )

    for step in range(start, settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = settings.rate * decay(step, settings.steps)
        images = to_tensor(sampler.batch(rng, settings.batch, settings.crop_px))
        with torch.autocast("cpu", torch.bfloat16):
            output = model.decoder(_noisy(model.encoder(images), settings.noise))
        output = output.float()
        pixel, edge, grain = (output - images).abs().mean(), gradient_loss(output, images), texture(output, images)
        loss = pixel + 0.5 * edge + 0.5 * grain
        optimizer.zero_grad()
        loss.backward()
        worker.average_gradients(model.parameters(), 1.0)
        optimizer.step()
        average.update(model)
        if step % 50 == 0:
            psnr = 10 * math.log10(4 / float((output - images).detach().square().mean()))
            log.write(phase="whole", step=step, pixel=pixel.item(), edge=edge.item(), texture=grain.item(), psnr=psnr)
        if worker.leads and clock.due():
            save(step + 1)
    save(settings.steps)
    worker.wait()


def _decoder(worker: Worker, config: TrainingConfig) -> None:
    settings = config.autoencoder
    path = config.output / "autoencoder_decoder.pt"
    whole = load_state(config.output / "autoencoder.pt")
    assert whole is not None  # the first phase has just ended
    torch.manual_seed(config.seed + 1)
    model = StmditAutoencoder(latent_channels=settings.latent_channels)
    model.load_state_dict(whole["average"]["weights"])
    model.encoder.requires_grad_(False)
    judge = PatchDiscriminator()
    optimizer = torch.optim.AdamW(model.decoder.parameters(), lr=settings.decoder_rate, betas=(0.5, 0.95))
    judge_optimizer = torch.optim.AdamW(judge.parameters(), lr=4e-4, betas=(0.5, 0.95))
    average = Average(model, 0.98)
    state = load_state(path)
    start = 0 if state is None else int(state["step"])
    if start >= settings.decoder_steps:
        return
    if state is not None:
        model.load_state_dict(state["model"])
        judge.load_state_dict(state["judge"])
        optimizer.load_state_dict(state["optimizer"])
        judge_optimizer.load_state_dict(state["judge_optimizer"])
        average.load(state["average"])
    for network in (model, judge):
        channels_last(network)
    sampler = open_sampler(config)
    log, texture, clock = (
        Log(config.output / "autoencoder.jsonl", worker.leads),
        TextureLoss(),
        Clock(config.checkpoint_seconds),
    )
    rng = generator(config, worker, 2, start)
    torch.manual_seed(config.seed + 1000 * worker.rank + start)

    def save(step: int) -> None:
        if worker.leads:
            save_state(
                path,
                step=step,
                model=model.state_dict(),
                judge=judge.state_dict(),
                optimizer=optimizer.state_dict(),
                judge_optimizer=judge_optimizer.state_dict(),
                average=average.state(),
            )

    for step in range(start, settings.decoder_steps):
        progress = step / settings.decoder_steps
        for group in optimizer.param_groups:
            group["lr"] = settings.decoder_rate * (1 if progress < 0.4 else max(0.03, 1 - (progress - 0.4) / 0.6))
        images = to_tensor(sampler.batch(rng, settings.batch, settings.crop_px))
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            latents = _noisy(model.encoder(images), 0.75 * settings.noise)
        judge.requires_grad_(False)
        with torch.autocast("cpu", torch.bfloat16):
            output = model.decoder(latents)
            score, features = judge(output)
            with torch.no_grad():
                _, real_features = judge(images)
        sharp = output.float()
        pixel, edge, grain = (sharp - images).abs().mean(), gradient_loss(sharp, images), texture(sharp, images)
        match = feature_distance(features, real_features)
        # the discriminator learns alone for a while, then its say grows
        say = min(1.0, max(0.0, (step - 40) / 40))
        loss = pixel + 0.3 * edge + 0.5 * grain
        loss = loss + say * (settings.feature_matching * match - settings.adversarial * score.float().mean())
        optimizer.zero_grad()
        loss.backward()
        worker.average_gradients(model.decoder.parameters(), 0.5)
        optimizer.step()
        average.update(model)
        judge.requires_grad_(True)
        with torch.autocast("cpu", torch.bfloat16):
            scores, _ = judge(torch.cat([images, output.detach().to(images.dtype)]))
        real, made = scores.float().chunk(2)
        judge_loss = F.relu(1 - real).mean() + F.relu(1 + made).mean()
        judge_optimizer.zero_grad()
        judge_loss.backward()
        worker.average_gradients(judge.parameters(), 10.0)
        judge_optimizer.step()
        if step % 50 == 0:
            log.write(
                phase="decoder",
                step=step,
                pixel=pixel.item(),
                texture=grain.item(),
                match=match.item(),
                judge=judge_loss.item(),
            )
        if worker.leads and clock.due():
            save(step + 1)
    save(settings.decoder_steps)
    worker.wait()
