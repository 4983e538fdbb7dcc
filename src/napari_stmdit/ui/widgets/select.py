"""Selection of spots, comparison with others, and exclusion."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from qtpy.QtCore import QLocale, Qt
from qtpy.QtGui import QDoubleValidator
from qtpy.QtWidgets import (
    QAbstractItemView,
    QComboBox,
    QHeaderView,
    QLabel,
    QLineEdit,
    QTableWidget,
    QTableWidgetItem,
    QWidget,
)

from ...expression.groups import GroupTable
from ...types import Section
from ..presenter import Presenter
from ..state import ColourScale
from ..tools import REST
from .common import (
    Choice,
    Connections,
    Fold,
    Text,
    ask_what_to_read,
    ask_where_to_write,
    blocked,
    boxed,
    button,
    column,
    combo,
    connect_state,
    named,
    row,
)

FORMS = "Outlines for QuPath (*.geojson);;Categories for Loupe Browser (*.csv);;Row numbers (*.txt)"


class SelectPanel(QWidget):  # type: ignore[misc,unused-ignore]
    """Tools of the selection, and the number of selected spots."""

    def __init__(self) -> None:
        super().__init__()
        self._by: str | None = None
        self._before = 0
        self.tool = Choice(
            (
                ("click", "Click", "Click spots in the viewer. Shift adds one or takes it away. Ctrl+1"),
                (
                    "rectangle",
                    "Rectangle",
                    "Drag a rectangle over spots. Shift adds, Alt or Control takes away. Ctrl+2",
                ),
                ("lasso", "Lasso", "Draw around spots in the viewer. Shift adds, Alt or Control takes away. Ctrl+3"),
            )
        )
        self.combine = Choice(
            (
                ("replace", "New", "The next choice replaces the selection"),
                ("add", "Add", "The next choice is added to the selection"),
                ("subtract", "Subtract", "The next choice is taken from the selection"),
            )
        )
        self.all = button("All", "Select all spots", "Select every spot", width=36)
        self.clear = button("Clear", "Clear the selection", "Select nothing", width=36)
        self.invert = button("Invert", "Invert the selection", "Select what is not selected", width=36)
        self.grow = button("Grow", "Grow by a ring", "Add the spots next to the selection, one ring", width=36)
        self.shrink = button("Shrink", "Shrink by a ring", "Remove the outermost ring of the selection", width=36)
        self.count = Text("info")
        self.count.setAlignment(Qt.AlignmentFlag.AlignVCenter)
        self.count.setAccessibleName("Selected spots")
        self.undo = button(
            "Undo", "Undo the selection", "Undo the last change of the selection or of the edits (Ctrl+Z)"
        )
        self._by_colour()
        self._by_name()
        self.groups = GroupsPanel()
        self.groups_fold = Fold("Compare with other spots", self.groups, unfolded=False, inner=True)
        self.excluding = ExcludePanel()
        self.excluded_fold = Fold("Excluded spots", self.excluding, unfolded=False, inner=True)
        folds = (self.colour_fold, self.name_fold, self.groups_fold, self.excluded_fold)
        bar = row(self.all, self.clear, self.invert, self.grow, self.shrink, stretch=None)
        bar.setSpacing(3)
        self.setLayout(column(self.tool, self.combine, bar, row(self.count, self.undo), spacing=4))
        self.more = boxed(column(*folds, spacing=2))
        """Further ways of selection, which the dock puts below the colours."""
        self.show_count(0, None)
        self.show_scale(ColourScale())
        self.show_named({})

    def _by_colour(self) -> None:
        self.what = Text("quiet")
        self.category = combo("Category", "Category of the column that the spots are coloured by", length=8)
        self.low, self.high = self._limit("least", "Least value"), self._limit("most", "Greatest value")
        self.choose = button("Select", "Select by colour", "Select the spots with this category or these values")
        limits = row(QLabel("from"), self.low, QLabel("to"), self.high, stretch=1)
        limits.setStretch(3, 1)
        self._range = boxed(limits)
        inside = boxed(column(self.what, row(self.category, self._range, self.choose)))
        self.colour_fold = Fold("By category or value", inside, unfolded=False, inner=True)

    def _by_name(self) -> None:
        tip = "Type a name and keep the selection, or choose one to recall it"
        self.names = combo("Named selections", tip, length=8)
        self.names.setEditable(True)
        self.names.setInsertPolicy(QComboBox.InsertPolicy.NoInsert)
        self.names.lineEdit().setPlaceholderText("name of a selection")
        self.keep = button("Keep", "Keep the selection", "Keep the selected spots under this name")
        self.forget = button("Delete", "Delete the name", "Forget this named selection; the spots stay")
        self.export = button(
            "Export…",
            "Export selections",
            "Write the selected spots, or with none all named selections: outlines for QuPath (.geojson), categories for Loupe (.csv), row "
            "numbers (.txt)",
        )
        self.load = button(
            "Import…",
            "Import selections",
            "Keep the annotations of a GeoJSON file, as QuPath exports it, as selections",
        )
        inside = boxed(column(row(self.names, self.keep, self.forget), row(self.export, self.load, stretch=None)))
        self.name_fold = Fold("Named selections", inside, unfolded=False, inner=True)

    def bind(self, presenter: Presenter) -> Connections:
        """Connect with a presenter; return the connections."""
        state, choosing = presenter.state, presenter.choosing

        def choose() -> None:
            if self.category.isVisibleTo(self):
                choosing.by_category(state.colouring.obs or "", self.category.currentText(), state.combine)
            else:
                try:
                    limits = _number(self.low, -math.inf), _number(self.high, math.inf)
                except ValueError as error:
                    state.tell("warning", str(error))
                else:
                    choosing.by_values(state.colouring, *limits, state.combine)

        def show_count() -> None:
            self.show_count(len(state.selected), None if state.section is None else len(state.section.spots))

        self.tool.chosen.connect(presenter.use_tool)
        self.combine.chosen.connect(lambda how: setattr(state, "combine", how))
        self.all.clicked.connect(lambda: presenter.select_all())
        self.clear.clicked.connect(lambda: presenter.select(()))
        self.invert.clicked.connect(lambda: presenter.invert_selection())
        self.grow.clicked.connect(lambda: choosing.grow(1))
        self.shrink.clicked.connect(lambda: choosing.grow(-1))
        self.undo.clicked.connect(lambda: presenter.painting.undo())
        self.choose.clicked.connect(choose)
        self.keep.clicked.connect(lambda: choosing.save(self.names.currentText()))
        self.forget.clicked.connect(lambda: choosing.delete(self.names.currentText()))
        self.names.activated.connect(lambda _: choosing.recall(self.names.currentText()))
        self.export.clicked.connect(lambda: self._write(choosing.export))
        self.load.clicked.connect(lambda: self._open(choosing.load))
        connections = connect_state(
            state.events,
            ("selected section", show_count),
            ("undoable", lambda: self.undo.setEnabled(state.undoable[0])),
            ("tool", lambda: self.tool.setValue(state.tool)),
            ("combine", lambda: self.combine.setValue(state.combine)),
            ("colour_scale", lambda: self.show_scale(state.colour_scale)),
            ("named", lambda: self.show_named(state.named)),
        )
        for panel in (self.groups, self.excluding):
            connections.add(panel.bind(presenter).close)
        return connections

    def _write(self, do: Callable[[str], None]) -> None:
        if path := ask_where_to_write(self, "Export selections", FORMS):
            do(path)

    def _open(self, do: Callable[[str], None]) -> None:
        if path := ask_what_to_read(self, "Import selections", "Annotations (*.geojson *.json)"):
            do(path)

    def show_count(self, selected: int, total: int | None) -> None:
        """Show the number of selected spots."""
        before, self._before = self._before, selected
        was = f" (before: {before:,})" if before not in (0, selected) else ""
        self.count.show_text("" if total is None else f"{selected:,} of {total:,} spots selected{was}")

    def show_scale(self, scale: ColourScale) -> None:
        """Offer the categories or the range of the present colouring."""
        known = scale.gene is not None
        self.what.show_text(f"{scale.gene}" if known else "Colour the spots first: their values are chosen from here.")
        self.category.setVisible(known and bool(scale.categories))
        self._range.setVisible(known and not scale.categories)
        self.choose.setVisible(known)
        names: Sequence[str] = [name for name, _, _ in scale.categories]
        if names != [self.category.itemText(k) for k in range(self.category.count())]:
            self.category.clear()
            self.category.addItems(names)
        if known and not scale.categories and scale.gene != self._by:
            low, high = scale.limits
            self.low.setText(f"{low + (high - low) / 2:.2f}")
            self.high.setText("")
        self._by = scale.gene

    def show_named(self, selections: Mapping[str, Sequence[str]]) -> None:
        """Show the named selections."""
        text = self.names.currentText()
        with blocked(self.names):
            self.names.clear()
            for name, ids in selections.items():
                self.names.addItem(name, f"{len(ids):,} spots")
            last = text if text in selections or not selections else next(reversed(list(selections)))
            self.names.setCurrentText(last)

    def _limit(self, hint: str, tip: str) -> QLineEdit:
        field = QLineEdit()
        validator = QDoubleValidator(field)
        validator.setLocale(QLocale.c())
        field.setValidator(validator)
        field.setPlaceholderText(hint)
        field.setMinimumWidth(40)
        return named(field, tip, f"{tip} of the spots to select; empty for no limit")


def _number(field: QLineEdit, empty: float) -> float:
    """Return the number in a field; raises ValueError, in words, where there is none."""
    text = field.text().strip().replace(",", ".")
    try:
        return float(text) if text else empty
    except ValueError:
        raise ValueError(f"'{field.text()}' is not a number; write the limit as 0.5, or leave it empty.") from None


SHOWN = 100
HEIGHT_PX = 190


class GroupsPanel(QWidget):  # type: ignore[misc,unused-ignore]
    """Comparison of the selection with the rest, or with a named selection."""

    def __init__(self) -> None:
        super().__init__()
        self.other = combo("Compare with", "The spots that the selection is compared with", length=8)
        self.compare = button(
            "Compare",
            "Compare the selection",
            "Find the genes and programs that differ between the selection and these",
        )
        self.kind = Choice(
            (
                ("gene", "Genes", "Genes, the surest difference first"),
                ("program", "Programs", "Programs, the surest difference first"),
            )
        )
        self.kind.setValue("gene")
        self.table = named(
            QTableWidget(0, 3),
            "What differs",
            "log2 fold change of the selection over the others, and false discovery rate",
        )
        self.table.setHorizontalHeaderLabels(["", "log2 change", "FDR"])
        self.table.verticalHeader().setVisible(False)
        self.table.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.table.setSelectionMode(QAbstractItemView.SelectionMode.NoSelection)
        self.table.setFixedHeight(HEIGHT_PX)
        header = self.table.horizontalHeader()
        header.setSectionResizeMode(0, QHeaderView.ResizeMode.Stretch)
        for place in (1, 2):
            header.setSectionResizeMode(place, QHeaderView.ResizeMode.ResizeToContents)
        self.about = Text("quiet")
        self.save = button("Save table…", "Save the table", "Write all genes and programs as CSV")
        self.alike = button("Make alike", "Make the first group like the second", "Add an edit that does so")
        self.setLayout(
            column(
                row(self.other, self.compare),
                self.about,
                self.kind,
                self.table,
                row(self.save, self.alike, stretch=None),
                spacing=4,
            )
        )
        self._found: GroupTable | None = None
        self.show_groups(None)
        self.show_named(())

    def bind(self, presenter: Presenter) -> Connections:
        """Connect with a presenter; return the connections."""
        state, groups = presenter.state, presenter.groups
        self.compare.clicked.connect(lambda _: groups.compare(self.other.currentData()))
        self.kind.chosen.connect(lambda _: self.show_groups(self._found))
        self.save.clicked.connect(lambda _: self._save(presenter))
        self.alike.clicked.connect(lambda _: groups.make_alike())
        return connect_state(
            state.events,
            ("groups", lambda: self.show_groups(state.groups)),
            ("named", lambda: self.show_named(tuple(state.named))),
        )

    def show_named(self, names: tuple[str, ...]) -> None:
        """Offer the rest, and the named selections."""
        chosen = self.other.currentData()
        with blocked(self.other):
            self.other.clear()
            self.other.addItem(REST, None)
            for name in names:
                self.other.addItem(name, name)
            self.other.setCurrentIndex(max(0, self.other.findData(chosen)) if chosen else 0)

    def show_groups(self, found: GroupTable | None) -> None:
        """Show the differences, the surest first."""
        self._found = found
        for part in (self.kind, self.table, self.save, self.alike):
            part.setVisible(found is not None)
        if found is None:
            self.about.show_text("Select spots, and compare them with the rest or a named selection.")
            return
        self.about.show_text(found.statement)
        self.alike.setText("Make alike")
        self.alike.setToolTip(
            f"Add an edit that makes {found.names[0]} like {found.names[1]}: all genes move towards its mean"
        )
        rows = found.top(self.kind.value(), SHOWN)
        self.table.setRowCount(len(rows))
        for at, (name, change, fdr) in enumerate(zip(rows["name"], rows["log2_fold_change"], rows["fdr"], strict=True)):
            for place, text in enumerate((str(name), f"{change:+.2f}", f"{fdr:.1e}")):
                item = QTableWidgetItem(text)
                if place:
                    item.setTextAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
                self.table.setItem(at, place, item)

    def _save(self, presenter: Presenter) -> None:
        if path := ask_where_to_write(self, "Save the table", "Table (*.csv)"):
            presenter.groups.export(path)


class ExcludePanel(QWidget):  # type: ignore[misc,unused-ignore]
    """Excluded regions, and their actions."""

    def __init__(self) -> None:
        super().__init__()
        self.about = Text("quiet")
        self.name = named(QLineEdit(), "Name of the region", "What is wrong there, such as fold, pen or blur")
        self.name.setPlaceholderText("fold, pen, blur ...")
        self.exclude = button(
            "Exclude",
            "Exclude the selection",
            "Exclude the selected spots from everything: runs, edits, profiles and evaluations",
        )
        self.file = button(
            "From file…", "Exclude the regions of a file", "Exclude the spots inside the polygons of a GeoJSON file"
        )
        self.include = button("Include all", "Include all spots again", "Use the excluded spots again")
        self.export = button(
            "Save…",
            "Save the excluded regions",
            "Write them as GeoJSON, for trainings, evaluations and runs from the command line",
        )
        self.setLayout(
            column(
                row(self.name, self.exclude),
                row(self.file, self.include, self.export, stretch=None),
                self.about,
                spacing=4,
            )
        )
        self.show_section(None)

    def bind(self, presenter: Presenter) -> Connections:
        """Connect with a presenter; return the connections."""
        state, corrections = presenter.state, presenter.corrections
        self.exclude.clicked.connect(lambda _: corrections.exclude(self.name.text()))
        self.include.clicked.connect(lambda _: corrections.include())
        self.file.clicked.connect(lambda _: self._open(corrections.exclude_file))
        self.export.clicked.connect(lambda _: self._save(corrections.export))
        return connect_state(state.events, ("section", lambda: self.show_section(state.section)))

    def show_section(self, section: Section | None) -> None:
        """Show which regions are excluded from a section."""
        excluded = None if section is None else section.excluded
        for one in (self.include, self.export):
            one.setEnabled(excluded is not None)
        said = "No spot is excluded." if excluded is None else f"{excluded.statement}."
        self.about.show_text(said)

    def _open(self, do: Callable[[str], None]) -> None:
        if path := ask_what_to_read(self, "Exclude the regions of a file", "Annotations (*.geojson *.json)"):
            do(path)

    def _save(self, do: Callable[[str], None]) -> None:
        if path := ask_where_to_write(self, "Save the excluded regions", "Outlines (*.geojson)"):
            do(path)
