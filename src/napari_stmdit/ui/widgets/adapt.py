"""Adapt to this section: a checkpoint of one's own tissue, made by a process that outlives the viewer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from qtpy.QtCore import Qt, QTimer, QUrl, Signal
from qtpy.QtGui import QDesktopServices, QPixmap
from qtpy.QtWidgets import QLabel, QLineEdit, QProgressBar, QSizePolicy, QWidget

from ...errors import StmditError
from ...training.adaptation import CORNERS, NOTHING, STAGES, AdaptRequest, default_name
from ...types import Section
from ..adapting import Adaptation, Adaptations
from ..presenter import Presenter
from .common import (
    Connections,
    Text,
    blocked,
    boxed,
    button,
    column,
    combo,
    connect_state,
    form_of,
    labelled,
    named,
    row,
)

ABOUT = (
    "Makes a checkpoint of this tissue on this computer. A part is held out, and tells in the end how far it can be trusted. It goes on "
    "when napari is closed."
)
LOOK_MS = 1000
PLACES = {name: name.replace("-", " ").capitalize() + " quarter" for name in CORNERS} | {
    NOTHING: "Nothing (no evaluation)"
}
"""What may be held out of one section, in words."""


class AdaptPanel(QWidget):  # type: ignore[misc,unused-ignore]
    """What to adapt to, how far it is, and what came of it."""

    finished = Signal(str)  # name of a checkpoint that has been made

    def __init__(self) -> None:
        super().__init__()
        self.adaptations = Adaptations()
        self._name, self._told, self._picture = "", set[str](), ("", 0)
        self._section: Callable[[], Section | None] = lambda: None
        tip = "Minutes for all of it; more time, better images"
        self.form = form_of(AdaptRequest, minutes=("Minutes", tip, {"step": 5, "min": 1, "max": 10_000}))
        self.minutes = self.form["minutes"].native
        self.minutes.setDecimals(0)
        places = [(words, key) for key, words in PLACES.items()]
        self.hold_out = combo("Held out", "Spots that are never learned from, and are evaluated on", places, length=8)
        self.name = named(QLineEdit(), "Name of the checkpoint", "The name it is chosen by")
        tip = "Start learning from the open section"
        self.go = button("Adapt", "Adapt to this section", tip, self._begin)
        self.choice = combo("Adaptations", "Those begun on this computer", length=8)
        self.choice.activated.connect(lambda: self._follow(str(self.choice.currentData() or "")))
        self.bar = QProgressBar()
        self.bar.setRange(0, 1000)
        self.bar.setTextVisible(False)
        self.bar.setAccessibleName("Progress of the adaptation")
        tip = "Save what is there and end; it can be gone on with, also after napari was closed"
        self.stop = button("Stop", "Stop the adaptation", tip, lambda: self.adaptations.stop(self._name))
        self.more = button("Go on", "Go on with the adaptation", "Go on from what was saved", self._go_on)
        self.use = button("Use it", "Use the checkpoint", "Load this checkpoint")
        self.told, self.fault, self.figures = Text("info"), Text("error"), Text("quiet")
        self.picture = named(
            QLabel(), "Newest samples", "Click to see it large: the slide, then synthetic tissue of its conditions"
        )
        self.picture.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
        self.picture.setCursor(Qt.CursorShape.PointingHandCursor)
        self.picture.mousePressEvent = lambda _: self._open_picture()
        self.known = boxed(
            column(
                self.choice,
                self.bar,
                self.told,
                self.fault,
                row(self.stop, self.more, self.use, stretch=None),
                self.picture,
                self.figures,
            )
        )
        self.asked = Text("error")
        form = labelled(("Minutes", self.minutes), ("Held out", self.hold_out), ("Name", self.name))
        self.setLayout(column(Text("quiet", ABOUT), form, self.go, self.asked, self.known))
        self._timer = QTimer(self)
        self._timer.setInterval(LOOK_MS)
        self._timer.timeout.connect(self.look)
        self.show_section(None)

    def bind(self, presenter: Presenter) -> Connections:
        """Connect with a presenter; return what shows its state."""
        state = presenter.state
        self._section = lambda: state.section

        def use() -> None:
            choice = replace(state.model, checkpoint=self._name, morphology_embeddings=None, expression_embeddings=None)
            presenter.load_model(choice)

        self.use.clicked.connect(use)
        self._timer.start()
        self._follow(next(iter(self.adaptations.names()), ""))
        connections = connect_state(state.events, ("section", lambda: self.show_section(state.section)))
        connections.add(self._timer.stop)
        return connections

    def show_section(self, section: Section | None) -> None:
        """Offer to adapt to the open section."""
        path = None if section is None else section.path
        self.go.setEnabled(path is not None)
        self.name.setPlaceholderText("" if path is None else default_name(path))

    # --- what was begun

    def look(self) -> None:
        """Show how far it is, now."""
        if not self._name:
            self.known.setVisible(False)
            return
        self.known.setVisible(True)
        self.show_adaptation(self.adaptations.look(self._name))

    def show_adaptation(self, known: Adaptation) -> None:
        """Show how far one is, and what can be done with it."""
        at = known.progress
        self.stop.setVisible(known.alive and not known.done)
        self.more.setVisible(not known.alive and not known.done and at is not None)
        self.use.setVisible(known.done)
        self.bar.setVisible(known.alive and not known.done)
        self.fault.show_text("" if known.alive or known.done else known.fault)
        self.bar.setValue(0 if at is None else round(1000 * at.fraction))
        if at is None:
            self.told.show_text("Opening the section and preparing." if known.alive else "")
        elif known.done:
            self.told.show_text(f"{known.name} is among the checkpoints.")
        else:
            left = "" if at.remaining_s is None else f", about {max(at.remaining_s / 60, 1):.0f} min left"
            head = (
                f"{STAGES[at.stage]}{left}"
                if known.alive
                else f"Stopped at {100 * at.fraction:.0f} %: {STAGES[at.stage].lower()}"
            )
            self.told.show_text(f"{head}. {_sentence(at.words)}".strip())
        self.figures.show_text(at.short if at is not None and known.done else "")
        self._show_picture("" if at is None else at.sheet or "")
        if known.done and known.name not in self._told:
            self._told.add(known.name)
            self.finished.emit(known.name)

    def _follow(self, name: str) -> None:
        """Show one of those that were begun."""
        self._name = name
        with blocked(self.choice):
            self.choice.clear()
            for one in self.adaptations.names():
                self.choice.addItem(one, one)
            self.choice.setCurrentIndex(max(self.choice.findData(name), 0))
        self.choice.setVisible(self.choice.count() > 1)
        self.look()

    def _begin(self) -> None:
        self.asked.show_text("")
        try:
            name = self.adaptations.begin(
                self._section(), self.name.text(), float(self.form["minutes"].value), str(self.hold_out.currentData())
            )
        except StmditError as error:
            self.asked.show_text(str(error))
            return
        self._told.discard(name)
        self._follow(name)

    def _go_on(self) -> None:
        self.adaptations.go_on(self._name)
        self.look()

    def _show_picture(self, path: str) -> None:
        """Show a sheet of samples as wide as the dock; read again only where it is another one or the dock has another width."""
        width = max(self.width() - 16, 100)
        if (path, width) == self._picture:
            return
        self._picture = path, width
        found = QPixmap(path) if path else QPixmap()
        self.picture.setVisible(not found.isNull())
        if found.isNull():
            self.picture.clear()
            return
        ratio = self.devicePixelRatioF()
        shown = found.scaledToWidth(round(width * ratio), Qt.TransformationMode.SmoothTransformation)
        shown.setDevicePixelRatio(ratio)
        self.picture.setPixmap(shown)
        self.picture.setFixedHeight(round(shown.height() / ratio))

    def _open_picture(self) -> None:
        if self._picture[0]:
            QDesktopServices.openUrl(QUrl.fromLocalFile(self._picture[0]))


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}." if text else ""
