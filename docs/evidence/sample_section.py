"""The bundled sample sections: a designed tissue, its expression drawn from a checkpoint's profiles, its slide painted and made real by the network.

Everything in them is synthetic. They exist so that the plugin can be tried offline, at once, without anybody's data.
Run ``python docs/evidence/sample_section.py breast FOLDER`` (or ``colon``) to make one again; it takes some minutes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sample_painting import Painter, design_breast, design_colon, paint_breast, paint_colon
from scipy.ndimage import uniform_filter
from scipy.sparse import csr_matrix
from torch import Tensor

from napari_stmdit.assemble import Checkpoint, load_checkpoint
from napari_stmdit.model.autoencoder import decode_latents, encode_latents
from napari_stmdit.storage.atomic import check_free
from napari_stmdit.tissue.st_array import write_spaceranger_folder
from napari_stmdit.types import Genes, SpotTable

SIDE_PX = 2560
HIRES_PX = 850
"""Small, as the slide is there and the package has to stay so."""
PITCH_UM = 100.0
MARGIN_UM = 60.0
SPOT_UM = 55.0
ROUNDS = 8
EXPRESSION_SCALE = 1.5
STEPS = 16
NOTE = (
    "synthetic: a designed layout, expression drawn from the bundled checkpoint's tissue profiles, slide image painted by a program and made "
    "into tissue by the bundled checkpoint; no patient's data"
)
WINDOW, STRIDE, BATCH = 32, 16, 16
"""Sides of the network's windows and steps between them, in latent cells, and windows at a time."""


@dataclass(frozen=True)
class Tissue:
    """What a sample is made of.

    Attributes
    ----------
    checkpoint
        Bundled checkpoint whose profiles give the expression, and whose network makes the slide.
    depth
        Region, which is a profile of the checkpoint, -> median counts per spot over the checkpoint's genes, in the order of size that 10x
        sections have.
    design, paint
        Functions of a `Painter` that lay the regions out and paint them.
    noise
        Share of noise in the painting's latents from which the network makes tissue: less leaves paint, more forgets the design.
    """

    checkpoint: str
    depth: dict[str, int]
    design: Callable[[Painter], Any]
    paint: Callable[[Painter, Any], NDArray[np.uint8]]
    noise: float


TISSUES = {
    "breast": Tissue(
        "demo",
        {"tumour": 7000, "stroma": 4000, "adipose": 1800, "immune": 5500},
        design_breast,
        paint_breast,
        0.58,
    ),
    "colon": Tissue(
        "demo_colon",
        {"epithelial": 4000, "smooth_muscle": 2500, "stromal": 2500, "b_plasma": 4000},
        design_colon,
        paint_colon,
        0.5,
    ),
}


@dataclass(frozen=True)
class Layout:
    """Where each tissue is: weights (n, regions) of the regions at (n, 2) positions."""

    regions: tuple[str, ...]
    weights: NDArray[np.float64]


def build_sample(
    folder: str | Path, tissue: Tissue, checkpoint: Checkpoint, seed: int = 2026, side_px: int = SIDE_PX
) -> None:
    """Make a sample section and write it as a Space Ranger 2 folder.

    Parameters
    ----------
    folder
        Where to write; must not exist, or be empty.
    tissue, checkpoint
        What it is made of, and its checkpoint.
    seed
        Of the design, the counts and the noise.
    side_px
        Side of the slide, a multiple of 256.
    """
    check_free(Path(folder), "give a new folder")
    mpp, genes = checkpoint.card.patch_mpp, checkpoint.card.genes
    painter = Painter(side_px, mpp, np.random.default_rng(seed))
    designed = tissue.design(painter)
    maps = {name: designed.regions[name] for name in tissue.depth}
    array_rc, yx_um = hex_spots(side_px * mpp)
    empty = SpotTable(
        ids=np.array([f"SYN-{r:02d}x{c:02d}" for r, c in array_rc]),
        yx=yx_um / mpp,
        diameter=SPOT_UM / mpp,
        counts=csr_matrix((len(array_rc), len(genes)), dtype=np.float32),
        genes=Genes(np.array(genes)),
        array_rc=array_rc,
    )
    spots = express(empty, layout(empty, maps), tissue.depth, checkpoint, painter.rng)
    write_spaceranger_folder(
        Path(folder),
        image=made_real(tissue.paint(painter, designed), maps, tissue.noise, checkpoint, seed),
        ids=spots.ids,
        yx=spots.yx,
        counts=spots.counts,
        genes=spots.genes,
        mpp=mpp,
        array_rc=array_rc,
        diameter=spots.diameter,
        synthetic_note=NOTE,
        hires_px=HIRES_PX,
    )


def hex_spots(side_um: float) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return array indices (n, 2) and positions (n, 2) in microns of a Visium lattice that fills a square."""
    rows = int((side_um - 2 * MARGIN_UM) // (PITCH_UM * np.sqrt(3) / 2)) + 1
    columns = int((side_um - 2 * MARGIN_UM) // (PITCH_UM / 2)) + 1
    rc = np.array([(r, c) for r in range(rows) for c in range(r % 2, columns, 2)], dtype=np.int64)
    return rc, MARGIN_UM + rc * np.array([PITCH_UM * np.sqrt(3) / 2, PITCH_UM / 2])


def layout(spots: SpotTable, maps: Mapping[str, NDArray[np.bool_]]) -> Layout:
    """Return what share of each spot is covered by each region."""
    rows, columns = np.round(spots.yx).astype(int).T
    shares = [
        uniform_filter(mask.astype(float), round(spots.diameter), mode="nearest")[rows, columns]
        for mask in maps.values()
    ]
    weights = np.stack(shares, axis=1)
    return Layout(tuple(maps), weights / weights.sum(axis=1, keepdims=True))


def express(
    spots: SpotTable, tissue: Layout, depth: Mapping[str, int], checkpoint: Checkpoint, rng: np.random.Generator
) -> SpotTable:
    """Give spots counts that the checkpoint reads, region by region, as the spots that its profiles are of.

    A profile is a mean over spots of other depths than those drawn here, so its levels are moved, as little as possible, until they are.
    """
    encoder, profiles = checkpoint.expression, checkpoint.profiles
    means = {name: profiles[name].mean.astype(np.float64) for name in tissue.regions}
    for _ in range(ROUNDS):
        counts = draw_counts(tissue, means, {name: profiles[name].spread for name in tissue.regions}, depth, rng)
        spots = replace(spots, counts=counts)
        read = encoder.encode(counts, spots.genes, spots.relative_depth)
        for column, name in enumerate(tissue.regions):
            own = tissue.weights[:, column] > 0.7
            level = int(np.abs(np.log(encoder.levels / depth[name])).argmin())
            missing = profiles[name].encoding - read[own].mean(axis=0)
            means[name] += encoder.scale[level] * (np.linalg.pinv(encoder.projection[level].T) @ missing)
    return spots


def draw_counts(
    tissue: Layout,
    means: Mapping[str, NDArray[np.floating]],
    spreads: Mapping[str, NDArray[np.floating]],
    depth: Mapping[str, int],
    rng: np.random.Generator,
) -> csr_matrix:
    """Draw (n, g) counts: mixed means with half of each region's own spread, then Poisson at a drawn depth."""
    mean = tissue.weights @ np.stack([means[name] for name in tissue.regions])
    spread = tissue.weights @ np.stack([spreads[name] for name in tissue.regions])
    x = np.maximum(mean + 0.5 * spread * rng.normal(size=mean.shape), 0)
    share = np.expm1(x)
    share /= share.sum(axis=1, keepdims=True)
    median = tissue.weights @ np.array([depth[name] for name in tissue.regions])
    total = median * rng.lognormal(0, 0.25, len(median))
    return csr_matrix(rng.poisson(share * total[:, None]).astype(np.float32))


@torch.inference_mode()
def made_real(
    painting: NDArray[np.uint8],
    maps: Mapping[str, NDArray[np.bool_]],
    amount: float,
    checkpoint: Checkpoint,
    seed: int,
) -> NDArray[np.uint8]:
    """Make tissue of a painting: add noise to its latents and let the network take it away, given each window's expression.

    SDEdit: Meng et al. 2022, ICLR, arXiv 2108.01073; overlapping windows are joined at each step: Bar-Tal et al. 2023, ICML, arXiv 2302.08113.
    """
    network, vae = checkpoint.pipeline.transformer, checkpoint.pipeline.vae
    clean = encoded(vae, painting)
    cells = clean.shape[1]
    corners = [(y, x) for y in range(0, cells - WINDOW + 1, STRIDE) for x in range(0, cells - WINDOW + 1, STRIDE)]
    expression = window_expression(corners, maps, checkpoint)
    rim = torch.minimum(torch.arange(WINDOW) + 0.5, WINDOW - torch.arange(WINDOW) - 0.5) / WINDOW
    weight, total = torch.outer(rim, rim), torch.zeros(cells, cells)
    for y, x in corners:
        total[y : y + WINDOW, x : x + WINDOW] += weight
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed))
    state, times = (1 - amount) * clean + amount * noise, np.linspace(amount, 0, STEPS + 1)
    for now, then in zip(times, times[1:], strict=False):
        slope = torch.zeros_like(state)
        for start in range(0, len(corners), BATCH):
            part = slice(start, start + BATCH)
            items = torch.stack([state[:, y : y + WINDOW, x : x + WINDOW] for y, x in corners[part]])
            time = torch.full((len(items),), 1000 * float(now))
            blind = network(items, time, None, None)
            told = network(items, time, None, expression[part])
            for (y, x), found in zip(corners[part], blind + EXPRESSION_SCALE * (told - blind), strict=True):
                slope[:, y : y + WINDOW, x : x + WINDOW] += weight * found
        state = state + float(then - now) * slope / total
    return decoded(vae, state)


def window_expression(corners: list[tuple[int, int]], maps: list[NDArray[np.bool_]], checkpoint: Checkpoint) -> Tensor:
    """Return the encoded expression of windows: the profiles' encodings, mixed by how much of a window each region covers."""
    encodings = np.stack([checkpoint.profiles[name].encoding for name in maps])
    side = 8 * WINDOW
    mixes = np.array(
        [[mask[8 * y : 8 * y + side, 8 * x : 8 * x + side].mean() for mask in maps.values()] for y, x in corners]
    )
    return torch.tensor(mixes / mixes.sum(axis=1, keepdims=True) @ encodings, dtype=torch.float32)


def encoded(vae: object, picture: NDArray[np.uint8]) -> Tensor:
    """Encode a large picture by overlapping strips: (c, h / 8, w / 8)."""
    strips = []
    for y in range(0, len(picture), 256):
        top = max(0, y - 64)
        part = encode_latents(vae, np.ascontiguousarray(picture[None, top : y + 320]))[0].float()
        strips.append(part[:, (y - top) // 8 : (y - top) // 8 + 32])
    return torch.cat(strips, dim=1)


def decoded(vae: object, latents: Tensor) -> NDArray[np.uint8]:
    """Decode large latents by overlapping strips."""
    strips = []
    for y in range(0, latents.shape[1], 32):
        top = max(0, y - 8)
        part = decode_latents(vae, latents[None, :, top : y + 40])[0]
        strips.append(part[8 * (y - top) : 8 * (y - top) + 256])
    return np.concatenate(strips)


if __name__ == "__main__":
    chosen = TISSUES[sys.argv[1]]
    build_sample(sys.argv[2], chosen, load_checkpoint(chosen.checkpoint, dtype="float32"))
