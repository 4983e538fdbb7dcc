"""Presets: what they resolve to, that they are said, and that they reach the network and the decoder."""

import numpy as np
import pytest
import torch
from checkpoints import write_tiny_checkpoint
from diffusers import AutoencoderTiny, UniPCMultistepScheduler
from standins import card_for
from tiny import TINY_GENES

from napari_stmdit import Guidance, Request, load_checkpoint, synthesize
from napari_stmdit.regions import SampleOfSpots
from napari_stmdit.synthesis.identity import differences, identity_of
from napari_stmdit.synthesis.plan import PRESETS, evaluations, plan, resolve_sampling, resolve_steps

CARD = card_for(TINY_GENES).model_copy(update={"steps": 12})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The tiny checkpoint with a preview decoder of its own."""
    folder = write_tiny_checkpoint(tmp_path_factory.mktemp("preview") / "tiny", TINY_GENES, steps=12)
    torch.manual_seed(0)
    widths = {"encoder_block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4}
    tiny = AutoencoderTiny(
        latent_channels=12, num_encoder_blocks=(1,) * 4, num_decoder_blocks=(1,) * 4, scaling_factor=1.0, shift_factor=0.0, **widths
    )  # fmt: skip
    tiny.save_pretrained(folder / "preview_vae")
    index = (folder / "model_index.json").read_text()
    (folder / "model_index.json").write_text(index[:-1] + ', "preview_vae": ["diffusers", "AutoencoderTiny"]}')
    return folder


@pytest.mark.parametrize(("preset", "steps"), [("exact", 12), ("fast", 6), ("draft", 5)])
def test_steps_of_a_preset(preset, steps):
    assert resolve_steps(Request(preset=preset), CARD) == steps
    assert resolve_steps(Request(preset=preset, steps=7), CARD) == 7  # what is asked for counts
    assert resolve_steps(Request(preset=preset), CARD.model_copy(update={"steps": 3})) == 3  # never more than its own


def test_the_interval_of_a_preset_gives_way_to_the_request():
    assert resolve_sampling(Request(), CARD).guidance.above == 0
    assert resolve_sampling(Request(preset="fast"), CARD).guidance.above == PRESETS["fast"].above > 0
    assert resolve_sampling(Request(preset="fast", guidance=Guidance(above=0.1)), CARD).guidance.above == 0.1
    assert resolve_sampling(Request(preset="fast"), CARD).guidance.rule == CARD.guidance.rule


@pytest.mark.parametrize("mode", ["spots", "continuous"])
def test_a_preset_reaches_network_and_decoder_and_is_said(folder, tiny_section, mode, monkeypatch):
    model = load_checkpoint(folder)
    request = Request(region=SampleOfSpots(count=1), mode=mode)
    batches, decoders, solvers = [], [], []
    predict, decode = model.pipeline.transformer.predict, type(model.pipeline).decode

    def counted(latents, prepared, *rest):
        batches.append(prepared.items // len(latents))
        return predict(latents, prepared, *rest)

    def noted(pipeline, latents, preview=False):
        decoders.append(preview and pipeline.preview_vae is not None)
        return decode(pipeline, latents, preview)

    def step(scheduler, *args, **kwargs):
        solvers.append(type(scheduler).__name__)
        return stepped(scheduler, *args, **kwargs)

    stepped = UniPCMultistepScheduler.step
    monkeypatch.setattr(UniPCMultistepScheduler, "step", step)
    monkeypatch.setattr(model.pipeline.transformer, "predict", counted)
    monkeypatch.setattr(type(model.pipeline), "decode", noted)
    made = {}
    for preset in PRESETS:
        batches.clear()
        decoders.clear()
        solvers.clear()
        made[preset] = synthesize(tiny_section, request.model_copy(update={"preset": preset}), model)
        guided = {"exact": 12, "fast": 4, "draft": 2}[preset]  # of 12, 6 and 5 steps: those above the interval's end
        steps = made[preset].plan.steps
        branches = [b for k, b in enumerate(batches) if k % (len(batches) // steps) == 0]
        assert branches == [3] * guided + [1] * (steps - guided), preset
        assert set(decoders) == {preset == "draft"}
        assert len(solvers) == (0 if preset == "exact" else steps)
        assert (f"preset {preset}: " in " ".join(made[preset].notes)) == (preset != "exact")
        assert made[preset].provenance["request"]["preset"] == preset
        assert made[preset].provenance["guidance"]["above"] == PRESETS[preset].above
        saved = {"preset": preset, "fast_solver": preset != "exact", "preview_decoder": preset == "draft"}
        assert made[preset].provenance["savings"] == saved
    assert not np.array_equal(made["exact"].rgba, made["fast"].rgba)


def test_an_estimate_counts_branches(tiny_section, folder):
    card = load_checkpoint(folder).card
    plans = {
        preset: plan(tiny_section, Request(region=SampleOfSpots(count=2), preset=preset), card) for preset in PRESETS
    }
    assert evaluations(plans["exact"]) == 2 * 12 * 3
    assert evaluations(plans["fast"]) == pytest.approx(2 * 6 * (0.6 * 3 + 0.4))
    morphology = Request(region=SampleOfSpots(count=2), guidance=Guidance(expression=1, morphology=1))
    assert evaluations(plan(tiny_section, morphology, card)) == 2 * 12


def test_a_run_is_resumed_with_its_own_preset_alone(tiny_section, folder):
    model = load_checkpoint(folder)
    found = [
        identity_of(plan(tiny_section, Request(preset=preset), model.card), tiny_section, model) for preset in PRESETS
    ]
    assert not differences(found[1], found[1])
    told = " ".join(differences(found[0], found[1]))
    assert "request.preset" in told and "plan.steps" in told and "plan.guidance.above" in told
