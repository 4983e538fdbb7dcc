"""What was not saved is found again after a crash, belongs to one viewer at a time, and is removed only as it was written."""

import contextlib
import dataclasses
import datetime
import os

import numpy as np
import pytest
from standins import NoiseModel, card_for

from napari_stmdit.edits import Scale
from napari_stmdit.errors import StoreError
from napari_stmdit.intent import Request
from napari_stmdit.regions import SpotList
from napari_stmdit.synthesis import unsaved
from napari_stmdit.synthesis.requests import EditFile
from napari_stmdit.synthesis.unsaved import ViewerSession, discard, find_sessions
from napari_stmdit.tissue.open import SectionSource, open_section

EDITS = EditFile(edits=(Scale(genes=("ERBB2",), factor=5, name="more ERBB2"),))


@pytest.fixture
def result(tiny_section):
    from napari_stmdit.synthesis.session import synthesize

    model = NoiseModel(card_for(tuple(tiny_section.spots.genes.symbols.tolist()), patch_px=64, patch_mpp=0.7))
    request = Request(region=SpotList(ids=tuple(tiny_section.spots.ids[:3].tolist())), counterfactual="off")
    return synthesize(tiny_section, request, model)


@pytest.fixture
def source(tiny_folder):
    return SectionSource(path=str(tiny_folder))


def crashed(session):
    """Let a session go as the end of its process does: nothing is written, the lock is free."""
    session.lock.release()
    session.lock = session.folder = None


def test_a_crash_leaves_results_and_edits_as_they_were_made(tmp_path, result, source, tiny_section):
    session = ViewerSession(tmp_path)
    session.keep(result, "noise, 3 spots (synthetic)", source)
    session.note_edits(tiny_section, source, EDITS)
    assert find_sessions(tmp_path) == ()  # of a viewer that lives
    crashed(session)
    (kept,) = find_sessions(tmp_path)
    assert "1 result and 1 edit" in kept.words and tiny_section.name in kept.words
    (about,) = kept.sections.values()
    assert about.edits == EDITS
    (one,) = kept.results
    read = one.read(open_section(**about.source.model_dump(include={"path"})))
    np.testing.assert_array_equal(np.asarray(read.rgba), result.rgba)
    np.testing.assert_array_equal(np.asarray(read.patches[:]), result.patches)
    np.testing.assert_allclose(read.pixel_to_fullres, result.plan.frame.affine)
    assert read.request == result.plan.request and one.name == "noise, 3 spots (synthetic)"
    element = read.save(tmp_path / "saved.zarr")
    again = open_section(tmp_path / "saved.zarr")
    from napari_stmdit.synthesis.stored import stored_results

    (stored,) = stored_results(again)
    assert stored.element == element
    np.testing.assert_array_equal(np.asarray(stored.patches[:]), result.patches)


def test_what_was_saved_or_taken_back_is_not_offered_and_leaves_nothing(tmp_path, result, source, tiny_section):
    session = ViewerSession(tmp_path)
    place = session.keep(result, "a", source)
    session.note_edits(tiny_section, source, EDITS)
    session.forget([place])
    session.note_edits(tiny_section, source, EditFile())
    assert place.is_dir()  # it may be shown
    session.close()
    assert find_sessions(tmp_path) == () and not any((tmp_path / "sessions").iterdir())


def test_a_session_is_taken_by_one_viewer_and_goes_on(tmp_path, result, source):
    first = ViewerSession(tmp_path)
    first.keep(result, "a", source)
    saved = first.keep(result, "b", source)
    first.forget([saved])
    first.close()
    (kept,) = find_sessions(tmp_path)
    assert [one.name for one in kept.results] == ["a"] and not saved.exists()
    second = ViewerSession.take(tmp_path, kept)
    assert ViewerSession.take(tmp_path, kept) is None and find_sessions(tmp_path) == ()
    with pytest.raises(StoreError, match="another viewer"):
        discard(kept)
    second.keep(result, "c", source)
    second.close()
    (kept,) = find_sessions(tmp_path)
    assert [one.name for one in kept.results] == ["a", "c"]
    discard(kept)
    assert not any((tmp_path / "sessions").iterdir())


@pytest.mark.parametrize("what", ["a file beside", "a changed result"])
def test_what_this_program_did_not_write_stays(tmp_path, result, source, what):
    session = ViewerSession(tmp_path)
    place = session.keep(result, "a", source)
    folder = session.folder
    session.close()
    mine = folder / "notes.txt" if what == "a file beside" else place / "record.json"
    mine.write_text("{}")
    kept = find_sessions(tmp_path)
    if kept:
        discard(kept[0])
    assert mine.read_text() == "{}" and find_sessions(tmp_path) == ()


def test_sessions_are_bounded_in_age_and_size(tmp_path, result, source, monkeypatch):
    places = []
    for age in (40, 2, 1):
        session = ViewerSession(tmp_path)
        session.keep(result, f"{age} days", source)
        folder, day = session.folder, datetime.datetime.now() - datetime.timedelta(days=age)
        session.close()
        places.append(folder.with_name(f"{day:%Y%m%d-%H%M%S}-{folder.name[-6:]}"))
        folder.rename(places[-1])
        for file in (places[-1] / unsaved.FILE, *places[-1].rglob(unsaved.RECORD)):
            os.utime(file, (day.timestamp(), day.timestamp()))
    assert [one.results[0].name for one in find_sessions(tmp_path)] == ["1 days", "2 days"]
    assert not places[0].exists()
    monkeypatch.setattr(unsaved, "MAX_BYTES", int(1.5 * unsaved._size(places[2])))
    assert [one.results[0].name for one in find_sessions(tmp_path)] == ["1 days"]
    monkeypatch.setattr(unsaved, "MAX_BYTES", 10_000)
    with pytest.raises(StoreError, match=r"not kept for the next start.*save it"):
        ViewerSession(tmp_path).keep(result, "large", source)


def test_a_viewer_that_is_open_for_longer_loses_nothing_by_its_age(tmp_path, result, source, monkeypatch):
    then = datetime.datetime.now() - datetime.timedelta(days=unsaved.MAX_DAYS + 10)

    class Then(datetime.datetime):
        @classmethod
        def now(cls):
            return then

    session = ViewerSession(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(unsaved.datetime, "datetime", Then)
        session._begun()
    session.keep(result, "made today", source)
    crashed(session)
    assert [one.results[0].name for one in find_sessions(tmp_path)] == ["made today"]


def test_a_kill_right_after_a_result_is_written_loses_it_not(tmp_path, result, source, monkeypatch):
    class Killed(BaseException):
        pass

    session, replacing = ViewerSession(tmp_path), unsaved.WORK.replacing

    @contextlib.contextmanager
    def killed(place):
        with replacing(place) as draft:
            yield draft
        raise Killed

    monkeypatch.setattr(type(unsaved.WORK), "replacing", lambda self, place: killed(place))
    with pytest.raises(Killed):
        session.keep(result, "whole", source)
    crashed(session)
    assert [one.results[0].name for one in find_sessions(tmp_path)] == ["whole"]


@pytest.mark.parametrize(
    "damage", ["{", "[]", '{"sections": {"a": 3}}', '{"sections": {"a": {"name": "x", "source": {"path": ""}}}}']
)
def test_a_damaged_session_is_left_alone_and_hides_no_other(tmp_path, result, source, damage):
    for _ in range(2):
        session = ViewerSession(tmp_path)
        session.keep(result, "a", source)
        session.close()
    folder = sorted((tmp_path / "sessions").iterdir())[0]
    (folder / "session.json").write_text(damage)
    assert [one.folder for one in find_sessions(tmp_path)] != [folder] and len(find_sessions(tmp_path)) == 1
    assert (folder / "session.json").read_text() == damage


def test_a_result_of_another_section_is_refused(tmp_path, result, source, tiny_section):
    session = ViewerSession(tmp_path)
    session.keep(result, "a", source)
    crashed(session)
    (kept,) = find_sessions(tmp_path)
    spots = dataclasses.replace(tiny_section.spots, yx=tiny_section.spots.yx + 5)
    with pytest.raises(StoreError, match="other spots"):
        kept.results[0].read(dataclasses.replace(tiny_section, spots=spots))
    (kept.results[0].place / "record.json").unlink()
    with pytest.raises(StoreError, match="damaged"):
        kept.results[0].read(tiny_section)


def test_a_folder_that_cannot_be_written_is_said(tmp_path, result, source):
    (tmp_path / "sessions").write_text("")
    with pytest.raises(StoreError, match="save what you need"):
        ViewerSession(tmp_path).keep(result, "a", source)
    assert find_sessions(tmp_path) == ()
