import numpy as np
import pytest
import torch

from napari_stmdit.errors import SynthesisError
from napari_stmdit.intent import Guidance
from napari_stmdit.model.autoencoder import decode_latents, encode_latents, spatial_factor
from napari_stmdit.model.folder import load_component, read_folder
from napari_stmdit.model.pipeline import STMDiTPipeline
from napari_stmdit.types import GuidanceScales, Sampling

GUIDANCE = Guidance(expression=2.0, morphology=1.5, rule="nested_morphology_first")


@pytest.fixture
def pipeline(tiny_checkpoint):
    folder = read_folder(tiny_checkpoint)
    return STMDiTPipeline(**{name: load_component(folder, name) for name in ("transformer", "vae", "scheduler")})


@pytest.fixture
def conditions():
    rng = np.random.default_rng(0)
    return {
        "morphology": rng.normal(size=(3, 1, 10)).astype(np.float32),
        "expression": rng.normal(size=(3, 8)).astype(np.float32),
    }


def test_a_call_and_the_steps_make_the_same_images(pipeline, conditions):
    sampling = Sampling(GuidanceScales.of(GUIDANCE), 4)
    steps = list(pipeline.denoise_images(**conditions, seeds=(1, 2, 3), sampling=sampling))
    assert [(one.step, one.steps, one.images is None) for one in steps] == [
        (1, 4, True),
        (2, 4, True),
        (3, 4, True),
        (4, 4, False),
    ]
    images = steps[-1].images
    assert images.shape == (3, 64, 64, 3) and images.dtype == np.uint8 and images.std() > 1
    called = pipeline(**conditions, seeds=(1, 2, 3), guidance=GUIDANCE, num_inference_steps=4).images
    assert np.array_equal(called, images)
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2, 3)]
    again = pipeline(**conditions, generator=generators, guidance=GUIDANCE, num_inference_steps=4, return_dict=False)[0]
    assert np.array_equal(again, images)


def test_a_patch_does_not_depend_on_its_batch(pipeline, conditions):
    together = pipeline(**conditions, seeds=(1, 2, 3), num_inference_steps=4).images.astype(int)
    for k in range(3):
        own = {name: rows[k : k + 1] for name, rows in conditions.items()}
        alone = pipeline(**own, seeds=(k + 1,), num_inference_steps=4).images.astype(int)
        assert np.abs(alone[0] - together[k]).max() <= 1


def test_conditions_and_guidance_reach_the_image(pipeline, conditions):
    def images(**changes):
        return pipeline(
            **{**conditions, "seeds": (1, 2, 3), "num_inference_steps": 3, "guidance": GUIDANCE, **changes}
        ).images

    plain = images()
    for change in (
        {"expression": conditions["expression"] + 1},
        {"morphology": conditions["morphology"] + 1},
        {"expression": None},
        {"morphology": None},
        {"guidance": Guidance(expression=5.0, morphology=1.5)},
        {"seeds": (4, 5, 6)},
    ):
        assert not np.array_equal(images(**change), plain), change


def test_interrupt_ends_after_the_present_step(pipeline, conditions):
    seen = []

    def stop_at_two(pipe, step, time, tensors):
        seen.append((step, time, tensors["latents"].shape))
        pipe.interrupt = step == 1

    pipeline(**conditions, seeds=(1, 2, 3), num_inference_steps=10, callback_on_step_end=stop_at_two)
    assert [step for step, _, _ in seen] == [0, 1]
    assert [time for _, time, _ in seen] == pipeline.timesteps(10)[:2]
    assert seen[0][2] == (3, 12, 8, 8)
    pipeline(**conditions, seeds=(1, 2, 3), num_inference_steps=2)  # the next call is not interrupted
    assert len(list(pipeline.denoise_images(seeds=[1], sampling=Sampling(steps=2)))) == 2


def test_sizes(pipeline):
    assert pipeline(seeds=[1], num_inference_steps=1, height=48, width=80).images.shape == (1, 48, 80, 3)
    with pytest.raises(SynthesisError, match="multiples of 16"):
        pipeline(seeds=[1], num_inference_steps=1, height=60)


def test_counts_must_agree(pipeline, conditions):
    with pytest.raises(SynthesisError, match="2 and 3 patches"):
        pipeline(**conditions, seeds=(1, 2), num_inference_steps=1)


def test_output_types(pipeline):
    pictures = pipeline(seeds=[1], num_inference_steps=1, output_type="pil").images
    arrays = pipeline(seeds=[1], num_inference_steps=1).images
    assert np.array_equal(np.asarray(pictures[0]), arrays[0])
    latents = pipeline(seeds=[1], num_inference_steps=1, output_type="latent").images
    assert np.array_equal(decode_latents(pipeline.vae, latents), arrays)


def test_images_go_through_the_bundled_autoencoder(pipeline):
    assert spatial_factor(pipeline.vae) == 8
    images = np.random.default_rng(0).integers(0, 255, (2, 32, 48, 3), np.uint8)
    latents = encode_latents(pipeline.vae, images)
    assert latents.shape == (2, 12, 4, 6)
    floats = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
    torch.testing.assert_close(encode_latents(pipeline.vae, floats), latents)
    assert decode_latents(pipeline.vae, latents).shape == images.shape
    with pytest.raises(SynthesisError, match="multiples of 8"):
        encode_latents(pipeline.vae, images[:, :30])
    with pytest.raises(SynthesisError, match="expects"):
        decode_latents(pipeline.vae, latents[:, :4])
