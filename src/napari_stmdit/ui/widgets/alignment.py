"""Whether the spots lie right on the slide: a line, a picture to see it by, and a button to lay them as they fit better."""

from __future__ import annotations

from typing import Any

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QLabel, QWidget

from ...tissue.alignment import WORDS, Alignment
from ..presenter import Presenter
from .common import Connections, Text, blocked, boxed, button, column, connect_state, row
from .results import pixmap_of

BOTH_PX, ONE_PX = 138, 210
"""Side of a check picture, with another beside it and alone."""


class AlignmentLine(QWidget):  # type: ignore[misc,unused-ignore]
    """The verdict on how spots and slide fit."""

    def __init__(self) -> None:
        super().__init__()
        self.verdict = Text("quiet")
        self.verdict.setAccessibleName("Alignment of spots and slide")
        self.look = button(
            "Look", "Look at the spots on the slide", "Show the spots over the slide; orange ones have many counts"
        )
        self.look.setCheckable(True)
        self.apply = button(
            "", "Lay the spots so", "Lay the spots over the slide as they fit better; no file is changed"
        )
        self.pictures = [QLabel(), QLabel()]
        self.words = [Text("quiet"), Text("quiet")]
        self.shown = [boxed(column(*pair, spacing=2)) for pair in zip(self.pictures, self.words, strict=True)]
        self.setLayout(
            column(self.verdict, row(self.look, self.apply, stretch=None), row(*self.shown, stretch=None), spacing=4)
        )
        self.show_alignment(None)
        self.show_pictures((), None)

    def bind(self, presenter: Presenter) -> Connections:
        """Connect with a presenter; return what shows its state."""
        state, corrections = presenter.state, presenter.corrections
        self.look.clicked.connect(corrections.look)
        self.apply.clicked.connect(lambda _: corrections.orient())
        return connect_state(
            state.events,
            ("alignment", lambda: self.show_alignment(state.alignment)),
            ("check_pictures", lambda: self.show_pictures(state.check_pictures, state.alignment)),
        )

    def show_alignment(self, found: Alignment | None) -> None:
        """Show the verdict, and the button where the spots fit clearly better otherwise."""
        self.setVisible(found is not None)
        self.apply.setVisible(found is not None and found.best is not None)
        if found is None:
            return
        self.verdict.show_text(found.statement, "warning" if found.verdict in ("other", "several") else "quiet")
        if found.best is not None:
            self.apply.setText("Lay them so")
            self.apply.setToolTip(f"Lay the spots over the slide {WORDS[found.best]}; no file is changed")

    def show_pictures(self, pictures: Any, found: Alignment | None) -> None:
        """Show the spots over the slide, as they are and as they fit better."""
        with blocked(self.look):
            self.look.setChecked(bool(pictures))
        side = BOTH_PX if len(pictures) > 1 else ONE_PX
        best = None if found is None or found.best is None else WORDS[found.best]
        for k, (box, label, words) in enumerate(zip(self.shown, self.pictures, self.words, strict=True)):
            box.setVisible(k < len(pictures))
            if k < len(pictures):
                mode = Qt.TransformationMode.SmoothTransformation
                label.setPixmap(pixmap_of(pictures[k]).scaled(side, side, Qt.AspectRatioMode.KeepAspectRatio, mode))
                words.show_text("as they are" if k == 0 else best or "")
