"""The stages of a patch with the bundled checkpoint, each on its own. `stmdit bench` gives the same with operations and comparisons.

``make bench`` prints a table. Figures are wall-clock times of this machine; compare them within one run only.
"""

import numpy as np
import pytest
import torch

from napari_stmdit.assemble import load_checkpoint
from napari_stmdit.bench.stages import in_dtype, of_checkpoint, request_for
from napari_stmdit.model.autoencoder import decode_latents
from napari_stmdit.model.inference import prediction
from napari_stmdit.synthesis.canvas import MemoryCanvas
from napari_stmdit.synthesis.plan import PRESETS, plan
from napari_stmdit.synthesis.session import synthesize
from napari_stmdit.tissue.crops import read_patches
from napari_stmdit.tissue.open import open_sample_section
from napari_stmdit.types import PatchResult

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@pytest.fixture(scope="module")
def section():
    return open_sample_section()


@pytest.fixture(scope="module")
def model():
    return load_checkpoint("demo", device="cpu")


@pytest.fixture(scope="module")
def plain():
    return of_checkpoint(load_checkpoint("demo", device="cpu", dtype="float32"))


@pytest.fixture
def made(section, model):
    return plan(section, request_for(model.card, 8), model.card)


def test_plan_of_all_spots(benchmark, section, model):
    request = request_for(model.card, len(section.spots))
    benchmark.pedantic(plan, (section, request, model.card), rounds=9, warmup_rounds=1)


def test_encode_eight_patches(benchmark, section, model, made):
    crops = read_patches(section.image, [patch.source_box for patch in made.patches], model.card.patch_px)
    benchmark.pedantic(model.encode_morphology, (crops,), rounds=9, warmup_rounds=1)


def test_encode_eight_spots(benchmark, section, model, made):
    rows = [patch.row for patch in made.patches]
    benchmark.pedantic(
        model.encode_expression, (section.spots.counts[rows], section.spots.genes), rounds=9, warmup_rounds=1
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", [1, 4, 16, 64])
@torch.inference_mode()
def test_one_step(benchmark, plain, batch, dtype):
    subject = in_dtype(plain, DTYPES[dtype])
    guidance, times = [subject.guidance] * subject.steps, torch.linspace(999, 50, subject.steps)
    predict = prediction(subject.transformer, subject.conditions(batch), guidance, times, subject.shape(batch))
    benchmark.pedantic(predict, (1, subject.noise(batch)), rounds=5, warmup_rounds=1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", [1, 8])
def test_decode(benchmark, plain, batch, dtype):
    subject = in_dtype(plain, DTYPES[dtype])
    benchmark.pedantic(decode_latents, (subject.vae, subject.noise(batch)), rounds=5, warmup_rounds=1)


def test_paste(benchmark, made, model):
    canvas = MemoryCanvas(made.frame)
    side = model.card.patch_px
    patch = PatchResult(made.patches[0], np.zeros((side, side, 3), dtype=np.uint8))
    benchmark.pedantic(canvas.paste, (patch,), rounds=15, warmup_rounds=1)


@pytest.mark.parametrize("preset", PRESETS)
def test_one_patch_from_request_to_canvas(benchmark, section, model, preset):
    benchmark.pedantic(synthesize, (section, request_for(model.card, 1, preset), model), rounds=5, warmup_rounds=1)
