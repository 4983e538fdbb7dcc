"""The look at what a patch is becoming: right for every kind of prediction, and without effect on the result."""

import numpy as np
import pytest
import torch
from checkpoints import tiny_transformer
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)

from napari_stmdit.errors import CheckpointError
from napari_stmdit.model.folder import load_component, read_folder
from napari_stmdit.model.guidance import branches
from napari_stmdit.model.inference import ConditionTensors
from napari_stmdit.model.pipeline import STMDiTPipeline
from napari_stmdit.model.sampling import clean_estimate, denoise, noise_for
from napari_stmdit.types import Sampling

GUIDED = branches("nested_morphology_first", 1.5, 2.0)
FLOW_DPM = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
ENDS_CLEAN = {
    "flow_euler": FlowMatchEulerDiscreteScheduler(),
    "flow_dpm": DPMSolverMultistepScheduler(**FLOW_DPM),
    "epsilon_dpm": DPMSolverMultistepScheduler(),
    "epsilon_karras": DPMSolverMultistepScheduler(use_karras_sigmas=True),
    "epsilon_ddim": DDIMScheduler(clip_sample=False),
    "epsilon_euler": EulerDiscreteScheduler(),
    "v_ddim": DDIMScheduler(prediction_type="v_prediction", clip_sample=False),
    "v_dpm": DPMSolverMultistepScheduler(prediction_type="v_prediction"),
    "v_euler": EulerDiscreteScheduler(prediction_type="v_prediction"),
    "sample_ddim": DDIMScheduler(prediction_type="sample", clip_sample=False),
}
"""Their last step goes to noise zero, so that their last latents are the clean latents predicted at that step."""


def sampled(scheduler, steps=6, **more):
    net = tiny_transformer()
    generator = torch.Generator().manual_seed(1)
    conditions = ConditionTensors(
        torch.randn(2, net.config.morphology_dim, generator=generator),
        torch.randn(2, net.config.expression_dim, generator=generator),
    )
    return [x for _, x in denoise(net, scheduler, noise_for([1, 2], (12, 8, 8)), conditions, GUIDED, steps, **more)]


@pytest.mark.parametrize("scheduler", ENDS_CLEAN.values(), ids=ENDS_CLEAN)
def test_the_last_estimate_is_where_the_sampler_ends(scheduler):
    seen = []
    latents = sampled(scheduler, on_estimate=lambda step, clean: seen.append((step, clean.clone())))
    assert [step for step, _ in seen] == [1, 2, 3, 4, 5, 6]
    torch.testing.assert_close(seen[-1][1], latents[-1], rtol=2e-3, atol=2e-3)
    assert (seen[0][1] - latents[0]).abs().mean() > 0.1  # an estimate is not the noisy latents


@pytest.mark.parametrize("scheduler", ENDS_CLEAN.values(), ids=ENDS_CLEAN)
def test_the_estimate_changes_no_result(scheduler):
    plain = sampled(scheduler)
    watched = sampled(scheduler, on_estimate=lambda step, clean: clean.zero_())
    for a, b in zip(plain, watched, strict=True):
        assert torch.equal(a, b)


def test_the_estimate_agrees_with_what_diffusers_says_at_every_step():
    torch.manual_seed(0)
    x, predicted = torch.randn(2, 1, 3, 4, 4)
    for kind in ("epsilon", "v_prediction"):
        ddim = DDIMScheduler(prediction_type=kind, clip_sample=False)
        ddim.set_timesteps(8)
        dpm = DPMSolverMultistepScheduler(prediction_type=kind)
        dpm.set_timesteps(8)
        for index, time in enumerate(ddim.timesteps):
            own = ddim.step(predicted, time, x).pred_original_sample
            torch.testing.assert_close(clean_estimate(ddim, index, time, x, predicted), own, rtol=1e-4, atol=1e-4)
        for index, time in enumerate(dpm.timesteps):
            dpm._step_index = index
            own = dpm.convert_model_output(predicted, sample=x)
            torch.testing.assert_close(clean_estimate(dpm, index, time, x, predicted), own, rtol=1e-4, atol=1e-4)


def test_an_unknown_prediction_is_refused():
    scheduler = DDIMScheduler()
    scheduler.register_to_config(prediction_type="something")
    with pytest.raises(CheckpointError, match="something"):
        clean_estimate(scheduler, 0, torch.tensor(10), torch.zeros(1), torch.zeros(1))


def test_the_pipeline_shows_the_first_patch_every_few_steps(tiny_checkpoint):
    folder = read_folder(tiny_checkpoint)
    pipeline = STMDiTPipeline(**{n: load_component(folder, n) for n in ("transformer", "vae", "scheduler")})
    rng = np.random.default_rng(0)
    given = {
        "morphology": rng.normal(size=(2, 1, 10)).astype(np.float32),
        "expression": rng.normal(size=(2, 8)).astype(np.float32),
        "seeds": (1, 2),
        "sampling": Sampling(steps=6),
    }
    plain = list(pipeline.denoise_images(**given))[-1].images
    steps = list(pipeline.denoise_images(**given, preview_every=2))
    assert np.array_equal(plain, steps[-1].images)
    seen = [step.preview for step in steps if step.preview is not None]
    assert len(seen) == 2  # after steps 2 and 4; the last step brings the image itself
    assert {p.shape for p in seen} == {(64, 64, 3)} and {p.dtype for p in seen} == {np.dtype(np.uint8)}
    off = [np.abs(p.astype(int) - plain[0]).mean() for p in seen]
    assert off[1] < off[0]  # it comes closer to what the patch will be
    assert off[1] < np.abs(seen[1].astype(int) - plain[1]).mean()  # and it is the first patch
