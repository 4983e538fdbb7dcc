"""Runs that die and are taken up again, as processes."""

import json
import os
import random
import signal
import time

import numpy as np
import pytest
from checkpoints import write_tiny_checkpoint
from command_line import refused
from killing import command, end, killed_and_resumed, start, told, uninterrupted
from tiny import TINY_GENES


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny", TINY_GENES)


@pytest.mark.slow
@pytest.mark.parametrize(
    "wishes",
    [
        ("--mode", "spots", "--all", "--batch", 2, "--steps", 6),
        ("--mode", "continuous", "--sample", 3, "--batch", 8, "--steps", 6),
        pytest.param(("--mode", "spots", "--all", "--batch", 2, "--steps", 20), marks=pytest.mark.nightly),
        pytest.param(("--mode", "continuous", "--sample", 6, "--steps", 12), marks=pytest.mark.nightly),
    ],
    ids=["spots", "continuous", "spots, longer", "continuous, longer"],
)
def test_a_run_that_is_killed_goes_on_to_the_same_image(wishes, tiny_folder, checkpoint, tmp_path):
    whole = tmp_path / "whole.zarr"
    straight = uninterrupted(command(tiny_folder, checkpoint, whole, *wishes), whole)
    output = tmp_path / "killed.zarr"
    arguments = command(tiny_folder, checkpoint, output, *wishes)
    outcome = killed_and_resumed(arguments, output, 2, straight.seconds, random.Random(1))
    assert len(outcome.kills) == 2
    assert outcome.rewritten == 0
    assert outcome.image is not None and straight.image is not None
    assert np.abs(outcome.image - straight.image).max() <= 1


@pytest.mark.slow
def test_an_unfinished_run_is_said_and_only_the_same_one_goes_on(tiny_folder, checkpoint, tmp_path):
    output, log = tmp_path / "o.zarr", tmp_path / "log"
    wishes = ("--all", "--batch", 1, "--steps", 50)
    process = start(command(tiny_folder, checkpoint, output, *wishes), log)
    assert "1/30 patches" in told(log, process, "1/30 patches")
    process.kill()
    process.join()
    again = refused(*command(tiny_folder, checkpoint, output, *wishes))
    assert "--resume" in again and "of 30 patches are finished" in again
    other = refused(*command(tiny_folder, checkpoint, output, "--all", "--steps", 2, "--resume"))
    assert "request.steps: 50 then, 2 now" in other
    assert not output.exists()


@pytest.mark.slow
def test_resume_without_an_unfinished_run_starts_one(tiny_folder, checkpoint, tmp_path):
    output = tmp_path / "o.zarr"
    log = tmp_path / "log"
    facts = end(start(command(tiny_folder, checkpoint, output, "--sample", 2, "--resume"), log), log)
    assert facts["patches"] == 2 and facts["unfinished"] is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.err", "log.out", "o.zarr"]


@pytest.mark.slow
def test_an_interrupt_amid_a_continuous_run_keeps_its_latents(tiny_folder, checkpoint, tmp_path):
    output, log = tmp_path / "o.zarr", tmp_path / "log"
    arguments = command(
        tiny_folder, checkpoint, output, "--mode", "continuous", "--sample", 3, "--batch", 8, "--steps", 60
    )
    process = start(arguments, log)
    solver = tmp_path / "o.zarr.unfinished" / "solver.npz"
    while process.is_alive() and not solver.exists():
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    process.join()
    facts = json.loads((tmp_path / "log.out").read_text())
    assert process.exitcode == 130
    assert facts["patches"] == 0 and facts["element"] is None
    assert facts["unfinished"] == str(solver.parent)
    facts = end(start([*arguments, "--resume"], log), log)
    assert facts["complete"] and facts["element"] == "stmdit_1"
    assert not solver.parent.exists()
