"""The latents stage: fits the encoders, and encodes crops and conditions once, so that the diffusion stage runs no encoder."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from torch import Tensor

from ..encoders.linear_programs import LinearProgramEncoder
from ..encoders.small_conv import FeatureTrunk, SmallConvEncoder, describe, describe_windows
from ..errors import CheckpointError
from ..expression.genes import match_genes
from ..model.autoencoder import StmditAutoencoder, encode_latents, spatial_factor
from .autoencoder import generator, load_autoencoder, to_tensor
from .config import TrainingConfig
from .data import Crop, CropSampler, crop_weights, cut
from .parallel import Control, Worker, choose_compute, run_alone, run_workers
from .pictures import PictureSampler, held_out_crops, open_pictures
from .programs import counts_of, encode_places, fit_programs, rank_by_morphology, thin, thinning_factors
from .sections import open_sampler, open_sections
from .start import (
    fits_expression,
    latent_statistics_of,
    learns_expression,
    open_start,
    starting_sources,
    starting_vae,
)
from .state import Clock, Log, load_state, save_record, save_state, timed

VARIANTS = 4
"""Expression vectors per crop: different depths, nearest spot or interpolated."""
WINDOWS = 5
"""Positions of a small crop inside a whole one, along each side."""
ENCODE_BATCH = 16
HELD_OUT_CROPS = 24
"""Number of crops of each held-out picture, for validation and samples."""
_SHARE = re.compile(r"(latents|spots)_\d+\.pt")
"""File names of the workers' shares, see `_spot_file` and `_crop_file`."""


def window_corners(cells: int, small: int) -> list[tuple[int, int]]:
    """Return the corners (y, x), in latent cells, at which small crops of ``small`` cells are cut from crops of ``cells``."""
    places = sorted({int(place) for place in np.linspace(0, cells - small, WINDOWS)})
    return [(y, x) for y in places for x in places]


class WindowEncoding:
    """Encoding of crops as latents, and as `FeatureTrunk` statistics of the whole crop and of its windows.

    Without an ``encoder`` (not fitted yet) the autoencoder's own trunk gives the statistics. ``small_cells`` is the side of a window in
    latent cells.
    """

    def __init__(self, vae: Any, encoder: SmallConvEncoder | None, small_cells: int, device: torch.device) -> None:
        self.vae, self.encoder, self.small_cells, self.device = vae.to(device).eval(), encoder, small_cells, device
        self.trunk: FeatureTrunk = (make_trunk(vae) if encoder is None else encoder.trunk).to(device).eval()
        self.shared = isinstance(vae, StmditAutoencoder) and _same_network(vae, self.trunk)

    @torch.inference_mode()
    def __call__(self, pixels: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
        """Encode (B, H, W, 3) uint8 as latents (B, C, h, w) and statistics (B, 1 + W, s), both float16 on the CPU."""
        images = to_tensor(pixels).to(self.device)
        layers = self.trunk(images)
        if self.shared:  # as in those trained here: one pass gives both
            own = self.vae.encoder
            latents = own.linear(images) + own.head(torch.nn.functional.silu(layers[1]))
        else:
            latents = raw_latents(self.vae, images)
        factor = spatial_factor(self.vae)
        corners = [(factor * y, factor * x) for y, x in window_corners(latents.shape[-1], self.small_cells)]
        windows = describe_windows(images, layers, corners, factor * self.small_cells)
        described = torch.cat([describe(images, layers)[:, None], windows], dim=1)
        return latents.half().cpu(), described.half().cpu()

    def conditions(self, described: Tensor) -> Tensor:
        """Whiten (B, 1 + W, s) statistics to (B, 1 + W, d) components."""
        assert self.encoder is not None  # fitted by now
        return self.encoder.whiten(described.float())


class WholeEncoding:
    """Encoding of whole crops as latents, and as vectors of any morphology encoder, which is on its device already."""

    def __init__(self, vae: Any, source: Any, device: torch.device) -> None:
        self.vae, self.source, self.device = vae.to(device).eval(), source, device

    @torch.inference_mode()
    def __call__(self, pixels: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
        """Encode (B, H, W, 3) uint8 as latents (B, C, h, w) float16 and vectors (B, 1, T, d) float32, on the CPU."""
        latents = raw_latents(self.vae, to_tensor(pixels).to(self.device))
        return latents.half().cpu(), torch.from_numpy(self.source.encode(pixels))[:, None]

    def conditions(self, described: Tensor) -> Tensor:
        """Return the vectors unchanged."""
        return described


def raw_latents(vae: Any, images: Tensor) -> Tensor:
    """Return latents: unnormalised of our autoencoder, normalised by their own scale and shift of diffusers' VAEs."""
    latents: Tensor = vae.encoder(images) if isinstance(vae, StmditAutoencoder) else encode_latents(vae, images)
    return latents


def make_trunk(autoencoder: StmditAutoencoder) -> FeatureTrunk:
    """Copy the convolutional half of an autoencoder's encoder."""
    fine, coarse = autoencoder.config["encoder_widths"]
    trunk = FeatureTrunk((fine, coarse))
    trunk.trunk.load_state_dict(autoencoder.encoder.trunk.state_dict())
    return trunk


def fit_morphology(trunk: FeatureTrunk, statistics: Tensor, components: int) -> SmallConvEncoder:
    """Whiten the (n, s) statistics of training crops: standardise, keep the leading components, scale each to variance one."""
    mean, scale = statistics.mean(0), statistics.std(0) + 1e-4
    _, values, vectors = torch.linalg.svd((statistics - mean) / scale, full_matrices=False)
    spread = values[:components] / len(statistics) ** 0.5
    projection = vectors[:components].T / spread / scale[:, None]
    return SmallConvEncoder(trunk, mean, projection)


def _same_network(vae: StmditAutoencoder, trunk: FeatureTrunk) -> bool:
    mine, other = vae.encoder.trunk.state_dict(), trunk.trunk.state_dict()
    return mine.keys() == other.keys() and all(
        value.shape == other[name].shape and torch.equal(value, other[name]) for name, value in mine.items()
    )


def program_expression(
    encoder: LinearProgramEncoder, sampler: CropSampler, config: TrainingConfig
) -> Callable[[Crop, np.random.Generator], Tensor]:
    """Return a function that gives (VARIANTS, d) program scores of a crop: of interpolated or nearest spots, at different depths."""
    settings, sections = config.expression, sampler.sections
    tables = [counts_of(section, encoder.genes) for section in sections]
    present = [match_genes(encoder.genes, s.section.spots.genes).columns >= 0 for s in sections]
    thinning = settings.thinning if encoder.logged else 1.0  # factors are no counts

    def vectors(crop: Crop, rng: np.random.Generator) -> Tensor:
        section, counts = sections[crop.section], tables[crop.section]
        weights = np.stack([crop_weights(section, crop.centre, settings, rng) for _ in range(VARIANTS)])
        depth = section.section.spots.relative_depth
        found = encode_places(encoder, counts, weights, thinning, rng, present[crop.section], depth)
        return torch.from_numpy(found)

    return vectors


def spot_expression(sampler: CropSampler, config: TrainingConfig) -> Callable[[Crop, np.random.Generator], Tensor]:
    """Return a function that gives the (VARIANTS, d) vectors of the spot nearest to a crop, from the workers' shares."""
    first = load_state(_spot_file(config, 0))
    shares = [load_state(_spot_file(config, rank)) for rank in range(int(first["count"]))] if first else []
    tables = []
    for number, section in enumerate(sampler.sections):
        parts = [share["vectors"][number] for share in shares if share is not None]
        rows = torch.empty(len(section.yx), *parts[0].shape[1:])
        for rank, part in enumerate(parts):
            rows[rank :: len(parts)] = part
        tables.append(rows)

    def vectors(crop: Crop, rng: np.random.Generator) -> Tensor:
        nearest = int(np.square(sampler.sections[crop.section].yx - crop.centre).sum(axis=1).argmin())
        return tables[crop.section][nearest]

    return vectors


def thinned_rows(counts: csr_matrix, thinning: float, rng: np.random.Generator) -> csr_matrix:
    """Thin the rows of counts (n, g) by `thinning_factors`."""
    table = counts.tocsr().astype(np.float32)
    factors = thinning_factors(table.shape[0], thinning, rng)
    rows = [thin(table.data[a:b], f, rng) for a, b, f in zip(table.indptr, table.indptr[1:], factors, strict=False)]
    data = np.concatenate(rows) if rows else table.data
    thinned = csr_matrix((data, table.indices, table.indptr), shape=table.shape)
    thinned.eliminate_zeros()
    return thinned


def cache_path(config: TrainingConfig) -> Path:
    """Return the file of the cache."""
    return config.output / "latents.pt"


def encoder_folder(config: TrainingConfig, name: str) -> Path:
    """Return the work folder of a fitted encoder: ``programs`` (before ranking), ``expression`` or ``morphology``."""
    return config.output / "encoders" / name


def make_cache(config: TrainingConfig, control: Control | None = None) -> Path:
    """Fit the encoders, encode crops, and return the cache file; does nothing where it exists."""
    path = cache_path(config)
    if path.is_file():
        return path
    control = control or Control()
    if config.pictures:
        pass  # there is no expression
    elif fits_expression(config):
        run_alone(config, fit_expression, config)
    elif open_start(config).components["expression_encoder"].kind != LinearProgramEncoder.__name__:
        run_workers(config, control, _encode_spots, config)
    run_workers(config, control, _encode, config)
    run_alone(config, _merge, config)
    return path


def load_cache(config: TrainingConfig) -> dict[str, Tensor]:
    """Read the cache; raises CheckpointError that names the stage to run first.

    Keys: ``latents`` (N, C, h, w) float16; ``mean`` and ``std`` (C,); ``morphology`` (N, 1 + W, d) of the whole crop and its windows
    (`window_corners`), or (N, 1, T, d) of an encoder of whole crops; ``expression`` (N, V, e), not of pictures. Of the n held-out spots:
    ``held_latents``, ``held_morphology`` (n, 1 + W, d), ``held_expression``. Where the encoders were not fitted here,
    ``morphology_spread`` and ``expression_spread`` () scale the noise on the conditions.
    """
    state = load_state(cache_path(config))
    if state is None:
        raise CheckpointError(f"No latent cache in {config.output}; run the stage 'latents' first.")
    return state


def fit_expression(config: TrainingConfig) -> None:
    """Fit the expression programs; does nothing where they exist."""
    like = None
    if config.start is None:
        load_autoencoder(config)  # says what must run first before minutes are spent on expression
    elif not learns_expression(config):
        like = LinearProgramEncoder.load(open_start(config).components["expression_encoder"].path)
    folder = encoder_folder(config, "programs" if like is None else "expression")
    if not (folder / "config.json").is_file():
        fit_programs(open_sampler(config).sections, config.expression, config.seed, like).save(folder)


def _encodings(config: TrainingConfig, device: torch.device) -> tuple[WindowEncoding | WholeEncoding, Any]:
    """Return the encoding of crops, and the expression encoder: those of the checkpoint to start from, or fitted here."""
    small = config.diffusion.small_cells
    if config.start is None:
        expression = None if config.pictures else LinearProgramEncoder.load(encoder_folder(config, "programs"))
        return WindowEncoding(load_autoencoder(config), None, small, device), expression
    folder = open_start(config)
    vae = starting_vae(folder)
    if learns_expression(config):
        known = SmallConvEncoder.load(folder.components["morphology_encoder"].path)
        return WindowEncoding(vae, known, small, device), LinearProgramEncoder.load(encoder_folder(config, "programs"))
    expression, morphology = starting_sources(folder, device)
    if config.expression.refit:
        expression = LinearProgramEncoder.load(encoder_folder(config, "expression"))
    if isinstance(morphology, SmallConvEncoder):
        return WindowEncoding(vae, morphology, small, device), expression
    return WholeEncoding(vae, morphology, device), expression


def _spot_file(config: TrainingConfig, rank: int) -> Path:
    return config.output / f"spots_{rank}.pt"


def _encode_spots(worker: Worker, config: TrainingConfig) -> None:
    """Encode the expression of this worker's share of the spots, as measured and thinned."""
    path = _spot_file(config, worker.rank)
    state = load_state(path)
    if state is None or state["count"] != worker.count:
        source, _ = starting_sources(open_start(config), worker.device)
        vectors = _spot_vectors(worker, config, source)
        if not worker.stop_wanted:  # what was computed so far is in the encoder's own cache
            save_state(path, vectors=vectors, count=worker.count)
    worker.wait()


def _spot_vectors(worker: Worker, config: TrainingConfig, source: Any) -> list[Tensor]:
    """Return, for each section, (n, VARIANTS, d) of this worker's spots; fewer where a stop was asked for."""
    sections = open_sections(config, "train")
    total = sum(len(section.yx) for section in sections)
    vectors: list[Tensor] = []
    for number, section in enumerate(sections):
        spots = section.section.spots
        rows = np.arange(worker.rank, len(spots), worker.count)
        rng = np.random.default_rng([config.seed, 5, number, worker.rank])
        counts = spots.counts[rows]
        tables = [counts] + [thinned_rows(counts, config.expression.thinning, rng) for _ in range(VARIANTS - 1)]
        own: list[Tensor] = []
        for start in range(0, len(rows), ENCODE_BATCH):
            if worker.stop_wanted:
                break
            now = rows[start : start + ENCODE_BATCH]
            part = [
                source.encode(table[start : start + ENCODE_BATCH], spots.genes, spots.relative_depth[now])
                for table in tables
            ]
            own.append(torch.from_numpy(np.stack(part, axis=1)))
            worker.report("expression", worker.count * sum(map(len, [*vectors, *own])), total)
        vectors.append(torch.cat(own) if own else torch.empty(0, VARIANTS, 0))
    return vectors


def _crop_file(config: TrainingConfig, rank: int) -> Path:
    return config.output / f"latents_{rank}.pt"


def _open_crops(
    config: TrainingConfig, encoder: Any
) -> tuple[CropSampler | PictureSampler, Callable[[Crop, np.random.Generator], Tensor] | None]:
    """Open the source of crops, and the function that gives a crop's expression; None for pictures."""
    if config.pictures:
        return open_pictures(config, config.latents.pictures), None
    sampler = open_sampler(config)
    is_program = isinstance(encoder, LinearProgramEncoder)
    return sampler, program_expression(encoder, sampler, config) if is_program else spot_expression(sampler, config)


def _encode(worker: Worker, config: TrainingConfig) -> None:
    """Encode this worker's share of the crops, continuing from what was saved."""
    path, wanted = _crop_file(config, worker.rank), -(-config.latents.crops // worker.count)
    state = load_state(path)
    if state is not None and state.get("of") != [worker.count, wanted]:
        state = None
    start = 0 if state is None else len(state["latents"])
    parts: dict[str, list[Tensor]] = {
        key: [] if state is None or key not in state else [state[key]]
        for key in ("latents", "statistics", "expression")
    }
    if start < wanted:
        encoding, encoder = _encodings(config, worker.device)
        sampler, expression = _open_crops(config, encoder)
    log, clock = Log(config.output / "latents.jsonl", worker.leads), Clock(config.checkpoint_seconds)

    def save() -> None:
        joined = {key: torch.cat(values) for key, values in parts.items() if values}
        save_state(path, of=[worker.count, wanted], **joined)

    done = start
    while done < wanted and not worker.stop_wanted:
        if (done - start) % (20 * ENCODE_BATCH) == 0:
            log.write(crops=done, of=wanted)
        rng = generator(config, worker, 3, done)  # a stop in between changes no crop
        crops = [sampler.draw(rng, config.patch_px) for _ in range(min(ENCODE_BATCH, wanted - done))]
        encoded, described = encoding(np.stack([crop.pixels for crop in crops]))
        parts["latents"].append(encoded)
        parts["statistics"].append(described)
        if expression is not None:
            parts["expression"].append(torch.stack([expression(crop, rng) for crop in crops]))
        done += len(crops)
        worker.report("latents", worker.count * done, worker.count * wanted)
        if done < wanted and clock.due():
            save()
    if done:
        save()
    worker.wait()


def measure_encoding(worker: Worker, config: TrainingConfig, file: Path) -> None:
    """Write a worker's seconds per crop into a JSON file."""
    encoding, encoder = _encodings(config, worker.device)
    sampler, expression = _open_crops(config, encoder)
    assert expression is not None  # of sections
    rng = generator(config, worker, 3, 0)

    def encode() -> None:
        crops = [sampler.draw(rng, config.patch_px) for _ in range(ENCODE_BATCH)]
        encoding(np.stack([crop.pixels for crop in crops]))
        for crop in crops:
            expression(crop, rng)

    seconds = timed(encode, 2) / ENCODE_BATCH
    if worker.leads:
        save_record(file, {"crop": seconds})
    worker.wait()


def _merge(config: TrainingConfig) -> None:
    """Join the workers' crops, fit the encoders and statistics that need all of them, and write the cache."""
    first = load_state(_crop_file(config, 0))
    assert first is not None  # the crops have just been encoded
    count = int(first["of"][0])
    parts = [load_state(_crop_file(config, rank)) for rank in range(count)]
    merged = {
        key: torch.cat([part[key] for part in parts if part is not None])
        for key in ("latents", "statistics", "expression")
        if key in first
    }
    device = torch.device(choose_compute(config).device)
    encoding, expression = _encodings(config, device)
    further = dict[str, Tensor]()
    vectors = merged.get("expression")
    if config.start is None:
        assert isinstance(encoding, WindowEncoding)
        model = load_autoencoder(config)
        statistics, components = merged["statistics"][:, 0].float(), config.latents.morphology_components
        encoding.encoder = fit_morphology(make_trunk(model), statistics, components)
        mean, std = latent_statistics(model, merged["latents"], config.latents.scale_power)
        whitened = encoding.conditions(merged["statistics"])
        encoding.encoder.save(encoder_folder(config, "morphology"))
    else:
        mean, std = latent_statistics_of(starting_vae(open_start(config)), merged["latents"].shape[1])
        whitened = encoding.conditions(merged["statistics"])
        if not isinstance(expression, LinearProgramEncoder):
            assert vectors is not None  # only pictures have none, and they start from nothing
            further["expression_spread"] = vectors.flatten(0, 1).std(0).mean()
        if isinstance(encoding, WholeEncoding):
            further["morphology_spread"] = whitened.flatten(0, 2).std(0).mean()
    if vectors is not None:
        if config.start is None or learns_expression(config):
            expression, vectors = rank_by_morphology(expression, vectors, whitened[:, 0])
            expression.save(encoder_folder(config, "expression"))
        further["expression"] = vectors
    save_state(
        cache_path(config),
        latents=merged["latents"],
        mean=mean,
        std=std,
        morphology=whitened,
        **further,
        **_held_out(config, encoding, expression),
    )
    for file in config.output.iterdir():
        if _SHARE.fullmatch(file.name):  # of this training with however many workers; nothing of the user's
            file.unlink()


def latent_statistics(model: StmditAutoencoder, latents: Tensor, power: float) -> tuple[Tensor, Tensor]:
    """Return the mean (C,) and scale (C,) that normalise latents (N, C, h, w); see `LatentSettings.scale_power`."""
    sample = latents[:: max(1, len(latents) // 1000)].float()
    mean, spread = sample.mean((0, 2, 3)), sample.std((0, 2, 3))
    weight = pixel_effect(model, sample[:16], spread) ** power
    return mean, spread / (weight / weight.square().mean().sqrt())


@torch.inference_mode()
def pixel_effect(model: StmditAutoencoder, latents: Tensor, spread: Tensor) -> Tensor:
    """Return (C,) the change of the decoded pixels by noise of a channel's standard deviation, relative to the largest."""
    base = model.decoder(latents)
    rng = torch.Generator().manual_seed(0)
    effects = []
    for channel in range(latents.shape[1]):
        moved = latents.clone()
        moved[:, channel] += spread[channel] * torch.randn(moved[:, channel].shape, generator=rng)
        effects.append((model.decoder(moved) - base).square().mean().sqrt())
    effect = torch.stack(effects)
    return effect / effect.max()


def _held_out(config: TrainingConfig, encoding: WindowEncoding | WholeEncoding, expression: Any) -> dict[str, Tensor]:
    """Encode spots of held-out sections, or crops of held-out pictures, for validation and samples only."""
    parts: dict[str, list[Tensor]] = {"held_latents": [], "held_morphology": [], "held_expression": []}
    crops = list(held_out_crops(config, HELD_OUT_CROPS).values()) if config.pictures else []
    for section in open_sections(config, "held_out"):
        rows = np.random.default_rng(config.seed).permutation(len(section.yx))[: config.latents.held_out_spots]
        rows.sort()
        crops.append(np.stack([cut(section.pixels, centre, config.patch_px)[0] for centre in section.yx[rows]]))
        if expression is not None:
            spots = section.section.spots
            vectors = expression.encode(spots.counts[rows], spots.genes, spots.relative_depth[rows])
            parts["held_expression"].append(torch.from_numpy(np.asarray(vectors, dtype=np.float32)))
    for patches in crops:
        for start in range(0, len(patches), ENCODE_BATCH):
            encoded, described = encoding(patches[start : start + ENCODE_BATCH])
            parts["held_latents"].append(encoded)
            parts["held_morphology"].append(encoding.conditions(described))
    return {name: torch.cat(values) for name, values in parts.items() if values}
