"""The questions about a foreign checkpoint: the scale of its patches, a name, and the genes it sees."""

from __future__ import annotations

import re
from pathlib import Path

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QComboBox, QFileDialog, QLineEdit, QPushButton, QWidget

from ..acquisition import ConvertIntent
from ..state import Foreign
from .common import Text, column, labelled, named, row


class ConvertPanel(QWidget):  # type: ignore[misc,unused-ignore]
    """Shows a foreign checkpoint and asks what its files do not say."""

    convertRequested = Signal(object)

    def __init__(self) -> None:
        super().__init__()
        self._foreign: Foreign | None = None
        self.summary = Text("info")
        self.question = Text("warning")
        self.mpp = named(
            QComboBox(),
            "Microns per pixel of its patches",
            "No published file states it; a wrong one misplaces every image",
        )
        self.mpp.setEditable(True)
        self.mpp.lineEdit().setPlaceholderText("µm/px")
        self.why = Text("quiet")
        self.name = named(QLineEdit(), "Name of the checkpoint", "The name it is chosen by")
        self.genes = named(QLineEdit(), "Gene list", "Text file, one symbol a line, as its expression encoder saw them")
        self.genes.setPlaceholderText("none: embeddings only")
        self.genes_button = named(QPushButton("…"), "Choose the gene list", "Choose the gene list")
        self.genes_button.setFixedWidth(32)
        self.genes_row = QWidget()
        self.genes_row.setLayout(row(self.genes, self.genes_button))
        self.convert = named(
            QPushButton("Convert"), "Convert", "Make a checkpoint folder of it, once; its files stay as they are"
        )
        self.mpp.editTextChanged.connect(self._explain)
        self.genes_button.clicked.connect(self._browse)
        self.convert.clicked.connect(self._convert)
        form = labelled(("µm/px", self.mpp), ("Name", self.name), ("Genes", self.genes_row))
        self.setLayout(column(self.summary, self.question, form, self.why, self.convert))
        self.show_foreign(None)

    def show_foreign(self, foreign: Foreign | None) -> None:
        """Ask about a foreign checkpoint; None hides the panel."""
        self._foreign = foreign
        self.setVisible(foreign is not None)
        if foreign is None:
            return
        self.summary.show_text(f"{Path(foreign.path).name}: {foreign.summary}")
        self.question.show_text(
            f"Its files do not say how many microns a pixel of its {foreign.patch_px} px patches has."
        )
        self.mpp.blockSignals(True)
        self.mpp.clear()
        self.mpp.addItems([f"{mpp:g}" for mpp, _ in foreign.candidates])
        self.mpp.setCurrentIndex(-1)
        self.mpp.setEditText("")
        self.mpp.blockSignals(False)
        self.name.setText(re.sub(r"[^\w.-]+", "-", Path(foreign.path).stem).strip("-."))
        self.genes.setText("")
        self.genes_row.setEnabled(foreign.takes_expression)
        self._explain()

    def show_converting(self, on: bool) -> None:
        """Show that it is being converted."""
        self.convert.setText("Converting…" if on else "Convert")
        self.setEnabled(not on)

    def value(self) -> float | None:
        """Return the microns per pixel that were entered; None where that is no positive number."""
        try:
            mpp = float(self.mpp.currentText().strip().replace(",", "."))
        except ValueError:
            return None
        return mpp if 0 < mpp < 100 else None

    def _explain(self) -> None:
        foreign, mpp = self._foreign, self.value()
        self.convert.setEnabled(foreign is not None and mpp is not None)
        if foreign is None:
            return
        if mpp is None:
            listed = "; ".join(f"{value:g}: {why}" for value, why in foreign.candidates)
            self.why.show_text(f"See its model card. Candidates: {listed}.")
            return
        known = next((why for value, why in foreign.candidates if abs(value - mpp) < 1e-9), "")
        side = f"A patch then shows {foreign.patch_px * mpp:.0f} µm of tissue."
        self.why.show_text(f"{side} {known[:1].upper()}{known[1:]}." if known else side)

    def _browse(self) -> None:
        chosen, _ = QFileDialog.getOpenFileName(
            self, "Gene list, one symbol a line", "", "Text (*.txt *.tsv *.csv);;All files (*)"
        )
        if chosen:
            self.genes.setText(chosen)

    def _convert(self) -> None:
        if self._foreign is not None:
            genes = self.genes.text().strip() or None
            self.convertRequested.emit(ConvertIntent(self._foreign.path, self.value(), self.name.text(), genes))
