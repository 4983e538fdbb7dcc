import argparse
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from napari_stmdit.errors import CheckpointError
from napari_stmdit.model.inspect import inspect_checkpoint
from napari_stmdit.model.reading import globals_in_pickle, read_settings, read_weights


class Touch:
    """Unpickling this creates a file: harmless, and visible."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


@pytest.fixture
def mark(tmp_path):
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    return folder / "executed"


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_torch_file_that_runs_code_is_refused_and_named(tmp_path, mark, zipped, protocol):
    path = tmp_path / "model.pt"
    content = {"state_dict": {"a": torch.zeros(2)}, "extra": Touch(mark)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    for read in (read_weights, inspect_checkpoint):
        with pytest.raises(CheckpointError, match=r"pathlib.*Nothing was executed"):
            read(path)
    assert not mark.exists()
    torch.load(path, weights_only=False)
    assert mark.exists()  # the file is dangerous indeed


@pytest.mark.parametrize("protocol", range(6))
def test_a_raw_pickle_is_refused_and_named(tmp_path, mark, protocol):
    path = tmp_path / "model.ckpt"
    path.write_bytes(pickle.dumps({"a": 1, "b": Touch(mark)}, protocol=protocol))
    with pytest.raises(CheckpointError, match="pathlib"):
        read_weights(path)
    assert not mark.exists()


def test_globals_are_named_also_where_the_names_come_from_the_memo(tmp_path):
    path = tmp_path / "model.pt"
    content = [argparse.Namespace(a=1), argparse.ArgumentError, argparse.Namespace(b=2)]
    path.write_bytes(pickle.dumps(content, protocol=4))
    assert set(globals_in_pickle(path)) == {"argparse Namespace", "argparse ArgumentError"}


def test_numpy_values_beside_the_weights_are_harmless(tmp_path):
    path = tmp_path / "model.pt"
    extras = {"loss": np.float64(0.5), "step": np.int64(3), "history": np.arange(3.0), "flag": np.bool_(True)}
    torch.save({"w": torch.ones(2), **extras}, path)
    found = read_weights(path)
    assert found["loss"] == 0.5 and found["history"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("text", ["a: !!python/object/apply:pathlib.Path.touch [x]", "a: !anything {b: 1}"])
def test_yaml_tags_are_refused(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    with pytest.raises(CheckpointError, match="nothing was executed"):
        read_settings(path)
    assert [file.name for file in tmp_path.iterdir()] == ["settings.yaml"]


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [1, 2", "\x00", ""])
def test_settings_must_be_a_mapping(tmp_path, text):
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    with pytest.raises(CheckpointError, match="settings.yaml"):
        read_settings(path)


@pytest.mark.parametrize("ending", [".safetensors", ".pt"])
def test_damaged_files_are_told_by_name(tmp_path, ending):
    path = tmp_path / f"model{ending}"
    tensors = {"a": torch.arange(1000.0)}
    torch.save(tensors, path) if ending == ".pt" else save_file(tensors, path)
    whole = path.read_bytes()
    for damage in (whole[: len(whole) // 2], b"", b"not a checkpoint", whole[:7]):
        path.write_bytes(damage)
        with pytest.raises(CheckpointError, match=f"model{ending} is damaged"):
            read_weights(path)
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(50):  # a flipped bit in the header is either harmless or told; nothing else may come out
        flipped = bytearray(whole)
        flipped[int(rng.integers(0, 60))] ^= 1 << int(rng.integers(8))
        path.write_bytes(bytes(flipped))
        try:
            read_weights(path)
        except CheckpointError as error:
            assert f"model{ending}" in str(error)
            refused += 1
    assert refused > 0


def test_shards_are_joined_and_missed(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "one.safetensors")
    save_file({"b": torch.ones(1)}, tmp_path / "two.safetensors")
    index = tmp_path / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}')
    assert set(read_weights(index)) == {"a", "b"}
    (tmp_path / "two.safetensors").unlink()
    with pytest.raises(CheckpointError, match="two.safetensors"):
        read_weights(index)
    index.write_text('{"weight_map": {"a": "../one.safetensors"}}')
    with pytest.raises(CheckpointError, match="not beside it"):
        read_weights(index)


def test_what_is_not_there_or_of_no_known_kind(tmp_path):
    with pytest.raises(CheckpointError, match="not a file"):
        read_weights(tmp_path / "none.pt")
    (tmp_path / "weights.h5").write_bytes(b"")
    with pytest.raises(CheckpointError, match="no known kind"):
        read_weights(tmp_path / "weights.h5")
