"""Sections 2 and 3 of the numeric fixtures: whole trajectories."""

import json

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from safetensors.torch import load_file

from napari_stmdit import load_transformer
from napari_stmdit.model.guidance import branches
from napari_stmdit.model.inference import ConditionTensors
from napari_stmdit.model.sampling import denoise

RULES = {
    "nested_morphology_first": "nested_morph_first",
    "nested_expression_first": "nested_gene_first",
    "additive": "additive",
}


@pytest.fixture
def scheduler(golden):
    config = json.loads((golden / "pixcell_tiny_scheduler_config.json").read_text())
    return DPMSolverMultistepScheduler.from_config(config)


def relative_difference(got, expected):
    return float((got - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("naming", ["original", "diffusers"])
def test_pixcell_trajectory_of_twenty_steps(golden, scheduler, naming):
    io = load_file(golden / "pixcell_tiny_dpmpp20_cfg2.safetensors")
    net = load_transformer(golden / f"pixcell_tiny_{naming}.safetensors")
    plan = branches("nested_morphology_first", 2, 0, has_expression=False)
    steps = dict(denoise(net, scheduler, io["noise"], ConditionTensors(io["uni_embedding"]), plan, 20))
    for step in (5, 10, 15, 20):
        assert relative_difference(steps[step], io[f"latents_step{step:02d}"]) < 1e-5
    assert relative_difference(steps[20], io["original_solver_final"]) > 1e-4  # another solver: the bound can tell


@pytest.mark.parametrize(
    ("variant", "rule"), [*(("both", rule) for rule in RULES), ("xattn_pma", "nested_morphology_first")]
)
def test_stmdit_samples(golden, scheduler, variant, rule):
    io = load_file(golden / f"stmdit_tiny_{variant}_io.safetensors")
    expected = io[f"sample20_{RULES[rule]}_wm2_wg3"]
    count = len(expected)
    net = load_transformer(golden / f"stmdit_tiny_{variant}.safetensors")
    keep = io["ge_keep"][:count] if "ge_keep" in io else None
    conditions = ConditionTensors(io["uni_embedding"][:count], io["ge_embedding"][:count], keep)
    *_, (step, latents) = denoise(net, scheduler, io["sample_noise"][:count], conditions, branches(rule, 2, 3), 20)
    assert step == 20
    assert relative_difference(latents, expected) < 1e-5
    assert not torch.is_inference(latents)
