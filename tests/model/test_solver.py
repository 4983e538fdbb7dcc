import numpy as np
import pytest
import torch
from checkpoints import tiny_transformer
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

from napari_stmdit.errors import CheckpointError, SynthesisError
from napari_stmdit.model.guidance import branches
from napari_stmdit.model.inference import ConditionTensors
from napari_stmdit.model.sampling import CanvasSolver, denoise, noise_for

SCHEDULERS = [
    DDIMScheduler(),
    DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=1.0),
    FlowMatchEulerDiscreteScheduler(),
    HeunDiscreteScheduler(),
    PNDMScheduler(),
    UniPCMultistepScheduler(),
]
GUIDANCE = branches("nested_morphology_first", 1.5, 2.0)


@pytest.fixture(scope="module")
def net():
    return tiny_transformer()


@pytest.fixture(scope="module")
def conditions():
    rng = np.random.default_rng(0)
    return rng.normal(size=(1, 1, 10)).astype(np.float32), rng.normal(size=(1, 8)).astype(np.float32)


def drive(solver, conditions, until=None):
    while solver.step < (until or solver.steps):
        solver.advance(solver.predict(solver.inputs()[None], *conditions)[0])
    return solver.latents


@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=lambda s: type(s).__name__)
def test_one_window_is_what_the_sampler_makes(net, conditions, scheduler):
    noise = noise_for([3], (12, 8, 8))
    ours = drive(CanvasSolver(net, scheduler, GUIDANCE, noise[0].numpy(), 5), conditions)
    given = ConditionTensors(*(torch.from_numpy(rows) for rows in conditions))
    theirs = [z for _, z in denoise(net, scheduler, noise, given, GUIDANCE, 5)][-1]
    assert np.abs(ours - theirs[0].numpy()).max() < 1e-4 * np.abs(ours).max()  # random weights amplify rounding


@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=lambda s: type(s).__name__)
def test_a_solver_goes_on_from_its_state_bit_by_bit(net, conditions, scheduler, tmp_path):
    noise = noise_for([3], (12, 8, 8))[0].numpy()
    straight = drive(CanvasSolver(net, scheduler, GUIDANCE, noise, 6), conditions)
    first = CanvasSolver(net, scheduler, GUIDANCE, noise, 6)
    drive(first, conditions, until=3)
    np.savez(tmp_path / "state.npz", **first.state())
    with np.load(tmp_path / "state.npz", allow_pickle=False) as state:
        second = CanvasSolver(net, scheduler, GUIDANCE, np.zeros_like(noise), 6, dict(state))
    assert second.step == 3
    np.testing.assert_array_equal(drive(second, conditions), straight)


def test_a_state_of_another_run_is_refused(net, conditions):
    noise = noise_for([3], (12, 8, 8))[0].numpy()
    state = CanvasSolver(net, SCHEDULERS[0], GUIDANCE, noise, 6).state()
    with pytest.raises(SynthesisError, match="DDIMScheduler"):
        CanvasSolver(net, SCHEDULERS[2], GUIDANCE, noise, 6, state)
    with pytest.raises(SynthesisError, match="this run needs"):
        CanvasSolver(net, SCHEDULERS[0], GUIDANCE, noise, 7, state)


def test_a_scheduler_that_draws_noise_is_refused(net):
    scheduler = DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++")
    with pytest.raises(CheckpointError, match="draw noise"):
        CanvasSolver(net, scheduler, GUIDANCE, np.zeros((12, 8, 8), np.float32), 2)
