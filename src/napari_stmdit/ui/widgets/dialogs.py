"""Dialogs: width and resolution of a figure, units of a table, unsaved work when a section is replaced or the window closes, and the offer after it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from qtpy.QtCore import QEvent, QObject, Qt
from qtpy.QtWidgets import (
    QDialog,
    QDialogButtonBox,
    QDoubleSpinBox,
    QFileDialog,
    QLabel,
    QLayout,
    QMessageBox,
    QSpinBox,
    QWidget,
)

from ...evaluation.paper_figure import DPI, WIDTHS_MM
from ...expression.edit_tables import layers_of
from ...synthesis.unsaved import KeptSession
from ..presenter import Presenter
from ..state import WorkbenchState
from .common import Connections, Text, button, column, combo, connect_state, labelled, named, row

FIGURES = "PDF (*.pdf);;SVG (*.svg);;PNG (*.png)"


class FigureDialog(QDialog):  # type: ignore[misc,unused-ignore]
    """Dialog for width and resolution of a figure; remembers the last ones."""

    def __init__(self, parent: QWidget) -> None:
        super().__init__(parent)
        self.setWindowTitle("Figure for a paper")
        self.width_mm: QDoubleSpinBox = named(
            QDoubleSpinBox(), "Width of the figure", "Millimetres: a column is about 85, a page about 180"
        )
        self.width_mm.setRange(*WIDTHS_MM)
        self.width_mm.setDecimals(0)
        self.width_mm.setSuffix(" mm")
        self.width_mm.setValue(180)
        self.dpi: QSpinBox = named(
            QSpinBox(), "Resolution", "Pixels per inch of its pictures; journals ask for 300 or more"
        )
        self.dpi.setRange(*DPI)
        self.dpi.setSuffix(" dpi")
        self.dpi.setValue(300)
        about = Text(
            "quiet", "Slide, edit, result and difference side by side, with scale bars, legends and what is synthetic."
        )
        about.setMinimumWidth(260)
        buttons = QDialogButtonBox(QDialogButtonBox.StandardButton.Save | QDialogButtonBox.StandardButton.Cancel)
        buttons.accepted.connect(self.accept)
        buttons.rejected.connect(self.reject)
        named(
            buttons.button(QDialogButtonBox.StandardButton.Save),
            "Save the figure",
            "Choose the file for the figure",
        )
        named(buttons.button(QDialogButtonBox.StandardButton.Cancel), "Cancel", "Draw no figure")
        layout = column(about, labelled(("Width", self.width_mm), ("Resolution", self.dpi)), buttons)
        layout.setContentsMargins(12, 12, 12, 12)
        self.setLayout(layout)

    def ask(self, place: str) -> tuple[str, float, int] | None:
        """Ask, also for the file; return path, width in mm and dpi, or None."""
        if self.exec() != QDialog.DialogCode.Accepted:
            return None
        path, kind = QFileDialog.getSaveFileName(self.parentWidget(), "Save the figure", place, FIGURES)
        if not path:
            return None
        if not path.lower().endswith((".pdf", ".svg", ".png")):
            path += kind[-5:-1] if kind else ".pdf"
        return path, float(self.width_mm.value()), int(self.dpi.value())


UNITS = (
    ("choose what the numbers are", None),
    ("counts", "counts"),
    ("log(1 + counts per 10,000)", "log1p_cp10k"),
    ("differences of these logarithms", "difference"),
)


class TableDialog(QDialog):  # type: ignore[misc,unused-ignore]
    """Dialog for the matrix of a table and its units; neither is guessed.

    Raises
    ------
    GeneError
        The file cannot be read.
    """

    def __init__(self, parent: QWidget, path: str) -> None:
        super().__init__(parent)
        self.setWindowTitle(f"Edit from {Path(path).name}")
        layers = layers_of(path)
        self.unit = combo("Unit", "What the numbers of the table are", UNITS)
        self.layer = combo("Matrix", "The matrix of the file that holds the prediction", [(one, one) for one in layers])
        if len(layers) > 1:
            self.layer.insertItem(0, "choose a matrix", None)
            self.layer.setCurrentIndex(0)
        others = [("the section as measured", None), *((f"the layer {one}", one) for one in layers)]
        self.baseline = combo(
            "Compared with", "With a layer of the same file, spots move by the difference of the two", others
        )
        fields: list[tuple[str, QWidget | QLayout]] = [("Numbers are", self.unit)]
        if layers:
            fields += [("Matrix", self.layer), ("Compared with", self.baseline)]
        self.buttons = QDialogButtonBox(QDialogButtonBox.StandardButton.Ok | QDialogButtonBox.StandardButton.Cancel)
        self.buttons.accepted.connect(self.accept)
        self.buttons.rejected.connect(self.reject)
        for box in (self.unit, self.layer):
            box.currentIndexChanged.connect(lambda _: self._check())
        layout = column(labelled(*fields), self.buttons)
        layout.setContentsMargins(12, 12, 12, 12)
        self.setLayout(layout)
        self._needs_layer = bool(layers)
        self._check()

    def value(self) -> tuple[str, str | None, str | None]:
        """Return unit, layer and baseline."""
        baseline = self.baseline.currentData() if self.baseline.isEnabled() else None
        return self.unit.currentData(), self.layer.currentData(), baseline

    def _check(self) -> None:
        chosen = self.unit.currentData() is not None and (self.layer.currentData() is not None or not self._needs_layer)
        self.buttons.button(QDialogButtonBox.StandardButton.Ok).setEnabled(chosen)
        self.baseline.setEnabled(self.unit.currentData() != "difference")


QUESTION = "ConfirmCloseDialog"
"""Name of the class of napari's question."""


class ClosingWords(QObject):  # type: ignore[misc,unused-ignore]
    """Event filter of a napari window that adds a sentence on unsaved work to its question before closing."""

    def __init__(self, window: QWidget, state: WorkbenchState) -> None:
        super().__init__(window)
        self._state = state
        window.installEventFilter(self)

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        """Add our sentence to the question when it is about to be shown."""
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
    """Offer to restore or remove the unsaved work of an earlier session; hidden without one."""

    def __init__(self) -> None:
        super().__init__()
        self._first: KeptSession | None = None
        self.text = Text("info")
        self.restore = button("Restore", "Restore", "Open its section and restore the unsaved work", once=True)
        self.discard = button("Discard", "Discard", "Delete it permanently", once=True)
        self.setLayout(column(self.text, row(self.restore, self.discard, stretch=None), spacing=4))
        self.show_kept(())

    def bind(self, presenter: Presenter) -> Connections:
        """Connect with a presenter; return the connections."""
        state, keeping = presenter.state, presenter.keeping

        def answer(do: Callable[[KeptSession], None]) -> None:
            if self._first is not None:
                do(self._first)

        self.restore.clicked.connect(lambda _: answer(keeping.restore))
        self.discard.clicked.connect(lambda _: answer(keeping.discard))
        return connect_state(state.events, ("kept", lambda: self.show_kept(state.kept)))

    def show_kept(self, kept: tuple[KeptSession, ...]) -> None:
        """Offer the latest session."""
        self._first = kept[0] if kept else None
        more = "" if len(kept) < 2 else f" And {len(kept) - 1} earlier."
        self.text.show_text(
            "" if self._first is None else f"Not saved when napari was closed: {self._first.words}.{more}"
        )
        self.setVisible(bool(kept))
