"""The dock as three steps and one bar: each fits a laptop's screen, says what Run does, and has nothing cut, hidden or greyed for show."""

import itertools

import numpy as np
import pytest
from models_for_ui import SlowModel
from qtpy.QtCore import QEvent, QPoint, Qt
from qtpy.QtTest import QTest
from qtpy.QtWidgets import (
    QAbstractButton,
    QAbstractSpinBox,
    QApplication,
    QComboBox,
    QDockWidget,
    QLineEdit,
    QPushButton,
    QSlider,
)
from standins import CropModel, card_for
from viewing import Mouse, no_leaks, opened, settle, viewer, workbench  # noqa: F401

from napari_stmdit.edits import KnockOut, Scale
from napari_stmdit.ui import layers
from napari_stmdit.ui.gestures import camera_of
from napari_stmdit.ui.manifest import DOCK, PLUGIN
from napari_stmdit.ui.state import Colouring, RunStatus
from napari_stmdit.ui.widgets.common import COLOURS, LINK, Fold, Text
from napari_stmdit.ui.widgets.results import CARD_PX, FACTS, TITLE

pytestmark = pytest.mark.gui
CONTROLS = (QAbstractButton, QAbstractSpinBox, QComboBox, QLineEdit, QSlider, Text)


def click(button):
    QTest.mouseClick(button, Qt.MouseButton.LeftButton, pos=QPoint(button.width() // 2, button.height() // 2))


def shown(bench):
    """Return the controls and texts that are seen, without the parts that Qt makes of them."""
    inner = (QAbstractSpinBox, QComboBox, QLineEdit)
    found = {w for kind in CONTROLS for w in bench.findChildren(kind) if w.isVisible()}
    return [w for w in found if not isinstance(w.parent(), inner) and w.window() is bench.window()]


def lay_out():
    """Let the dock be laid out: wrapped texts take several passes, however slow the machine is."""
    for _ in range(10):
        QApplication.sendPostedEvents(None, QEvent.Type.LayoutRequest)
        QApplication.processEvents()


def assert_whole(bench):
    """Nothing is cut at the dock's sides, no button's words are cut, and no two controls lie over each other."""
    lay_out()
    controls = shown(bench)
    places = {}
    for control in controls:
        corner = control.mapTo(bench, QPoint(0, 0))
        places[control] = rect = control.rect().translated(corner)
        what = (type(control).__name__, control.accessibleName(), getattr(control, "text", str)())
        assert rect.left() >= 0 and rect.right() < bench.width(), what
        if isinstance(control, QPushButton):
            assert control.fontMetrics().horizontalAdvance(control.text()) <= control.width() - 4, what
        if isinstance(control, Text):
            assert (
                control.heightForWidth(control.width()) <= control.height() + 2 or control is bench.run_bar.message
            ), what
    scrolled = {control: bench.scroll.widget().isAncestorOf(control) for control in controls}
    for one, other in itertools.combinations(controls, 2):
        if scrolled[one] != scrolled[other] or bench.run_bar.message in (one, other):
            continue  # what is scrolled out of sight lies behind the bar
        if not one.isAncestorOf(other) and not other.isAncestorOf(one):
            assert not places[one].intersects(places[other]), (one.accessibleName(), other.accessibleName())


def paint_and_run(bench):
    """Fill all three steps: a gene's colours, two edits of which one is chosen, and results, of which one is compared and measured."""
    state, presenter = bench.state, bench.presenter
    ids = state.section.spots.ids.tolist()
    presenter.colour(Colouring("ERBB2"))
    presenter.select(ids[:7])
    edits = (
        Scale(genes=("ERBB2",), factor=5, name="more ERBB2", spots=dict.fromkeys(ids[:7], 1.0)),
        KnockOut(genes=("KRT8", "EPCAM"), name="KRT8, EPCAM knocked out", spots=dict.fromkeys(ids[3:9], 0.5)),
    )
    state.request = state.request.model_copy(update={"edits": edits})
    for _ in range(4):
        presenter.runs.run()
        assert settle(lambda: not state.status.busy), state.message.text
    presenter.compare_with_baseline("swipe")
    assert settle(lambda: state.comparison is not None and state.chosen_result in state.effects), state.message.text
    presenter.painting.choose(0)
    presenter.use_tool("brush")


@pytest.mark.parametrize(("width", "height"), [(1366, 768), (1920, 1080)])
def test_each_step_is_one_screen_at_320_pixels_and_nothing_is_cut(viewer, opened, width, height):  # noqa: F811
    window = viewer.window._qt_window
    window.resize(width, height)
    dock = next(d for d in window.findChildren(QDockWidget) if d.isAncestorOf(opened))
    window.resizeDocks([dock], [320], Qt.Orientation.Horizontal)
    settle(lambda: False, 0.3)
    assert (window.width(), window.height(), opened.width()) == (width, height, 320)
    paint_and_run(opened)
    for step in opened.pages:
        click(opened.steps.button(step))
        settle(lambda: False, 0.3)
        assert opened.pages[step].isVisible()
        lay_out()
        assert opened.scroll.verticalScrollBar().maximum() == 0, step
        assert_whole(opened)
    for fold in opened.findChildren(Fold):
        fold.unfold()
    settle(lambda: False, 0.3)
    bar = opened.scroll.verticalScrollBar()
    for one in (opened.section.details, opened.section.another):
        bar.setValue(bar.maximum())
        click(one)
        assert bar.maximum() > bar.value() == 0  # what it shows lies at the top
    for step in opened.pages:  # what is unfolded may be scrolled, but is not cut either
        opened.show_step(step)
        settle(lambda: False, 0.3)
        assert_whole(opened)
    opened.presenter.close_section()
    for fold in opened.findChildren(Fold):
        fold.unfold(False)
    settle(lambda: False, 0.3)
    lay_out()
    assert opened.scroll.verticalScrollBar().maximum() == 0
    assert_whole(opened)


def test_a_card_shows_what_tells_results_apart_and_has_the_actions_of_the_chosen_one(opened):  # noqa: F811
    state, panel, ids = opened.state, opened.results, opened.state.section.spots.ids.tolist()
    edit = KnockOut(genes=("ERBB2", "KRT8", "EPCAM"), name="ERBB2 and KRT8 and EPCAM knocked out")
    state.request = state.request.model_copy(update={"edits": (edit,)})
    for count in (13, 12):
        opened.presenter.select(ids[:count])
        opened.presenter.runs.run()
        assert settle(lambda: not state.status.busy)
    opened.show_step("see")
    settle(lambda: False, 0.2)
    cards = [panel.list.item(k) for k in range(panel.list.count())]
    firsts = [card.data(FACTS)[:12] for card in cards]
    assert firsts == ["synthetic, 2", "synthetic, 1"]  # what differs is in sight, however narrow the dock
    for card, entry in zip(cards, reversed(state.results), strict=True):
        assert entry.name in card.toolTip() and "Not saved yet." in card.toolTip()
        assert card.data(TITLE) == entry.name.split(" (")[0]
    for place in (1, 0):  # the actions lie on the card that is clicked, under its name, and nothing is over them
        list_ = panel.list
        at = list_.visualItemRect(cards[place]).topLeft() + QPoint(150, 20)
        QTest.mouseClick(list_.viewport(), Qt.MouseButton.LeftButton, pos=at)
        card = list_.visualItemRect(cards[place])
        assert state.chosen_result == state.results[1 - place].number
        assert card.contains(list_.actions.geometry()) and list_.actions.y() > card.y() + 30
        assert all(b.isVisible() for b in (panel.save, panel.delete, panel.again, panel.reuse))
        settle(lambda: False, 0.1)
    eye = panel.list.visualItemRect(cards[0]).topLeft() + QPoint(10, CARD_PX // 2)
    QTest.mouseClick(panel.list.viewport(), Qt.MouseButton.LeftButton, pos=eye)
    assert [entry.visible for entry in state.results] == [True, False]
    against = opened.compare.against
    assert against.itemText(1).startswith("synthetic, 1: ERBB2") and against.itemData(1, Qt.ItemDataRole.ToolTipRole)


def test_an_empty_dock_has_one_thing_to_press_and_nothing_greyed(workbench):  # noqa: F811
    settle(lambda: False, 0.2)
    assert not workbench.steps.isVisible() and not workbench.run_bar.run.isVisible()
    assert all(control.isEnabled() for control in shown(workbench))
    assert [c for c in shown(workbench) if c.property("primary")] == [workbench.section.example]
    assert len(shown(workbench)) <= 10


def test_the_bar_says_what_run_does_and_the_step_follows_the_work(viewer, opened):  # noqa: F811
    state, bar = opened.state, opened.run_bar
    ids = state.section.spots.ids.tolist()
    assert opened.pages["choose"].isVisible() and "Select spots first" in bar.words.plain() and not bar.run.isEnabled()
    assert (
        "lick" not in bar.message.plain()
    )  # what is to be done next stands in one place alone, and goes when it is done
    Mouse(viewer).click(state.section.spots.yx[7] * state.section.calibration.mpp)
    assert bar.words.plain() == "1 spot · as measured · new tissue · CPU" and bar.run.isEnabled()
    opened.presenter.painting.take_draft(opened.state.draft.__class__(operation="knock_out", genes=("ERBB2",)))
    opened.presenter.painting.add(ids[:5])
    opened.presenter.select(())
    assert bar.words.plain() == "5 painted spots · ERBB2 knocked out · new tissue · CPU"
    assert not bar.stop.isVisible()
    click(bar.run)
    assert settle(lambda: state.results and not state.status.busy)
    assert opened.pages["see"].isVisible() and not opened.pages["choose"].isVisible() and opened.made.isVisible()
    assert "about " in bar.words.plain()  # the pace is known now
    state.request = state.request.model_copy(update={"morphology": "nowhere"})
    assert settle(lambda: "Cannot run: 'nowhere'" in bar.words.plain(), 2), (bar.words.plain(), state.faults)
    assert not bar.run.isEnabled()
    for words, scrolled in (("said at length " * 20, True), ("said in a line or two " * 3, False)):
        state.tell("info", words)
        settle(lambda: False, 0.1)
        assert bar.room.verticalScrollBar().isVisible() == scrolled


def test_a_double_click_runs_a_spot_and_beside_the_spots_it_zooms(viewer, opened):  # noqa: F811
    state, camera = opened.state, camera_of(viewer)
    mouse = Mouse(viewer)
    world = state.section.spots.yx * state.section.calibration.mpp
    zoom = camera.zoom
    mouse.send(QEvent.Type.MouseButtonDblClick, np.array([3.0, 3.0]))
    assert camera.zoom == 2 * zoom and not state.status.busy and not state.selected
    camera.zoom = zoom
    opened.presenter.looking.look_at(opened.presenter.view.slide)
    mouse.click(world[12])
    mouse.send(QEvent.Type.MouseButtonDblClick, world[12])
    assert settle(lambda: state.results and not state.status.busy)
    assert state.results[0].spots == (state.section.spots.ids[12],)


def test_a_stopped_run_is_gone_on_with_and_what_is_there_is_made_again(opened):  # noqa: F811
    state, bar = opened.state, opened.run_bar
    model = state.checkpoint
    opened.presenter.use_model(SlowModel(model.card, 0.05))
    opened.presenter.select_all()
    state.batch = 4
    click(bar.run)
    assert settle(lambda: state.progress is not None and state.progress.patches_done >= 4)
    assert bar.stop.isVisible()
    click(bar.stop)
    assert settle(lambda: not state.status.busy) and state.status is RunStatus.STOPPED
    done = set(state.results[0].spots)
    opened.presenter.use_model(CropModel(model.card))
    assert not bar.offers["again"].isVisible()
    assert bar.offers["go_on"].isVisible()
    click(bar.offers["go_on"])
    assert settle(lambda: state.status is RunStatus.DONE)
    assert done | set(state.results[1].spots) == set(state.section.spots.ids.tolist()) and not done & set(
        state.results[1].spots
    )
    opened.presenter.select(list(state.results[1].spots))
    click(bar.run)
    assert "Already made" in state.message.text and len(state.results) == 2
    assert bar.offers["again"].isVisible() and not bar.offers["go_on"].isVisible()
    click(bar.offers["again"])
    assert settle(lambda: len(state.results) == 3 and not state.status.busy)


def test_of_foreign_genes_two_buttons_show_the_way_on_and_the_next_section_starts_afresh(opened, tiny_section):  # noqa: F811
    from dataclasses import replace

    state, panel = opened.state, opened.section
    opened.presenter.use_model(CropModel(card_for(tuple(f"G{k}" for k in range(50)), patch_px=64, patch_mpp=0.7)))
    opened.presenter.select_all()
    assert panel.way_on.isVisible() and not opened.run_bar.run.isEnabled()
    text = panel.fault.plain()
    assert "--" not in text and "=" not in text and "Run although genes are missing" in text
    assert opened.run_bar.words.plain() == "Cannot run: the reason stands above."
    click(panel.others)
    settle(lambda: False, 0.1)
    assert opened.model.checkpoint.isVisible()
    click(panel.ignore)
    assert settle(lambda: not panel.way_on.isVisible() and opened.run_bar.run.isEnabled(), 2)
    state.request = state.request.model_copy(update={"allow_gene_mismatch": True, "steps": 7, "morphology": "SPOT03-1"})
    opened.presenter.show(replace(tiny_section, name="another"))
    assert (state.request.expression, state.request.allow_gene_mismatch) == ("own", False)
    assert (state.request.steps, state.request.morphology) == (None, "own")
    assert opened.pages["choose"].isVisible()


def test_examples_of_edits_fill_the_form_and_what_is_not_seen_is_greyed_and_last(opened):  # noqa: F811
    form, state = opened.edits.form, opened.state
    labels = [form.presets.itemText(k) for k in range(form.presets.count())]
    able = [form.presets.model().item(k).isEnabled() for k in range(form.presets.count())]
    assert labels[1:] and able[1:] == sorted(able[1:], reverse=True) and False in able  # tiny genes are few
    form.presets.setCurrentIndex(1)
    form.presets.activated.emit(1)
    assert form.presets.currentIndex() == 0 and state.draft == form.value()
    assert labels[1].split()[1] in (*state.draft.programs, state.draft.target_profile)
    hint = form.what.placeholderText()
    assert hint.startswith("genes and programs, e.g. ")
    form.what.setText(hint.split("e.g. ")[1])
    form.what.commit()
    assert not form.faults["what"].plain()  # what is offered as an example works


def contrast(one, other):
    def light(colour):
        parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((light(one), light(other)))
    return (high + 0.05) / (low + 0.05)


def test_texts_and_links_can_be_read_in_both_themes(viewer, workbench):  # noqa: F811
    from napari.utils.theme import get_theme

    workbench.reveal(workbench.model.downloads)
    terms = workbench.model.downloads.terms
    workbench.model.downloads.choose("uni2h")
    for theme, dark in (("dark", True), ("light", False)):
        viewer.theme = theme
        settle(lambda: False, 0.1)
        ground = "#{:02x}{:02x}{:02x}".format(*get_theme(theme).background.as_rgb_tuple()[:3])
        assert all(contrast(colour, ground) >= 4.5 for colour in (*COLOURS[dark].values(), LINK[dark]))
        assert f'style="color: {LINK[dark]}"' in terms.text()


def test_a_section_that_was_opened_is_offered_again(workbench, tiny_folder):  # noqa: F811
    from napari_stmdit.tissue.open import SectionSource

    presenter, panel = workbench.presenter, workbench.section
    presenter.load_model = lambda choice: None
    presenter.open(SectionSource(path=str(tiny_folder)))
    assert settle(lambda: workbench.state.section is not None and not workbench.state.busy)
    presenter.close_section()
    settle(lambda: False, 0.1)
    recent = [one for one in panel.recent.findChildren(QPushButton) if one.isVisible()]
    assert recent and recent[0].toolTip() == str(tiny_folder)
    click(recent[0])
    assert settle(lambda: workbench.state.section is not None and not workbench.state.busy)
    assert not panel.recent.isVisible()


def middle_of(viewer):  # noqa: F811
    """Return how bright the middle of a viewer's canvas is on the screen."""
    canvas = viewer.window._qt_viewer.canvas.native
    corner = canvas.mapToGlobal(canvas.rect().center()) - QPoint(10, 10)
    image = canvas.screen().grabWindow(0, corner.x(), corner.y(), 20, 20).toImage()
    return sum(image.pixelColor(x, y).lightness() for x in range(20) for y in range(20)) / 400


@pytest.fixture
def two_docks(no_leaks, make_napari_viewer, tiny_section):  # noqa: F811
    """Two viewers, each with a dock and a section of its own."""
    from dataclasses import replace

    card = card_for(tuple(tiny_section.spots.genes.symbols.tolist()), patch_px=64, patch_mpp=0.7)
    found = []
    for name in ("one", "other"):
        window = make_napari_viewer(show=True)
        dock = window.window.add_plugin_dock_widget(PLUGIN, DOCK)[1]
        settle(lambda: False, 0.3)
        assert dock.section.example.isVisible() and not dock.steps.isVisible()
        dock.presenter.use_model(CropModel(card))
        dock.presenter.show(replace(tiny_section, name=name))
        page = dock.pages["choose"]
        assert settle(lambda own=window, page=page: page.isVisible() and middle_of(own) > 60, 10)
        found.append((window, dock))
    return found


def test_a_second_viewer_has_its_own_dock_and_leaves_the_first_as_it_was(two_docks):
    (first, one), (second, _) = two_docks
    second.close()
    settle(lambda: False, 0.5)
    assert one.pages["choose"].isVisible() and one.state.section.name == "one"
    assert [layers.role_of(x) for x in first.layers] == ["slide", "spots"]


def test_closing_a_second_viewer_leaves_the_picture_of_the_first(two_docks):
    (first, _), (second, _) = two_docks
    first.window._qt_viewer.canvas.native.makeCurrent()  # as where it was drawn last
    second.close()
    first.window._qt_window.raise_()
    assert settle(lambda: middle_of(first) > 60, 5)
