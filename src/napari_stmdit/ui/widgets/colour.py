"""Colouring spots by a gene, a program or a column."""

from __future__ import annotations

from typing import Any

import numpy as np
from qtpy.QtCore import QSize, Qt, Signal
from qtpy.QtGui import QColor, QIcon, QImage, QPainter, QPaintEvent, QPixmap
from qtpy.QtWidgets import QCheckBox, QDoubleSpinBox, QListWidget, QListWidgetItem, QSizePolicy, QWidget

from ...expression.genes import match_genes
from ...expression.programs import known_programs
from ...types import Genes, Section
from ..presenter import Presenter
from ..spot_colours import COLORMAPS, colormap_of
from ..state import Colouring, ColourScale
from .common import (
    COLUMN,
    PROGRAM,
    Choice,
    Connections,
    Lens,
    NameField,
    Text,
    blocked,
    boxed,
    column,
    combo,
    connect_state,
    fit_lines,
    named,
    row,
    without_steppers,
)

SPANS = (
    ("zero_p99", "0 – 99 %", "From zero to the 99th percentile of the spots"),
    ("p1_p99", "1 – 99 %", "From the 1st to the 99th percentile of the spots"),
    ("min_max", "min – max", "From the minimum to the maximum"),
    ("own", "own", "The limits that are typed below; they are kept for each gene"),
)
MAX_LEGEND_LINES = 7


class ColourStrip(QWidget):  # type: ignore[misc,unused-ignore]
    """The colour map as a bar."""

    def __init__(self) -> None:
        super().__init__()
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self._pixmap = QPixmap()
        self.show_map(COLORMAPS[0])

    def sizeHint(self) -> QSize:
        """Return the bar's size."""
        return QSize(120, 12)

    def show_map(self, name: str) -> None:
        """Show a colour map."""
        colours = np.asarray(colormap_of(name).map(np.linspace(0, 1, 256)))[:, :3]
        pixels = np.ascontiguousarray((colours * 255).astype(np.uint8))
        self._pixmap = QPixmap.fromImage(QImage(pixels.tobytes(), 256, 1, 768, QImage.Format.Format_RGB888).copy())
        self.update()

    def paintEvent(self, event: QPaintEvent) -> None:
        """Draw the bar."""
        QPainter(self).drawPixmap(self.rect(), self._pixmap)


class ColourPanel(Lens):
    """Form of a `Colouring`."""

    categoryChosen = Signal(str, str)
    """Signal (column, category): a category to be selected."""

    def __init__(self) -> None:
        super().__init__()
        self._value = Colouring()
        self._shown = (0.0, 1.0)
        self._genes: Genes | None = None
        self._programs: tuple[str, ...] = ()
        self._columns: tuple[str, ...] = ()
        self._offered: tuple[Any, ...] = ()
        self.gene = NameField()
        self.gene.setPlaceholderText("gene, program or column")
        named(
            self.gene,
            "Colour by",
            "Type a part of the name of a gene, a program or a column of the table, and choose; empty shows rings alone",
        )
        self.show_ = Choice(
            (
                ("measured", "Measured", "Expression as it was measured"),
                ("edited", "Edited", "Expression after the edits that are switched on"),
                ("change", "Change", "What the edits change, in log units: blue is less, orange more"),
            )
        )
        self.spots_as = Choice(
            (
                (
                    "fill",
                    "Filled",
                    "Spots filled with the colour of their value; none over results (H: the next of the three)",
                ),
                ("outline", "Rings", "Spots as rings, over results too (H: the next of the three)"),
                ("hide", "Hidden", "No spots; they can still be clicked and drawn around (H: the next of the three)"),
            )
        )
        self.log = named(QCheckBox("log"), "Logarithmic", "log(1 + counts per 10,000) instead of counts per 10,000")
        self.span = combo("Limits", "Where the colour map begins and ends", length=6)
        for place, (key, label, tip) in enumerate(SPANS):
            self.span.addItem(label, key)
            self.span.setItemData(place, tip, Qt.ItemDataRole.ToolTipRole)
        self.low, self.high = self._limit("Lower limit"), self._limit("Upper limit")
        tip = "Perceptually uniform maps that can be read with colour vision deficiencies"
        self.colormap = combo("Colour map", tip, length=6)
        self.colormap.addItems(COLORMAPS)
        self.strip = ColourStrip()
        self.legend = named(
            QListWidget(), "Categories", "The colour of each category; double-click to select its spots"
        )
        self.legend.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.unit, self.fault = Text("quiet"), Text("warning")
        self._lay_out()
        self._connect()
        self.setValue(Colouring())
        self.show_scale(ColourScale())

    def _lay_out(self) -> None:
        self._scale_row = boxed(row(self.low, self.strip, self.high, stretch=1))
        self._options = boxed(row(self.colormap, self.span, stretch=None))
        self.setLayout(
            column(
                self.gene,
                self.fault,
                self.show_,
                self._options,
                self._scale_row,
                self.legend,
                row(self.unit, self.log),
                self.spots_as,
                spacing=3,
            )
        )

    def _connect(self) -> None:
        self.gene.changed.connect(self._name_chosen)
        self.show_.chosen.connect(lambda show: self._change(show=show, limits=None))
        self.log.toggled.connect(lambda on: self._change(log=on, limits=None))
        self.span.activated.connect(self._span_chosen)
        self.low.editingFinished.connect(self._limits_edited)
        self.high.editingFinished.connect(self._limits_edited)
        self.colormap.currentTextChanged.connect(lambda name: self._change(colormap=name))
        self.legend.itemDoubleClicked.connect(self._category_clicked)

    def bind(self, presenter: Presenter) -> Connections:
        """Connect with a presenter; return the connections."""
        state = presenter.state

        def show_names() -> None:
            programs, view = tuple(known_programs(state.request.programs)), presenter.view
            if (programs, state.section) != self._offered:  # an edit that changes asks often
                self._offered = (programs, state.section)
                self.show_section(state.section, () if view is None else view.values.columns(), programs)

        self.valueChanged.connect(presenter.colour)
        self.spots_as.chosen.connect(presenter.show_spots)
        self.categoryChosen.connect(lambda obs, name: presenter.choosing.by_category(obs, name, state.combine))
        return connect_state(
            state.events,
            ("section request", show_names),
            ("colouring", lambda: self.setValue(state.colouring)),
            ("spots_as", lambda: self.spots_as.setValue(state.spots_as)),
            ("colour_scale", lambda: self.show_scale(state.colour_scale)),
        )

    # --- value

    def setValue(self, value: Colouring) -> None:
        """Show a colouring."""
        self._value = value
        text = value.gene or (f"{value.program}{PROGRAM}" if value.program else "")
        self.gene.show_text(f"{value.obs}{COLUMN}" if value.obs else text)
        self.show_.setValue(value.show)
        with blocked(self.log, self.span, self.colormap):
            self.log.setChecked(value.log)
            self.span.setCurrentIndex(self.span.findData(value.span if value.limits is None else "own"))
            self.colormap.setCurrentText(value.colormap)

    # --- what is known

    def show_section(self, section: Section | None, columns: tuple[str, ...] = (), programs: Any = ()) -> None:
        """Offer a section's genes, the columns of its table, and programs."""
        self._genes = None if section is None else section.spots.genes
        self._columns, self._programs = columns, tuple(programs)
        genes = () if section is None else section.spots.genes.symbols.tolist()
        self.gene.offer(genes, self._programs, columns)
        self.setEnabled(section is not None)

    def show_scale(self, scale: ColourScale) -> None:
        """Show the limits, or why there are none."""
        value = self._value
        self.fault.show_text(scale.fault)
        by_numbers = scale.gene is not None and not scale.categories
        change = by_numbers and value.show == "change" and value.obs is None
        self.unit.show_text(f"{scale.gene}: {scale.unit}" if scale.gene else "")
        self._scale_row.setVisible(by_numbers)
        self._options.setVisible(by_numbers and not change)  # a change has its own map, and limits around zero
        self.show_.setVisible(value.gene is not None or value.program is not None)
        self.log.setVisible(by_numbers and value.obs is None and not change)
        self.strip.show_map(scale.colormap)
        self._show_legend(scale)
        with blocked(self.low, self.high):
            self.low.setValue(scale.limits[0])
            self.high.setValue(scale.limits[1])
        self._shown = (self.low.value(), self.high.value())

    def _show_legend(self, scale: ColourScale) -> None:
        self.legend.setVisible(bool(scale.categories))
        self.legend.clear()
        for name, colour, count in scale.categories:
            swatch = QPixmap(12, 12)
            swatch.fill(QColor.fromRgbF(*colour[:3]))
            item = QListWidgetItem(QIcon(swatch), f"{name}  ({count:,})")
            item.setData(Qt.ItemDataRole.UserRole, name)
            self.legend.addItem(item)
        fit_lines(self.legend, len(scale.categories), MAX_LEGEND_LINES)

    # --- private

    def _limit(self, name: str) -> QDoubleSpinBox:
        box = QDoubleSpinBox()
        box.setRange(-1e9, 1e9)
        box.setDecimals(2)
        return named(without_steppers(box, 66), name, f"{name} of the colour map")

    def _name_chosen(self, text: str) -> None:
        text = text.strip()
        plain = text.removesuffix(PROGRAM.strip()).removesuffix(COLUMN.strip()).strip()
        found: dict[str, object] = {"gene": None, "program": None, "obs": None}
        is_gene = self._genes is not None and bool(match_genes((text,), self._genes).shared)
        if text.endswith(PROGRAM.strip()) or (not is_gene and text in self._programs):
            found["program"] = plain
        elif text.endswith(COLUMN.strip()) or (not is_gene and text in self._columns):
            found["obs"] = plain
        elif text:
            found["gene"] = text
        self._change(limits=None, **found)

    def _span_chosen(self) -> None:
        span = str(self.span.currentData())
        limits = (self.low.value(), self.high.value()) if span == "own" else None
        self._change(limits=limits, **({} if span == "own" else {"span": span}))

    def _limits_edited(self) -> None:
        limits = (self.low.value(), self.high.value())
        if limits != self._shown and limits[0] < limits[1]:
            self._change(limits=limits)

    def _category_clicked(self, item: QListWidgetItem) -> None:
        self.categoryChosen.emit(self._value.obs or "", str(item.data(Qt.ItemDataRole.UserRole)))
