"""The latent cache: encoded crops with their conditions, made once, so that the diffusion stage runs no encoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..encoders.linear_programs import LinearProgramEncoder
from ..encoders.small_conv import FeatureTrunk, describe
from ..errors import CheckpointError
from ..model.autoencoder import StmditAutoencoder
from .autoencoder import generator, load_autoencoder, open_sampler, to_tensor
from .conditions import counts_of, encode_places, fit_morphology, fit_programs, make_trunk, rank_by_morphology
from .config import TrainingConfig
from .data import TrainingSection, crop_weights, cut, load_training_section
from .parallel import Worker, run_workers
from .sections import open_source
from .state import Log, load_state, save_state

VARIANTS = 4
"""Expression vectors of one crop: different depths, the nearest spot or an interpolation."""
ENCODE_BATCH = 16


def cache_path(config: TrainingConfig) -> Path:
    """Return the file of the cache."""
    return config.output / "latents.pt"


def encoder_folder(config: TrainingConfig, name: str) -> Path:
    """Return the work folder of a fitted encoder: ``programs`` (not yet ranked), ``expression`` or ``morphology``."""
    return config.output / "encoders" / name


def make_cache(config: TrainingConfig) -> Path:
    """Fit the encoders, encode crops, and return the file of the cache; does nothing where it is already there."""
    path = cache_path(config)
    if not path.is_file():
        if not (encoder_folder(config, "programs") / "config.json").is_file():
            fit_programs(open_sampler(config).sections, config.expression, config.seed).save(
                encoder_folder(config, "programs")
            )
        run_workers(config.workers, _encode, config)
        _merge(config)
    return path


def load_cache(config: TrainingConfig) -> dict[str, Tensor]:
    """Read the cache, or fail with what to run first.

    Keys: ``latents`` (N, C, h, w) float16, ``mean`` and ``std`` (C,), ``morphology`` (N, d), ``expression`` (N, V, e); and of the
    spots of the held-out sections ``held_latents``, ``held_morphology``, ``held_expression``.
    """
    state = load_state(cache_path(config))
    if state is None:
        raise CheckpointError(f"No latent cache in {config.output}; run the stage 'latents' first.")
    return state


def _encode(worker: Worker, config: TrainingConfig) -> None:
    model = load_autoencoder(config)
    trunk = make_trunk(model).eval()
    sampler = open_sampler(config)
    rng = generator(config, worker, 3, 0)
    expression = LinearProgramEncoder.load(encoder_folder(config, "programs"))
    tables = [counts_of(section, expression.genes) for section in sampler.sections]
    latents, statistics, vectors = [], [], []
    wanted = -(-config.latents.crops // worker.count)
    log = Log(config.output / "latents.jsonl", worker.leads)
    for start in range(0, wanted, ENCODE_BATCH):
        crops = [sampler.draw(rng, config.patch_px) for _ in range(min(ENCODE_BATCH, wanted - start))]
        images = to_tensor(np.stack([crop.pixels for crop in crops]))
        if start % (20 * ENCODE_BATCH) == 0:
            log.write(crops=start, of=wanted)
        encoded, described = encode_crops(model, trunk, images)
        latents.append(encoded)
        statistics.append(described)
        for crop in crops:
            vectors.append(
                _expression(sampler.sections[crop.section], crop.centre, tables[crop.section], expression, config, rng)
            )
    save_state(
        config.output / f"latents_{worker.rank}.pt",
        latents=torch.cat(latents),
        statistics=torch.cat(statistics),
        expression=torch.stack(vectors),
    )
    worker.wait()


def _expression(
    section: TrainingSection,
    centre: np.ndarray[tuple[int], np.dtype[np.float64]],
    counts: np.ndarray[tuple[int, int], np.dtype[np.float32]],
    encoder: LinearProgramEncoder,
    config: TrainingConfig,
    rng: np.random.Generator,
) -> Tensor:
    weights = np.stack([crop_weights(section, centre, config.expression, rng) for _ in range(VARIANTS)])
    return torch.from_numpy(encode_places(encoder, counts, weights, config.expression.thinning, rng))


def _merge(config: TrainingConfig) -> None:
    parts = [load_state(config.output / f"latents_{rank}.pt") for rank in range(config.workers)]
    merged = {
        key: torch.cat([part[key] for part in parts if part is not None])
        for key in ("latents", "statistics", "expression")
    }
    model = load_autoencoder(config)
    morphology = fit_morphology(make_trunk(model), merged["statistics"], config.latents.morphology_components)
    morphology.save(encoder_folder(config, "morphology"))
    sample = merged["latents"][:: max(1, len(merged["latents"]) // 1000)].float()
    mean, spread = sample.mean((0, 2, 3)), sample.std((0, 2, 3))
    weight = pixel_effect(model, sample[:16], spread) ** config.latents.scale_power
    std = spread / (weight / weight.square().mean().sqrt())
    whitened = morphology.whiten(merged["statistics"])
    programs = LinearProgramEncoder.load(encoder_folder(config, "programs"))
    expression, vectors = rank_by_morphology(programs, merged["expression"], whitened)
    expression.save(encoder_folder(config, "expression"))
    held = _held_out(config, model, expression)
    held["held_morphology"] = morphology.whiten(held.pop("statistics")) if held else torch.empty(0)
    save_state(
        cache_path(config),
        latents=merged["latents"],
        mean=mean,
        std=std,
        morphology=whitened,
        expression=vectors,
        **held,
    )
    for rank in range(config.workers):
        (config.output / f"latents_{rank}.pt").unlink()


@torch.inference_mode()
def encode_crops(model: StmditAutoencoder, trunk: FeatureTrunk, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return raw latents (B, C, h, w) float16 and statistics (B, s) of images, with one pass through the network they share."""
    layers = trunk(images)
    latents = model.encoder.linear(images) + model.encoder.head(torch.nn.functional.silu(layers[1]))
    return latents.half(), describe(images, layers)


@torch.inference_mode()
def pixel_effect(model: StmditAutoencoder, latents: Tensor, spread: Tensor) -> Tensor:
    """Return (C,) how much disturbing each channel by its own spread changes the decoded pixels, relative to the largest."""
    base = model.decoder(latents)
    rng = torch.Generator().manual_seed(0)
    effects = []
    for channel in range(latents.shape[1]):
        moved = latents.clone()
        moved[:, channel] += spread[channel] * torch.randn(moved[:, channel].shape, generator=rng)
        effects.append((model.decoder(moved) - base).square().mean().sqrt())
    effect = torch.stack(effects)
    return effect / effect.max()


@torch.inference_mode()
def _held_out(config: TrainingConfig, model: StmditAutoencoder, expression: LinearProgramEncoder) -> dict[str, Tensor]:
    """Encode the held-out sections' spots, for the validation loss alone."""
    if not config.held_out:
        return {}
    trunk = make_trunk(model).eval()
    latents, statistics, vectors = [], [], []
    for source in config.held_out:
        section = load_training_section(open_source(source, config), config.patch_mpp)
        patches = np.stack([cut(section.pixels, centre, config.patch_px)[0] for centre in section.yx])
        for start in range(0, len(patches), ENCODE_BATCH):
            images = to_tensor(patches[start : start + ENCODE_BATCH])
            encoded, described = encode_crops(model, trunk, images)
            latents.append(encoded)
            statistics.append(described)
        vectors.append(torch.from_numpy(expression.encode(section.section.spots.counts, section.section.spots.genes)))
    return {
        "held_latents": torch.cat(latents),
        "statistics": torch.cat(statistics),
        "held_expression": torch.cat(vectors),
    }
