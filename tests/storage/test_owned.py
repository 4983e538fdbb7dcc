"""Nothing is replaced but what this very work made."""

import shutil

import pytest
from hypothesis import given, settings
from storage_trees import TREES, content, plant

from napari_stmdit.errors import StoreError
from napari_stmdit.storage.atomic import MARK, Work, check_free, put_in_place

OURS = Work("0123", "this work", "give another folder")


def make(place, text="1"):
    with OURS.replacing(place) as draft:
        (draft / "weights").mkdir(parents=True)
        (draft / "weights" / "a.bin").write_text(text)
        (draft / "README.md").write_text("made")


def test_a_work_replaces_its_own_product_and_leaves_nothing_beside_it(tmp_path):
    make(tmp_path / "out")
    make(tmp_path / "out", "2")
    assert (tmp_path / "out" / "weights" / "a.bin").read_text() == "2"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda out: (out / "notes.md").write_text("mine"), r"notes\.md in it was added or changed since"),
        (lambda out: (out / "weights" / "b.bin").write_text("mine"), "weights/b.bin"),
        (lambda out: (out / "README.md").write_text("completed by hand"), r"README\.md in it was added or changed"),
        (lambda out: (out / "kept").mkdir(), "kept in it was added"),
        (lambda out: ((out / "README.md").unlink(), (out / "README.md").symlink_to("weights/a.bin")), r"README\.md"),
        (lambda out: (out / MARK).unlink(), "not made by this work"),
        (lambda out: (out / MARK).write_text('{"work": "another", "files": {}}'), "not made by this work"),
        (lambda out: (out / MARK).write_text("[" * 100_000), "not made by this work"),
        (lambda out: (shutil.rmtree(out), out.write_text("mine")), "is there already"),
        (lambda out: (out.rename(out.with_name("else")), out.symlink_to("else")), "is a link to else"),
    ],
)
def test_what_was_added_or_changed_since_is_never_replaced(change, said, tmp_path):
    make(tmp_path / "out")
    change(tmp_path / "out")
    before = content(tmp_path)
    with pytest.raises(StoreError, match=said + ".*nothing is overwritten, give another folder"):
        make(tmp_path / "out", "2")
    assert content(tmp_path) == before


def test_a_file_of_ours_that_is_gone_is_no_loss(tmp_path):
    make(tmp_path / "out")
    (tmp_path / "out" / "README.md").unlink()
    make(tmp_path / "out", "2")
    assert (tmp_path / "out" / "README.md").read_text() == "made"


def test_what_comes_while_the_work_goes_on_is_seen_at_its_end(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(StoreError, match=f"{out} is a folder that holds thesis.tex"), OURS.replacing(out) as draft:
        draft.mkdir()
        (draft / "a").write_text("a")
        out.mkdir()
        (out / "thesis.tex").write_text("mine")
    assert content(tmp_path) == {"out": "folder", "out/thesis.tex": b"mine"}


def test_a_failure_puts_back_what_was_moved_aside(tmp_path):
    make(tmp_path / "out")
    before = content(tmp_path)
    with pytest.raises(FileNotFoundError):
        put_in_place(tmp_path / "none", tmp_path / "out")
    assert content(tmp_path) == before


@settings(max_examples=60, deadline=None)
@given(TREES)
def test_a_place_is_free_or_stays_as_it_is(tree):
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as name:
        folder, place = Path(name), Path(name, "out")
        (folder / "elsewhere").mkdir()
        plant(place, tree)
        before = content(folder)
        for action in (lambda: check_free(place, "give another"), lambda: make(place)):
            try:
                action()
            except StoreError:
                assert tree and content(folder) == before
            else:
                assert tree == {}
