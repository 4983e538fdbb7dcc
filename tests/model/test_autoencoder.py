import numpy as np
import pytest
import torch

from napari_stmdit.model.autoencoder import StmditAutoencoder


def waves(count=6, side=64, seed=0):
    """Smooth images in [-1, 1] with some structure inside every 8 x 8 block."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    images = []
    for _ in range(count):
        fy, fx = rng.uniform(0.02, 0.12, (2, 3))
        phase = rng.uniform(0, 6.28, 3)
        images.append(0.8 * np.sin(2 * np.pi * (fy[:, None, None] * y + fx[:, None, None] * x) + phase[:, None, None]))
    return torch.tensor(np.stack(images), dtype=torch.float32)


@pytest.fixture(scope="module")
def fitted():
    torch.manual_seed(0)
    model = StmditAutoencoder(latent_channels=12, encoder_widths=(8, 8), decoder_widths=(8, 8, 8))
    psnr = model.fit_linear(waves(24))
    return model.eval(), psnr


def test_shapes_and_range(fitted):
    model, _ = fitted
    latents = model.encode_latents(waves(2, side=48)[:, :, :, :40])
    assert latents.shape == (2, 12, 6, 5)
    images = model.decode_latents(latents * 10)
    assert images.shape == (2, 3, 48, 40)
    assert images.abs().max() <= 1


def test_the_closed_form_start_already_reconstructs(fitted):
    model, psnr = fitted
    images = waves(4, seed=9)
    with torch.no_grad():
        error = (model.decode_latents(model.encode_latents(images)) - images).square().mean()
    assert psnr > 25
    assert 10 * torch.log10(4 / error) > 25


def test_linear_latents_have_unit_variance_and_no_correlation(fitted):
    model, _ = fitted
    with torch.no_grad():
        latents = model.encode_latents(waves(24)).permute(1, 0, 2, 3).flatten(1)
    assert torch.allclose(torch.corrcoef(latents), torch.eye(12), atol=0.02)
    assert torch.allclose(latents.std(1), torch.ones(12), atol=0.02)


def test_statistics_survive_saving_and_undo_each_other(fitted, tmp_path):
    model, _ = fitted
    images = waves(2)
    with torch.no_grad():
        plain, decoded = model.encode_latents(images), model.decode_latents(model.encode_latents(images))
        model.set_latent_statistics(range(12), [2.0] * 12)
        scaled = model.encode_latents(images)
    assert torch.allclose(scaled, (plain - torch.arange(12.0).view(1, -1, 1, 1)) / 2, atol=1e-5)
    model.save_pretrained(tmp_path)
    loaded = StmditAutoencoder.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.allclose(loaded.encode_latents(images), scaled, atol=1e-5)
        assert torch.allclose(loaded.decode_latents(scaled), decoded, atol=1e-4)
    model.set_latent_statistics([0.0] * 12, [1.0] * 12)


def test_an_image_does_not_depend_on_its_batch(fitted):
    model, _ = fitted
    torch.manual_seed(1)
    model.decoder.head.weight.data.normal_(std=0.1)  # let the convolutions speak
    latents = torch.randn(3, 12, 4, 4)
    with torch.no_grad():
        together, alone = model.decode_latents(latents), model.decode_latents(latents[1:2])
    model.decoder.head.weight.data.zero_()
    assert torch.allclose(together[1:2], alone, atol=1e-5)
