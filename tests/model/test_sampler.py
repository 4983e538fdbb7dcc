import pytest
import torch
from checkpoints import plain_transformer, tiny_transformer
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler

from napari_stmdit.errors import CheckpointError, SynthesisError
from napari_stmdit.model.guidance import branches
from napari_stmdit.model.inference import ConditionTensors
from napari_stmdit.model.sampling import denoise, noise_for

GUIDED = branches("nested_morphology_first", 1.5, 2.0)
SCHEDULERS = {
    "flow_euler": FlowMatchEulerDiscreteScheduler(),
    "flow_dpm": DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
    "epsilon_dpm": DPMSolverMultistepScheduler(),
    "epsilon_ddim": DDIMScheduler(),
}


class Counted(torch.nn.Module):
    """The real transformer, with a record of what it was called with."""

    def __init__(self, net):
        super().__init__()
        self.net = net
        self.device = net.device
        self.times = []
        self.batches = []

    def forward(self, hidden_states, timestep, **conditions):
        self.times.append(float(timestep[0]))
        self.batches.append(len(hidden_states))
        return self.net(hidden_states, timestep, **conditions)


def conditions_for(net, count):
    generator = torch.Generator().manual_seed(1)
    return ConditionTensors(
        torch.randn(count, net.config.morphology_dim, generator=generator),
        torch.randn(count, net.config.expression_dim, generator=generator),
    )


def part(conditions, chosen):
    return ConditionTensors(conditions.morphology[chosen], conditions.expression[chosen])


def last(steps):
    *_, (_, latents) = steps
    return latents


@pytest.mark.parametrize("scheduler", SCHEDULERS.values(), ids=SCHEDULERS)
def test_a_patch_does_not_depend_on_its_batch(scheduler):
    net = tiny_transformer()
    conditions, seeds = conditions_for(net, 4), [11, 12, 13, 14]
    together = last(denoise(net, scheduler, noise_for(seeds, (12, 8, 8)), conditions, GUIDED, 6))
    for k, seed in enumerate(seeds):
        alone = denoise(net, scheduler, noise_for([seed], (12, 8, 8)), part(conditions, slice(k, k + 1)), GUIDED, 6)
        torch.testing.assert_close(last(alone)[0], together[k], rtol=1e-4, atol=1e-4)
    assert (together[0] - together[1]).abs().max() > 0.1


def test_noise_depends_on_the_seed_alone():
    assert torch.equal(noise_for([5, 6], (3, 4, 4))[1], noise_for([6], (3, 4, 4))[0])
    assert not torch.equal(noise_for([5], (3, 4, 4)), noise_for([6], (3, 4, 4)))
    torch.manual_seed(0)
    first = torch.rand(1)
    torch.manual_seed(0)
    noise_for([5], (3, 4, 4))
    assert torch.equal(torch.rand(1), first)  # the global generator is left alone


def test_closing_stops_the_work():
    net = Counted(tiny_transformer())
    steps = denoise(net, SCHEDULERS["flow_euler"], noise_for([0], (12, 8, 8)), conditions_for(net.net, 1), GUIDED, 20)
    for step, _ in steps:
        if step == 3:
            break
    steps.close()
    assert len(net.times) == 3


def test_all_branches_in_one_forward_and_none_in_vain():
    net = Counted(tiny_transformer())
    noise, conditions = noise_for([0, 1], (12, 8, 8)), conditions_for(net.net, 2)
    last(denoise(net, SCHEDULERS["flow_euler"], noise, conditions, GUIDED, 2))
    assert net.batches == [6, 6]
    net.batches.clear()
    last(denoise(net, SCHEDULERS["flow_euler"], noise, conditions, branches("nested_morphology_first", 1, 1), 2))
    assert net.batches == [2, 2]


def test_inference_mode_ends_at_every_yield():
    net = tiny_transformer()
    noise = noise_for([0], (12, 8, 8))
    for _, latents in denoise(net, SCHEDULERS["flow_euler"], noise, conditions_for(net, 1), GUIDED, 3):
        assert not torch.is_inference_mode_enabled()
        assert torch.is_grad_enabled()
        latents.add_(1000)  # the consumer's copy: the loop must not see it
    untouched = last(denoise(net, SCHEDULERS["flow_euler"], noise, conditions_for(net, 1), GUIDED, 3))
    assert (latents - 1000 - untouched).abs().max() < 1e-2


def test_two_runs_with_one_scheduler_do_not_disturb_each_other():
    net, scheduler = tiny_transformer(), DPMSolverMultistepScheduler()
    conditions = conditions_for(net, 1)
    alone = last(denoise(net, scheduler, noise_for([0], (12, 8, 8)), conditions, GUIDED, 5))
    first = denoise(net, scheduler, noise_for([0], (12, 8, 8)), conditions, GUIDED, 5)
    second = denoise(net, scheduler, noise_for([1], (12, 8, 8)), conditions, GUIDED, 3)
    for _ in range(3):
        _, latents = next(first)
        next(second)
    assert torch.equal(last(first), alone)
    assert scheduler.num_inference_steps is None


def test_flow_times_are_told_exactly():
    net = Counted(tiny_transformer())
    last(denoise(net, SCHEDULERS["flow_dpm"], noise_for([0], (12, 8, 8)), conditions_for(net.net, 1), GUIDED, 7))
    scheduler = SCHEDULERS["flow_dpm"]
    copy = type(scheduler).from_config(scheduler.config)
    copy.set_timesteps(7)
    assert net.times == pytest.approx((copy.sigmas[:-1] * 1000).tolist(), rel=1e-6)
    assert any(abs(time - round(time)) > 0.1 for time in net.times)


def test_the_learned_variance_is_dropped():
    net = plain_transformer()
    latents = last(
        denoise(net, SCHEDULERS["epsilon_dpm"], noise_for([0], (4, 8, 8)), conditions_for(net, 1), GUIDED, 3)
    )
    assert latents.shape == (1, 4, 8, 8)


def test_a_straight_flow_ends_where_it_points():
    """With the velocity of a straight path, any number of Euler steps arrives at the data."""
    data = torch.full((1, 12, 8, 8), 0.25)
    noise = noise_for([0], (12, 8, 8))

    class Straight:
        device = torch.device("cpu")

        def __call__(self, hidden_states, timestep, **conditions):
            return (noise - data).expand(len(hidden_states), -1, -1, -1)

    for name, tolerance in {"flow_euler": 1e-5, "flow_dpm": 5e-3}.items():  # the second starts at 0.999, not at 1
        final = last(denoise(Straight(), SCHEDULERS[name], noise, ConditionTensors(), GUIDED, 5))
        torch.testing.assert_close(final, data.to(final), rtol=0, atol=tolerance)


def test_schedulers_that_draw_noise_are_refused():
    net = tiny_transformer()
    noise = noise_for([0], (12, 8, 8))
    with pytest.raises(CheckpointError, match="deterministic"):
        next(
            denoise(
                net, DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++"), noise, ConditionTensors(), GUIDED, 2
            )
        )
    with pytest.raises(SynthesisError, match="at least one step"):
        next(denoise(net, SCHEDULERS["flow_euler"], noise, ConditionTensors(), GUIDED, 0))


def test_overflow_is_an_error_not_a_black_patch():
    net = tiny_transformer()
    with torch.no_grad():
        net.final_linear.bias.fill_(float("inf"))
    with pytest.raises(SynthesisError, match="float32"):
        last(denoise(net, SCHEDULERS["flow_euler"], noise_for([0], (12, 8, 8)), conditions_for(net, 1), GUIDED, 2))
