"""Closing the window: napari asks once, and its question says what would be lost."""

from __future__ import annotations

from qtpy.QtCore import QEvent, QObject
from qtpy.QtWidgets import QDialog, QLabel, QWidget

from ..state import WorkbenchState

QUESTION = "ConfirmCloseDialog"
"""Name of the class of napari's question."""


class ClosingWords(QObject):  # type: ignore[misc,unused-ignore]
    """An event filter of a napari window: completes its question before closing with what the dock would lose."""

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
