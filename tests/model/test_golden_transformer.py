"""Sections 1 and 3 of the numeric fixtures: single forwards, in float32 on the CPU."""

import pytest
import torch
from safetensors.torch import load_file

from napari_stmdit import load_transformer
from napari_stmdit.model.guidance import branches, combine

FORWARD = {"atol": 2e-5, "rtol": 0}
GUIDED = {"atol": 1e-4, "rtol": 0}
VARIANTS = ("adaln", "xattn", "both", "xattn_pma")
RULES = {
    "nested_morphology_first": "nested_morph_first",
    "nested_expression_first": "nested_gene_first",
    "additive": "additive",
}


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("naming", ["original", "diffusers"])
def test_pixcell_256(golden, naming):
    net = load_transformer(golden / f"pixcell_tiny_{naming}.safetensors")
    io = load_file(golden / "pixcell_tiny_io.safetensors")
    output = net(io["latents"], io["timesteps"], io["uni_embedding"])
    null = net(io["latents"], io["timesteps"])
    torch.testing.assert_close(output, io["out"], **FORWARD)
    torch.testing.assert_close(null[:, :16], io["out_null_eps"], **FORWARD)
    plan = branches("nested_morphology_first", 2, 2, has_expression=False)
    sources = {True: output, False: null}
    guided = combine([sources[branch.morphology][:1, :16] for branch in plan], plan)
    torch.testing.assert_close(guided, io["cfg2_eps_item0"].reshape(guided.shape), **GUIDED)
    torch.testing.assert_close(net.morphology_null, io["null_embedding"], rtol=0, atol=0)


@pytest.mark.parametrize("naming", ["original", "diffusers"])
def test_pixcell_1024_with_sixteen_condition_vectors(golden, naming):
    net = load_transformer(golden / f"pixcell1024_tiny_{naming}.safetensors")
    io = load_file(golden / "pixcell1024_tiny_io.safetensors")
    output = net(io["latents"], io["timesteps"], io["uni_embedding"])
    null = net(io["latents"], io["timesteps"])
    torch.testing.assert_close(output[:1, :16], io["out_eps_item0"], **FORWARD)
    torch.testing.assert_close(output[1:, :, ::2, ::2], io["out_item1_stride2"], **FORWARD)
    torch.testing.assert_close(null[:1, :16, ::2, ::2], io["out_null_eps_item0_stride2"], **FORWARD)
    guided = null[:1, :16] + 2 * (output[:1, :16] - null[:1, :16])
    torch.testing.assert_close(guided[..., ::2, ::2], io["cfg2_eps_item0_stride2"], **GUIDED)


def test_fresh_condition_positions_are_those_of_pixcell_1024(golden):
    loaded = load_transformer(golden / "pixcell1024_tiny_original.safetensors")
    fresh = type(loaded)(**loaded.config)
    torch.testing.assert_close(fresh.morphology_position_table, loaded.morphology_position_table, rtol=0, atol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_stmdit_under_every_combination_of_nulls(golden, variant):
    net = load_transformer(golden / f"stmdit_tiny_{variant}.safetensors")
    io = load_file(golden / f"stmdit_tiny_{variant}_io.safetensors")
    outputs = {}
    for morphology in (True, False):
        for expression in (True, False):
            outputs[morphology, expression] = net(
                io["latents"],
                io["timesteps"],
                io["uni_embedding"],
                io["ge_embedding"],
                morphology_null=torch.full((2,), not morphology),
                expression_null=torch.full((2,), not expression),
                expression_keep=io.get("ge_keep"),
            )
    torch.testing.assert_close(outputs[True, True], io["out_mg"], **FORWARD)
    torch.testing.assert_close(outputs[True, False][:, :16], io["eps_m0"], **FORWARD)
    torch.testing.assert_close(outputs[False, True][:, :16], io["eps_0g"], **FORWARD)
    torch.testing.assert_close(outputs[False, False][:, :16], io["eps_00"], **FORWARD)
    if "alt_final_raw_t_out_mg_item0" in io:  # the fixture can tell whether the final layer sees expression
        assert (outputs[True, True][:1] - io["alt_final_raw_t_out_mg_item0"]).abs().max() > 1e-3
    for rule, name in RULES.items():
        plan = branches(rule, 2, 3)
        guided = combine([outputs[branch.morphology, branch.expression][:1, :16] for branch in plan], plan)
        torch.testing.assert_close(guided, io[f"cfg_{name}_wm2_wg3_item0"], **GUIDED)


@pytest.mark.parametrize("variant", VARIANTS)
def test_nulls_may_be_mixed_in_a_batch_and_tensors_left_out(golden, variant):
    net = load_transformer(golden / f"stmdit_tiny_{variant}.safetensors")
    io = load_file(golden / f"stmdit_tiny_{variant}_io.safetensors")
    mixed = net(
        io["latents"],
        io["timesteps"],
        io["uni_embedding"],
        io["ge_embedding"],
        morphology_null=torch.tensor([False, True]),
        expression_null=torch.tensor([True, False]),
        expression_keep=io.get("ge_keep"),
    )
    torch.testing.assert_close(mixed[:1, :16], io["eps_m0"][:1], **FORWARD)
    torch.testing.assert_close(mixed[1:, :16], io["eps_0g"][1:], **FORWARD)
    without = net(io["latents"], io["timesteps"], io["uni_embedding"])
    torch.testing.assert_close(without[:, :16], io["eps_m0"], **FORWARD)
