"""The solver for few steps: the same schedule, the same kind of prediction, and nearer to the limit of many steps."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler

from napari_stmdit.model.guidance import Branch
from napari_stmdit.model.inference import ConditionTensors
from napari_stmdit.model.sampling import CanvasSolver, denoise, fast_solver, noise_for

FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
OWN = {
    "Euler": FlowMatchEulerDiscreteScheduler(shift=1.5),
    "flow by DPM-Solver": DPMSolverMultistepScheduler(**FLOW, flow_shift=1.5),
    "noise by DPM-Solver": DPMSolverMultistepScheduler(beta_schedule="linear"),
    "noise by DDIM": DDIMScheduler(beta_schedule="linear", clip_sample=False, set_alpha_to_one=True),
    "velocity by DDIM": DDIMScheduler(prediction_type="v_prediction", clip_sample=False),
}
SPREAD = 0.6


class Gaussian:
    """The best predictor for data that is normal around 0 with a known spread: its trajectories are known to all solvers."""

    device = torch.device("cpu")

    def __init__(self, scheduler):
        self.scheduler = scheduler
        self.flow = "Flow" in type(scheduler).__name__ or scheduler.config.prediction_type == "flow_prediction"

    def __call__(self, latents, times, **_):
        level = times[0] / 1000
        if self.flow:
            signal, noise = 1 - level, level
        else:
            signal = self.scheduler.alphas_cumprod[int(times[0])] ** 0.5
            noise = (1 - signal**2) ** 0.5
        total = signal**2 * SPREAD**2 + noise**2
        clean, drawn = signal * SPREAD**2 / total * latents, noise / total * latents
        if self.flow:
            return drawn - clean
        return drawn if self.scheduler.config.prediction_type == "epsilon" else signal * drawn - noise * clean


def sampled(scheduler, predictor, steps):
    branch = [Branch(True, True, 1.0)]
    *_, (_, latents) = denoise(predictor, scheduler, noise_for([0], (2, 8, 8)), ConditionTensors(), branch, steps)
    return latents


@pytest.mark.parametrize("name", OWN)
def test_few_steps_of_it_are_nearer_to_the_limit_than_few_of_the_checkpoints_own(name):
    own = OWN[name]
    predictor = Gaussian(own)
    fast = fast_solver(own)
    assert fast.config.prediction_type == own.config.get("prediction_type", "flow_prediction")
    limit = sampled(own, predictor, 400)
    errors = [float((sampled(solver, predictor, 6) - limit).abs().mean()) for solver in (own, fast)]
    assert errors[1] < errors[0]
    assert float((sampled(fast, predictor, 400) - limit).abs().mean()) < 0.02


def test_a_schedule_it_cannot_follow_is_kept():
    own = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    assert fast_solver(own) is own


def test_a_canvas_is_taken_up_where_it_was_put_down():
    own = FlowMatchEulerDiscreteScheduler()
    predictor, noise = Gaussian(own), noise_for([3], (2, 8, 8))[0].numpy()
    branch = [Branch(True, True, 1.0)]

    def advance(solver, count):
        for _ in range(count):
            solver.advance(solver.predict(solver.inputs()[None], None, None)[0])
        return solver

    whole = advance(CanvasSolver(predictor, fast_solver(own), branch, noise, 6), 6)
    state = advance(CanvasSolver(predictor, fast_solver(own), branch, noise, 6), 3).state()
    taken_up = advance(CanvasSolver(predictor, fast_solver(own), branch, noise, 6, state), 3)
    np.testing.assert_array_equal(taken_up.latents, whole.latents)
