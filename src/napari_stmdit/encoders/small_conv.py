"""Morphology as whitened statistics of a small convolutional network's features."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import CheckpointError
from ..files import read_json

WEIGHTS = "model.safetensors"
CLIP = 4.0
"""Whitened components are cut here, in standard deviations: a fold or a smear of ink must not leave the trained range."""


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv2(F.silu(self.conv1(F.silu(x))))
        return x + y


class FeatureTrunk(nn.Module):
    """The convolutional half of the bundled autoencoder's encoder; two of its layers are described by their statistics.

    Parameters
    ----------
    widths
        Channels at a quarter and at an eighth of the resolution.
    """

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
        """(B, 3, H, W) in [-1, 1] -> layers (B, fine, H/4, W/4) and (B, coarse, H/8, W/8)."""
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
    """Return (B, windows, s): what `describe` returns for square windows, ``side`` and corners (y, x) in pixels, divisible by 8."""
    parts = []
    for y, x in corners:
        cut = [
            layer[..., y // scale : (y + side) // scale, x // scale : (x + side) // scale]
            for layer, scale in ((images, 1), (layers[0], 4), (layers[1], 8))
        ]
        parts.append(describe(cut[0], (cut[1], cut[2])))
    return torch.stack(parts, dim=1)


class SmallConvEncoder:
    """Means and spreads of a small network's features over a patch, on their whitened principal components.

    Parameters
    ----------
    trunk
        The network.
    mean
        (s,) mean of the statistics in training.
    projection
        (s, d) from centred statistics to whitened components.
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
        """Encode patches.

        Parameters
        ----------
        patches
            (n, side, side, 3) uint8, side divisible by 8, at the checkpoint's own scale.

        Returns
        -------
        NDArray[np.float32]
            (n, 1, d).
        """
        batches = [self.statistics(patches[start : start + 16]) for start in range(0, len(patches), 16)]
        statistics = torch.cat(batches) if batches else torch.empty(0, len(self.mean))
        return self.whiten(statistics)[:, None].numpy()

    @torch.inference_mode()
    def statistics(self, patches: NDArray[np.uint8]) -> Tensor:
        """(n, side, side, 3) uint8 -> (n, s) statistics before whitening."""
        images = torch.from_numpy(np.ascontiguousarray(patches)).permute(0, 3, 1, 2).float() / 127.5 - 1
        images = images.contiguous(memory_format=torch.channels_last)
        return describe(images, self.trunk(images))

    def whiten(self, statistics: Tensor) -> Tensor:
        """(n, s) statistics -> (n, d) components, cut at `CLIP`."""
        return ((statistics - self.mean) @ self.projection).clamp(-CLIP, CLIP)

    def save(self, folder: Path) -> None:
        """Write ``config.json`` and ``model.safetensors``; the network's weights in half precision."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        first, second = self.trunk.trunk[1], self.trunk.trunk[3]
        config = {
            "_class_name": type(self).__name__,
            "widths": [first.out_channels, second.out_channels],
            "dim": self.dim,
        }
        (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
        tensors = {name: value.half().contiguous() for name, value in self.trunk.state_dict().items()}
        save_file(tensors | {"mean": self.mean, "projection": self.projection.contiguous()}, folder / WEIGHTS)

    @classmethod
    def load(cls, folder: Path) -> SmallConvEncoder:
        """Read an encoder; raises CheckpointError where its folder is incomplete or does not fit together."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            config = read_json(folder / "config.json")
            tensors = load_file(folder / WEIGHTS)
            fine, coarse = config["widths"]
            trunk = FeatureTrunk((int(fine), int(coarse)))
            mean, projection = tensors.pop("mean"), tensors.pop("projection")
            trunk.load_state_dict({name: value.float() for name, value in tensors.items()})
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise CheckpointError(f"{folder} is no readable morphology encoder: {error}") from error
        return cls(trunk, mean, projection)
