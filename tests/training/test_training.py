"""All stages on a 30-spot section with a two-block transformer: real components, some steps."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from napari_stmdit.errors import CheckpointError, RequestError, StoreError
from napari_stmdit.storage.atomic import take_lock
from napari_stmdit.training.batches import Batches, batch_loss
from napari_stmdit.training.config import DiffusionSettings, load_config
from napari_stmdit.training.diffusion import Muon, build_transformer, optimizers
from napari_stmdit.training.latents import load_cache
from napari_stmdit.training.state import load_state
from napari_stmdit.training.train import run_stage, train
from napari_stmdit.types import Sampling


def losses(folder, name):
    lines = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line or "pixel" in line]


def error_of(config, state):
    """Loss of a state's weights on one large batch, always the same."""
    cache = load_cache(config)
    model = build_transformer(config, cache)
    model.load_state_dict(state["model"])
    with torch.no_grad():
        batches = Batches(cache, config.diffusion, seed=1)
        return float(batch_loss(model, batches, 256, False, torch.device("cpu")).flow)


@pytest.fixture
def quiet_limit(monkeypatch):
    monkeypatch.setattr("napari_stmdit.training.autoencoder.FIT_CROPS", 12)


@pytest.mark.usefixtures("quiet_limit")
def test_all_stages_make_a_checkpoint_that_loads_and_synthesizes(tiny_config, tiny_section, tmp_path):
    from napari_stmdit.assemble import load_checkpoint

    folder = train(tiny_config())
    checkpoint = load_checkpoint(folder, device="cpu")
    assert len(checkpoint.card.genes) == 12 and checkpoint.card.patch_px == 64
    assert set(checkpoint.card.profiles) == set(checkpoint.profiles) == {"tumour", "stroma", "adipose", "immune"}
    spots = tiny_section.spots
    expression = checkpoint.encode_expression(spots.counts[:2], spots.genes)
    morphology = checkpoint.encode_morphology(np.zeros((2, 64, 64, 3), dtype=np.uint8))
    *_, last = checkpoint.pipeline.denoise_images(
        morphology=morphology,
        expression=expression,
        seeds=(1, 2),
        sampling=Sampling(steps=3),
        height=64,
        width=64,
    )
    assert last.step == last.steps == 3 and last.images.shape == (2, 64, 64, 3)
    assert "her2st" not in (folder / "README.md").read_text() and "made up" in (folder / "README.md").read_text()
    readable = [file.stat().st_mode & 0o044 for file in folder.rglob("*.safetensors")]
    assert len(readable) == 6 and all(mode == 0o044 for mode in readable)


@pytest.mark.usefixtures("quiet_limit")
def test_the_same_seed_gives_the_same_losses_and_a_continued_run_goes_on(tiny_config, tmp_path):
    path = tiny_config()
    first, again = (load_config(path, output=tmp_path / name) for name in ("first", "again"))
    for config in (first, again):
        for stage in ("autoencoder", "latents", "diffusion"):
            run_stage(config, stage)
    for name in ("autoencoder", "diffusion"):
        kept = [{k: v for k, v in line.items() if k != "seconds"} for line in losses(first.output, name)]
        assert kept and kept == [
            {k: v for k, v in line.items() if k != "seconds"} for line in losses(again.output, name)
        ]

    before = load_state(first.output / "diffusion.pt")
    longer = first.model_copy(update={"diffusion": first.diffusion.model_copy(update={"steps": 60})})
    run_stage(longer, "diffusion")
    after = load_state(first.output / "diffusion.pt")
    assert (before["step"], after["step"], after["average"]["steps"]) == (4, 60, 60)
    assert losses(first.output, "diffusion")[-1]["step"] == 50
    assert error_of(longer, after) < error_of(longer, before)
    moved = [not torch.equal(before["model"][k], v) for k, v in after["model"].items()]
    assert any(moved)
    run_stage(longer, "diffusion")  # finished: nothing more happens
    assert all(torch.equal(load_state(first.output / "diffusion.pt")["model"][k], v) for k, v in after["model"].items())


def test_a_stage_says_what_must_run_before_it(tiny_config):
    config = load_config(tiny_config())
    for stage, needed in (("latents", "'autoencoder'"), ("diffusion", "'latents'")):
        with pytest.raises(CheckpointError, match=f"run the stage {needed} first"):
            run_stage(config, stage)
    with pytest.raises(RequestError, match="'all' is unknown"):
        train(tiny_config(), "all")


@pytest.mark.usefixtures("quiet_limit")
def test_nothing_is_encoded_with_an_autoencoder_that_may_still_change(tiny_config):
    path = tiny_config()
    config = load_config(path)
    run_stage(config, "autoencoder")
    more = config.autoencoder.model_copy(update={"steps": config.autoencoder.steps + 1})
    with pytest.raises(CheckpointError, match=r"at step \d+ of \d+; run the stage 'autoencoder' to its end first"):
        run_stage(config.model_copy(update={"autoencoder": more}), "latents")
    assert run_stage(config, "latents").is_file()


def test_samples_and_curves_are_kept_as_training_goes_on(tiny_config, tmp_path):
    from PIL import Image
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = {"steps": 4, "small_cells": 4, "small_batch": 3, "batch": 2, "sample_every": 2, "samples": 3}
    output = tmp_path / "run"
    train(tiny_config(diffusion=settings), output=output)
    grids = sorted((output / "samples").glob("*.png"))
    assert [grid.name for grid in grids] == ["step_000002.png", "step_000004.png"]
    with Image.open(grids[0]) as grid:
        assert grid.height > 5 * 64 and "Synthetic" in grid.text["Description"]
    events = EventAccumulator(str(output / "tensorboard" / "diffusion")).Reload()
    assert "loss/flow" in events.Tags()["scalars"] and events.Tags()["images"] == ["synthetic samples"]
    assert (
        "autoencoder/psnr" in EventAccumulator(str(output / "tensorboard" / "autoencoder")).Reload().Tags()["scalars"]
    )


def test_workers_leave_when_the_process_that_started_them_is_killed(tiny_config, tmp_path):
    import os
    import signal
    import subprocess
    import sys
    import time

    (tmp_path / "waiting.py").write_text(
        "import os, pathlib, sys, time\n"
        "def wait(worker):\n"
        "    pathlib.Path(__file__).with_name(f'pid{worker.rank}').write_text(str(os.getpid()))\n"
        "    while not worker.stop_wanted:\n"
        "        time.sleep(0.1)\n"
        "if __name__ == '__main__':\n"
        "    from napari_stmdit.training.config import load_config\n"
        "    from napari_stmdit.training.parallel import Control, run_workers\n"
        "    import waiting\n"
        "    run_workers(load_config(sys.argv[1]), Control(), waiting.wait)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "waiting.py"), str(tiny_config(workers=2))], env=environment
    )
    files = [tmp_path / f"pid{rank}" for rank in range(2)]
    until = time.monotonic() + 120
    while not all(file.is_file() and file.read_text() for file in files) and time.monotonic() < until:
        time.sleep(0.1)
    workers = [int(file.read_text()) for file in files]
    process.send_signal(signal.SIGKILL)
    process.wait()
    while any(map(alive, workers)) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(map(alive, workers))


def test_two_trainings_do_not_share_their_work_files(tiny_config, tmp_path):
    output = tmp_path / "run"
    output.mkdir()
    held = take_lock(output)
    with pytest.raises(StoreError, match="another process is at work in"):
        train(tiny_config(), "autoencoder", output=output)
    assert [file.name for file in output.iterdir()] == ["lock"]
    held.release()
    assert train(tiny_config(), "autoencoder", output=output).is_file()


def alive(pid):
    import os

    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon to compare with")
@pytest.mark.parametrize("shape", [(24, 24), (24, 72), (72, 24)])
def test_muon_takes_the_steps_of_torchs_in_either_precision(shape):
    torch.manual_seed(0)
    first = torch.randn(shape)
    ours, half, theirs = (nn.Parameter(first.clone()) for _ in range(3))
    own = {"lr": 0.1, "weight_decay": 0.02, "momentum": 0.95}
    steppers = (
        Muon([ours], dtype=torch.float32, **own),
        Muon([half], dtype=torch.bfloat16, **own),
        torch.optim.Muon([theirs], adjust_lr_fn="match_rms_adamw", **own),
    )
    for _ in range(3):
        gradient = torch.randn(shape)
        for parameter, stepper in zip((ours, half, theirs), steppers, strict=True):
            parameter.grad = gradient.clone()
            stepper.step()
    moved = (theirs - first).norm()
    assert moved > 0.1
    assert (ours - theirs).norm() < 0.02 * moved and (half - theirs).norm() < 0.02 * moved
    steppers[0].load_state_dict(steppers[2].state_dict())  # of a training begun with torch's
    assert (steppers[0].state[ours]["momentum_buffer"] == steppers[2].state[theirs]["momentum_buffer"]).all()


@pytest.mark.parametrize(("products", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_matrices_are_multiplied_in_what_the_hardware_is_fast_at(monkeypatch, products, dtype):
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: products, raising=False)
    monkeypatch.setattr("torch.ops.mkldnn._is_mkldnn_bf16_supported", lambda: True)
    seen = []
    monkeypatch.setattr(
        "napari_stmdit.training.diffusion._orthogonal", lambda matrix: seen.append(matrix.dtype) or matrix
    )
    block = nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(4, 4)]), "out": nn.Linear(4, 2)})
    for parameter in block.parameters():
        parameter.grad = torch.ones_like(parameter)
    for optimizer, _ in optimizers(block, DiffusionSettings()):
        optimizer.step()
    assert seen == [dtype]
