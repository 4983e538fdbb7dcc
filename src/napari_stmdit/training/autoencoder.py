"""The autoencoder stage: a closed-form start, then the whole of it on pixels and texture, then the decoder for sharpness."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..model.autoencoder import StmditAutoencoder
from .config import TrainingConfig
from .contest import Contest, channels_last, disturb
from .data import CropSampler, load_training_section
from .losses import TextureLoss, gradient_loss
from .parallel import Worker, run_workers
from .sections import open_source
from .start import starting_autoencoder, starting_folder
from .state import Average, Clock, Log, load_state, save_state

FIT_CROPS = 400
"""Crops of the closed-form fit."""


def train_autoencoder(config: TrainingConfig) -> Path:
    """Train the autoencoder, or continue, and return the file of its state; one that a training starts from is kept as it is."""
    if config.start is not None:
        return starting_folder(config) / "vae"
    run_workers(config.workers, config.precision, _whole, config)
    if config.autoencoder.decoder_steps:
        run_workers(config.workers, config.precision, _decoder, config)
    return state_path(config)


def state_path(config: TrainingConfig) -> Path:
    """Return the file that holds the newest autoencoder: of the decoder phase if there is one."""
    decoder = config.output / "autoencoder_decoder.pt"
    return decoder if decoder.is_file() else config.output / "autoencoder.pt"


def load_autoencoder(config: TrainingConfig) -> StmditAutoencoder:
    """Return the trained autoencoder with averaged weights, or the one to start from, or fail with what to run first."""
    from ..errors import CheckpointError

    if config.start is not None:
        return starting_autoencoder(config)
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


def generator(config: TrainingConfig, worker: Worker, stage: int, step: int) -> np.random.Generator:
    """Return the source of chance of one worker and stage from a step on; a continued run does not repeat its first crops."""
    return np.random.default_rng([config.seed, stage, worker.rank, step])


def decay(step: int, steps: int, warmup: int = 50, last: float = 0.05) -> float:
    """Rate factor: a short rise, then a cosine down to ``last``."""
    return min(1.0, (step + 1) / warmup) * (last + (1 - last) * 0.5 * (1 + math.cos(math.pi * step / steps)))


def _whole(worker: Worker, config: TrainingConfig) -> None:
    settings = config.autoencoder
    path = config.output / "autoencoder.pt"
    torch.manual_seed(config.seed)
    model = StmditAutoencoder(latent_channels=settings.latent_channels)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.rate, betas=(0.9, 0.98), weight_decay=1e-4)
    state = load_state(path)
    start = 0 if state is None else int(state["step"])
    if start >= settings.steps:
        return
    sampler = open_sampler(config)
    log = Log(config.output / "autoencoder.jsonl", worker.leads)
    if state is None:
        crops = sampler.batch(np.random.default_rng(config.seed), FIT_CROPS, settings.crop_px)
        log.write(phase="linear", psnr=round(model.fit_linear(to_tensor(crops).contiguous()), 2))
    else:
        model.load_state_dict(state["model"])
    model.to(worker.device)
    average = Average(model, 0.995)
    if state is not None:
        optimizer.load_state_dict(state["optimizer"])
        average.load(state["average"])
    channels_last(model)
    texture, clock = TextureLoss().to(worker.device), Clock(config.checkpoint_seconds)
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
        images = to_tensor(sampler.batch(rng, settings.batch, settings.crop_px)).to(worker.device)
        with worker.autocast():
            output = model.decoder(disturb(model.encoder(images), settings.noise))
        output = output.float()
        pixel, edge, grain = (output - images).abs().mean(), gradient_loss(output, images), texture(output, images)
        loss = pixel + 0.5 * edge + 0.5 * grain
        optimizer.zero_grad()
        loss.backward()
        worker.average_gradients(model.parameters(), 1.0)
        optimizer.step()
        average.update(model)
        log.progress("autoencoder", step + 1, settings.steps)
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
    model: StmditAutoencoder = StmditAutoencoder(latent_channels=settings.latent_channels)
    model.load_state_dict(whole["average"]["weights"])
    contest = Contest(model, settings, worker)
    state = load_state(path)
    start = 0 if state is None else int(state["step"])
    if start >= settings.decoder_steps:
        return
    if state is not None:
        contest.load(state)
    sampler = open_sampler(config)
    log, clock = Log(config.output / "autoencoder.jsonl", worker.leads), Clock(config.checkpoint_seconds)
    rng = generator(config, worker, 2, start)
    torch.manual_seed(config.seed + 1000 * worker.rank + start)

    def save(step: int) -> None:
        if worker.leads:
            save_state(path, step=step, **contest.state())

    for step in range(start, settings.decoder_steps):
        images = to_tensor(sampler.batch(rng, settings.batch, settings.crop_px)).to(worker.device)
        figures = contest.step(images, step)
        log.progress("decoder", step + 1, settings.decoder_steps)
        if step % 50 == 0:
            log.write(phase="decoder", step=step, **figures)
        if worker.leads and clock.due():
            save(step + 1)
    save(settings.decoder_steps)
    worker.wait()
