"""The latent cache: encoded crops with their conditions, made once, so that the diffusion stage runs no encoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..encoders.linear_programs import LinearProgramEncoder
from ..encoders.small_conv import FeatureTrunk, SmallConvEncoder, describe, describe_windows
from ..errors import CheckpointError
from ..model.autoencoder import FACTOR, StmditAutoencoder
from .autoencoder import generator, load_autoencoder, open_sampler, to_tensor
from .conditions import counts_of, encode_places, fit_morphology, fit_programs, make_trunk, rank_by_morphology
from .config import TrainingConfig
from .data import TrainingSection, crop_weights, cut, load_training_section
from .parallel import Worker, run_workers
from .sections import open_source
from .start import starting_encoder
from .state import Log, load_state, save_state

VARIANTS = 4
"""Expression vectors of one crop: different depths, the nearest spot or an interpolation."""
ENCODE_BATCH = 16
WINDOWS = 5
"""Places of a small crop inside a whole one, along each side."""


def window_corners(cells: int, small: int) -> list[tuple[int, int]]:
    """Return the corners (y, x), in latent cells, at which small crops of ``small`` cells are cut from crops of ``cells``."""
    places = sorted({int(place) for place in np.linspace(0, cells - small, WINDOWS)})
    return [(y, x) for y in places for x in places]


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
        run_workers(config.workers, config.precision, _make, config)
    return path


def _make(worker: Worker, config: TrainingConfig) -> None:
    if worker.leads:
        _fit_programs(config)
    worker.wait()
    _encode(worker, config)
    worker.wait()
    if worker.leads:
        _merge(config)
    worker.wait()


def _fit_programs(config: TrainingConfig) -> None:
    folder = encoder_folder(config, "programs")
    if config.start is not None:
        starting_encoder(config, "expression", LinearProgramEncoder).save(folder)
    elif not (folder / "config.json").is_file():
        fit_programs(open_sampler(config).sections, config.expression, config.seed).save(folder)


def load_cache(config: TrainingConfig) -> dict[str, Tensor]:
    """Read the cache, or fail with what to run first.

    Keys: ``latents`` (N, C, h, w) float16, ``mean`` and ``std`` (C,), ``morphology`` (N, 1 + W, d) of the whole crop and of its
    windows (`window_corners`), ``expression`` (N, V, e); and of the n spots of the held-out sections ``held_latents``,
    ``held_morphology`` (n, 1 + W, d), ``held_expression``.
    """
    state = load_state(cache_path(config))
    if state is None:
        raise CheckpointError(f"No latent cache in {config.output}; run the stage 'latents' first.")
    return state


def _encode(worker: Worker, config: TrainingConfig) -> None:
    model = load_autoencoder(config).to(worker.device)
    trunk = make_trunk(model).eval().to(worker.device)
    sampler = open_sampler(config)
    rng = generator(config, worker, 3, 0)
    expression = LinearProgramEncoder.load(encoder_folder(config, "programs"))
    tables = [counts_of(section, expression.genes) for section in sampler.sections]
    latents, statistics, vectors = [], [], []
    wanted = -(-config.latents.crops // worker.count)
    log = Log(config.output / "latents.jsonl", worker.leads)
    for start in range(0, wanted, ENCODE_BATCH):
        crops = [sampler.draw(rng, config.patch_px) for _ in range(min(ENCODE_BATCH, wanted - start))]
        images = to_tensor(np.stack([crop.pixels for crop in crops])).to(worker.device)
        log.progress("latents", min(start + ENCODE_BATCH, wanted), wanted)
        if start % (20 * ENCODE_BATCH) == 0:
            log.write(crops=start, of=wanted)
        encoded, described = encode_crops(model, trunk, images, config.diffusion.small_cells)
        latents.append(encoded.cpu())
        statistics.append(described.cpu())
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
    files = sorted(config.output.glob("latents_*.pt"))
    parts = [load_state(file) for file in files]
    merged = {
        key: torch.cat([part[key] for part in parts if part is not None])
        for key in ("latents", "statistics", "expression")
    }
    model = load_autoencoder(config)
    if config.start is not None:
        morphology = starting_encoder(config, "morphology", SmallConvEncoder)
        mean, std = (torch.tensor(model.config[key]) for key in ("latent_mean", "latent_std"))
    else:
        morphology = fit_morphology(
            make_trunk(model), merged["statistics"][:, 0].float(), config.latents.morphology_components
        )
        mean, std = latent_statistics(model, merged["latents"], config.latents.scale_power)
    morphology.save(encoder_folder(config, "morphology"))
    whitened = morphology.whiten(merged["statistics"].float())
    expression, vectors = LinearProgramEncoder.load(encoder_folder(config, "programs")), merged["expression"]
    if config.start is None:
        expression, vectors = rank_by_morphology(expression, vectors, whitened[:, 0])
    expression.save(encoder_folder(config, "expression"))
    held = _held_out(config, model, expression)
    held["held_morphology"] = morphology.whiten(held.pop("statistics").float()) if held else torch.empty(0)
    save_state(
        cache_path(config),
        latents=merged["latents"],
        mean=mean,
        std=std,
        morphology=whitened,
        expression=vectors,
        **held,
    )
    for file in files:
        file.unlink()


def latent_statistics(model: StmditAutoencoder, latents: Tensor, power: float) -> tuple[Tensor, Tensor]:
    """Return the mean (C,) and the scale (C,) by which latents (N, C, h, w) are normalised; see `LatentSettings.scale_power`."""
    sample = latents[:: max(1, len(latents) // 1000)].float()
    mean, spread = sample.mean((0, 2, 3)), sample.std((0, 2, 3))
    weight = pixel_effect(model, sample[:16], spread) ** power
    return mean, spread / (weight / weight.square().mean().sqrt())


@torch.inference_mode()
def encode_crops(
    model: StmditAutoencoder, trunk: FeatureTrunk, images: Tensor, small_cells: int
) -> tuple[Tensor, Tensor]:
    """Encode images (B, 3, H, W) with one pass through the network that autoencoder and morphology share.

    Returns
    -------
    tuple
        Raw latents (B, C, h, w) float16, and the statistics (B, 1 + W, s) float16 of the whole image and of its W windows of
        ``small_cells`` latent cells: a small crop is described by what is in it, not by what surrounds it.
    """
    layers = trunk(images)
    latents = model.encoder.linear(images) + model.encoder.head(torch.nn.functional.silu(layers[1]))
    corners = [(FACTOR * y, FACTOR * x) for y, x in window_corners(latents.shape[-1], small_cells)]
    windows = describe_windows(images, layers, corners, FACTOR * small_cells)
    return latents.half(), torch.cat([describe(images, layers)[:, None], windows], dim=1).half()


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
            encoded, described = encode_crops(model, trunk, images, config.diffusion.small_cells)
            latents.append(encoded)
            statistics.append(described)
        vectors.append(torch.from_numpy(expression.encode(section.section.spots.counts, section.section.spots.genes)))
    return {
        "held_latents": torch.cat(latents),
        "statistics": torch.cat(statistics),
        "held_expression": torch.cat(vectors),
    }
