import json

import pytest
import torch
import yaml
from checkpoints import TINY_OPTIONS, plain_transformer, tiny_transformer
from safetensors.torch import load_file, save_file

from napari_stmdit import load_transformer
from napari_stmdit.errors import CheckpointError
from napari_stmdit.model.checkpoint import open_weights
from napari_stmdit.model.foreign.keys import from_native, recognise, to_native, unwrap

SETTINGS = {
    "model": {
        "input_size": 8,
        "patch_size": 2,
        "in_channels": 4,
        "hidden_size": 16,
        "depth": 2,
        "num_heads": 2,
        "pred_sigma": True,
        "caption_channels": 10,
        "model_max_length": 1,
        "pe_interpolation": 0.5,
    },
    "gene_expression": {
        "dim": 8,
        "adaln": True,
        "cross_attention": True,
        "pooling": None,
        "adaln_to_final_layer": True,
    },
    "diffusion": {"objective": "ddpm", "prediction": "epsilon"},
}


def forward(net):
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, 4, 8, 8), (1, 10), (1, 8)]
    latents, morphology, expression = (torch.randn(shape, generator=generator) for shape in shapes)
    with torch.no_grad():
        return net(latents, torch.tensor([321.5]), morphology, expression)


@pytest.fixture
def net():
    return plain_transformer()


@pytest.fixture
def foreign(tmp_path, net):
    """A folder as STMDiT's are: ``model.pt`` in original naming and ``training_config.yaml``."""
    folder = tmp_path / "foreign"
    folder.mkdir()
    tensors = from_native(net.state_dict(), "original") | {"pos_embed": net.position_table[None]}
    torch.save({"state_dict_ema": tensors}, folder / "model.pt")
    (folder / "training_config.yaml").write_text(yaml.safe_dump(SETTINGS))
    return folder


def rewrite(folder, change):
    container = torch.load(folder / "model.pt", weights_only=True)
    change(container["state_dict_ema"])
    torch.save(container, folder / "model.pt")


def resettle(folder, **changes):
    settings = {**SETTINGS, "model": {**SETTINGS["model"], **changes}}
    settings["model"] = {name: value for name, value in settings["model"].items() if value is not None}
    (folder / "training_config.yaml").write_text(yaml.safe_dump(settings))


def test_foreign_folder_loads(foreign, net):
    torch.testing.assert_close(forward(load_transformer(foreign)), forward(net))
    torch.testing.assert_close(forward(load_transformer(foreign / "model.pt")), forward(net))
    elsewhere = foreign.parent / "settings.json"
    elsewhere.write_text(json.dumps(SETTINGS))
    (foreign / "training_config.yaml").unlink()
    torch.testing.assert_close(forward(load_transformer(foreign, config=elsewhere)), forward(net))
    torch.testing.assert_close(forward(load_transformer(foreign, config=SETTINGS)), forward(net))


@pytest.mark.parametrize("half", [False, True])
def test_our_own_folder_loads(tmp_path, half):
    net = tiny_transformer()
    (net.half() if half else net).save_pretrained(tmp_path / "transformer")
    loaded = load_transformer(tmp_path)  # finds the sub-folder
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    assert not loaded.training
    assert {name: loaded.config[name] for name in TINY_OPTIONS} == TINY_OPTIONS
    for name, tensor in net.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor.float())


@pytest.mark.parametrize("naming", ["original", "diffusers"])
def test_namings_round_trip(net, naming):
    native = net.state_dict()
    renamed = from_native(native, naming)
    assert recognise(renamed) == naming and recognise(native) == "native"
    back = to_native(renamed, naming)
    assert not back.faults and back.tensors.keys() == native.keys()
    assert all(torch.equal(back.tensors[name].tensor(), tensor) for name, tensor in native.items())


def test_an_option_of_ours_has_no_foreign_name():
    with pytest.raises(CheckpointError, match="belongs to an option of ours"):
        from_native(tiny_transformer().state_dict(), "diffusers")


def test_fused_diffusers_projections_are_known(net):
    tensors = from_native(net.state_dict(), "diffusers")
    for i in range(2):
        for end in ("weight", "bias"):
            name = f"transformer_blocks.{i}.attn1"
            tensors[f"{name}.to_qkv.{end}"] = torch.cat([tensors.pop(f"{name}.to_{part}.{end}") for part in "qkv"])
    back = to_native(tensors, "diffusers")
    assert not back.faults
    assert all(torch.equal(back.tensors[name].tensor(), tensor) for name, tensor in net.state_dict().items())


def test_a_lone_part_of_a_fused_tensor_is_listed(net):
    tensors = from_native(net.state_dict(), "diffusers")
    del tensors["transformer_blocks.0.attn1.to_k.weight"]
    faults = {name for name, _, _ in to_native(tensors, "diffusers").faults}
    assert faults == {"transformer_blocks.0.attn1.to_q.weight", "transformer_blocks.0.attn1.to_v.weight"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("y_embedder.y_embedding"), "morphology_null.*missing"),
        (lambda t: t.pop("ge_embedder.null_embedding"), "expression_null.*missing"),
        (lambda t: t.pop("blocks.1.attn.proj.bias"), "blocks.1.self_attention.proj.bias.*missing"),
        (lambda t: t.update({"blocks.0.surprise.weight": torch.zeros(3)}), "blocks.0.surprise.weight.*no rule"),
        (lambda t: t.update({"blocks.1.mlp.fc2.bias": torch.zeros(3)}), r"fc2.bias.*\(3,\).*expected \(16,\)"),
        (lambda t: t["final_layer.linear.weight"].fill_(float("nan")), "final_linear.weight.*not finite"),
        (lambda t: t.pop("x_embedder.proj.weight"), "other names"),
        (lambda t: t.update({"pos_embed": torch.rand(1, 16, 16)}), "not the sine-cosine table"),
        (lambda t: t.pop("blocks.1.attn.qkv.weight"), "blocks.1.self_attention.qkv.weight.*missing"),
    ],
)
def test_every_tensor_is_used_or_listed(foreign, change, message):
    rewrite(foreign, change)
    with pytest.raises(CheckpointError, match=message):
        load_transformer(foreign)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": None}, "number of heads is unknown"),
        ({"num_heads": 3}, "not divisible by 3 heads"),
        ({"depth": 3}, "num_layers is 2 by the tensors' shapes but 3 by the settings"),
        ({"hidden_size": 32}, "width is 16"),
        ({"pe_interpolation": 1.0}, "position_scale is 1.0 by the settings but 0.5 by the stored position table"),
        ({"input_size": 16}, "sample_size is 16"),
        ({"pred_sigma": False}, "learn_sigma is True"),
        ({"activation_fn": "relu"}, "activation_fn is 'relu'"),
    ],
)
def test_settings_and_shapes_must_agree(foreign, changes, message):
    resettle(foreign, **changes)
    with pytest.raises(CheckpointError, match=message):
        load_transformer(foreign)


def test_the_scale_of_positions_is_never_assumed(foreign):
    resettle(foreign, pe_interpolation=None)
    found = open_weights(foreign).options
    assert found.values["position_scale"] == 0.5 and found.sources["position_scale"] == "stored position table"
    rewrite(foreign, lambda tensors: tensors.pop("pos_embed"))
    with pytest.raises(CheckpointError, match="interpolation scale of the positions is unknown"):
        load_transformer(foreign)


@pytest.mark.parametrize("scale", [0.25, 0.5, 1.0, 2.0])
def test_the_scale_is_recovered_from_the_stored_table(tmp_path, scale):
    net = plain_transformer(position_scale=scale, sample_size=16)
    tensors = from_native(net.state_dict(), "original") | {"pos_embed": net.position_table[None]}
    save_file(tensors, tmp_path / "weights.safetensors")
    found = open_weights(tmp_path / "weights.safetensors", config={"num_heads": 2}).options.values
    assert found["position_scale"] == scale and found["sample_size"] == 16


def test_settings_that_ask_for_another_network_are_refused(foreign):
    for change in ({"adaln_to_final_layer": False}, {"proj_act": "relu"}):
        settings = {**SETTINGS, "gene_expression": {**SETTINGS["gene_expression"], **change}}
        with pytest.raises(CheckpointError, match=next(iter(change))):
            load_transformer(foreign, config=settings)


def test_averaged_weights_are_preferred_in_every_wrapping(net):
    raw = from_native(net.state_dict(), "original")
    averaged = {name: tensor + 1 for name, tensor in raw.items()}
    for container in (
        {"state_dict": raw, "ema": averaged},
        {"model": {f"module.{k}": v for k, v in raw.items()}, "ema_model": {"module": averaged}},
        {
            "state_dict": {
                **{f"model.{k}": v for k, v in raw.items()},
                **{f"ema_model.{k}": v for k, v in averaged.items()},
            }
        },
    ):
        found = unwrap(container)
        assert found.naming == "original" and found.tensors.keys() == raw.keys()
        assert torch.equal(found.tensors["final_layer.linear.bias"], averaged["final_layer.linear.bias"])


def test_a_folder_with_nothing_or_too_much(tmp_path, net):
    with pytest.raises(CheckpointError, match="found none"):
        load_transformer(tmp_path)
    for name in ("a", "b"):
        save_file(net.state_dict(), tmp_path / f"{name}.safetensors")
    with pytest.raises(CheckpointError, match="a.safetensors, b.safetensors"):
        load_transformer(tmp_path)
    with pytest.raises(CheckpointError, match="does not exist"):
        load_transformer(tmp_path / "nowhere")


def test_the_loaded_network_holds_the_file_s_numbers(tmp_path):
    net = tiny_transformer()
    net.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "diffusion_pytorch_model.safetensors")
    assert stored.keys() == load_transformer(tmp_path).state_dict().keys()
