"""The diffusion stage: a transformer learns to denoise latents, with independent dropout of the morphology and expression conditions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..encoders.linear_programs import LinearProgramEncoder
from ..encoders.morphology_map import MorphologyMap
from ..errors import CheckpointError
from ..model.folder import CheckpointFolder, map_folder
from ..model.transformer import STMDiTTransformer2D
from .batches import Batches, batch_loss
from .config import DiffusionSettings, TrainingConfig
from .latents import load_cache
from .objective import Losses
from .parallel import Control, Worker, run_workers
from .start import learns_expression, open_start, starting_objective, starting_transformer
from .state import EMA, load_state, open_records, run_steps, save_state
from .validation import SampleSheet, Validation

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
"""Default transformer options: 4 million parameters, for few data."""
RANDOM_SHARE = 0.3
"""Share of random weights among those that read programs matched by matching only."""
NO_EXPRESSION: dict[str, Any] = {
    "expression_dim": None,
    "expression_adaln": False,
    "expression_cross_attention": False,
    "expression_expand": 1,
}
"""Transformer options without expression, for training on pictures."""


def state_path(config: TrainingConfig) -> Path:
    """Return the file of the stage's state."""
    return config.output / "diffusion.pt"


def build_transformer(config: TrainingConfig, cache: dict[str, Tensor]) -> STMDiTTransformer2D:
    """Return the initial transformer: one that fits the cache, or that of the checkpoint to start from."""
    torch.manual_seed(config.seed)
    if config.start is not None:
        known = starting_transformer(open_start(config))
        if config.expression.anew and hasattr(known, "expression_embed"):
            return replace_programs(known, match_programs(config, cache))
        if learns_expression(config):
            return add_expression(known, config.transformer, cache["expression"].shape[-1])
        if config.expression.refit:
            zero_last_program(known)
        return known
    channels = cache["latents"].shape[1]
    sizes = {
        "in_channels": channels,
        "out_channels": channels,
        "sample_size": cache["latents"].shape[-1],
        "morphology_dim": cache["morphology"].shape[-1],
        **({"expression_dim": cache["expression"].shape[-1]} if "expression" in cache else NO_EXPRESSION),
    }
    model: STMDiTTransformer2D = STMDiTTransformer2D(**(SMALL_MODEL | config.transformer | sizes))
    open_gates(model)
    return model


@torch.no_grad()
def add_expression(known: STMDiTTransformer2D, options: dict[str, Any], width: int) -> STMDiTTransformer2D:
    """Return ``known`` with an expression condition of ``width`` added, which has no effect on its predictions yet."""
    expression = {key: value for key, value in SMALL_MODEL.items() if key.startswith("expression_")}
    own = {key: value for key, value in known.config.items() if not key.startswith("_")}
    model: STMDiTTransformer2D = STMDiTTransformer2D(**(own | expression | options | {"expression_dim": width}))
    open_gates(model)
    if hasattr(model, "expression_time"):
        nn.init.zeros_(model.expression_time.fc2.weight)  # as the attention to it is shut by its initialisation
    model.load_state_dict(model.state_dict() | known.state_dict())
    return model


@torch.no_grad()
def replace_programs(known: STMDiTTransformer2D, matching: Tensor) -> STMDiTTransformer2D:
    """Return ``known`` with input weights for other programs.

    ``matching`` (new, old) maps the old programs' weights to the new ones, as `match_programs` gives it.
    """
    own = {key: value for key, value in known.config.items() if not key.startswith("_")}
    model: STMDiTTransformer2D = STMDiTTransformer2D(**(own | {"expression_dim": len(matching)}))
    open_gates(model)
    weights = known.state_dict()
    for name in ("expression_embed.fc1.weight", "expression_time.fc1.weight"):
        if name in weights:
            weights[name] = weights[name] @ matching.T + RANDOM_SHARE * model.state_dict()[name]
    weights["expression_null"] = weights["expression_null"] @ torch.linalg.pinv(matching, rtol=0.1)
    model.load_state_dict(model.state_dict() | weights)
    return model


def match_programs(config: TrainingConfig, cache: dict[str, Tensor]) -> Tensor:
    """Return (new, old): the scores of the old programs that predict the same morphology as a unit score of each new program.

    The old programs predict by the checkpoint's map from expression to morphology, C (old, m); the new ones by a ridge regression on the
    crops, B (new, m). All zero where there is no map.
    """
    expression, morphology = cache["expression"][:, 0].double(), cache["morphology"][:, 0].double()
    folder = open_start(config)
    place = map_folder(folder)
    if place is None or not (old := MorphologyMap.load(place)).follows:
        return torch.zeros(expression.shape[-1], starting_transformer(folder).config.expression_dim)
    x, y = expression - expression.mean(0), morphology - morphology.mean(0)
    slope = torch.linalg.solve(x.T @ x + 50.0 * torch.eye(x.shape[1], dtype=x.dtype), x.T @ y)
    said = torch.from_numpy(np.asarray(old.weights @ old.components)).double()
    return equivalent_scores(slope, said, torch.from_numpy(_spread_of_programs(folder, len(said))).double()).float()


def equivalent_scores(slope: Tensor, said: Tensor, spread: Tensor) -> Tensor:
    """Return (new, old) scores of old programs that give slopes B (new, m), where their own are C (old, m): B E'(EE' + penalty)^-1 D, E = DC.

    D is their ``spread`` (old,). Programs that hardly vary have the steepest slopes; without it they would stand for all others.
    """
    scaled = spread[:, None] * said
    gram = scaled @ scaled.T
    penalty = 0.005 * gram.trace() * torch.eye(len(gram), dtype=gram.dtype)
    return torch.linalg.solve(gram + penalty, scaled @ slope.T).T * spread


def _spread_of_programs(folder: CheckpointFolder, count: int) -> NDArray[np.float32]:
    """Return about how far (count,) each program varies, by the size of its projection of standardised expression; ones of another encoder."""
    component = folder.components["expression_encoder"]
    if component.kind != LinearProgramEncoder.__name__:
        return np.ones(count, dtype=np.float32)
    encoder = LinearProgramEncoder.load(component.path)
    deepest = encoder.projection if encoder.levels is None else encoder.projection[-1]
    return np.asarray(np.hypot(np.linalg.norm(deepest, axis=0), encoder.depth_projection), dtype=np.float32)


@torch.no_grad()
def zero_last_program(model: STMDiTTransformer2D) -> None:
    """Zero the input weights of the last program: relative depth takes its place."""
    for name in ("expression_embed", "expression_time"):
        if hasattr(model, name):
            getattr(model, name).fc1.weight[:, -1] = 0


def load_transformer_average(config: TrainingConfig) -> STMDiTTransformer2D:
    """Return the trained transformer (EMA weights); raises CheckpointError that names the stage to run first."""
    state = load_state(state_path(config))
    if state is None:
        raise CheckpointError(f"No trained transformer in {config.output}; run the stage 'diffusion' first.")
    model = build_transformer(config, load_cache(config))
    model.load_state_dict(state["average"]["weights"])
    model.eval()
    return model


@torch.no_grad()
def open_gates(model: STMDiTTransformer2D) -> None:
    """Initialise residual gates and condition embeddings away from zero."""
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


def train_diffusion(config: TrainingConfig, control: Control | None = None) -> Path:
    """Train the transformer, or continue, and return its state file."""
    run_workers(config, control or Control(), _train, config)
    return state_path(config)


def optimizers(model: nn.Module, settings: DiffusionSettings) -> list[tuple[torch.optim.Optimizer, float]]:
    """Return (optimizer, rate) pairs: Muon for the matrices inside the blocks where torch has it, AdamW for the rest.

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
    """Return the learning-rate factor: linear warm-up, plateau, and linear decay over the last 60 %."""
    return min(1.0, (step + 1) / settings.warmup) * min(1.0, max(0.03, (1 - step / settings.steps) / 0.6))


def _train(worker: Worker, config: TrainingConfig) -> None:
    settings, path = config.diffusion, state_path(config)
    cache = load_cache(config)
    state = load_state(path)
    start = 0 if state is None else int(state["step"])
    if start >= settings.steps:
        return
    model = worker.place(build_transformer(config, cache))
    pairs = optimizers(model, settings)
    average = EMA(model, settings.ema)
    if state is not None:
        model.load_state_dict(state["model"])
        for (optimizer, _), saved in zip(pairs, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        average.load_state_dict(state["average"])
    monitor = _Monitor(config, cache, worker, average.follow(model), start) if worker.leads else None
    if settings.compile:
        for block in model.blocks:
            block.compile(dynamic=False)
    batches = Batches(cache, settings, seed=config.seed, objective=starting_objective(config))

    def take_step(step: int) -> None:
        small = step < settings.small_fraction * settings.steps
        count = settings.small_batch if small else settings.batch
        # of the step, not of the run: a training that was stopped draws what it would have drawn
        batches.seed(int(np.random.SeedSequence((config.seed, worker.rank, step)).generate_state(1)[0]))
        for optimizer, rate in pairs:
            for group in optimizer.param_groups:
                group["lr"] = rate * rate_factor(step, settings)
        losses = batch_loss(model, batches, count, small, worker.device, worker.autocast)
        loss = losses.total(settings.coarse_weight)
        norm = worker.update(loss, [optimizer for optimizer, _ in pairs], 1.0)
        if monitor is not None:
            average.update(model)
            monitor.after(step, small, losses, loss.detach(), norm)

    def save(step: int) -> None:
        saved = [optimizer.state_dict() for optimizer, _ in pairs]
        save_state(path, step=step, model=model.state_dict(), optimizers=saved, average=average.state_dict())

    if monitor is not None and start == 0 and config.start is not None:
        monitor.before()
    run_steps(worker, "transformer", range(start, settings.steps), config.checkpoint_seconds, take_step, save)
    if monitor is not None:
        monitor.board.close()


class _Monitor:
    """Records of the leading process while the transformer trains: losses, validation, samples.

    ``model`` has the EMA weights; ``start`` is the step that the training continues from.
    """

    def __init__(
        self,
        config: TrainingConfig,
        cache: dict[str, Tensor],
        worker: Worker,
        model: STMDiTTransformer2D,
        start: int,
    ) -> None:
        self.config, self.worker, self.model = config, worker, model
        self.log, self.board = open_records(config, worker, "diffusion", start)
        self.validation = Validation(cache, config.diffusion, starting_objective(config), worker)
        self._cache = cache
        self._sheet: SampleSheet | None = None
        self._running: Tensor | None = None

    def before(self) -> None:
        """Validate and draw samples with the initial weights, as the baseline of a further training."""
        self._validate(0, before=True)
        if self.config.diffusion.sample_every:
            self._draw(0)

    def after(self, step: int, small: bool, losses: Losses, loss: Tensor, norm: Tensor) -> None:
        """Record a step; validate and draw samples when they are due."""
        settings = self.config.diffusion
        self._running = loss if self._running is None else self._running.lerp(loss, 0.03)
        if step % 10 == 0:
            self.worker.report("transformer", step, settings.steps, self._running.item())
        if step % 50 == 0:
            parts = {name: round(part.item(), 6) for name, part in vars(losses).items()}
            figures = {"loss": round(loss.item(), 6), **parts, "running": round(self._running.item(), 4)}
            self.log.write(step=step, small=small, **figures, norm=round(norm.item(), 3))
            rates = {"step/norm": round(norm.item(), 3), "step/rate": settings.rate * rate_factor(step, settings)}
            self.board.scalars(step, {f"loss/{name}": value for name, value in figures.items()} | rates)
        if (step + 1) % settings.validate_every == 0:
            self._validate(step + 1, step=step)
        every = settings.sample_every
        if every and ((step + 1) % every == 0 or step + 1 == settings.steps):
            self._draw(step + 1)

    def _validate(self, done: int, **facts: Any) -> None:
        found = self.validation.losses(self.model)
        self.log.write(**facts, **{self.validation.name: found})
        self.board.scalars(done, {f"{self.validation.name}/{case}": parts["flow"] for case, parts in found.items()})

    def _draw(self, done: int) -> None:
        if self._sheet is None:
            self._sheet = SampleSheet(self.config, self._cache, self.worker.device)
        self.board.picture(done, "synthetic samples", self._sheet.save(self.model, done))
