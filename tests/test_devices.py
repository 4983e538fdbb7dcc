"""The precision that is chosen by itself, and the form a decoder is held in."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from napari_stmdit import Request, SampleOfSpots, load_checkpoint, synthesize
from napari_stmdit.devices import choose_device, decoder_on
from napari_stmdit.model.autoencoder import decode_latents
from napari_stmdit.tissue.open import open_sample_section

CPU = torch.device("cpu")


@pytest.mark.parametrize(("tiles", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_a_cpu_computes_in_bfloat16_where_it_has_matrix_tiles(monkeypatch, tiles, dtype):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles, raising=False)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    assert choose_device("cpu") == (CPU, dtype)
    assert choose_device("cpu", "float32") == (CPU, torch.float32)


@pytest.mark.parametrize(("hardware", "dtype"), [(True, torch.bfloat16), (False, torch.float16)])
def test_a_gpu_that_emulates_bfloat16_computes_in_float16(monkeypatch, hardware, dtype):
    monkeypatch.setattr("napari_stmdit.devices.devices", lambda: [("cuda:0", "GPU 0"), ("cpu", "CPU")])
    monkeypatch.setattr(torch.cuda, "device", lambda _: torch.inference_mode())
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation or hardware)
    assert choose_device("cuda") == (torch.device("cuda:0"), dtype)


@pytest.mark.parametrize(
    ("asked", "held"),
    [(torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16), (torch.float16, torch.float32)],
)
def test_a_decoder_follows_into_bfloat16_alone_and_its_layout_changes_nothing(asked, held):
    torch.manual_seed(0)
    up, down = ("UpDecoderBlock2D",) * 2, ("DownEncoderBlock2D",) * 2
    plain = AutoencoderKL(
        down_block_types=down, up_block_types=up, block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4
    ).eval()
    latents = torch.randn(1, 4, 16, 16)
    before = decode_latents(plain, latents).astype(int)
    vae = decoder_on(plain, CPU, asked)
    assert vae.dtype == held
    assert any(p.ndim == 4 and p.is_contiguous(memory_format=torch.channels_last) for p in vae.parameters())
    off = np.abs(decode_latents(vae, latents) - before)
    assert off.max() <= (1 if held == torch.float32 else 8)
    assert off.mean() < (0.01 if held == torch.float32 else 1)


def test_the_bundled_checkpoints_images_in_bfloat16_are_those_of_float32_to_a_grey_level():
    section, request = open_sample_section(), Request(region=SampleOfSpots(count=1), steps=6)
    images = []
    for dtype in ("float32", "bfloat16"):
        result = synthesize(section, request, load_checkpoint("demo", device="cpu", dtype=dtype))
        assert result.provenance["checkpoint"]["dtype"] == dtype
        images.append(np.asarray(result.rgba)[..., :3].astype(int))
    off = np.abs(images[0] - images[1])
    assert 0 < off.mean() <= 1


@pytest.mark.parametrize(
    "start",
    [
        "import napari_stmdit.ui.manifest",  # where napari comes in
        "sys.argv[1:] = ['--version']\nfrom napari_stmdit.cli import main\nwith suppress(SystemExit): main()",
    ],
    ids=["napari", "command"],
)
@pytest.mark.parametrize(("given", "found"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_are_told_to_sleep_before_torch_is_there_and_the_users_word_stays(start, given, found):
    code = f"import os, sys\nfrom contextlib import suppress\n{start}\nprint('torch' in sys.modules, os.environ['OMP_WAIT_POLICY'])"
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment |= {} if given is None else {"OMP_WAIT_POLICY": given}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.splitlines()[-1] == f"False {found}"
