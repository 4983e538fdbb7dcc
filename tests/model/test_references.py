"""Weights that are kept elsewhere: where they are looked for, and what they are."""

from __future__ import annotations

import pytest

from napari_stmdit.downloads.places import Reference, find_reference
from napari_stmdit.model.zoo import reference_hash


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """A folder ``owner/name`` in the working directory."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "owner" / "name"
    folder.mkdir(parents=True)
    (folder / "model.bin").write_bytes(b"weights")
    return folder


def reference(source):
    return Reference(name="model", source=str(source), files=("model.bin",), licence="none")


def test_a_folder_of_the_working_directory_is_not_taken_for_a_repository_of_a_hub(weights):
    assert find_reference(reference("owner/name")) is None
    assert find_reference(reference(weights)) == weights


def test_a_reference_is_known_by_its_files_and_not_by_its_place(weights, tmp_path):
    before = reference_hash(reference(weights))
    moved = weights.rename(tmp_path / "elsewhere")
    assert reference_hash(reference(moved)) == before
    (moved / "config.json").write_text("{}")
    beside = reference_hash(reference(moved))
    (moved / "model.bin").write_bytes(b"others")
    assert len({before, beside, reference_hash(reference(moved))}) == 3
    assert reference_hash(reference(weights)) is None
