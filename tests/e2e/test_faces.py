"""One file, four ways into the program: command line, Python, batch and dock make the same plan and the same conditions of it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from standins import CropModel, card_for
from tiny import TINY_GENES
from typer.testing import CliRunner

from napari_stmdit.cli import app
from napari_stmdit.scale.batch import read_jobs
from napari_stmdit.synthesis.conditions import condition_rows
from napari_stmdit.synthesis.identity import identity_of
from napari_stmdit.synthesis.plan import plan
from napari_stmdit.synthesis.requests import read_edit_file, read_request, with_edits
from napari_stmdit.tissue.geometry import polygons_from_geojson
from napari_stmdit.tissue.open import open_section

CARD = card_for(TINY_GENES)
gene = st.sampled_from(TINY_GENES[:6])
genes = st.lists(gene, min_size=1, max_size=3, unique=True)
edit = st.one_of(
    st.fixed_dictionaries({"operation": st.just("knock_out"), "programs": st.lists(st.sampled_from(["own", "set", "hypoxia"]), min_size=1, max_size=2)}),
    st.fixed_dictionaries({"operation": st.just("scale"), "genes": genes, "factor": st.floats(0, 4), "spots": st.just({"SPOT01-1": 0.5})}),
    st.fixed_dictionaries({"operation": st.just("towards"), "target_profile": st.just("far"), "strength": st.floats(0, 1)}),
)  # fmt: skip
files = st.fixed_dictionaries(
    {
        "edits": st.lists(edit, max_size=3),
        "programs": st.sampled_from(["sets.gmt", ["sets.gmt"]]) | st.fixed_dictionaries({"own": genes, "set": genes, "hypoxia": genes}),
        "profiles": st.sampled_from([{"far": "far.json"}, {"far": "far.tsv"}]),
    }
)  # fmt: skip
shared = st.fixed_dictionaries(
    {"seed": st.integers(0, 2**32 - 1), "steps": st.integers(1, 50)},
    optional={
        "programs": st.fixed_dictionaries({"own": genes, "other": genes}) | st.just("sets.gmt"),
        "guidance": st.fixed_dictionaries({"expression": st.floats(0, 30)}),
        "expression": st.sampled_from(["own", "shuffled"]),
        "morphology": st.sampled_from(["own", "mean", "SPOT02-1"]),
    },
)
REGION = {"type": "Polygon", "coordinates": [[[0, 0], [500, 0], [500, 500], [0, 500]]]}


class Asked(Exception):
    """A section and a request that a command came to."""


@pytest.fixture
def ask(monkeypatch):
    def stop(section, request, model, **_):
        raise Asked(section, request)

    monkeypatch.setattr("napari_stmdit.synthesis.session.synthesize", stop)
    monkeypatch.setattr("napari_stmdit.assemble.load_checkpoint", lambda *_, **__: CropModel(CARD))

    def run(*arguments):
        outcome = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert isinstance(outcome.exception, Asked), outcome.exception
        return outcome.exception.args

    return run


def dock(request, edits):
    """What the dock has in its form after the user chose a region and loaded a file of edits."""
    from napari_stmdit.ui.painting import EditFiles, Painting
    from napari_stmdit.ui.state import WorkbenchState

    state = WorkbenchState()
    state.request = request
    EditFiles(Painting(state, lambda: None, lambda colouring: None, lambda ids: None)).load(str(edits))
    assert state.message is None or state.message.kind == "info"
    return state.request


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(file=files, common=shared)
def test_the_same_request_gives_the_same_plan_four_ways(ask, tiny_folder, tmp_path_factory, file, common):
    root = tmp_path_factory.mktemp("faces")
    (root / "sets.gmt").write_text(
        "".join(f"{name}\tx\tERBB2\t{TINY_GENES[1]}\n" for name in ("own", "set", "hypoxia"))
    )
    (root / "far.json").write_text(json.dumps({"values": {"ERBB2": 2.0}}))
    (root / "far.tsv").write_text("gene\tmean\nERBB2\t2.0\n")
    (root / "edits.yaml").write_text(yaml.safe_dump(file))
    (root / "request.yaml").write_text(yaml.safe_dump(common))
    (root / "region.geojson").write_text(json.dumps(REGION))
    jobs = {
        "output": "results",
        "sections": [{"path": str(tiny_folder), "region": "region.geojson"}],
        "edits": {"file": "edits.yaml", "inline": file},
        "request": common,
    }
    (root / "jobs.yaml").write_text(yaml.safe_dump(jobs))

    section = open_section(tiny_folder)
    region = polygons_from_geojson(root / "region.geojson")
    form = read_request(root / "request.yaml").model_copy(update={"region": region})
    opened, from_command = ask(
        "synthesize", tiny_folder, "--output", root / "o.zarr", "--request", root / "request.yaml",
        "--edits", root / "edits.yaml", "--region", root / "region.geojson",
    )  # fmt: skip
    from_file, inline = (job.request for job in read_jobs(root / "jobs.yaml"))
    ways = {
        "Python": with_edits(form, read_edit_file(root / "edits.yaml")),
        "command line": from_command,
        "batch": from_file,
        "batch, inline": inline,
        "dock": dock(form, root / "edits.yaml"),
    }
    model = CropModel(CARD)
    found = {name: plan(section, request, CARD) for name, request in ways.items()}
    identities = {name: identity_of(one, section, model) for name, one in found.items()}
    counts = {name: condition_rows(one, section, model).counts for name, one in found.items()}
    for name in ways:
        assert identities[name] == identities["Python"], name
        assert found[name].patches == found["Python"].patches, name
        assert (counts[name] != counts["Python"]).nnz == 0, name
    assert np.array_equal(opened.spots.ids, section.spots.ids) and opened.calibration == section.calibration
