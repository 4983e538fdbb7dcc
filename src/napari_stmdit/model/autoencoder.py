"""The bundled autoencoder, and images to latents and back with it or the VAE of diffusers.

The backbone of the bundled one is linear and known in closed form: the principal components of 8 x 8 pixel blocks, and the least-squares
decoder from 3 x 3 latent neighbours. Convolutions add what a linear map cannot: they start at zero and learn the residual. It normalises its
latents itself; the VAE of diffusers is scaled and shifted by its config. The tiny decoder (TAESD3) for previews takes scaled and shifted
latents, as in sampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import CheckpointError, SynthesisError
from .base import ConfigMixin, ModelMixin, register_to_config

FACTOR = 8
"""Pixels per latent cell, along each side."""


class ResidualUnit(nn.Module):
    """Two 3 x 3 convolutions around an identity; the second starts small, so that the unit starts near the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        with torch.no_grad():
            self.conv2.weight.mul_(0.2)
            _bias(self.conv2).zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, width, H, W) to the same shape."""
        y: Tensor = self.conv2(F.silu(self.conv1(F.silu(x))))
        return x + y


class Encoder(nn.Module):
    """Images to latents: linear blocks plus a convolutional residual."""

    def __init__(self, in_channels: int, latent_channels: int, widths: Sequence[int]) -> None:
        super().__init__()
        fine, coarse = widths
        self.linear = nn.Conv2d(in_channels, latent_channels, FACTOR, stride=FACTOR)
        self.trunk = nn.Sequential(
            nn.PixelUnshuffle(4),
            nn.Conv2d(16 * in_channels, fine, 3, padding=1),
            ResidualUnit(fine),
            nn.Conv2d(fine, coarse, 4, stride=2, padding=1),
            ResidualUnit(coarse),
            ResidualUnit(coarse),
        )
        self.head = _zero(nn.Conv2d(coarse, latent_channels, 3, padding=1))

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, 3, H, W) in [-1, 1] to (B, C, H/8, W/8), not normalised."""
        linear: Tensor = self.linear(images)
        residual: Tensor = self.head(F.silu(self.trunk(images)))
        return linear + residual


class Decoder(nn.Module):
    """Latents to images: linear blocks plus a convolutional residual."""

    def __init__(self, out_channels: int, latent_channels: int, widths: Sequence[int]) -> None:
        super().__init__()
        coarse, middle, fine = widths
        self.linear = nn.Conv2d(latent_channels, out_channels * FACTOR**2, 3, padding=1)
        self.stem = nn.Conv2d(latent_channels, coarse, 3, padding=1)
        self.body = nn.Sequential(
            ResidualUnit(coarse),
            ResidualUnit(coarse),
            ResidualUnit(coarse),
            nn.Conv2d(coarse, 4 * middle, 3, padding=1),
            nn.PixelShuffle(2),
            ResidualUnit(middle),
            ResidualUnit(middle),
            nn.Conv2d(middle, 4 * fine, 3, padding=1),
            nn.PixelShuffle(2),
            ResidualUnit(fine),
        )
        self.head = _zero(nn.Conv2d(fine, 4 * out_channels, 3, padding=1))

    def forward(self, latents: Tensor) -> Tensor:
        """Map latents (B, C, h, w), not normalised, to images (B, 3, 8h, 8w), not clamped."""
        residual = F.pixel_shuffle(self.head(F.silu(self.body(self.stem(latents)))), 2)
        return F.pixel_shuffle(self.linear(latents), FACTOR) + residual


class StmditAutoencoder(ModelMixin, ConfigMixin):
    """Small deterministic autoencoder, 8 pixels per latent cell along each side.

    Parameters
    ----------
    in_channels, latent_channels
        Channels of an image, and of a latent.
    encoder_widths, decoder_widths
        Widths of the convolutional residuals: (at 1/4, at 1/8) and (at 1/8, at 1/4, at 1/2) of the resolution.
    latent_mean, latent_std
        Per channel: normalised latents are (latent - mean) / std. The std need not make every channel's variance one:
        a channel that matters more for the pixels may keep more variance.
    """

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        latent_channels: int = 12,
        encoder_widths: tuple[int, int] = (64, 96),
        decoder_widths: tuple[int, int, int] = (128, 64, 32),
        latent_mean: tuple[float, ...] | None = None,
        latent_std: tuple[float, ...] | None = None,
    ) -> None:
        super().__init__()
        self.encoder = Encoder(in_channels, latent_channels, encoder_widths)
        self.decoder = Decoder(in_channels, latent_channels, decoder_widths)
        self._mean = tuple(latent_mean) if latent_mean is not None else (0.0,) * latent_channels
        self._std = tuple(latent_std) if latent_std is not None else (1.0,) * latent_channels

    def set_latent_statistics(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Set the per-channel mean and std and record them in the config."""
        self._mean, self._std = tuple(map(float, mean)), tuple(map(float, std))
        self.register_to_config(latent_mean=self._mean, latent_std=self._std)

    def encode_latents(self, images: Tensor) -> Tensor:
        """Encode images (B, 3, H, W) in [-1, 1] as normalised latents (B, C, H/8, W/8)."""
        latents: Tensor = self.encoder(images)
        return (latents - self._channels(self._mean, latents)) / self._channels(self._std, latents)

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Decode normalised latents (B, C, h, w) into images (B, 3, 8h, 8w) in [-1, 1]."""
        raw = latents * self._channels(self._std, latents) + self._channels(self._mean, latents)
        images: Tensor = self.decoder(raw)
        return images.clamp(-1, 1)

    @staticmethod
    def _channels(values: tuple[float, ...], like: Tensor) -> Tensor:
        return torch.tensor(values, dtype=like.dtype, device=like.device).view(1, -1, 1, 1)

    @torch.no_grad()
    def fit_linear(self, images: Tensor, ridge: float = 2.5e-3) -> float:
        """Set the linear maps in closed form; return the peak signal-to-noise ratio, in dB, of the linear reconstruction.

        The encoder becomes the leading principal components of the 8 x 8 blocks of ``images`` (N, 3, H, W) in [-1, 1], scaled to unit
        variance; the decoder the regression of a block on the 3 x 3 latents around it, with ``ridge`` as penalty per sample.
        """
        channels = int(self.config["latent_channels"])
        blocks = F.pixel_unshuffle(images, FACTOR).permute(0, 2, 3, 1).reshape(-1, images.shape[1] * FACTOR**2)
        mean = blocks.mean(0)
        covariance = torch.cov(blocks.T)
        values, vectors = torch.linalg.eigh(covariance)
        components = vectors.T.flip(0)[:channels]
        weight = components / values.flip(0)[:channels].clamp_min(1e-12).sqrt()[:, None]
        # pixel_unshuffle orders a block as (channel, row, column), which is a convolution kernel's own order
        self.encoder.linear.weight.copy_(weight.view_as(self.encoder.linear.weight))
        _bias(self.encoder.linear).copy_(-weight @ mean)
        latents = self.encoder.linear(images)
        around = F.unfold(latents, 3, padding=1).transpose(1, 2).reshape(-1, channels * 9)
        around = torch.cat([around, torch.ones(len(around), 1)], dim=1)
        penalty = ridge * len(around) * torch.eye(around.shape[1])
        solution = torch.linalg.solve(around.T @ around + penalty, around.T @ blocks)
        self.decoder.linear.weight.copy_(solution[:-1].T.reshape_as(self.decoder.linear.weight))
        _bias(self.decoder.linear).copy_(solution[-1])
        error = (around @ solution - blocks).square().mean()
        return float(10 * torch.log10(4 / error))


def _zero(layer: nn.Conv2d) -> nn.Conv2d:
    """Set a convolution to zero, so that the branch it ends starts at zero."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(_bias(layer))
    return layer


def _bias(layer: nn.Conv2d) -> Tensor:
    assert layer.bias is not None
    return layer.bias


def is_tiny(vae: Any) -> bool:
    """Return whether this is the preview decoder of diffusers, ``AutoencoderTiny``."""
    from diffusers import AutoencoderTiny

    return isinstance(vae, AutoencoderTiny)


def spatial_factor(vae: Any) -> int:
    """Return the image pixels along the side of a latent pixel."""
    return FACTOR if isinstance(vae, StmditAutoencoder) else int(2 ** (len(vae.config.block_out_channels) - 1))


def latent_channels(vae: Any) -> int:
    """Return the number of latent channels."""
    return int(vae.config.latent_channels)


@torch.inference_mode()
def encode_latents(vae: Any, images: Tensor | NDArray[np.uint8]) -> Tensor:
    """Encode images as normalised latents (B, C, H / factor, W / factor); of a distribution, its mean.

    Parameters
    ----------
    vae
        A diffusers ``AutoencoderKL`` or the bundled ``StmditAutoencoder``.
    images
        (B, 3, H, W) in [-1, 1], or (B, H, W, 3) uint8.

    Raises
    ------
    SynthesisError
        The images have another shape, or sides that are no multiple of the factor, or ``vae`` is a preview decoder.
    """
    tensor = _to_unit_range(images).to(device=vae.device, dtype=vae.dtype)
    factor = spatial_factor(vae)
    if tensor.ndim != 4 or tensor.shape[1] != 3 or any(side % factor for side in tensor.shape[2:]):
        raise SynthesisError(
            f"images have shape {tuple(images.shape)}; expected (batch, 3, height, width) or uint8 (batch, height, width, 3) "
            f"with sides that are multiples of {factor}."
        )
    if is_tiny(vae):
        raise SynthesisError("AutoencoderTiny is a preview decoder here; encode with the VAE it was distilled from.")
    if hasattr(vae, "encode_latents"):
        return vae.encode_latents(tensor)  # type: ignore[no-any-return]
    shift, scale = _statistics(vae)
    return (vae.encode(tensor).latent_dist.mean - shift) * scale  # type: ignore[no-any-return]


@torch.inference_mode()
def decode_latents(vae: Any, latents: Tensor) -> NDArray[np.uint8]:
    """Decode normalised latents (B, C, h, w) into (B, h * factor, w * factor, 3) uint8 images."""
    pixels = (decode_images(vae, latents).float().clamp(-1, 1) + 1) * 127.5
    found: NDArray[np.uint8] = pixels.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return found


@torch.inference_mode()
def decode_images(vae: Any, latents: Tensor) -> Tensor:
    """Decode normalised latents (B, C, h, w) into (B, 3, H, W) images around [-1, 1], as the decoder gives them."""
    if latents.ndim != 4 or latents.shape[1] != latent_channels(vae):
        raise SynthesisError(
            f"latents have shape {tuple(latents.shape)}; this VAE expects (batch, {latent_channels(vae)}, height, width)."
        )
    latents = latents.to(device=vae.device, dtype=vae.dtype)
    if is_tiny(vae):
        if _statistics(vae) != (0.0, 1.0):
            raise CheckpointError(
                f"The AutoencoderTiny's config.json has shift and scale {_statistics(vae)}, expected (0.0, 1.0): it decodes "
                "normalised latents as they are. Those statistics belong to the VAE it was distilled from."
            )
        return vae.decode(latents, return_dict=False)[0]  # type: ignore[no-any-return]
    if hasattr(vae, "decode_latents"):
        return vae.decode_latents(latents)  # type: ignore[no-any-return]
    shift, scale = _statistics(vae)
    return vae.decode(latents / scale + shift, return_dict=False)[0]  # type: ignore[no-any-return]


def _statistics(vae: Any) -> tuple[float, float]:
    """Return shift and scale; a missing scale has no default, as it would change every latent."""
    shift, scale = vae.config.get("shift_factor"), vae.config.get("scaling_factor")
    if scale is None:
        raise CheckpointError(
            "The VAE's config.json lacks scaling_factor (the SD3.5 VAE has 1.5305, shift_factor 0.0609)."
        )
    return float(shift or 0.0), float(scale)


def _to_unit_range(images: Tensor | NDArray[np.uint8]) -> Tensor:
    tensor = torch.as_tensor(images)
    if tensor.dtype == torch.uint8 and tensor.ndim == 4:
        return tensor.permute(0, 3, 1, 2).float() / 127.5 - 1
    return tensor
