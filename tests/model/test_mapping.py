"""Names that only the user knows, adapters, and what belongs to the training run."""

import pytest
import torch
import yaml
from checkpoints import plain_transformer
from safetensors.torch import save_file

from napari_stmdit import load_transformer
from napari_stmdit.errors import CheckpointError
from napari_stmdit.model.checkpoint import open_weights
from napari_stmdit.model.foreign.inspect import inspect_checkpoint
from napari_stmdit.model.foreign.keys import from_native, read_mapping

SETTINGS = {"num_heads": 2, "pe_interpolation": 0.5, "input_size": 8}


@pytest.fixture
def net():
    return plain_transformer()


def same(loaded, net):
    return all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in net.state_dict().items())


def strange(name):
    """A naming of nobody's."""
    return name.replace("x_embedder.proj", "stem").replace("blocks.", "tower.layer_").replace(".attn.", ".self.")


MAPPING = {
    "rules": {
        "stem.*": "x_embedder.proj.*",
        "tower.layer_{i}.self.qkv.*": "blocks.{i}.attn.qkv.*",
        "tower.layer_{i}.self.proj.*": "blocks.{i}.attn.proj.*",
        "tower.layer_{i}.cross_attn.q_linear.*": "blocks.{i}.cross_attn.q_linear.*",
        "tower.layer_{i}.cross_attn.kv_linear.*": "blocks.{i}.cross_attn.kv_linear.*",
        "tower.layer_{i}.cross_attn.proj.*": "blocks.{i}.cross_attn.proj.*",
        "tower.layer_{i}.ge_cross_attn.q_linear.*": "blocks.{i}.ge_cross_attn.q_linear.*",
        "tower.layer_{i}.ge_cross_attn.kv_linear.*": "blocks.{i}.ge_cross_attn.kv_linear.*",
        "tower.layer_{i}.ge_cross_attn.proj.*": "blocks.{i}.ge_cross_attn.proj.*",
        "tower.layer_{i}.mlp.fc1.*": "blocks.{i}.mlp.fc1.*",
        "tower.layer_{i}.mlp.fc2.*": "blocks.{i}.mlp.fc2.*",
        "tower.layer_{i}.scale_shift_table": "blocks.{i}.scale_shift_table",
    },
    "ignore": {"probe.*": "linear probe of the training run"},
    "settings": SETTINGS,
}


@pytest.fixture
def foreign(tmp_path, net):
    tensors = {f"module.{strange(name)}": tensor for name, tensor in from_native(net.state_dict(), "original").items()}
    tensors["module.probe.weight"] = torch.zeros(3, 4)
    torch.save({"ema": tensors}, tmp_path / "model.pt")
    (tmp_path / "mapping.yaml").write_text(yaml.safe_dump(MAPPING))
    return tmp_path


def test_a_mapping_file_opens_names_of_nobody_s(foreign, net):
    with pytest.raises(CheckpointError, match="other names"):
        load_transformer(foreign / "model.pt")
    loaded = load_transformer(foreign / "model.pt", mapping=foreign / "mapping.yaml")
    assert same(loaded, net)
    found = inspect_checkpoint(foreign / "model.pt", mapping=foreign / "mapping.yaml")
    assert found.ignored["probe.weight"] == "linear probe of the training run"
    assert found.heads == 2 and found.family == "stmdit_adaln_cross_attention"


def test_what_a_mapping_leaves_open_is_listed(foreign):
    short = {**MAPPING, "ignore": {}}
    (foreign / "mapping.yaml").write_text(yaml.safe_dump(short))
    with pytest.raises(CheckpointError, match=r"probe.weight  \(3, 4\)  no rule knows"):
        load_transformer(foreign / "model.pt", mapping=foreign / "mapping.yaml")


def test_a_mapping_that_gives_one_name_twice_is_refused(foreign):
    doubled = {**MAPPING, "rules": {**MAPPING["rules"], "probe.*": "x_embedder.proj.*"}, "ignore": {}}
    (foreign / "mapping.yaml").write_text(yaml.safe_dump(doubled))
    with pytest.raises(CheckpointError, match="two tensors the name x_embedder.proj.weight"):
        load_transformer(foreign / "model.pt", mapping=foreign / "mapping.yaml")


def test_every_fault_of_a_mapping_file_is_told(tmp_path):
    (tmp_path / "mapping.yaml").write_text("naming: klingon\nrules: [a]\nextra: 1\n")
    with pytest.raises(CheckpointError) as caught:
        read_mapping(tmp_path / "mapping.yaml")
    assert all(word in str(caught.value) for word in ("naming", "rules", "extra", "Expected naming, rules"))


def test_a_null_embedding_is_zero_only_where_the_user_says_so(tmp_path, net):
    tensors = from_native(net.state_dict(), "original")
    del tensors["ge_embedder.null_embedding"]
    save_file(tensors, tmp_path / "weights.safetensors")
    with pytest.raises(CheckpointError, match="expression_null.*never filled"):
        load_transformer(tmp_path / "weights.safetensors", config=SETTINGS)
    (tmp_path / "mapping.yaml").write_text(yaml.safe_dump({"fill": {"expression_null": "zeros"}}))
    opened = open_weights(tmp_path / "weights.safetensors", SETTINGS, mapping=tmp_path / "mapping.yaml")
    assert any("expression_null is zero, as the mapping file states" in note for note in opened.notes)
    loaded = load_transformer(tmp_path / "weights.safetensors", SETTINGS, mapping=tmp_path / "mapping.yaml")
    assert torch.equal(loaded.expression_null, torch.zeros(1, 8))


def test_schedules_of_the_training_run_are_left_aside(tmp_path, net):
    tensors = from_native(net.state_dict(), "original")
    tensors |= {"betas": torch.zeros(10), "posterior_mean_coef1": torch.zeros(10), "n_averaged": torch.tensor(3)}
    save_file(tensors, tmp_path / "weights.safetensors")
    opened = open_weights(tmp_path / "weights.safetensors", SETTINGS)
    assert set(opened.ignored) == {"betas", "posterior_mean_coef1", "n_averaged"}
    assert same(load_transformer(tmp_path / "weights.safetensors", SETTINGS), net)


# ------------------------------------------------------------------------------------------------- adapters

RANK = 3


def adapted(net, rank=RANK, adapter=".default"):
    """The diffusers naming with low-rank adapters on the morphology cross-attention, as PEFT saves a whole network."""
    generator = torch.Generator().manual_seed(1)
    tensors = from_native(net.state_dict(), "diffusers")
    changes = {}
    for name in [n for n in tensors if ".attn2.to_" in n]:
        layer, end = name.rsplit(".", 1)
        tensors[f"{layer}.base_layer.{end}"] = base = tensors.pop(name)
        if end == "weight":
            down = torch.randn(rank, base.shape[1], generator=generator)
            up = torch.randn(base.shape[0], rank, generator=generator)
            tensors |= {f"{layer}.lora_A{adapter}.weight": down, f"{layer}.lora_B{adapter}.weight": up}
            changes[name] = up @ down
    return tensors, changes


@pytest.mark.parametrize("adapter", [".default", ""])
def test_adapters_are_merged(tmp_path, net, adapter):
    tensors, changes = adapted(net, adapter=adapter)
    save_file(tensors, tmp_path / "weights.safetensors")
    opened = open_weights(tmp_path / "weights.safetensors", {**SETTINGS, "lora_alpha": 6})
    assert any("adapters of 8 layers (rank 3, alpha 6)" in note for note in opened.notes)
    loaded = from_native(load_transformer(tmp_path, {**SETTINGS, "lora_alpha": 6}).state_dict(), "diffusers")
    plain = from_native(net.state_dict(), "diffusers")
    for name, tensor in plain.items():
        torch.testing.assert_close(loaded[name], tensor + 2 * changes.get(name, torch.zeros(())))


def test_the_strength_of_adapters_is_never_assumed(tmp_path, net):
    save_file(adapted(net)[0], tmp_path / "weights.safetensors")
    with pytest.raises(CheckpointError, match="lora_alpha is unknown"):
        load_transformer(tmp_path, SETTINGS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, n: t.pop(n), "one lora_A and one lora_B"),
        (lambda t, n: t.update({n: torch.zeros(5, 16)}), "does not fit"),
        (lambda t, n: t.pop(n.replace("lora_A.default", "base_layer")), "without the weights it adapts"),
        (lambda t, n: t.update({n.replace("default", "other"): torch.zeros(3, 16)}), "one lora_A and one lora_B"),
    ],
)
def test_adapters_that_do_not_fit_are_listed(tmp_path, net, change, message):
    tensors, _ = adapted(net)
    change(tensors, "transformer_blocks.0.attn2.to_q.lora_A.default.weight")
    save_file(tensors, tmp_path / "weights.safetensors")
    with pytest.raises(CheckpointError, match=message):
        load_transformer(tmp_path, {**SETTINGS, "lora_alpha": 3})
