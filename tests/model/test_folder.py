import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from napari_stmdit.errors import CheckpointError
from napari_stmdit.model.autoencoder import StmditAutoencoder
from napari_stmdit.model.folder import load_component, read_folder, read_profiles
from napari_stmdit.model.foreign.inspect import inspect_checkpoint
from napari_stmdit.model.transformer import STMDiTTransformer2D
from napari_stmdit.storage.fingerprint import of_folder


def edit_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_components_are_built_from_their_folders(tiny_checkpoint):
    folder = read_folder(tiny_checkpoint)
    assert folder.card.name == "tiny" and folder.card.patch_um == pytest.approx(64 * 0.688)
    assert isinstance(load_component(folder, "transformer"), STMDiTTransformer2D)
    assert isinstance(load_component(folder, "vae"), StmditAutoencoder)
    assert type(load_component(folder, "scheduler")).__name__ == "FlowMatchEulerDiscreteScheduler"
    assert folder.components["morphology_encoder"][1] == "SmallConvEncoder"


def test_profiles(tiny_checkpoint):
    folder = read_folder(tiny_checkpoint)
    found = read_profiles(folder)
    assert set(found) == {"tumour", "stroma"} and [n for n, one in found.items() if one.spread is not None] == [
        "tumour"
    ]
    assert all(one.mean.shape == (30,) and one.mean.dtype == np.float32 for one in found.values())
    arrays = load_file(tiny_checkpoint / "profiles.safetensors")
    save_file({**arrays, "stroma.encoding": torch.zeros(3)}, tiny_checkpoint / "profiles.safetensors")
    with pytest.raises(CheckpointError, match=r"profiles.safetensors: stroma.encoding is of shape \(3,\), expected"):
        read_profiles(folder)
    save_file({"tumour.mean": arrays["tumour.mean"]}, tiny_checkpoint / "profiles.safetensors")
    with pytest.raises(CheckpointError, match=r"profiles.safetensors: stroma.mean is missing"):
        read_profiles(folder)


def test_the_hash_follows_every_file(tiny_checkpoint):
    first = of_folder(tiny_checkpoint)
    assert of_folder(shutil.copytree(tiny_checkpoint, tiny_checkpoint.parent / "copy")) == first
    (tiny_checkpoint / ".hidden").write_text("x")
    assert of_folder(tiny_checkpoint) == first
    weights = tiny_checkpoint / "vae" / "diffusion_pytorch_model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(bytes(changed))
    assert of_folder(tiny_checkpoint) != first == read_folder(tiny_checkpoint.parent / "copy").sha256


@pytest.mark.parametrize("name", ["stmdit.json", "model_index.json"])
def test_a_missing_file_is_named(tiny_checkpoint, name):
    (tiny_checkpoint / name).unlink()
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        read_folder(tiny_checkpoint)


def test_a_missing_component_is_named(tiny_checkpoint):
    shutil.rmtree(tiny_checkpoint / "morphology_encoder")
    with pytest.raises(CheckpointError, match="morphology_encoder/"):
        read_folder(tiny_checkpoint)


def test_a_card_that_is_not_valid(tiny_checkpoint):
    edit_json(tiny_checkpoint / "stmdit.json", patch_px=-1, gene_hash="0")
    with pytest.raises(CheckpointError, match="patch_px: Input should be greater than 0"):
        read_folder(tiny_checkpoint)


@pytest.mark.parametrize("component", ["transformer", "vae", "scheduler"])
def test_only_known_classes_are_built(tiny_checkpoint, component):
    edit_json(tiny_checkpoint / "model_index.json", **{component: ["os", "system"]})
    with pytest.raises(CheckpointError, match=f"{component} of .* is a 'system'"):
        load_component(read_folder(tiny_checkpoint), component)


@pytest.mark.parametrize("component", ["transformer", "vae"])
@pytest.mark.parametrize("damage", ["truncated", "missing", "no_key", "extra_key", "shape", "nan"])
def test_damaged_weights_are_told(tiny_checkpoint, component, damage):
    path = tiny_checkpoint / component / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    first = next(iter(tensors))
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "missing":
        path.unlink()
    else:
        changed = {
            "no_key": {name: tensor for name, tensor in tensors.items() if name != first},
            "extra_key": {**tensors, "extra.weight": tensors[first].clone()},
            "shape": {**tensors, first: tensors[first].flatten()[:3].clone()},
            "nan": {**tensors, first: tensors[first] * float("nan")},
        }[damage]
        save_file(changed, path)
    folder = read_folder(tiny_checkpoint)
    expected = {
        "truncated": "damaged",
        "missing": "found none|is missing",
        "extra_key": "extra.weight",
    }.get(damage, first.replace(".", r"\."))
    with pytest.raises(CheckpointError, match=expected):
        load_component(folder, component)


def test_inspection_of_a_whole_checkpoint(tiny_checkpoint):
    found = inspect_checkpoint(tiny_checkpoint)
    assert found.kind == "checkpoint" and found.objective == "flow" and found.missing == []
    assert (found.depth, found.width, found.heads, found.patch_size) == (2, 32, 2, 2)
    assert found.family == "stmdit_adaln_cross_attention" and found.naming == "native"
    assert (found.patch_px, found.patch_mpp) == (64, 0.688)
    assert found.components["vae"] == "StmditAutoencoder"
    assert json.loads(found.model_dump_json())["conditions"]["expression"] == "8, adaLN + cross-attention"
    (tiny_checkpoint / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    assert "vae" in inspect_checkpoint(tiny_checkpoint).missing[0]
