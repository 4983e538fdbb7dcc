"""`stmdit evaluate`: a checkpoint interrupted and gone on with, the result of a run, and what is refused."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
from command_line import refused, stmdit
from killing import start
from tiny_fixtures import tiny_checkpoint  # noqa: F401
from typer.testing import CliRunner

from napari_stmdit.cli import app
from napari_stmdit.errors import StmditError

SMALL = ("--spots", "24", "--seeds", "1", "--genes", "10", "--draws", "100", "--device", "cpu", "--batch", "8")


@pytest.mark.slow
def test_an_interrupted_evaluation_goes_on_and_says_what_holds(tiny_checkpoint, tiny_folder, tmp_path):  # noqa: F811
    out = tmp_path / "evaluation"
    wish = ("evaluate", tiny_checkpoint, tiny_folder, *SMALL, "--steps", 16, "--output", out)
    log = tmp_path / "log"
    process = start(list(map(str, wish)), log)
    end = time.monotonic() + 240
    while not list(out.glob("stacks/*.npz")) and process.is_alive() and time.monotonic() < end:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    process.join(timeout=240)
    told, complaint = (Path(f"{log}{suffix}").read_text() for suffix in (".out", ".err"))
    assert process.exitcode == 130, complaint
    assert "the same command with --resume goes on" in told and "Traceback" not in complaint
    assert "add --resume" in refused(*wish)
    found = stmdit(*wish, "--resume", "--json")
    assert found.returncode == 0, found.stderr
    facts = json.loads(found.stdout)
    assert facts["complete"] and facts["done"] == facts["total"] == 24 * 7
    assert {claim["verdict"] for claim in facts["claims"]} <= {"beats", "does not"} and len(facts["claims"]) > 20
    report = json.loads((out / "report.json").read_text())
    assert report["command"] == " ".join(["stmdit", *map(str, wish), "--resume", "--json"])
    assert report["command"] in (out / "report.html").read_text() and report["steps"] == 16


@pytest.mark.slow
def test_a_result_is_evaluated_without_its_checkpoint(tiny_checkpoint, tiny_folder, tmp_path):  # noqa: F811
    from napari_stmdit import Request, load_checkpoint, open_section, synthesize

    section, model = open_section(tiny_folder), load_checkpoint(tiny_checkpoint, device="cpu")
    synthesize(section, Request(steps=1, section=str(tiny_folder)), model).save(tmp_path / "out.zarr", "one")
    wish = ("evaluate-result", tmp_path / "out.zarr", "--draws", 100, "--output", tmp_path / "report")
    found = stmdit(*wish)
    assert found.returncode == 0, found.stderr
    assert "report.html" in found.stdout
    (figures,) = json.loads((tmp_path / "report" / "report.json").read_text())["figures"]
    assert list(figures["cases"]) == ["stmdit_one"] and list(figures["distribution"]) == [
        "random convolutions, seed 123"
    ]


def test_bad_wishes_are_one_message(tiny_checkpoint, tiny_folder, tmp_path):  # noqa: F811
    (tmp_path / "config.yaml").write_text("name: [")
    for arguments, words in (
        (("demo",), "give a checkpoint and at least one section"),
        ((tiny_checkpoint,), "give a checkpoint and at least one section"),
        ((tmp_path / "out.zarr",), "a store with results is evaluated by stmdit evaluate-result OUT.zarr"),
        ((tiny_checkpoint, tiny_folder, "--spots", "3"), "spots"),
        ((tiny_checkpoint, tmp_path / "config.yaml"), "cannot be read"),
        ((tiny_checkpoint, tmp_path / "nothing"), "there is no file or folder"),
        (("nothing", tiny_folder), "there is no checkpoint"),
        ((tiny_checkpoint, tiny_folder, "--feature-space", "inception"), "encoder, random, uni2h"),
        ((tiny_checkpoint, tiny_folder, "--predictor-sections", tiny_folder), "is evaluated itself"),
    ):
        found = CliRunner().invoke(
            app, ["evaluate", *map(str, arguments), "--device", "cpu", "--output", str(tmp_path / "o")]
        )
        assert isinstance(found.exception, StmditError), (arguments, found.output)
        assert words in str(found.exception), (arguments, found.exception)
        assert not (tmp_path / "o" / "report.html").exists()


def test_a_bad_wish_ends_with_exit_code_2(tmp_path):
    assert "there is no file or folder" in refused("evaluate", "demo", tmp_path / "nothing")


def test_what_is_no_store_with_results_is_one_message(tiny_checkpoint, tmp_path):  # noqa: F811
    for place in (tmp_path / "nothing.zarr", tiny_checkpoint):
        found = CliRunner().invoke(app, ["evaluate-result", str(place), "--output", str(tmp_path / "o")])
        assert isinstance(found.exception, StmditError), found.output
        assert "is no store with results that is there" in str(found.exception) and str(place) in str(found.exception)
        assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("command", "option"),
    [("evaluate-result", "--spots"), ("evaluate-result", "--mpp"), ("evaluate", "--run"), ("evaluate", "--section")],
)
def test_what_an_evaluation_does_not_heed_is_no_option_of_it(command, option):
    found = CliRunner().invoke(app, [command, "A", "B", option, "1"])
    assert found.exit_code == 2 and "No such option" in found.output
