"""Images to latents and back, for the SD3-style VAE of diffusers and for the bundled autoencoder.

The VAE of diffusers is scaled and shifted by its config; the bundled autoencoder normalises its latents itself. A tiny decoder (TAESD3) is
for previews: it takes scaled and shifted latents, as in sampling.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import CheckpointError, SynthesisError


def is_tiny(vae: Any) -> bool:
    """Return whether this is the preview decoder of diffusers, ``AutoencoderTiny``."""
    from diffusers import AutoencoderTiny

    return isinstance(vae, AutoencoderTiny)


def spatial_factor(vae: Any) -> int:
    """Return the image pixels along the side of a latent pixel."""
    from .autoencoder import FACTOR, StmditAutoencoder

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
