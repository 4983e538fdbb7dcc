"""The diffusion stage: rectified flow in latents, conditioned on morphology and expression, each dropped out on its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..model.transformer import STMDiTTransformer2D
from .batches import Batches, batch_loss, flow_losses
from .config import DiffusionSettings, TrainingConfig
from .grids import sample_grid, save_grid
from .latents import load_cache, window_corners
from .parallel import Worker, run_workers
from .start import starting_checkpoint, starting_weights
from .state import Average, Clock, Log, load_state, save_state

SMALL_MODEL: dict[str, Any] = {
    "patch_size": 2,
    "num_layers": 6,
    "num_attention_heads": 3,
    "attention_head_dim": 64,
    "mlp_ratio": 3.0,
    "morphology_tokens": 1,
    "morphology_expand": 4,
    "morphology_adaln": True,
    "expression_adaln": True,
    "expression_cross_attention": True,
    "expression_expand": 4,
    "qk_norm": True,
    "ff_conv": True,
    "cross_norm": True,
    "position_embedding": "none",
}
"""A transformer of 4 million parameters for few data: what a config's ``transformer`` section starts from."""

VALIDATION_SPOTS = 96


def state_path(config: TrainingConfig) -> Path:
    """Return the file of the stage's state."""
    return config.output / "diffusion.pt"


def build_transformer(config: TrainingConfig, cache: dict[str, Tensor]) -> STMDiTTransformer2D:
    """Return an untrained transformer that fits the cache; of the size of the one to start from, where there is one."""
    if config.start is not None:
        settings = dict(starting_checkpoint(config).pipeline.transformer.config)
        started: STMDiTTransformer2D = STMDiTTransformer2D.from_config(settings)
        return started
    channels = cache["latents"].shape[1]
    sizes = {
        "in_channels": channels,
        "out_channels": channels,
        "sample_size": cache["latents"].shape[-1],
        "morphology_dim": cache["morphology"].shape[-1],
        "expression_dim": cache["expression"].shape[-1],
    }
    model: STMDiTTransformer2D = STMDiTTransformer2D(**(SMALL_MODEL | config.transformer | sizes))
    return model


def load_transformer_average(config: TrainingConfig) -> STMDiTTransformer2D:
    """Return the trained transformer with averaged weights, or fail with what to run first."""
    state = load_state(state_path(config))
    if state is None:
        raise CheckpointError(f"No trained transformer in {config.output}; run the stage 'diffusion' first.")
    model = build_transformer(config, load_cache(config))
    model.load_state_dict(state["average"]["weights"])
    model.eval()
    return model


@torch.no_grad()
def quicken(model: STMDiTTransformer2D) -> None:
    """Open what the published initialisation leaves nearly shut.

    Gates and condition embeddings that start at zero are safe in long trainings of large models; in some thousand steps a small
    model must use its conditions from the beginning.
    """
    width = model.width
    for block in model.blocks:
        modulation: Any = block.modulation
        modulation.normal_(std=width**-0.5)
        modulation[2].add_(0.5)  # the two gates
        modulation[5].add_(0.5)
    nn.init.normal_(model.time_modulation.weight, std=0.3 * width**-0.5)
    embedders = [model.time_embed, model.morphology_embed]
    embedders += [getattr(model, name) for name in ("expression_embed", "expression_time") if hasattr(model, name)]
    for mlp in embedders:
        for layer in (mlp.fc1, mlp.fc2):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)


def train_diffusion(config: TrainingConfig) -> Path:
    """Train the transformer, or continue, and return the file of its state."""
    run_workers(config.workers, config.precision, _train, config)
    return state_path(config)


def optimizers(model: nn.Module, settings: DiffusionSettings) -> list[tuple[torch.optim.Optimizer, float]]:
    """Return (optimizer, rate) pairs: Muon for the matrices inside the blocks where torch has it, AdamW for everything else.

    Muon: K. Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks".
    """
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        hidden = parameter.ndim == 2 and name.startswith("blocks.") and "modulation" not in name
        (matrices if hidden else others).append(parameter)
    if not hasattr(torch.optim, "Muon"):
        others, matrices = others + matrices, []
    pairs: list[tuple[torch.optim.Optimizer, float]] = [
        (torch.optim.AdamW(others, lr=settings.rate, betas=(0.9, 0.97), weight_decay=0.0), settings.rate)
    ]
    if matrices:
        muon = torch.optim.Muon(
            matrices, lr=settings.matrix_rate, weight_decay=0.02, momentum=0.95, adjust_lr_fn="match_rms_adamw"
        )
        pairs.append((muon, settings.matrix_rate))
    return pairs


def rate_factor(step: int, settings: DiffusionSettings) -> float:
    """A short rise, a plateau, and a linear fall over the last 60 %."""
    return min(1.0, (step + 1) / settings.warmup) * min(1.0, max(0.03, (1 - step / settings.steps) / 0.6))


def _train(worker: Worker, config: TrainingConfig) -> None:
    settings, path = config.diffusion, state_path(config)
    cache = load_cache(config)
    torch.manual_seed(config.seed)
    model = build_transformer(config, cache)
    if config.start is None:
        quicken(model)
    else:
        model.load_state_dict(starting_weights(config))
    model.to(worker.device)
    pairs = optimizers(model, settings)
    average = Average(model, settings.ema)
    state = load_state(path)
    start = 0 if state is None else int(state["step"])
    if start >= settings.steps:
        return
    if state is not None:
        _continue(state, model, pairs, average)
    if settings.compile:
        for block in model.blocks:
            block.compile(dynamic=False)
    log, clock = Log(config.output / "diffusion.jsonl", worker.leads), Clock(config.checkpoint_seconds)
    batches = Batches(cache, settings, seed=hash_seed(config.seed, worker.rank, start))

    def save(step: int) -> None:
        if worker.leads:
            saved = [optimizer.state_dict() for optimizer, _ in pairs]
            save_state(path, step=step, model=model.state_dict(), optimizers=saved, average=average.state())

    running: float | None = None
    for step in range(start, settings.steps):
        small = step < settings.small_fraction * settings.steps
        count = settings.small_batch if small else settings.batch
        for optimizer, rate in pairs:
            for group in optimizer.param_groups:
                group["lr"] = rate * rate_factor(step, settings)
        losses = batch_loss(worker, model, batches, count, small)
        loss = losses.total(settings.coarse_weight)
        for optimizer, _ in pairs:
            optimizer.zero_grad()
        loss.backward()
        norm = worker.average_gradients(model.parameters(), 1.0)
        for optimizer, _ in pairs:
            optimizer.step()
        if worker.leads:
            average.update(model)
        log.progress("diffusion", step + 1, settings.steps)
        running = loss.item() if running is None else 0.97 * running + 0.03 * loss.item()
        if step % 50 == 0:
            parts = {name: round(part.item(), 6) for name, part in vars(losses).items()}
            log.write(
                step=step,
                small=small,
                loss=round(loss.item(), 6),
                **parts,
                running=round(running, 4),
                norm=round(norm, 3),
            )
        if worker.leads and (step + 1) % settings.validate_every == 0 and "held_latents" in cache:
            log.write(step=step, validation=validate(worker, config, cache, average))
        if worker.leads and settings.sample_every and (step + 1) % settings.sample_every == 0:
            grid = sample_grid(config, cache, build_transformer(config, cache), average.weights)
            save_grid(grid, config.output / "samples" / f"step_{step + 1:06d}_synthetic.png")
            log.picture("synthetic samples", grid, step)
        if worker.leads and clock.due():
            save(step + 1)
    save(settings.steps)
    worker.wait()


def _continue(
    state: dict[str, Any], model: nn.Module, pairs: list[tuple[torch.optim.Optimizer, float]], average: Average
) -> None:
    model.load_state_dict(state["model"])
    for (optimizer, _), saved in zip(pairs, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    average.load(state["average"])


def hash_seed(*parts: int) -> int:
    """Return one seed for several numbers."""
    import numpy as np

    return int(np.random.SeedSequence(parts).generate_state(1)[0])


@torch.no_grad()
def validate(
    worker: Worker, config: TrainingConfig, cache: dict[str, Tensor], average: Average
) -> dict[str, dict[str, float]]:
    """Return the losses of the averaged weights on held-out spots, for every combination of true, shuffled and null conditions.

    Noise and levels are the same every time, so that the figures can be compared.
    """
    model = build_transformer(config, cache)
    model.load_state_dict(average.weights)
    model.to(worker.device).eval()
    rng = torch.Generator().manual_seed(7)
    count = min(VALIDATION_SPOTS, len(cache["held_latents"]))
    rows = torch.randperm(len(cache["held_latents"]), generator=rng)[:count]
    side = config.diffusion.small_cells
    corners = window_corners(cache["latents"].shape[-1], side)
    middle = len(corners) // 2
    top, left = corners[middle]
    x = cache["held_latents"][rows][..., top : top + side, left : left + side].float()
    x = (x - cache["mean"].view(1, -1, 1, 1)) / cache["std"].view(1, -1, 1, 1)
    noise = torch.randn(x.shape, generator=rng)
    level = ((torch.arange(count) + 0.5) / count)[torch.randperm(count, generator=rng)]
    level = config.diffusion.level_shift * level / (1 + (config.diffusion.level_shift - 1) * level)
    morphology, expression = cache["held_morphology"][rows, middle + 1][:, None], cache["held_expression"][rows]
    shuffled = expression.roll(count // 2, 0)
    cases: dict[str, tuple[Tensor | None, Tensor | None]] = {
        "both": (morphology, expression),
        "both_shuffled": (morphology, shuffled),
        "morphology": (morphology, None),
        "expression": (None, expression),
        "expression_shuffled": (None, shuffled),
        "none": (None, None),
    }
    figures = {}
    for name, (m, e) in cases.items():
        losses = flow_losses(worker, model, x, noise, level, morphology=m, expression=e)
        figures[name] = {part: round(value.item(), 4) for part, value in vars(losses).items()}
    return figures
