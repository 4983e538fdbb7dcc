"""Losses of the autoencoder: pixels, gradients, local texture, and a patch discriminator."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def luminance(images: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, 1, H, W): a weighted mean that favours green, where haematoxylin and eosin absorb most."""
    weights = images.new_tensor([0.35, 0.4, 0.25]).view(1, 3, 1, 1)
    return (images * weights).sum(dim=1, keepdim=True)


def gradient_loss(output: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference of the horizontal and vertical differences between neighbouring pixels."""
    error = output - target
    return error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()


class TextureLoss(nn.Module):
    """Difference in local texture: energies of 4 x 4 cosine components in overlapping windows, at two scales.

    Unlike a pixel loss it does not reward blur where the exact place of an edge cannot be known.
    """

    def __init__(self, scales: int = 2) -> None:
        super().__init__()
        self.scales = scales
        place = torch.arange(4) + 0.5
        basis = torch.stack([torch.cos(math.pi * k * place / 4) for k in range(4)])
        basis = basis / basis.norm(dim=1, keepdim=True)
        filters = torch.einsum("ai,bj->abij", basis, basis).reshape(16, 1, 4, 4)[1:]  # without the mean
        self.filters: Tensor
        self.register_buffer("filters", filters)

    def energies(self, images: Tensor) -> list[Tensor]:
        """Root mean squares of the components: one (B, 15, h, w) tensor for each scale."""
        grey = luminance(images)
        out = []
        for scale in range(self.scales):
            if scale:
                grey = F.avg_pool2d(grey, 2)
            power = F.conv2d(grey, self.filters, stride=2).square()
            out.append((F.avg_pool2d(power, 4, stride=2) + 1e-4).sqrt())
        return out

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Mean absolute difference of the energies, summed over the scales."""
        pairs = zip(self.energies(output), self.energies(target), strict=True)
        return torch.stack([(a - b).abs().mean() for a, b in pairs]).sum()


class PatchDiscriminator(nn.Module):
    """Judges overlapping pieces of an image; its features also serve as a perceptual distance."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [
                nn.Conv2d(12, width, 3, padding=1),
                nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
                nn.Conv2d(2 * width, 128, 4, stride=2, padding=1),
                nn.Conv2d(128, 128, 3, padding=1),
            ]
        )
        self.head = nn.Conv2d(128, 1, 3, padding=1)

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(B, 3, H, W) -> scores (B, 1, H/8, W/8), high for real, and the features of each layer."""
        x = F.pixel_unshuffle(images, 2)
        features = []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
            features.append(x)
        return self.head(x), features


def feature_distance(output: list[Tensor], target: list[Tensor]) -> Tensor:
    """Mean absolute difference of a discriminator's features, each layer relative to its own size."""
    parts = [
        (a.float() - b.float()).abs().mean() / (b.float().abs().mean() + 1e-3)
        for a, b in zip(output, target, strict=True)
    ]
    return torch.stack(parts).mean()
