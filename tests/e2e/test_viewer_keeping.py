"""The effect of an edit in the dock, and what was not saved: offered again after napari was closed."""

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from models_for_ui import Tinted
from qtpy.QtCore import QThreadPool
from qtpy.QtWidgets import QFileDialog
from standins import card_for
from viewing import no_leaks, settle, viewer, workbench  # noqa: F401

from napari_stmdit.edits import Scale
from napari_stmdit.tissue.open import SectionSource
from napari_stmdit.ui.manifest import DOCK, PLUGIN

pytestmark = pytest.mark.gui
EDIT = Scale(genes=("ERBB2",), factor=5, name="more ERBB2")


def picture(window, name):
    """Leave a picture of the window where the environment asks for it, when it is drawn."""
    settle(lambda: False, 0.5)
    if folder := os.environ.get("STMDIT_PICTURES"):
        window.grab().save(f"{folder}/{name}.png")


@pytest.fixture
def edited(workbench, tiny_folder, tiny_section):  # noqa: F811
    """The workbench with a result of new tissue with an edit, on eight spots."""
    presenter = workbench.presenter
    card = card_for(tuple(tiny_section.spots.genes.symbols.tolist()), patch_px=64, patch_mpp=0.7)
    presenter.use_model(Tinted(card))
    presenter.open(SectionSource(path=str(tiny_folder)))
    assert settle(lambda: presenter.state.section is not None)
    presenter.select(presenter.state.section.spots.ids[:8].tolist())
    presenter.state.request = presenter.state.request.model_copy(update={"edits": (EDIT,)})
    presenter.runs.run()
    assert settle(lambda: presenter.state.results and not presenter.state.status.busy)
    return workbench


def test_the_effect_is_measured_beside_chance_and_saved_as_a_table(viewer, edited, tmp_path, monkeypatch):  # noqa: F811
    state, panel = edited.state, edited.results
    edited.show_step("see")
    assert "baseline" in panel.effect.plain() and not panel.numbers.isVisible()
    edited.presenter.compare_with_baseline("swipe")
    assert settle(lambda: len(state.results) == 2 and not state.status.busy)
    state.chosen_result = 1
    assert settle(lambda: 1 in state.effects), state.effect_faults
    assert "pixels change by" in panel.effect.plain() and "8 spots" in panel.effect.plain()
    panel.numbers.unfold()
    assert panel.numbers.isVisible() and panel.chance.isEnabled()
    panel.chance.click()
    assert settle(lambda: state.effects[1].chance_spots == 8 and not state.status.busy)
    assert "Another seed alone" in panel.measures.plain() and not panel.chance.isEnabled()
    assert state.results[0].result.provenance["effect"] == state.effects[1].facts
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_, **__: (str(tmp_path / "effect"), ""))
    panel.table.click()
    rows = list(csv.DictReader((tmp_path / "effect.csv").open()))
    assert len(rows) == 4 and rows[1]["chance_95"]
    picture(viewer.window._qt_window, "effect")


def test_what_was_not_saved_is_offered_when_napari_is_opened_again(
    viewer,  # noqa: F811
    edited,
    make_napari_viewer,
):
    state = edited.state
    entry = state.results[0]
    pixels, name = np.array(entry.result.rgba), entry.name
    assert settle(lambda: 1 in edited.presenter.keeping._places)  # put there when it was made, not at closing
    assert not edited.kept.isVisible()
    viewer.close()
    assert settle(lambda: QThreadPool.globalInstance().activeThreadCount() == 0)
    again = make_napari_viewer(show=True)
    _, bench = again.window.add_plugin_dock_widget(PLUGIN, DOCK)
    assert settle(lambda: bench.kept.isVisible())
    assert "1 result and 1 edit of" in bench.kept.text.plain()
    picture(again.window._qt_window, "offer")
    bench.kept.restore.click()
    assert settle(lambda: bench.state.results), bench.state.message
    (back,) = bench.state.results
    assert back.saved is None and back.name == name and not bench.kept.isVisible()
    np.testing.assert_array_equal(np.asarray(back.stored.rgba), pixels)
    assert bench.state.request.edits == (EDIT,) and "not saved" in bench.state.loss
    bench.show_step("see")
    patches = bench.presenter.looking.frames(back.number)
    assert len(patches) == 8 and not np.isnan(patches).any()
    assert "Not saved yet" in bench.results.list.item(0).toolTip() and bench.results.save_store.isEnabled()
    picture(again.window._qt_window, "restored")


def work_and_wait(folder, ready):
    """Be a viewer with a result and a painted edit that nobody saved; say when both are kept, and go on until killed."""
    import napari
    from viewing import settle

    viewer = napari.Viewer(show=True)  # noqa: F811
    _, bench = viewer.window.add_plugin_dock_widget(PLUGIN, DOCK)
    presenter = bench.presenter
    presenter.load_model = lambda choice: None
    presenter.open(SectionSource(path=folder))
    assert settle(lambda: presenter.state.section is not None)
    section = presenter.state.section
    presenter.use_model(Tinted(card_for(tuple(section.spots.genes.symbols.tolist()), patch_px=64, patch_mpp=0.7)))
    presenter.select(section.spots.ids[:8].tolist())
    presenter.runs.run()
    presenter.state.request = presenter.state.request.model_copy(update={"edits": (EDIT,)})
    keeping = presenter.keeping
    assert settle(lambda: keeping._places and not keeping._works and not keeping._busy)
    Path(ready).touch()
    settle(lambda: False, 3600)


@pytest.mark.nightly
def test_of_a_viewer_that_is_killed_result_and_edit_are_offered_by_the_next(
    viewer,  # noqa: F811
    tiny_folder,
    tmp_path,
    monkeypatch,
):
    monkeypatch.setenv("STMDIT_HOME", str(tmp_path / "home"))
    ready = tmp_path / "ready"
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    work = f"import test_viewer_keeping as it; it.work_and_wait({str(tiny_folder)!r}, {str(ready)!r})"
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", work],
            env={**os.environ, "PYTHONPATH": path, "NAPARI_CONFIG": str(tmp_path / "settings.yaml")},
            stdout=log,
            stderr=log,
        )
        try:
            assert settle(lambda: ready.exists() or process.poll() is not None, 300)
            assert ready.exists(), (tmp_path / "log").read_text()[-2000:]
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
    _, bench = viewer.window.add_plugin_dock_widget(PLUGIN, DOCK)
    assert settle(lambda: bench.kept.isVisible())
    assert "1 result and 1 edit of tiny_section" in bench.kept.text.plain()
    bench.presenter.load_model = lambda choice: None
    bench.kept.restore.click()
    assert settle(lambda: bench.state.results), bench.state.message
    assert bench.state.results[0].saved is None and bench.state.request.edits == (EDIT,)
