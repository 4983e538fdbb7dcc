"""The command line in a report: run, it asks for the same evaluation, or says plainly what it leaves out."""

import shlex

import pytest
from evaluation_study import CARD, Described
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from napari_stmdit.cli import app
from napari_stmdit.edits import KnockOut, Towards
from napari_stmdit.evaluation.cases import EvaluationRequest
from napari_stmdit.evaluation.evaluate import equivalent_command
from napari_stmdit.intent import Guidance, SpotProfile
from napari_stmdit.tissue.open import open_section

scale = st.none() | st.floats(0, 30)
gene = st.sampled_from(["ERBB2", "ESR1", 'A gene\'s "name"', "ünï", "-x"])
named = {"genes": st.lists(gene, min_size=1, max_size=3).map(tuple), "strength": st.floats(0, 1)}
edits = st.one_of(
    st.builds(KnockOut, programs=st.sampled_from([(), ("mine",)]), **named),
    st.just(Towards(target_profile="far")),
    st.just(Towards(target_spots=("SPOT01-1",))),
)
requests = st.builds(
    EvaluationRequest,
    spots=st.integers(8, 1000),
    seeds=st.integers(1, 20),
    seed=st.integers(0, 2**31 - 1),
    steps=st.none() | st.integers(1, 1000),
    guidance=st.builds(
        Guidance,
        expression=scale,
        morphology=scale,
        rule=st.none() | st.just("additive"),
        above=st.none() | st.floats(0, 0.99),
    ),
    feature_spaces=st.lists(st.sampled_from(["encoder", "random", "uni2h=a b.bin"]), min_size=1, max_size=3).map(tuple),
    genes=st.integers(1, 20_000),
    edits=st.lists(edits, min_size=1, max_size=3).map(tuple),
    programs=st.just({}) | st.dictionaries(st.just("mine"), st.dictionaries(gene, st.floats(0, 1), min_size=1)),
    profiles=st.just({"far": SpotProfile(values={"ERBB2": 1.25}, depth=-0.5)}),
    predictor=st.none() | st.just("my predictor.npz"),
    draws=st.integers(100, 20_000),
    allow_gene_mismatch=st.booleans(),
)


class Asked(Exception):
    """What a command came to."""


@pytest.fixture
def ask(monkeypatch):
    """Run a command up to where the evaluation would begin, and return what it is given."""

    def stop(model, sections, request, output, **how):
        raise Asked(sections, request, output, how["predictor_sections"])

    def load(name, **_):
        assert name == "my checkpoint"
        return Described(CARD)

    monkeypatch.setattr("napari_stmdit.evaluation.evaluate.evaluate", stop)
    monkeypatch.setattr("napari_stmdit.assemble.load_checkpoint", load)

    def run(line):
        outcome = CliRunner().invoke(app, shlex.split(line, comments=True)[1:])
        assert isinstance(outcome.exception, Asked), outcome.exception
        return outcome.exception.args

    return run


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(wanted=requests, scaled=st.booleans())
def test_the_command_asks_for_the_same(ask, tiny_folder, tmp_path_factory, wanted, scaled):
    folder = tmp_path_factory.mktemp("a folder")
    section = open_section(tiny_folder, mpp=0.69 if scaled else None)
    other = open_section(tiny_folder)
    line = equivalent_command([section], "my checkpoint", wanted, folder, predictor_sections=[other])
    (opened,), found, output, others = ask(line)
    said = wanted.guidance.model_copy(update={"rule": None, "above": None})
    assert found == wanted.model_copy(update={"guidance": said}) and output == folder
    assert opened.path == section.path and opened.calibration == section.calibration
    assert opened.image.source == section.image.source and [one.path for one in others] == [other.path]
    for field, word in (("rule", "additive"), ("above", "above noise level")):
        assert (getattr(wanted.guidance, field) is not None) == (word in line.partition("  # no option says: ")[2])


@pytest.mark.parametrize("mode", ["spots", "continuous"])
@pytest.mark.parametrize("parts", [("counterfactual",), ("conditions", "counterfactual")])
def test_the_command_of_edits_of_real_tissue_asks_for_the_same(ask, tiny_folder, tmp_path, parts, mode):
    wanted = EvaluationRequest(parts=parts, pairs=9, seed=3, steps=5, mode=mode, allow_gene_mismatch=True)
    _, found, _, _ = ask(equivalent_command([open_section(tiny_folder)], "my checkpoint", wanted, tmp_path))
    assert found == wanted


def test_what_no_option_says_is_named(tiny_folder, tmp_path):
    from dataclasses import replace

    scaled = open_section(tiny_folder, mpp=0.69)
    sections = [scaled, replace(scaled, path=None, name="made\nhere")]
    provenance = {"morphology_embeddings": {"source": "a.npy"}}
    line = equivalent_command(sections, "demo", EvaluationRequest(), tmp_path, own_spaces=True, provenance=provenance)
    told = line.partition("  # no option says: ")[2]
    for part in (
        "made here was not opened from a path",
        "opened with 0.69 um/px",
        "caller's own",
        "morphology embeddings",
    ):
        assert part in told
    assert "\n" not in told and not list(tmp_path.iterdir())  # no edits, no file


def test_edits_that_are_there_already_are_not_overwritten(tiny_folder, tmp_path):
    section = open_section(tiny_folder)
    (tmp_path / "edits.yaml").write_text("mine: of another work\n")
    request = EvaluationRequest(edits=(KnockOut(genes=("ERBB2",)),))
    lines = [equivalent_command([section], "demo", request, tmp_path) for _ in range(2)]
    assert lines[0] == lines[1] and f"--edits {tmp_path / 'edits-2.yaml'}" in lines[0]
    assert (tmp_path / "edits.yaml").read_text() == "mine: of another work\n"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["edits-2.yaml", "edits.yaml"]
