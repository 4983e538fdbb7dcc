"""What is asked of a plain H&E slide: its virtual spots, and predicted expression for them."""

from __future__ import annotations

from typing import Any

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QComboBox, QFileDialog, QLineEdit, QPushButton, QWidget

from ...tissue.geometry import VISIUM_PITCH_UM
from ...tissue.open import SectionSource
from ...tissue.slide import SPOT_UM, TISSUE_FRACTION
from .common import Text, column, labelled, named, row

UNITS = ((None, "as the file says"), ("counts", "counts"), ("log1p", "log1p of normalised counts"))
TABLES = "Predicted expression (*.h5ad)"


class SlidePanel(QWidget):  # type: ignore[misc,unused-ignore]
    """The options of a `SectionSource` that are for plain images."""

    submitted = Signal()
    """Enter was pressed in one of the fields."""

    def __init__(self) -> None:
        super().__init__()
        self.pitch = self._number(
            "Grid pitch",
            f"{VISIUM_PITCH_UM:g}",
            f"Microns between the centres of the virtual spots, which have {SPOT_UM:g} µm",
        )
        self.fraction = self._number(
            "Part on tissue",
            f"{TISSUE_FRACTION:g}",
            "Part of a spot that must lie on tissue, 0 to 1; with 0 no tissue is looked for and spots cover the slide",
        )
        self.table = QLineEdit()
        named(
            self.table,
            "Predicted table",
            "A .h5ad with predicted expression and obsm['spatial'], (x, y) in full-resolution pixels. Its positions become the spots; "
            "with a pitch, the grid's spots take the nearest row",
        )
        self.table.setPlaceholderText("none: expression is null")
        self.table.returnPressed.connect(self.submitted)
        self.table.textChanged.connect(self._table_changed)
        browse = named(QPushButton("…"), "Choose the predicted table", "Choose the predicted table, .h5ad")
        browse.setFixedWidth(30)
        browse.clicked.connect(self._browse)
        self.units = named(
            QComboBox(), "Units of the table", "Fractions are asked about: expected counts, or logarithms"
        )
        for key, label in UNITS:
            self.units.addItem(label, key)
        self.about = Text("quiet")
        self.setLayout(
            column(
                labelled(
                    ("Pitch, µm", self.pitch),
                    ("On tissue", self.fraction),
                    ("Predicted", row(self.table, browse)),
                    ("Units", self.units),
                ),
                self.about,
            )
        )
        self._table_changed("")

    def value(self) -> dict[str, Any]:
        """Return the options that the fields give, by the names that `SectionSource` has for them.

        Raises
        ------
        ValueError
            Where pitch or part are no numbers; the message says which.
        """
        table = self.table.text().strip() or None
        return {
            "grid_pitch": _number(self.pitch),
            "tissue_fraction": _number(self.fraction),
            "predicted_expression": table,
            "predicted_units": self.units.currentData() if table else None,
        }

    def setValue(self, options: SectionSource) -> None:
        """Fill the fields."""
        for field, number in ((self.pitch, options.grid_pitch), (self.fraction, options.tissue_fraction)):
            field.setText("" if number is None else f"{number:g}")
        self.table.setText(str(options.predicted_expression or ""))
        self.units.setCurrentIndex(max(0, self.units.findData(options.predicted_units)))

    def _number(self, name: str, hint: str, tip: str) -> QLineEdit:
        field: QLineEdit = named(QLineEdit(), name, tip)
        field.setPlaceholderText(hint)
        field.setMinimumWidth(60)
        field.textChanged.connect(lambda _: self._table_changed(self.table.text()))
        field.returnPressed.connect(self.submitted)
        return field

    def _table_changed(self, text: str) -> None:
        there = bool(text.strip())
        self.units.setEnabled(there)
        if not there:
            self.about.show_text("No expression is used: it is null at every spot, and results say so.")
        elif self.pitch.text().strip():
            self.about.show_text("The grid's spots take the nearest row of the table; those without one are left out.")
        else:
            self.about.show_text("The table's positions are the spots. Give a pitch to match them to a grid.")
        self.pitch.setPlaceholderText("the table's positions" if there else f"{VISIUM_PITCH_UM:g}")

    def _browse(self) -> None:
        chosen, _ = QFileDialog.getOpenFileName(self, "Choose the predicted table", self.table.text(), TABLES)
        if chosen:
            self.table.setText(chosen)


def _number(field: Any) -> float | None:
    text = field.text().strip().replace(",", ".")
    try:
        return float(text) if text else None
    except ValueError:
        raise ValueError(f"{field.accessibleName()}: '{text}' is no number") from None
