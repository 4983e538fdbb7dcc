"""Feature spaces in which sets of patches are compared. Distances from two spaces are not comparable and are never mixed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ..encoders.small_conv import SmallConvEncoder

AT_ONCE = 16


class FeatureSpace(Protocol):
    """Something that describes patches by numbers."""

    @property
    def name(self) -> str:
        """What the space is called in reports; two spaces of one name are the same."""
        ...

    def features(self, patches: NDArray[np.uint8]) -> NDArray[np.float64]:
        """(n, h, w, 3) uint8 -> (n, d)."""
        ...


class EncoderStatistics:
    """Means and spreads of a small convolutional encoder's features, before they are whitened.

    Parameters
    ----------
    encoder
        Morphology encoder of a checkpoint. A checkpoint that is conditioned on its own encoder is judged in a space that it was
        told about: compare with another space.
    name
        Name of the space.
    """

    def __init__(self, encoder: SmallConvEncoder, name: str) -> None:
        self.encoder = encoder
        self.name = name

    def features(self, patches: NDArray[np.uint8]) -> NDArray[np.float64]:
        """(n, h, w, 3) uint8, sides divisible by 8 -> (n, d)."""
        parts = [
            self.encoder.statistics(patches[start : start + AT_ONCE]).numpy()
            for start in range(0, len(patches), AT_ONCE)
        ]
        return np.concatenate(parts).astype(np.float64)


class RandomConvolutions:
    """Means of three layers' worth of random, rectified convolutions: a space that no model was trained in or told about.

    Random weights keep texture statistics apart well enough to serve as a control (compare Ustyuzhaninov et al. 2017, "What does it
    take to generate natural textures?", ICLR).

    Parameters
    ----------
    seed
        Seed of the weights.
    """

    def __init__(self, seed: int = 123) -> None:
        import torch
        from torch import nn

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._layers = nn.Sequential(
                nn.Conv2d(3, 48, 7, stride=2, padding=3),
                nn.ReLU(),
                nn.Conv2d(48, 64, 5, stride=2, padding=2),
                nn.ReLU(),
                nn.Conv2d(64, 96, 3, stride=2, padding=1),
                nn.ReLU(),
            )
        self.name = f"random convolutions, seed {seed}"

    def features(self, patches: NDArray[np.uint8]) -> NDArray[np.float64]:
        """(n, h, w, 3) uint8 -> (n, 96)."""
        import torch

        parts = []
        with torch.inference_mode():
            for start in range(0, len(patches), AT_ONCE):
                images = torch.from_numpy(np.ascontiguousarray(patches[start : start + AT_ONCE])).permute(0, 3, 1, 2)
                parts.append(self._layers(images.float() / 127.5 - 1).mean((2, 3)).numpy())
        return np.concatenate(parts).astype(np.float64)


def quarters(patches: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Cut (n, h, w, 3) patches into their four quarters, (4n, h / 2, w / 2, 3): more samples for a distance between sets."""
    y, x = patches.shape[1] // 2, patches.shape[2] // 2
    return np.concatenate([patches[:, :y, :x], patches[:, :y, x:], patches[:, y:, :x], patches[:, y:, x:]])
