"""The precision that is chosen by itself, and the form a decoder is held in."""

import os
import platform
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from napari_stmdit import Request, load_checkpoint, synthesize
from napari_stmdit.devices import NICE, WAITING, choose_device, decoder_on, let_viewer_go_first
from napari_stmdit.model.autoencoder import decode_latents
from napari_stmdit.regions import SampleOfSpots
from napari_stmdit.tissue.open import open_sample_section

CPU = torch.device("cpu")


@pytest.mark.parametrize(("products", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_a_cpu_computes_in_bfloat16_where_its_hardware_multiplies_it(monkeypatch, products, dtype):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)  # as of AMD's
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: products, raising=False)
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
@pytest.mark.parametrize(("given", "found"), [(None, ["ACTIVE", "1000", "0"]), ("PASSIVE", ["PASSIVE", None, None])])
def test_threads_are_told_to_sleep_before_torch_is_there_and_the_users_word_stays(start, given, found):
    code = f"import os, sys\nfrom contextlib import suppress\n{start}\nprint('torch' in sys.modules, [os.environ.get(n) for n in {list(WAITING)}])"
    environment = {name: value for name, value in os.environ.items() if name not in WAITING}
    environment |= {} if given is None else {"OMP_WAIT_POLICY": given}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.splitlines()[-1] == f"False {found}"


def test_a_thread_may_need_the_networks_while_another_imports_them():
    # diffusers puts another module in its place once it is imported; who waited for it holds the one that was
    code = """
import sys, time
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
with ThreadPoolExecutor(2) as pool:
    first = pool.submit(import_module, "napari_stmdit.model.pipeline")
    while "diffusers" not in sys.modules:
        time.sleep(0)
    second = pool.submit(import_module, "napari_stmdit.model.autoencoder")
    first.result(), second.result()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def beside_a_viewer():
    """Return the priority and torch's threads of work in a thread of its own."""

    def work():
        let_viewer_go_first()
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id()), torch.get_num_threads()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


@pytest.mark.skipif(platform.system() != "Linux", reason="threads have a priority of their own on Linux alone")
def test_work_goes_after_the_viewer_and_keeps_all_cores():
    before = os.getpriority(os.PRIO_PROCESS, 0)
    let_viewer_go_first()  # in the viewer's own thread it does nothing
    assert beside_a_viewer() == (max(NICE, before), torch.get_num_threads())
    assert os.getpriority(os.PRIO_PROCESS, 0) == before


@pytest.mark.parametrize(("asked", "threads"), [(None, 3), ("2", None)])
def test_elsewhere_work_leaves_a_core_to_the_viewer(monkeypatch, asked, threads):
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if asked:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
    before = torch.get_num_threads()
    try:
        assert beside_a_viewer()[1] == (threads or before)
    finally:
        torch.set_num_threads(before)
