"""Colouring spots by a gene."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from qtpy.QtCore import QSize, QStringListModel, Qt, Signal
from qtpy.QtGui import QImage, QPainter, QPaintEvent, QPixmap
from qtpy.QtWidgets import (
    QCheckBox,
    QComboBox,
    QCompleter,
    QDoubleSpinBox,
    QLineEdit,
    QSizePolicy,
    QWidget,
)

from ...types import Section
from ..colouring import COLORMAPS
from ..state import Colouring, ColourScale
from .common import Text, column, named, row, without_steppers


class ColourStrip(QWidget):  # type: ignore[misc,unused-ignore]
    """The colour map as a bar."""

    def __init__(self) -> None:
        super().__init__()
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self._pixmap = QPixmap()
        self.show_map(COLORMAPS[0])

    def sizeHint(self) -> QSize:
        """Return the bar's size."""
        return QSize(120, 10)

    def show_map(self, name: str) -> None:
        """Show a colour map."""
        from napari.utils.colormaps import ensure_colormap

        colours = np.asarray(ensure_colormap(name).map(np.linspace(0, 1, 256)))[:, :3]
        pixels = np.ascontiguousarray((colours * 255).astype(np.uint8))
        self._pixmap = QPixmap.fromImage(QImage(pixels.tobytes(), 256, 1, 768, QImage.Format.Format_RGB888).copy())
        self.update()

    def paintEvent(self, event: QPaintEvent) -> None:
        """Draw the bar."""
        QPainter(self).drawPixmap(self.rect(), self._pixmap)


class ColourPanel(QWidget):  # type: ignore[misc,unused-ignore]
    """A lens on a `Colouring`."""

    valueChanged = Signal(object)

    def __init__(self) -> None:
        super().__init__()
        self._value = Colouring()
        self._shown = (0.0, 1.0)
        self._names = QStringListModel(self)
        self.gene = QLineEdit()
        self.gene.setPlaceholderText("gene, e.g. ERBB2")
        self.gene.setClearButtonEnabled(True)
        named(self.gene, "Gene", "Type a part of a gene's name and choose; empty shows rings alone")
        completer = QCompleter(self._names, self)
        completer.setFilterMode(Qt.MatchFlag.MatchContains)
        completer.setCaseSensitivity(Qt.CaseSensitivity.CaseInsensitive)
        completer.setMaxVisibleItems(12)
        self.gene.setCompleter(completer)
        completer.activated[str].connect(self._gene_chosen)
        self.gene.editingFinished.connect(lambda: self._gene_chosen(self.gene.text()))
        self.gene.textChanged.connect(lambda text: None if text else self._gene_chosen(""))
        self.log = named(QCheckBox("log"), "Logarithmic", "log(1 + counts per 10,000) instead of counts per 10,000")
        self.auto = named(QCheckBox("auto"), "Automatic limits", "Limits from zero to the 99th percentile of the spots")
        self.low, self.high = self._limit("Lower limit"), self._limit("Upper limit")
        self.colormap = named(
            QComboBox(), "Colour map", "Perceptually uniform maps that can be read with colour vision deficiencies"
        )
        self.colormap.addItems(COLORMAPS)
        self.colormap.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.colormap.setMinimumContentsLength(6)
        self.strip = ColourStrip()
        self.unit = Text("quiet")
        self.fault = Text("warning")
        self.log.toggled.connect(lambda on: self._change(log=on, limits=None))
        self.auto.toggled.connect(self._auto_toggled)
        self.low.editingFinished.connect(self._limits_edited)
        self.high.editingFinished.connect(self._limits_edited)
        self.colormap.currentTextChanged.connect(lambda name: self._change(colormap=name))
        self._scale_row = QWidget()
        self._scale_row.setLayout(row(self.low, self.strip, self.high, stretch=1))
        self.setLayout(
            column(self.gene, self.fault, row(self.colormap, self.log, self.auto), self._scale_row, self.unit)
        )
        self.setValue(Colouring())

    # --- value

    def value(self) -> Colouring:
        """Return how spots are to be coloured."""
        return self._value

    def setValue(self, value: Colouring) -> None:
        """Show a colouring."""
        self._value = value
        controls = (self.gene, self.log, self.auto, self.colormap, self.low, self.high)
        for control in controls:
            control.blockSignals(True)
        if self.gene.text() != (value.gene or "") and not self.gene.hasFocus():
            self.gene.setText(value.gene or "")
        self.log.setChecked(value.log)
        self.auto.setChecked(value.limits is None)
        self.colormap.setCurrentText(value.colormap)
        for control in controls:
            control.blockSignals(False)
        self.strip.show_map(value.colormap)

    # --- what is known

    def show_section(self, section: Section | None) -> None:
        """Offer a section's genes."""
        self._names.setStringList([] if section is None else sorted(set(section.spots.genes.symbols.tolist())))
        self.setEnabled(section is not None)

    def show_scale(self, scale: ColourScale) -> None:
        """Show the limits in force, or why there are none."""
        self.fault.show_text(scale.fault)
        self.unit.show_text(f"{scale.gene}: {scale.unit}" if scale.gene else "")
        self._scale_row.setVisible(scale.gene is not None)
        for control, value in zip((self.low, self.high), scale.limits, strict=True):
            control.blockSignals(True)
            control.setValue(value)
            control.blockSignals(False)
        self._shown = (self.low.value(), self.high.value())

    # --- private

    def _limit(self, name: str) -> QDoubleSpinBox:
        box = QDoubleSpinBox()
        box.setRange(0, 10_000)
        box.setDecimals(2)
        return named(without_steppers(box, 66), name, f"{name} of the colour map")

    def _change(self, **changes: object) -> None:
        value = replace(self._value, **changes)  # type: ignore[arg-type]
        if value != self._value:
            self.setValue(value)
            self.valueChanged.emit(value)

    def _gene_chosen(self, name: str) -> None:
        self._change(gene=name.strip() or None, limits=None)

    def _auto_toggled(self, auto: bool) -> None:
        self._change(limits=None if auto else (self.low.value(), self.high.value()))

    def _limits_edited(self) -> None:
        limits = (self.low.value(), self.high.value())
        if limits != self._shown and limits[0] < limits[1]:
            self._change(limits=limits)
