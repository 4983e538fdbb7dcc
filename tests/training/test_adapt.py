"""A checkpoint of one's own tissue: made from a section in a given time, evaluated on what was held out, stopped and gone on with."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from checkpoints import write_tiny_checkpoint
from command_line import refused, stmdit
from tiny import TINY_GENES

from napari_stmdit.assemble import list_checkpoints, load_checkpoint
from napari_stmdit.errors import CheckpointError, RequestError, StoreError
from napari_stmdit.intent import Request
from napari_stmdit.progress import CancelToken
from napari_stmdit.synthesis.plan import plan
from napari_stmdit.tissue.alignment import oriented
from napari_stmdit.tissue.open import open_section
from napari_stmdit.tissue.selections import write_selections
from napari_stmdit.training.adapt import _Run, adapt
from napari_stmdit.training.adapt_config import build_config, corner_parts, programs_among
from napari_stmdit.training.adaptation import (
    CORNERS,
    ask_to_stop,
    command_of,
    default_name,
    read_progress,
    read_request,
    request_of,
)
from napari_stmdit.training.config import load_config
from napari_stmdit.training.parallel import TrainingStoppedError
from napari_stmdit.training.sections import part_of, source_sections
from napari_stmdit.training.state import load_state
from napari_stmdit.types import ExpressionSource


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("STMDIT_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def begun(tmp_path):
    """A checkpoint to go on from, of other genes than the section has."""
    return write_tiny_checkpoint(tmp_path / "start", tuple(f"OTHER{k}" for k in range(20)), patch_mpp=0.688)


def run(tiny_folder, begun, **how):
    return adapt(tiny_folder, **{"minutes": 0.001, "workers": 1, "start": str(begun), "name": "mine"} | how)


def test_a_section_becomes_a_checkpoint_that_is_found_by_its_name(home, begun, tiny_folder):
    seen, notes = [], []
    made = run(tiny_folder, begun, on_progress=lambda at: seen.append(replace(at)), on_note=notes.append)
    assert {entry.name: entry.path for entry in list_checkpoints()}["mine"] == made.folder
    checkpoint = load_checkpoint("mine", device="cpu")
    assert set(checkpoint.card.genes) == set(
        TINY_GENES
    )  # those of the section, not of the checkpoint that it went on from
    assert checkpoint.card.patch_mpp == 0.7  # the slide shows no more than that
    assert checkpoint.morphology_map is not None
    vae = load_checkpoint(begun, device="cpu").pipeline.vae.state_dict()
    own = checkpoint.pipeline.vae.state_dict()
    assert all(torch.equal(vae[name], own[name]) for name in vae)
    words = (made.folder / "README.md").read_text()
    assert (
        "swap: a spot given another's expression" in words
        and "tiny_section-lower-right, which was never trained on" in words
    )
    assert made.figures["identity"]["pixels"] == 0 and made.figures["pairs"] == 8
    assert {"swap", "swap_control", "programs"} <= set(made.figures)
    assert [at.stage for at in seen if at.stage == "transformer"] and seen[-1].state == "done" or seen[-1].fraction <= 1
    assert {"expression", "expression_shuffled"} == set(read_progress(made.work).controls)
    assert read_progress(made.work).state == "done" and read_progress(made.work).sheet.endswith(".png")
    assert len(notes) == 1 and "spots to train on, 8 held out; about" in notes[0] and "GB of memory" in notes[0]
    before = (made.folder / "stmdit.json").stat().st_mtime_ns
    assert run(tiny_folder, begun).folder == made.folder  # finished: nothing is done again
    assert (made.folder / "stmdit.json").stat().st_mtime_ns == before


def test_factors_become_the_programs_of_a_checkpoint(home, begun, tiny_folder, tiny_section, tmp_path):
    """The first follows the tissue from left to right, and the checkpoint reads it as it is: no logarithm, no thinning."""
    yx, ids = tiny_section.spots.yx, tiny_section.spots.ids.tolist()
    values = np.stack([yx[:, 1], yx[:, 0], np.full(len(ids), 50.0)], axis=1)
    table = pd.DataFrame(values, index=ids, columns=["right", "down", "rest"])
    table.to_csv(tmp_path / "factors.csv")
    made = run(tiny_folder, begun, hold_out="none", factors=[tmp_path / "factors.csv"])
    checkpoint = load_checkpoint("mine", device="cpu")
    encoder = checkpoint.expression
    assert checkpoint.card.genes == ("right", "down", "rest") and not encoder.logged and not encoder.uses_depth
    section = open_section(tiny_folder, factors=tmp_path / "factors.csv")
    scores = encoder.encode(section.spots.counts, section.spots.genes)
    shares = values / values.sum(axis=1, keepdims=True)
    left = (
        scores
        - np.column_stack([shares, np.ones(len(ids))])
        @ np.linalg.lstsq(np.column_stack([shares, np.ones(len(ids))]), scores, rcond=None)[0]
    )
    assert scores.std() > 0.1 and np.abs(left).max() < 1e-2  # linear in the shares
    with pytest.raises(
        CheckpointError, match="reads 3 factors of each spot through its own encoder: give them with --factors"
    ):
        load_checkpoint("mine", device="cpu", expression_embeddings=tmp_path / "factors.csv")
    assert "Expression: 3 factors of each spot" in (made.folder / "README.md").read_text()
    assert str(tmp_path / "factors.csv") in command_of(read_request(made.work), made.work)
    with pytest.raises(RequestError, match="2 tables for 1 sections"):
        run(tiny_folder, begun, name="other", factors=["a.csv", "b.csv"])
    check_that_factors_are_asked_for(checkpoint, tiny_folder, section, tmp_path)
    check_that_it_is_evaluated(made, tiny_folder, tmp_path)


def check_that_factors_are_asked_for(checkpoint, tiny_folder, section, tmp_path):
    assert checkpoint.card.reads_factors and "reads_factors" not in checkpoint.card.model_dump()
    counts = open_section(tiny_folder)
    asks = r"reads 3 factors of each spot .*\(right, down, rest\), and the section has counts of genes; give the table .* --factors FILE"
    with pytest.raises(RequestError, match=asks):
        plan(counts, Request(), checkpoint.card)
    others = pd.DataFrame(np.ones((len(section.spots), 2)), index=section.spots.ids, columns=["other", "another"])
    others.to_csv(tmp_path / "others.csv")
    with pytest.raises(RequestError, match=r"those of others.csv \(other, another\); give the table"):
        plan(open_section(tiny_folder, factors=tmp_path / "others.csv"), Request(), checkpoint.card)
    without = replace(counts, expression=ExpressionSource("none"))
    with pytest.raises(RequestError, match="no expression: use null, or give the table of the 3 factors"):
        plan(without, Request(expression="own"), checkpoint.card)


def check_that_it_is_evaluated(made, tiny_folder, tmp_path):
    small = ("--parts", "counterfactual", "--pairs", 8, "--steps", 1, "--draws", 100, "--device", "cpu")
    assert "give the table" in refused("evaluate", "mine", tiny_folder, *small, "--output", tmp_path / "refused")
    config = yaml.safe_load((made.work / "config.yaml").read_text())
    config["held_out"] = [{**config["train"][0], "name": "held out"}]  # a folder with its factors
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    figures = []
    for name, given in (
        ("section", (tiny_folder, "--factors", tmp_path / "factors.csv")),
        ("config", (tmp_path / "config.yaml",)),
    ):
        done = stmdit("evaluate", "mine", *given, *small, "--output", tmp_path / name, "--json")
        assert done.returncode == 0, done.stderr
        figures.append(json.loads(done.stdout)["counterfactual"]["swap"])
    assert figures[0] == figures[1]


def test_excluded_spots_are_not_learned_and_the_others_lie_as_they_were_laid(home, begun, tiny_folder, tmp_path):
    section = oriented(open_section(tiny_folder), "turn-180")
    gone = section.spots.ids[:4].tolist()
    write_selections(section.spots, {"fold": gone}, tmp_path / "fold.geojson")
    how = {"exclude": tmp_path / "fold.geojson", "orientation": "turn-180", "hold_out": "none"}
    made = run(tiny_folder, begun, **how)
    (learned,) = source_sections(load_config(made.work / "config.yaml"), "train")
    assert set(learned.spots.ids) == set(section.spots.ids) - set(gone)
    np.testing.assert_allclose(learned.whole.spots.yx, section.spots.yx)
    assert {"--exclude", "--orientation"} < set(command_of(read_request(made.work), made.work))


def test_where_nothing_is_held_out_the_time_of_the_evaluation_trains(home, begun, tiny_folder, tmp_path):
    left = {
        out: _Run(
            request_of(name="a", sections=("b",), minutes=10, hold_out=out), tmp_path, tmp_path, CancelToken(), print
        )
        for out in ("none", "lower-right")
    }
    assert left["none"].left_s == pytest.approx(576, abs=1) and left["lower-right"].left_s == pytest.approx(486, abs=1)
    seen = set()
    run(tiny_folder, begun, hold_out="none", on_progress=lambda at: seen.add(at.stage))
    assert "transformer" in seen and "evaluation" not in seen


class Killed(BaseException):
    pass


def test_stopped_and_killed_it_comes_to_the_same_checkpoint(home, begun, tiny_folder, monkeypatch):
    monkeypatch.setattr("napari_stmdit.training.adapt.PROGRESS_S", 0.0)  # twelve steps may take less than a second
    straight = run(tiny_folder, begun, name="straight", minutes=0.001)
    token = CancelToken()

    def stop(at):
        if at.stage == "transformer" and at.step >= 5:
            token.cancel()

    with pytest.raises(TrainingStoppedError, match=r"at step \d+ of 12 of the transformer"):
        run(tiny_folder, begun, on_progress=stop, cancel=token)
    work = home / "adapted" / "mine"
    assert read_progress(work).state == "stopped"
    reached = load_state(work / "diffusion.pt")["step"]
    assert 5 <= reached < 12

    def die(at):
        if at.stage == "transformer" and at.step >= 10:
            raise Killed

    with pytest.raises(Killed):
        run(tiny_folder, begun, on_progress=die)
    made = run(tiny_folder, begun)
    lines = {
        name: [json.loads(line) for line in (home / "adapted" / name / "diffusion.jsonl").read_text().splitlines()]
        for name in ("straight", "mine")
    }
    last = {name: [line for line in own if "validation" in line][-1]["validation"] for name, own in lines.items()}
    for case, parts in last["straight"].items():
        assert parts["flow"] == pytest.approx(last["mine"][case]["flow"], abs=1e-3)
    one, other = (
        load_state(home / "adapted" / name / "diffusion.pt")["average"]["weights"] for name in ("straight", "mine")
    )
    assert all(torch.allclose(one[key], other[key], atol=1e-5) for key in one)
    for part in ("swap", "identity"):
        assert json.dumps(made.figures[part]) == json.dumps(straight.figures[part])


def test_a_slower_pace_than_was_measured_means_fewer_steps(home, begun, tiny_folder, monkeypatch):
    """Where a hundred thousand steps were planned, the first few tell how many there will be."""
    monkeypatch.setattr("napari_stmdit.training.adapt.PACE_SHARE", 0.0)
    monkeypatch.setattr("napari_stmdit.training.adapt._Run.left_s", property(lambda run: 4.0))
    monkeypatch.setattr("napari_stmdit.training.adapt._Run._steps", lambda run: 100_000)
    made = run(tiny_folder, begun, minutes=0.05, hold_out="none")
    steps = load_config(made.work / "config.yaml").diffusion.steps
    assert 12 <= steps < 1000
    assert load_state(made.work / "diffusion.pt")["step"] == steps
    assert "Nothing was held out" in (made.folder / "README.md").read_text()


def test_a_file_stops_it_and_it_says_how_it_is_gone_on_with(home, begun, tiny_folder):
    work = home / "adapted" / "mine"
    with pytest.raises(TrainingStoppedError):
        run(tiny_folder, begun, minutes=5.0, on_progress=lambda at: ask_to_stop(work))
    request = read_request(work)
    assert request.minutes == 5.0 and not (work / "stop").exists()
    command = command_of(request, work)
    assert (
        command[1:5] == ["-m", "napari_stmdit.cli", "train", "--name"]
        and "--workers" in command
        and str(tiny_folder) in command
    )
    with pytest.raises(RequestError, match="holds another adaptation"):
        run(tiny_folder, begun, hold_out="upper-left")


@pytest.mark.parametrize("corner", CORNERS)
def test_a_corner_with_a_quarter_of_the_spots_is_held_out(tiny_folder, corner):
    section = open_section(tiny_folder)
    kept, held = corner_parts(section, corner)
    ids = [set(part_of(section, part).spots.ids.tolist()) for part in (*(part for _, part in kept), held)]
    assert set.union(*ids) == set(section.spots.ids.tolist()) and sum(map(len, ids)) == len(section.spots)
    assert 0.2 < len(ids[-1]) / len(section.spots) < 0.35
    low, right = CORNERS[corner]
    middle = np.median(section.spots.yx, axis=0)
    rows = np.isin(section.spots.ids, list(ids[-1]))
    assert ((section.spots.yx[rows].mean(axis=0) > middle) == (low, right)).all()


def test_what_cannot_be_done_is_refused_with_every_reason(home, begun, tiny_folder):
    with pytest.raises(RequestError, match="neither a corner .* nor 'none' nor one of several sections"):
        run(tiny_folder, begun, hold_out="middle")
    with pytest.raises(RequestError, match="is no name for a checkpoint"):
        run(tiny_folder, begun, name="../mine")
    with pytest.raises(RequestError, match="section .*nowhere: "):
        run("nowhere", begun)
    assert not (home / "adapted" / "mine").exists()  # nothing was begun
    (home / "checkpoints" / "mine").mkdir(parents=True)
    (home / "checkpoints" / "mine" / "stmdit.json").write_text("{}")
    with pytest.raises(StoreError, match="give another name"):
        run(tiny_folder, begun)


def test_the_same_words_in_another_folder_are_another_adaptation(home, begun, tiny_folder, tmp_path, monkeypatch):
    import shutil

    for patient in ("patient1", "patient2"):
        shutil.copytree(tiny_folder, tmp_path / patient / "outs")
    monkeypatch.chdir(tmp_path / "patient1")
    made = run("outs", begun)
    assert run("outs", begun).folder == made.folder
    monkeypatch.chdir(tmp_path / "patient2")
    with pytest.raises(RequestError, match=r"holds another adaptation, of .*patient1/outs; give another name"):
        run("outs", begun)


def test_a_second_adaptation_of_a_name_leaves_the_first_as_it_was_asked(home, begun, tiny_folder, monkeypatch):
    refused = []

    def build(request):
        with pytest.raises(StoreError, match="another process is at work in") as found:
            run(tiny_folder, begun, hold_out="upper-left")  # of the same name, while the first opens its sections
        refused.append(found)
        return build_config(request)

    monkeypatch.setattr("napari_stmdit.training.adapt.build_config", build)
    made = run(tiny_folder, begun)
    assert len(refused) == 1 and read_request(made.work).hold_out == "lower-right"


def test_programs_are_spelled_as_the_section_spells_its_genes():
    found = programs_among(["Krt8", "Epcam", "Acta2", "Actb"])
    assert found["epithelial"] == ("Epcam", "Krt8") and found["her2"] == ()


def test_the_name_of_a_checkpoint_comes_from_the_folder(tmp_path):
    assert default_name(tmp_path / "mouse colon" / "outs") == "my-mouse-colon"
