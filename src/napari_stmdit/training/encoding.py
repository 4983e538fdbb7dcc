"""What is computed once of crops: latents and morphology by networks, expression at the places of the crops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from torch import Tensor

from ..encoders.linear_programs import LinearProgramEncoder
from ..encoders.small_conv import FeatureTrunk, SmallConvEncoder, describe, describe_windows
from ..expression.genes import match_genes
from ..model.autoencoder import StmditAutoencoder
from ..model.vae import encode_latents, spatial_factor
from .autoencoder import to_tensor
from .conditions import counts_of, encode_places, make_trunk, thin
from .config import ExpressionSettings
from .data import Crop, TrainingSection, crop_weights

VARIANTS = 4
"""Expression vectors of one crop: different depths, the nearest spot or an interpolation."""
WINDOWS = 5
"""Places of a small crop inside a whole one, along each side."""


def window_corners(cells: int, small: int) -> list[tuple[int, int]]:
    """Return the corners (y, x), in latent cells, at which small crops of ``small`` cells are cut from crops of ``cells``."""
    places = sorted({int(place) for place in np.linspace(0, cells - small, WINDOWS)})
    return [(y, x) for y in places for x in places]


# ------------------------------------------------------------------------------------------------- images


class ImageEncoding(Protocol):
    """Turns crops into latents and morphology."""

    def __call__(self, pixels: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
        """(B, H, W, 3) uint8 -> latents (B, C, h, w) float16, and what `conditions` takes."""

    def conditions(self, described: Tensor) -> Tensor:
        """Return the morphology: (B, 1 + W, d) of the whole crop and its W windows, or (B, 1, T, d) of the whole alone."""


class WindowEncoding:
    """Latents, and the statistics of a `FeatureTrunk` of the whole crop and of its windows.

    Parameters
    ----------
    vae
        Of the latents.
    encoder
        Of the morphology; None where it is yet to be fitted to the statistics: its network is then the autoencoder's own.
    small_cells
        Side of a window in latent cells.
    device
        Where to compute.
    """

    def __init__(self, vae: Any, encoder: SmallConvEncoder | None, small_cells: int, device: torch.device) -> None:
        self.vae, self.encoder, self.small_cells, self.device = vae.to(device).eval(), encoder, small_cells, device
        self.trunk: FeatureTrunk = (make_trunk(vae) if encoder is None else encoder.trunk).to(device).eval()
        self.shared = isinstance(vae, StmditAutoencoder) and _same_network(vae, self.trunk)

    @torch.inference_mode()
    def __call__(self, pixels: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
        """(B, H, W, 3) uint8 -> latents (B, C, h, w) and statistics (B, 1 + W, s), both float16, on the CPU.

        A small crop is described by what is in it, not by what surrounds it. Where autoencoder and encoder share their network, as
        those trained here do, one pass gives both.
        """
        images = to_tensor(pixels).to(self.device)
        layers = self.trunk(images)
        if self.shared:
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
        """(B, 1 + W, s) statistics -> (B, 1 + W, d) whitened components."""
        assert self.encoder is not None  # fitted by now
        return self.encoder.whiten(described.float())


class WholeEncoding:
    """Latents, and the vectors of any morphology encoder, of the whole crop alone.

    Parameters
    ----------
    vae
        Of the latents.
    source
        Of the morphology; large networks are on their device already.
    device
        Where the latents are computed.
    """

    def __init__(self, vae: Any, source: Any, device: torch.device) -> None:
        self.vae, self.source, self.device = vae.to(device).eval(), source, device

    @torch.inference_mode()
    def __call__(self, pixels: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
        """(B, H, W, 3) uint8 -> latents (B, C, h, w) float16 and vectors (B, 1, T, d) float32, on the CPU."""
        latents = raw_latents(self.vae, to_tensor(pixels).to(self.device))
        return latents.half().cpu(), torch.from_numpy(self.source.encode(pixels))[:, None]

    def conditions(self, described: Tensor) -> Tensor:
        """Return the vectors as they are."""
        return described


def raw_latents(vae: Any, images: Tensor) -> Tensor:
    """Return the latents that the cache holds: of our autoencoder not normalised, of diffusers' VAEs by their own scale and shift."""
    latents: Tensor = vae.encoder(images) if isinstance(vae, StmditAutoencoder) else encode_latents(vae, images)
    return latents


def _same_network(vae: StmditAutoencoder, trunk: FeatureTrunk) -> bool:
    mine, other = vae.encoder.trunk.state_dict(), trunk.trunk.state_dict()
    return mine.keys() == other.keys() and all(
        value.shape == other[name].shape and torch.equal(value, other[name]) for name, value in mine.items()
    )


# ------------------------------------------------------------------------------------------------- expression


class PlaceExpression(Protocol):
    """Gives the expression of a crop."""

    def __call__(self, crop: Crop, rng: np.random.Generator) -> Tensor:
        """Return (VARIANTS, d) vectors of the place a crop was cut at."""


class ProgramExpression:
    """Program scores of the expression at a crop's place: interpolated between spots or the nearest one's, at different depths."""

    def __init__(
        self, encoder: LinearProgramEncoder, sections: Sequence[TrainingSection], settings: ExpressionSettings
    ) -> None:
        self.encoder, self.sections, self.settings = encoder, sections, settings
        self._tables = [counts_of(section, encoder.genes) for section in sections]
        self._present = [match_genes(encoder.genes, s.section.spots.genes).columns >= 0 for s in sections]

    def __call__(self, crop: Crop, rng: np.random.Generator) -> Tensor:
        """Return (VARIANTS, d)."""
        section, counts = self.sections[crop.section], self._tables[crop.section]
        weights = np.stack([crop_weights(section, crop.centre, self.settings, rng) for _ in range(VARIANTS)])
        present = self._present[crop.section]
        depth = section.section.spots.relative_depth
        vectors = encode_places(self.encoder, counts, weights, self.settings.thinning, rng, present, depth)
        return torch.from_numpy(vectors)


class SpotExpression:
    """Vectors of the spot nearest to a crop, as inference sees it; any encoder's, computed once for every spot.

    Parameters
    ----------
    vectors
        For each section, (n, VARIANTS, d) from `encode_spots`.
    sections
        The sections.
    """

    def __init__(self, vectors: Sequence[Tensor], sections: Sequence[TrainingSection]) -> None:
        self.vectors, self.sections = vectors, sections

    def __call__(self, crop: Crop, rng: np.random.Generator) -> Tensor:
        """Return (VARIANTS, d)."""
        nearest = int(np.square(self.sections[crop.section].yx - crop.centre).sum(axis=1).argmin())
        return self.vectors[crop.section][nearest]


def thinned_rows(counts: csr_matrix, thinning: float, rng: np.random.Generator) -> csr_matrix:
    """Return counts (n, g), a random half of the rows thinned by a random factor up to ``thinning``."""
    table = counts.tocsr().astype(np.float32)
    factors = np.where(rng.random(table.shape[0]) < 0.5, 1.0, np.exp(rng.uniform(0, np.log(thinning), table.shape[0])))
    rows = [thin(table.data[a:b], f, rng) for a, b, f in zip(table.indptr, table.indptr[1:], factors, strict=False)]
    data = np.concatenate(rows) if rows else table.data
    thinned = csr_matrix((data, table.indices, table.indptr), shape=table.shape)
    thinned.eliminate_zeros()
    return thinned
