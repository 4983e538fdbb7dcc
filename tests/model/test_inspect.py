import json

import pytest
import torch
from checkpoints import plain_transformer
from safetensors.torch import save_file
from typer.testing import CliRunner

from napari_stmdit.cli import app
from napari_stmdit.cli.checkpoints import print_inspection
from napari_stmdit.errors import CheckpointError
from napari_stmdit.model.foreign.inspect import inspect_checkpoint
from napari_stmdit.model.foreign.keys import from_native

FAMILIES = {
    "stmdit_tiny_adaln": "stmdit_adaln",
    "stmdit_tiny_xattn": "stmdit_cross_attention",
    "stmdit_tiny_both": "stmdit_adaln_cross_attention",
    "stmdit_tiny_xattn_pma": "stmdit_cross_attention_pma",
    "pixcell_tiny_original": "pixcell",
    "pixcell_tiny_diffusers": "pixcell",
    "pixcell1024_tiny_diffusers": "pixcell",
}


@pytest.mark.parametrize("name", FAMILIES)
def test_golden_transformers(golden, name):
    found = inspect_checkpoint(golden / f"{name}.safetensors")
    assert found.kind == "transformer" and found.family == FAMILIES[name]
    assert found.naming == ("diffusers" if "diffusers" in name else "original")
    assert (found.depth, found.heads, found.patch_size) == (3 if "pixcell_tiny" in name else 2, 4, 2)
    assert found.objective == "epsilon" and found.learned_sigma is True
    text = " ".join(found.missing)
    assert "vae" in text and "UNI2-h" in text and "mpp" in text
    assert ("CancerFoundation" in text) == name.startswith("stmdit")


@pytest.mark.parametrize(
    ("name", "kind", "family"),
    [
        ("vae_tiny", "vae", "AutoencoderKL"),
        ("uni2h_tiny", "morphology_encoder", "UNI2-h"),
        ("cancerfoundation_tiny", "expression_encoder", "CancerFoundation"),
        ("vae_tiny_io", "unknown", None),
    ],
)
def test_other_golden_files(golden, name, kind, family):
    found = inspect_checkpoint(golden / f"{name}.safetensors")
    assert (found.kind, found.family) == (kind, family)


def test_every_golden_file_is_described_and_none_raises(golden):
    for path in sorted(golden.glob("*.safetensors")):
        found = json.loads(inspect_checkpoint(path).model_dump_json())
        assert found["kind"] == "unknown" or found["family"], path.name
        whole = found["kind"] in ("vae", "morphology_encoder")  # with their settings beside them
        assert whole or found["missing"], path.name


def test_encoders_and_vae_are_described(golden):
    cancer = inspect_checkpoint(golden / "cancerfoundation_tiny_released_file_naming.safetensors")
    assert (cancer.depth, cancer.width, cancer.heads) == (2, 32, None)
    assert "decoder.fc.0.weight" in cancer.ignored and "flag_encoder.weight" in cancer.ignored
    assert any("args.json" in line for line in cancer.missing) and any("gene list" in line for line in cancer.missing)
    uni = inspect_checkpoint(golden / "uni2h_tiny.safetensors")
    assert (uni.depth, uni.width, uni.heads, uni.patch_size) == (2, 48, 4, 14)
    assert inspect_checkpoint(golden / "vae_tiny.safetensors").latent_channels == 16


def test_what_is_missing_is_listed_and_not_raised(tmp_path):
    tensors = from_native(plain_transformer().state_dict(), "original")
    tensors["stranger"] = torch.zeros(2, 3)
    del tensors["y_embedder.y_embedding"]
    save_file(tensors, tmp_path / "weights.safetensors")
    found = inspect_checkpoint(tmp_path / "weights.safetensors")
    text = " ".join(found.missing)
    assert "stranger  (2, 3)  no rule knows" in text
    assert "number of heads is unknown" in text and "interpolation scale" in text
    assert found.width == 16 and found.heads is None and found.position_scale is None
    assert json.loads(found.model_dump_json())["depth"] == 2


def test_nothing_there(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        inspect_checkpoint(tmp_path / "nowhere")


def said(path, capsys):
    """What is printed of a checkpoint's edits, as one line."""
    print_inspection(inspect_checkpoint(path))
    return " ".join(capsys.readouterr().out.split("edits of real tissue")[1].split())


def test_the_map_by_which_an_edit_moves_morphology_is_told(tiny_checkpoint, capsys):
    found = inspect_checkpoint(tiny_checkpoint)
    assert found.cannot_edit is None and found.morphology_map["share"] == 0.5
    assert "stored with the checkpoint: expression explains 50 % of its variance" in said(tiny_checkpoint, capsys)
    index = json.loads((tiny_checkpoint / "model_index.json").read_text())
    del index["morphology_map"]
    (tiny_checkpoint / "model_index.json").write_text(json.dumps(index))
    found = inspect_checkpoint(tiny_checkpoint)
    assert found.cannot_edit is None and found.morphology_map is None
    assert "fitted on each section" in said(tiny_checkpoint, capsys)


@pytest.mark.parametrize(
    ("place", "change", "words"),
    [
        ("stmdit.json", {"conditions": ["morphology"]}, "it takes no gene expression"),
        ("stmdit.json", {"conditions": ["expression"]}, "it takes no morphology"),
        ("model_index.json", {"vae": ["diffusers", "AutoencoderTiny"]}, "its autoencoder has no encoder"),
        ("model_index.json", {"scheduler": ["diffusers", "EDMEulerScheduler"]}, "EDMEulerScheduler"),
        ("expression_encoder", None, "expression_encoder is not there"),
    ],
)
def test_why_a_checkpoint_cannot_edit_real_tissue_is_told(tiny_checkpoint, capsys, place, change, words):
    if change is None:
        (tiny_checkpoint / place / "model.safetensors").unlink()
    else:
        settings = json.loads((tiny_checkpoint / place).read_text())
        (tiny_checkpoint / place).write_text(json.dumps(settings | change))
    fault = inspect_checkpoint(tiny_checkpoint).cannot_edit
    assert fault.startswith("This checkpoint cannot edit real tissue") and words in fault and "\n" not in fault
    assert " ".join(fault.split()) in said(tiny_checkpoint, capsys)


def test_a_checkpoint_s_name_comes_before_a_folder_of_results_called_so(tmp_path, monkeypatch):
    """As where it is run: `stmdit demo --output demo` leaves such a folder."""
    (tmp_path / "demo").mkdir()
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["inspect", "demo", "--json"])
    assert done.exit_code == 0 and json.loads(done.stdout)["kind"] == "checkpoint"


def test_a_bundled_checkpoint_is_inspected_by_its_name():
    result = CliRunner().invoke(app, ["inspect", "demo", "--json"])
    found = json.loads(result.stdout)
    assert found["kind"] == "checkpoint" and found["cannot_edit"] is None and found["morphology_map"]["share"] > 0
