"""Edit files: what is written is read again; own programs and profiles come with them."""

import numpy as np
import pytest
import yaml
from standins import CropModel, card_for, make_section

from napari_stmdit.edits import Add, KnockOut, Scale, SetQuantile, Swap, Towards
from napari_stmdit.errors import RequestError
from napari_stmdit.expression.profiles import measure_profile, write_profile
from napari_stmdit.intent import Request, SpotProfile
from napari_stmdit.synthesis.conditions import condition_rows
from napari_stmdit.synthesis.plan import plan
from napari_stmdit.synthesis.requests import EditFile, read_edit_file, used_by, write_edit_file

EDITS = (
    Scale(genes=("GENE1",), factor=2.5, spots={"0x0": 0.3333, "0x2": 1.0}, name="up"),
    Add(programs=("mine",), log_units=-1),
    SetQuantile(genes=("GENE2",), quantile=0.9, enabled=False),
    KnockOut(genes=("GENE3",), strength=0.4),
    Towards(target_profile="other", genes=("GENE4",)),
    Towards(target_spots=("0x0", "0x2")),
    Swap(group_a=("0x0",), group_b=("0x2", "0x4")),
)


def test_every_kind_of_edit_is_written_and_read_again(tmp_path):
    file = EditFile(
        edits=EDITS, programs={"mine": {"GENE5": 0.5}}, profiles={"other": SpotProfile(values={"GENE4": 2.0})}
    )
    write_edit_file(file, tmp_path / "edits.yaml")
    assert read_edit_file(tmp_path / "edits.yaml") == file


def test_programs_and_profiles_are_found_beside_the_file(tmp_path):
    section = make_section()
    (tmp_path / "sets.gmt").write_text("mine\tx\tGENE5\tGENE6\n")
    profile = measure_profile(section.spots, section.spots.ids[:3].tolist(), "three spots")
    write_profile(profile, tmp_path / "other.json")
    content = {
        "programs": "sets.gmt",
        "profiles": {"other": "other.json"},
        "edits": [
            {"operation": "knock_out", "programs": ["mine"]},
            {"operation": "towards", "target_profile": "other", "genes": ["GENE7"]},
        ],
    }
    (tmp_path / "edits.yaml").write_text(yaml.safe_dump(content))
    file = read_edit_file(tmp_path / "edits.yaml")
    card = card_for(tuple(section.spots.genes.symbols.tolist()))
    request = Request(edits=file.edits, programs=file.programs, profiles=file.profiles)
    counts = condition_rows(plan(section, request, card), section, CropModel(card)).counts.toarray()
    assert counts[:, 5:7].max() == 0
    level = np.log1p(counts[:, 7] / section.spots.counts.toarray().sum(axis=1) * 1e4)
    np.testing.assert_allclose(level, profile.values["GENE7"], rtol=1e-3)


def test_the_edits_of_a_whole_request_are_taken(tmp_path):
    request = Request(seed=3, edits=EDITS[:2], programs={"mine": {"GENE5": 1.0}})
    (tmp_path / "request.json").write_text(request.model_dump_json())
    assert read_edit_file(tmp_path / "request.json") == used_by(request.edits, request)
    (tmp_path / "typo.yaml").write_text("{edits: [], program: {}}")
    with pytest.raises(RequestError, match="program"):
        read_edit_file(tmp_path / "typo.yaml")


def test_only_what_edits_name_is_written():
    request = Request(
        edits=EDITS[1:2],
        programs={"mine": {"GENE5": 1.0}, "unused": {"GENE6": 1.0}},
        profiles={"unused": SpotProfile(values={"GENE4": 2.0})},
    )
    assert used_by(request.edits, request) == EditFile(edits=EDITS[1:2], programs={"mine": {"GENE5": 1.0}})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("edits: 3", "edits"),
        ("- {operation: explode}", "explode"),
        ("{programs: nowhere.gmt, edits: []}", "nowhere.gmt"),
        ("{profiles: {x: nowhere.json}, edits: []}", "nowhere.json"),
        ("{programs: {p: {A: 7}}, edits: []}", "programs.p.A"),
        ("just words", "expected a list"),
        ("{edit: []}", "expected a list"),
    ],
)
def test_faults_of_an_edit_file_are_told_with_their_place(tmp_path, text, says):
    (tmp_path / "edits.yaml").write_text(text)
    with pytest.raises(RequestError, match=says):
        read_edit_file(tmp_path / "edits.yaml")


def test_a_program_without_a_gene_of_the_section_is_refused():
    section = make_section()
    card = card_for(tuple(section.spots.genes.symbols.tolist()))
    with pytest.raises(RequestError, match=r"edits\[0\].programs: none of its genes is in this section: hypoxia"):
        plan(section, Request(edits=(KnockOut(programs=("hypoxia",)),)), card)
