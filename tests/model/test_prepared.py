"""The exact savings: what is computed once a patch gives what the plain loop gives, which computes everything at every step."""

import pytest
import torch
from checkpoints import plain_transformer, tiny_transformer
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler

from napari_stmdit.errors import SynthesisError
from napari_stmdit.model.guidance import Branch, branches
from napari_stmdit.model.inference import ConditionTensors, prediction
from napari_stmdit.model.sampling import denoise, noise_for

KINDS = {
    "adaln": {"expression_cross_attention": False},
    "one token each": {"expression_adaln": False},
    "both": {},
    "a few tokens": {"expression_expand": 2, "morphology_expand": 2, "expression_adaln": False},
    "many tokens": {"expression_expand": 16, "expression_adaln": False},
    "pooled": {"expression_pooling": "pma", "expression_pool_tokens": 3},
    "several morphology vectors": {"morphology_tokens": 4, "morphology_position": True, "morphology_dim": 12},
    "no expression": {"expression_dim": None, "expression_adaln": False, "expression_cross_attention": False},
}
ALL_FOUR = (Branch(False, False, -0.5), Branch(True, False, 0.25), Branch(False, True, 0.5), Branch(True, True, 0.75))


class Forward:
    """A transformer of which nothing but its forward is known."""

    def __init__(self, net):
        self.net, self.device = net, net.device

    def __call__(self, *args, **conditions):
        return self.net(*args, **conditions)


def given(net, count, vectors=None):
    generator = torch.Generator().manual_seed(1)
    morphology = torch.randn(count, net.config.morphology_tokens, net.config.morphology_dim, generator=generator)
    if net.config.expression_dim is None:
        return ConditionTensors(morphology)
    if vectors is None:
        return ConditionTensors(morphology, torch.randn(count, net.config.expression_dim, generator=generator))
    keep = torch.rand(count, vectors, generator=generator) > 0.4
    keep[:, 0] = True
    return ConditionTensors(
        morphology, torch.randn(count, vectors, net.config.expression_dim, generator=generator), keep
    )


@pytest.mark.parametrize("vectors", [None, 5])
@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_prepared_predictions_are_those_of_the_plain_forward(kind, vectors):
    net = plain_transformer(**KINDS[kind])
    conditions, times = given(net, 3, vectors), torch.tensor([900.0, 512.5, 3.0])
    latents = noise_for([0, 1, 2], (4, 8, 8))
    plan = [ALL_FOUR, branches("nested_morphology_first", 1.5, 2.0), ALL_FOUR]
    ours = prediction(net, conditions, plan, times, latents.shape)
    plain = prediction(Forward(net), conditions, plan, times, latents.shape)
    for step in range(3):
        torch.testing.assert_close(ours(step, latents), plain(step, latents), atol=1e-4, rtol=0)
    assert (ours(0, latents) - ours(2, latents)).abs().max() > 1e-3  # times tell the steps apart


@pytest.mark.parametrize("build", [tiny_transformer, plain_transformer])
@pytest.mark.parametrize(
    "scheduler",
    [FlowMatchEulerDiscreteScheduler(), DPMSolverMultistepScheduler()],
    ids=["flow", "noise"],
)
def test_a_whole_trajectory_is_that_of_the_plain_loop(build, scheduler):
    net = build()
    conditions, noise = given(net, 2), noise_for([3, 4], (net.config.in_channels, 8, 8))
    ours, plain = (
        [latents for _, latents in denoise(one, scheduler, noise, conditions, ALL_FOUR, 8)]
        for one in (net, Forward(net))
    )
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4 * max(1.0, float(b.abs().max())))


@torch.inference_mode()
def test_what_a_null_branch_does_not_see_does_not_matter():
    net = plain_transformer()
    blind = (Branch(False, False, 1.0),)
    times, latents = torch.tensor([500.0]), noise_for([0, 1], (4, 8, 8))
    with_conditions = prediction(net, given(net, 2), [blind], times, latents.shape)(0, latents)
    without = prediction(net, ConditionTensors(), [blind], times, latents.shape)(0, latents)
    torch.testing.assert_close(with_conditions, without, atol=1e-6, rtol=0)
    seeing = prediction(net, given(net, 2), [(Branch(True, True, 1.0),)], times, latents.shape)(0, latents)
    assert (seeing - without).abs().max() > 1e-3


class Counting(torch.nn.Module):
    """Counts how often a part of the network is used, and with how many rows."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.rows = inner, []

    def forward(self, x, *args):
        self.rows.append(len(x))
        return self.inner(x, *args)


def test_conditions_and_times_are_computed_once_and_null_is_shared():
    net = plain_transformer()
    net.morphology_embed, net.time_embed, net.expression_embed = (
        Counting(part) for part in (net.morphology_embed, net.time_embed, net.expression_embed)
    )
    first = net.blocks[0].self_attention = Counting(net.blocks[0].self_attention)
    second = net.blocks[1].self_attention = Counting(net.blocks[1].self_attention)
    list(denoise(net, DPMSolverMultistepScheduler(), noise_for([0, 1], (4, 8, 8)), given(net, 2), ALL_FOUR, 6))
    assert net.morphology_embed.rows == net.expression_embed.rows == [3]  # null and two patches, for four branches
    assert net.time_embed.rows == [6]  # all steps at once
    assert first.rows == second.rows == [8] * 6  # expression enters the time embedding: branches differ from the start
    shared = plain_transformer(expression_adaln=False)
    first = shared.blocks[0].self_attention = Counting(shared.blocks[0].self_attention)
    second = shared.blocks[1].self_attention = Counting(shared.blocks[1].self_attention)
    list(denoise(shared, DPMSolverMultistepScheduler(), noise_for([0, 1], (4, 8, 8)), given(shared, 2), ALL_FOUR, 6))
    assert (first.rows, second.rows) == ([2] * 6, [8] * 6)  # before the first condition, branches are the same


def test_a_branch_without_its_condition_is_refused():
    net = plain_transformer()
    latents = noise_for([0, 1], (4, 8, 8))
    for conditions, what in (
        (ConditionTensors(expression=given(net, 2).expression), "morphology"),
        (ConditionTensors(morphology=given(net, 2).morphology), "expression"),
    ):
        with pytest.raises(SynthesisError, match=f"asks for {what}"):
            prediction(net, conditions, [ALL_FOUR], torch.tensor([1.0]), latents.shape)
    with pytest.raises(SynthesisError, match="morphology has shape"):
        prediction(net, given(net, 3), [ALL_FOUR], torch.tensor([1.0]), latents.shape)


def test_gradients_reach_every_parameter_through_the_prepared_path():
    net = plain_transformer(qk_norm=True, cross_norm=True).train()
    conditions, times = given(net, 2), torch.tensor([400.0])
    latents = noise_for([0, 1], (4, 8, 8))
    prediction(net, conditions, [ALL_FOUR], times, latents.shape)(0, latents).square().sum().backward()
    idle = {name for name, parameter in net.named_parameters() if parameter.grad is None}
    unasked = ("morphology_attention.q.", "expression_attention.q.", "morphology_norm.", "expression_norm.")
    assert idle == {
        name for name, _ in net.named_parameters() if any(part in name for part in unasked)
    }  # one token each
