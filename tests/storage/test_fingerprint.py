"""What an input is: by its content, and read no second time in one process."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from napari_stmdit.storage import fingerprint
from napari_stmdit.storage.fingerprint import PerObject, of_arrays, of_file, of_folder, of_json, of_parts


@pytest.fixture
def reads(monkeypatch):
    """Paths of the files whose bytes are hashed."""
    found = []
    digest = fingerprint.hashlib.file_digest
    monkeypatch.setattr(
        fingerprint.hashlib,
        "file_digest",
        lambda stream, kind: (found.append(Path(stream.name)), digest(stream, kind))[1],
    )
    return found


def test_where_a_part_ends_is_part_of_the_content():
    assert of_parts(["ab", "c"]) != of_parts(["a", "bc"])


@pytest.mark.parametrize(
    "other",
    [np.arange(6).reshape(3, 2), np.arange(6, dtype=np.int32).reshape(2, 3), np.arange(1, 7).reshape(2, 3)],
)
def test_arrays_of_another_shape_type_or_value_are_others(other):
    assert of_arrays(np.arange(6).reshape(2, 3)) != of_arrays(other)


def test_text_is_the_same_whatever_its_width_in_memory():
    assert of_arrays(np.array(["a", "b"])) == of_arrays(np.array(["a", "b"], dtype="<U20"))
    assert of_arrays(np.array(["a", "b"])) != of_arrays(np.array(["ab", ""]))


def test_keys_of_a_value_have_no_order():
    assert of_json({"a": 1, "b": [2]}) == of_json({"b": [2], "a": 1}) != of_json({"a": 1, "b": [3]})


def test_a_folder_is_known_by_its_content_and_not_by_its_place(tmp_path):
    (tmp_path / "one" / "inner").mkdir(parents=True)
    (tmp_path / "one" / "inner" / "a").write_text("a")
    (tmp_path / "one" / "inner-b").write_text("b")
    first = of_folder(tmp_path / "one")
    assert of_folder(shutil.copytree(tmp_path / "one", tmp_path / "two")) == first
    (tmp_path / "two" / "inner" / "a").rename(tmp_path / "two" / "inner" / "c")
    assert of_folder(tmp_path / "two") != first


def test_a_file_is_read_once_and_again_when_it_has_changed(tmp_path, reads, monkeypatch):
    monkeypatch.setattr(fingerprint, "_SETTLED_NS", 0)
    file = tmp_path / "weights"
    file.write_bytes(b"abc")
    first = of_file(file)
    assert of_file(file) == first and len(reads) == 1
    state = file.stat()
    file.write_bytes(b"abd")  # as long as before, and its time of change put back
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert of_file(file) != first and len(reads) == 2


def test_the_hash_of_a_file_that_has_just_changed_is_not_kept(tmp_path, reads):
    file = tmp_path / "weights"
    file.write_bytes(b"abc")
    assert of_file(file) == of_file(file) and len(reads) == 2


def test_what_was_found_in_an_object_goes_with_it():
    class Thing:
        def __eq__(self, other):
            return True

    memory, one, other = PerObject(), Thing(), Thing()
    assert memory.get(one, lambda: 1) == memory.get(one, lambda: 2) == 1
    assert memory.get(other, lambda: 3) == 3
    del one, other
    assert not memory._found
