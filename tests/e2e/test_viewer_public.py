"""Public sections in a real viewer: Open Sample shows size, licence and citation, fetches only when asked to, and opens what arrived."""

import pytest
from hub import LocalHub
from public import publish
from qtpy.QtCore import Qt
from qtpy.QtTest import QTest
from viewing import no_leaks, settle, viewer, workbench  # noqa: F401
from workspace import online

from napari_stmdit.tissue.public import section_directory
from napari_stmdit.ui import layers
from napari_stmdit.ui.presenter import Presenter

pytestmark = pytest.mark.gui


@pytest.fixture
def hub(tmp_path, monkeypatch, tiny_folder):
    monkeypatch.setenv("STMDIT_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(Presenter, "load_model", lambda self, choice: None)
    with LocalHub() as served:
        online(monkeypatch, served)
        publish(served, monkeypatch, tiny_folder)
        yield served


def bench_of(viewer):  # noqa: F811
    (dock,) = viewer.window._wrapped_dock_widgets.values()
    return dock.inner_widget()


def press(button):
    assert button.isVisible() and button.isEnabled()
    QTest.mouseClick(button, Qt.MouseButton.LeftButton)


def test_a_sample_is_agreed_to_fetched_and_opened_and_the_next_time_opens_at_once(viewer, hub):  # noqa: F811
    from napari._app_model import get_app_model

    get_app_model().commands.execute_command("napari-stmdit.her2st-b4").result()
    bench = bench_of(viewer)
    panel, state = bench.section.public, bench.state
    assert settle(lambda: panel.download.isVisible(), 5)
    assert panel.name() == "her2st-b4" and panel.download.text() == "Download and open"
    assert "About 0.1 MB; not on this computer" in panel.facts.plain()
    assert "Licence: CC BY 4.0." in panel.licence.plain() and "Cite: Nobody et al. 2026." in panel.licence.plain()
    assert "https://example.org/terms" in panel.terms.text()
    assert hub.requests == [] and not viewer.layers
    press(panel.download)
    assert settle(lambda: state.section is not None and not state.busy), state.message.text
    assert state.section.name == "her2st-b4" and state.section.path == section_directory("her2st-b4")
    assert panel.download.text() == "Open" and state.fetching is None
    assert [layers.role_of(layer) for layer in viewer.layers] == ["slide", "spots"]
    before = state.section
    hub.requests.clear()
    assert viewer.open_sample("napari-stmdit", "her2st-b4") == []  # the layers come when it was read
    assert settle(lambda: state.section is not before and not state.busy)
    assert state.section.name == "her2st-b4" and hub.requests == []


def test_an_unknown_size_is_asked_for_when_a_section_is_chosen_and_never_before(viewer, workbench, hub):  # noqa: F811
    panel = workbench.section.public
    workbench.section.public_fold.unfold()
    settle(lambda: False, 0.2)
    assert hub.requests == []
    panel.choice.setCurrentIndex(panel.choice.findData("10x-mouse-brain"))
    panel.choice.activated.emit(panel.choice.currentIndex())  # as by a hand
    assert settle(lambda: " MB; not on this computer" in panel.facts.plain(), 10), panel.facts.plain()
    assert hub.asked() == [] and len(hub.asked("HEAD")) == 3


def test_a_download_is_stopped_fails_in_words_and_goes_on(viewer, hub):  # noqa: F811
    viewer.open_sample("napari-stmdit", "10x-mouse-brain")
    bench = bench_of(viewer)
    panel, state = bench.section.public, bench.state
    served = hub.pages["/data.example.org/10x-mouse-brain/T_image.png"]
    served.trickles = True
    press(panel.download)
    assert settle(lambda: state.fetching is not None and state.fetching.fraction > 0)
    assert settle(panel.stop.isVisible, 3)
    press(panel.stop)
    assert settle(lambda: state.fetching is None)
    assert state.section is None and state.message.kind != "error" and not section_directory("10x-mouse-brain").exists()
    served.trickles = False
    hub.pages["/data.example.org/10x-mouse-brain/T_spatial.tar.gz"].drop_after = [100, 0, 0]
    press(panel.download)
    assert settle(lambda: state.message.kind == "error" and state.fetching is None)
    assert "the connection broke" in state.message.text and state.section is None
    hub.requests.clear()
    press(panel.download)
    assert settle(lambda: state.section is not None and not state.busy), state.message.text
    assert hub.ranges("web")[-1] == "bytes=100-" and len(state.section.spots) == 30


def test_offline_is_said_and_nothing_is_asked(viewer, hub, monkeypatch):  # noqa: F811
    monkeypatch.setenv("STMDIT_OFFLINE", "1")
    viewer.open_sample("napari-stmdit", "10x-mouse-brain")
    bench = bench_of(viewer)
    assert settle(lambda: "size is not known" in bench.section.public.facts.plain(), 5)
    press(bench.section.public.download)
    assert settle(lambda: bench.state.message.kind == "error")
    assert "offline mode" in bench.state.message.text and hub.requests == [] and not viewer.layers
