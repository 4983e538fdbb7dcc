"""Going on from a checkpoint: its autoencoder and encoders stay, its transformer learns further."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from training_settings import write_config

from napari_stmdit.assemble import load_checkpoint
from napari_stmdit.errors import CheckpointError, RequestError
from napari_stmdit.training.autoencoder import load_autoencoder
from napari_stmdit.training.config import load_config
from napari_stmdit.training.diffusion import equivalent_scores
from napari_stmdit.training.state import load_state
from napari_stmdit.training.train import run_stage, train


@pytest.fixture(scope="module")
def trained(tiny_folder, tmp_path_factory):
    """A training's checkpoint. Do not write in it."""
    place = tmp_path_factory.mktemp("begun")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("napari_stmdit.training.autoencoder.FIT_CROPS", 12)
        return train(write_config(place / "config.yaml", tiny_folder), output=place / "begun")


@pytest.fixture
def begun(trained, tmp_path, monkeypatch):
    """A copy of it that a test may change."""
    monkeypatch.setattr("napari_stmdit.training.autoencoder.FIT_CROPS", 12)
    return shutil.copytree(trained, tmp_path / "begun")


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
    assert "It started from the checkpoint `tiny` (SHA-256 " in (folder / "README.md").read_text()
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


def test_programs_are_read_anew_and_the_decoder_is_refined_where_asked(begun, tiny_config, tmp_path):
    changes = {
        "expression": {"refit": True, "thinning": 3.0},
        "autoencoder": {"refine": True, "decoder_steps": 2, "crop_px": 32},
    }
    folder = train(tiny_config(start=str(begun), seed=5, **changes), output=tmp_path / "more")
    old, new = tensors(begun / "vae"), tensors(folder / "vae")
    same = {key for key in old if torch.equal(old[key], new[key])}
    assert {key for key in old if key.startswith("encoder.")} <= same  # latents stay what they are
    assert any(key.startswith("decoder.") for key in set(old) - same)
    for part in ("config.json",):
        assert json.loads((begun / "vae" / part).read_text()) == json.loads((folder / "vae" / part).read_text())
    settings = changes["autoencoder"] | {"refined_share": 0.5}
    path = tiny_config(start=str(begun), seed=5, autoencoder=settings)
    half = load_autoencoder(load_config(path, output=tmp_path / "more")).state_dict()
    assert all(torch.allclose(half[key], (old[key].float() + new[key].float()) / 2, atol=1e-3) for key in old)
    genes = [
        json.loads((place / "expression_encoder" / "config.json").read_text())["genes"] for place in (begun, folder)
    ]
    assert genes[0] == genes[1]
    checkpoint = load_checkpoint(folder, device="cpu", dtype="float32")
    assert checkpoint.expression.uses_depth and checkpoint.profiles["tumour"].depth is not None
    old, new = tensors(begun / "morphology_encoder"), tensors(folder / "morphology_encoder")
    assert all(torch.equal(old[key], new[key]) for key in old)


def test_a_part_of_another_kind_cannot_be_refitted(begun, tiny_config):
    index = json.loads((begun / "model_index.json").read_text())
    index["expression_encoder"][1] = "CancerFoundationEncoder"
    (begun / "model_index.json").write_text(json.dumps(index))
    config = load_config(tiny_config(start=str(begun), expression={"refit": True}))
    with pytest.raises(RequestError, match=r"expression\.refit: the encoder of 'tiny' is a CancerFoundationEncoder"):
        run_stage(config, "latents")


def test_a_checkpoint_that_is_not_there_is_refused(tiny_config):
    config = load_config(tiny_config(start="nowhere"))
    with pytest.raises(CheckpointError, match="'nowhere', which is neither a folder nor one of demo"):
        run_stage(config, "latents")


def test_new_programs_stand_for_old_ones_that_vary_and_not_for_steep_ones():
    """Two old programs say the same of morphology; the second, which hardly varies, a hundred times as steeply."""
    said = torch.tensor([[1.0, 0.5, 0.0], [100.0, 50.0, 0.0]], dtype=torch.float64)
    spread = torch.tensor([1.0, 0.001], dtype=torch.float64)
    slope = torch.tensor([[2.0, 1.0, 0.0]], dtype=torch.float64)
    found = equivalent_scores(slope, said, spread)
    torch.testing.assert_close(found @ said, slope, rtol=0.02, atol=0)
    assert found[0, 0] > 1.9 and abs(found[0, 1]) < 0.001


def test_pictures_refine_the_decoder_of_a_checkpoint_and_nothing_else(begun, tiny_config, tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(40, 216, (200, 200, 3), dtype=np.uint8)).save(tmp_path / "p.png")
    picture = {"kind": "image", "name": "slide", "image": str(tmp_path / "p.png"), "mpp": 0.7}
    changes = {"start": str(begun), "train": [], "pictures": [picture], "transformer": {}}
    with pytest.raises(RequestError, match="leave out 'start', or set 'autoencoder.refine'"):
        load_config(tiny_config(**changes))
    refined = {"refine": True, "decoder_steps": 2, "crop_px": 32}
    folder = train(tiny_config(**changes, autoencoder=refined), output=tmp_path / "more")
    files = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    told = {".made_by.json", "README.md", "stmdit.json", "training.json", "vae/diffusion_pytorch_model.safetensors"}
    assert files == {str(file.relative_to(begun)) for file in begun.rglob("*") if file.is_file()}
    assert {name for name in files if (folder / name).read_bytes() != (begun / name).read_bytes()} == told
    old, new = tensors(begun / "vae"), tensors(folder / "vae")
    assert {name.split(".")[0] for name in old if not torch.equal(old[name], new[name])} == {"decoder"}
    words = (folder / "README.md").read_text()
    assert "- Transformer: that checkpoint's, unchanged." in words and "- Decoder: 2 further steps" in words
    card = load_checkpoint(folder, device="cpu").card
    assert card.conditions == ("expression", "morphology") and card.profiles
