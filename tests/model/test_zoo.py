"""The zoo: its data are whole, safe and honest, and entries are found by name."""

import json

import pytest
from pydantic import ValidationError

from napari_stmdit.downloads.places import download_directory, find_reference
from napari_stmdit.errors import CheckpointError
from napari_stmdit.model.zoo import ZooEntry, read_reference, reference_of, state_of, zoo, zoo_entry


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("STMDIT_HOME", str(tmp_path / "home"))


def test_every_component_that_is_needed_is_in_the_zoo_and_of_that_kind():
    kinds = {entry.name: entry.kind for entry in zoo()}
    needed = [(part, name) for entry in zoo() for part, name in entry.components.items()]
    assert {part for part, _ in needed} == {"vae", "morphology_encoder", "expression_encoder"}
    assert all(kinds[name] == part for part, name in needed)


def test_every_entry_states_its_licence_and_where_to_read_it():
    assert all(entry.licence and entry.terms.startswith("https://") for entry in zoo())
    assert {entry.name for entry in zoo() if entry.gated} == {"uni2-h", "sd3.5-vae"}
    assert "non-commercial" in zoo_entry("uni2-h").licence
    assert "not seen" in zoo_entry("pixcell-1024").licence


def test_sizes_are_four_bytes_a_parameter_and_no_hash_is_made_up():
    assert zoo_entry("pixcell-256").size_bytes == 4 * 608_072_960
    assert zoo_entry("uni2-h").size_bytes == 4 * 681_394_176
    assert not any(entry.sha256 for entry in zoo())


def test_an_unknown_scale_stays_unknown():
    rows = [entry for entry in zoo() if entry.name.startswith("stmdit-")]
    assert len(rows) == 8
    assert all(entry.patch_mpp is None for entry in rows)
    assert all(any("truncated" in note for note in entry.notes) for entry in rows)


def test_an_unknown_name_lists_near_ones():
    with pytest.raises(CheckpointError, match="pixcell-256 or"):
        zoo_entry("pixcel-256")
    with pytest.raises(CheckpointError, match=r"Known are .*cancerfoundation"):
        zoo_entry("qqqq")


def test_any_row_of_the_collection_has_an_entry():
    entry = zoo_entry("stmdit:Some-Row_7")
    assert (entry.name, entry.subfolder) == ("stmdit-some-row_7", "Some-Row_7")
    assert entry.source == "stmdit-anon/stmdit-checkpoints"
    assert entry.files == ("model.pt", "training_config.yaml")
    assert zoo_entry("stmdit:pixcell-b") is zoo_entry("stmdit-pixcell-b")


@pytest.mark.parametrize("row", ["", "../x", "a/b", ".hidden", "a b", "a?b", "a#b"])
def test_a_hostile_row_id_is_refused(row):
    with pytest.raises(CheckpointError, match="no row id"):
        zoo_entry(f"stmdit:{row}")


@pytest.mark.parametrize(
    "fields",
    [
        {"files": ["../x.json"]},
        {"files": ["/etc/x.json"]},
        {"files": ["a/../../x.json"]},
        {"files": ["..\\x.json"]},
        {"files": ["C:x.json"]},
        {"files": ["pixcell_transformer_2d.py"]},
        {"files": ["config.json?download=1.json"]},
        {"files": []},
        {"subfolder": "../other"},
        {"name": "../uni2-h"},
        {"name": "Uni2/h"},
        {"source": "https://example.org/x"},
        {"source": "../x"},
        {"sha256": {"config.json": "abc"}},
        {"sha256": {"other.json": "0" * 64}},
    ],
)
def test_a_hostile_entry_is_refused(fields):
    with pytest.raises(ValidationError):
        ZooEntry.model_validate({**zoo_entry("pixcell-256").model_dump(), **fields})


def test_an_entry_becomes_a_reference_and_comes_back(tmp_path):
    entry = zoo_entry("uni2-h")
    path = tmp_path / "reference.json"
    path.write_text(json.dumps(reference_of(entry).model_dump(mode="json")))
    assert read_reference(path) == reference_of(entry)
    assert type(read_reference(path)).__name__ == "Reference"


def test_an_entry_is_here_when_every_file_is():
    entry = zoo_entry("cancerfoundation")
    folder = download_directory(entry.name)
    folder.mkdir(parents=True)
    for name in entry.files[:-1]:
        (folder / name).write_bytes(b"x")
    assert state_of(entry) == ("missing", None)
    (folder / entry.files[-1]).write_bytes(b"x")
    assert state_of(entry) == ("here", folder)
    assert find_reference(reference_of(entry)) == folder
