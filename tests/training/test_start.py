"""Going on from a checkpoint: its autoencoder and encoders stay, its transformer learns further."""

import json

import pytest
import torch

from napari_stmdit.errors import CheckpointError
from napari_stmdit.training.config import load_config
from napari_stmdit.training.state import load_state
from napari_stmdit.training.train import run_stage, train


@pytest.fixture
def begun(tiny_config, tmp_path, monkeypatch):
    monkeypatch.setattr("napari_stmdit.training.autoencoder.FIT_CROPS", 12)
    return train(tiny_config(), output=tmp_path / "begun")


def tensors(folder):
    from safetensors.torch import load_file

    return load_file(next(folder.glob("*.safetensors")))


def test_a_training_goes_on_from_a_checkpoint(begun, tiny_config, tmp_path):
    settings = {
        "steps": 3,
        "small_cells": 4,
        "small_batch": 3,
        "batch": 2,
        "rate": 1e-6,
        "matrix_rate": 1e-6,
        "validate_every": 3,
    }
    path = tiny_config(start=str(begun), diffusion=settings, seed=5)
    folder = train(path, output=tmp_path / "more")
    for part in ("vae", "expression_encoder", "morphology_encoder"):
        old, new = tensors(begun / part), tensors(folder / part)
        assert set(old) == set(new) and all(torch.equal(old[key], new[key]) for key in old), part
    old, new = tensors(begun / "transformer"), load_state(tmp_path / "more" / "diffusion.pt")["model"]
    moved = [float((old[key].float() - new[key]).abs().max()) for key in old]
    assert 0 < max(moved) < 1e-4  # it started from those weights, and learned
    assert "It went on from the checkpoint `tiny` (SHA-256 " in (folder / "README.md").read_text()
    lines = (tmp_path / "more" / "diffusion.jsonl").read_text().splitlines()
    before, first, after = map(json.loads, lines)
    assert first["step"] == 0 and not (tmp_path / "more" / "autoencoder.pt").exists()
    # what it started from is measured and drawn as well: else nobody could say whether it got better
    assert before["before"] is True and before["seen_in_training"].keys() == after["seen_in_training"].keys()
    assert [path.name for path in sorted((tmp_path / "more" / "samples").iterdir())] == [
        "step_000000.png",
        "step_000003.png",
    ]
    train(path, output=tmp_path / "more")
    assert len((tmp_path / "more" / "diffusion.jsonl").read_text().splitlines()) == 3


def test_a_checkpoint_that_is_not_there_is_refused(tiny_config):
    config = load_config(tiny_config(start="nowhere"))
    with pytest.raises(CheckpointError, match="'nowhere', which is neither a folder nor one of demo"):
        run_stage(config, "latents")
