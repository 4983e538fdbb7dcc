import json

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from safetensors.torch import load_file, save_file

from napari_stmdit.errors import CheckpointError, SynthesisError
from napari_stmdit.model.autoencoder import decode_images, decode_latents, encode_latents, spatial_factor
from napari_stmdit.model.folder import load_component, read_folder
from napari_stmdit.model.foreign.inspect import inspect_checkpoint


def make_tiny(**changes):
    torch.manual_seed(0)
    widths = {"encoder_block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4}
    tiny = AutoencoderTiny(
        latent_channels=16, num_encoder_blocks=(1,) * 4, num_decoder_blocks=(1,) * 4, **widths, **changes
    )
    with torch.no_grad():
        tiny.decoder.layers[-1].weight.mul_(6)  # spread the output over the grey levels
        tiny.decoder.layers[-1].bias.fill_(0.5)
    return tiny.eval()


@pytest.fixture
def tiny():
    return make_tiny(scaling_factor=1.0, shift_factor=0.0)


@pytest.fixture
def latents():
    return torch.randn(2, 16, 4, 6, generator=torch.Generator().manual_seed(1)) * 1.5


def by_hand(tiny, latents):
    """The decoder's own layers: its output lies in [0, 1] before diffusers moves it to [-1, 1]."""
    with torch.inference_mode():
        unit = tiny.decoder.layers(torch.tanh(latents / 3) * 3)
    return (unit.clamp(0, 1) * 255).permute(0, 2, 3, 1).numpy()


def test_latents_are_decoded_as_they_are(tiny, latents):
    images = decode_latents(tiny, latents)
    assert images.shape == (2, 32, 48, 3) and images.dtype == np.uint8
    assert images.min() < 60 and images.max() > 190  # neither flat nor all cut off
    assert np.abs(images - by_hand(tiny, latents)).max() <= 1.001
    unscaled = by_hand(tiny, latents / 1.5305 + 0.0609)
    assert np.abs(images - unscaled).max() > 10  # and this test would notice the scale of the SD3 VAE


def test_images_are_what_diffusers_decodes(tiny, latents):
    torch.testing.assert_close(decode_images(tiny, latents), tiny.decode(latents).sample, rtol=0, atol=1e-6)
    assert spatial_factor(tiny) == 8


@pytest.mark.parametrize("changes", [{"scaling_factor": 1.5305}, {"shift_factor": 0.0609}])
def test_statistics_of_another_vae_are_refused(latents, changes):
    with pytest.raises(CheckpointError, match=r"expected \(0.0, 1.0\)"):
        decode_latents(make_tiny(**changes), latents)


def test_what_is_no_preview(tiny, latents):
    with pytest.raises(SynthesisError, match=r"expects \(batch, 16, height, width\)"):
        decode_latents(tiny, latents[:, :4])
    with pytest.raises(SynthesisError, match="preview decoder"):
        encode_latents(tiny, torch.zeros(1, 3, 32, 32))


def test_the_real_vae_keeps_its_scale(latents):
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=16,
        norm_num_groups=4,
        scaling_factor=1.5305,
        shift_factor=0.0609,
    ).eval()
    with torch.inference_mode():
        expected = vae.decode(latents / 1.5305 + 0.0609).sample
    torch.testing.assert_close(decode_images(vae, latents), expected, rtol=0, atol=1e-6)


# ---------------------------------------------------------------- in a checkpoint folder


def add_preview(checkpoint, tiny, kind="AutoencoderTiny"):
    tiny.save_pretrained(checkpoint / "preview_vae")
    index = checkpoint / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "preview_vae": ["diffusers", kind]}))
    return checkpoint


def test_a_checkpoint_may_have_a_preview(tiny_checkpoint, tiny, latents):
    before = read_folder(tiny_checkpoint)
    folder = read_folder(add_preview(tiny_checkpoint, tiny))
    found = load_component(folder, "preview_vae")
    np.testing.assert_array_equal(decode_latents(found, latents), decode_latents(tiny, latents))
    assert not found.training and folder.sha256 != before.sha256
    assert inspect_checkpoint(tiny_checkpoint).components["preview_vae"] == "AutoencoderTiny"


def test_a_checkpoint_may_have_none(tiny_checkpoint):
    assert "preview_vae" not in read_folder(tiny_checkpoint).components
    index = tiny_checkpoint / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "preview_vae": [None, None]}))
    with pytest.raises(CheckpointError, match="no component 'preview_vae'; it has transformer"):
        load_component(read_folder(tiny_checkpoint), "preview_vae")


def test_a_preview_that_is_listed_must_be_whole(tiny_checkpoint, tiny):
    add_preview(tiny_checkpoint, tiny)
    weights = tiny_checkpoint / "preview_vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    first, second, *_ = tensors
    tensors[second] = tensors[second] * float("nan")
    save_file({"extra": torch.ones(2)} | {name: value for name, value in tensors.items() if name != first}, weights)
    with pytest.raises(CheckpointError) as caught:
        load_component(read_folder(tiny_checkpoint), "preview_vae")
    assert all(text in str(caught.value) for text in (first, "missing", second, "finite", "extra", "3 tensors"))
    settings = tiny_checkpoint / "preview_vae" / "config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "num_decoder_blocks": [1]}))
    with pytest.raises(CheckpointError, match="makes no AutoencoderTiny"):
        load_component(read_folder(tiny_checkpoint), "preview_vae")


def test_only_the_known_class_is_a_preview(tiny_checkpoint, tiny):
    add_preview(tiny_checkpoint, tiny, kind="AutoencoderKL")
    with pytest.raises(
        CheckpointError, match="preview_vae of .* is a 'AutoencoderKL'; this version knows AutoencoderTiny"
    ):
        load_component(read_folder(tiny_checkpoint), "preview_vae")
    (tiny_checkpoint / "preview_vae").rename(tiny_checkpoint / "elsewhere")
    with pytest.raises(CheckpointError, match="lacks the folder preview_vae/"):
        read_folder(tiny_checkpoint)
