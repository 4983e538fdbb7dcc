"""Dialogs: width and resolution of a figure, and units of a table."""

from __future__ import annotations

from pathlib import Path

from qtpy.QtWidgets import QDialog, QDialogButtonBox, QDoubleSpinBox, QFileDialog, QLayout, QSpinBox, QWidget

from ...evaluation.paper_figure import DPI, WIDTHS_MM
from ...expression.edit_tables import layers_of
from .common import Text, column, combo, labelled, named

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
            "Choose where the figure is written",
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
