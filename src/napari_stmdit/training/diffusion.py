"""The diffusion stage: a transformer learns to denoise latents, with independent dropout of its two conditions; and its validation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor, nn

from ..devices import choose_device
from ..encoders.linear_programs import LinearProgramEncoder
from ..encoders.morphology_map import MorphologyMap
from ..errors import CheckpointError
from ..evaluation.pictures import INK, font_of
from ..model.folder import CheckpointFolder, load_component, map_folder
from ..model.pipeline import STMDiTPipeline
from ..model.transformer import STMDiTTransformer2D
from ..storage.atomic import write_atomically
from ..tissue.export import NEW, labelled
from ..types import GuidanceScales, Sampling
from .autoencoder import load_autoencoder
from .batches import Batches, batch_loss, morphology_vectors
from .cards import guidance_and_steps, make_scheduler
from .config import DiffusionSettings, TrainingConfig
from .latents import load_cache, window_corners
from .objective import Losses, Objective, prediction_losses
from .parallel import Control, Worker, run_workers
from .start import learns_expression, open_start, starting_objective, starting_transformer, starting_vae
from .state import EMA, load_state, open_records, run_steps, save_state

MAX_SPOTS = 96
"""Maximum number of spots, or crops, of a validation."""
SEED = 20
"""Seed of a sheet's places and noise."""
GAP, TITLE_PX, LABEL_PX = 8, 44, 22
MIN_WIDTH = 430
"""Minimum width of a sheet in pixels, for its title."""
NOTICE = "Synthetic tissue images made by a generative model. Not for diagnosis."
ROWS = ("both", "expression only", "morphology only", "none")


class Validation:
    """Losses on the spots of the held-out sections; without any, on training crops, under another ``name``.

    ``name`` is ``validation``, or ``seen_in_training``: such figures say nothing about unseen tissue.
    """

    def __init__(
        self, cache: dict[str, Tensor], settings: DiffusionSettings, objective: Objective, worker: Worker
    ) -> None:
        held = "held_latents" in cache
        self.name = "validation" if held else "seen_in_training"
        self.objective, self.worker = objective, worker
        latents, morphology, expression = _places(cache)
        rng = torch.Generator().manual_seed(7)
        count = min(MAX_SPOTS, len(latents))
        rows = torch.randperm(len(latents), generator=rng)[:count]
        x, window = latents[rows].float(), 0
        if morphology.shape[1] > 1:  # windows cost a fraction of whole crops
            corners = window_corners(cache["latents"].shape[-1], settings.small_cells)
            middle = len(corners) // 2
            (top, left), side, window = corners[middle], settings.small_cells, middle + 1
            x = x[..., top : top + side, left : left + side]
        x = _normalised(x, cache)
        noise = torch.randn(x.shape, generator=rng)
        order = torch.randperm(count, generator=rng)
        level = objective.even_levels(count, settings.level_shift)[order]
        self._x, self._noise, self._level = (part.to(worker.device) for part in (x, noise, level))
        true = morphology[rows, window].to(worker.device)
        self._cases: dict[str, tuple[Tensor | None, Tensor | None]] = {"morphology": (true, None), "none": (None, None)}
        if expression is not None:
            own = expression[rows].to(worker.device)
            shuffled = own.roll(count // 2, 0)
            self._cases |= {
                "both": (true, own),
                "both_shuffled": (true, shuffled),
                "expression": (None, own),
                "expression_shuffled": (None, shuffled),
            }

    @torch.no_grad()
    def losses(self, model: nn.Module) -> dict[str, dict[str, float]]:
        """Return the losses of every combination of conditions."""
        figures = {}
        for name, (morphology, expression) in self._cases.items():
            losses = prediction_losses(
                model,
                self._x,
                self._noise,
                self._level,
                objective=self.objective,
                autocast=self.worker.autocast,
                morphology=morphology,
                expression=expression,
            )
            figures[name] = {part: round(value.item(), 4) for part, value in vars(losses).items()}
        return figures


class SampleSheet:
    """Sheet of samples at a few places with both conditions, either, and none, by the card's solver, steps and guidance.

    The places are held-out spots; where there are none, training crops, and the sheet says so.
    """

    def __init__(self, config: TrainingConfig, cache: dict[str, Tensor], device: torch.device) -> None:
        self.where = "held-out spots" if "held_latents" in cache else "crops seen in training"
        latents, morphology, expression = _places(cache)
        count = min(config.diffusion.samples, len(latents))
        rows = torch.randperm(len(latents), generator=torch.Generator().manual_seed(SEED))[:count]
        self.folder = config.output / "samples"
        self.guidance, self.steps = guidance_and_steps(config)
        self._side = config.patch_px
        self._morphology = morphology[rows, 0]
        self._expression = None if expression is None else expression[rows]
        self._real = _normalised(latents[rows].float(), cache)
        self._vae = _decoder(config, cache).to(device)
        self._scheduler = (
            make_scheduler(config) if config.start is None else load_component(open_start(config), "scheduler")
        )

    def save(self, model: STMDiTTransformer2D, step: int) -> NDArray[np.uint8]:
        """Sample with a model's weights, write the sheet as PNG, labelled as synthetic, and return its pixels (h, w, 3)."""
        sheet = self._draw(model, step)
        label = replace(NEW, statement=f"{NOTICE} The first row is real tissue through the autoencoder.")
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"step_{step:06d}.png"
        write_atomically(path, lambda file: sheet.save(file, format="PNG", **labelled(label)))
        return np.asarray(sheet)

    def _draw(self, model: STMDiTTransformer2D, step: int) -> Image.Image:
        pipeline = STMDiTPipeline(transformer=model, vae=self._vae, scheduler=self._scheduler)
        rows = [("slide through the autoencoder", pipeline.decode(self._real))]
        for label in ROWS if self._expression is not None else ("morphology only", "none"):
            morphology = self._morphology if label in ("both", "morphology only") else None
            expression = self._expression if label in ("both", "expression only") else None
            rows.append((f"synthetic: {label}", self._patches(pipeline, morphology, expression)))
        side, columns = self._side, len(self._real)
        size = (max(MIN_WIDTH, GAP + columns * (side + GAP)), TITLE_PX + len(rows) * (LABEL_PX + side + GAP))
        sheet = Image.new("RGB", size, "white")
        draw = ImageDraw.Draw(sheet)
        draw.text((GAP, 6), f"Step {step}, {self.where}, common noise", fill=INK, font=font_of(15))
        draw.text((GAP, 25), NOTICE, fill=INK, font=font_of(11))
        for number, (label, images) in enumerate(rows):
            top = TITLE_PX + number * (LABEL_PX + side + GAP)
            draw.text((GAP, top + 3), label, fill=INK, font=font_of(13))
            for column, image in enumerate(images):
                sheet.paste(Image.fromarray(image), (GAP + column * (side + GAP), top + LABEL_PX))
        return sheet

    def _patches(
        self, pipeline: STMDiTPipeline, morphology: Tensor | None, expression: Tensor | None
    ) -> NDArray[np.uint8]:
        seeds = tuple(range(SEED, SEED + len(self._real)))
        *_, last = pipeline.denoise_images(
            morphology=morphology,
            expression=expression,
            seeds=seeds,
            sampling=Sampling(GuidanceScales.of(self.guidance), self.steps),
            height=self._side,
            width=self._side,
        )
        assert last.images is not None
        return last.images


def _places(cache: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return latents, morphology (n, 1 + W or 1, T, d) and expression (n, e; None of pictures) of the held-out spots, else of the crops."""
    if "held_latents" in cache:
        latents, morphology, expression = cache["held_latents"], cache["held_morphology"], cache.get("held_expression")
    else:
        latents, morphology = cache["latents"], cache["morphology"]
        expression = cache["expression"][:, 0] if "expression" in cache else None
    return latents, morphology_vectors(morphology), expression


def _normalised(latents: Tensor, cache: dict[str, Tensor]) -> Tensor:
    return (latents - cache["mean"].view(1, -1, 1, 1)) / cache["std"].view(1, -1, 1, 1)


def _decoder(config: TrainingConfig, cache: dict[str, Tensor]) -> Any:
    if config.start is not None and config.autoencoder.refine:
        return load_autoencoder(config)
    if config.start is not None:
        return starting_vae(open_start(config))
    vae = load_autoencoder(config)
    vae.set_latent_statistics(cache["mean"].tolist(), cache["std"].tolist())
    return vae


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
    weights: Tensor = torch.linalg.solve(gram + penalty, scaled @ slope.T)
    return weights.T * spread


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


class Muon(torch.optim.Optimizer):
    """Muon: momentum of matrices, made nearly orthogonal; K. Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks".

    Steps have the size of Adam's (Liu et al. 2025, arXiv 2502.16982). torch's own, from 2.9 on, multiplies in bfloat16 whatever the hardware, and
    a CPU without it emulates that: there it takes ten times as long as the rest of a training step.

    Parameters
    ----------
    matrices
        Parameters of two dimensions.
    lr, weight_decay, momentum
        Learning rate; decay of the weights relative to it; share of the momentum that is kept.
    dtype
        To multiply in.
    """

    def __init__(
        self, matrices: Sequence[nn.Parameter], lr: float, weight_decay: float, momentum: float, dtype: torch.dtype
    ) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self._dtype = dtype

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take a step with the gradients that are there, or those that ``closure`` makes; return its loss, None without one."""
        with torch.enable_grad():
            loss = None if closure is None else closure()
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                state = self.state[matrix]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(matrix)
                kept = state["momentum_buffer"]
                kept.lerp_(matrix.grad, 1 - group["momentum"])
                ahead = matrix.grad.lerp(kept, group["momentum"])  # Nesterov's
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                size = 0.2 * max(matrix.shape) ** 0.5
                matrix.add_(_orthogonal(ahead.to(self._dtype)), alpha=-group["lr"] * size)
        return loss


def _orthogonal(matrix: Tensor) -> Tensor:
    """Return a matrix with the singular vectors of another and singular values of about 1, by Jordan's Newton-Schulz iteration."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x: Tensor = wide / wide.norm().clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.T
        # fused, as bfloat16 would round each term
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x if wide is matrix else x.T


def optimizers(model: nn.Module, settings: DiffusionSettings) -> list[tuple[torch.optim.Optimizer, float]]:
    """Return (optimizer, rate) pairs: Muon for the matrices inside the blocks, AdamW for the rest."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        hidden = parameter.ndim == 2 and name.startswith("blocks.") and "modulation" not in name
        (matrices if hidden else others).append(parameter)
    fast = choose_device(others[0].device.type)[1]
    dtype = torch.bfloat16 if fast == torch.bfloat16 else torch.float32  # float16 overflows
    adam = torch.optim.AdamW(others, lr=settings.rate, betas=(0.9, 0.97), weight_decay=0.0)
    muon = Muon(matrices, lr=settings.matrix_rate, weight_decay=0.02, momentum=0.95, dtype=dtype)
    return [(adam, settings.rate), (muon, settings.matrix_rate)]


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
