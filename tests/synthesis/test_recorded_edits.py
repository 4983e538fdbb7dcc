import pytest

from napari_stmdit.edits import Add, Towards
from napari_stmdit.intent import Request
from napari_stmdit.synthesis.identity import differences
from napari_stmdit.synthesis.requests import EditFile, as_recorded, read_edit_file, read_request, write_edit_file


def recorded() -> dict:
    """A request as the record of a result of an earlier version holds it: every field but the one that there was not."""
    request = Request(edits=(Add(genes=("A",), log_units=1), Towards(target_spots=("s",)))).model_dump(mode="json")
    del request["edits"][0]["follow"]
    return request


def test_nothing_follows_the_edits_of_a_record_that_is_older_than_the_choice():
    first, second = as_recorded(recorded())["edits"]
    assert first["follow"] == "none" and "follow" not in second
    assert recorded()["edits"] != as_recorded(recorded())["edits"]


def test_records_are_told_from_files_that_leave_it_open(tmp_path):
    import json

    old, new = tmp_path / "old.json", tmp_path / "new.yaml"
    old.write_text(json.dumps(recorded()))
    assert read_request(old).edits[0].follow == "none"
    assert read_edit_file(old).edits[0].follow == "none"
    new.write_text("edits:\n- operation: add\n  genes: [A]\n  log_units: 1\n")
    assert read_request(new).edits[0].follow == "section"
    assert read_edit_file(new).edits[0].follow == "section"


@pytest.mark.parametrize("follow", ["section", "none"])
def test_an_edit_file_states_whether_anything_follows(tmp_path, follow):
    path = tmp_path / "edits.yaml"
    file = EditFile(edits=(Add(genes=("A",), log_units=1, follow=follow), Towards(target_spots=("s",))))
    write_edit_file(file, path)
    assert path.read_text().count(f"follow: {follow}") == 1
    assert read_edit_file(path) == file


def test_a_run_is_not_continued_with_other_genes_following():
    new = Request(edits=(Add(genes=("A",), log_units=1), Towards(target_spots=("s",))))
    same = new.model_copy(update={"edits": (new.edits[0].model_copy(update={"follow": "none"}), new.edits[1])})
    then = {"request": recorded()}
    assert differences(then, {"request": same.model_dump(mode="json")}) == []
    (line,) = differences(then, {"request": new.model_dump(mode="json")})
    assert "follow" in line and "'none' then, 'section' now" in line
