"""The autoencoder stage: a closed-form start, then the whole of it on pixels and texture, then the decoder for sharpness."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import CheckpointError
from ..model.autoencoder import StmditAutoencoder
from .board import Board
from .config import TrainingConfig
from .contest import Contest, channels_last, disturb
from .data import CropSampler
from .launch import Control, run_workers
from .looks import Looks
from .losses import TextureLoss, gradient_loss
from .opening import open_sampler
from .parallel import Worker
from .pictures import PictureSampler, open_pictures
from .start import open_start, starting_folder, starting_vae
from .state import Average, Clock, Log, load_state, save_state

FIT_CROPS = 400
"""Crops of the closed-form fit."""


def train_autoencoder(config: TrainingConfig, control: Control | None = None) -> Path:
    """Train the autoencoder, or continue, and return the file of its state; of one that a training starts from the decoder at most."""
    if config.start is not None and not config.autoencoder.refine:
        return starting_folder(config) / "vae"
    control = control or Control()
    if config.start is None:
        run_workers(config, control, _whole, config)
    if config.autoencoder.decoder_steps:
        run_workers(config, control, _decoder, config)
    return state_path(config)


def state_path(config: TrainingConfig) -> Path:
    """Return the file that holds the newest autoencoder: of the decoder phase if there is one."""
    decoder = config.output / "autoencoder_decoder.pt"
    return decoder if decoder.is_file() else config.output / "autoencoder.pt"


def load_autoencoder(config: TrainingConfig) -> StmditAutoencoder:
    """Return the trained autoencoder with averaged weights, or fail with what to run first."""
    state = load_state(state_path(config))
    if state is None:
        raise CheckpointError(f"No trained autoencoder in {config.output}; run the stage 'autoencoder' first.")
    model = _first(config)
    refined = state["average"]["weights"]
    if config.start is not None:
        share = config.autoencoder.refined_share
        refined = {name: torch.lerp(own, refined[name], share) for name, own in model.state_dict().items()}
    model.load_state_dict(refined)
    model.eval()
    return model


def _first(config: TrainingConfig) -> StmditAutoencoder:
    """Return the autoencoder as the decoder phase finds it: after the first phase, or of the checkpoint to start from."""
    if config.start is not None:
        vae: StmditAutoencoder = starting_vae(open_start(config)).float()
        return vae
    model = _new(config)
    whole = load_state(config.output / "autoencoder.pt")
    assert whole is not None  # the first phase has ended
    model.load_state_dict(whole["average"]["weights"])
    return model


def _new(config: TrainingConfig) -> StmditAutoencoder:
    """Return an autoencoder of a config's sizes, not yet trained."""
    settings = config.autoencoder
    model: StmditAutoencoder = StmditAutoencoder(
        latent_channels=settings.latent_channels,
        encoder_widths=settings.encoder_widths,
        decoder_widths=settings.decoder_widths,
    )
    return model


def _open_crops(config: TrainingConfig) -> CropSampler | PictureSampler:
    """Open what crops are drawn from: pictures, or sections."""
    return open_pictures(config) if config.pictures else open_sampler(config)


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
    model = _new(config)
    state = load_state(path)
    start = 0 if state is None else int(state["step"])
    if start >= settings.steps:
        return
    sampler = _open_crops(config)
    log, board = open_records(config, worker, "autoencoder", start)
    looks = Looks(config) if worker.leads else None
    if state is None:
        crops = sampler.batch(np.random.default_rng(config.seed), FIT_CROPS, settings.crop_px)
        log.write(phase="linear", psnr=round(model.fit_linear(to_tensor(crops).contiguous()), 2))
    worker.place(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.rate, betas=(0.9, 0.98), weight_decay=1e-4)
    average = Average(model, 0.995)
    if state is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        average.load(state["average"])
    channels_last(model)
    texture, clock = worker.place(TextureLoss()), Clock(config.checkpoint_seconds)
    rng = generator(config, worker, 1, start)
    torch.manual_seed(config.seed + 1000 * worker.rank + start)

    def save(step: int) -> None:
        if worker.leads:
            save_state(
                path, step=step, model=model.state_dict(), optimizer=optimizer.state_dict(), average=average.state()
            )

    step = start
    while step < settings.steps and not worker.stopping:
        for group in optimizer.param_groups:
            group["lr"] = settings.rate * decay(step, settings.steps)
        images = to_tensor(sampler.batch(rng, settings.batch, settings.crop_px)).to(worker.device)
        with worker.autocast():
            output = model.decoder(disturb(model.encoder(images), settings.noise))
        output = output.float()
        pixel, edge, grain = (output - images).abs().mean(), gradient_loss(output, images), texture(output, images)
        worker.update(pixel + 0.5 * edge + 0.5 * grain, [optimizer], 1.0)
        average.update(model)
        if step % 50 == 0:
            psnr = 10 * math.log10(4 / float((output - images).detach().square().mean()))
            figures = {"pixel": pixel.item(), "edge": edge.item(), "texture": grain.item(), "psnr": psnr}
            log.write(phase="whole", step=step, **figures)
            board.scalars(step, {f"autoencoder/{name}": value for name, value in figures.items()})
            worker.report("autoencoder", step, settings.steps, figures["pixel"])
        step += 1
        worker.report("autoencoder", step, settings.steps)
        if looks is not None and looks.due(step):
            log.write(phase="whole", step=step, held_out=looks(average.follow(model)))
        if worker.leads and clock.due():
            save(step)
    save(step)
    board.close()
    worker.wait()


def _decoder(worker: Worker, config: TrainingConfig) -> None:
    settings = config.autoencoder
    path = config.output / "autoencoder_decoder.pt"
    torch.manual_seed(config.seed + 1)
    model = _first(config).train()
    contest = Contest(model, settings, worker)
    state = load_state(path)
    start = 0 if state is None else int(state["step"])
    if start >= settings.decoder_steps:
        return
    if state is not None:
        contest.load(state)
    sampler = _open_crops(config)
    log, board = open_records(config, worker, "autoencoder", start, part="decoder")
    looks = Looks(config) if worker.leads else None
    clock = Clock(config.checkpoint_seconds)
    rng = generator(config, worker, 2, start)
    torch.manual_seed(config.seed + 1000 * worker.rank + start)

    def save(step: int) -> None:
        if worker.leads:
            save_state(path, step=step, **contest.state())

    step = start
    while step < settings.decoder_steps and not worker.stopping:
        images = to_tensor(sampler.batch(rng, settings.batch, settings.crop_px)).to(worker.device)
        figures = contest.step(images, step)
        if step % 50 == 0:
            log.write(phase="decoder", step=step, **figures)
            board.scalars(step, {f"decoder/{name}": value for name, value in figures.items()})
            worker.report("decoder", step, settings.decoder_steps, figures["pixel"])
        step += 1
        worker.report("decoder", step, settings.decoder_steps)
        if looks is not None and looks.due(step):
            log.write(phase="decoder", step=step, held_out=looks(contest.average.follow(contest.model)))
        if worker.leads and clock.due():
            save(step)
    save(step)
    board.close()
    worker.wait()


def open_records(
    config: TrainingConfig, worker: Worker, name: str, start: int, part: str | None = None
) -> tuple[Log, Board]:
    """Open the log and the board of a stage, or of a ``part`` of it; both are silent but in the leading process."""
    folder = config.output / "tensorboard" / (part or name) if worker.leads and config.tensorboard else None
    return Log(config.output / f"{name}.jsonl", worker.leads), Board(folder, start)
