"""The diffusion stage: rectified flow in latents, conditioned on morphology and expression, each dropped out on its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..model.transformer import STMDiTTransformer2D
from .config import DiffusionSettings, TrainingConfig
from .latents import load_cache
from .parallel import Worker, run_workers
from .state import Average, Clock, Log, load_state, save_state

TIME_SCALE = 1000.0
"""The transformer's time is the noise level (0 to 1) times this."""

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
    """Return an untrained transformer that fits the cache."""
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
    run_workers(config.workers, _train, config)
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


class Batches:
    """Draws training batches from the cache.

    Parameters
    ----------
    cache
        From `load_cache`.
    settings
        Shares of the conditions and their noise.
    seed
        Source of chance.
    """

    def __init__(self, cache: dict[str, Tensor], settings: DiffusionSettings, seed: int) -> None:
        self.latents = cache["latents"]
        self.mean, self.std = cache["mean"].view(1, -1, 1, 1), cache["std"].view(1, -1, 1, 1)
        self.morphology, self.expression = cache["morphology"], cache["expression"]
        self.settings = settings
        self.rng = torch.Generator().manual_seed(seed)

    def draw(self, count: int, side: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return latents (B, C, side, side), morphology (B, 1, d), expression (B, e) and the two null masks (B,)."""
        rng, settings = self.rng, self.settings
        rows = torch.randint(len(self.latents), (count,), generator=rng)
        x = self.latents[rows].float()
        spare = x.shape[-1] - side
        if spare:
            corners = torch.randint(spare + 1, (count, 2), generator=rng).tolist()
            x = torch.stack([item[:, r : r + side, c : c + side] for item, (r, c) in zip(x, corners, strict=True)])
        x = (x - self.mean) / self.std
        variant = torch.randint(self.expression.shape[1], (count,), generator=rng)
        morphology = self._disturb(self.morphology[rows])
        expression = self._disturb(self.expression[rows, variant])
        lot = torch.rand(count, generator=rng)
        both = settings.share_both
        expression_only = (lot >= both) & (lot < both + settings.share_expression)
        rest = lot - both - settings.share_expression
        morphology_only = (rest >= 0) & (rest < settings.share_morphology)
        none = rest >= settings.share_morphology
        return x, morphology[:, None], expression, expression_only | none, morphology_only | none

    def noise(self, like: Tensor) -> Tensor:
        """Return standard normal noise of the same shape."""
        return torch.randn(like.shape, generator=self.rng)

    def levels(self, count: int) -> Tensor:
        """Return (count,) noise levels between 0 and 1, logit-normal (Esser et al. 2024, arXiv 2403.03206)."""
        return torch.sigmoid(torch.randn(count, generator=self.rng))

    def _disturb(self, vectors: Tensor) -> Tensor:
        return vectors + self.settings.condition_noise * torch.randn(vectors.shape, generator=self.rng)


def flow_loss(model: nn.Module, x: Tensor, noise: Tensor, level: Tensor, **conditions: Tensor | None) -> Tensor:
    """Mean squared error of the velocity (noise - x) at a mixture of both (rectified flow: Liu et al. 2023, arXiv 2209.03003)."""
    weight = level.view(-1, 1, 1, 1)
    mixture = (1 - weight) * x + weight * noise
    with torch.autocast("cpu", torch.bfloat16):
        velocity = model(mixture, level * TIME_SCALE, **conditions)
    error: Tensor = (velocity.float() - (noise - x)).square().mean()
    return error


def batch_loss(model: nn.Module, batches: Batches, count: int, side: int) -> Tensor:
    """Draw a training batch of ``count`` crops of ``side`` latent cells and return its flow loss."""
    x, morphology, expression, no_morphology, no_expression = batches.draw(count, side)
    return flow_loss(
        model,
        x,
        batches.noise(x),
        batches.levels(count),
        morphology=morphology,
        expression=expression,
        morphology_null=no_morphology,
        expression_null=no_expression,
    )


def rate_factor(step: int, settings: DiffusionSettings) -> float:
    """A short rise, a plateau, and a linear fall over the last 60 %."""
    return min(1.0, (step + 1) / settings.warmup) * min(1.0, max(0.03, (1 - step / settings.steps) / 0.6))


def _train(worker: Worker, config: TrainingConfig) -> None:
    settings, path = config.diffusion, state_path(config)
    cache = load_cache(config)
    torch.manual_seed(config.seed)
    model = build_transformer(config, cache)
    quicken(model)
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
        side = settings.small_cells if small else cache["latents"].shape[-1]
        count = settings.small_batch if small else settings.batch
        for optimizer, rate in pairs:
            for group in optimizer.param_groups:
                group["lr"] = rate * rate_factor(step, settings)
        loss = batch_loss(model, batches, count, side)
        for optimizer, _ in pairs:
            optimizer.zero_grad()
        loss.backward()
        norm = worker.average_gradients(model.parameters(), 1.0)
        for optimizer, _ in pairs:
            optimizer.step()
        if worker.leads:
            average.update(model)
        running = loss.item() if running is None else 0.97 * running + 0.03 * loss.item()
        if step % 50 == 0:
            log.write(step=step, side=side, loss=round(loss.item(), 6), running=round(running, 4), norm=round(norm, 3))
        if worker.leads and (step + 1) % settings.validate_every == 0 and "held_latents" in cache:
            log.write(step=step, validation=validate(config, cache, average))
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
def validate(config: TrainingConfig, cache: dict[str, Tensor], average: Average) -> dict[str, float]:
    """Return the flow loss of the averaged weights on held-out spots, for every combination of true, shuffled and null conditions.

    Noise and levels are the same every time, so that the figures can be compared.
    """
    model = build_transformer(config, cache)
    model.load_state_dict(average.weights)
    model.eval()
    rng = torch.Generator().manual_seed(7)
    count = min(VALIDATION_SPOTS, len(cache["held_latents"]))
    rows = torch.randperm(len(cache["held_latents"]), generator=rng)[:count]
    side = config.diffusion.small_cells
    first = (cache["latents"].shape[-1] - side) // 2
    x = cache["held_latents"][rows][..., first : first + side, first : first + side].float()
    x = (x - cache["mean"].view(1, -1, 1, 1)) / cache["std"].view(1, -1, 1, 1)
    noise = torch.randn(x.shape, generator=rng)
    level = ((torch.arange(count) + 0.5) / count)[torch.randperm(count, generator=rng)]
    morphology, expression = cache["held_morphology"][rows][:, None], cache["held_expression"][rows]
    shuffled = expression.roll(count // 2, 0)
    cases: dict[str, tuple[Tensor | None, Tensor | None]] = {
        "both": (morphology, expression),
        "both_shuffled": (morphology, shuffled),
        "morphology": (morphology, None),
        "expression": (None, expression),
        "expression_shuffled": (None, shuffled),
        "none": (None, None),
    }
    return {
        name: round(flow_loss(model, x, noise, level, morphology=m, expression=e).item(), 4)
        for name, (m, e) in cases.items()
    }
