"""What a user waits for: one patch, the first sign of progress, the import, the help text.

``make bench`` prints a table. Figures are wall-clock times of this machine; compare them within one run only.
"""

import subprocess
import sys

import pytest

from napari_stmdit import Guidance, Request
from napari_stmdit.assemble import load_checkpoint
from napari_stmdit.regions import SampleOfSpots
from napari_stmdit.synthesis.plan import plan
from napari_stmdit.synthesis.session import run, synthesize
from napari_stmdit.tissue.open import open_sample_section


@pytest.fixture(scope="module")
def section():
    return open_sample_section()


@pytest.fixture(scope="module")
def model(section):
    checkpoint = load_checkpoint("demo")
    synthesize(section, Request(region=SampleOfSpots(count=1), steps=2), checkpoint)  # warm
    return checkpoint


def two_scales(count: int, steps: int) -> Request:
    return Request(region=SampleOfSpots(count=count), steps=steps, guidance=Guidance(expression=2.0, morphology=1.5))


def test_one_patch_of_20_steps_with_two_scales(benchmark, section, model):
    benchmark.pedantic(synthesize, (section, two_scales(1, 20), model), rounds=7, warmup_rounds=1)


def test_eight_patches_of_20_steps_with_two_scales(benchmark, section, model):
    benchmark.pedantic(synthesize, (section, two_scales(8, 20), model), rounds=3)


def test_first_denoising_step_after_pressing_run(benchmark, section, model):
    def first_step():
        request = two_scales(1, 20)
        made = plan(section, request, model.card)
        for _, progress in run(made, section, model, batch=1):
            if progress.step:
                return progress

    benchmark.pedantic(first_step, rounds=7, warmup_rounds=1)


@pytest.mark.parametrize("code", ["import napari_stmdit", "import napari_stmdit.cli"])
def test_import(benchmark, code):
    benchmark.pedantic(subprocess.run, ([sys.executable, "-c", code],), {"check": True}, rounds=7, warmup_rounds=2)


def test_help(benchmark):
    command = [sys.executable, "-m", "napari_stmdit.cli", "--help"]
    benchmark.pedantic(
        subprocess.run, (command,), {"check": True, "stdout": subprocess.DEVNULL}, rounds=7, warmup_rounds=2
    )
