import argparse
import pickle
import time
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from napari_stmdit.errors import CheckpointError
from napari_stmdit.model.checkpoint import gather_options
from napari_stmdit.model.foreign.inspect import inspect_checkpoint
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


LAUGHS = "\n".join(["a0: &a0 [x, x]", *(f"a{k}: &a{k} [*a{k - 1}, *a{k - 1}, *a{k - 1}]" for k in range(1, 30))])


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("training_config.yaml", f"{LAUGHS}\nmodel: {{num_heads: *a29}}\n", "aliases stand for more than"),
        ("training_config.yaml", "a: &a [*a]\n", "an alias stands for something that holds itself"),
        ("training_config.yaml", "model: {num_heads: 2, num_heads: 3}\n", "the key 'num_heads' is given twice"),
        ("training_config.yaml", "n: 1" + ":1" * 100_000 + "\n", "a number of 200,001 digits"),
        ("training_config.yaml", "# " + "x" * 9_000_000 + "\na: 1\n", "has 9 megabytes"),
        ("config.json", '{"a": ' + "[" * 100_000, "nested too deeply"),
        ("config.json", '{"a": ' + "9" * 5000 + "}", "integer string conversion"),
        ("config.json", '{"a": "' + "x" * 65_000_000 + '"}', "has 65 megabytes"),
    ],
)
def test_settings_that_would_hang_or_fill_the_memory_are_refused(tmp_path, name, text, said):
    path = tmp_path / name
    path.write_text(text)
    begun = time.monotonic()
    with pytest.raises(CheckpointError, match=f"{name} is not readable: .*{said}") as refused:
        read_settings(path)
    assert time.monotonic() - begun < 60 and len(str(refused.value)) < 500


@pytest.mark.parametrize(
    "value", ["[" + ", ".join(["[1, 2, 3]"] * 3_000) + "]", "0x" + "f" * 900, '"' + "x" * 100_000 + '"']
)
def test_a_large_value_in_the_settings_makes_no_large_message(tmp_path, value):
    path = tmp_path / "training_config.yaml"
    path.write_text(f"model: {{num_heads: {value}, proj_act: {value}}}\ndiffusion: {{objective: {value}}}\n")
    found = gather_options({}, read_settings(path), None)
    assert any("num_attention_heads is" in fault for fault in found.faults)
    assert all(len(fault) < 300 for fault in found.faults)


def test_a_torch_file_whose_members_are_packed_is_refused_before_they_grow(tmp_path):
    plain, packed = tmp_path / "plain.pt", tmp_path / "packed.pt"
    torch.save({"a": torch.zeros(4_000_000)}, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for member in source.infolist():
            target.writestr(member.filename, source.read(member))
    assert packed.stat().st_size < plain.stat().st_size / 100
    with pytest.raises(CheckpointError, match=r"packed\.pt is refused: .* in it is compressed"):
        read_weights(packed)
    assert read_weights(plain)["a"].shape == (4_000_000,)


def test_a_pickle_larger_than_any_that_torch_writes_is_neither_read_nor_unpacked(tmp_path):
    path = tmp_path / "large.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x00" * 200_000_000)
    tracemalloc.start()
    with pytest.raises(CheckpointError, match="is refused: its pickles have 200 megabytes"):
        globals_in_pickle(path)
    with pytest.raises(CheckpointError, match="is refused: archive/data.pkl in it is compressed"):
        read_weights(path)
    assert tracemalloc.get_traced_memory()[1] < 50_000_000
    tracemalloc.stop()


def test_many_small_pickles_in_a_row_are_walked_to_the_last(tmp_path):
    path = tmp_path / "many.ckpt"
    path.write_bytes(b"N." * 300_000 + pickle.dumps(argparse.Namespace))
    assert globals_in_pickle(path) == ("argparse Namespace",)
