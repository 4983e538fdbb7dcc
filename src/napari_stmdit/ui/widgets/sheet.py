"""A contact sheet in a window of its own: it belongs to no place on the tissue, so it is no layer."""

from __future__ import annotations

from pathlib import Path

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QDialog, QFileDialog, QGridLayout, QLabel, QPushButton, QScrollArea, QWidget

from ...errors import StmditError
from ...evaluation.sheet_picture import save_sheet
from ...synthesis.sheet import ContactSheet
from .common import Text, column, named, row
from .results import pixmap_of

IMAGE_PX = 132


class SheetWindow(QDialog):  # type: ignore[misc,unused-ignore]
    """Shows a `ContactSheet` as it grows, and exports it."""

    def __init__(self, parent: QWidget) -> None:
        super().__init__(parent)
        self.setWindowTitle("Contact sheet (synthetic)")
        self.setAccessibleName("Contact sheet")
        self._sheet: ContactSheet | None = None
        self.title, self.message = Text("info"), Text("quiet")
        self.export = named(
            QPushButton("Export PNG…"), "Export PNG", "Write the sheet as one picture with its provenance"
        )
        self.export.clicked.connect(self._export)
        inside = QWidget()
        self._grid = QGridLayout(inside)
        self._grid.setSpacing(8)
        self._cells: list[QWidget] = []
        scroll = QScrollArea()
        scroll.setWidgetResizable(True)
        scroll.setWidget(inside)
        layout = column(self.title, scroll, self.message, row(QWidget(), self.export))
        layout.setContentsMargins(10, 10, 10, 10)
        layout.setStretch(1, 1)
        self.setLayout(layout)

    def show_sheet(self, sheet: ContactSheet | None) -> None:
        """Show a sheet, also where the window was closed before."""
        if sheet is None:
            return
        fresh = self._sheet is None or (sheet.title, sheet.spot) != (self._sheet.title, self._sheet.spot)
        self._sheet = sheet
        edited = any(cell.provenance.get("counterfactual") for cell in sheet.cells)
        what = "edited real tissue, synthetic" if edited else "synthetic images with common noise"
        self.title.show_text(f"{sheet.title}, spot {sheet.spot}: {what}, {sheet.patch_um:.0f} µm across")
        for cell in self._cells:
            self._grid.removeWidget(cell)
            cell.deleteLater()
        self._cells = []
        if sheet.real is not None:
            self._put(0, 0, "slide", sheet.real)
        for place, one in enumerate(sheet.cells):
            down, across = divmod(place, sheet.columns)
            self._put(down, across + 1, one.label, one.pixels)
        self.export.setEnabled(bool(sheet.cells))
        if fresh or not self.isVisible():
            rows = 1 if sheet.columns > 3 else sheet.columns
            wide = min((sheet.columns + 1) * (IMAGE_PX + 10) + 40, 1200)
            self.resize(wide, rows * (IMAGE_PX + 40) + 110)
            self.show()

    def _put(self, down: int, across: int, words: str, pixels: object) -> None:
        cell, image, label = QWidget(), QLabel(), QLabel(words)
        ratio = self.devicePixelRatioF()
        pixmap = pixmap_of(pixels).scaledToHeight(round(IMAGE_PX * ratio), Qt.TransformationMode.SmoothTransformation)
        pixmap.setDevicePixelRatio(ratio)
        image.setPixmap(pixmap)
        image.setAccessibleName(words)
        label.setWordWrap(True)
        label.setFixedWidth(IMAGE_PX)
        cell.setLayout(column(image, label, spacing=2))
        self._grid.addWidget(cell, down, across, Qt.AlignmentFlag.AlignTop)
        self._cells.append(cell)

    def _export(self) -> None:
        sheet = self._sheet
        if sheet is None:
            return
        name = f"{sheet.title}_{sheet.spot}".replace(" ", "_").lower()
        path, _ = QFileDialog.getSaveFileName(self, "Export the contact sheet", f"{name}.png", "PNG (*.png)")
        if path:
            self.save(path)

    def save(self, path: str | Path) -> None:
        """Write the sheet; says where, or why not."""
        if self._sheet is None:
            return
        try:
            self.message.show_text(f"Saved in {save_sheet(self._sheet, path)}.", "info")
        except StmditError as error:
            self.message.show_text(str(error), "error")
