"""Damaged checkpoints: each ends in one clear CheckpointError, and none is loaded in silence, hangs or crashes."""

import json
import zipfile

import numpy as np
import pytest
import torch
import yaml
from checkpoints import plain_transformer
from safetensors.torch import load_file, save_file

from napari_stmdit import load_transformer
from napari_stmdit.errors import CheckpointError
from napari_stmdit.model.foreign.inspect import inspect_checkpoint
from napari_stmdit.model.foreign.keys import from_native

SETTINGS = {"model": {"input_size": 8, "num_heads": 2, "pe_interpolation": 0.5}, "diffusion": {"objective": "ddpm"}}


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    """One checkpoint as a torch file and as safetensors, each with its settings beside it."""
    folder = tmp_path_factory.mktemp("healthy")
    tensors = from_native(plain_transformer().state_dict(), "original")
    for name in ("torch", "safe"):
        (folder / name).mkdir()
        (folder / name / "training_config.yaml").write_text(yaml.safe_dump(SETTINGS))
    torch.save({"ema": tensors}, folder / "torch" / "model.pt")
    save_file(tensors, folder / "safe" / "model.safetensors")
    for name in ("torch", "safe"):
        load_transformer(folder / name)  # or no refusal below would prove anything
    return folder


def truncate(rng, path, _):
    data = path.read_bytes()
    path.write_bytes(data[: int(rng.integers(0, len(data) - 1))])


def flip_header(rng, path, _):
    data = bytearray(path.read_bytes())
    length = int.from_bytes(data[:8], "little") if path.suffix == ".safetensors" else 0
    places = rng.integers(0, 8 + length if length else len(data), size=40)
    for place in places.tolist():
        data[place] ^= int(rng.integers(1, 256))
    path.write_bytes(bytes(data))


def change_tensors(change):
    def corrupt(rng, path, names):
        tensors = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)["ema"]
        change(rng, tensors, names[int(rng.integers(len(names)))])
        save_file(tensors, path) if path.suffix == ".safetensors" else torch.save({"ema": tensors}, path)

    return corrupt


def wrong_shape(rng, tensors, name):
    tensors[name] = torch.zeros(*(side + 1 for side in tensors[name].shape))


def missing_key(rng, tensors, name):
    del tensors[name]


def not_a_number(rng, tensors, name):
    place = int(rng.integers(tensors[name].numel()))
    tensors[name].view(-1)[place] = [float("nan"), float("inf")][int(rng.integers(2))]


def another_name(rng, tensors, name):
    tensors[f"{name}_x"] = tensors.pop(name)


def an_empty_tensor(rng, tensors, name):
    tensors[name] = torch.zeros(0, *tensors[name].shape[1:])


def whole_numbers(rng, tensors, name):
    tensors[name] = torch.zeros(tensors[name].shape, dtype=torch.int64)


DAMAGE = {
    "truncated": truncate,
    "header": flip_header,
    **{
        change.__name__: change_tensors(change)
        for change in (wrong_shape, missing_key, not_a_number, another_name, an_empty_tensor, whole_numbers)
    },
}


@pytest.mark.parametrize("ending", ["safe", "torch"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_random_damage_is_told(healthy, tmp_path, damage, ending):
    source = healthy / ending
    weights = next(file for file in source.iterdir() if file.suffix != ".yaml")
    names = sorted(from_native(plain_transformer().state_dict(), "original"))
    for seed in range(8):
        folder = tmp_path / str(seed)
        folder.mkdir()
        (folder / weights.name).write_bytes(weights.read_bytes())
        (folder / "training_config.yaml").write_text((source / "training_config.yaml").read_text())
        DAMAGE[damage](np.random.default_rng(seed), folder / weights.name, names)
        if damage == "header" and ending == "torch" and same_content(folder / weights.name, weights):
            continue  # the flipped bytes were padding
        with pytest.raises(CheckpointError) as caught:
            load_transformer(folder)
        assert str(caught.value).strip() and "Traceback" not in str(caught.value)
        try:
            found = inspect_checkpoint(folder)
        except CheckpointError:
            continue
        assert found.missing


def same_content(path, other):
    """Whether two torch archives hold the same members, each with the right checksum."""
    try:
        with zipfile.ZipFile(path) as one, zipfile.ZipFile(other) as two:
            return one.namelist() == two.namelist() and all(one.read(n) == two.read(n) for n in two.namelist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError, EOFError):
        return False


SETTINGS_FAULTS = {
    "heads": ({"num_heads": "many"}, "num_attention_heads is 'many'"),
    "no heads": ({"num_heads": 0}, "num_attention_heads is 0"),
    "list": ({"input_size": [8, 8]}, r"sample_size is \[8, 8\]"),
    "huge": ({"input_size": 10**12}, "at most 1024"),
    "scale": ({"pe_interpolation": "half"}, "position_scale is 'half'"),
    "nan": ({"pe_interpolation": float("nan")}, "position_scale is nan"),
    "flag": ({"qk_norm": "no"}, "qk_norm is 'no'"),
    "infinite": ({"num_heads": float("inf")}, "num_attention_heads is inf"),
}


@pytest.mark.parametrize("fault", SETTINGS_FAULTS)
def test_settings_of_a_wrong_kind_are_told(healthy, fault):
    changes, message = SETTINGS_FAULTS[fault]
    settings = {**SETTINGS, "model": {**SETTINGS["model"], **changes}}
    with pytest.raises(CheckpointError, match=message):
        load_transformer(healthy / "safe", config=settings)


@pytest.mark.parametrize("name", ["stmdit.json", "model_index.json", "transformer/config.json", "vae/config.json"])
def test_damaged_settings_of_our_own_folder_are_told(tiny_checkpoint, name):
    from napari_stmdit.model.folder import load_component, read_folder

    path = tiny_checkpoint / name
    whole = path.read_text()
    rng = np.random.default_rng(0)
    for _ in range(12):
        text = list(whole)
        for place in rng.integers(0, len(text), size=6).tolist():
            text[place] = chr(int(rng.integers(32, 127)))
        path.write_text("".join(text))
        try:
            folder = read_folder(tiny_checkpoint)
            for component in ("transformer", "vae", "scheduler"):
                load_component(folder, component)
        except CheckpointError as error:
            assert str(error).strip()
    path.write_text(json.dumps({"_class_name": 3, "num_layers": None}))
    with pytest.raises(CheckpointError):
        load_component(read_folder(tiny_checkpoint), "transformer" if "transformer" in name else "vae")
