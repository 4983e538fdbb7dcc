"""The command line as a user meets it: its exit code and its two streams; one of each kind as a process."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import check_refused, refused, stmdit
from killing import run_alone, start, told


def test_help_and_version():
    assert "synthesize" in stmdit("--help").stdout
    command = [sys.executable, "-m", "napari_stmdit.cli", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.stdout.startswith("napari-stmdit ")


def test_info_names_versions_devices_and_the_bundled_checkpoint(tmp_path):
    facts = json.loads(run_alone(["info", "--json"], tmp_path / "log").stdout)
    assert facts["versions"]["torch"]
    assert "cpu" in facts["devices"]
    assert "demo" in facts["checkpoints"]


def test_a_missing_section_is_one_message(tmp_path):
    arguments = ["synthesize", str(tmp_path / "nothing.zarr"), "--output", str(tmp_path / "o.zarr")]
    assert "nothing.zarr" in check_refused(run_alone(arguments, tmp_path / "log"))


def test_two_ways_to_choose_spots_are_refused(tmp_path):
    message = refused("synthesize", tmp_path, "--output", tmp_path / "o.zarr", "--sample", 2, "--all")
    assert "only one of" in message


BLANK = [pytest.param(blank, marks=pytest.mark.nightly) for blank in (" ", "\t")]


@pytest.mark.parametrize("empty", ["", *BLANK])
@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (("synthesize", "S", "--output", "O", "--spots", None), "--spots"),
        (("synthesize", "S", "--output", None), "--output"),
        (("synthesize", None, "--output", "O"), "an argument"),
        (("synthesize", "S", "--output", "O", "--fullres", None), "--fullres"),
        (("synthesize", "S", "--output", "O", "--checkpoint", None), "--checkpoint"),
        (("synthesize", "S", "--output", "O", "--edits", None), "--edits"),
        (("demo", "--output", None), "--output"),
        (("train", "C", "--root", None), "--root"),
        (("train", "C", "--output", None), "--output"),
        (("batch", "J", "--scheduler", None), "--scheduler"),
        (("evaluate", "C", "S", "--output", None), "--output"),
        (("evaluate", "C", None, "--spots", "3"), "an argument"),
        (("evaluate-result", "R", "--checkpoint", None), "--checkpoint"),
        (("export-dataset", "R", "--output", "O", "--run", None), "--run"),
        (("export-dataset", "R", "--output", "O", "--licence", None), "--licence"),
        (("convert", "S", "--output", "O", "--name", None), "--name"),
        (("convert", "S", "--output", None), "--output"),
        (("inspect", "P", "--config", None), "--config"),
        (("download", None), "an argument"),
        (("bench", "--batches", None), "--batches"),
    ],
)
def test_an_empty_value_is_not_taken_for_one_not_given(arguments, name, empty, tmp_path, monkeypatch):
    """A variable of the shell that was never set must not mean the whole section, or the working directory."""
    from typer.testing import CliRunner

    from napari_stmdit.cli import app
    from napari_stmdit.errors import StmditError

    monkeypatch.chdir(tmp_path)
    outcome = CliRunner().invoke(app, [empty if part is None else part for part in arguments])
    assert isinstance(outcome.exception, StmditError)
    assert str(outcome.exception) == f"{name} is empty; give it a value, or leave it out"
    assert not list(tmp_path.iterdir())


def test_an_empty_option_behind_a_sign_is_refused_too(tmp_path):
    for blank in ("", " ", "\t"):
        assert "--spots is empty" in refused(
            "synthesize", tmp_path, "--output", tmp_path / "o.zarr", f"--spots={blank}"
        )
    message = refused("synthesize", tmp_path, "--output", tmp_path / "o.zarr", "--spots", ",")
    assert "region.spots.ids" in message
    assert "--sample and --all" in refused("synthesize", tmp_path, "--output", tmp_path / "o", "--sample", 0, "--all")


def test_every_bad_option_is_named_at_once(tmp_path):
    message = refused(
        "synthesize", tmp_path, "--output", tmp_path / "o.zarr", "--guidance-expression", -1, "--mode", "sideways"
    )
    assert "guidance.expression" in message
    assert "mode" in message


def test_bad_edits_are_refused_with_their_place(tmp_path):
    edits = tmp_path / "edits.yaml"
    edits.write_text("- operation: scale\n  genes: [ERBB2]\n- operation: fly\n")
    message = refused("synthesize", tmp_path, "--output", tmp_path / "o.zarr", "--edits", edits)
    assert "factor" in message
    assert "fly" in message


@pytest.fixture(scope="module")
def c3(shared_data) -> Path:
    return shared_data / "her2st_C3_spaceranger2"


def pixels(store: Path, name: str) -> np.ndarray:
    from spatialdata import read_zarr

    return np.asarray(read_zarr(store).images[name]["scale0"].image)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_pixels_whatever_the_batch(c3, tmp_path):
    outcomes = []
    for batch in (1, 4):
        store = tmp_path / f"{batch}.zarr"
        done = stmdit(
            "synthesize", c3, "--fullres", "C3_image.jpg", "--sample", 6, "--seed", 0, "--steps", 2, "--batch", batch,
            "--output", store, "--json",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        outcomes.append(json.loads(done.stdout))
    one, many = (pixels(Path(o["output"]), o["element"]).astype(int) for o in outcomes)
    assert np.abs(one - many).max() <= 1
    assert outcomes[0]["patches"] == 6
    assert "microns_per_pixel" in outcomes[0]["mpp_source"]


@pytest.mark.slow
def test_an_interrupt_keeps_what_is_done(c3, tmp_path):
    store, log = tmp_path / "o.zarr", tmp_path / "log"
    words = ["synthesize", str(c3), "--fullres", "C3_image.jpg", "--all", "--batch", "1", "--steps", "4"]
    process = start([*words, "--output", str(store), "--json"], log)
    assert "1/180 patches" in told(log, process, "1/180 patches")
    os.kill(process.pid, signal.SIGINT)
    process.join(timeout=120)
    assert process.exitcode == 130, Path(f"{log}.err").read_text()
    facts = json.loads(Path(f"{log}.out").read_text())
    assert 0 < facts["patches"] < facts["planned"] == 180
    assert (pixels(store, facts["element"])[3] == 255).any()


def test_a_mouse_section_is_refused_with_the_number_of_genes(shared_data, tmp_path):
    mouse = shared_data / "visium_mouse_brain_crop"
    arguments = (
        "synthesize", mouse / "outs_spaceranger2", "--fullres", mouse / "test_img.jpg", "--sample", 1, "--steps", 1,
        "--output", tmp_path / "o.zarr",
    )  # fmt: skip
    assert "shares 0 of the" in refused(*arguments) and not (tmp_path / "o.zarr").exists()
    assert stmdit(*arguments, "--allow-gene-mismatch").returncode == 0


def test_a_section_without_a_full_resolution_image_is_refused(shared_data, tmp_path):
    outs = shared_data / "visium_v4_no_fullres" / "outs"
    message = refused("synthesize", outs, "--sample", 1, "--output", tmp_path / "o.zarr", "--allow-gene-mismatch")
    assert "--fullres" in message


@pytest.mark.parametrize("name", ["malicious_torch_zip", "malicious_raw_pickle", "malicious_yaml"])
def test_a_malicious_checkpoint_is_refused_and_nothing_runs(name, shared_data, tmp_path):
    folder = shared_data.parent / "golden" / "containers" / name
    refused("inspect", folder, cwd=tmp_path)
    assert not list(tmp_path.iterdir())
    assert not (folder / "PWNED").exists()


def test_a_plain_slide_from_the_command_line(tmp_path):
    from slides import tissue_picture, write_pyramid, write_table

    from napari_stmdit.tissue.open import open_section

    slide = write_pyramid(tmp_path / "slide.tif", tissue_picture())
    fixed = ("synthesize", "slide.tif", "--sample", 2, "--steps", 2, "--device", "cpu")
    assert "--mpp" in refused(*fixed, "--output", "o.zarr", cwd=tmp_path)
    done = stmdit(*fixed, "--output", "o.zarr", "--mpp", 0.5, "--grid-pitch", 150, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["patches"] == 2 and facts["mpp"] == 0.5
    assert any("no measured expression was used" in note for note in facts["notes"])
    assert any("150 um apart" in note for note in facts["notes"])
    write_table(tmp_path / "mine.h5ad", open_section(slide, mpp=0.5).spots.yx)
    more = ("--mpp", 0.5, "--predicted-expression", "mine.h5ad", "--allow-gene-mismatch")
    done = stmdit(*fixed, "--output", "p.zarr", *more, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "predicted, in mine.h5ad" in done.stdout and "positions of mine.h5ad" in done.stdout
    again = refused(*fixed, "--output", "o.zarr", *more, cwd=tmp_path)
    assert "another section" in again


def test_the_bar_says_what_is_done_before_the_first_patch(capsys):
    from napari_stmdit.cli._common import ProgressBar
    from napari_stmdit.progress import Progress

    with ProgressBar("synthesizing") as bar:
        for spots in (0, 16):
            bar(Progress(0, 5, 0, 4, 0, 0.0, doing=f"Reading the tissue of this section: {spots} of 30 spots"))
    assert capsys.readouterr().err == "synthesizing: Reading the tissue of this section: 16 of 30 spots\n"
