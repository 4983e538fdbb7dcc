"""Morphology as whitened statistics of a small convolutional network's features."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import CheckpointError
from .tensors import read_config, read_tensors, write_encoder

CLIP = 4.0
"""Limit of whitened components, in standard deviations: a fold or ink stays in the trained range."""


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv2(F.silu(self.conv1(F.silu(x))))
        return x + y


class FeatureTrunk(nn.Module):
    """Convolutional half of the bundled autoencoder's encoder, with ``widths`` channels at 1/4 and 1/8 of the resolution."""

    def __init__(self, widths: tuple[int, int]) -> None:
        super().__init__()
        fine, coarse = widths
        # names and order are those of the autoencoder's trunk, whose weights are copied here
        self.trunk = nn.Sequential(
            nn.PixelUnshuffle(4),
            nn.Conv2d(48, fine, 3, padding=1),
            _Residual(fine),
            nn.Conv2d(fine, coarse, 4, stride=2, padding=1),
            _Residual(coarse),
            _Residual(coarse),
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map (B, 3, H, W) in [-1, 1] to layers (B, fine, H/4, W/4) and (B, coarse, H/8, W/8)."""
        fine = self.trunk[:3](images)
        return fine, self.trunk[3:](fine)


def describe(images: Tensor, layers: tuple[Tensor, Tensor]) -> Tensor:
    """Return (B, 6 + 2 fine + 2 coarse): means and spreads of optical density and of the two layers of `FeatureTrunk`."""
    density = -((images + 1) * 127.5 + 1).div(256).log()
    parts = []
    for layer in (density, *layers):
        flat = layer.float().flatten(2)
        parts += [flat.mean(dim=2), flat.std(dim=2)]
    return torch.cat(parts, dim=1)


def describe_windows(
    images: Tensor, layers: tuple[Tensor, Tensor], corners: Sequence[tuple[int, int]], side: int
) -> Tensor:
    """Return what `describe` returns for square windows, (B, windows, s); ``side`` and corners (y, x) in pixels, divisible by 8."""
    parts = []
    for y, x in corners:
        cut = [
            layer[..., y // scale : (y + side) // scale, x // scale : (x + side) // scale]
            for layer, scale in ((images, 1), (layers[0], 4), (layers[1], 8))
        ]
        parts.append(describe(cut[0], (cut[1], cut[2])))
    return torch.stack(parts, dim=1)


class SmallConvEncoder:
    """Encoder of means and spreads of a small network's features over a patch, as whitened principal components.

    ``mean`` (s,) of the statistics in training; ``projection`` (s, d) from centred statistics to whitened components.
    """

    def __init__(self, trunk: FeatureTrunk, mean: Tensor, projection: Tensor) -> None:
        self.trunk = trunk.eval().requires_grad_(False)
        self.mean = mean.float()
        self.projection = projection.float()

    @property
    def dim(self) -> int:
        """Number of components d."""
        return int(self.projection.shape[1])

    @torch.inference_mode()
    def encode(self, patches: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Encode patches (n, side, side, 3) uint8, side divisible by 8 and at the checkpoint's own scale, as (n, 1, d)."""
        batches = [self.statistics(patches[start : start + 16]) for start in range(0, len(patches), 16)]
        statistics = torch.cat(batches) if batches else torch.empty(0, len(self.mean))
        return self.whiten(statistics)[:, None].numpy()

    @torch.inference_mode()
    def statistics(self, patches: NDArray[np.uint8]) -> Tensor:
        """Return (n, s) statistics before whitening of patches (n, side, side, 3) uint8."""
        images = torch.from_numpy(np.ascontiguousarray(patches)).permute(0, 3, 1, 2).float() / 127.5 - 1
        images = images.contiguous(memory_format=torch.channels_last)
        return describe(images, self.trunk(images))

    def whiten(self, statistics: Tensor) -> Tensor:
        """Return (n, d) components of (n, s) statistics, cut at `CLIP`."""
        return ((statistics - self.mean) @ self.projection).clamp(-CLIP, CLIP)

    def save(self, folder: Path) -> None:
        """Write ``config.json`` and ``model.safetensors``; the network's weights in half precision."""
        first, second = self.trunk.trunk[1], self.trunk.trunk[3]
        widths = [first.out_channels, second.out_channels]
        tensors = {name: value.half() for name, value in self.trunk.state_dict().items()}
        config = {"_class_name": type(self).__name__, "widths": widths, "dim": self.dim}
        write_encoder(folder, config, tensors | {"mean": self.mean, "projection": self.projection})

    @classmethod
    def load(cls, folder: Path) -> SmallConvEncoder:
        """Read an encoder; raises CheckpointError where its folder is incomplete or does not fit together."""
        config, tensors = read_config(folder, "morphology encoder"), read_tensors(folder, "morphology encoder")
        try:
            fine, coarse = config["widths"]
            trunk = FeatureTrunk((int(fine), int(coarse)))
            mean, projection = tensors.pop("mean"), tensors.pop("projection")
            trunk.load_state_dict({name: value.float() for name, value in tensors.items()})
        except (TypeError, ValueError, KeyError, RuntimeError) as error:
            raise CheckpointError(f"{folder} is no readable morphology encoder: {error}") from error
        return cls(trunk, mean, projection)
