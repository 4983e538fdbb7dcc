"""Leaving a section or the window: what is not saved is said before, kept, and offered after."""

from __future__ import annotations

from collections.abc import Callable

from qtpy.QtCore import QEvent, QObject, Qt
from qtpy.QtWidgets import QDialog, QLabel, QMessageBox, QWidget

from ...synthesis.sessions import KeptSession
from ..presenter import Presenter
from ..state import WorkbenchState
from .common import Connections, Text, button, column, connect_state, row

QUESTION = "ConfirmCloseDialog"
"""Name of the class of napari's question."""


class ClosingWords(QObject):  # type: ignore[misc,unused-ignore]
    """An event filter of a napari window: completes its question before closing with what becomes of that which is not saved."""

    def __init__(self, window: QWidget, state: WorkbenchState) -> None:
        super().__init__(window)
        self._state = state
        window.installEventFilter(self)

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        """Add our words to the question when it is about to be shown."""
        if event.type() == QEvent.Type.ChildPolished and type(event.child()).__name__ == QUESTION:
            self._complete(event.child())
        return False

    def _complete(self, question: QDialog) -> None:
        loss = self._state.loss
        label = max(question.findChildren(QLabel), key=lambda label: len(label.text()), default=None)
        if loss and label is not None and loss not in label.text():
            label.setText(f"{label.text()}\n\n{loss}")
            label.setWordWrap(True)


def ask_to_replace(parent: QWidget, words: str, go_on: Callable[[], None], stay: Callable[[], None]) -> None:
    """Ask whether another section takes the place of the open one; the answer comes later, as napari may be inserting its layers."""
    question = QMessageBox(parent)
    question.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
    question.setIcon(QMessageBox.Icon.Question)
    question.setText("Replace the open section?")
    question.setInformativeText(words)
    replace = question.addButton("Replace it", QMessageBox.ButtonRole.AcceptRole)
    question.setDefaultButton(question.addButton("Keep it", QMessageBox.ButtonRole.RejectRole))
    question.finished.connect(lambda _: (go_on if question.clickedButton() is replace else stay)())
    question.open()


class KeptOffer(QWidget):  # type: ignore[misc,unused-ignore]
    """What an earlier session left unsaved, to be brought back or removed; not there where nothing was left."""

    def __init__(self) -> None:
        super().__init__()
        self._first: KeptSession | None = None
        self.text = Text("info")
        self.restore = button("Restore", "Restore", "Open its section and bring back what was not saved", once=True)
        self.discard = button("Discard", "Discard", "Remove it from this computer for good", once=True)
        self.setLayout(column(self.text, row(self.restore, self.discard, stretch=None), spacing=4))
        self.show_kept(())

    def bind(self, presenter: Presenter) -> Connections:
        """Connect with a presenter; return what shows its state."""
        state, keeping = presenter.state, presenter.keeping

        def answer(do: Callable[[KeptSession], None]) -> None:
            if self._first is not None:
                do(self._first)

        self.restore.clicked.connect(lambda _: answer(keeping.restore))
        self.discard.clicked.connect(lambda _: answer(keeping.discard))
        return connect_state(state.events, ("kept", lambda: self.show_kept(state.kept)))

    def show_kept(self, kept: tuple[KeptSession, ...]) -> None:
        """Offer the latest session of those."""
        self._first = kept[0] if kept else None
        more = "" if len(kept) < 2 else f" And {len(kept) - 1} earlier."
        self.text.show_text(
            "" if self._first is None else f"Not saved when napari was closed: {self._first.words}.{more}"
        )
        self.setVisible(bool(kept))
