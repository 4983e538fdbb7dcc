"""What was not saved comes back in another viewer, as unsaved as it was; no Qt, no screen."""

import numpy as np
import pytest
from models_for_ui import Tinted
from napari.components import ViewerModel

from napari_stmdit.edits import Scale
from napari_stmdit.tissue.open import SectionSource
from napari_stmdit.tissue.store_entries import list_results
from napari_stmdit.ui.jobs import start_inline
from napari_stmdit.ui.presenter import Presenter

EDIT = Scale(genes=("ERBB2",), factor=5, name="more ERBB2")


@pytest.fixture
def start(card, tmp_path, monkeypatch):
    """Makes presenters that keep what is not saved, as two starts of napari one after the other."""
    monkeypatch.setenv("STMDIT_HOME", str(tmp_path / "home"))
    viewers = []

    def make():
        viewers.append(ViewerModel())
        presenter = Presenter(viewers[-1], start_inline)
        presenter.use_model(Tinted(card))
        presenter.keeping.begin(tmp_path / "home")
        return presenter

    return make


def work(presenter, folder, edits=(EDIT,)):
    """Open a section, paint an edit, and run."""
    presenter.open(SectionSource(path=str(folder)))
    presenter.select(presenter.state.section.spots.ids[:3].tolist())
    presenter.state.request = presenter.state.request.model_copy(update={"edits": edits, "counterfactual": "off"})
    presenter.runs.run()
    return presenter.state.results[-1]


def crash(presenter):
    """End it as a kill does: nothing is written, the system lets the locks go."""
    for session in (presenter.keeping._own, *presenter.keeping._taken):
        if session.lock is not None:
            session.lock.release()


@pytest.mark.parametrize("how", ["close", "crash"])
def test_results_and_edits_come_back_as_unsaved_as_they_were(start, tiny_folder, how, tmp_path):
    first = start()
    assert first.state.kept == () and not first.state.loss
    entry = work(first, tiny_folder)
    assert "1 result and 1 edit are not saved: kept" in first.state.loss
    first.close() if how == "close" else crash(first)
    second = start()
    (kept,) = second.state.kept
    assert "1 result and 1 edit" in kept.words
    second.keeping.restore(kept)
    assert second.state.kept == () and second.state.section.path == tiny_folder
    (back,) = second.state.results
    assert back.saved is None and back.name == entry.name and back.request == entry.request
    np.testing.assert_array_equal(np.asarray(back.stored.rgba), entry.result.rgba)
    assert back.thumbnail is not None and second.results.layer(back.number).name == entry.name
    assert second.state.request.edits == (EDIT,) and second.state.unsaved_edits == (EDIT,)
    assert "not saved: kept" in second.state.loss
    assert start().state.kept == ()  # of a viewer that lives
    second.results.save(back.number, str(tmp_path / "saved.zarr"))
    assert list_results(tmp_path / "saved.zarr") == ("stmdit_1",)
    assert not second.state.loss  # its record holds the edit
    second.close()
    assert start().state.kept == ()
    assert not any((tmp_path / "home" / "sessions").iterdir())


def test_a_dock_that_is_opened_again_keeps_on(start, tiny_folder, tmp_path):
    """Its viewer, and the results in it, live on meanwhile."""
    first = start()
    old = work(first, tiny_folder)
    first.close()
    first.state.request = first.state.request.model_copy(update={"edits": ()})
    meanwhile = work(first, tiny_folder, edits=())
    first.keeping.begin(tmp_path / "home")
    assert first.state.kept == ()  # they are in the list already
    new = work(first, tiny_folder, edits=(EDIT.model_copy(update={"factor": 7}),))
    first.results.save(old.number, str(tmp_path / "saved.zarr"))
    crash(first)
    (kept,) = start().state.kept
    assert {one.name for one in kept.results} == {meanwhile.name, new.name}
    (section,) = kept.sections.values()
    assert [edit.factor for edit in section.edits.edits] == [7]


def test_a_dock_whose_session_another_viewer_took_begins_a_new_one(start, tiny_folder, tmp_path):
    first = start()
    old = work(first, tiny_folder, edits=())
    first.close()
    second = start()
    second.keeping.restore(second.state.kept[0])
    first.keeping.begin(tmp_path / "home")
    first.results.delete(old.number)
    new = work(first, tiny_folder, edits=(EDIT,))
    crash(first)
    crash(second)
    assert {one.name for kept in start().state.kept for one in kept.results} == {old.name, new.name}


def test_two_sessions_of_one_section_come_back_together(start, tiny_folder):
    for _ in range(2):
        work(viewer := start(), tiny_folder, edits=())
        crash(viewer)
    last, asked = start(), []
    last.keeping._open = asked.append  # the user is asked first, and has not answered
    for kept in last.state.kept:
        last.keeping.restore(kept)
    last.open(asked[0])
    assert len(last.state.results) == 2 and not last.state.kept


def test_restore_waits_while_a_section_is_opened(start, tiny_folder):
    work(first := start(), tiny_folder, edits=())
    crash(first)
    second = start()
    second.state.opening = True
    (kept,) = second.state.kept
    second.keeping.restore(kept)
    assert second.state.kept == (kept,) and second.state.section is None
    assert "press Restore again" in second.state.message.text
    second.state.opening = False
    second.keeping.restore(kept)
    assert len(second.state.results) == 1


def test_what_is_discarded_or_deleted_does_not_come_back(start, tiny_folder, tmp_path):
    first = start()
    work(first, tiny_folder)
    first.close()
    second = start()
    second.keeping.discard(second.state.kept[0])
    assert not any((tmp_path / "home" / "sessions").iterdir())
    entry = work(second, tiny_folder, edits=())
    second.results.delete(entry.number)
    second.close()
    assert start().state.kept == ()


def test_a_layer_that_naparis_trash_took_is_still_kept(start, tiny_folder):
    first = start()
    entry = work(first, tiny_folder, edits=())
    first._viewer().layers.remove(first.results.layer(entry.number))
    first.close()
    assert [one.name for one in start().state.kept[0].results] == [entry.name]


def test_edits_alone_are_kept_until_they_are_written_to_a_file(start, tiny_folder, tmp_path):
    first = start()
    first.open(SectionSource(path=str(tiny_folder)))
    first.state.request = first.state.request.model_copy(update={"edits": (EDIT,)})
    crash(first)
    second = start()
    assert "1 edit" in second.state.kept[0].words
    second.keeping.restore(second.state.kept[0])
    assert second.state.request.edits == (EDIT,)
    crash(second)
    third = start()
    assert len(third.state.kept) == 1  # handed over, not there twice
    third.keeping.restore(third.state.kept[0])
    third.edit_files.save(str(tmp_path / "edits.yaml"))
    assert not third.state.loss
    third.close()
    assert start().state.kept == ()


def test_the_open_section_is_used_and_another_one_waits(start, tiny_folder, tiny_zarr):
    first = start()
    work(first, tiny_folder, edits=())
    first.close()
    second = start()
    second.open(SectionSource(path=str(tiny_folder)))
    section = second.state.section
    second.keeping.restore(second.state.kept[0])
    assert second.state.section is section and len(second.state.results) == 1


def test_a_home_that_cannot_be_written_is_said_and_closing_says_so(start, tiny_folder, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "sessions").write_text("")
    presenter = start()
    work(presenter, tiny_folder)
    assert "closing loses them" in presenter.state.loss and "sessions" in presenter.state.keep_fault
    presenter.close()


def test_showing_where_the_slide_is_keeps_selection_and_results(start, tiny_folder, tmp_path, monkeypatch, qtbot):
    import shutil

    from qtpy.QtWidgets import QFileDialog

    from napari_stmdit.ui.widgets.section import SectionPanel

    monkeypatch.setattr("napari_stmdit.tissue.elements.MAX_SLIDE_PX", 300)
    folder = tmp_path / "section"
    shutil.copytree(tiny_folder, folder)
    first = start()
    entry = work(first, folder, edits=())
    first.results.save(entry.number, str(tmp_path / "out.zarr"))
    slide = first.state.section.image.file
    slide.rename(tmp_path / "away.png")
    second = start()
    second.open(SectionSource(path=str(tmp_path / "out.zarr")))
    panel = SectionPanel()
    qtbot.addWidget(panel)
    panel.openRequested.connect(second.open)
    panel.show_section(second.state.section)
    assert not panel.find_slide.isHidden() and "not there any more" in second.section_fault()
    second.select(second.state.section.spots.ids[:2].tolist())
    selected = second.state.selected
    monkeypatch.setattr(QFileDialog, "getOpenFileName", lambda *_, **__: (str(tmp_path / "away.png"), ""))
    panel.find_slide.click()
    assert second.state.section.image.pixel_size == 1 and not second.section_fault()
    assert second.state.selected == selected and len(second.state.results) == 1
    panel.show_section(second.state.section)
    assert panel.find_slide.isHidden()
    first.close()
    second.close()
