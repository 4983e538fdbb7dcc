"""Asks how wide and how fine a figure is to be."""

from __future__ import annotations

from qtpy.QtWidgets import QDialog, QDialogButtonBox, QDoubleSpinBox, QFileDialog, QSpinBox, QWidget

from ...evaluation.paper_figure import DPI, WIDTHS_MM
from .common import Text, column, labelled, named

FIGURES = "PDF (*.pdf);;SVG (*.svg);;PNG (*.png)"


class FigureDialog(QDialog):  # type: ignore[misc,unused-ignore]
    """Width and resolution of a figure; those asked for last are offered again."""

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
        """Ask, and then where to; return path, width in mm and dpi, or None."""
        if self.exec() != QDialog.DialogCode.Accepted:
            return None
        path, kind = QFileDialog.getSaveFileName(self.parentWidget(), "Save the figure", place, FIGURES)
        if not path:
            return None
        if not path.lower().endswith((".pdf", ".svg", ".png")):
            path += kind[-5:-1] if kind else ".pdf"
        return path, float(self.width_mm.value()), int(self.dpi.value())
