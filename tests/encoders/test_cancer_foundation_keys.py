import json
import re

import pytest
import torch
from safetensors.torch import load_file

from napari_stmdit.encoders.cancer_foundation.folder import HEADS, MASKED_VALUE, build_network
from napari_stmdit.errors import CheckpointError


@pytest.fixture(scope="module")
def tensors(golden):
    return load_file(golden / "cancerfoundation_tiny.safetensors")


@pytest.fixture(scope="module")
def io(golden):
    return load_file(golden / "cancerfoundation_tiny_io.safetensors")


def renamed(tensors, *rules):
    """Apply (pattern, replacement) to every name, in order; every rule must have changed something."""
    for pattern, new in rules:
        found = {re.sub(pattern, new, name): tensor for name, tensor in tensors.items()}
        assert found.keys() != tensors.keys(), pattern
        tensors = found
    return tensors


STACK = (r"^encoder\.layers", "transformer_encoder.layers")
NESTED = (r"^encoder\.layers", "transformer_encoder.transformer_encoder.layers")
GENES = (r"^gene_encoder\.", "encoder.")
DOUBLE = (r"self_attn\.", "self_attn.self_attn.")
FLEX = ((r"self_attn\.in_proj_", "in_proj."), (r"self_attn\.out_proj", "out_proj"))
FLASH = (r"self_attn\.in_proj_", "self_attn.Wqkv.")

LAYOUTS = {
    "released loader": (),
    "released file": (DOUBLE,),
    "pretraining, generative": (STACK, GENES, DOUBLE),
    "pretraining, plain": (STACK, GENES),
    "fusion, orig or theirs": (STACK, DOUBLE),
    "fusion, mine": (NESTED,),
    "fusion, quick": (STACK, *FLEX),
    "fusion, plain": (STACK,),
    "flash attention": (STACK, GENES, FLASH),
    "lightning": ((r"^", "model."),),
    "compiled lightning": (STACK, DOUBLE, (r"^", "model._orig_mod.")),
    "data parallel": ((r"^", "module."),),
    "compiled layers": ((r"layers\.(\d+)\.", r"layers.\1._orig_mod."),),
}


def outputs(network, io):
    with torch.inference_mode():
        return network(io["gene_ids"], io["values"], io["padding_mask"], first_only=True)[:, 0]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_loads_to_the_same_network(tensors, io, layout):
    network = build_network(renamed(tensors, *LAYOUTS[layout]), heads=4).network
    torch.testing.assert_close(outputs(network, io), io["cls"], atol=2e-5, rtol=0)


@pytest.mark.parametrize("place", [("state_dict",), ("checkpoint", "model_state_dict")])
def test_weights_within_a_container_are_found(tensors, io, place):
    container = renamed(tensors, (r"^", "model."))
    for name in reversed(place):
        container = {name: container, "epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}}}
    torch.testing.assert_close(outputs(build_network(container, 4).network, io), io["cls"], atol=2e-5, rtol=0)


def test_heads_of_training_are_left_aside_and_listed(golden, tensors, io):
    released = load_file(golden / "cancerfoundation_tiny_released_file_naming.safetensors")
    heads = {
        "mvc_decoder.gene2query.weight": torch.zeros(3, 3),
        "cls_decoder.out_layer.bias": torch.zeros(3),
        "condition_encoders.technology.embedding.weight": torch.zeros(3, 32),
        "grad_reverse_discriminators.technology.out_layer.weight": torch.full((3, 3), torch.nan),
        "generative_flag": torch.zeros(32),
    }
    stored = build_network(released | heads, 4)
    assert stored.ignored.keys() == (released.keys() - renamed(tensors, DOUBLE).keys()) | heads.keys()
    assert all("training" in reason or "without" in reason for reason in stored.ignored.values())
    torch.testing.assert_close(outputs(stored.network, io), io["cls"], atol=2e-5, rtol=0)


def test_an_embedding_of_masked_values_marks_the_other_value_encoder(tensors, io):
    masked = tensors | {MASKED_VALUE: torch.ones(32)}
    stored = build_network(masked, 4)
    assert stored.network.value_style == "zero_below_zero" and MASKED_VALUE in stored.ignored
    assert (outputs(stored.network, io) - io["cls"]).abs().max() > 1e-3  # <cls> carries -2
    with pytest.raises(CheckpointError, match="settings name the plain one"):
        build_network(masked, 4, "plain")


def test_all_faults_are_in_one_table(tensors):
    broken = dict(tensors) | {
        "surprise.weight": torch.zeros(2, 3),
        "bn.running_mean": torch.zeros(32),
        "encoder.layers.0.linear1.weight": torch.zeros(64, 31),
        "encoder.layers.1.norm1.bias": torch.full((32,), torch.nan),
        "encoder.layers.1.norm2.bias": torch.zeros(32, dtype=torch.int64),
    }
    del broken["value_encoder.norm.bias"]
    with pytest.raises(CheckpointError) as caught:
        build_network(broken, 4)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("6 tensors")
    rows = {line.split()[0]: line for line in lines[1:]}
    assert "(2, 3)" in rows["surprise.weight"] and "no rule knows" in rows["surprise.weight"]
    assert "not supported" in rows["bn.running_mean"]
    assert "(64, 31)" in rows["encoder.layers.0.linear1.weight"]
    assert "expected (64, 32)" in rows["encoder.layers.0.linear1.weight"]
    assert "finite numbers" in rows["encoder.layers.1.norm1.bias"]
    assert "finite numbers" in rows["encoder.layers.1.norm2.bias"]
    assert "missing" in rows["value_encoder.norm.bias"]


@pytest.mark.parametrize("name", ["gene_encoder.enc_norm.bias", "encoder.layers.0.self_attn.out_proj.bias"])
def test_every_missing_tensor_is_noticed(tensors, name):
    with pytest.raises(CheckpointError, match=f"1 tensors.*\n  {re.escape(name)} .*missing"):
        build_network({other: tensor for other, tensor in tensors.items() if other != name}, 4)


def test_a_missing_layer_and_an_absurd_one_are_noticed(tensors):
    gap = renamed(tensors, (r"layers\.1\.", "layers.2."))
    with pytest.raises(CheckpointError, match=r"12 tensors.*\n  encoder\.layers\.1\..*missing"):
        build_network(gap, 4)
    absurd = tensors | {"encoder.layers.99999999999.norm1.bias": torch.zeros(32)}
    with pytest.raises(CheckpointError, match="not part of this network"):
        build_network(absurd, 4)


def test_one_tensor_under_two_names_is_refused(tensors):
    with pytest.raises(CheckpointError, match=r"encoder\.embedding\.weight .* is given twice"):
        build_network(tensors | {"encoder.embedding.weight": tensors["gene_encoder.embedding.weight"]}, 4)
    with pytest.raises(CheckpointError, match="stored twice"):
        build_network(tensors | renamed(tensors, (r"^", "module.")), 4)


def test_something_else_is_refused_with_what_it_holds():
    with pytest.raises(CheckpointError, match=r"no CancerFoundation weights(?s:.*)blocks\.0\.attn\.qkv\.weight"):
        build_network({"state_dict": {"blocks.0.attn.qkv.weight": torch.zeros(3, 3)}})
    with pytest.raises(CheckpointError, match="top level holds epoch"):
        build_network({"epoch": 3})


def test_the_number_of_heads_is_told_or_known_and_never_guessed(golden, tensors):
    with pytest.raises(CheckpointError, match="width 32 is not known.*nheads"):
        build_network(tensors)
    with pytest.raises(CheckpointError, match="5 attention heads do not divide"):
        build_network(tensors, 5)
    args = json.loads((golden / "cancerfoundation_tiny_args.json").read_text())
    assert build_network(tensors, args["nheads"]).network.sizes.heads == 4
    assert HEADS[256] == 8


def test_half_precision_weights_become_float32(tensors, io):
    half = {name: tensor.half() for name, tensor in tensors.items()}
    network = build_network(half, 4).network
    assert all(tensor.dtype == torch.float32 for tensor in network.parameters())
    assert (outputs(network, io) - io["cls"]).abs().max() < 0.05
