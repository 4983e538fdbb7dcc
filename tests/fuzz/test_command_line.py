"""The same inputs through the command line: exit code 2, one message on stderr, nothing on stdout, no traceback."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from fuzz.families import ALL
from fuzz.harness import LIMIT_S, Refused, Scene, tree_hash, watchdog
from killing import run_alone

# damaged pixels are seen when they are read, and what fails once a checkpoint is there to plan with would load one for each case; the API has tried those
_BEFORE_PLANNING = ("SectionError", "ScaleError", "StoreError")
_EVERY = 9


def _reaches_the_command_line(case) -> bool:
    wanted = case.expected
    if not isinstance(wanted, Refused) or case.family in ("checkpoints", "training configurations", "job files"):
        return False
    if case.family == "images" and any("cut short" in t or t == "slide.tif" for t in wanted.says):
        return False
    files = case.family in ("edits", "regions", "requests") and wanted.error == "RequestError"
    return wanted.error in _BEFORE_PLANNING or (files and any(".yaml" in t or "YAML" in t for t in wanted.says))


CHOSEN = [case for case in ALL if _reaches_the_command_line(case)]
SAMPLE = CHOSEN[::_EVERY]


def command(scene: Scene, section: Path) -> list[str] | None:
    """The arguments that a scene comes down to; None where a shell could not give them."""
    place = section if scene.section is None else scene.section
    output = scene.output if scene.output is not None else scene.outside / "o.zarr"
    arguments = ["synthesize", place, "--output", output]
    for name in ("fullres", "mpp", "region", "edits"):
        value = getattr(scene, name)
        arguments += [] if value is None else [f"--{name}", value]
    for name, value in scene.options.items():
        arguments += [f"--{name.replace('_', '-')}", value]
    arguments += [] if scene.request_file is None else ["--request", scene.request_file]
    texts = [str(argument) for argument in arguments]
    lost = scene.wishes or scene.coordinate_system or scene.run or isinstance(scene.section, int | list)
    return None if lost or any("\0" in text for text in texts) or "" in texts else texts


def refused_as_bad_input(code: int, out: str, err: str, case) -> None:
    assert code == 2, f"{case.key}: exit {code}\n{err}"
    assert out == ""
    assert "Traceback" not in err and "This is a fault of napari-stmdit" not in err
    assert err.strip()


@pytest.mark.parametrize("case", SAMPLE, ids=lambda case: case.key)
def test_bad_input_is_one_message_and_exit_code_2(case, workshop, tiny_folder, monkeypatch, capsys):
    from napari_stmdit import cli

    scene = workshop.scene(case)
    arguments = command(scene, tiny_folder)
    if arguments is None:
        pytest.skip("cannot be said on a command line")
    before = tree_hash(scene.root)
    monkeypatch.setattr(sys, "argv", ["stmdit", *arguments])
    with pytest.raises(SystemExit) as stop, watchdog(LIMIT_S):
        cli.main()
    out, err = capsys.readouterr()
    refused_as_bad_input(stop.value.code, out, err, case)
    assert tree_hash(scene.root) == before


@pytest.mark.parametrize(
    "key",
    [
        "counts: data of a terabyte that is not there",
        "counts: Matrix Market: entries that are not there",
        "edits: a billion laughs in a list",
        "images: TIFF header alone",
        "paths: home of nobody",
    ],
)
def test_what_could_kill_a_process_does_not(key, workshop, tiny_folder, tmp_path):
    case = next(case for case in ALL if case.key == key)
    done = run_alone(command(workshop.scene(case), tiny_folder), tmp_path / "log", 6 * LIMIT_S)
    refused_as_bad_input(done.returncode, done.stdout, done.stderr, case)


def test_control_characters_of_a_file_do_not_reach_the_terminal(tmp_path, tiny_folder, monkeypatch, capsys):
    from napari_stmdit import cli

    region = tmp_path / "r\x1b[2J.geojson"
    region.write_text("[]")
    monkeypatch.setattr(
        sys, "argv", ["stmdit", "synthesize", str(tiny_folder), "--output", "o", "--region", str(region)]
    )
    with pytest.raises(SystemExit):
        cli.main()
    err = capsys.readouterr().err
    assert "\x1b" not in err and "\\x1b[2J.geojson" in err
