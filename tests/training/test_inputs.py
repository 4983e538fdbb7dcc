"""Work files are used again with the inputs they were made from, and with no others."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from training_settings import TINY

from napari_stmdit.errors import CheckpointError
from napari_stmdit.training.config import load_config
from napari_stmdit.training.train import run_stage

SETTINGS = TINY["autoencoder"] | {"steps": 2, "decoder_steps": 1}


@pytest.fixture(autouse=True)
def quiet_limit(monkeypatch):
    monkeypatch.setattr("napari_stmdit.training.autoencoder.FIT_CROPS", 12)


@pytest.fixture
def config(tiny_config, tiny_folder, tmp_path):
    """A function that gives the config of a training of one output, changed; its section is the test's own."""
    shutil.copytree(tiny_folder, tmp_path / "section")
    train = [{"kind": "folder", "name": "tiny", "folder": str(tmp_path / "section")}]

    def make(**changes):
        return load_config(tiny_config(**{"autoencoder": SETTINGS, "train": train, **changes}), output=tmp_path / "run")

    return make


def blacken(folder):
    with Image.open(folder / "slide.png") as picture:
        pixels = np.asarray(picture).copy()
    pixels[400:412, 400:412] = 0
    Image.fromarray(pixels).save(folder / "slide.png")


def test_an_autoencoder_is_not_continued_on_other_data(config, tmp_path):
    run_stage(config(), "autoencoder")
    for changes, told in (
        ({"patch_mpp": 1.0}, r"patch_mpp: 0\.7 then, 1\.0 now"),
        ({"seed": 9}, "seed: 0 then, 9 now"),
        ({"augmentation": {"stain": 0.1}}, r"augmentation\.stain"),
        ({"autoencoder": {**SETTINGS, "noise": 0.5}}, r"autoencoder\.noise"),
    ):
        with pytest.raises(CheckpointError, match=f"made from other inputs .*{told}.*another output folder") as refused:
            run_stage(config(**changes), "autoencoder")
        assert "\n" not in str(refused.value)
    run_stage(config(autoencoder={**SETTINGS, "steps": 3}), "autoencoder")  # longer, on the same
    blacken(tmp_path / "section")
    with pytest.raises(CheckpointError, match=r"train\[0\]\.slide"):
        run_stage(config(), "latents")


def test_latents_are_not_taken_for_those_of_other_settings(config, tmp_path):
    for stage in ("autoencoder", "latents"):
        run_stage(config(), stage)
    expression = {"genes": 11, "programs": 4, "thinning": 3.0}
    for changes, told in (
        ({"expression": expression}, r"expression\.genes: 12 then, 11 now"),
        ({"latents": {"crops": 12, "morphology_components": 6}}, r"latents\.crops"),
        ({"autoencoder": {**SETTINGS, "steps": 3}}, r"autoencoder\.steps: 2 then, 3 now"),
    ):
        for stage in ("autoencoder", "latents", "diffusion"):
            with pytest.raises(CheckpointError, match=f"'latents' in .* made from other inputs .*{told}"):
                run_stage(config(**changes), stage)
    section = tmp_path / "section"
    moved = [{"kind": "folder", "name": "called otherwise", "folder": str(section.rename(tmp_path / "elsewhere"))}]
    run_stage(config(train=moved), "latents")  # the same, under another name


def test_files_of_a_version_that_noted_nothing_are_used_and_it_is_said(config, tmp_path, caplog):
    from napari_stmdit.training.train import record_inputs

    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "autoencoder.pt").write_bytes(b"")
    record_inputs(config(), "latents")
    assert "taken to belong to this config" in caplog.text
    assert set(json.loads((tmp_path / "run" / "inputs.json").read_text())) == {"autoencoder", "latents"}
    with pytest.raises(CheckpointError, match="patch_mpp"):
        record_inputs(config(patch_mpp=1.0), "latents")
