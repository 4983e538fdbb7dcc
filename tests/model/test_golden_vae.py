"""Section 5 of the numeric fixtures: the SD3.5-style VAE."""

import json

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file

from napari_stmdit.model.autoencoder import decode_images, decode_latents, encode_latents


@pytest.fixture
def vae(golden):
    vae = AutoencoderKL.from_config(json.loads((golden / "vae_tiny_config.json").read_text()))
    vae.load_state_dict(load_file(golden / "vae_tiny.safetensors"))
    return vae.eval()


def test_encoding(golden, vae):
    io = load_file(golden / "vae_tiny_io.safetensors")
    torch.testing.assert_close(encode_latents(vae, io["image"]), io["latents_scaled"], rtol=0, atol=2e-5)


def test_decoding(golden, vae):
    io = load_file(golden / "vae_tiny_io.safetensors")
    torch.testing.assert_close(decode_images(vae, io["latents_scaled"]), io["decoded"], rtol=0, atol=5e-5)
    nonsquare = decode_images(vae, io["nonsquare_latents_scaled"])
    torch.testing.assert_close(nonsquare, io["nonsquare_decoded"], rtol=0, atol=5e-5)
    pixels = decode_latents(vae, io["latents_scaled"]).transpose(0, 3, 1, 2).astype(int)
    difference = np.abs(pixels - io["decoded_uint8"].numpy().astype(int))
    assert difference.max() <= 1 and difference.mean() < 1e-3
