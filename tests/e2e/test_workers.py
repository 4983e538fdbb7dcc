"""`stmdit synthesize --workers` as a user meets it, with Ctrl-C as a terminal sends it: to every process at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from command_line import stmdit
from killing import forked_workers
from tiny import TINY_GENES

pytest.importorskip("distributed")


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_done_and_resume_finishes_it(tiny_folder, tmp_path):
    from checkpoints import write_tiny_checkpoint

    from napari_stmdit.tissue.store_entries import read_result

    checkpoint = write_tiny_checkpoint(tmp_path / "checkpoint", TINY_GENES)

    def command(output, *options):
        fixed = ("--checkpoint", checkpoint, "--all", "--steps", 12, "--batch", 1, "--device", "cpu", "--json")
        arguments = ("synthesize", tiny_folder, "--output", tmp_path / output, *fixed, *options)
        return list(map(str, arguments))

    process = subprocess.Popen(
        [sys.executable, "-m", "napari_stmdit.cli", *command("o.zarr", "--workers", 2)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert "/30 patches" in process.stderr.readline()
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=120)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130, err
    facts = json.loads(out)
    assert 0 < facts["patches"] < 30 and "Traceback" not in err
    assert (tmp_path / "o.zarr.unfinished").is_dir()

    with forked_workers():
        done = stmdit(*command("o.zarr", "--workers", 2, "--resume"))
    assert done.returncode == 0, done.stderr
    whole = json.loads(done.stdout)
    assert whole["complete"] and whole["patches"] == 30 and not (tmp_path / "o.zarr.unfinished").exists()
    one = json.loads(stmdit(*command("one.zarr")).stdout)
    a, b = (
        read_result(tmp_path / name, facts["element"])[0].compute().astype(int)
        for name, facts in (("o.zarr", whole), ("one.zarr", one))
    )
    assert np.abs(a - b).max() <= 1
