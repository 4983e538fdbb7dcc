"""Files and folders get their names whole or not at all, and what another process is writing is never tidied away."""

import errno
import multiprocessing
import os
import time

import pytest

from napari_stmdit.storage.atomic import (
    drafting,
    remove_drafts_in,
    remove_left_drafts,
    replacing,
    write_atomically,
    write_json,
    write_text,
)


def test_a_write_that_fails_leaves_the_old_content_and_no_rubbish(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})

    def fail(file):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_atomically(path, fail)
    assert path.read_text() == '{\n "a": 1\n}\n'
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_file_that_the_disk_did_not_take_is_told(tmp_path, monkeypatch):
    """Network shares say that they are full only when the file is brought to the disk."""

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_text(tmp_path / "a.txt", "new")
    assert os.listdir(tmp_path) == []


def test_a_new_file_replaces_none(tmp_path):
    write_text(tmp_path / "a.txt", "old", new=True)
    with pytest.raises(FileExistsError):
        write_text(tmp_path / "a.txt", "new", new=True)
    assert (tmp_path / "a.txt").read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_a_folder_takes_a_free_place_and_no_other(tmp_path):
    for name in ("free", "empty", "full", "file"):
        place = tmp_path / name
        if name in ("empty", "full"):
            place.mkdir()
        if name == "full":
            (place / "thesis.tex").write_text("mine")
        if name == "file":
            place.write_text("mine")
        try:
            with replacing(place) as draft:
                draft.mkdir()
                (draft / "a").write_text("a")
        except OSError:
            assert name in ("full", "file")
        else:
            assert name in ("free", "empty") and os.listdir(place) == ["a"]
    assert os.listdir(tmp_path / "full") == ["thesis.tex"] and (tmp_path / "file").read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == ["empty", "file", "free", "full"]


def _write_slowly(path, begun, go_on):
    with replacing(path) as draft:
        draft.mkdir()
        (draft / "half").write_text("half")
        begun.set()
        go_on.wait(30)


def test_a_draft_of_a_living_process_stays_and_one_of_a_killed_process_goes(tmp_path):
    context = multiprocessing.get_context("spawn")
    path = tmp_path / "OUT.zarr.unfinished"
    begun, go_on = [context.Event(), context.Event()], [context.Event(), context.Event()]
    living, killed = (
        context.Process(target=_write_slowly, args=(path, *events)) for events in zip(begun, go_on, strict=True)
    )
    living.start()
    killed.start()
    assert all(event.wait(60) for event in begun)
    drafts = {name for name in os.listdir(tmp_path) if name.endswith(".part")}
    killed.kill()
    killed.join()
    remove_left_drafts(tmp_path, path.name)
    (left,) = {name for name in os.listdir(tmp_path) if name.endswith(".part")}
    assert left in drafts and len(drafts) == 2
    go_on[0].set()
    living.join(60)
    assert living.exitcode == 0 and (path / "half").read_text() == "half"
    assert os.listdir(tmp_path) == [path.name]


def test_only_drafts_of_the_path_are_tidied_and_nothing_that_looks_like_one(tmp_path):
    kept = [".run.notes.part", ".run.2.0123456789ab.part", ".other.0123456789ab.part", "run.0123456789ab.part"]
    for name in (*kept, ".run.0123abcd.part"):
        (tmp_path / name).write_text("x")
        os.utime(tmp_path / name, (1000, 1000))
    (tmp_path / ".run.89abcdef.part").write_text("new, perhaps of an earlier version that runs")
    remove_left_drafts(tmp_path, "run")
    assert sorted(os.listdir(tmp_path)) == sorted([*kept, ".run.89abcdef.part"])


def test_who_holds_a_folder_tidies_all_drafts_in_it(tmp_path):
    inner = tmp_path / "image" / "0"
    inner.mkdir(parents=True)
    for name in (".run.json.4711.part", ".run.json.0123456789ab.part", ".run.json.0123456789ab.part.lock", "x.partial"):
        (inner / name).write_text("x")
    (inner / ".mine.part").write_text("x")
    remove_drafts_in(tmp_path)
    assert os.listdir(inner) == [".mine.part"]


def test_a_folder_that_is_gone_is_not_made_again_by_a_draft_of_it(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_json(tmp_path / "gone" / "manifest.json", {})
    assert os.listdir(tmp_path) == []


def test_two_drafts_of_one_path_do_not_meet(tmp_path):
    with drafting(tmp_path / "a") as one, drafting(tmp_path / "a") as other:
        one.write_text("1")
        other.write_text("2")
        assert one.read_text() == "1" and time.time() > 0
    assert os.listdir(tmp_path) == []
